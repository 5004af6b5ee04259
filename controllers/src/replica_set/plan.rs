//! How many pods to create or which to delete: the decision, without I/O.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::ranking::rank_for_deletion;

/// The most pods created or deleted for one owner in one pass (Kubernetes' burst).
pub const BURST: usize = 500;

/// What one pass does.
#[derive(Debug)]
pub enum Plan {
    Nothing,
    Create(usize),
    /// The pods to delete, in the order of preference.
    Delete(Vec<Arc<Pod>>),
}

/// Decides for `replicas` wanted and the `active` pods there are. `related_on_node` counts, by node name, the active pods of all
/// owners with the same parent (a Deployment's ReplicaSets): pods that are doubled up on a node go first.
pub fn decide(replicas: i32, active: &[Arc<Pod>], related_on_node: &HashMap<String, usize>, now: Timestamp) -> Plan {
    let wanted = usize::try_from(replicas).unwrap_or(0);
    match active.len() {
        have if have < wanted => Plan::Create((wanted - have).min(BURST)),
        have if have > wanted => {
            let count = (have - wanted).min(BURST);
            // Ranking is pointless when all go.
            let mut candidates = active.to_vec();
            if wanted > 0 {
                rank_for_deletion(&mut candidates, related_on_node, now);
            }
            candidates.truncate(count);
            Plan::Delete(candidates)
        }
        _ => Plan::Nothing,
    }
}

/// Sizes of the batches in which `count` pods are created: 1, 2, 4, … If one batch has a failure, the rest is not tried, so that
/// a pod that is refused (a quota, a webhook) is refused once and not five hundred times.
pub fn slow_start_batches(count: usize) -> impl Iterator<Item = usize> {
    let mut remaining = count;
    let mut size = 1;
    std::iter::from_fn(move || {
        let batch = size.min(remaining);
        remaining -= batch;
        size *= 2;
        (batch > 0).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pods(count: usize) -> Vec<Arc<Pod>> {
        (0..count).map(|_| Arc::new(Pod::default())).collect()
    }

    #[test]
    fn the_difference_is_made_up_at_most_a_burst_at_a_time() {
        let cases = [
            (3, 0, "create 3"),
            (3, 3, "nothing"),
            (0, 3, "delete 3"),
            (600, 0, "create 500"),
            (1, 700, "delete 500"),
            (-1, 2, "delete 2"),
        ];
        for (replicas, active, expected) in cases {
            let plan = match decide(replicas, &pods(active), &HashMap::new(), Timestamp::UNIX_EPOCH) {
                Plan::Nothing => "nothing".to_owned(),
                Plan::Create(count) => format!("create {count}"),
                Plan::Delete(pods) => format!("delete {}", pods.len()),
            };
            assert_eq!(plan, expected, "{active} of {replicas}");
        }
    }

    proptest! {
        #[test]
        fn repeated_passes_reach_the_wanted_count(replicas in 0_i32..2_000, start in 0_usize..2_000) {
            let mut have = start;
            for _ in 0..5 {
                match decide(replicas, &pods(have), &HashMap::new(), Timestamp::UNIX_EPOCH) {
                    Plan::Nothing => break,
                    Plan::Create(count) => have += count,
                    Plan::Delete(pods) => have -= pods.len(),
                }
            }
            prop_assert_eq!(have, usize::try_from(replicas).unwrap());
        }

        #[test]
        fn batches_double_and_add_up(count in 0_usize..2_000) {
            let batches: Vec<usize> = slow_start_batches(count).collect();
            prop_assert_eq!(batches.iter().sum::<usize>(), count);
            for (index, batch) in batches.iter().enumerate() {
                prop_assert!(*batch == 1 << index || index + 1 == batches.len());
            }
        }
    }
}
