//! When a node was last heard of, and what its conditions are once it is not any more.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;

use crate::shared::meta::uid;

/// The conditions a silent node no longer vouches for.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// What was last seen of a node's heartbeats and when this process saw it: clocks of machines are never compared.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    uid: String,
    status_at: Option<Timestamp>,
    lease_at: Option<Timestamp>,
    /// When the last change was seen.
    pub seen: Instant,
}

impl Heartbeat {
    /// What there is to see now, first seen `now`.
    pub fn observe(node: &Node, lease: Option<&Lease>, now: Instant) -> Self {
        Heartbeat {
            uid: uid(&node.metadata).to_owned(),
            status_at: condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.as_ref()).map(|time| time.0),
            lease_at: lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref()).map(|time| time.0),
            seen: now,
        }
    }

    /// Takes what there is to see now; a difference is a sign of life.
    pub fn update(&mut self, current: Heartbeat) {
        let same = (&self.uid, self.status_at, self.lease_at) == (&current.uid, current.status_at, current.lease_at);
        let seen = if same { self.seen } else { current.seen };
        *self = Heartbeat { seen, ..current };
    }
}

/// One condition of a node.
pub fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Whether the node says that it is ready.
pub fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Whether nobody knows whether the node is ready.
pub fn is_unknown(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status == "Unknown")
}

/// How long a node may be silent: longer while it has never posted its status.
pub fn allowance(node: &Node, grace: Duration, startup_grace: Duration) -> Duration {
    if condition(node, "Ready").is_some() { grace } else { startup_grace }
}

/// The conditions of a node that has been silent for too long; `None` if they say so already.
pub fn silent_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let current: Vec<NodeCondition> = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut next = current.clone();
    for type_ in REPORTED {
        match next.iter_mut().find(|condition| condition.type_ == type_) {
            None => next.push(NodeCondition {
                type_: type_.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
        }
    }
    (next != current).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(heartbeat: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n", "uid": "1"}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat},
            {"type": "DiskPressure", "status": "Unknown", "reason": "Own"},
            {"type": "NetworkUnavailable", "status": "False"}]}}))
        .unwrap()
    }

    fn lease(renewed: &str) -> Lease {
        serde_json::from_value(json!({"spec": {"renewTime": renewed}})).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn any_change_is_a_sign_of_life_and_sameness_is_none() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (node_one, lease_one) = (node("2026-01-01T00:00:00Z"), lease("2026-01-01T00:00:00.000000Z"));
        let mut heartbeat = Heartbeat::observe(&node_one, Some(&lease_one), at(0));
        heartbeat.update(Heartbeat::observe(&node_one, Some(&lease_one), at(10)));
        assert_eq!(heartbeat.seen, at(0));
        // A machine whose clock runs behind is alive too.
        let earlier = lease("2020-01-01T00:00:00.000000Z");
        heartbeat.update(Heartbeat::observe(&node_one, Some(&earlier), at(20)));
        assert_eq!(heartbeat.seen, at(20));
        heartbeat.update(Heartbeat::observe(&node("2026-01-01T00:00:10Z"), Some(&earlier), at(30)));
        assert_eq!(heartbeat.seen, at(30));
    }

    #[test]
    fn a_silent_node_vouches_for_nothing() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let mut node = node("2026-01-01T00:00:00Z");
        let conditions = silent_conditions(&node, now).unwrap();
        let told: Vec<(&str, &str, &str)> = conditions
            .iter()
            .map(|condition| (&*condition.type_, &*condition.status, condition.reason.as_deref().unwrap_or_default()))
            .collect();
        assert_eq!(
            told,
            [
                ("Ready", "Unknown", "NodeStatusUnknown"),
                ("DiskPressure", "Unknown", "Own"),
                ("NetworkUnavailable", "False", ""),
                ("MemoryPressure", "Unknown", "NodeStatusNeverUpdated"),
                ("PIDPressure", "Unknown", "NodeStatusNeverUpdated"),
            ]
        );
        assert_eq!(conditions[0].message.as_deref(), Some("Kubelet stopped posting node status."));
        assert_eq!(conditions[0].last_heartbeat_time.as_ref().unwrap().0, "2026-01-01T00:00:00Z".parse().unwrap());
        node.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(silent_conditions(&node, now), None);
    }
}
