//! The `reveille` command.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    reveille::cli::run(reveille::cli::Arguments::parse())
}
