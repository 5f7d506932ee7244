//! The list of an account's instances in a region, page by page
//! (<https://cloud.baidu.com/doc/BCC/s/Xjwvyodmx>).

use reqwest::Method;
use serde::Deserialize;

use super::answer::{Answer, NoAnswer};
use super::client::{Client, Request};
use super::instance::{InstanceId, InstanceState};

/// Instances on a page, at most: the API's own limit.
const PAGE: &str = "1000";
/// Limit for a page, in bytes: 16 KiB for each instance.
const LIMIT: usize = 16 * 1024 * 1024;

/// An instance as a list shows it. Its texts are anybody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: InstanceId,
    /// Its name.
    pub name: String,
    /// The name of its zone, such as `cn-bj-a`.
    pub zone: String,
    /// Its tags, as key and value.
    pub tags: Vec<(String, String)>,
    /// Its state.
    pub state: InstanceState,
}

/// A part of a list.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// The instances, in the API's order.
    pub instances: Vec<Listed>,
    /// The marker of the next page, if there is one.
    pub next: Option<String>,
}

impl Client {
    /// Lists instances that meet all of `filters`, which are parameters of the API, from the page with this `marker` on; without one
    /// from the first on. `None` beside a 2xx whose body could not be read as a whole.
    ///
    /// # Errors
    /// [`NoAnswer`], if there was none.
    pub async fn list(
        &self,
        filters: &[(&str, &str)],
        marker: Option<&str>,
    ) -> Result<(Answer, Option<Page>), NoAnswer> {
        let mut query = vec![("maxKeys", PAGE)];
        query.extend(marker.map(|marker| ("marker", marker)));
        query.extend(filters);
        let request = Request {
            method: Method::GET,
            path: "/v2/instance",
            query: &query,
            body: None,
            limit: LIMIT,
            asks_for_the_time: false,
        };
        let (answer, body) = self.send(request).await?;
        let page = if answer.is_success() && !answer.from_proxy { page(&body.bytes) } else { None };
        Ok((answer, page))
    }
}

/// Reads a page. An instance that cannot be read makes the whole page unreadable: it would be missing in silence.
fn page(body: &[u8]) -> Option<Page> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Read {
        instances: Vec<Shown>,
        #[serde(default)]
        is_truncated: bool,
        next_marker: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shown {
        id: InstanceId,
        status: String,
        name: Option<String>,
        zone_name: Option<String>,
        tags: Option<Vec<Tag>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Tag {
        tag_key: String,
        tag_value: Option<String>,
    }
    let read: Read = serde_json::from_slice(body).ok()?;
    let tag = |tag: Tag| (tag.tag_key, tag.tag_value.unwrap_or_default());
    let instances = read.instances.into_iter().map(|shown| Listed {
        state: InstanceState::parse(&shown.status),
        id: shown.id,
        name: shown.name.unwrap_or_default(),
        zone: shown.zone_name.unwrap_or_default(),
        tags: shown.tags.unwrap_or_default().into_iter().map(tag).collect(),
    });
    let instances = instances.collect();
    match (read.is_truncated, read.next_marker) {
        (true, Some(next)) if !next.is_empty() => Some(Page { instances, next: Some(next) }),
        (true, _) => None,
        (false, _) => Some(Page { instances, next: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_with_what_instances_are_chosen_by() {
        let body = br#"{"isTruncated":true,"nextMarker":"i-bbbb","maxKeys":1000,"instances":[
            {"id":"i-aaaa","name":"web-1","status":"Running","zoneName":"cn-bj-a","more":1,
             "tags":[{"tagKey":"wake","tagValue":"morning"},{"tagKey":"alone"}]},
            {"id":"i-aaab","status":"Stopped","tags":null}]}"#;
        let read = page(body).unwrap();
        assert_eq!(read.next.as_deref(), Some("i-bbbb"));
        let [first, second] = &read.instances[..] else { panic!("{read:?}") };
        assert_eq!(
            (first.name.as_str(), first.zone.as_str(), first.state),
            ("web-1", "cn-bj-a", InstanceState::Running)
        );
        let tags = [("wake", "morning"), ("alone", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(first.tags, tags);
        assert_eq!((second.id.as_str(), second.name.as_str(), second.tags.len()), ("i-aaab", "", 0));
        assert_eq!(page(br#"{"instances":[]}"#), Some(Page { instances: vec![], next: None }));
    }

    #[test]
    fn what_is_no_whole_page_is_none() {
        for body in [
            "",
            "<html>",
            r#"{"instances":[{"id":"i-aaaa"}]}"#,
            r#"{"instances":[{"id":"../x","status":"Running"}]}"#,
            r#"{"isTruncated":true,"instances":[]}"#,
            r#"{"isTruncated":true,"nextMarker":"","instances":[]}"#,
            r#"{"instances":[{"id":"i-aaaa","status":"Run"#,
        ] {
            assert_eq!(page(body.as_bytes()), None, "{body}");
        }
    }
}
