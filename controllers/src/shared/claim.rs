//! Which objects a controller owns: those with its controller reference that its selector matches. It adopts orphans that match
//! and releases what no longer does (Kubernetes' `ControllerRefManager`).

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, OwnerReference};
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::ControllerError;
use super::error::{Doing, is_invalid, is_not_found};
use super::meta::{controller_of, is_deleting, name, uid};

/// Whether a selector matches labels. An empty selector matches everything, as in Kubernetes; an operator that does not exist
/// matches nothing.
pub fn selector_matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    selector.match_labels.iter().flatten().all(|(key, wanted)| value(key) == Some(wanted))
        && selector
            .match_expressions
            .iter()
            .flatten()
            .all(|requirement| requirement_matches(requirement, value(&requirement.key)))
}

fn requirement_matches(requirement: &LabelSelectorRequirement, value: Option<&String>) -> bool {
    let listed = |value: &String| requirement.values.iter().flatten().any(|wanted| wanted == value);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// Whether a selector has no terms at all.
pub fn selector_is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.iter().flatten().next().is_none() && selector.match_expressions.iter().flatten().next().is_none()
}

/// What is to be done with the candidates of one owner.
#[derive(Debug)]
pub struct Claim<T> {
    /// Owned already and still matched.
    pub owned: Vec<Arc<T>>,
    /// Orphans that match, to be adopted.
    pub adopt: Vec<Arc<T>>,
    /// Owned but no longer matched, to be released.
    pub release: Vec<Arc<T>>,
}

/// Sorts candidates. An owner that is being deleted neither adopts nor releases.
pub fn sort_candidates<T: Resource>(
    owner_uid: &str,
    owner_deleting: bool,
    selector: &LabelSelector,
    candidates: impl IntoIterator<Item = Arc<T>>,
) -> Claim<T> {
    let mut claim = Claim { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    for candidate in candidates {
        let meta = candidate.meta();
        let matches = selector_matches(selector, meta.labels.as_ref());
        match controller_of(meta) {
            Some(controller) if controller.uid != owner_uid => {}
            Some(_) if matches => claim.owned.push(candidate),
            Some(_) if !owner_deleting => claim.release.push(candidate),
            Some(_) => {}
            None if matches && !owner_deleting && !is_deleting(meta) => claim.adopt.push(candidate),
            None => {}
        }
    }
    claim
}

/// The controller reference an owner puts on what it makes or adopts.
pub fn controller_reference<O: Resource<DynamicType = ()>>(owner: &O) -> OwnerReference {
    OwnerReference {
        api_version: O::api_version(&()).into_owned(),
        kind: O::kind(&()).into_owned(),
        name: name(owner.meta()).to_owned(),
        uid: uid(owner.meta()).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Carries a [`Claim`] out and returns what is owned afterwards. Before it adopts anything it reads the owner anew: one that is
/// gone, replaced or being deleted must not adopt.
pub async fn claim<O, T>(owner: &O, owners: &Api<O>, dependents: &Api<T>, claim: Claim<T>) -> Result<Vec<Arc<T>>, ControllerError>
where
    O: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    T: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut owned = claim.owned;
    for object in claim.release {
        release(owner, dependents, &object).await?;
    }
    if claim.adopt.is_empty() {
        return Ok(owned);
    }
    let owner_name = name(owner.meta());
    let fresh = owners.get(owner_name).await.doing(|| format!("reading {owner_name} before adoption"))?;
    if fresh.meta().uid != owner.meta().uid {
        return Err(ControllerError::NotReady(format!("{owner_name} was replaced by another object of its name")));
    }
    if is_deleting(fresh.meta()) {
        return Ok(owned);
    }
    for object in claim.adopt {
        let patch = json!({"metadata": {"uid": uid(object.meta()), "ownerReferences": [controller_reference(owner)]}});
        match dependents.patch(name(object.meta()), &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(adopted) => owned.push(Arc::new(adopted)),
            Err(failure) if is_not_found(&failure) => {}
            failure => drop(failure.doing(|| format!("adopting {}", name(object.meta())))?),
        }
    }
    Ok(owned)
}

async fn release<O, T>(owner: &O, dependents: &Api<T>, object: &T) -> Result<(), ControllerError>
where
    O: Resource<DynamicType = ()>,
    T: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let patch = json!({"metadata": {"uid": uid(object.meta()),
        "ownerReferences": [{"$patch": "delete", "uid": uid(owner.meta())}]}});
    match dependents.patch(name(object.meta()), &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(()),
        // Gone, or another object by now (its UID differs), or no longer ours: nothing to release.
        Err(failure) if is_not_found(&failure) || is_invalid(&failure) || super::error::is_conflict(&failure) => Ok(()),
        Err(failure) => Err(failure).doing(|| format!("releasing {}", name(object.meta()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn selector(value: serde_json::Value) -> LabelSelector {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn selectors_match_as_kubernetes_documents() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "front".to_owned())]);
        let term = |key: &str, operator: &str, values: &[&str]| {
            selector(json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}))
        };
        let cases = [
            (selector(json!({})), true),
            (selector(json!({"matchLabels": {"app": "web"}})), true),
            (selector(json!({"matchLabels": {"app": "db"}})), false),
            (term("app", "In", &["web", "db"]), true),
            (term("app", "In", &["db"]), false),
            (term("zone", "In", &["a"]), false),
            (term("app", "NotIn", &["db"]), true),
            (term("app", "NotIn", &["web"]), false),
            (term("zone", "NotIn", &["a"]), true),
            (term("tier", "Exists", &[]), true),
            (term("zone", "Exists", &[]), false),
            (term("tier", "DoesNotExist", &[]), false),
            (term("zone", "DoesNotExist", &[]), true),
            (term("tier", "Whatever", &[]), false),
        ];
        for (selector, expected) in cases {
            assert_eq!(selector_matches(&selector, Some(&labels)), expected, "{selector:?}");
        }
        assert!(!selector_matches(&selector(json!({"matchLabels": {"app": "web"}})), None));
    }

    #[test]
    fn candidates_are_owned_adopted_released_or_left_alone() {
        let pod = |name: &str, app: &str, controller: Option<&str>, deleting: bool| {
            let owners: Vec<_> = controller
                .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": uid, "controller": true}))
                .into_iter()
                .collect();
            let deletion = deleting.then_some("2026-01-01T00:00:00Z");
            let value = json!({"metadata": {"name": name, "labels": {"app": app}, "ownerReferences": owners,
                "deletionTimestamp": deletion}});
            Arc::new(serde_json::from_value::<Pod>(value).unwrap())
        };
        let candidates = || {
            [
                pod("mine", "web", Some("me"), false),
                pod("relabelled", "db", Some("me"), false),
                pod("orphan", "web", None, false),
                pod("orphan-leaving", "web", None, true),
                pod("stranger", "db", None, false),
                pod("others", "web", Some("other"), false),
            ]
        };
        let names = |objects: &[Arc<Pod>]| objects.iter().map(|pod| name(&pod.metadata).to_owned()).collect::<Vec<_>>();
        let web = selector(json!({"matchLabels": {"app": "web"}}));

        let claim = sort_candidates("me", false, &web, candidates());
        assert_eq!(names(&claim.owned), ["mine"]);
        assert_eq!(names(&claim.adopt), ["orphan"]);
        assert_eq!(names(&claim.release), ["relabelled"]);

        let claim = sort_candidates("me", true, &web, candidates());
        assert_eq!(names(&claim.owned), ["mine"]);
        assert!(claim.adopt.is_empty() && claim.release.is_empty());
    }
}
