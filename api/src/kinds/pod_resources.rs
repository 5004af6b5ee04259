//! What a pod as a whole asks for: effective requests and limits, and its quality-of-service class. Pure functions, used
//! by the API server (status of new pods), the scheduler and the node agent.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as QuantityText,
};

use crate::quantity::Quantity;

/// Amounts by the name of the resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// The requests that a scheduler must find room for: the sum over containers and sidecars, or what initialisation needs at
/// its highest, whichever is more, plus the pod's overhead (KEP-753, KEP-688). Requests of the pod itself, where given,
/// replace the sum (KEP-2837).
pub fn pod_requests(spec: &PodSpec) -> Amounts {
    effective(spec, |resources| resources.requests.as_ref())
}

/// The limits in the same way. A resource that one container does not limit is still summed over the others, as
/// Kubernetes does.
pub fn pod_limits(spec: &PodSpec) -> Amounts {
    effective(spec, |resources| resources.limits.as_ref())
}

type Field = fn(&ResourceRequirements) -> Option<&BTreeMap<String, QuantityText>>;

fn effective(spec: &PodSpec, field: Field) -> Amounts {
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &amounts(container.resources.as_ref(), field));
    }
    let mut sidecars = Amounts::new();
    let mut highest = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let own = amounts(container.resources.as_ref(), field);
        if is_sidecar(container) {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut highest, &sidecars);
        } else {
            let mut step = own;
            add(&mut step, &sidecars);
            raise(&mut highest, &step);
        }
    }
    raise(&mut total, &highest);
    for (name, amount) in amounts(spec.resources.as_ref(), field) {
        total.insert(name, amount);
    }
    let overhead = spec.overhead.as_ref().map(parse_all).unwrap_or_default();
    add(&mut total, &overhead);
    total
}

/// Whether an init container goes on running beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn amounts(resources: Option<&ResourceRequirements>, field: Field) -> Amounts {
    resources.and_then(field).map(parse_all).unwrap_or_default()
}

/// Quantities are validated when an object is stored; one that cannot be parsed counts as nothing.
fn parse_all(texts: &BTreeMap<String, QuantityText>) -> Amounts {
    texts.iter().filter_map(|(name, text)| Some((name.clone(), Quantity::parse(&text.0).ok()?))).collect()
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        total.entry(name.clone()).and_modify(|sum| *sum = *sum + *amount).or_insert(*amount);
    }
}

fn raise(total: &mut Amounts, floor: &Amounts) {
    for (name, amount) in floor {
        total.entry(name.clone()).and_modify(|sum| *sum = (*sum).max(*amount)).or_insert(*amount);
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort` (`pkg/apis/core/helper/qos`).
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let mut requests = Amounts::new();
    let mut limits = Amounts::new();
    let mut all_limited = true;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let of_pod = spec.resources.as_ref();
    let of_containers = containers.map(|container| container.resources.as_ref());
    let all: Vec<Option<&ResourceRequirements>> = if of_pod.is_some() { vec![of_pod] } else { of_containers.collect() };
    for resources in all {
        let counted = |field: Field| -> Amounts {
            amounts(resources, field)
                .into_iter()
                .filter(|(name, amount)| matches!(name.as_str(), "cpu" | "memory") && !amount.is_zero())
                .collect()
        };
        add(&mut requests, &counted(|resources| resources.requests.as_ref()));
        let own_limits = counted(|resources| resources.limits.as_ref());
        all_limited &= own_limits.len() == 2;
        add(&mut limits, &own_limits);
    }
    match () {
        () if requests.is_empty() && limits.is_empty() => "BestEffort",
        () if all_limited && requests == limits => "Guaranteed",
        () => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> PodSpec {
        serde_saphyr::from_str(text).unwrap()
    }

    fn shown(amounts: &Amounts) -> String {
        amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn requests_of_a_pod() {
        let cases = [
            (
                "containers: [{name: a, resources: {requests: {cpu: 100m}}}, {name: b, resources: {requests: {cpu: 1, memory: 1Gi}}}]",
                "cpu=1100m memory=1Gi",
            ),
            (
                "containers: [{name: a, resources: {requests: {cpu: 100m}}}]\ninitContainers: [{name: i, resources: {requests: {cpu: 2}}}]",
                "cpu=2",
            ),
            (
                "containers: [{name: a, resources: {requests: {cpu: 1}}}]\ninitContainers: [{name: s, restartPolicy: Always, \
              resources: {requests: {cpu: 500m}}}, {name: i, resources: {requests: {cpu: 2}}}]\noverhead: {cpu: 250m}",
                "cpu=2750m",
            ),
            ("containers: [{name: a, resources: {requests: {cpu: 1}}}]\nresources: {requests: {cpu: 3}}", "cpu=3"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(&pod_requests(&spec(text))), expected, "{text}");
        }
    }

    #[test]
    fn quality_of_service() {
        let cases = [
            ("containers: [{name: a}]", "BestEffort"),
            ("containers: [{name: a, resources: {requests: {cpu: 1}}}]", "Burstable"),
            (
                "containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1, memory: 1Gi}}}]",
                "Guaranteed",
            ),
            (
                "containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1, memory: 1Gi}}}, {name: b}]",
                "Burstable",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(qos_class(&spec(text)), expected, "{text}");
        }
    }
}
