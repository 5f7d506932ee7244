//! [`Query::Select`](super::Query::Select): instances of a lane that meet conditions, listed by the replica that holds the lane.
//!
//! Replicas that do not hold it are silent. The holder answers at once that it has begun, then with a message or more for each page
//! of the API's list, and in between every few seconds that it is at work: so silence says that it is gone. It keeps no more than
//! a page, and ends an answer that becomes too long or takes too long with a problem: then what came before counts for nothing.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::parts::{bytes, split};
use crate::bce::{InstanceId, Listed};
use crate::replica::Replica;

/// Instances of one answer, at most.
pub const MOST: usize = 100_000;
/// How often the holder says that it is at work.
pub const ALIVE: Duration = Duration::from_secs(5);
/// How long an answer may take.
const LONGEST: Duration = Duration::from_secs(10 * 60);
/// Largest query, in bytes.
const QUERY_LIMIT: usize = 4 * 1024;
/// Longest name of an instance and longest problem, in characters: they are anybody's.
const NAME_LIMIT: usize = 128;
const PROBLEM_LIMIT: usize = 500;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The lane.
    pub lane: String,
    /// Conditions, as [`Selection`](crate::bce::Selection) reads them.
    pub select: String,
}

/// A message of an answer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The replica that answers.
    pub replica: Replica,
    /// The lane.
    pub lane: String,
    /// Instances that meet the conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<Selected>,
    /// No message follows.
    #[serde(default)]
    pub is_last: bool,
    /// Why the list was not read to its end, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// An instance that meets the conditions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selected {
    /// Its id.
    pub id: InstanceId,
    /// Its name.
    pub name: String,
    /// The [word](crate::bce::InstanceState::word) for its state.
    pub state: String,
}

impl Wanted {
    /// Reads the body of a query. `None`: it is none.
    pub fn read(body: &[u8]) -> Option<Self> {
        if body.len() > QUERY_LIMIT { None } else { serde_json::from_slice(body).ok() }
    }

    /// The body of the query. `None`: it would be too large.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        Some(bytes(self)).filter(|body| body.len() <= QUERY_LIMIT)
    }
}

impl Part {
    /// Reads a message of the answer to `wanted`. `None`: it is none.
    pub fn read(body: &[u8], wanted: &Wanted) -> Option<Self> {
        serde_json::from_slice(body).ok().filter(|part: &Self| part.lane == wanted.lane)
    }
}

impl From<Listed> for Selected {
    fn from(listed: Listed) -> Self {
        let name = listed.name.chars().take(NAME_LIMIT).collect();
        Self { id: listed.id, name, state: listed.state.word().to_owned() }
    }
}

/// The answer of a replica that cannot list anything, for this reason.
pub fn refused(replica: Replica, wanted: Wanted, problem: String) -> impl Stream<Item = Vec<u8>> + Send + 'static {
    answer(replica, wanted, stream::iter([Err(problem)]))
}

/// The answer of `replica` with what `pages` have, which end with the last one or with a problem.
pub fn answer(
    replica: Replica,
    wanted: Wanted,
    pages: impl Stream<Item = Result<Vec<Listed>, String>> + Send + 'static,
) -> impl Stream<Item = Vec<u8>> + Send + 'static {
    let mut answering = Answering {
        replica,
        lane: wanted.lane,
        pages: Box::pin(pages),
        ready: VecDeque::new(),
        found: 0,
        is_over: false,
        until: Instant::now() + LONGEST,
    };
    answering.say(Vec::new(), false, None);
    stream::unfold(answering, |mut answering| async move { answering.next().await.map(|body| (body, answering)) })
}

struct Answering {
    replica: Replica,
    lane: String,
    pages: Pin<Box<dyn Stream<Item = Result<Vec<Listed>, String>> + Send>>,
    /// Messages of the last page.
    ready: VecDeque<Vec<u8>>,
    found: usize,
    is_over: bool,
    until: Instant,
}

impl Answering {
    async fn next(&mut self) -> Option<Vec<u8>> {
        while self.ready.is_empty() && !self.is_over {
            if Instant::now() > self.until {
                let minutes = LONGEST.as_secs() / 60;
                self.end(Some(format!(
                    "the list was not read within {minutes} min, at the rate of lane {}",
                    self.lane
                )));
                break;
            }
            match timeout(ALIVE, self.pages.next()).await {
                Ok(Some(Ok(page))) => self.take(page),
                Ok(Some(Err(problem))) => self.end(Some(problem)),
                Ok(None) => self.end(None),
                Err(_) => self.say(Vec::new(), false, None),
            }
        }
        self.ready.pop_front()
    }

    fn take(&mut self, page: Vec<Listed>) {
        self.found += page.len();
        if self.found > MOST {
            return self
                .end(Some(format!("more than {MOST} instances meet the conditions: narrow them, or select by parts")));
        }
        for instances in split(page.into_iter().map(Selected::from).collect()) {
            self.say(instances, false, None);
        }
    }

