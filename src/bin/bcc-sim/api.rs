//! The API's answer to each operation, and its effect on the fleet.

use std::time::Instant;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::fleet::{Fleet, Instance, Status};
use crate::reply::ApiError;
use crate::request::{Ask, MOST_IDS, Operation, Received, Subject};

/// The largest page of a list, and the default page size.
const LARGEST_PAGE: usize = 1000;

/// The result of an operation.
#[derive(Debug)]
pub struct Outcome {
    /// The body of the 200; `None` is an empty one, as the start call documents.
    pub answer: Result<Option<Value>, ApiError>,
    /// Whether an instance began to start or stop.
    pub took_effect: bool,
}

/// Carries out a call that has passed every check.
pub fn perform(fleet: &mut Fleet, ask: &Ask, received: &Received, request_id: Uuid, now: Instant) -> Outcome {
    let ids: &[String] = match &ask.subject {
        Subject::Many(ids) => ids,
        Subject::One(_) | Subject::Nothing => &[],
    };
    let id: &str = match &ask.subject {
        Subject::One(id) => id,
        Subject::Many(_) | Subject::Nothing => "",
    };
    let batch = json!({ "requestId": request_id.to_string(), "failedInstanceIdList": [] });
    match ask.operation {
        Operation::Start => act(fleet, &[id], startable, Fleet::start, None, now),
        Operation::Stop => act(fleet, &[id], stoppable, Fleet::stop, None, now),
        Operation::BatchStart => act(fleet, ids, startable, Fleet::start, Some(batch), now),
        Operation::BatchStop => act(fleet, ids, stoppable, Fleet::stop, Some(batch), now),
        Operation::Describe => {
            read(known(fleet, id, now).map(|instance| Some(json!({ "instance": shown(id, instance, now) }))))
        }
        Operation::List => read(list(fleet, received, |_| true, now).map(Some)),
        Operation::ListByIds => read(list(fleet, received, |id| ids.iter().any(|one| one == id), now).map(Some)),
        Operation::Other => read(Err(ApiError::invalid_uri(&received.path))),
    }
}

fn read(answer: Result<Option<Value>, ApiError>) -> Outcome {
    Outcome { answer, took_effect: false }
}

/// All of them or none: one in the wrong state refuses the whole batch, as the API documents.
fn act<Id: AsRef<str>>(
    fleet: &mut Fleet,
    ids: &[Id],
    allowed: fn(Status) -> Result<(), ApiError>,
    change: fn(&mut Fleet, &str, Instant),
    answer: Option<Value>,
    now: Instant,
) -> Outcome {
    let checked = ids.iter().try_for_each(|id| allowed(known(fleet, id.as_ref(), now)?.status(now)));
    if let Err(error) = checked {
        return read(Err(error));
    }
    for (index, id) in ids.iter().enumerate() {
        // An instance named twice in a batch is started once.
        if !ids[..index].iter().any(|earlier| earlier.as_ref() == id.as_ref()) {
            change(fleet, id.as_ref(), now);
        }
    }
    Outcome { answer: Ok(answer), took_effect: true }
}

fn known<'fleet>(fleet: &'fleet Fleet, id: &str, now: Instant) -> Result<&'fleet Instance, ApiError> {
    fleet.get(id).filter(|instance| instance.status(now) != Status::Deleted).ok_or_else(|| {
        ApiError::new(404, "NoSuchObject", "The specified object is not found or resource do not exist.")
    })
}

fn startable(status: Status) -> Result<(), ApiError> {
    let (code, message) = match status {
        Status::Stopped => return Ok(()),
        Status::Creating => {
            ("Instance.StartInstanceWhenCreating", "The instance is being created and cannot be started.")
        }
        Status::Expired => {
            ("Instance.StartExpiredInstance", "The instance has expired or is overdue and cannot be started.")
        }
        _ => (
            "Instance.StartInstanceOperationForbidden",
            "The instance cannot be started in its present state: only a Stopped one can.",
        ),
    };
    Err(ApiError::new(409, code, message))
}

fn stoppable(status: Status) -> Result<(), ApiError> {
    if status == Status::Running {
        return Ok(());
    }
    let message = "The instance cannot be stopped in its present state: only a Running one can.";
    Err(ApiError::new(409, "Instance.StopInstanceOperationForbidden", message))
}

