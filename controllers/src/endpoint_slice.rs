//! Keeps the EndpointSlices of each Service that has a selector.
//!
//! Watches Services, Pods, Nodes (for their zones) and EndpointSlices. Owns the slices that carry its name in the label
//! `endpointslice.kubernetes.io/managed-by`.

mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::LoopContext;
use crate::endpoints::backends::{TriggerTimes, selector, selects, services_of};
use crate::shared::error::{Doing, is_namespace_terminating, is_not_found};
use crate::shared::meta::{is_deleting, name, namespace, uid};
use crate::shared::{Change, ControllerError, Informer, Next, ObjectKey, WorkQueue, run_workers};
use plan::{MANAGED_BY, MANAGER, Plan, SERVICE_NAME};

/// The loop's name.
pub const LOOP: &str = "endpoint-slice-controller";

/// How soon to look again where a write has not come back through the watch, if no change tells before.
const RECHECK: Duration = Duration::from_secs(1);
/// After this long a write that has not come back is no longer waited for: the slice may have been deleted at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon to look again for a node that a pod is on and that is not known yet.
const NODE_RECHECK: Duration = Duration::from_secs(5);

/// What a write left behind.
enum Written {
    At(u64),
    Gone,
}

/// Writes to the slices of one Service that the cache may not show yet.
struct Outstanding {
    since: Instant,
    slices: HashMap<String, Written>,
}

struct Controller {
    client: Client,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    slices: Arc<Informer<EndpointSlice>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    triggers: Mutex<TriggerTimes>,
    outstanding: Mutex<HashMap<ObjectKey, Outstanding>>,
}

/// Starts the loop.
pub fn start(context: LoopContext) -> BoxFuture<'static, ()> {
    let controller = Arc::new(Controller {
        client: context.client,
        services: context.informers.get(),
        pods: context.informers.get(),
        nodes: context.informers.get(),
        slices: context.informers.get(),
        queue: WorkQueue::new(LOOP, context.seed),
        triggers: Mutex::default(),
        outstanding: Mutex::default(),
    });
    listen(&controller);
    let (workers, shutdown) = (context.config.workers, context.shutdown);
    Box::pin(async move {
        let synced = async {
            tokio::join!(
                controller.services.synced(),
                controller.pods.synced(),
                controller.nodes.synced(),
                controller.slices.synced()
            );
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = synced => {}
        }
        let queue = controller.queue.clone();
        run_workers(queue, workers, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.pass(&key).await }
        })
        .await;
    })
}

fn listen(controller: &Arc<Controller>) {
    let queue = controller.queue.clone();
    controller.services.on_change(move |change| queue.add(ObjectKey::of(&**change.object())));
    let (queue, services) = (controller.queue.clone(), Arc::downgrade(&controller.services));
    controller.pods.on_change(move |change| {
        for service in services.upgrade().iter().flat_map(|services| services_of(services, change)) {
            queue.add(service);
        }
    });
    let queue = controller.queue.clone();
    controller.slices.on_change(move |change| {
        if let Some(service) = service_of(change.object()) {
            queue.add(service);
        }
    });
    let (queue, services) = (controller.queue.clone(), Arc::downgrade(&controller.services));
    controller.nodes.on_change(move |change| {
        if let Change::Updated { old, new } = change
            && zone(old) != zone(new)
        {
            for service in services.upgrade().iter().flat_map(|services| services.list()) {
                queue.add(ObjectKey::of(&*service));
            }
        }
    });
}

/// The Service of a slice of ours.
fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    let service = labels.get(SERVICE_NAME).filter(|_| labels.get(MANAGED_BY).is_some_and(|manager| manager == MANAGER))?;
    Some(ObjectKey::new(namespace(&slice.metadata), service.clone()))
}

fn zone(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned()
}

