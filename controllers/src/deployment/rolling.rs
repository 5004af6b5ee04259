//! The arithmetic of a rolling update: never more pods than desired plus surge, never fewer available than desired minus the
//! unavailable that are allowed.

use k8s_openapi::api::apps::v1::Deployment;

use super::sets::{Sets, WorkingSet, by_age};
use super::strategy::{desired, max_surge, max_unavailable};

/// The size the new ReplicaSet may have now: as far up as the surge allows.
pub fn new_size(total: i32, new: i32, deployment: &Deployment) -> i32 {
    let limit = desired(deployment).saturating_add(max_surge(deployment));
    if total >= limit {
        return new;
    }
    new + (limit - total).min(desired(deployment) - new).max(0)
}

/// Brings the new ReplicaSet to the size it may have; returns whether that changed it.
pub fn reconcile_new(sets: &mut Sets, deployment: &Deployment) -> bool {
    let total = sets.total();
    let Some(new) = sets.new.as_mut() else { return false };
    let (size, wanted) = (new.replicas(), desired(deployment));
    if size == wanted {
        return false;
    }
    let target = if size > wanted { wanted } else { new_size(total, size, deployment) };
    target != size && new.scale(target, deployment)
}

/// Scales old ReplicaSets down as far as availability allows; returns whether anything changed. Pods that are not available go
/// first: they would otherwise hold the rollout up for ever.
pub fn reconcile_old(sets: &mut Sets, deployment: &Deployment) -> bool {
    let minimum = desired(deployment) - max_unavailable(deployment);
    let total = sets.total();
    let (new_size, new_available) = sets.new.as_ref().map_or((0, 0), |new| (new.replicas(), new.dependable()));
    let new_unavailable = new_size - new_available;
    let spare = total - minimum - new_unavailable;
    if spare <= 0 {
        return false;
    }
    let mut old: Vec<&mut WorkingSet> = sets.old.iter_mut().filter(|set| set.replicas() > 0).collect();
    old.sort_by(|left, right| by_age(&left.set, &right.set));
    let cleaned = remove_unavailable(&mut old, spare, deployment);
    let available: i32 = old.iter().map(|set| set.dependable()).sum::<i32>() + new_available;
    let removed = remove(&mut old, available - minimum, deployment);
    cleaned + removed > 0
}

/// Takes away up to `limit` replicas that are not available.
fn remove_unavailable(old: &mut [&mut WorkingSet], limit: i32, deployment: &Deployment) -> i32 {
    let mut removed = 0;
    for set in old {
        let unavailable = set.replicas() - set.available();
        let count = unavailable.min(limit - removed);
        if count > 0 {
            set.scale(set.replicas() - count, deployment);
            removed += count;
        }
    }
    removed
}

/// Takes away up to `limit` replicas, from the oldest ReplicaSet first.
fn remove(old: &mut [&mut WorkingSet], limit: i32, deployment: &Deployment) -> i32 {
    let mut removed = 0;
    for set in old {
        let count = set.replicas().min(limit - removed);
        if count > 0 {
            set.scale(set.replicas() - count, deployment);
            removed += count;
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn deployment(replicas: i32, surge: i32, unavailable: i32) -> Deployment {
        serde_json::from_value(json!({"spec": {"replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .unwrap()
    }

    fn set(name: &str, (size, available): (i32, i32)) -> WorkingSet {
        let set = json!({"metadata": {"name": name}, "spec": {"replicas": size, "selector": {}},
            "status": {"replicas": size, "availableReplicas": available}});
        WorkingSet::observed(Arc::new(serde_json::from_value(set).unwrap()))
    }

    /// The cases of Kubernetes' documentation and a few at the borders: sets as (size, available).
    #[test]
    fn one_step_of_each_kind() {
        // desired, surge, unavailable, olds, new, expected: olds then new
        type Case = (i32, i32, i32, &'static [(i32, i32)], (i32, i32), &'static [i32]);
        let cases: &[Case] = &[
            // up: as far as the surge goes
            (10, 3, 2, &[(10, 10)], (0, 0), &[10, 3]),
            (10, 0, 2, &[(10, 10)], (0, 0), &[8, 0]),
            (10, 0, 1, &[(5, 5)], (5, 5), &[4, 5]),
            (10, 2, 0, &[(8, 8)], (4, 4), &[6, 4]),
            // a new set that is larger than desired shrinks
            (5, 0, 1, &[(0, 0)], (8, 8), &[0, 5]),
            // down: only what availability allows
            (10, 2, 0, &[(10, 10)], (2, 0), &[10, 2]),
            (10, 2, 0, &[(10, 10)], (2, 1), &[9, 2]),
            (10, 3, 2, &[(8, 8)], (5, 2), &[6, 5]),
            // unavailable old pods first, oldest set first
            (10, 3, 2, &[(3, 0), (7, 7)], (3, 0), &[1, 7, 3]),
            (10, 3, 2, &[(2, 0), (8, 8)], (3, 3), &[0, 5, 3]),
            // the new set is complete: the rest goes
            (3, 1, 0, &[(1, 1)], (3, 3), &[0, 3]),
            // nothing to do
            (3, 1, 0, &[(3, 3)], (1, 0), &[3, 1]),
        ];
        for (wanted, surge, unavailable, olds, new, expected) in cases {
            let deployment = deployment(*wanted, *surge, *unavailable);
            let old = olds.iter().enumerate().map(|(index, sizes)| set(&format!("old{index}"), *sizes)).collect();
            let mut sets = Sets { new: Some(set("new", *new)), old };
            if !reconcile_new(&mut sets, &deployment) {
                reconcile_old(&mut sets, &deployment);
            }
            let result: Vec<i32> = sets.all().map(WorkingSet::replicas).collect();
            assert_eq!(&result, expected, "{wanted} +{surge} -{unavailable}: {olds:?} {new:?}");
        }
    }

    #[test]
    fn a_stale_status_is_not_relied_on() {
        let deployment = deployment(10, 0, 6);
        let mut old = set("old", (5, 10));
        old.set.metadata.generation = Some(2);
        let mut sets = Sets { new: Some(set("new", (5, 0))), old: vec![old] };
        assert!(!reconcile_old(&mut sets, &deployment), "the ten available pods may be five by now");
    }
}
