//! The quality-of-service class of a pod (`pkg/apis/core/v1/helper/qos`): Guaranteed when every container has equal
//! requests and limits of cpu and memory, BestEffort when none has any, else Burstable.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::pod::model::all_slots;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The folder of the class under the agent's cgroup root; guaranteed pods are directly under it.
    pub fn cgroup_parent(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }
}

/// The class that the API server gave, else computed.
pub fn qos_class(pod: &Pod) -> QosClass {
    match pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        Some("Guaranteed") => QosClass::Guaranteed,
        Some("Burstable") => QosClass::Burstable,
        Some("BestEffort") => QosClass::BestEffort,
        _ => compute(pod),
    }
}

fn compute(pod: &Pod) -> QosClass {
    let containers: Vec<&Container> = all_slots(pod).into_iter().map(|slot| slot.container).collect();
    let amounts = |container: &Container, which: Which| -> BTreeMap<String, i128> {
        let resources = container.resources.as_ref();
        let quantities = match which {
            Which::Requests => resources.and_then(|resources| resources.requests.as_ref()),
            Which::Limits => resources.and_then(|resources| resources.limits.as_ref()),
        };
        let counted = |(name, quantity): (&String, &Quantity)| {
            let amount = crate::pod::resources::nano(&quantity.0)?;
            (amount > 0 && matches!(name.as_str(), "cpu" | "memory")).then(|| (name.clone(), amount))
        };
        quantities.into_iter().flatten().filter_map(counted).collect()
    };
    let nothing = containers
        .iter()
        .all(|container| amounts(container, Which::Requests).is_empty() && amounts(container, Which::Limits).is_empty());
    if nothing {
        return QosClass::BestEffort;
    }
    let guaranteed = containers.iter().all(|container| {
        let limits = amounts(container, Which::Limits);
        let requests = amounts(container, Which::Requests);
        limits.len() == 2 && requests.iter().all(|(name, amount)| limits.get(name) == Some(amount))
    });
    if guaranteed { QosClass::Guaranteed } else { QosClass::Burstable }
}

#[derive(Clone, Copy)]
enum Which {
    Requests,
    Limits,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes_follow_requests_and_limits() {
        let both = json!({ "cpu": "1", "memory": "1Gi" });
        let cases = [
            (json!([{}]), QosClass::BestEffort),
            (json!([{ "requests": { "cpu": "0" } }]), QosClass::BestEffort),
            (json!([{ "requests": { "cpu": "100m" } }]), QosClass::Burstable),
            (json!([{ "limits": both, "requests": both }]), QosClass::Guaranteed),
            (json!([{ "limits": both, "requests": { "cpu": "1000m", "memory": "1024Mi" } }]), QosClass::Guaranteed),
            (json!([{ "limits": both }]), QosClass::Guaranteed),
            (json!([{ "limits": both }, {}]), QosClass::Burstable),
            (json!([{ "limits": { "cpu": "1" } }]), QosClass::Burstable),
            (json!([{ "limits": { "nvidia.com/gpu": "1" } }]), QosClass::BestEffort),
        ];
        for (resources, expected) in cases {
            let containers: Vec<_> =
                resources.as_array().unwrap().iter().map(|r| json!({ "name": "c", "resources": r })).collect();
            let pod: Pod = serde_json::from_value(json!({ "spec": { "containers": containers } })).unwrap();
            assert_eq!(qos_class(&pod), expected, "{resources}");
        }
    }
}
