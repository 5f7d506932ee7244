//! `docs/transcripts.md` is what its commands answer, and every command that a page names is one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use serde_json::json;

use super::help::{COMMANDS, OF_DEAD, OF_SCHEDULES};
use crate::support::broker::{self, Vhost};
use crate::support::child::{Child, Ran, run};
use crate::support::eventually;
use crate::support::files::Folder;
use crate::support::sim::Sim;

const PAGE: &str = "docs/transcripts.md";
/// Has the test write the page in place of comparing it: `make transcripts`.
const WRITE: &str = "REVEILLE_TRANSCRIPTS";
/// What stands for this machine.
const HOST: &str = "host-1";
/// Starts the daemon, which runs until the end of the page.
const RUN: &str = "reveille run &";
const FLEET: &str =
    "i-sim00001   # web-1\ni-sim00002   # web-2\ni-sim00005   # runs already\ni-gone0001   # released\n";

/// A line of the page.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    /// `$ …` in a block.
    Command(&'a str),
    /// What a command answered.
    Answer(&'a str),
    Prose(&'a str),
}

fn lines(page: &str) -> Vec<Line<'_>> {
    let mut is_transcript = false;
    let line = |line| {
        if str::starts_with(line, "```") {
            is_transcript = line == "```console";
            return Line::Prose(line);
        }
        match line.strip_prefix("$ ") {
            _ if !is_transcript => Line::Prose(line),
            Some(command) => Line::Command(command),
            None => Line::Answer(line),
        }
    };
    page.lines().map(line).collect()
}

/// The page with what `answer` says to each command in place of the answers that it has.
async fn answered(page: &str, answer: impl AsyncFn(&str) -> String) -> String {
    let mut anew = String::new();
    for line in lines(page) {
        match line {
            Line::Prose(text) => anew += &format!("{text}\n"),
            Line::Command(command) => anew += &format!("$ {command}\n{}", answer(command).await),
            Line::Answer(_) => {}
        }
    }
    anew
}

/// The answers, line by line, without what differs from run to run; a line of progress comes every few seconds.
fn masked(page: &str) -> Vec<(&str, String)> {
    let lines = page.lines().map(|line| (line, mask(line)));
    lines.filter(|(_, masked)| !masked.ends_with("; DURATION")).collect()
}

/// The line without what differs from run to run, and with a single space between words.
fn mask(line: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in line.split_whitespace() {
        let bare = word.trim_matches(|it| "(),;:\"".contains(it));
        let is_number = |text: &str| !text.is_empty() && text.chars().all(|it| it.is_ascii_digit());
        let weekday = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].contains(&bare);
        let is_date = bare.parse::<jiff::civil::Date>().is_ok();
        // 07:30:00+08:00
        let is_time = bare.len() == 14 && bare.split([':', '+', '-']).all(is_number);
        let is_duration = bare.starts_with(|it: char| it.is_ascii_digit())
            && bare.ends_with(['s', 'm', 'h', 'd'])
            && bare.chars().all(|it| it.is_ascii_digit() || ".msdhµ".contains(it));
        words.push(match bare {
            _ if bare.parse::<jiff::Timestamp>().is_ok() => "TIME",
            _ if bare.starts_with("new-year-") => "BATCH",
            _ if weekday || is_date || is_time => "TIME",
            _ if bare.parse::<uuid::Uuid>().is_ok() => "ID",
            _ if bare.contains("127.0.0.1:") || bare.contains("node") && bare.contains('@') => "ADDRESS",
            _ if words.last() == Some(&"RabbitMQ") && bare.starts_with(|it: char| it.is_ascii_digit()) => "VERSION",
            _ if is_duration => "DURATION",
            _ if is_number(bare) && words.last().is_some_and(|before| ["pid", "port"].contains(before)) => "NUMBER",
            _ => word,
        });
    }
    // Of a lane in `status`, the last minute depends on how long the commands before took.
    if let Some(rate) = words.windows(2).position(|pair| pair[0] == "of" && pair[1].ends_with("/s")) {
        words.truncate(rate + 6);
    }
    words.join(" ")
}

