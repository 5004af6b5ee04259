//! The loop itself: feeds the graph and works off what it asks for.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PropagationPolicy;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::decide::{Decision, Dependents, OwnerState, decide};
use super::graph::{FOREGROUND_FINALIZER, Graph, Identity, Node, ORPHAN_FINALIZER, Work};
use super::live::Live;
use super::monitors::{Monitors, Observer, Progress};
use crate::LoopContext;
use crate::shared::discovery::{Discovery, Scope, discover};
use crate::shared::{ControllerError, EventKind, Next, Recorder, WorkQueue, run_workers};

/// The loop's name.
pub const LOOP: &str = "garbage-collector-controller";

/// How soon to look again when the caches are not complete yet.
const UNTIL_SYNCED: Duration = Duration::from_millis(250);
/// How soon to look again at an object whose owner exists but was not seen by a watch.
const UNTIL_SEEN: Duration = Duration::from_secs(60);
/// How soon discovery is tried again after it failed.
const DISCOVERY_RETRY: Duration = Duration::from_secs(1);
/// Owners known to be gone; UIDs do not come back, so this is only bounded for memory.
const ABSENT_LIMIT: usize = 4096;

/// API version, kind, namespace, name and UID of an owner.
type OwnerKey = (String, String, String, String, String);

struct Collector {
    live: Live,
    graph: Mutex<Graph>,
    queue: Arc<WorkQueue<Work>>,
    progress: Arc<Progress>,
    /// References, with the namespace they are looked up in, whose owner a live read has shown to be gone.
    absent: Mutex<HashSet<OwnerKey>>,
    recorder: Recorder,
}

impl Observer for Collector {
    fn seen(&self, node: Node) {
        let work = self.graph.lock().apply(node);
        self.add_all(work);
    }

    fn gone(&self, uid: &str) {
        let work = self.graph.lock().remove(uid);
        self.add_all(work);
    }
}

/// Starts the loop.
pub fn start(context: LoopContext) -> BoxFuture<'static, ()> {
    let collector = Arc::new(Collector {
        live: Live { client: context.client.clone(), discovery: Mutex::default() },
        graph: Mutex::default(),
        queue: WorkQueue::new(LOOP, context.seed),
        progress: Arc::default(),
        absent: Mutex::default(),
        recorder: context.recorder,
    });
    // Each piece of work is a few requests that wait on each other: more workers than the other loops have.
    let workers = context.config.workers.saturating_mul(4);
    let (interval, shutdown) = (context.config.discovery_interval, context.shutdown);
    Box::pin(async move {
        let queue = collector.queue.clone();
        let worker = collector.clone();
        let work = run_workers(queue, workers, shutdown.clone(), move |work| {
            let collector = worker.clone();
            async move { collector.pass(work).await }
        });
        tokio::join!(work, watch_resources(collector, interval, shutdown));
    })
}

