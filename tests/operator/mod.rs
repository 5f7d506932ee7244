//! The operator's view: commands, files, the HTTP port, alerts, secrets, starts and stops.

mod alerts;
mod examples;
mod files;
mod help;
mod http_port;
mod logs;
mod secrets;
mod start;
mod stop;
mod submit;
mod watch;
