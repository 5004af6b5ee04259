//! Keeps an Endpoints object for each Service that has a selector.
//!
//! Watches Services, Pods and Endpoints. Owns the Endpoints of Services with a selector; those of Services without one are the
//! users' own.

pub mod backends;
mod subsets;

use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;

use crate::LoopContext;
use crate::shared::error::{Doing, is_namespace_terminating, is_not_found};
use crate::shared::meta::{is_deleting, uid};
use crate::shared::{Change, ControllerError, Informer, Next, ObjectKey, WorkQueue, run_workers};
use backends::{TriggerTimes, labels, selector, selects, services_of, set_trigger};
use subsets::{Capacity, subsets, truncate};

/// The loop's name.
pub const LOOP: &str = "endpoint-controller";

/// The label that names this loop, and its value.
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", LOOP);
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Endpoints with this annotation are locks of leader elections, not addresses.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

struct Controller {
    client: Client,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    endpoints: Arc<Informer<Endpoints>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    triggers: Mutex<TriggerTimes>,
}

/// Starts the loop.
pub fn start(context: LoopContext) -> BoxFuture<'static, ()> {
    let controller = Arc::new(Controller {
        client: context.client,
        services: context.informers.get(),
        pods: context.informers.get(),
        endpoints: context.informers.get(),
        queue: WorkQueue::new(LOOP, context.seed),
        triggers: Mutex::default(),
    });
    let queue = controller.queue.clone();
    controller.services.on_change(move |change| queue.add(ObjectKey::of(&**change.object())));
    let (queue, services) = (controller.queue.clone(), Arc::downgrade(&controller.services));
    controller.pods.on_change(move |change| {
        for service in services.upgrade().iter().flat_map(|services| services_of(services, change)) {
            queue.add(service);
        }
    });
    let queue = controller.queue.clone();
    controller.endpoints.on_change(move |change| {
        if let Change::Deleted(endpoints) = change {
            queue.add(ObjectKey::of(&**endpoints));
        }
    });
    let (workers, shutdown) = (context.config.workers, context.shutdown);
    Box::pin(async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = async {
                tokio::join!(controller.services.synced(), controller.pods.synced(), controller.endpoints.synced());
            } => {}
        }
        // What was left over while no controller ran.
        for endpoints in controller.endpoints.list() {
            controller.queue.add(ObjectKey::of(&*endpoints));
        }
        let queue = controller.queue.clone();
        run_workers(queue, workers, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.pass(&key).await }
        })
        .await;
    })
}

/// The Endpoints for a Service with these pods, on top of what is there.
fn desired(service: &Service, pods: &[Arc<Pod>], current: Option<&Endpoints>, trigger: Option<Timestamp>) -> Endpoints {
    let mut subsets = subsets(service, pods);
    let capacity = truncate(&mut subsets);
    let mut metadata = match current {
        Some(current) => current.metadata.clone(),
        None => ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
    };
    metadata.labels = Some(labels(service, &[MANAGED_BY]));
    set_trigger(&mut metadata, trigger);
    let annotations = metadata.annotations.get_or_insert_default();
    match capacity {
        Capacity::Truncated => annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned()),
        Capacity::Within => annotations.remove(OVER_CAPACITY),
    };
    metadata.annotations.take_if(|annotations| annotations.is_empty());
    Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) }
}

/// Whether a write is worth it: a new trigger time alone is not.
fn differs(current: &Endpoints, desired: &Endpoints) -> bool {
    let over = |endpoints: &Endpoints| {
        endpoints.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(OVER_CAPACITY))
    };
    let full = |endpoints: &Endpoints| endpoints.subsets.clone().unwrap_or_default();
    full(current) != full(desired) || current.metadata.labels != desired.metadata.labels || over(current) != over(desired)
}

impl Controller {
    async fn pass(&self, key: &ObjectKey) -> Result<Next, ControllerError> {
        let current = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            self.triggers.lock().forget(key);
            return self.remove(key, current.as_deref()).await;
        };
        if selector(&service).is_none() || is_deleting(&service.metadata) {
            return Ok(Next::Done);
        }
        let pods = self.pods.list_in(&key.namespace);
        let pods: Vec<Arc<Pod>> = pods.into_iter().filter(|pod| selects(&service, pod.metadata.labels.as_ref())).collect();
        let trigger = self.triggers.lock().observe(key, &service, &pods);
        let desired = desired(&service, &pods, current.as_deref(), trigger);
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let written = match &current {
            Some(current) if !differs(current, &desired) => return Ok(Next::Done),
            Some(_) => api.replace(&key.name, &PostParams::default(), &desired).await,
            None => api.create(&PostParams::default(), &desired).await,
        };
        match written {
            Err(failure) if is_namespace_terminating(&failure) => Ok(Next::Done),
            outcome => outcome.map(|_| Next::Done).doing(|| format!("writing Endpoints {key}")),
        }
    }

    /// The Service is gone, and its Endpoints with it.
    async fn remove(&self, key: &ObjectKey, current: Option<&Endpoints>) -> Result<Next, ControllerError> {
        let Some(current) = current else { return Ok(Next::Done) };
        if current.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER)) {
            return Ok(Next::Done);
        }
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let only_this_one = Preconditions { uid: Some(uid(&current.metadata).to_owned()), resource_version: None };
        match api.delete(&key.name, &DeleteParams::default().preconditions(only_this_one)).await {
            Err(failure) if is_not_found(&failure) => Ok(Next::Done),
            outcome => outcome.map(|_| Next::Done).doing(|| format!("deleting Endpoints {key}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use super::backends::samples::{not_ready, pod_json, service};
    use crate::shared::fake_api::FakeApi;
    use crate::shared::test_loop::Running;

    fn counts(api: &FakeApi) -> (usize, usize) {
        let endpoints = api.get("endpoints", "web").unwrap_or_default();
        let size = |field: &str| endpoints["subsets"][0][field].as_array().map_or(0, Vec::len);
        (size("addresses"), size("notReadyAddresses"))
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_follow_the_pods_and_the_service() {
        let api = FakeApi::default();
        api.fail(Method::POST, "/endpoints", 500, 1);
        api.add(pod_json("a", "10.1.0.1", Value::Null));
        let running = Running::start(&api, super::LOOP, super::start);
        let mut object = serde_json::to_value(service(json!({"metadata": {"labels": {"team": "t"}}}))).unwrap();
        object["kind"] = json!("Service");
        api.add(object);
        api.until("one ready", |api| counts(api) == (1, 0)).await;
        api.add(pod_json("b", "10.1.0.2", not_ready()));
        api.until("one not ready", |api| counts(api) == (1, 1)).await;
        api.edit("pods", "a", |pod| pod["metadata"]["labels"] = json!({"app": "other"}));
        api.until("one left", |api| counts(api) == (0, 1)).await;
        let written = api.get("endpoints", "web").unwrap();
        assert_eq!(
            written["metadata"]["labels"],
            json!({"team": "t", "endpoints.kubernetes.io/managed-by": "endpoint-controller"})
        );
        assert!(written["metadata"]["annotations"].is_null() || written["metadata"]["annotations"].is_object());
        api.delete("endpoints", "web", "Background");
        api.until("made again", |api| counts(api) == (0, 1)).await;
        api.delete("services", "web", "Background");
        api.until("gone", |api| api.get("endpoints", "web").is_none()).await;
        running.stop().await;
    }
}
