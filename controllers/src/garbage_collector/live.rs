//! Live reads and writes of any object, by its identity.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::ApiResource;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::graph::Identity;
use crate::shared::ControllerError;
use crate::shared::discovery::{Discovery, Scope};
use crate::shared::error::{Doing, is_not_found};

/// What is known about resources, and a client to reach their objects.
pub struct Live {
    pub client: Client,
    pub discovery: Mutex<Discovery>,
}

impl Live {
    /// The resource of a kind and where its objects live. Unknown kinds are an error, never "absent": the resource may be served
    /// again, or its group may just be unreachable.
    pub fn resource(&self, api_version: &str, kind: &str) -> Result<(ApiResource, Scope), ControllerError> {
        let discovery = self.discovery.lock();
        let found = discovery.of_kind(api_version, kind);
        let found =
            found.ok_or_else(|| ControllerError::NotReady(format!("no resource is known for {kind} in {api_version}")))?;
        Ok((found.resource.clone(), found.scope))
    }

    fn api(&self, identity: &Identity) -> Result<Api<DynamicObject>, ControllerError> {
        let (resource, scope) = self.resource(&identity.api_version, &identity.kind)?;
        Ok(match scope {
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), &identity.namespace, &resource),
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
        })
    }

    /// The metadata of the object that has this name now; `None` if there is none. Its UID may be another.
    pub async fn metadata(&self, identity: &Identity) -> Result<Option<ObjectMeta>, ControllerError> {
        let found = self.api(identity)?.get_metadata_opt(&identity.name).await;
        let found = found.doing(|| format!("reading {} {}", identity.kind, identity.name))?;
        Ok(found.map(|object| object.metadata))
    }

    /// Deletes exactly the object that was read as `latest`: not another of its name, and not if it changed since.
    pub async fn delete(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
        policy: PropagationPolicy,
    ) -> Result<(), ControllerError> {
        let unchanged = Preconditions { uid: Some(identity.uid.clone()), resource_version: latest.resource_version.clone() };
        let parameters = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() }.preconditions(unchanged);
        match self.api(identity)?.delete(&identity.name, &parameters).await {
            Err(failure) if is_not_found(&failure) => Ok(()),
            outcome => outcome.map(drop).doing(|| format!("deleting {} {}", identity.kind, identity.name)),
        }
    }

    /// Replaces the owner references of the object that was read as `latest`.
    pub async fn set_owners(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
        owners: &[OwnerReference],
    ) -> Result<(), ControllerError> {
        self.patch_metadata(identity, latest, "ownerReferences", json!(owners)).await
    }

    /// Removes a finalizer from the object, if it is still the same object and has it.
    pub async fn remove_finalizer(&self, identity: &Identity, finalizer: &str) -> Result<(), ControllerError> {
        let Some(latest) = self.metadata(identity).await?.filter(|latest| latest.uid.as_ref() == Some(&identity.uid)) else {
            return Ok(());
        };
        let before = latest.finalizers.clone().unwrap_or_default();
        let after: Vec<&String> = before.iter().filter(|name| *name != finalizer).collect();
        if after.len() == before.len() {
            return Ok(());
        }
        self.patch_metadata(identity, &latest, "finalizers", json!(after)).await
    }

    /// A merge patch works on every kind, custom resources too; the resource version keeps it from undoing another's change.
    async fn patch_metadata(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
        field: &str,
        value: Value,
    ) -> Result<(), ControllerError> {
        let patch = json!({"metadata": {"uid": identity.uid, "resourceVersion": latest.resource_version, field: value}});
        match self.api(identity)?.patch_metadata(&identity.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(failure) if is_not_found(&failure) => Ok(()),
            outcome => outcome.map(drop).doing(|| format!("changing {field} of {} {}", identity.kind, identity.name)),
        }
    }
}