/// RabbitMQ, the simulated BCC, and a folder with the files of the page.
struct Scene {
    /// Its node ends with its last user.
    _vhost: Vhost,
    folder: Folder,
    host: String,
    daemon: Mutex<Option<Child>>,
    _sim: Sim,
}

impl Scene {
    async fn set() -> Self {
        let sim = Sim::start(&["--fleet", "Stopped=4,Running=2,Expired=1", "--boot-time", "300ms"]);
        for number in 1..=2 {
            let named = json!({"status": "Stopped", "name": format!("web-{number}")});
            sim.control("PUT", &format!("instances/i-sim{number:05}"), named).await;
        }
        // The vhost of a new RabbitMQ: no other test uses it.
        let mut vhost = broker::vhost();
        vhost.url = format!("{}/%2f", vhost.node.url);
        let lane = format!(
            "[[lane]]\nname = \"prod-bj\"\nendpoint = {:?}\ncredentials_file = \"bce.toml\"\nrate = 20.0\n",
            sim.url()
        );
        // Due once a year, so that the page is the same at each hour.
        let schedule = "\n[[schedule]]\nname = \"new-year\"\ncron = \"30 7 1 1 *\"\ntimezone = \"Asia/Shanghai\"\n\
                        instances = [\"i-sim00003\"]\nconfirm = \"running\"\n";
        let broker = format!("[broker]\nurl = {:?}\n\n[http]\nlisten = \"127.0.0.1:0\"\n", vhost.url);
        let folder = Folder::new();
        folder.put("reveille.toml", &format!("{broker}\n{lane}{schedule}"));
        folder.put("typo.toml", &format!("{broker}\n{}", lane.replace("rate = 20.0", "rat = 20.0")));
        let keys = "access_key_id = \"sim-access-key\"\nsecret_access_key = \"sim-secret-key\"\n";
        let keys = folder.put("bce.toml", keys);
        fs::set_permissions(keys, Permissions::from_mode(0o600)).expect("the file is ours");
        folder.put("fleet.txt", FLEET);
        let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("Linux tells it").trim().to_owned();
        Self { folder, host, daemon: Mutex::default(), _vhost: vhost, _sim: sim }
    }

    /// What a shell prints for a line, as the page has it.
    async fn answer(&self, line: &str) -> String {
        if line == RUN {
            self.start_daemon().await;
            return String::new();
        }
        let Ran { code, output, .. } = run(self.shell(&format!("exec 2>&1; {line}")), "").await;
        let mut text = without_host(&output, &self.host);
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        match code {
            Some(0) => text,
            Some(code) => format!("{text}[exit code {code}]\n"),
            None => panic!("{line} was killed:\n{text}"),
        }
    }

    async fn start_daemon(&self) {
        let daemon = Child::start(self.shell("exec reveille run"));
        eventually("the daemon runs the lane", async || daemon.output().contains("lane held").then_some(())).await;
        *self.daemon.lock().unwrap() = Some(daemon);
    }

    fn shell(&self, line: &str) -> Command {
        let binaries = Path::new(env!("CARGO_BIN_EXE_reveille")).parent().expect("a folder").display();
        let mut command = Command::new("sh");
        command.args(["-c", line]).env_clear().env("PATH", format!("{binaries}:/usr/bin:/bin"));
        command.env("NO_PROXY", "127.0.0.1").env("USER", "ops").current_dir(self.folder.path("."));
        command
    }
}

/// The text with another host and pid in place of ours, as long as they are, so that tables keep their columns.
fn without_host(text: &str, host: &str) -> String {
    let replica = format!("{host} pid ");
    let mut parts = text.split(&replica);
    let mut anew = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.len() - part.trim_start_matches(|it: char| it.is_ascii_digit()).len();
        anew += &format!("{:<1$}{2}", format!("{HOST} pid 7"), replica.len() + digits, &part[digits..]);
    }
    anew.replace(&format!("@{host}"), &format!("@{HOST}"))
}

