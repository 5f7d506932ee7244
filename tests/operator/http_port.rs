//! The HTTP port: whatever clients do, lanes go on and a scraper gets its answer.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::support::account::Account;
use crate::support::broker;
use crate::support::daemon::Daemon;
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};
use crate::support::{PATIENCE, eventually, instance};

/// Neither a broker nor an API is there.
const NOWHERE: &str = "http://127.0.0.1:9";

/// Slow clients.
const HALF_OPEN: &str = "GET /metrics HTTP/1.1\r\nHost: reveille\r\n";
const SILENT: &str = "";
const UNREAD: &str = "GET /metrics HTTP/1.1\r\nHost: reveille\r\n\r\n";
const UNSENT_BODY: &str = "POST /readyz HTTP/1.1\r\nHost: reveille\r\nContent-Length: 1000000\r\n\r\n";

/// Connects, sends this, and reads nothing: nor does the kernel, beyond a few kilobytes.
async fn dawdler(address: &str, sends: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut stream = socket.connect(address.parse().expect("an address")).await.expect("the port is open");
    // It may be closed as soon as it is accepted.
    let _ = stream.write_all(sends.as_bytes()).await;
    stream
}

/// This many of each kind.
async fn dawdlers(address: &str, of_each: usize) -> Vec<TcpStream> {
    let mut dawdlers = Vec::new();
    for _ in 0..of_each {
        for sends in [HALF_OPEN, SILENT, UNREAD, UNSENT_BODY] {
            dawdlers.push(dawdler(address, sends).await);
        }
    }
    dawdlers
}

/// The answer, until the daemon closes the connection.
async fn answer(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let closed = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    // A reset ends it as well.
    let _ = closed.expect("the daemon closes the connection");
    String::from_utf8(answer).expect("it speaks UTF-8")
}

fn nowhere(lane: &str) -> String {
    config("amqp://guest:guest@127.0.0.1:9", NOWHERE, &Wishes { lane, ..Wishes::default() })
}

#[tokio::test]
async fn slow_clients_keep_no_lane_from_its_descriptors_and_no_scraper_from_its_answer() {
    // With ten lanes the metrics are larger than the kernel's buffers for a client that does not read.
    let more: String =
        (1..10).map(|number| format!("[[lane]]\nname = \"idle-{number}\"\nendpoint = {NOWHERE:?}\n")).collect();
    let (vhost, sim) = (broker::vhost(), Sim::start(&["--fleet", "Stopped=100"]));
    let config = config(&vhost.url, &sim.url(), &Wishes { lane: &more, ..Wishes::default() });
    let daemon = Daemon::start_limited(&config, 256, 256);
    daemon.ready().await;
    let mut account = Account::open(&vhost.url).await;
    let address = daemon.address().await;

    let mut open = dawdlers(&address, 60).await;
    account.submit((1..=100).map(instance), json!({})).await;
    for _ in 0..5 {
        open.extend(dawdlers(&address, 10).await);
        for path in ["/metrics", "/readyz"] {
            let scraped = timeout(PATIENCE, daemon.get(path)).await;
            assert_eq!(scraped.expect("a scraper gets its answer").0, 200, "{path}");
        }
    }
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 100)].into());
    assert_eq!(daemon.charged().await, 0.0, "no job lost an attempt");
    daemon.never_paused().await;
    drop(open);
}

#[tokio::test]
async fn who_does_not_ask_in_time_is_closed_and_so_is_who_has_an_answer() {
    let daemon = Daemon::start(&nowhere(""));
    let address = daemon.address().await;
    let dawdling = [HALF_OPEN, SILENT].map(|sends| dawdler(&address, sends));
    let trickling = async {
        let mut stream = dawdler(&address, HALF_OPEN).await;
        while stream.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    for stream in dawdling {
        assert_eq!(answer(stream.await).await, "");
    }
    timeout(PATIENCE, trickling).await.expect("the daemon closes the connection");
    let kept = answer(dawdler(&address, "GET /livez HTTP/1.1\r\nHost: reveille\r\n\r\n").await).await;
    assert!(kept.starts_with("HTTP/1.1 200 OK\r\n") && kept.contains("connection: close\r\n"), "{kept}");
}

#[tokio::test]
async fn headers_that_are_too_large_and_bodies_are_not_read() {
    let daemon = Daemon::start(&nowhere(""));
    let address = daemon.address().await;
    let large = format!("GET /livez HTTP/1.1\r\nHost: reveille\r\nX-Large: {}\r\n\r\n", "x".repeat(10_000));
    let refused = answer(dawdler(&address, &large).await).await;
    assert!(refused.starts_with("HTTP/1.1 431 ") || refused.is_empty(), "{refused}");
    let many = format!("GET /livez HTTP/1.1\r\nHost: reveille\r\n{}\r\n", "x: y\r\n".repeat(200));
    let refused = answer(dawdler(&address, &many).await).await;
    assert!(refused.starts_with("HTTP/1.1 431 "), "{refused}");
    let posted = answer(dawdler(&address, UNSENT_BODY).await).await;
    assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
    assert_eq!(daemon.get("/livez").await, (200, "alive\n".to_owned()));
}

#[tokio::test]
async fn a_limit_of_open_files_that_cannot_suffice_is_refused_and_one_that_may_not_is_warned_about() {
    let mut daemon = Daemon::start_limited(&nowhere(""), 64, 64);
    assert_eq!(daemon.child.ended().await.code(), Some(2));
    let output = daemon.child.output();
    for words in ["the limit of open files is 64, and the lanes may need 99, 68 at least", "LimitNOFILE=", "ulimit -n"]
    {
        assert!(output.contains(words), "{words}: {output}");
    }
    let daemon = Daemon::start_limited(&nowhere("concurrency = 200"), 256, 256);
    let words = "the limit of open files is 256, and the lanes may need 267: calls beyond it fail";
    eventually(words, async || daemon.child.output().contains(words).then_some(())).await;
    assert_eq!(daemon.get("/livez").await.0, 200);
    assert!(daemon.child.output().contains("lower the lanes' concurrency"));
}

#[tokio::test]
async fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let daemon = Daemon::start_limited(&nowhere("concurrency = 200"), 64, 512);
    assert_eq!(daemon.get("/livez").await.0, 200);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.child.pid())).expect("it runs, on Linux");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("Linux tells it");
    assert_eq!(files.split_whitespace().skip(3).collect::<Vec<_>>(), ["512", "512", "files"]);
    assert!(!daemon.child.output().contains("limit of open files"), "{}", daemon.child.output());
}
