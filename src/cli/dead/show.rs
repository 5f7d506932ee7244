//! `reveille dead show`

use std::fmt::Write;
use std::process::ExitCode;

use indicatif::ProgressBar;
use jiff::Timestamp;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use super::filter::{Chosen, Filter};
use super::letter::{Letter, Why, count, shown, time};
use super::queue::{DeadQueue, End, Judge, Next};
use crate::cli::signals::Signals;
use crate::cli::{Failure, Output, print, tell};
use crate::config::Config;
use crate::text::{self, Shown};

/// What `reveille dead show` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The id of the job; without it, the oldest letter that matches the options is shown.
    #[arg(value_name = "JOB")]
    job: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// `json` is one object.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(super) async fn run(arguments: &Arguments, config: &Config, now: Timestamp) -> Result<ExitCode, Failure> {
    let chosen = arguments.filter.choose(arguments.job.as_slice(), now)?;
    let mut signals = Signals::open()?;
    let queue = DeadQueue::open(config).await?;
    let letters = queue.letters().await?;
    let mut first = First { chosen, letter: None };
    let look = queue.look(&mut signals, letters, &mut first).await;
    queue.connection.close().await;
    match (look.end, first.letter) {
        (End::Failed(failure), _) => Err(failure),
        (End::Interrupted(code), None) => {
            tell(format_args!("left after {} of {letters}: all of them stay in the queue", look.letters));
            Ok(ExitCode::from(code))
        }
        (_, Some(letter)) => {
            match arguments.output {
                Output::Table => print(page(&letter))?,
                Output::Json => print(text::json(&object(&letter)?))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        (End::Done, None) => {
            let doubts = first.chosen.doubts(config);
            tell(format_args!("no letter matches, of {}{doubts}", count(look.letters)));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Looks for the first letter that is chosen.
struct First<'a> {
    chosen: Chosen<'a>,
    letter: Option<Letter>,
}

impl Judge for First<'_> {
    async fn judge(&mut self, _: &DeadQueue, _: &ProgressBar, letter: Letter) -> Result<Next, Failure> {
        if !self.chosen.has(&letter.facts) {
            return Ok(Next::Keep);
        }
        self.letter = Some(letter);
        Ok(Next::Stop)
    }
}

fn object(letter: &Letter) -> Result<String, Failure> {
    let Letter { facts, message, job, .. } = letter;
    let headers = message.properties.headers().as_ref().map(table).unwrap_or_default();
    let object = json!({"letter": facts, "problem": job.as_ref().err(), "headers": headers,
        "body": String::from_utf8_lossy(&message.body)});
    let object = serde_json::to_string_pretty(&object);
    Ok(object.map_err(|error| anyhow::anyhow!("cannot write JSON: {error}"))? + "\n")
}

/// For people.
fn page(letter: &Letter) -> String {
    let Letter { facts, message, job, .. } = letter;
    let mut page = String::new();
    let mut line = |name: &str, value: String| page += &format!("{name:<12}{value}\n");
    line("job", shown(facts.job_id.as_ref()));
    if facts.replay_of.is_some() {
        line("replay of", shown(facts.replay_of.as_ref()));
    }
    line("instance", shown(facts.instance_id.as_ref()));
    line("batch", shown(facts.batch_id.as_ref()));
    line("lane", shown(facts.lane.as_ref()));
    line("dead since", time(facts.dead_at));
    line(
        facts.outcome.as_deref().map_or("dead", |outcome| if outcome == "rejected" { "rejected" } else { "failed" }),
        Why(facts).to_string(),
    );
    line("attempts", facts.attempts.to_string());
    if facts.bce_request_id.is_some() {
        line("request id", shown(facts.bce_request_id.as_ref()));
    }
    if let Some(deadline) = facts.deadline {
        line("deadline", deadline.to_string());
    }
    if let Err(problem) = job {
        line("no job", Shown(problem).to_string());
    }
    line("to replay", again(letter));
    page += "\nheaders\n";
    let headers = message.properties.headers().as_ref().map(table).unwrap_or_default();
    for (name, value) in headers {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let _ = writeln!(page, "  {}: {}", Shown(name), Shown(value));
    }
    let body = String::from_utf8_lossy(&message.body);
    let _ = writeln!(page, "\nbody, {} bytes\n{}", message.body.len(), body.trim_end());
    page
}

/// How to replay a letter.
fn again(letter: &Letter) -> String {
    let is_plain = |id: &&String| {
        !id.starts_with('-')
            && id.chars().all(|character| character.is_ascii_alphanumeric() || "-_.:/@+".contains(character))
    };
    match (&letter.job, &letter.facts.job_id) {
        (Err(_), _) => "cannot be: it would be rejected again".to_owned(),
        (Ok(_), Some(id)) if is_plain(&id) && !id.is_empty() => format!("reveille dead replay {id}"),
        (Ok(job), _) => format!("reveille dead replay --instance {}", job.instance_id),
    }
}

fn table(table: &FieldTable) -> serde_json::Map<String, Value> {
    table.inner().iter().map(|(name, value)| (name.to_string(), header(value))).collect()
}

fn header(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(flag) => json!(flag),
        AMQPValue::ShortShortInt(number) => json!(number),
        AMQPValue::ShortShortUInt(number) => json!(number),
        AMQPValue::ShortInt(number) => json!(number),
        AMQPValue::ShortUInt(number) => json!(number),
        AMQPValue::LongInt(number) => json!(number),
        AMQPValue::LongUInt(number) => json!(number),
        AMQPValue::LongLongInt(number) => json!(number),
        AMQPValue::Float(number) => json!(number),
        AMQPValue::Double(number) => json!(number),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => json!(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => json!(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::Timestamp(seconds) => {
            let instant = i64::try_from(*seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
            json!(instant)
        }
        AMQPValue::DecimalValue(number) => json!({"scale": number.scale, "value": number.value}),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(header).collect(),
        AMQPValue::FieldTable(inside) => Value::Object(table(inside)),
        AMQPValue::Void => Value::Null,
    }
}
