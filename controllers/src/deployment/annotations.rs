//! The annotations by which a Deployment numbers its revisions and remembers the sizes it scaled for.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::strategy::{desired, max_surge};

/// The revision of a ReplicaSet's template, and the current one of the Deployment. `kubectl rollout history` shows it.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions a ReplicaSet had before it was rolled back to, comma-separated.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// `spec.replicas` of the Deployment when the ReplicaSet was last scaled; another value now means the Deployment was scaled.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// Desired replicas plus surge when the ReplicaSet was last scaled; the base of proportional scaling.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of the Deployment that its ReplicaSets do not take over.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
];

/// Longest revision history kept, in characters.
const MAX_HISTORY_LENGTH: usize = 2000;

fn annotations(set: &mut ReplicaSet) -> &mut BTreeMap<String, String> {
    set.metadata.annotations.get_or_insert_default()
}

fn get<'a>(set: &'a ReplicaSet, name: &str) -> Option<&'a String> {
    set.metadata.annotations.as_ref()?.get(name)
}

/// The revision of a ReplicaSet; 0 when it has none.
pub fn revision(set: &ReplicaSet) -> i64 {
    get(set, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The desired replicas the ReplicaSet was last scaled for.
pub fn desired_replicas(set: &ReplicaSet) -> Option<i32> {
    get(set, DESIRED_REPLICAS)?.parse().ok()
}

/// The most replicas the ReplicaSet's Deployment could have when it was last scaled.
pub fn max_replicas(set: &ReplicaSet) -> Option<i32> {
    get(set, MAX_REPLICAS)?.parse().ok()
}

/// Notes the sizes the ReplicaSet is scaled for.
pub fn note_sizes(set: &mut ReplicaSet, deployment: &Deployment) {
    let wanted = desired(deployment);
    annotations(set).insert(DESIRED_REPLICAS.into(), wanted.to_string());
    annotations(set).insert(MAX_REPLICAS.into(), wanted.saturating_add(max_surge(deployment)).to_string());
}

/// Copies the Deployment's annotations and gives the ReplicaSet the new revision, unless it has a later one already. One that had
/// an earlier revision is being rolled back to: that revision goes to its history.
pub fn note_revision(set: &mut ReplicaSet, deployment: &Deployment, new_revision: i64) {
    for (name, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&name.as_str()) {
            annotations(set).insert(name.clone(), value.clone());
        }
    }
    let before = get(set, REVISION).cloned();
    let parsed: Option<i64> = match &before {
        None => Some(0),
        Some(text) if text.is_empty() => Some(0),
        Some(text) => text.parse().ok(),
    };
    // A revision that is not a number is someone else's: it is left alone.
    if parsed.is_none_or(|earlier| earlier >= new_revision) {
        return;
    }
    annotations(set).insert(REVISION.into(), new_revision.to_string());
    if let Some(before) = before {
        let history = get(set, REVISION_HISTORY).cloned().unwrap_or_default();
        if let Some(history) = extended_history(&history, &before) {
            annotations(set).insert(REVISION_HISTORY.into(), history);
        }
    }
}

/// The history with one more revision, without as many of the oldest as do not fit.
fn extended_history(history: &str, revision: &str) -> Option<String> {
    let mut kept = history;
    loop {
        let length = if kept.is_empty() { revision.len() } else { kept.len() + 1 + revision.len() };
        if length <= MAX_HISTORY_LENGTH {
            return Some(if kept.is_empty() { revision.to_owned() } else { format!("{kept},{revision}") });
        }
        if kept.is_empty() {
            return None;
        }
        kept = kept.split_once(',').map_or("", |(_, rest)| rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn noted(set: Value, deployment: Value, revision: i64) -> BTreeMap<String, String> {
        let mut set: ReplicaSet = serde_json::from_value(json!({"metadata": {"annotations": set}})).unwrap();
        let deployment: Deployment = serde_json::from_value(json!({"metadata": {"annotations": deployment}})).unwrap();
        note_revision(&mut set, &deployment, revision);
        set.metadata.annotations.unwrap_or_default()
    }

    fn map(value: Value) -> BTreeMap<String, String> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn revisions_grow_and_leave_a_history() {
        assert_eq!(noted(json!({}), json!({}), 1), map(json!({REVISION: "1"})));
        assert_eq!(noted(json!({REVISION: "1"}), json!({}), 3), map(json!({REVISION: "3", REVISION_HISTORY: "1"})));
        assert_eq!(
            noted(json!({REVISION: "3", REVISION_HISTORY: "1"}), json!({}), 5),
            map(json!({REVISION: "5", REVISION_HISTORY: "1,3"}))
        );
        assert_eq!(noted(json!({REVISION: "7"}), json!({}), 5), map(json!({REVISION: "7"})));
        assert_eq!(noted(json!({REVISION: "mine"}), json!({}), 5), map(json!({REVISION: "mine"})));
    }

    #[test]
    fn annotations_are_copied_but_for_the_reserved_ones() {
        let deployment =
            json!({"kubernetes.io/change-cause": "v2", REVISION: "9", "kubectl.kubernetes.io/last-applied-configuration": "{}"});
        let expected = json!({"kubernetes.io/change-cause": "v2", "own": "kept", REVISION: "2", REVISION_HISTORY: "1"});
        assert_eq!(
            noted(json!({"own": "kept", "kubernetes.io/change-cause": "v1", REVISION: "1"}), deployment, 2),
            map(expected)
        );
    }

    #[test]
    fn a_long_history_loses_its_oldest_revisions() {
        let long = (100..1000).map(|revision| revision.to_string()).collect::<Vec<_>>().join(",");
        let extended = extended_history(&long, "1000").unwrap();
        assert!(extended.len() <= MAX_HISTORY_LENGTH && extended.len() > MAX_HISTORY_LENGTH - 10);
        assert!(extended.ends_with(",999,1000"));
        assert_eq!(extended_history("1", &"9".repeat(MAX_HISTORY_LENGTH + 1)), None);
    }
}
