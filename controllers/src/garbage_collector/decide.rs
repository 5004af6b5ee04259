//! What becomes of a dependent, once it is known how each of its owners is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PropagationPolicy;

use super::graph::{FOREGROUND_FINALIZER, ORPHAN_FINALIZER};

/// How an owner is, by a live read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// It exists and does not wait for its dependents.
    Solid,
    /// It does not exist, or another object has its name.
    Dangling,
    /// It is being deleted in the foreground.
    Waiting,
}

/// What is to be done with a dependent.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    Nothing,
    /// Some owners remain: drop the references to the others.
    Keep(Vec<OwnerReference>),
    Delete(PropagationPolicy),
}

/// Whether the dependent has dependents of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependents {
    Some,
    None,
}

/// Decides from the dependent's owners, in the order of its references, its finalizers and whether it has dependents itself.
pub fn decide(owners: &[(OwnerReference, OwnerState)], finalizers: &[String], dependents: Dependents) -> Decision {
    let has = |state: OwnerState| owners.iter().any(|(_, owner)| *owner == state);
    let carries = |finalizer: &str| finalizers.iter().any(|carried| carried == finalizer);
    if owners.is_empty() {
        return Decision::Nothing;
    }
    if has(OwnerState::Solid) {
        let solid: Vec<OwnerReference> =
            owners.iter().filter(|(_, state)| *state == OwnerState::Solid).map(|(reference, _)| reference.clone()).collect();
        return if solid.len() == owners.len() { Decision::Nothing } else { Decision::Keep(solid) };
    }
    // An owner waits, so the dependent's own dependents have to go before it does.
    if has(OwnerState::Waiting) && dependents == Dependents::Some {
        return Decision::Delete(PropagationPolicy::Foreground);
    }
    // No owner decides: what its finalizers already ask for is honoured.
    Decision::Delete(if carries(ORPHAN_FINALIZER) {
        PropagationPolicy::Orphan
    } else if carries(FOREGROUND_FINALIZER) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mix_of_owners_has_its_answer() {
        use OwnerState::{Dangling, Solid, Waiting};
        let reference = |index: usize| OwnerReference { uid: index.to_string(), ..OwnerReference::default() };
        let delete = Decision::Delete;
        let cases = [
            (vec![], vec![], Dependents::None, Decision::Nothing),
            (vec![Solid], vec![], Dependents::Some, Decision::Nothing),
            (vec![Solid, Solid], vec![ORPHAN_FINALIZER], Dependents::None, Decision::Nothing),
            (vec![Dangling, Solid], vec![], Dependents::None, Decision::Keep(vec![reference(1)])),
            (vec![Solid, Waiting, Dangling], vec![], Dependents::None, Decision::Keep(vec![reference(0)])),
            (vec![Dangling], vec![], Dependents::Some, delete(PropagationPolicy::Background)),
            (vec![Dangling, Dangling], vec![ORPHAN_FINALIZER], Dependents::Some, delete(PropagationPolicy::Orphan)),
            (vec![Dangling], vec![FOREGROUND_FINALIZER], Dependents::None, delete(PropagationPolicy::Foreground)),
            (vec![Waiting], vec![], Dependents::None, delete(PropagationPolicy::Background)),
            (vec![Waiting, Dangling], vec![], Dependents::Some, delete(PropagationPolicy::Foreground)),
        ];
        for (states, finalizers, dependents, expected) in cases {
            let owners: Vec<_> = states.iter().enumerate().map(|(index, state)| (reference(index), *state)).collect();
            let finalizers: Vec<String> = finalizers.into_iter().map(str::to_owned).collect();
            assert_eq!(decide(&owners, &finalizers, dependents), expected, "{states:?} {finalizers:?} {dependents:?}");
        }
    }
}
