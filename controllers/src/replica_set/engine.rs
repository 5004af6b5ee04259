//! The loop itself: what it listens to, and one pass over one owner.

use std::sync::Arc;

use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use tracing::debug;

use super::owner::ReplicaOwner;
use super::plan::{Plan, decide, slow_start_batches};
use super::ranking::count_by_node;
use super::status::{ReplicaFailure, conditions, count, next_availability};
use super::template::pod_from_template;
use crate::LoopContext;
use crate::shared::claim::{claim, selector_is_empty, selector_matches, sort_candidates};
use crate::shared::error::{Doing, is_conflict, is_namespace_terminating, is_not_found, message};
use crate::shared::meta::{self, controller_of, is_deleting, name, namespace, uid};
use crate::shared::{
    Change, ControllerError, EventKind, Expectations, Informer, Next, ObjectKey, Recorder, WorkQueue, run_workers,
};

struct Engine<O> {
    client: Client,
    owners: Arc<Informer<O>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    expectations: Expectations,
    recorder: Recorder,
    clock: Arc<dyn trireme_api::clock::Clock>,
}

/// Starts the loop for owners of kind `O`.
pub fn start<O: ReplicaOwner>(context: LoopContext) -> BoxFuture<'static, ()> {
    let engine = Arc::new(Engine::<O> {
        client: context.client,
        owners: context.informers.get(),
        pods: context.informers.get(),
        queue: WorkQueue::new(O::LOOP, context.seed),
        expectations: Expectations::default(),
        recorder: context.recorder,
        clock: context.clock,
    });
    // Handlers hold the engine weakly: the informers, which the engine holds, hold the handlers.
    let listener = Arc::downgrade(&engine);
    engine.owners.on_change(move |change| {
        if let Some(engine) = listener.upgrade() {
            engine.owner_changed(change);
        }
    });
    let listener = Arc::downgrade(&engine);
    engine.pods.on_change(move |change| {
        if let Some(engine) = listener.upgrade() {
            engine.pod_changed(change);
        }
    });
    let (workers, shutdown) = (context.config.workers, context.shutdown);
    Box::pin(async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = async { tokio::join!(engine.owners.synced(), engine.pods.synced()); } => {}
        }
        let queue = engine.queue.clone();
        run_workers(queue, workers, shutdown, move |key| {
            let engine = engine.clone();
            async move { engine.pass(&key).await }
        })
        .await;
    })
}

impl<O: ReplicaOwner> Engine<O> {
    fn owner_changed(&self, change: &Change<O>) {
        if let Change::Deleted(owner) = change {
            self.expectations.forget(uid(owner.meta()));
        }
        self.queue.add(ObjectKey::of(&**change.object()));
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        match change {
            Change::Added(pod) if is_deleting(&pod.metadata) => self.pod_leaving(pod),
            Change::Added(pod) => match self.owner_of(pod) {
                Some(owner) => {
                    self.expectations.creation_observed(uid(owner.meta()));
                    self.queue.add(ObjectKey::of(&*owner));
                }
                None => self.orphan_changed(pod),
            },
            Change::Updated { old, new } => self.pod_updated(old, new),
            Change::Deleted(pod) => self.pod_leaving(pod),
        }
    }

    fn pod_updated(&self, old: &Pod, new: &Pod) {
        let owner_changed =
            controller_of(&old.metadata).map(|owner| &owner.uid) != controller_of(&new.metadata).map(|owner| &owner.uid);
        let labels_changed = old.metadata.labels != new.metadata.labels;
        if is_deleting(&new.metadata) {
            // A pod on its way out does not count any more, though it may take its grace period to go.
            self.pod_leaving(new);
            if owner_changed || labels_changed {
                self.pod_leaving(old);
            }
            return;
        }
        if owner_changed && let Some(owner) = self.owner_of(old) {
            self.queue.add(ObjectKey::of(&*owner));
        }
        match self.owner_of(new) {
            Some(owner) => self.queue.add(ObjectKey::of(&*owner)),
            None if owner_changed || labels_changed => self.orphan_changed(new),
            None => {}
        }
    }

    fn pod_leaving(&self, pod: &Pod) {
        if let Some(owner) = self.owner_of(pod) {
            self.expectations.deletion_observed(uid(owner.meta()), uid(&pod.metadata));
            self.queue.add(ObjectKey::of(&*owner));
        }
    }