#[tokio::test]
async fn the_page_is_what_its_commands_answer() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).expect("the page is there");
    let commands: Vec<String> = lines(&page)
        .into_iter()
        .filter_map(|line| if let Line::Command(text) = line { Some(format!("{text} ")) } else { None })
        .collect();
    let of_others = OF_DEAD
        .map(|command| format!("dead {command}"))
        .into_iter()
        .chain(OF_SCHEDULES.map(|it| format!("schedules {it}")));
    for command in COMMANDS.map(str::to_owned).into_iter().chain(of_others) {
        let is_shown = commands.iter().any(|text| text.contains(&format!("reveille {command} ")));
        assert!(is_shown, "{PAGE} has no `reveille {command}`");
    }
    let scene = Scene::set().await;
    let anew = answered(&page, async |line| scene.answer(line).await).await;
    if std::env::var_os(WRITE).is_some() {
        return fs::write(&path, anew).expect("the page can be written");
    }
    let (old, new) = (masked(&page), masked(&anew));
    for (number, (line, expected)) in new.iter().enumerate() {
        let (old_line, old) = old.get(number).map_or(("", ""), |(line, masked)| (line, masked));
        assert_eq!(
            old, expected,
            "{PAGE} has\n  {old_line}\nand now it is\n  {line}\n`make transcripts` writes it anew; all of it:\n{anew}"
        );
    }
    assert_eq!(old.len(), new.len(), "the page has more than its commands answer:\n{anew}");
}

/// The commands in the blocks for shells and the code spans of a page, each without what follows in a pipe.
fn commands_of(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut block = None;
    for line in page.replace("\\\n", "").lines() {
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            block = if block.is_some() { None } else { Some(kind.to_owned()) };
            continue;
        }
        match block.as_deref() {
            Some("sh") if !line.starts_with('#') => found.push(line.to_owned()),
            Some("console") => found.extend(line.strip_prefix("$ ").map(str::to_owned)),
            Some(_) => {}
            None => found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned)),
        }
    }
    let command = |text: &String| {
        let mut words = text.split("reveille ").skip(1).filter(|rest| {
            let first = rest.split_whitespace().next().unwrap_or_default();
            // The name of a connection is no command.
            COMMANDS.contains(&first) && !rest.contains(" pid ")
        });
        let rest = words.next()?;
        let end = rest.find(['|', '>', '<', '&', ';', '#']).unwrap_or(rest.len());
        // What can be left out is in brackets.
        Some(rest[..end].trim().replace(['[', ']'], ""))
    };
    found.iter().filter_map(command).collect()
}

#[tokio::test]
async fn every_command_that_a_page_names_is_one() {
    let (mut shown, mut wrong) = (0, Vec::new());
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        for command in commands_of(&text) {
            shown += 1;
            // Help is printed in place of doing it, once everything before it has been understood.
            let mut sh = Command::new("sh");
            sh.args(["-c", &format!("exec {} {command} --help", env!("CARGO_BIN_EXE_reveille"))]).env_clear();
            let ran = run(sh, "").await;
            if ran.code != Some(0) {
                let error = ran.errors.lines().next().unwrap_or_default();
                wrong.push(format!("{}: reveille {command}: {error}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(shown > 50, "only {shown} commands were found");
}

/// README, and the pages of docs and examples.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = |name| fs::read_dir(root.join(name)).expect("a folder").map(|entry| entry.expect("an entry").path());
    let is_page = |path: &PathBuf| path.extension().is_some_and(|it| it == "md");
    [root.join("README.md")].into_iter().chain(folder("docs")).chain(folder("examples")).filter(is_page).collect()
}
