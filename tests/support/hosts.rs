//! Host names with chosen addresses, and addresses that do not work.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::files::Folder;

/// The same command with an `/etc/hosts` of its own, the file at `hosts`. Needs root, or a system that lets users have
/// namespaces.
pub fn with_hosts(command: &Command, hosts: &str) -> Command {
    let is_root = std::fs::metadata("/proc/self").expect("Linux has it").uid() == 0;
    let spaces = if is_root { &["--mount"][..] } else { &["--user", "--map-root-user", "--mount"] };
    let mut inside = Command::new("unshare");
    inside.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inside.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    inside.args(spaces).args(["--", "sh", "-c", r#"mount --bind "$0" /etc/hosts && exec "$@""#, hosts]);
    inside.arg(command.get_program()).args(command.get_args());
    inside
}

/// A file for [`with_hosts`] in which `broker.test` has these addresses, in this order.
pub fn broker_at(addresses: &[&str], folder: &Folder) -> String {
    let lines: String = addresses.iter().map(|address| format!("{address} broker.test\n")).collect();
    folder.put("hosts", &lines)
}

/// An address that drops packets: its listener's backlog is full.
pub struct Swallowing {
    pub port: u16,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Swallowing {
    pub async fn at(address: &str) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(address.parse().expect("an address")).expect("a free port");
        let listener = socket.listen(1).expect("it is bound");
        let address = listener.local_addr().expect("it is bound");
        let mut waiting = Vec::new();
        while let Ok(connected) = timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
            waiting.push(connected.expect("nobody refuses"));
            assert!(waiting.len() < 100, "a backlog of 1 has an end");
        }
        Self { port: address.port(), _listener: listener, _waiting: waiting }
    }
}

/// An address that refuses connections: nothing listens there, and the port is not given out as a free one. A listener
/// can still bind it by asking for this port.
pub struct Refusing {
    pub address: SocketAddr,
    _socket: TcpSocket,
}

impl Refusing {
    pub fn at(address: &str) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("a socket");
        socket.bind(address.parse().expect("an address")).expect("a free port");
        Self { address: socket.local_addr().expect("it is bound"), _socket: socket }
    }
}
