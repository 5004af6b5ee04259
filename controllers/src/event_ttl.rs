//! Removes Events that were not seen for an hour (kube-apiserver's `--event-ttl`, whose default that is).
//!
//! Lists Events page by page and keeps none of them. Owns nothing: it deletes each Event in the state in which it was listed, so
//! that one which was seen again meanwhile stays.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Event;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use tracing::{info, warn};
use trireme_api::clock::Clock;

use crate::LoopContext;
use crate::shared::ControllerError;
use crate::shared::error::{Doing, is_conflict, is_not_found};

/// The loop's name.
pub const LOOP: &str = "event-ttl";

/// How long an Event is kept after it was last seen.
const TIME_TO_LIVE: SignedDuration = SignedDuration::from_hours(1);
/// How often Events are looked through.
const PERIOD: Duration = Duration::from_secs(120);
/// Events of one list request.
const PAGE: u32 = 500;
/// Deletions that run at the same time: what has piled up goes slowly, behind the work that users wait for.
const CONCURRENCY: usize = 4;

struct Collector {
    client: Client,
    clock: Arc<dyn Clock>,
}

/// Starts the loop.
pub fn start(context: LoopContext) -> BoxFuture<'static, ()> {
    let collector = Collector { client: context.client, clock: context.clock };
    let shutdown = context.shutdown;
    Box::pin(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = collector.run() => {}
        }
    })
}

impl Collector {
    async fn run(&self) {
        loop {
            match self.pass().await {
                Ok(0) => {}
                Ok(removed) => info!(removed, "removed old events"),
                Err(failure) => warn!(error = %failure, "could not look through the events; trying again"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Looks through all Events once; returns how many were removed.
    async fn pass(&self) -> Result<usize, ControllerError> {
        let events: Api<Event> = Api::all(self.client.clone());
        let mut page = ListParams::default().limit(PAGE);
        let mut removed = 0;
        loop {
            let list = events.list(&page).await.doing(|| "listing events".to_owned())?;
            let now = self.clock.now();
            let expired: Vec<&Event> = list.items.iter().filter(|event| is_expired(event, now)).collect();
            for some in expired.chunks(CONCURRENCY) {
                let outcomes = join_all(some.iter().map(|event| self.remove(event))).await;
                removed += outcomes.into_iter().filter(|outcome| *outcome == Outcome::Removed).count();
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = ListParams::default().limit(PAGE).continue_token(&token),
                None => return Ok(removed),
            }
        }
    }

    async fn remove(&self, event: &Event) -> Outcome {
        let (namespace, name) = (event.namespace().unwrap_or_default(), event.name_any());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let as_listed = Preconditions { uid: event.uid(), resource_version: event.resource_version() };
        match events.delete(&name, &DeleteParams::default().preconditions(as_listed)).await {
            Ok(_) => Outcome::Removed,
            Err(failure) if is_not_found(&failure) || is_conflict(&failure) => Outcome::Kept,
            Err(failure) => {
                warn!(event = %format!("{namespace}/{name}"), error = %failure, "could not remove an old event; trying again");
                Outcome::Kept
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Removed,
    /// Somebody else removed it, it was seen again, or the API server is away.
    Kept,
}

/// Whether an Event was last seen longer ago than it is kept.
fn is_expired(event: &Event, now: Timestamp) -> bool {
    last_seen(event).is_some_and(|seen| now.duration_since(seen) > TIME_TO_LIVE)
}

/// The newest of the times that stand in an Event, whichever form it was written in.
fn last_seen(event: &Event) -> Option<Timestamp> {
    let times = [&event.last_timestamp, &event.first_timestamp, &event.metadata.creation_timestamp];
    let micro_times = [event.event_time.as_ref(), event.series.as_ref().and_then(|series| series.last_observed_time.as_ref())];
    let times = times.into_iter().flatten().map(|time| time.0);
    times.chain(micro_times.into_iter().flatten().map(|time| time.0)).max()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Method;
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::{TIME_TO_LIVE, is_expired};
    use crate::shared::fake_api::FakeApi;
    use crate::shared::test_loop::{Running, with};

    fn event(name: &str, more: Value) -> Value {
        let old = "2026-01-01T00:00:00Z";
        let plain = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"kind": "Pod", "name": "p", "namespace": "n"},
            "metadata": {"name": name, "namespace": "n", "creationTimestamp": old}, "lastTimestamp": old});
        with(plain, more)
    }

    #[test]
    fn the_newest_time_counts() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let later = now.checked_add(jiff::SignedDuration::from_secs(1)).unwrap();
        assert_eq!(later.duration_since("2026-01-01T00:00:00Z".parse().unwrap()).as_secs(), TIME_TO_LIVE.as_secs() + 1);
        let cases = [
            (json!({}), true),
            (json!({"lastTimestamp": "2026-01-01T00:00:02Z"}), false),
            (json!({"eventTime": "2026-01-01T00:00:02.000000Z"}), false),
            (json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:30:00.000000Z"}}), false),
            (json!({"metadata": {"creationTimestamp": "2026-01-01T00:30:00Z"}}), false),
        ];
        for (more, expired) in cases {
            let event = serde_json::from_value(event("e", more.clone())).unwrap();
            assert_eq!(is_expired(&event, later), expired, "{more}");
            assert!(!is_expired(&event, now), "{more}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn old_events_go_and_new_ones_stay() {
        let api = FakeApi::default();
        for number in 0..3 {
            api.add(event(&format!("old-{number}"), json!({})));
        }
        api.add(event("new", json!({"lastTimestamp": "2999-01-01T00:00:00Z"})));
        api.fail(Method::DELETE, "old-1", 500, 1);
        let running = Running::start(&api, super::LOOP, super::start);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(api.get("events", "old-1").is_some() && api.get("events", "old-0").is_none());
        tokio::time::sleep(Duration::from_secs(121)).await;
        let left: Vec<Value> = api.list("events").iter().map(|event| event["metadata"]["name"].clone()).collect();
        assert_eq!(left, ["new"]);
        running.stop().await;
    }
}
