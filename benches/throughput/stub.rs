//! The stub: a server that answers every request 200 `{}` at once. It is a process of its own, so that its CPU time is
//! not counted as the client's, without an HTTP library, so that it uses little of the shared cores.

use std::io;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json;charset=UTF-8\r\n\
    x-bce-request-id: 5b2f7d2e-0000-4000-8000-000000000000\r\ncontent-length: 2\r\n\r\n{}";

/// Prints its address, then serves until standard input closes.
pub fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("the stub finds no port")?;
        println!("ready http://{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // A client that goes away ends only its own connection.
            tokio::spawn(async move { serve(&stream).await.ok() });
        }
    })
}

/// Start calls have no body, so each ends with its headers; they are not parsed any further.
async fn serve(stream: &TcpStream) -> io::Result<()> {
    let mut unread = Vec::with_capacity(2048);
    loop {
        stream.readable().await?;
        match stream.try_read_buf(&mut unread) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        while let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            unread.drain(..end + 4);
            answer(stream).await?;
        }
    }
}

async fn answer(stream: &TcpStream) -> io::Result<()> {
    let mut rest = ANSWER;
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