fn revision(slice: &EndpointSlice) -> u64 {
    slice.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

impl Controller {
    async fn pass(&self, key: &ObjectKey) -> Result<Next, ControllerError> {
        let Some(service) = self.services.get(key) else {
            // The garbage collector takes the slices: the Service owns them.
            self.triggers.lock().forget(key);
            self.outstanding.lock().remove(key);
            return Ok(Next::Done);
        };
        if selector(&service).is_none() || is_deleting(&service.metadata) {
            return Ok(Next::Done);
        }
        let slices = self.slices.list_in(&key.namespace);
        let slices: Vec<Arc<EndpointSlice>> =
            slices.into_iter().filter(|slice| service_of(slice).as_ref() == Some(key)).collect();
        if !self.settled(key) {
            return Ok(Next::After(RECHECK));
        }
        let pods = self.pods.list_in(&key.namespace);
        let pods: Vec<Arc<Pod>> = pods.into_iter().filter(|pod| selects(&service, pod.metadata.labels.as_ref())).collect();
        let trigger = self.triggers.lock().observe(key, &service, &pods);
        let unknown_node = std::cell::Cell::new(false);
        let desired = plan::desired(&service, &pods, |node| {
            let node = self.nodes.get(&ObjectKey::new("", node));
            unknown_node.set(unknown_node.get() || node.is_none());
            node.and_then(|node| zone(&node))
        });
        let next = if unknown_node.get() { Next::After(NODE_RECHECK) } else { Next::Done };
        self.carry_out(key, plan::plan(&service, &slices, desired, trigger)).await?;
        Ok(next)
    }

    /// Whether the cache shows everything that was written: a plan made without would write it twice.
    fn settled(&self, key: &ObjectKey) -> bool {
        let mut outstanding = self.outstanding.lock();
        let Some(writes) = outstanding.get_mut(key) else { return true };
        writes.slices.retain(|slice, written| {
            let cached = self.slices.get(&ObjectKey::new(key.namespace.clone(), slice.clone()));
            match written {
                Written::At(version) => cached.is_none_or(|slice| revision(&slice) < *version),
                Written::Gone => cached.is_some_and(|slice| !is_deleting(&slice.metadata)),
            }
        });
        let settled = writes.slices.is_empty() || writes.since.elapsed() > PATIENCE;
        if settled {
            outstanding.remove(key);
        }
        settled
    }

    fn note(&self, key: &ObjectKey, slice: &str, written: Written) {
        let mut outstanding = self.outstanding.lock();
        let writes =
            outstanding.entry(key.clone()).or_insert_with(|| Outstanding { since: Instant::now(), slices: HashMap::new() });
        writes.slices.insert(slice.to_owned(), written);
    }

    async fn carry_out(&self, key: &ObjectKey, plan: Plan) -> Result<(), ControllerError> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        // An endpoint is in two slices for a moment rather than in none.
        for slice in &plan.create {
            match api.create(&PostParams::default(), slice).await {
                Ok(created) => self.note(key, name(&created.metadata), Written::At(revision(&created))),
                Err(failure) if is_namespace_terminating(&failure) => return Ok(()),
                Err(failure) => return Err(failure).doing(|| format!("creating a slice of {key}")),
            }
        }
        for slice in &plan.update {
            let slice_name = name(&slice.metadata);
            let updated = api.replace(slice_name, &PostParams::default(), slice).await;
            let updated = updated.doing(|| format!("updating slice {slice_name} of {key}"))?;
            self.note(key, slice_name, Written::At(revision(&updated)));
        }
        for slice in &plan.delete {
            let slice_name = name(&slice.metadata);
            let only_this_one = Preconditions { uid: Some(uid(&slice.metadata).to_owned()), resource_version: None };
            match api.delete(slice_name, &DeleteParams::default().preconditions(only_this_one)).await {
                Err(failure) if is_not_found(&failure) => {}
                outcome => {
                    outcome.map(drop).doing(|| format!("deleting slice {slice_name} of {key}"))?;
                    self.note(key, slice_name, Written::Gone);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use crate::endpoints::backends::samples::{pod_json, service};
    use crate::shared::fake_api::{FakeApi, Stall};
    use crate::shared::test_loop::{Running, node};

    fn addresses(api: &FakeApi) -> usize {
        let slices = api.list("endpointslices");
        slices.iter().filter_map(|slice| slice["endpoints"].as_array()).map(Vec::len).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn slices_follow_the_pods_through_slow_caches() {
        let api = FakeApi::default();
        api.fail(Method::POST, "/endpointslices", 500, 1);
        api.add(node("node", json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "zone-a"}}})));
        let running = Running::start(&api, super::LOOP, super::start);
        let mut object = serde_json::to_value(service(Value::Null)).unwrap();
        object["kind"] = json!("Service");
        api.add(object);
        api.until("an empty slice", |api| api.list("endpointslices").len() == 1).await;
        api.stall("endpointslices", Stall::Hold);
        for number in 1..=3 {
            api.add(pod_json(&format!("p{number}"), &format!("10.1.0.{number}"), Value::Null));
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        api.stall("endpointslices", Stall::Flow);
        api.until("three", |api| addresses(api) == 3 && api.list("endpointslices").len() == 1).await;
        assert_eq!(api.list("endpointslices")[0]["endpoints"][0]["zone"], "zone-a");
        let name = api.list("endpointslices")[0]["metadata"]["name"].as_str().unwrap().to_owned();
        api.delete("endpointslices", &name, "Background");
        api.until("made again", |api| addresses(api) == 3).await;
        api.edit("nodes", "node", |node| node["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": "zone-b"}));
        api.until("the zone follows", |api| api.list("endpointslices")[0]["endpoints"][0]["zone"] == "zone-b").await;
        running.stop().await;
    }
}