    fn end(&mut self, problem: Option<String>) {
        self.is_over = true;
        self.say(Vec::new(), true, problem.map(|problem| problem.chars().take(PROBLEM_LIMIT).collect()));
    }

    fn say(&mut self, instances: Vec<Selected>, is_last: bool, problem: Option<String>) {
        let part = Part { replica: self.replica.clone(), lane: self.lane.clone(), instances, is_last, problem };
        self.ready.push_back(bytes(&part));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future;

    use super::*;
    use crate::bce::InstanceState;

    fn wanted() -> Wanted {
        Wanted { lane: "prod".to_owned(), select: "name=web-*".to_owned() }
    }

    fn page(from: usize, count: usize) -> Vec<Listed> {
        let listed = |number: usize| Listed {
            id: InstanceId::parse(&format!("i-{number:06}")).unwrap(),
            name: "\u{1b}".repeat(9_999),
            zone: String::new(),
            tags: Vec::new(),
            state: InstanceState::Stopped,
        };
        (from..from + count).map(listed).collect()
    }

    async fn parts(pages: Vec<Result<Vec<Listed>, String>>) -> Vec<Part> {
        let bodies: Vec<Vec<u8>> = answer(Replica::this(), wanted(), stream::iter(pages)).collect().await;
        assert!(bodies.iter().all(|body| body.len() < 64 * 1024));
        bodies.iter().map(|body| Part::read(body, &wanted()).unwrap()).collect()
    }

    #[tokio::test]
    async fn an_answer_begins_at_once_comes_in_parts_that_fit_and_has_an_end() {
        let parts = parts(vec![Ok(page(0, 1_000)), Ok(Vec::new()), Ok(page(1_000, 1))]).await;
        assert!(parts.len() > 5 && parts[0].instances.is_empty() && !parts[0].is_last);
        assert_eq!(parts.iter().filter(|part| part.is_last).count(), 1);
        assert!(parts.last().unwrap().is_last);
        let ids: Vec<&str> =
            parts.iter().flat_map(|part| &part.instances).map(|selected| selected.id.as_str()).collect();
        assert_eq!((ids.len(), ids[0], ids[1_000]), (1_001, "i-000000", "i-001000"));
        assert!(parts.iter().flat_map(|part| &part.instances).all(|found| found.name.chars().count() == NAME_LIMIT));
    }

    #[tokio::test]
    async fn what_goes_wrong_ends_the_answer_and_so_do_too_many_instances() {
        let refused = parts(vec![Ok(page(0, 1)), Err("x".repeat(999)), Ok(page(1, 1))]).await;
        assert_eq!(refused.last().unwrap().problem.as_ref().unwrap().len(), PROBLEM_LIMIT);
        assert_eq!(refused.iter().map(|part| part.instances.len()).sum::<usize>(), 1);
        let many = parts((0..=MOST / 1_000).map(|number| Ok(page(number * 1_000, 1_000))).collect()).await;
        assert!(many.last().unwrap().problem.as_ref().unwrap().starts_with("more than 100000 instances"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_takes_long_is_said_to_be_at_work_and_given_up_in_the_end() {
        let pages = stream::once(future::pending());
        let bodies: Vec<Vec<u8>> = answer(Replica::this(), wanted(), pages).collect().await;
        assert!((100..200).contains(&bodies.len()), "{}", bodies.len());
        let last = Part::read(bodies.last().unwrap(), &wanted()).unwrap();
        assert!(last.is_last && last.problem.unwrap().contains("within 10 min"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_whose_pages_come_slowly_and_steadily_is_given_up_too() {
        let pages = stream::iter(0..1_000).then(async |number| {
            tokio::time::sleep(ALIVE - Duration::from_secs(1)).await;
            Ok(page(number, 1))
        });
        let bodies: Vec<Vec<u8>> = answer(Replica::this(), wanted(), pages).collect().await;
        assert!((100..200).contains(&bodies.len()), "{}", bodies.len());
        let last = Part::read(bodies.last().unwrap(), &wanted()).unwrap();
        assert!(last.is_last && last.problem.unwrap().contains("within 10 min"));
    }

    #[test]
    fn what_is_no_query_and_no_answer_is_not_read() {
        assert_eq!(Wanted::read(&wanted().to_bytes().unwrap()), Some(wanted()));
        let long = Wanted { select: "x".repeat(QUERY_LIMIT), ..wanted() };
        assert_eq!((long.to_bytes(), Wanted::read(&bytes(&long))), (None, None));
        for noise in [&b""[..], b"{}", b"[]", b"noise", br#"{"lane":1,"select":"a"}"#] {
            assert_eq!((Wanted::read(noise), Part::read(noise, &wanted())), (None, None));
        }
        let other = Wanted { lane: "other".to_owned(), ..wanted() };
        let part = Part {
            replica: Replica::this(),
            lane: "prod".to_owned(),
            instances: Vec::new(),
            is_last: true,
            problem: None,
        };
        assert!(Part::read(&bytes(&part), &wanted()).is_some() && Part::read(&bytes(&part), &other).is_none());
    }
}