/// The fields of the API's instance from which the state follows, and enough others for an SDK's model.
fn shown(id: &str, instance: &Instance, now: Instant) -> Value {
    let tag = |(key, value): (&String, &String)| json!({ "tagKey": key, "tagValue": value });
    json!({
        "id": id,
        "name": instance.name().unwrap_or(id),
        "desc": "simulated",
        "status": instance.status(now).shown(),
        "instanceType": "N5",
        "paymentTiming": "Postpaid",
        "createTime": "2026-01-15T08:30:00Z",
        "expireTime": "",
        "zoneName": instance.zone(),
        "cpuCount": 2,
        "memoryCapacityInGB": 8,
        "autoRenew": false,
        "repairStatus": "normal",
        "tags": instance.tags().iter().map(tag).collect::<Vec<Value>>(),
    })
}

/// A page of the instances that `wanted` and the filters accept. Unknown filters are ignored.
fn list(fleet: &Fleet, received: &Received, wanted: impl Fn(&str) -> bool, now: Instant) -> Result<Value, ApiError> {
    let marker = received.parameter("marker").unwrap_or("");
    let page_size = page_size(received)?;
    let statuses = filter(received, "status");
    let (ids, zones, tags) = (filter(received, "instanceIds"), filter(received, "zoneName"), filter(received, "tags"));
    if ids.as_ref().is_some_and(|ids| ids.len() > MOST_IDS) {
        let why = format!("instanceIds may name at most {MOST_IDS} instances");
        return Err(ApiError::new(400, "InvalidHTTPRequest", why));
    }
    let mut matching = fleet.from(marker).filter_map(|(id, instance)| {
        let status = instance.status(now);
        let passes = status != Status::Deleted
            && wanted(id)
            && ids.as_ref().is_none_or(|ids| ids.contains(&id.as_str()))
            && zones.as_ref().is_none_or(|zones| zones.contains(&instance.zone()))
            && tags.as_ref().is_none_or(|tags| tags.iter().any(|tag| has_tag(instance, tag)))
            && statuses.as_ref().is_none_or(|names| names.iter().any(|name| name.parse() == Ok(status.shown())));
        passes.then_some((id, instance))
    });
    let page: Vec<Value> = matching.by_ref().take(page_size).map(|(id, instance)| shown(id, instance, now)).collect();
    let next = matching.next().map(|(id, _)| id);
    let mut answer = json!({
        "marker": marker,
        "isTruncated": next.is_some(),
        "maxKeys": page_size,
        "instances": page,
    });
    if let Some(next) = next {
        answer["nextMarker"] = json!(next);
    }
    Ok(answer)
}

/// `tag` is `key:value` or `key`.
fn has_tag(instance: &Instance, tag: &str) -> bool {
    match tag.split_once(':') {
        Some((key, value)) => instance.tags().get(key).is_some_and(|other| other == value),
        None => instance.tags().contains_key(tag),
    }
}

fn page_size(received: &Received) -> Result<usize, ApiError> {
    let Some(text) = received.parameter("maxKeys").filter(|text| !text.is_empty()) else { return Ok(LARGEST_PAGE) };
    match text.parse() {
        Ok(size) if (1..=LARGEST_PAGE).contains(&size) => Ok(size),
        _ => {
            let why = format!("maxKeys must be 1 to {LARGEST_PAGE}; it is {text:?}");
            Err(ApiError::new(400, "InvalidHTTPRequest", why))
        }
    }
}

