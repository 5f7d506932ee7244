//! The operator's view: commands, files, the HTTP port, alerts, secrets, starts and stops.

mod alerts;
mod batches;
mod check;
mod completion;
mod control;
mod dead;
mod dead_bound;
mod examples;
mod files;
mod help;
mod http_port;
mod logs;
mod morning;
mod schedules;
mod schedules_by_hand;
mod secrets;
mod start;
mod status;
mod stop;
mod submit;
mod transcripts;
mod watch;
mod waves;
