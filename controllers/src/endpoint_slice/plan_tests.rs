use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::endpoints::backends::samples::{deleting, not_ready, pod, service};

/// The slices after the plan was carried out.
fn carried_out(existing: &[Arc<EndpointSlice>], plan: &Plan, next_name: &mut usize) -> Vec<Arc<EndpointSlice>> {
    let mut slices: BTreeMap<String, EndpointSlice> =
        existing.iter().map(|slice| (name(&slice.metadata).to_owned(), (**slice).clone())).collect();
    for slice in &plan.delete {
        slices.remove(name(&slice.metadata));
    }
    for slice in &plan.update {
        slices.insert(name(&slice.metadata).to_owned(), slice.clone());
    }
    for slice in &plan.create {
        *next_name += 1;
        let mut slice = slice.clone();
        slice.metadata.name = Some(format!("web-{next_name:04}"));
        slices.insert(format!("web-{next_name:04}"), slice);
    }
    slices.into_values().map(Arc::new).collect()
}

/// Pods whose addresses sort as the numbers do.
fn pods(numbers: impl IntoIterator<Item = usize>) -> Vec<Arc<Pod>> {
    let one =
        |number: usize| pod(&format!("p{number:04}"), &format!("10.1.{}.{}", number / 100, 100 + number % 100), Value::Null);
    numbers.into_iter().map(one).collect()
}

fn no_zone(_: &str) -> Option<String> {
    None
}

fn writes(plan: &Plan) -> (usize, usize, usize) {
    (plan.create.len(), plan.update.len(), plan.delete.len())
}

#[test]
fn conditions_zone_and_metadata_are_kubernetes_own() {
    let list = [
        pod("a", "10.1.0.1", Value::Null),
        pod("b", "10.1.0.2", not_ready()),
        pod("c", "10.1.0.3", deleting()),
        pod("d", "10.1.0.4", json!({"spec": {"hostname": "db", "subdomain": "web"}})),
    ];
    let zone = |node: &str| (node == "node").then(|| "zone-a".to_owned());
    let plain = service(json!({"metadata": {"labels": {"team": "t"}}}));
    let plan = super::plan(&plain, &[], desired(&plain, &list, zone), None);
    assert_eq!(writes(&plan), (1, 0, 0));
    let slice = &plan.create[0];
    let conditions = |endpoint: &Endpoint| {
        let conditions = endpoint.conditions.as_ref().unwrap();
        (conditions.ready.unwrap(), conditions.serving.unwrap(), conditions.terminating.unwrap())
    };
    let endpoints = slice.endpoints.as_ref().unwrap();
    let told: Vec<_> = endpoints.iter().map(conditions).collect();
    assert_eq!(told, [(true, true, false), (false, false, false), (false, true, true), (true, true, false)]);
    assert!(endpoints.iter().all(|endpoint| endpoint.zone.as_deref() == Some("zone-a")));
    assert_eq!(endpoints[3].hostname.as_deref(), Some("db"));
    let metadata = serde_json::to_value(&slice.metadata).unwrap();
    assert_eq!(metadata["generateName"], "web-");
    assert_eq!(
        metadata["labels"],
        json!({"team": "t", "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"})
    );
    assert_eq!(
        metadata["ownerReferences"],
        json!([{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "s", "controller": true, "blockOwnerDeletion": true}])
    );
}

#[test]
fn slices_are_filled_and_left_alone_where_they_can_be() {
    let (plain, mut names) = (service(Value::Null), 0);
    let first = plan(&plain, &[], desired(&plain, &pods(0..250), no_zone), None);
    assert_eq!(writes(&first), (3, 0, 0));
    let slices = carried_out(&[], &first, &mut names);
    assert_eq!(writes(&plan(&plain, &slices, desired(&plain, &pods(0..250), no_zone), None)), (0, 0, 0));
    let more = plan(&plain, &slices, desired(&plain, &pods(0..260), no_zone), None);
    assert_eq!(writes(&more), (0, 1, 0), "the slice with room takes them");
    let fewer = plan(&plain, &slices, desired(&plain, &pods(100..250), no_zone), None);
    assert_eq!(writes(&fewer), (0, 0, 1), "the empty one goes, the others stay");
    let swapped = plan(&plain, &slices, desired(&plain, &pods((0..99).chain(100..251)), no_zone), None);
    assert_eq!(writes(&swapped), (0, 1, 0), "a newcomer goes where something is written anyway");
}

#[test]
fn a_service_without_endpoints_has_one_empty_slice() {
    let (plain, mut names) = (service(Value::Null), 0);
    let empty = plan(&plain, &[], desired(&plain, &[], no_zone), None);
    assert_eq!(writes(&empty), (1, 0, 0));
    let slices = carried_out(&[], &empty, &mut names);
    assert_eq!(plan(&plain, &slices, desired(&plain, &[], no_zone), None), Plan::default());
    let filled = plan(&plain, &slices, desired(&plain, &pods(0..1), no_zone), None);
    assert_eq!(writes(&filled), (1, 0, 1), "the ports differ");
}

proptest! {
    /// After every change each endpoint is in exactly one slice, no slice is too large, and a second pass writes nothing.
    #[test]
    fn endpoints_are_dealt_once(rounds in proptest::collection::vec(proptest::collection::btree_set(0_usize..330, 0..330), 1..5)) {
        let (plain, mut names, mut slices) = (service(Value::Null), 0, Vec::new());
        for numbers in rounds {
            let wanted = desired(&plain, &pods(numbers.clone()), no_zone);
            let step = plan(&plain, &slices, wanted.clone(), None);
            slices = carried_out(&slices, &step, &mut names);
            let held: Vec<String> = slices
                .iter()
                .flat_map(|slice| slice.endpoints.iter().flatten())
                .map(|endpoint| endpoint.target_ref.clone().unwrap().name.unwrap())
                .collect();
            let unique: BTreeSet<&String> = held.iter().collect();
            prop_assert_eq!(unique.len(), held.len());
            prop_assert_eq!(held.len(), numbers.len());
            prop_assert!(slices.iter().all(|slice| slice.endpoints.as_ref().is_none_or(|list| list.len() <= SLICE_CAPACITY)));
            prop_assert_eq!(plan(&plain, &slices, wanted, None), Plan::default());
        }
    }
}
