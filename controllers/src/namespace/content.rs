//! Deletes everything in a namespace and reports what is left.

use kube::api::{DeleteParams, DynamicObject, ListParams, PartialObjectMeta};
use kube::core::ApiResource;
use kube::{Api, Client};

use super::report::Report;
use crate::shared::discovery::{Discovered, Discovery, Scope};
use crate::shared::error::{is_method_not_allowed, is_not_found};
use crate::shared::meta::name;

/// Objects listed in one request.
const PAGE: u32 = 500;

/// Asks for the deletion of everything in the namespace and counts what remains. Pods go first, and nothing else before they are
/// gone: they may still need their Secrets, ConfigMaps and network policies while they stop.
pub async fn delete_all(client: &Client, namespace: &str, discovery: &Discovery) -> Report {
    let mut report = Report {
        discovery_failures: discovery.failures.iter().map(|(version, failure)| format!("{version}: {failure}")).collect(),
        ..Report::default()
    };
    let deletable = |found: &&Discovered| found.scope == Scope::Namespaced && found.supports("delete") && found.supports("list");
    let (pods, others): (Vec<&Discovered>, Vec<&Discovered>) = discovery
        .resources
        .iter()
        .filter(deletable)
        .partition(|found| found.resource.group.is_empty() && found.resource.plural == "pods");
    for found in pods {
        delete_resource(client, namespace, found, &mut report).await;
    }
    if report.remaining.is_empty() && report.failures.is_empty() {
        for found in others {
            delete_resource(client, namespace, found, &mut report).await;
        }
    }
    report
}

async fn delete_resource(client: &Client, namespace: &str, found: &Discovered, report: &mut Report) {
    let resource = &found.resource;
    if let Err(failure) = try_delete_resource(client, namespace, found, report).await {
        // A resource that is served no more has no content.
        if !is_not_found(&failure) && !is_method_not_allowed(&failure) {
            report.failures.push(format!("{}: {}", title(resource), crate::shared::error::message(&failure)));
        }
    }
}

async fn try_delete_resource(
    client: &Client,
    namespace: &str,
    found: &Discovered,
    report: &mut Report,
) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &found.resource);
    let objects = list(&api).await?;
    if objects.is_empty() {
        return Ok(());
    }
    let background = DeleteParams::background();
    let mut collectively = found.supports("deletecollection");
    if collectively && let Err(failure) = api.delete_collection(&background, &ListParams::default()).await {
        if !is_method_not_allowed(&failure) {
            return Err(failure);
        }
        collectively = false;
    }
    if !collectively {
        for object in &objects {
            match api.delete(name(&object.metadata), &background).await {
                Err(failure) if !is_not_found(&failure) => return Err(failure),
                _ => {}
            }
        }
    }
    let remaining = list(&api).await?;
    let finalizers = remaining.iter().flat_map(|object| object.metadata.finalizers.clone().unwrap_or_default());
    report.note_remaining(title(&found.resource), remaining.len(), finalizers);
    Ok(())
}

async fn list(api: &Api<DynamicObject>) -> Result<Vec<PartialObjectMeta<DynamicObject>>, kube::Error> {
    let mut objects = Vec::new();
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let page = api.list_metadata(&parameters).await?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(objects),
        }
    }
}

/// `pods.` or `deployments.apps`: plural and group, as Kubernetes' conditions name resources.
fn title(resource: &ApiResource) -> String {
    format!("{}.{}", resource.plural, resource.group)
}
