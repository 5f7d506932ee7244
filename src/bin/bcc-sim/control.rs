//! `/_sim/`: with it tests inspect and control the simulator. Unsigned, and neither limited nor logged.
//!
//! | request | body or answer |
//! |---|---|
//! | `GET health` | `{"status":"ok","instances":…,"calls":…,"calls_dropped":…}` |
//! | `GET calls`, `DELETE calls` | the log: a list of [`Call`]s |
//! | `GET instances` | `[{"id","status","starts"}]` |
//! | `PUT instances/{id}` | an [`Order`]: `{"status":"Stopped","hold":false,"boots_into":"Running"}` |
//! | `PUT instances` | a list of orders, each with its `id`; all of them or none |
//! | `GET`, `PUT faults` | [`Faults`]: `{"latency":"0s","rules":[{"fault":…,"share":…,"instances":[…],"operations":[…]}]}` |
//! | `GET`, `PUT script/{id}` | a list of faults for the next calls that name this instance, alone or among others; `*`: for any call |
//! | `GET`, `PUT limit` | a [`Limit`]: `{"rate":20,"burst":5}`; `{"rate":null}` lifts it |
//! | `PUT credentials` | an [`Account`], or a list of them, in place of those there were |
//! | `GET`, `PUT clock` | a [`Clock`]: `{"offset":"-20m","tolerance":"30m"}` |
//!
//! A fault is a name such as `"hang-after"` or an object such as `{"status":429,"retry_after":2}`; `faults/wire.rs` has
//! them all. Invalid requests are answered 400 `{"error":…}` and change nothing.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use hyper::Method;
use hyper::body::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::auth::Account;
use crate::calls::Call;
use crate::clock::Clock;
use crate::faults::{Fault, Faults};
use crate::fleet::{Order, Status};
use crate::limit::{Bucket, Limit};
use crate::reply::{Answer, ApiError};
use crate::request::LONGEST_ID;
use crate::simulator::Simulator;
use crate::world::ANY;

/// An instance as shown. The status is the real one, `Creating` and `Deleted` included.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    status: Status,
    starts: u64,
}

/// Answers a control request; `path` is the part after `/_sim/`.
pub fn handle(simulator: &Simulator, method: &Method, path: &str, body: Result<Bytes, ApiError>) -> Answer {
    match body.map_err(|error| (error.status, error.message.into_owned())).and_then(|body| {
        let segments: Vec<&str> = path.split('/').collect();
        route(simulator, method, &segments, &body)
    }) {
        Ok(body) => Answer::new(200, "application/json", body),
        Err((status, why)) => Answer::json(status, &json!({ "error": why })),
    }
}

/// A status and a sentence.
type Refused = (u16, String);

fn route(simulator: &Simulator, method: &Method, path: &[&str], body: &[u8]) -> Result<Bytes, Refused> {
    let now = Instant::now();
    match (method.as_str(), path) {
        ("GET", ["health"]) => {
            let world = simulator.world();
            let (calls, dropped) = (world.calls.len(), world.calls.dropped());
            show(&json!({ "status": "ok", "instances": world.fleet.len(), "calls": calls, "calls_dropped": dropped }))
        }
        ("GET", ["calls"]) => {
            // The lock is released before the long work begins.
            let calls = simulator.world().calls.snapshot();
            show(&calls.iter().map(AsRef::as_ref).collect::<Vec<&Call>>())
        }
        ("DELETE", ["calls"]) => {
            simulator.world().calls.clear();
            done()
        }
        ("GET", ["instances"]) => instances(simulator, now),
        ("PUT", ["instances"]) => put_many(simulator, body, now),
        ("PUT", ["instances", id]) => {
            check_id(id)?;
            simulator.world().fleet.put((*id).to_owned(), &parse(body)?, now);
            done()
        }
        ("GET", ["faults"]) => show(&simulator.world().faults),
        ("PUT", ["faults"]) => {
            let faults: Faults = parse(body)?;
            simulator.world().faults = faults;
            done()
        }
        ("GET", ["script", id]) => show(&simulator.world().scripts.get(*id).cloned().unwrap_or_default()),
        ("PUT", ["script", id]) => {
            if *id != ANY {
                check_id(id)?;
            }
            let script: VecDeque<Fault> = parse(body)?;
            simulator.world().scripts.insert((*id).to_owned(), script);
            done()
        }
        ("GET", ["limit"]) => show(&simulator.world().bucket.limit()),
        ("PUT", ["limit"]) => {
            let limit: Limit = parse(body)?;
            let limit = limit.check().map_err(bad)?;
            simulator.world().bucket = Bucket::new(limit, now);
            done()
        }
        ("PUT", ["credentials"]) => {
            simulator.set_accounts(accounts(body)?);
            done()
        }
        ("GET", ["clock"]) => show(&simulator.clock()),
        ("PUT", ["clock"]) => {
            let clock: Clock = parse(body)?;
            simulator.set_clock(clock);
            done()
        }
        (method, path) => Err((404, format!("there is no {method} /_sim/{}", path.join("/")))),
    }
}

fn instances(simulator: &Simulator, now: Instant) -> Result<Bytes, Refused> {
    let world = simulator.world();
    let all = world.fleet.from("");
    let shown = all.map(|(id, instance)| Shown { id, status: instance.status(now), starts: instance.starts() });
    show(&shown.collect::<Vec<_>>())
}

fn put_many(simulator: &Simulator, body: &[u8], now: Instant) -> Result<Bytes, Refused> {
    let many: Vec<(String, Order)> = parse::<Vec<_>>(body)?.into_iter().map(named).collect::<Result<_, Refused>>()?;
    let mut world = simulator.world();
    for (id, order) in many {
        world.fleet.put(id, &order, now);
    }
    done()
}

fn accounts(body: &[u8]) -> Result<Vec<Account>, Refused> {
    if body.trim_ascii_start().starts_with(b"[") { parse(body) } else { Ok(vec![parse(body)?]) }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(bad)
}

fn bad(why: impl fmt::Display) -> Refused {
    (400, why.to_string())
}

fn show(value: &impl Serialize) -> Result<Bytes, Refused> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| (500, error.to_string()))
}

fn done() -> Result<Bytes, Refused> {
    show(&Value::Object(Map::new()))
}

/// An entry of a list that creates many instances: an order with an `id`. Not a flattened struct, which would accept a
/// misspelt key.
fn named(mut entry: Map<String, Value>) -> Result<(String, Order), Refused> {
    let Some(Value::String(id)) = entry.remove("id") else { return Err(bad("each instance of the list needs an id")) };
    check_id(&id)?;
    let order = serde_json::from_value(Value::Object(entry)).map_err(|why| bad(format_args!("{id}: {why}")))?;
    Ok((id, order))
}

/// An id must fit into a path without encoding.
fn check_id(id: &str) -> Result<(), Refused> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    if id.is_empty() || id.len() > LONGEST_ID || !id.bytes().all(fine) {
        return Err(bad(format_args!("{id:?} cannot be the id of an instance")));
    }
    Ok(())
}