    /// A pod without a controller may be adopted by any owner whose selector matches.
    fn orphan_changed(&self, pod: &Pod) {
        if controller_of(&pod.metadata).is_some() {
            return;
        }
        for owner in self.owners.list_in(namespace(&pod.metadata)) {
            let selector = owner.selector();
            if !selector_is_empty(&selector) && selector_matches(&selector, pod.metadata.labels.as_ref()) {
                self.queue.add(ObjectKey::of(&*owner));
            }
        }
    }

    /// The owner the pod's controller reference names, if it is of this kind and still the same object.
    fn owner_of(&self, pod: &Pod) -> Option<Arc<O>> {
        let reference = controller_of(&pod.metadata).filter(|reference| reference.kind == O::kind(&()))?;
        let owner = self.owners.get(&ObjectKey::new(namespace(&pod.metadata), reference.name.clone()))?;
        (owner.meta().uid.as_ref() == Some(&reference.uid)).then_some(owner)
    }

    async fn pass(&self, key: &ObjectKey) -> Result<Next, ControllerError> {
        let Some(owner) = self.owners.get(key) else { return Ok(Next::Done) };
        let owner = &*owner;
        let owner_uid = uid(owner.meta());
        // Asked before the cache is read: what is observed later than this is in the cache or outstanding.
        let may_act = self.expectations.satisfied(owner_uid);
        let selector = owner.selector();
        if selector_is_empty(&selector) {
            return Ok(Next::Done);
        }
        let controlled = self.pods.controlled_by(owner_uid);
        let terminating = controlled.iter().filter(|pod| is_deleting(&pod.metadata) && !meta::is_finished(pod)).count();
        let candidates = controlled.into_iter().chain(self.pods.orphans_in(&key.namespace)).filter(|pod| meta::is_active(pod));
        let sorted = sort_candidates(owner_uid, is_deleting(owner.meta()), &selector, candidates);
        let owners_api: Api<O> = Api::namespaced(self.client.clone(), &key.namespace);
        let pods_api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let active = claim(owner, &owners_api, &pods_api, sorted).await?;

        let mut failure = None;
        if may_act && !is_deleting(owner.meta()) {
            failure = self.manage(owner, &pods_api, &active).await;
        }
        self.write_status(owner, &owners_api, &active, terminating, failure.as_ref()).await?;
        if let Some(ReplicaFailure::Create(text) | ReplicaFailure::Delete(text)) = failure {
            return Err(ControllerError::NotReady(text));
        }
        Ok(next_availability(&active, owner.min_ready_seconds(), self.clock.now()).map_or(Next::Done, Next::After))
    }

    /// Creates or deletes pods; returns why it could not.
    async fn manage(&self, owner: &O, pods: &Api<Pod>, active: &[Arc<Pod>]) -> Option<ReplicaFailure> {
        let related = || {
            let parent = controller_of(owner.meta()).map(|parent| parent.uid.as_str());
            let siblings = parent.map(|parent| self.owners.controlled_by(parent)).unwrap_or_default();
            let of_siblings = siblings.iter().filter(|sibling| uid(sibling.meta()) != uid(owner.meta()));
            let theirs: Vec<Arc<Pod>> = of_siblings.flat_map(|sibling| self.pods.controlled_by(uid(sibling.meta()))).collect();
            count_by_node(theirs.iter().filter(|pod| meta::is_active(pod)).chain(active))
        };
        let wanted = usize::try_from(owner.replicas()).unwrap_or(0);
        let related = if active.len() > wanted { related() } else { Default::default() };
        match decide(owner.replicas(), active, &related, self.clock.now()) {
            Plan::Nothing => None,
            Plan::Create(number) => self.create(owner, pods, number).await.map(ReplicaFailure::Create),
            Plan::Delete(victims) => self.delete(owner, pods, &victims).await.map(ReplicaFailure::Delete),
        }
    }

