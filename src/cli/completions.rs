//! `reveille completions`

use std::process::ExitCode;

use clap_complete::Shell;

use super::{Failure, print_raw};

const EXAMPLES: &str = "\
Examples:
  reveille completions bash >~/.local/share/bash-completion/completions/reveille
  reveille completions zsh >~/.zfunc/_reveille   # with fpath+=~/.zfunc in .zshrc
  reveille completions fish >~/.config/fish/completions/reveille.fish";

/// What `reveille completions` takes.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The shell.
    shell: Shell,
}

/// Prints the script for `command`, which is the whole command line.
pub(super) fn run(arguments: Arguments, mut command: clap::Command) -> Result<ExitCode, Failure> {
    let name = command.get_name().to_owned();
    // Not to standard output at once: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    print_raw(&script)?;
    Ok(ExitCode::SUCCESS)
}
