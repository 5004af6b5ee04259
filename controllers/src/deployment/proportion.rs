//! What happens to the ReplicaSets when the Deployment itself is scaled, also in the middle of a rollout.

use k8s_openapi::api::apps::v1::Deployment;

use super::annotations::{desired_replicas, max_replicas};
use super::sets::{Sets, WorkingSet, by_age};
use super::strategy::{Strategy, desired, max_surge, strategy};

/// Whether the Deployment was scaled since an active ReplicaSet was.
pub fn was_scaled(sets: &Sets, deployment: &Deployment) -> bool {
    let active = sets.all().filter(|set| set.replicas() > 0);
    active.filter_map(|set| desired_replicas(&set.set)).any(|noted| noted != desired(deployment))
}

/// Scales for a new desired size: the one active ReplicaSet to all of it; if the new one is complete, the old ones to zero; in a
/// rolling update, all in proportion to their sizes, so that a rollout that goes wrong stays as small as it was.
pub fn scale(sets: &mut Sets, deployment: &Deployment) {
    let wanted = desired(deployment);
    if let Some(only) = active_or_latest(sets) {
        if only.replicas() != wanted {
            only.scale(wanted, deployment);
        }
        return;
    }
    if sets.new.as_ref().is_some_and(|new| is_saturated(new, wanted)) {
        for old in sets.old.iter_mut().filter(|set| set.replicas() > 0) {
            old.scale(0, deployment);
        }
        return;
    }
    if strategy(deployment) == Strategy::RollingUpdate {
        scale_proportionally(sets, deployment);
    }
}

/// The only active ReplicaSet; with none active the new one, or else the youngest; `None` if several are active.
fn active_or_latest(sets: &mut Sets) -> Option<&mut WorkingSet> {
    match sets.all().filter(|set| set.replicas() > 0).count() {
        0 if sets.new.is_some() => sets.new.as_mut(),
        0 => sets.old.iter_mut().max_by(|left, right| by_age(&left.set, &right.set)),
        1 => sets.active_mut().pop(),
        _ => None,
    }
}

fn is_saturated(set: &WorkingSet, wanted: i32) -> bool {
    set.replicas() == wanted && desired_replicas(&set.set) == Some(wanted) && set.available() == wanted
}

