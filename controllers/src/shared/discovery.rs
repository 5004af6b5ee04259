//! Which resources the API server has: the garbage collector and the namespace controller act on all of them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResource, APIResourceList};
use kube::Client;
use kube::core::ApiResource;

use super::ControllerError;
use super::error::Doing;

/// One resource in its group's preferred version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Discovered {
    pub resource: ApiResource,
    /// Whether its objects live in namespaces.
    pub scope: Scope,
    pub verbs: Vec<String>,
}

/// Where a resource's objects live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Namespaced,
    Cluster,
}

impl Discovered {
    pub fn supports(&self, verb: &str) -> bool {
        self.verbs.iter().any(|supported| supported == verb)
    }
}

/// What discovery found. Groups that could not be read are named, so that a caller can tell "there is none" from "I do not know".
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    pub resources: Vec<Discovered>,
    /// `group/version` and why it could not be read.
    pub failures: Vec<(String, String)>,
}

impl Discovery {
    /// The resource of a kind in the given `apiVersion`'s group; the version may be another one than the preferred.
    pub fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Discovered> {
        let group = group_of(api_version);
        self.resources.iter().find(|found| found.resource.group == group && found.resource.kind == kind)
    }
}

/// The group of an `apiVersion`: empty for `v1`.
pub fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Reads the discovery documents. Fails only when the list of groups itself cannot be read.
pub async fn discover(client: &Client) -> Result<Discovery, ControllerError> {
    let core = client.list_core_api_resources("v1").await.doing(|| "reading the core resources".into())?;
    let groups = client.list_api_groups().await.doing(|| "reading the API groups".into())?;
    let mut discovery = Discovery { resources: resources_of(&core), failures: Vec::new() };
    for version in groups.groups.iter().filter_map(preferred_version) {
        match client.list_api_group_resources(&version).await {
            Ok(list) => discovery.resources.extend(resources_of(&list)),
            Err(failure) => discovery.failures.push((version, failure.to_string())),
        }
    }
    Ok(discovery)
}

fn preferred_version(group: &APIGroup) -> Option<String> {
    let preferred = group.preferred_version.as_ref().or_else(|| group.versions.first())?;
    Some(preferred.group_version.clone())
}

/// The resources of one list, without sub-resources.
fn resources_of(list: &APIResourceList) -> Vec<Discovered> {
    list.resources
        .iter()
        .filter(|resource| !resource.name.contains('/'))
        .map(|resource| discovered(&list.group_version, resource))
        .collect()
}

fn discovered(group_version: &str, resource: &APIResource) -> Discovered {
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    Discovered {
        resource: ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: group_version.to_owned(),
            kind: resource.kind.clone(),
            plural: resource.name.clone(),
        },
        scope: if resource.namespaced { Scope::Namespaced } else { Scope::Cluster },
        verbs: resource.verbs.clone(),
    }
}