    async fn create(&self, owner: &O, pods: &Api<Pod>, number: usize) -> Option<String> {
        let Some(template) = owner.template() else { return Some("the pod template is missing".into()) };
        let pod = pod_from_template(owner, template);
        let owner_uid = uid(owner.meta());
        self.expectations.expect_creations(owner_uid, number);
        let mut created = 0;
        let mut failure = None;
        for batch in slow_start_batches(number) {
            let outcomes = join_all((0..batch).map(|_| self.create_one(owner, pods, &pod))).await;
            for outcome in outcomes {
                match outcome {
                    Ok(()) => created += 1,
                    Err(text) => failure = failure.or(Some(text)),
                }
            }
            if failure.is_some() {
                break;
            }
        }
        // What was not created will never be observed.
        for _ in created..number {
            self.expectations.creation_observed(owner_uid);
        }
        failure
    }

    async fn create_one(&self, owner: &O, pods: &Api<Pod>, pod: &Pod) -> Result<(), String> {
        match pods.create(&PostParams::default(), pod).await {
            Ok(created) => {
                let text = format!("Created pod: {}", name(&created.metadata));
                self.recorder.event(owner, EventKind::Normal, "SuccessfulCreate", text);
                Ok(())
            }
            // Every further attempt would be refused too, and the owner is about to be deleted.
            Err(failure) if is_namespace_terminating(&failure) => {
                self.expectations.creation_observed(uid(owner.meta()));
                Ok(())
            }
            Err(failure) => {
                let text = message(&failure);
                self.recorder.event(owner, EventKind::Warning, "FailedCreate", format!("Error creating: {text}"));
                Err(text)
            }
        }
    }

    async fn delete(&self, owner: &O, pods: &Api<Pod>, victims: &[Arc<Pod>]) -> Option<String> {
        let owner_uid = uid(owner.meta());
        self.expectations.expect_deletions(owner_uid, victims.iter().map(|pod| uid(&pod.metadata).to_owned()));
        let outcomes = join_all(victims.iter().map(|pod| self.delete_one(owner, pods, pod))).await;
        outcomes.into_iter().find_map(Result::err)
    }

    async fn delete_one(&self, owner: &O, pods: &Api<Pod>, pod: &Pod) -> Result<(), String> {
        let (pod_name, pod_uid) = (name(&pod.metadata), uid(&pod.metadata));
        let only_this_one = Preconditions { uid: Some(pod_uid.to_owned()), resource_version: None };
        match pods.delete(pod_name, &DeleteParams::default().preconditions(only_this_one)).await {
            Ok(_) => {
                self.recorder.event(owner, EventKind::Normal, "SuccessfulDelete", format!("Deleted pod: {pod_name}"));
                Ok(())
            }
            Err(failure) => {
                self.expectations.deletion_observed(uid(owner.meta()), pod_uid);
                // Gone, or another pod has its name by now.
                if is_not_found(&failure) || is_conflict(&failure) {
                    debug!(pod = pod_name, "the pod to delete is gone already");
                    return Ok(());
                }
                let text = message(&failure);
                self.recorder.event(owner, EventKind::Warning, "FailedDelete", format!("Error deleting: {text}"));
                Err(text)
            }
        }
    }

    async fn write_status(
        &self,
        owner: &O,
        api: &Api<O>,
        active: &[Arc<Pod>],
        terminating: usize,
        failure: Option<&ReplicaFailure>,
    ) -> Result<(), ControllerError> {
        let now = self.clock.now();
        let counts = count(owner, active, terminating, now);
        let conditions = conditions(owner.conditions(), failure, now);
        if counts == owner.counts() && conditions == owner.conditions() {
            return Ok(());
        }
        let owner_name = name(owner.meta());
        match api.replace_status(owner_name, &PostParams::default(), &owner.with_status(counts, conditions.clone())).await {
            Err(failure) if is_conflict(&failure) => {
                let fresh = api.get(owner_name).await.doing(|| format!("reading {owner_name}"))?;
                if fresh.meta().uid != owner.meta().uid {
                    return Ok(());
                }
                let outcome =
                    api.replace_status(owner_name, &PostParams::default(), &fresh.with_status(counts, conditions)).await;
                outcome.map(drop).doing(|| format!("writing the status of {owner_name}"))
            }
            Err(failure) if is_not_found(&failure) => Ok(()),
            outcome => outcome.map(drop).doing(|| format!("writing the status of {owner_name}")),
        }
    }
}
