//! Help, completions and man pages.

use std::process::Command;

use crate::support::child::{Ran, run};
use crate::support::files::Folder;

pub const COMMANDS: [&str; 15] = [
    "run",
    "check",
    "submit",
    "watch",
    "batches",
    "status",
    "pause",
    "resume",
    "cancel",
    "snooze",
    "dead",
    "schedules",
    "topology",
    "completions",
    "man",
];
pub const OF_DEAD: [&str; 4] = ["list", "show", "replay", "discard"];
pub const OF_SCHEDULES: [&str; 6] = ["list", "next", "explain", "run", "pause", "resume"];

async fn reveille(arguments: &[&str], columns: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reveille"));
    command.env_clear().env("COLUMNS", columns).args(arguments);
    run(command, "").await
}

#[tokio::test]
async fn help_has_examples_and_variables_and_fits_the_terminal() {
    for arguments in [vec!["--help"]].into_iter().chain(COMMANDS.map(|command| vec![command, "--help"])) {
        for columns in [60, 80, 200] {
            let help = reveille(&arguments, &columns.to_string()).await;
            assert_eq!(help.code, Some(0), "{}", help.errors);
            let text = &help.output;
            assert!(text.contains("Examples:\n  "), "{arguments:?}: {text}");
            let is_alone = |line: &str| line.trim().split(' ').count() == 1;
            let long = text.lines().find(|line| line.chars().count() > columns && !is_alone(line));
            assert_eq!(long, None, "{arguments:?} in {columns} columns");
            let talks = !["completions", "man"].contains(&arguments[0]);
            assert_eq!(text.contains("REVEILLE_BROKER__PASSWORD"), talks, "{arguments:?}: {text}");
        }
    }
}

#[tokio::test]
async fn a_value_that_is_nearly_one_is_told_with_the_right_one() {
    for (arguments, meant) in [
        (&["submit", "i-0000", "--confirm", "runing"][..], "'running'"),
        (&["submit", "i-0000", "--conflict", "acept"], "'accept'"),
        (&["submit", "i-0000", "--format", "csvv"], "'csv'"),
        (&["topolgy"], "'topology'"),
        (&["completions", "bsh"], "'bash'"),
    ] {
        let wrong = reveille(arguments, "80").await;
        assert_eq!(wrong.code, Some(2));
        assert!(wrong.errors.contains("tip:") && wrong.errors.contains(meant), "{}", wrong.errors);
    }
}

#[tokio::test]
async fn completions_name_every_command_in_each_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = reveille(&["completions", shell], "80").await;
        assert_eq!(script.code, Some(0), "{}", script.errors);
        for name in COMMANDS.iter().chain(&["failures-file", "running"]) {
            assert!(script.output.contains(name), "{shell}: {name}");
        }
    }
    let script = reveille(&["completions", "bash"], "80").await.output;
    let complete = "COMP_WORDS=(reveille sub) COMP_CWORD=1; _reveille reveille sub reveille; echo \"${COMPREPLY[@]}\"";
    let completed = run(Command::new("bash"), &format!("{script}\n{complete}\n")).await;
    assert_eq!(completed.output, "submit\n", "{}", completed.errors);
}

#[tokio::test]
async fn man_pages_are_written_into_a_folder_or_it_is_said_why_not() {
    let folder = Folder::new();
    let made = folder.path("share/man1");
    let written = reveille(&["man", &made], "80").await;
    assert_eq!((written.code, written.errors.as_str()), (Some(0), ""));
    let mut pages: Vec<String> =
        std::fs::read_dir(&made).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    let mut expected: Vec<String> = COMMANDS.iter().map(|command| format!("reveille-{command}.1")).collect();
    expected.push("reveille.1".to_owned());
    expected.extend(OF_DEAD.map(|command| format!("reveille-dead-{command}.1")));
    expected.extend(OF_SCHEDULES.map(|command| format!("reveille-schedules-{command}.1")));
    expected.sort();
    assert_eq!(pages, expected);
    let submit = std::fs::read_to_string(folder.path("share/man1/reveille-submit.1")).unwrap();
    assert!(submit.contains("\n.TH reveille-submit 1") && submit.contains("\n  reveille submit"), "{submit}");
    let file = folder.put("file", "");
    let wrong = reveille(&["man", &file], "80").await;
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.errors.contains(&file) && wrong.errors.contains("expected a folder"), "{}", wrong.errors);
}