/// The values of a filter, any of which may match; `None` if it is not set.
fn filter<'a>(received: &'a Received, name: &str) -> Option<Vec<&'a str>> {
    received.parameter(name).filter(|text| !text.is_empty()).map(|text| text.split(',').collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Order, Times};
    use crate::request::tests::received;
    use std::time::Duration;

    const TIMES: Times = Times { boot: Duration::from_secs(2), stop: Duration::from_secs(1) };

    fn call(fleet: &mut Fleet, method: &str, target: &str, body: &str, now: Instant) -> Outcome {
        let received = received(method, target, &[], body);
        perform(fleet, &Ask::read(&received), &received, Uuid::nil(), now)
    }

    #[test]
    fn every_state_answers_a_start_as_documented() {
        use Status::*;
        let now = Instant::now();
        for status in [
            Starting,
            Running,
            Stopping,
            Stopped,
            Recycled,
            Deleted,
            Scaling,
            Expired,
            Error,
            SnapshotProcessing,
            ImageProcessing,
            Recharging,
            VolumeResizing,
            BillingChanging,
            ChangeSubnet,
            ChangeVpc,
            AttachingPort,
            DetachingPort,
            Moving,
            Creating,
        ] {
            let mut fleet = Fleet::new(&[(status, 1)], TIMES, now);
            let outcome = call(&mut fleet, "PUT", "/v2/instance/i-sim00001?start", "", now);
            let answer = outcome.answer.map_err(|error| (error.status, error.code.into_owned()));
            let expected = match status {
                Stopped => Ok(None),
                Deleted => Err((404, "NoSuchObject".into())),
                Creating => Err((409, "Instance.StartInstanceWhenCreating".into())),
                Expired => Err((409, "Instance.StartExpiredInstance".into())),
                _ => Err((409, "Instance.StartInstanceOperationForbidden".into())),
            };
            assert_eq!(answer, expected, "{status:?}");
            assert_eq!(outcome.took_effect, status == Stopped, "{status:?}");
        }
    }

    #[test]
    fn a_batch_starts_all_or_none() {
        let now = Instant::now();
        let mut fleet = Fleet::new(&[(Status::Stopped, 2), (Status::Running, 1)], TIMES, now);
        let with_running = r#"{"instanceIds": ["i-sim00001", "i-sim00003"]}"#;
        let outcome = call(&mut fleet, "PUT", "/v2/instance/batchAction?start", with_running, now);
        let error = outcome.answer.unwrap_err();
        assert_eq!((error.status, &*error.code), (409, "Instance.StartInstanceOperationForbidden"));
        assert!(!error.message.contains("i-sim"), "the 409 names nobody: {}", error.message);
        assert_eq!(fleet.get("i-sim00001").unwrap().status(now), Status::Stopped);

        let twice = r#"{"instanceIds": ["i-sim00001", "i-sim00002", "i-sim00001"]}"#;
        let outcome = call(&mut fleet, "PUT", "/v2/instance/batchAction?start", twice, now);
        assert_eq!(outcome.answer.unwrap().unwrap()["failedInstanceIdList"], json!([]));
        assert_eq!(fleet.get("i-sim00001").unwrap().starts(), 1);
    }

    #[test]
    fn lists_come_in_pages_and_obey_their_filters() {
        let now = Instant::now();
        let groups = [(Status::Stopped, 3), (Status::Creating, 1), (Status::Deleted, 1), (Status::Running, 2)];
        let mut fleet = Fleet::new(&groups, TIMES, now);
        let mut ids = |target: &str| {
            let page = call(&mut fleet, "GET", target, "", now).answer.unwrap().unwrap();
            let ids: Vec<String> =
                page["instances"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().into()).collect();
            (ids.join(" ").replace("i-sim0000", ""), page["nextMarker"].as_str().map(str::to_owned))
        };
        assert_eq!(ids("/v2/instance"), ("1 2 3 4 6 7".into(), None));
        assert_eq!(ids("/v2/instance?maxKeys=4"), ("1 2 3 4".into(), Some("i-sim00006".into())));
        assert_eq!(ids("/v2/instance?maxKeys=4&marker=i-sim00006"), ("6 7".into(), None));
        assert_eq!(ids("/v2/instance?status=Starting,Running"), ("4 6 7".into(), None));
        assert_eq!(ids("/v2/instance?instanceIds=i-sim00002,i-none&status=Stopped"), ("2".into(), None));
        assert_eq!(ids("/v2/instance?zoneName=cn-bj-b&tags=wake:morning,team"), ("".into(), None));
        let tagged = |tags: &[(&str, &str)]| Order {
            zone: "cn-bj-b".to_owned(),
            tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Status::Stopped.into()
        };
        fleet.put("i-sim00001".into(), &tagged(&[("wake", "morning")]), now);
        fleet.put("i-sim00002".into(), &tagged(&[("wake", "evening"), ("team", "ops")]), now);
        let mut ids = |target: &str| {
            let page = call(&mut fleet, "GET", target, "", now).answer.unwrap().unwrap();
            page["instances"]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one["id"].as_str().unwrap().into())
                .collect::<Vec<String>>()
        };
        assert_eq!(ids("/v2/instance?zoneName=cn-bj-b&tags=wake:morning,team"), ["i-sim00001", "i-sim00002"]);
        assert_eq!(ids("/v2/instance?tags=wake:morning"), ["i-sim00001"]);
        assert_eq!(ids("/v2/instance?zoneName=cn-bj-a").len(), 4);
        for bad in ["0", "1001", "many"] {
            let outcome = call(&mut fleet, "GET", &format!("/v2/instance?maxKeys={bad}"), "", now);
            assert_eq!(outcome.answer.unwrap_err().status, 400, "{bad}");
        }
    }
}
