//! Metrics, health and logs.

mod health;
mod http;
mod metrics;

pub use health::{CONNECTED, LaneState, Readiness};
pub use http::{bind, serve};
pub use metrics::{LaneMetrics, Metrics};

use std::io::IsTerminal;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Logs to standard error. `RUST_LOG` says what, by target and level, as in `reveille=debug,lapin=warn`.
///
/// # Errors
/// Where `RUST_LOG` cannot be read.
pub fn init_logs() -> Result<(), String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => text
            .parse::<Targets>()
            .map_err(|error| format!("RUST_LOG {text:?}: {error}; expected, for instance, reveille=debug"))?,
        // What lapin says of a broken connection we say ourselves, once and with what follows from it.
        _ => Targets::new()
            .with_default(LevelFilter::WARN)
            .with_target("reveille", LevelFilter::INFO)
            .with_target("lapin", LevelFilter::OFF),
    };
    // At that level lapin shows the login, password and all.
    let no_login = filter_fn(|event| !(*event.level() == Level::TRACE && event.target().starts_with("lapin")));
    let format =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(format).with(filter).with(no_login).init();
    Ok(())
}
