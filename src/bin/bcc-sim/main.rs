//! `bcc-sim`: a simulated BCC, for the demo, the tests and users' own rehearsals. It is a second binary of the crate,
//! so that users rehearse with the simulator on which the tests rely.
//!
//! It answers the calls `reveille` and the official SDKs make (start, stop, describe, list), verifies their
//! signatures, moves instances from state to state as time goes by, limits the rate, and misbehaves on order.
//!
//! | file | what lives there |
//! |---|---|
//! | `args` | the command line |
//! | `server` | connections: reading a request, carrying out a reply, resets and hangs |
//! | `request` | a received request, decoded: which operation on which instances |
//! | `auth` | the verifier of bce-auth-v1 |
//! | `clock` | the time it pretends to have |
//! | `world` | everything that changes, behind one lock: decides what becomes of a call |
//! | `fleet` | instances and their states |
//! | `api` | what the API says to each operation |
//! | `faults` | what can go wrong, on order: the one fault type, its JSON and its names |
//! | `limit` | the token bucket |
//! | `calls` | the log of calls |
//! | `control` | `/_sim/`: the tests' hand on all of it |
//! | `reply`, `body` | an answer, and the ways its bytes can be sent |
//! | `span` | lengths of time as people write them |
#![forbid(unsafe_code)]

mod api;
mod args;
mod auth;
mod body;
mod calls;
mod clock;
mod control;
mod faults;
mod fleet;
mod limit;
mod reply;
mod request;
mod server;
mod simulator;
mod span;
mod world;

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::simulator::Simulator;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // A rate that could pass nothing is a usage error like any other.
    args.limit().check().unwrap_or_else(|why| Args::command().error(ErrorKind::ValueValidation, why).exit());
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(args.log).init();

    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr().context("cannot tell the address listened on")?;
    let simulator = Arc::new(Simulator::new(&args));
    announce(&format!("bcc-sim listening on http://{address}"));

    // Open connections are dropped: a simulator has nothing to drain.
    tokio::select! {
        never = server::serve(simulator, listener) => match never {},
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Tests and scripts learn the port from the first line on stdout. A closed stdout is no reason to exit.
fn announce(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
