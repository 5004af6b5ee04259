//! Grace periods and deadlines of a pod: pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

/// How long a pod that is being deleted (or has failed) may take to stop; at least one second, as in the kubelet.
pub fn grace(pod: &Pod) -> Duration {
    let of_deletion = pod.metadata.deletion_grace_period_seconds.filter(|_| pod.metadata.deletion_timestamp.is_some());
    let of_spec = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    seconds(of_deletion.unwrap_or(of_spec))
}

/// A grace period in seconds as a duration of at least one second.
pub fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1))
}

/// When `activeDeadlineSeconds` is over.
pub fn active_deadline(pod: &Pod, start: Option<Timestamp>) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    start?.saturating_add(SignedDuration::from_secs(seconds)).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_deletions_grace_goes_before_the_specs() {
        for (pod, expected) in [
            (json!({ "spec": { "containers": [] } }), 30),
            (json!({ "spec": { "containers": [], "terminationGracePeriodSeconds": 5 } }), 5),
            (json!({ "spec": { "containers": [], "terminationGracePeriodSeconds": 0 } }), 1),
            (
                json!({
                    "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 2 },
                    "spec": { "containers": [], "terminationGracePeriodSeconds": 60 },
                }),
                2,
            ),
        ] {
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(grace(&pod), Duration::from_secs(expected));
        }
    }
}