/// Reads discovery again and again and keeps a monitor for each resource.
async fn watch_resources(collector: Arc<Collector>, interval: Duration, shutdown: CancellationToken) {
    let mut monitors = Monitors::new(collector.live.client.clone(), collector.clone(), collector.progress.clone());
    let keep = async {
        loop {
            let delay = match discover(&collector.live.client).await {
                Ok(discovery) => {
                    for (version, failure) in &discovery.failures {
                        warn!(version, error = failure, "the resources of a group could not be read");
                    }
                    monitors.reconcile(&discovery);
                    let delay = if discovery.failures.is_empty() { interval } else { DISCOVERY_RETRY.max(interval / 10) };
                    collector.learn(discovery);
                    delay
                }
                Err(failure) => {
                    warn!(error = %failure, "discovery failed; trying again");
                    DISCOVERY_RETRY
                }
            };
            tokio::time::sleep(delay).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = keep => {}
    }
}

impl Collector {
    fn add_all(&self, work: Vec<Work>) {
        work.into_iter().for_each(|work| self.queue.add(work));
    }

    /// Takes over what discovery found. Resources of groups that could not be read stay known.
    fn learn(&self, mut found: Discovery) {
        let mut known = self.live.discovery.lock();
        let failed: Vec<String> =
            found.failures.iter().map(|(version, _)| crate::shared::discovery::group_of(version).to_owned()).collect();
        let kept = known.resources.drain(..).filter(|resource| failed.contains(&resource.resource.group));
        found.resources.extend(kept);
        *known = found;
    }

    async fn pass(&self, work: Work) -> Result<Next, ControllerError> {
        // Whoever is not seen yet may be the owner or the dependent that decides; no other work could go on meanwhile.
        while !self.progress.all_synced() {
            tokio::time::sleep(UNTIL_SYNCED).await;
        }
        match work {
            Work::Delete(uid) => self.look_into(&uid).await,
            Work::Orphan(uid) => self.orphan_dependents(&uid).await,
        }
    }

    /// Deletes the object if its owners are gone, or completes its foreground deletion if its dependents are.
    async fn look_into(&self, uid: &str) -> Result<Next, ControllerError> {
        let (node, held, dependents) = {
            let graph = self.graph.lock();
            let Some(node) = graph.node(uid).cloned() else { return Ok(Next::Done) };
            let dependents: Vec<Node> = graph.dependents(uid).cloned().collect();
            let held = graph.is_held(&node);
            (node, held, dependents)
        };
        if node.foreground {
            return self.complete_foreground(&node).await;
        }
        // An object that is being deleted needs no second deletion; its dependents follow when it is gone.
        if node.deleting || held {
            return Ok(Next::Done);
        }
        let latest = self.live.metadata(&node.identity).await?;
        let Some(latest) = latest.filter(|latest| latest.uid.as_deref() == Some(uid)) else {
            self.gone(uid);
            return Ok(Next::Done);
        };
        let mut owners = Vec::new();
        for reference in latest.owner_references.clone().unwrap_or_default() {
            let Some(state) = self.owner_state(&node.identity, &reference).await? else { return Ok(Next::Done) };
            owners.push((reference, state));
        }
        if owners.is_empty() {
            return Ok(Next::Done);
        }
        let has_dependents = if dependents.is_empty() { Dependents::None } else { Dependents::Some };
        match decide(&owners, latest.finalizers.as_deref().unwrap_or_default(), has_dependents) {
            // The live read knows an owner that the watches have not shown: until they do, its end could be missed.
            Decision::Nothing => Ok(Next::After(UNTIL_SEEN)),
            Decision::Keep(remaining) => {
                debug!(kind = node.identity.kind, name = node.identity.name, "dropping references to owners that are gone");
                self.live.set_owners(&node.identity, &latest, &remaining).await?;
                Ok(Next::Done)
            }
            Decision::Delete(policy) => self.delete(&node, latest, policy, &dependents).await,
        }
    }

    async fn delete(
        &self,
        node: &Node,
        latest: ObjectMeta,
        policy: PropagationPolicy,
        dependents: &[Node],
    ) -> Result<Next, ControllerError> {
        let waits_in_a_circle =
            policy == PropagationPolicy::Foreground && dependents.iter().any(|dependent| dependent.foreground);
        if waits_in_a_circle && latest.owner_references.iter().flatten().any(|owner| owner.block_owner_deletion == Some(true)) {
            // Each would wait for the other for ever: this one stops blocking. The change brings it back here.
            let unblocked: Vec<OwnerReference> = latest
                .owner_references
                .iter()
                .flatten()
                .map(|owner| OwnerReference { block_owner_deletion: Some(false), ..owner.clone() })
                .collect();
            self.live.set_owners(&node.identity, &latest, &unblocked).await?;
            return Ok(Next::Retry);
        }
        debug!(kind = node.identity.kind, name = node.identity.name, ?policy, "deleting: its owners are gone");
        self.live.delete(&node.identity, &latest, policy).await?;
        Ok(Next::Done)
    }

    /// How the owner is, by a live read; `None` if the reference is not valid at all and says nothing.
    async fn owner_state(&self, dependent: &Identity, reference: &OwnerReference) -> Result<Option<OwnerState>, ControllerError> {
        let (_, scope) = self.live.resource(&reference.api_version, &reference.kind)?;
        let namespace = match scope {
            Scope::Cluster => String::new(),
            Scope::Namespaced => dependent.namespace.clone(),
        };
        if scope == Scope::Namespaced && namespace.is_empty() {
            self.tell_invalid_reference(dependent, reference);
            return Ok(None);
        }
        let key = (
            reference.api_version.clone(),
            reference.kind.clone(),
            namespace.clone(),
            reference.name.clone(),
            reference.uid.clone(),
        );
        if self.absent.lock().contains(&key) {
            return Ok(Some(OwnerState::Dangling));
        }
        let owner = Identity {
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
            namespace,
            name: reference.name.clone(),
            uid: reference.uid.clone(),
        };
        let found = self.live.metadata(&owner).await?.filter(|found| found.uid.as_ref() == Some(&reference.uid));
        let Some(found) = found else {
            let elsewhere =
                self.graph.lock().node(&reference.uid).is_some_and(|known| known.identity.namespace != owner.namespace);
            if elsewhere {
                self.tell_invalid_reference(dependent, reference);
            }
            let mut absent = self.absent.lock();
            if absent.len() >= ABSENT_LIMIT {
                absent.clear();
            }
            absent.insert(key);
            return Ok(Some(OwnerState::Dangling));
        };
        let waiting = Node::new(&owner.api_version, &owner.kind, &found).foreground;
        Ok(Some(if waiting { OwnerState::Waiting } else { OwnerState::Solid }))
    }

    fn tell_invalid_reference(&self, dependent: &Identity, reference: &OwnerReference) {
        let involved = ObjectReference {
            api_version: Some(dependent.api_version.clone()),
            kind: Some(dependent.kind.clone()),
            namespace: Some(dependent.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(dependent.name.clone()),
            uid: Some(dependent.uid.clone()),
            ..ObjectReference::default()
        };
        let OwnerReference { api_version, kind, name, uid, .. } = reference;
        let text = format!(
            "ownerRef [{api_version}/{kind}, namespace: {}, name: {name}, uid: {uid}] does not exist in namespace {:?}",
            dependent.namespace, dependent.namespace
        );
        self.recorder.event_about(involved, EventKind::Warning, "OwnerRefInvalidNamespace", text);
    }

    /// Removes the finalizer once nothing blocks any more; until then makes sure that every blocking dependent is looked into.
    async fn complete_foreground(&self, node: &Node) -> Result<Next, ControllerError> {
        let blocking = self.graph.lock().blocking_dependents(node);
        if blocking.is_empty() {
            self.live.remove_finalizer(&node.identity, FOREGROUND_FINALIZER).await?;
            return Ok(Next::Done);
        }
        for dependent in blocking.into_iter().filter(|dependent| !dependent.foreground) {
            self.queue.add(Work::Delete(dependent.identity.uid));
        }
        Ok(Next::Done)
    }

    /// Takes the owner's reference from all dependents, and then the finalizer from the owner.
    async fn orphan_dependents(&self, uid: &str) -> Result<Next, ControllerError> {
        let (owner, dependents) = {
            let graph = self.graph.lock();
            let Some(owner) = graph.node(uid).cloned() else { return Ok(Next::Done) };
            let dependents: Vec<Node> = graph.dependents(uid).cloned().collect();
            (owner, dependents)
        };
        for dependent in &dependents {
            let latest = self.live.metadata(&dependent.identity).await?;
            let Some(latest) = latest.filter(|latest| latest.uid.as_ref() == Some(&dependent.identity.uid)) else { continue };
            let before = latest.owner_references.clone().unwrap_or_default();
            let after: Vec<OwnerReference> = before.iter().filter(|reference| reference.uid != uid).cloned().collect();
            if after.len() < before.len() {
                self.live.set_owners(&dependent.identity, &latest, &after).await?;
            }
        }
        self.live.remove_finalizer(&owner.identity, ORPHAN_FINALIZER).await?;
        Ok(Next::Done)
    }
}