fn scale_proportionally(sets: &mut Sets, deployment: &Deployment) {
    let wanted = desired(deployment);
    let reported = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
    let mut active = sets.active_mut();
    let total: i32 = active.iter().map(|set| set.replicas()).sum();
    let allowed = if wanted > 0 { wanted.saturating_add(max_surge(deployment)) } else { 0 };
    let to_add = allowed - total;
    // The largest is first in line for what is added or taken; among equals the newest grows and the oldest shrinks.
    active.sort_by(|left, right| {
        let age = by_age(&left.set, &right.set);
        right.replicas().cmp(&left.replicas()).then(if to_add > 0 { age.reverse() } else { age })
    });
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(active.len());
    for set in &active {
        let share = share(set, deployment, reported, to_add, added);
        added += share;
        sizes.push(set.replicas() + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    for (set, size) in active.into_iter().zip(sizes) {
        set.scale(size, deployment);
    }
}

/// How many of `to_add` replicas (negative: to take away) fall to one ReplicaSet, when `added` are given out already.
fn share(set: &WorkingSet, deployment: &Deployment, reported: i32, to_add: i32, added: i32) -> i32 {
    if set.replicas() == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(set, deployment, reported);
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

/// By how much the ReplicaSet would grow if it kept its part of the whole.
fn fraction(set: &WorkingSet, deployment: &Deployment, reported: i32) -> i32 {
    let (size, wanted) = (set.replicas(), desired(deployment));
    if wanted == 0 {
        return -size;
    }
    // Without the annotation the reported size is the best estimate of the whole.
    let before = max_replicas(&set.set).filter(|noted| *noted > 0).unwrap_or(reported);
    if before <= 0 {
        return 0;
    }
    let now = i64::from(wanted) + i64::from(max_surge(deployment));
    // Rounded half away from zero; all terms are positive.
    let scaled = (2 * i64::from(size) * now + i64::from(before)) / (2 * i64::from(before));
    i32::try_from(scaled).unwrap_or(i32::MAX) - size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::annotations::{DESIRED_REPLICAS, MAX_REPLICAS};
    use serde_json::json;
    use std::sync::Arc;

    /// Sizes (oldest first, the last is the new one), the desired size before and now, surge, sizes expected.
    #[test]
    fn a_rollout_is_scaled_in_proportion() {
        type Case = (&'static [i32], i32, i32, i32, &'static [i32]);
        let cases: &[Case] = &[
            // one active set takes all
            (&[10], 10, 12, 0, &[12]),
            (&[0, 10], 10, 4, 0, &[0, 4]),
            (&[0, 0], 10, 6, 0, &[0, 6]),
            // in proportion; what is left over goes to the largest
            (&[5, 5], 10, 20, 0, &[10, 10]),
            (&[5, 5], 10, 12, 0, &[6, 6]),
            (&[5, 5], 10, 11, 0, &[5, 6]),
            (&[5, 5], 10, 9, 0, &[4, 5]),
            (&[8, 2], 10, 20, 0, &[16, 4]),
            (&[2, 3, 5], 10, 20, 0, &[4, 6, 10]),
            (&[2, 3, 5], 10, 5, 0, &[1, 2, 2]),
            (&[3, 3, 3], 9, 10, 0, &[3, 3, 4]),
            (&[5, 5], 10, 0, 0, &[0, 0]),
            // surge counts as part of the whole
            (&[8, 4], 10, 20, 2, &[15, 7]),
        ];
        for (sizes, before, now, surge, expected) in cases {
            let deployment: Deployment = serde_json::from_value(json!({"spec": {"replicas": now, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1}}}}))
            .unwrap();
            let mut working: Vec<WorkingSet> = sizes
                .iter()
                .enumerate()
                .map(|(index, size)| {
                    let set = json!({"metadata": {"name": format!("r{index}"), "creationTimestamp": format!("2026-01-0{}T00:00:00Z", index + 1),
                        "annotations": {DESIRED_REPLICAS: before.to_string(), MAX_REPLICAS: (before + surge).to_string()}},
                        "spec": {"replicas": size, "selector": {}}});
                    WorkingSet::observed(Arc::new(serde_json::from_value(set).unwrap()))
                })
                .collect();
            let mut sets = Sets { new: working.pop(), old: working };
            scale(&mut sets, &deployment);
            let result: Vec<i32> = sets.all().map(WorkingSet::replicas).collect();
            assert_eq!(&result, expected, "{sizes:?} from {before} to {now}, surge {surge}");
        }
    }

    #[test]
    fn old_sets_go_when_the_new_one_is_complete() {
        let deployment: Deployment = serde_json::from_value(
            json!({"spec": {"replicas": 3, "selector": {}, "template": {}, "strategy": {"type": "Recreate"}}}),
        )
        .unwrap();
        let set = |name: &str, size: i32| {
            let set = json!({"metadata": {"name": name, "annotations": {DESIRED_REPLICAS: "3"}},
                "spec": {"replicas": size, "selector": {}}, "status": {"replicas": size, "availableReplicas": size}});
            WorkingSet::observed(Arc::new(serde_json::from_value(set).unwrap()))
        };
        let mut sets = Sets { new: Some(set("new", 3)), old: vec![set("old", 2)] };
        assert!(!was_scaled(&sets, &deployment));
        scale(&mut sets, &deployment);
        assert_eq!(sets.all().map(WorkingSet::replicas).collect::<Vec<_>>(), [0, 3]);
        assert_eq!(sets.old[0].scalings, ["Scaled down replica set old from 2 to 0"]);
    }
}
