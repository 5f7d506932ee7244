//! `reveille man`

use std::path::PathBuf;
use std::process::ExitCode;

use super::Failure;

const EXAMPLES: &str = "\
Examples:
  reveille man ~/.local/share/man/man1 && man reveille-submit
  sudo reveille man /usr/local/share/man/man1";

/// What `reveille man` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The folder, which is made where it is missing.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Writes a page for `command`, which is the whole command line, and one for each of its commands.
pub(super) fn run(arguments: &Arguments, command: clap::Command) -> Result<ExitCode, Failure> {
    let folder = &arguments.folder;
    std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(command, folder)).map_err(|error| {
        Failure::Usage(format!(
            "cannot write man pages to {}: {error}; expected a folder to write to",
            folder.display()
        ))
    })?;
    Ok(ExitCode::SUCCESS)
}
