//! An HTTP proxy: tunnels for `CONNECT`, and forwarding of requests for whole URLs.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::front::message;

/// Everything it does ends on drop.
pub struct HttpProxy {
    /// `127.0.0.1:PORT`
    pub address: String,
    /// The `Proxy-Authorization` it requires, if any.
    wants: watch::Sender<Option<String>>,
    seen: Arc<Mutex<Vec<String>>>,
    _accepting: JoinSet<()>,
}

impl HttpProxy {
    pub async fn start(wants: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (wants, seen) = (watch::Sender::new(wants.map(str::to_owned)), Arc::default());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, wants.subscribe(), Arc::clone(&seen)));
        Self { address, wants, seen, _accepting: accepting }
    }

    /// Requires no authorization from now on.
    pub fn open(&self) {
        self.wants.send_replace(None);
    }

    /// The requests so far, as the proxy could read them: head and body, without the contents of tunnels.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn accept(listener: TcpListener, wants: watch::Receiver<Option<String>>, seen: Arc<Mutex<Vec<String>>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (wants, seen) = (wants.clone(), seen.clone());
        connections.spawn(async move {
            let _ = serve(client, wants, seen).await;
        });
    }
}

async fn serve(
    mut client: TcpStream,
    wants: watch::Receiver<Option<String>>,
    seen: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    while let Some(request) = message(&mut client).await {
        let text = String::from_utf8_lossy(&request).into_owned();
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(text.clone());
        let given = text.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("proxy-authorization").then(|| value.to_owned())
        });
        let wanted = wants.borrow().clone();
        if wanted.is_some() && given != wanted {
            let page = "<html>Who are you?</html>";
            let head = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"p\"\r\nConnection: close";
            let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{page}", page.len());
            return client.write_all(answer.as_bytes()).await;
        }
        let (method, rest) = text.split_once(' ').expect("a request line");
        let target = rest.split(' ').next().expect("a request line");
        if method == "CONNECT" {
            let mut server = TcpStream::connect(target).await?;
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            copy_bidirectional(&mut client, &mut server).await?;
            return Ok(());
        }
        let (host, path) =
            target.strip_prefix("http://").and_then(|url| url.split_once('/')).expect("a whole URL, of http");
        let mut server = TcpStream::connect(host).await?;
        server.write_all(text.replacen(target, &format!("/{path}"), 1).as_bytes()).await?;
        let Some(answer) = message(&mut server).await else { return Ok(()) };
        client.write_all(&answer).await?;
    }
    Ok(())
}
