//! The taints a node's conditions call for.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::health::condition;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Condition, status and the NoSchedule taint it brings.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// Whether a node that is not ready may be given a taint that evicts its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// Its turn has not come.
    Waiting,
    /// Its zone's rate allows it.
    Permitted,
    /// No zone is ready: the masters are cut off, not the nodes.
    Forbidden,
}

/// All taints the node should have; `None` if it has them. Taints of others stay as they are.
pub fn desired(node: &Node, eviction: Eviction, now: Timestamp) -> Option<Vec<Taint>> {
    let current: Vec<Taint> = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let mut wanted = no_schedule(node);
    wanted.extend(no_execute(node, &current, eviction).map(|key| (key, "NoExecute")));
    let mut next: Vec<Taint> = current.iter().filter(|taint| !is_ours(node, taint) || wants(&wanted, taint)).cloned().collect();
    for (key, effect) in wanted {
        if !next.iter().any(|taint| taint.key == key && taint.effect == effect) {
            let time_added = Some(Time(now));
            next.push(Taint { key: key.to_owned(), effect: effect.to_owned(), time_added, value: None });
        }
    }
    (next != current).then_some(next)
}

/// Whether the node has a taint that evicts pods because it is not ready.
pub fn is_evicting(node: &Node) -> bool {
    evicts(node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()))
}

fn evicts<'a>(mut taints: impl Iterator<Item = &'a Taint>) -> bool {
    taints.any(|taint| taint.effect == "NoExecute" && matches!(taint.key.as_str(), NOT_READY | UNREACHABLE))
}

fn wants(wanted: &[(&str, &str)], taint: &Taint) -> bool {
    wanted.iter().any(|(key, effect)| taint.key == *key && taint.effect == *effect)
}

/// Whether this loop decides about the taint. What a node registered with counts until it has said how it is.
fn is_ours(node: &Node, taint: &Taint) -> bool {
    let readiness = matches!(taint.key.as_str(), NOT_READY | UNREACHABLE);
    match taint.effect.as_str() {
        _ if readiness && condition(node, "Ready").is_none() => false,
        "NoExecute" => readiness,
        "NoSchedule" => taint.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, key)| taint.key == *key),
        _ => false,
    }
}

fn no_schedule(node: &Node) -> Vec<(&'static str, &'static str)> {
    let holds = |type_, status| condition(node, type_).is_some_and(|condition| condition.status == status);
    let by_condition = BY_CONDITION.iter().filter(|(type_, status, _)| holds(type_, *status)).map(|(_, _, key)| *key);
    let unschedulable = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)).then_some(UNSCHEDULABLE);
    by_condition.chain(unschedulable).map(|key| (key, "NoSchedule")).collect()
}

/// The evicting taint for a node that is not ready. One that has the wrong one of the two is given the right one at once.
fn no_execute(node: &Node, current: &[Taint], eviction: Eviction) -> Option<&'static str> {
    let key = match condition(node, "Ready")?.status.as_str() {
        "True" => return None,
        "False" => NOT_READY,
        _ => UNREACHABLE,
    };
    let may = match eviction {
        Eviction::Forbidden => false,
        Eviction::Permitted => true,
        Eviction::Waiting => evicts(current.iter()),
    };
    may.then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Taints as `name:Effect`, by the last part of the key.
    fn outcome(conditions: &[(&str, &str)], unschedulable: bool, taints: &[&str], eviction: Eviction) -> Option<Vec<String>> {
        let conditions: Vec<_> = conditions.iter().map(|(type_, status)| json!({"type": type_, "status": status})).collect();
        let taint = |text: &&str| {
            let (name, effect) = text.split_once(':').unwrap();
            let key = if name.contains('.') { name.to_owned() } else { format!("node.kubernetes.io/{name}") };
            json!({"key": key, "effect": effect})
        };
        let taints: Vec<_> = taints.iter().map(taint).collect();
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": conditions},
            "spec": {"taints": taints, "unschedulable": unschedulable}}))
        .unwrap();
        let text = |taint: Taint| format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect);
        desired(&node, eviction, Timestamp::UNIX_EPOCH).map(|taints| taints.into_iter().map(text).collect())
    }

    #[test]
    fn conditions_bring_their_taints() {
        use Eviction::*;
        let ready = [("Ready", "True")];
        let failing = [("Ready", "False")];
        let unknown = [("Ready", "Unknown")];
        let pressed = [
            ("Ready", "True"),
            ("MemoryPressure", "True"),
            ("DiskPressure", "True"),
            ("PIDPressure", "True"),
            ("NetworkUnavailable", "True"),
        ];
        let case = |conditions: &[(&str, &str)], unschedulable, taints: &[&str], eviction, expected: Option<&[&str]>| {
            let expected = expected.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>());
            assert_eq!(outcome(conditions, unschedulable, taints, eviction), expected, "{conditions:?} {taints:?} {eviction:?}");
        };
        case(&ready, false, &[], Waiting, None);
        case(&ready, false, &["example.com/mine:NoSchedule"], Waiting, None);
        case(&ready, true, &[], Waiting, Some(&["unschedulable:NoSchedule"]));
        case(&ready, false, &["unschedulable:NoSchedule"], Waiting, Some(&[]));
        case(&ready, false, &["not-ready:NoSchedule", "not-ready:NoExecute", "unreachable:NoExecute"], Waiting, Some(&[]));
        case(&failing, false, &[], Waiting, Some(&["not-ready:NoSchedule"]));
        case(&failing, false, &[], Permitted, Some(&["not-ready:NoSchedule", "not-ready:NoExecute"]));
        case(&unknown, false, &["not-ready:NoSchedule"], Waiting, Some(&["unreachable:NoSchedule"]));
        case(
            &unknown,
            false,
            &["not-ready:NoSchedule", "not-ready:NoExecute"],
            Waiting,
            Some(&["unreachable:NoSchedule", "unreachable:NoExecute"]),
        );
        case(&unknown, false, &["unreachable:NoSchedule", "unreachable:NoExecute"], Permitted, None);
        case(&unknown, false, &["unreachable:NoSchedule", "unreachable:NoExecute"], Forbidden, Some(&["unreachable:NoSchedule"]));
        case(&[], false, &["not-ready:NoSchedule"], Waiting, None);
        case(&[], false, &["memory-pressure:NoSchedule"], Waiting, Some(&[]));
        let all = [
            "memory-pressure:NoSchedule",
            "disk-pressure:NoSchedule",
            "network-unavailable:NoSchedule",
            "pid-pressure:NoSchedule",
        ];
        case(&pressed, false, &[], Waiting, Some(&all));
    }
}
