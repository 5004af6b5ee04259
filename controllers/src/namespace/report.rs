//! What is left of a namespace, and the conditions that say so.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The outcome of one attempt to empty a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Groups whose resources could not be read.
    pub discovery_failures: Vec<String>,
    /// Resources whose objects could not be listed or deleted.
    pub failures: Vec<String>,
    /// Objects that are still there, by resource.
    pub remaining: BTreeMap<String, usize>,
    /// How many objects each finalizer holds.
    pub finalizers: BTreeMap<String, usize>,
}

impl Report {
    /// Notes the objects of one resource that are still there.
    pub fn note_remaining(&mut self, resource: String, count: usize, finalizers: impl IntoIterator<Item = String>) {
        if count > 0 {
            self.remaining.insert(resource, count);
        }
        for finalizer in finalizers {
            *self.finalizers.entry(finalizer).or_insert(0) += 1;
        }
    }

    /// Whether pods, which take their grace period, are among what remains.
    pub fn pods_are_stopping(&self) -> bool {
        self.remaining.contains_key("pods.")
    }
}

/// The status' conditions after an attempt. Those of other types are kept; a condition that says the same keeps its time.
pub fn conditions(before: &NamespaceStatus, report: &Report, now: Timestamp) -> Vec<NamespaceCondition> {
    let rows = [
        row(
            "NamespaceDeletionDiscoveryFailure",
            discovery_text(report),
            "DiscoveryFailed",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        row(
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "GroupVersionParsingFailed",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        row(
            "NamespaceDeletionContentFailure",
            content_text(report),
            "ContentDeletionFailed",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        row(
            "NamespaceContentRemaining",
            remaining_text(report),
            "SomeResourcesRemain",
            "ContentRemoved",
            "All content successfully removed",
        ),
        row(
            "NamespaceFinalizersRemaining",
            finalizers_text(report),
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    let mut after: Vec<NamespaceCondition> = before.conditions.clone().unwrap_or_default();
    for mut condition in rows {
        match after.iter_mut().find(|earlier| earlier.type_ == condition.type_) {
            Some(earlier) => {
                let unchanged = earlier.status == condition.status;
                condition.last_transition_time = if unchanged { earlier.last_transition_time.clone() } else { Some(Time(now)) };
                *earlier = condition;
            }
            None => after.push(NamespaceCondition { last_transition_time: Some(Time(now)), ..condition }),
        }
    }
    after
}

/// A condition that is True with `problem` as its text, or False with the good reason and text.
fn row(type_: &str, problem: Option<String>, bad_reason: &str, good_reason: &str, good_text: &str) -> NamespaceCondition {
    let (status, reason, message) = match problem {
        Some(text) => ("True", bad_reason, text),
        None => ("False", good_reason, good_text.to_owned()),
    };
    NamespaceCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: None,
    }
}

fn discovery_text(report: &Report) -> Option<String> {
    let count = report.discovery_failures.len();
    (count > 0).then(|| format!("Discovery failed for some groups, {count} failing: {}", report.discovery_failures.join(", ")))
}

fn content_text(report: &Report) -> Option<String> {
    let count = report.failures.len();
    (count > 0).then(|| format!("Failed to delete all resource types, {count} remaining: {}", report.failures.join(", ")))
}

fn remaining_text(report: &Report) -> Option<String> {
    let parts: Vec<String> =
        report.remaining.iter().map(|(resource, count)| format!("{resource} has {count} resource instances")).collect();
    (!parts.is_empty()).then(|| format!("Some resources are remaining: {}", parts.join(", ")))
}

fn finalizers_text(report: &Report) -> Option<String> {
    let parts: Vec<String> =
        report.finalizers.iter().map(|(finalizer, count)| format!("{finalizer} in {count} resource instances")).collect();
    (!parts.is_empty()).then(|| format!("Some content in the namespace has finalizers remaining: {}", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_remains_and_keep_their_times() {
        let mut report = Report::default();
        report.note_remaining("pods.".into(), 2, ["x/y".to_owned(), "x/y".to_owned()]);
        report.note_remaining("deployments.apps".into(), 1, []);
        let early = Timestamp::UNIX_EPOCH;
        let first = conditions(&NamespaceStatus::default(), &report, early);
        let told: Vec<(&str, &str, &str)> = first
            .iter()
            .map(|condition| {
                (condition.status.as_str(), condition.reason.as_deref().unwrap(), condition.message.as_deref().unwrap())
            })
            .collect();
        assert_eq!(
            told,
            [
                ("False", "ResourcesDiscovered", "All resources successfully discovered"),
                ("False", "ParsedGroupVersions", "All legacy kube types successfully parsed"),
                ("False", "ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
                (
                    "True",
                    "SomeResourcesRemain",
                    "Some resources are remaining: deployments.apps has 1 resource instances, pods. has 2 resource instances"
                ),
                (
                    "True",
                    "SomeFinalizersRemain",
                    "Some content in the namespace has finalizers remaining: x/y in 2 resource instances"
                ),
            ]
        );
        let before = NamespaceStatus { conditions: Some(first), phase: None };
        let later = Timestamp::MAX;
        let second = conditions(&before, &Report::default(), later);
        let times: Vec<bool> = second.iter().map(|condition| condition.last_transition_time == Some(Time(later))).collect();
        assert_eq!(times, [false, false, false, true, true]);
    }
}
