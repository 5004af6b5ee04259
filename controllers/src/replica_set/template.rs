//! A pod from an owner's template.

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::owner::ReplicaOwner;
use crate::shared::claim::controller_reference;
use crate::shared::meta::name;

/// The longest `generateName` that leaves room for the random suffix of five characters: the pod's name is also its host name,
/// but the name itself may be as long as a DNS subdomain.
const MAX_NAME_LENGTH: usize = 253;

/// The pod to create: the template's labels, annotations, finalizers and spec, a generated name and a controller reference.
pub fn pod_from_template<O: ReplicaOwner>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    let owner_name = name(owner.meta());
    let prefix = if owner_name.len() < MAX_NAME_LENGTH { format!("{owner_name}-") } else { owner_name.to_owned() };
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(prefix),
            namespace: owner.meta().namespace.clone(),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    #[test]
    fn a_pod_takes_its_template_and_its_owners_reference() {
        let owner: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "web-5d8", "namespace": "shop", "uid": "u1", "labels": {"not": "copied"}},
            "spec": {"selector": {}, "template": {
                "metadata": {"labels": {"app": "web"}, "annotations": {"a": "b"}, "name": "ignored"},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}},
        }))
        .unwrap();
        let pod = pod_from_template(&owner, owner.template().unwrap());
        assert_eq!(
            serde_json::to_value(pod).unwrap(),
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"generateName": "web-5d8-", "namespace": "shop", "labels": {"app": "web"}, "annotations": {"a": "b"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d8", "uid": "u1",
                        "controller": true, "blockOwnerDeletion": true}]},
                "spec": {"containers": [{"name": "c", "image": "i"}]}})
        );
    }
}
