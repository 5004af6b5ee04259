//! The status of a replica owner, from its pods.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::owner::{Condition, Counts, ReplicaOwner};
use crate::shared::claim::selector_matches;
use crate::shared::meta;

/// The only condition type a replica owner has.
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Why pods could not be created or deleted in this pass, as the condition says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaFailure {
    Create(String),
    Delete(String),
}

/// Counts the active pods.
pub fn count<O: ReplicaOwner>(owner: &O, active: &[Arc<Pod>], terminating: usize, now: Timestamp) -> Counts {
    let labels = owner.template().and_then(|template| template.metadata.as_ref()).and_then(|meta| meta.labels.clone());
    let template = LabelSelector { match_labels: labels, match_expressions: None };
    let of = |matches: &dyn Fn(&Pod) -> bool| clamp(active.iter().filter(|pod| matches(pod)).count());
    Counts {
        replicas: clamp(active.len()),
        fully_labeled: of(&|pod| selector_matches(&template, pod.metadata.labels.as_ref())),
        ready: of(&meta::is_ready),
        available: of(&|pod| meta::is_available(pod, owner.min_ready_seconds(), now)),
        terminating: O::REPORTS_TERMINATING.then(|| clamp(terminating)),
        observed_generation: owner.meta().generation.unwrap_or(0),
    }
}

fn clamp(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The conditions after a pass: a failure sets `ReplicaFailure`, a pass without one removes it. An earlier failure keeps its text.
pub fn conditions(before: Vec<Condition>, failure: Option<&ReplicaFailure>, now: Timestamp) -> Vec<Condition> {
    let (reason, message) = match failure {
        None => return before.into_iter().filter(|condition| condition.type_ != REPLICA_FAILURE).collect(),
        Some(_) if before.iter().any(|condition| condition.type_ == REPLICA_FAILURE) => return before,
        Some(ReplicaFailure::Create(message)) => ("FailedCreate", message),
        Some(ReplicaFailure::Delete(message)) => ("FailedDelete", message),
    };
    let condition = Condition {
        type_: REPLICA_FAILURE.into(),
        status: "True".into(),
        reason: reason.into(),
        message: message.clone(),
        last_transition_time: Some(now),
    };
    before.into_iter().chain([condition]).collect()
}

/// How long until the next pod that is ready now becomes available.
pub fn next_availability(active: &[Arc<Pod>], min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let next = active.iter().filter_map(|pod| meta::available_at(pod, min_ready_seconds)).filter(|at| *at > now).min()?;
    // A watch event may be a little early against the clock that stamped it.
    Duration::try_from(next.duration_since(now)).ok().map(|delay| delay + Duration::from_millis(50))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    fn pod(ready_since: Option<&str>, labels: serde_json::Value) -> Arc<Pod> {
        let conditions: Vec<_> = ready_since
            .map(|since| json!({"type": "Ready", "status": "True", "lastTransitionTime": since}))
            .into_iter()
            .collect();
        Arc::new(serde_json::from_value(json!({"metadata": {"labels": labels}, "status": {"conditions": conditions}})).unwrap())
    }

    #[test]
    fn pods_are_counted_and_the_next_availability_is_known() {
        let owner: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"generation": 4},
            "spec": {"replicas": 3, "minReadySeconds": 30, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web", "tier": "front"}}}},
        }))
        .unwrap();
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let full = json!({"app": "web", "tier": "front", "extra": "x"});
        let active = [
            pod(Some("2026-01-01T00:00:00Z"), full.clone()),
            pod(Some("2026-01-01T00:00:50Z"), full),
            pod(None, json!({"app": "web"})),
        ];
        let expected =
            Counts { replicas: 3, fully_labeled: 2, ready: 2, available: 1, terminating: Some(1), observed_generation: 4 };
        assert_eq!(count(&owner, &active, 1, now), expected);
        assert_eq!(next_availability(&active, 30, now), Some(Duration::from_millis(20_050)));
        assert_eq!(next_availability(&active, 0, now), None);
    }

    #[test]
    fn a_failure_is_set_once_and_removed_by_success() {
        let failure = |text: &str| Some(ReplicaFailure::Create(text.into()));
        let (first, later) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        let set = conditions(vec![], failure("quota").as_ref(), first);
        assert_eq!((set.len(), set[0].reason.as_str(), set[0].message.as_str()), (1, "FailedCreate", "quota"));
        assert_eq!(conditions(set.clone(), failure("other").as_ref(), later), set);
        assert!(conditions(set, None, later).is_empty());
        let deleting = conditions(vec![], Some(&ReplicaFailure::Delete("no".into())), first);
        assert_eq!(deleting[0].reason, "FailedDelete");
    }
}
