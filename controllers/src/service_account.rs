//! Keeps the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt` in every active namespace.
//!
//! Watches Namespaces, ServiceAccounts and ConfigMaps. Owns those two objects: they are made again when they are deleted, and
//! the ConfigMap's data is put right when it was changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::LoopContext;
use crate::shared::error::{Doing, is_already_exists, is_namespace_terminating, is_not_found};
use crate::shared::meta::{is_deleting, name, namespace};
use crate::shared::{Change, ControllerError, Informer, Next, ObjectKey, WorkQueue, run_workers};

/// The loop's name.
pub const LOOP: &str = "serviceaccount-controller";

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_FIELD: &str = "ca.crt";
/// The annotation by which Kubernetes explains the ConfigMap.
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal \
     service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
);

struct Controller {
    client: Client,
    namespaces: Arc<Informer<Namespace>>,
    accounts: Arc<Informer<ServiceAccount>>,
    config_maps: Arc<Informer<ConfigMap>>,
    /// The CA of the API server, PEM; without one no ConfigMap is written.
    root_ca: Option<String>,
}

/// Starts the loop. Keys are names of namespaces.
pub fn start(context: LoopContext) -> BoxFuture<'static, ()> {
    let queue: Arc<WorkQueue<String>> = WorkQueue::new(LOOP, context.seed);
    let controller = Arc::new(Controller {
        client: context.client,
        namespaces: context.informers.get(),
        accounts: context.informers.get(),
        config_maps: context.informers.get(),
        root_ca: context.config.root_ca,
    });
    let added = queue.clone();
    controller.namespaces.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            added.add(name(&change.object().metadata).to_owned());
        }
    });
    let added = queue.clone();
    controller.accounts.on_change(move |change| {
        if let Change::Deleted(account) = change
            && name(&account.metadata) == ACCOUNT
        {
            added.add(namespace(&account.metadata).to_owned());
        }
    });
    let added = queue.clone();
    controller.config_maps.on_change(move |change| {
        if name(&change.object().metadata) == ROOT_CA {
            added.add(namespace(&change.object().metadata).to_owned());
        }
    });
    let (workers, shutdown) = (context.config.workers, context.shutdown);
    Box::pin(async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = async {
                tokio::join!(controller.namespaces.synced(), controller.accounts.synced(), controller.config_maps.synced());
            } => {}
        }
        run_workers(queue, workers, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.pass(&key).await }
        })
        .await;
    })
}

/// Whether the namespace takes new objects.
fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    !is_deleting(&namespace.metadata) && phase != Some("Terminating")
}

fn root_ca_map(namespace: &str, pem: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(ROOT_CA.to_owned()),
            namespace: Some(namespace.to_owned()),
            annotations: Some(BTreeMap::from([(DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(ROOT_CA_FIELD.to_owned(), pem.to_owned())])),
        ..ConfigMap::default()
    }
}

impl Controller {
    async fn pass(&self, namespace: &str) -> Result<Next, ControllerError> {
        let Some(object) = self.namespaces.get(&ObjectKey::new("", namespace)) else { return Ok(Next::Done) };
        if !is_active(&object) {
            return Ok(Next::Done);
        }
        self.ensure_account(namespace).await?;
        if let Some(pem) = &self.root_ca {
            self.ensure_root_ca(namespace, pem).await?;
        }
        Ok(Next::Done)
    }

    async fn ensure_account(&self, namespace: &str) -> Result<(), ControllerError> {
        if self.accounts.get(&ObjectKey::new(namespace, ACCOUNT)).is_some() {
            return Ok(());
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(ACCOUNT.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        made(api.create(&PostParams::default(), &account).await, || format!("making the service account of {namespace}"))
    }

    async fn ensure_root_ca(&self, namespace: &str, pem: &str) -> Result<(), ControllerError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let wanted = root_ca_map(namespace, pem);
        let doing = || format!("writing ConfigMap {namespace}/{ROOT_CA}");
        match self.config_maps.get(&ObjectKey::new(namespace, ROOT_CA)) {
            None => made(api.create(&PostParams::default(), &wanted).await, doing),
            Some(current) if current.data == wanted.data => Ok(()),
            Some(current) => {
                let mut annotations = current.metadata.annotations.clone().unwrap_or_default();
                annotations.extend(wanted.metadata.annotations.unwrap_or_default());
                let metadata = ObjectMeta { annotations: Some(annotations), ..current.metadata.clone() };
                let changed = ConfigMap { metadata, data: wanted.data, ..(*current).clone() };
                made(api.replace(ROOT_CA, &PostParams::default(), &changed).await, doing)
            }
        }
    }
}

/// A namespace that goes away, or an object that is there already or was just deleted, needs nothing: its change is seen later.
fn made<T>(outcome: Result<T, kube::Error>, doing: impl FnOnce() -> String) -> Result<(), ControllerError> {
    match outcome {
        Err(failure) if is_already_exists(&failure) || is_namespace_terminating(&failure) || is_not_found(&failure) => Ok(()),
        outcome => outcome.map(drop).doing(doing),
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use crate::shared::fake_api::FakeApi;
    use crate::shared::test_loop::Running;

    #[tokio::test(start_paused = true)]
    async fn active_namespaces_have_both_objects_again_and_again() {
        let api = FakeApi::default();
        let namespace = |name: &str, phase: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "status": {"phase": phase}});
        api.add(namespace("n", "Active"));
        api.add(namespace("going", "Terminating"));
        api.fail(Method::POST, "/serviceaccounts", 500, 2);
        let running = Running::start_with(&api, super::LOOP, super::start, |config| config.root_ca = Some("PEM".to_owned()));
        let complete = |api: &FakeApi| {
            api.get("serviceaccounts", "default").is_some()
                && api.get("configmaps", "kube-root-ca.crt").is_some_and(|map| map["data"] == json!({"ca.crt": "PEM"}))
        };
        api.until("made", complete).await;
        api.delete("serviceaccounts", "default", "Background");
        api.edit("configmaps", "kube-root-ca.crt", |map| map["data"] = json!({"ca.crt": "other"}));
        api.until("put right", complete).await;
        api.delete("configmaps", "kube-root-ca.crt", "Background");
        api.until("made again", complete).await;
        let places: Vec<_> = ["serviceaccounts", "configmaps"].iter().flat_map(|plural| api.list(plural)).collect();
        assert!(places.iter().all(|object| object["metadata"]["namespace"] == "n"), "{places:?}");
        assert_eq!(places.len(), 2);
        running.stop().await;
    }
}
