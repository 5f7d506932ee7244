//! A broker whose name has several addresses, some of which do not work.

use std::net::TcpListener;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::support::broker::{self, Vhost};
use crate::support::child::{Child, run};
use crate::support::daemon::{Config, Daemon};
use crate::support::files::Folder;
use crate::support::hosts::{Refusing, Swallowing, broker_at, with_hosts};
use crate::support::proxy::Proxy;
use crate::support::stage::{Wishes, config};
use crate::support::tls::authority;
use crate::support::{PATIENCE, eventually};

/// A configuration with the broker at `broker.test`.
fn named(vhost: &Vhost, port: u16) -> Config {
    let url = format!("amqp://guest:guest@broker.test:{port}/{}", vhost.name);
    Config::write(&config(&url, "http://127.0.0.1:9", &Wishes::default()))
}

/// A proxy in front of the vhost's node, at this address.
async fn proxy(address: &str, port: u16, vhost: &Vhost) -> Proxy {
    Proxy::at(&format!("{address}:{port}"), &[&vhost.node.url]).await
}

#[tokio::test]
async fn an_address_that_swallows_packets_does_not_hold_up_the_others() {
    let (vhost, folder) = (broker::vhost(), Folder::new());
    let swallowing = Swallowing::at("127.0.0.1:0").await;
    let _proxy = proxy("127.0.0.2", swallowing.port, &vhost).await;
    let config = named(&vhost, swallowing.port);
    let hosts = broker_at(&["127.0.0.1", "127.0.0.2"], &folder);
    let daemon = Daemon { child: Child::start(with_hosts(&config.command(&["run"]), &hosts)), config };
    daemon.takes_the_lane().await;
    assert!(!daemon.child.output().contains("cannot connect"), "{}", daemon.child.output());

    let submit = daemon.config.command(&["submit", "--lane", "prod", "i-sim00001"]);
    let ran = run(with_hosts(&submit, &hosts), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
}

#[tokio::test]
async fn an_address_that_takes_connections_and_says_nothing_does_not_hold_up_the_others() {
    let (vhost, folder) = (broker::vhost(), Folder::new());
    let swallowing = Swallowing::at("127.0.0.1:0").await;
    // Its kernel accepts connections, as that of a suspended broker does.
    let _mute = TcpListener::bind(("127.0.0.2", swallowing.port)).unwrap();
    let _proxy = proxy("127.0.0.3", swallowing.port, &vhost).await;
    let config = named(&vhost, swallowing.port);
    let hosts = broker_at(&["127.0.0.1", "127.0.0.2", "127.0.0.3"], &folder);
    let daemon = Daemon { child: Child::start(with_hosts(&config.command(&["run"]), &hosts)), config };
    daemon.takes_the_lane().await;
    let output = daemon.child.output();
    assert_eq!(output.matches("cannot connect").count(), 1, "{output}");
}

#[tokio::test]
async fn a_try_that_led_to_nothing_leaves_no_socket_behind() {
    let folder = Folder::new();
    let ca = format!("ca_file = {:?}", folder.put("ca.pem", &authority("the tests' own").pem()));
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (scheme, settings) in [("amqp", ""), ("amqps", ca.as_str())] {
        let url = format!("{scheme}://guest:guest@{}", silent.local_addr().unwrap());
        let text = config(&url, "http://127.0.0.1:9", &Wishes::default());
        let daemon = Daemon::start(&text.replace("[http]", &format!("{settings}\n[http]")));
        let (mut socket, _) = silent.accept().await.unwrap();
        eventually("it is given up", async || daemon.get("/readyz").await.1.contains("no answer within").then_some(()))
            .await;
        let closed = timeout(PATIENCE, socket.read_to_end(&mut Vec::new())).await;
        closed.expect("the socket is closed").expect("and not reset");
    }
}

#[tokio::test]
async fn what_each_address_failed_with_is_told() {
    let (vhost, folder) = (broker::vhost(), Folder::new());
    let everywhere = Refusing::at("0.0.0.0:0");
    let port = everywhere.address.port();
    let hosts = broker_at(&["127.0.0.1", "127.0.0.2"], &folder);
    let config = named(&vhost, port);
    let submit = config.command(&["submit", "--lane", "prod", "i-sim00001"]);
    let ran = run(with_hosts(&submit, &hosts), "").await;
    assert_eq!(ran.code, Some(69), "{}", ran.errors);
    for address in ["127.0.0.1", "127.0.0.2"] {
        assert!(ran.errors.contains(&format!("{address}:{port}: Connection refused")), "{}", ran.errors);
    }
}
