//! Decides what becomes of an event: written, counted onto an earlier one, combined with similar ones, or dropped. A plain value;
//! the rules and numbers are client-go's `EventCorrelator`.

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, EventSource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::Occurrence;

/// Different messages of one reason within [`INTERVAL`] before they are combined.
const MAX_SIMILAR: usize = 10;
/// How long similar events are remembered.
const INTERVAL: SignedDuration = SignedDuration::from_secs(600);
/// Events that one object may cause at once before it is rate-limited.
const BURST: f64 = 25.0;
/// Events a second that one object may cause in the long run: one in five minutes.
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// Keys remembered in each table; beyond that the table starts anew.
const TABLE_LIMIT: usize = 4096;

/// What to do with an event.
#[derive(Debug)]
pub enum Verdict {
    Drop,
    Create(Box<Event>),
    /// An event of this name was written before: raise its count.
    Repeat(Box<Event>),
}

/// Component, involved object's identity, type and reason: "similar" events.
type SimilarKey = (&'static str, String, &'static str, &'static str);

struct Similar {
    messages: BTreeSet<String>,
    last: Timestamp,
}

struct Bucket {
    tokens: f64,
    at: Timestamp,
}

/// What was seen lately.
#[derive(Default)]
pub struct Correlator {
    buckets: HashMap<(&'static str, String), Bucket>,
    similar: HashMap<SimilarKey, Similar>,
    written: HashMap<(SimilarKey, String), Event>,
}

fn object_identity(occurrence: &Occurrence) -> String {
    let involved = &occurrence.involved;
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let fields = [&involved.kind, &involved.namespace, &involved.name, &involved.uid, &involved.api_version];
    fields.map(part).join("\u{0}")
}

fn similar_key(occurrence: &Occurrence) -> SimilarKey {
    (occurrence.component, object_identity(occurrence), occurrence.kind.as_str(), occurrence.reason)
}

/// The name of a new event: the object's name and the time in hexadecimal nanoseconds.
pub fn event_name(occurrence: &Occurrence) -> String {
    let name = occurrence.involved.name.as_deref().unwrap_or_default();
    format!("{name}.{:x}", occurrence.at.as_nanosecond())
}

fn bound<K, V>(table: &mut HashMap<K, V>) {
    if table.len() >= TABLE_LIMIT {
        table.clear();
    }
}

impl Correlator {
    /// Takes note of an occurrence and decides what becomes of it.
    pub fn observe(&mut self, occurrence: &Occurrence) -> Verdict {
        let key = similar_key(occurrence);
        bound(&mut self.similar);
        let similar = self.similar.entry(key.clone()).or_insert(Similar { messages: BTreeSet::new(), last: occurrence.at });
        if occurrence.at.duration_since(similar.last) > INTERVAL {
            similar.messages.clear();
        }
        similar.last = occurrence.at;
        similar.messages.insert(occurrence.message.clone());
        // Combined events share one entry of the table, whatever their message.
        let (message, slot) = if similar.messages.len() >= MAX_SIMILAR {
            while similar.messages.len() > MAX_SIMILAR {
                similar.messages.pop_first();
            }
            (format!("(combined from similar events): {}", occurrence.message), String::new())
        } else {
            (occurrence.message.clone(), occurrence.message.clone())
        };
        let earlier = self.written.get(&(key, slot)).cloned();
        if !self.take_token(occurrence) {
            return Verdict::Drop;
        }
        match earlier {
            Some(mut event) => {
                event.count = Some(event.count.unwrap_or(1).saturating_add(1));
                event.last_timestamp = Some(Time(occurrence.at));
                event.message = Some(message);
                Verdict::Repeat(Box::new(event))
            }
            None => Verdict::Create(Box::new(new_event(occurrence, message))),
        }
    }

    /// The event was written as given: later ones like it are counted onto it.
    pub fn written(&mut self, occurrence: &Occurrence, event: &Event) {
        let combined = event.message.as_ref() != Some(&occurrence.message);
        let slot = if combined { String::new() } else { occurrence.message.clone() };
        bound(&mut self.written);
        self.written.insert((similar_key(occurrence), slot), event.clone());
    }

    fn take_token(&mut self, occurrence: &Occurrence) -> bool {
        bound(&mut self.buckets);
        let key = (occurrence.component, object_identity(occurrence));
        let bucket = self.buckets.entry(key).or_insert(Bucket { tokens: BURST, at: occurrence.at });
        let passed = occurrence.at.duration_since(bucket.at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + passed * REFILL_PER_SECOND).min(BURST);
        bucket.at = occurrence.at;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

fn new_event(occurrence: &Occurrence, message: String) -> Event {
    // Events about cluster-scoped objects live in "default".
    let namespace =
        occurrence.involved.namespace.clone().filter(|namespace| !namespace.is_empty()).unwrap_or_else(|| "default".into());
    Event {
        metadata: ObjectMeta { name: Some(event_name(occurrence)), namespace: Some(namespace), ..ObjectMeta::default() },
        involved_object: occurrence.involved.clone(),
        type_: Some(occurrence.kind.as_str().to_owned()),
        reason: Some(occurrence.reason.to_owned()),
        message: Some(message),
        count: Some(1),
        first_timestamp: Some(Time(occurrence.at)),
        last_timestamp: Some(Time(occurrence.at)),
        source: Some(EventSource { component: Some(occurrence.component.to_owned()), host: None }),
        reporting_component: Some(occurrence.component.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::EventKind;
    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;

    fn occurrence(message: &str, second: i64) -> Occurrence {
        Occurrence {
            component: "replicaset-controller",
            involved: ObjectReference { name: Some("web".into()), namespace: Some("n".into()), ..ObjectReference::default() },
            kind: EventKind::Normal,
            reason: "SuccessfulCreate",
            message: message.into(),
            at: Timestamp::from_second(1_000_000 + second).unwrap(),
        }
    }

    fn play(correlator: &mut Correlator, occurrence: &Occurrence) -> String {
        match correlator.observe(occurrence) {
            Verdict::Drop => "dropped".into(),
            Verdict::Create(event) => {
                correlator.written(occurrence, &event);
                format!("new {}", event.message.unwrap())
            }
            Verdict::Repeat(event) => {
                correlator.written(occurrence, &event);
                format!("{} times {}", event.count.unwrap(), event.message.unwrap())
            }
        }
    }

    #[test]
    fn the_same_event_is_counted() {
        let mut correlator = Correlator::default();
        assert_eq!(play(&mut correlator, &occurrence("a", 0)), "new a");
        assert_eq!(play(&mut correlator, &occurrence("a", 1)), "2 times a");
        assert_eq!(play(&mut correlator, &occurrence("b", 2)), "new b");
        assert_eq!(play(&mut correlator, &occurrence("a", 3)), "3 times a");
    }

    #[test]
    fn ten_similar_events_are_combined() {
        let mut correlator = Correlator::default();
        for index in 0..9 {
            assert_eq!(play(&mut correlator, &occurrence(&format!("m{index}"), index)), format!("new m{index}"));
        }
        assert_eq!(play(&mut correlator, &occurrence("m9", 9)), "new (combined from similar events): m9");
        assert_eq!(play(&mut correlator, &occurrence("n0", 10)), "2 times (combined from similar events): n0");
        assert_eq!(play(&mut correlator, &occurrence("later", 10_000)), "new later");
    }

    #[test]
    fn a_flood_is_limited_and_recovers_slowly() {
        let mut correlator = Correlator::default();
        let results: Vec<String> = (0..30).map(|_| play(&mut correlator, &occurrence("a", 0))).collect();
        assert_eq!(results.iter().filter(|result| *result == "dropped").count(), 5);
        assert_eq!(play(&mut correlator, &occurrence("a", 301)), "26 times a");
        assert_eq!(play(&mut correlator, &occurrence("a", 302)), "dropped");
    }
}
