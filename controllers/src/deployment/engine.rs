//! The loop itself: what it listens to, and the writes of one pass.

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;
use tracing::info;

use super::annotations::REVISION;
use super::conditions::{PROGRESSING, REPLICA_SET_CREATE_ERROR, condition, set};
use super::plan::{Observed, Plan, plan};
use super::progress::progress_deadline;
use super::sets::WorkingSet;
use super::strategy::{Strategy, strategy};
use super::template::same_template;
use crate::LoopContext;
use crate::shared::claim::{claim, selector_is_empty, selector_matches, sort_candidates};
use crate::shared::error::{Doing, is_already_exists, is_conflict, is_namespace_terminating, is_not_found, message};
use crate::shared::meta::{controller_of, is_deleting, name, namespace, uid};
use crate::shared::{Change, ControllerError, EventKind, Informer, Next, ObjectKey, Recorder, WorkQueue, run_workers};

/// The loop's name.
pub const LOOP: &str = "deployment-controller";

struct Engine {
    client: Client,
    deployments: Arc<Informer<Deployment>>,
    replica_sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    recorder: Recorder,
    clock: Arc<dyn trireme_api::clock::Clock>,
}

/// Starts the loop.
pub fn start(context: LoopContext) -> BoxFuture<'static, ()> {
    let engine = Arc::new(Engine {
        client: context.client,
        deployments: context.informers.get(),
        replica_sets: context.informers.get(),
        pods: context.informers.get(),
        queue: WorkQueue::new(LOOP, context.seed),
        recorder: context.recorder,
        clock: context.clock,
    });
    let queue = engine.queue.clone();
    engine.deployments.on_change(move |change| queue.add(ObjectKey::of(&**change.object())));
    // Handlers hold the engine weakly: the informers, which the engine holds, hold the handlers.
    let listener = Arc::downgrade(&engine);
    engine.replica_sets.on_change(move |change| {
        if let Some(engine) = listener.upgrade() {
            engine.replica_set_changed(change);
        }
    });
    let listener = Arc::downgrade(&engine);
    engine.pods.on_change(move |change| {
        if let (Some(engine), Change::Deleted(pod)) = (listener.upgrade(), change) {
            engine.pod_deleted(pod);
        }
    });
    let (workers, shutdown) = (context.config.workers, context.shutdown);
    Box::pin(async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = async { tokio::join!(engine.deployments.synced(), engine.replica_sets.synced(), engine.pods.synced()); } => {}
        }
        let queue = engine.queue.clone();
        run_workers(queue, workers, shutdown, move |key| {
            let engine = engine.clone();
            async move { engine.pass(&key).await }
        })
        .await;
    })
}

impl Engine {
    fn replica_set_changed(&self, change: &Change<ReplicaSet>) {
        if let Change::Updated { old, new } = change
            && controller_of(&old.metadata) != controller_of(&new.metadata)
            && let Some(owner) = self.owner_of(old)
        {
            self.queue.add(ObjectKey::of(&*owner));
        }
        let set = change.object();
        if controller_of(&set.metadata).is_some() {
            if let Some(owner) = self.owner_of(set) {
                self.queue.add(ObjectKey::of(&*owner));
            }
            return;
        }
        if matches!(change, Change::Deleted(_)) {
            return;
        }
        // An orphan may be adopted by any Deployment whose selector matches.
        for deployment in self.deployments.list_in(namespace(&set.metadata)) {
            let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
            if selector
                .is_some_and(|selector| !selector_is_empty(selector) && selector_matches(selector, set.metadata.labels.as_ref()))
            {
                self.queue.add(ObjectKey::of(&*deployment));
            }
        }
    }

    /// The Recreate strategy waits for the last old pod to go.
    fn pod_deleted(&self, pod: &Pod) {
        let Some(reference) = controller_of(&pod.metadata).filter(|reference| reference.kind == "ReplicaSet") else { return };
        let set = self.replica_sets.get(&ObjectKey::new(namespace(&pod.metadata), reference.name.clone()));
        let owner = set.filter(|set| uid(&set.metadata) == reference.uid).and_then(|set| self.owner_of(&set));
        if let Some(deployment) = owner.filter(|deployment| strategy(deployment) == Strategy::Recreate) {
            self.queue.add(ObjectKey::of(&*deployment));
        }
    }

    fn owner_of(&self, set: &ReplicaSet) -> Option<Arc<Deployment>> {
        let reference = controller_of(&set.metadata).filter(|reference| reference.kind == "Deployment")?;
        let owner = self.deployments.get(&ObjectKey::new(namespace(&set.metadata), reference.name.clone()))?;
        (uid(&owner.metadata) == reference.uid).then_some(owner)
    }

    async fn pass(&self, key: &ObjectKey) -> Result<Next, ControllerError> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(Next::Done) };
        let deployment = &*deployment;
        let Some(spec) = &deployment.spec else { return Ok(Next::Done) };
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
        if selector_is_empty(&spec.selector) {
            return self.refuse_empty_selector(deployment, &api).await;
        }
        let sets_api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let deployment_uid = uid(&deployment.metadata);
        let candidates =
            self.replica_sets.controlled_by(deployment_uid).into_iter().chain(self.replica_sets.orphans_in(&key.namespace));
        let sorted = sort_candidates(deployment_uid, is_deleting(&deployment.metadata), &spec.selector, candidates);
        let replica_sets = claim(deployment, &api, &sets_api, sorted).await?;
        let pods = match strategy(deployment) {
            Strategy::RollingUpdate => Vec::new(),
            Strategy::Recreate => replica_sets.iter().flat_map(|set| self.pods.controlled_by(uid(&set.metadata))).collect(),
        };
        let decided = plan(&Observed { deployment, replica_sets, pods, now: self.clock.now() })?;
        self.carry_out(deployment, &api, &sets_api, decided).await
    }

    async fn refuse_empty_selector(&self, deployment: &Deployment, api: &Api<Deployment>) -> Result<Next, ControllerError> {
        let text = "This deployment is selecting all pods. A non-empty selector is required.";
        self.recorder.event(deployment, EventKind::Warning, "SelectingAll", text);
        let mut status = deployment.status.clone().unwrap_or_default();
        if status.observed_generation < deployment.metadata.generation {
            status.observed_generation = deployment.metadata.generation;
            self.write_status(deployment, api, status, None).await?;
        }
        Ok(Next::Done)
    }

    async fn carry_out(
        &self,
        deployment: &Deployment,
        api: &Api<Deployment>,
        sets: &Api<ReplicaSet>,
        plan: Plan,
    ) -> Result<Next, ControllerError> {
        if let Some(set) = &plan.create {
            self.create(deployment, api, sets, set).await?;
        }
        for set in &plan.update {
            let set_name = name(&set.set.metadata);
            // The resource version observed goes along: a set that has changed since is not written over.
            sets.replace(set_name, &PostParams::default(), &set.set)
                .await
                .doing(|| format!("updating replica set {set_name}"))?;
            self.tell_scalings(deployment, set);
        }
        for set in &plan.delete {
            let set_name = name(&set.metadata);
            let unchanged =
                Preconditions { uid: set.metadata.uid.clone(), resource_version: set.metadata.resource_version.clone() };
            let parameters = DeleteParams::background().preconditions(unchanged);
            match sets.delete(set_name, &parameters).await {
                Err(failure) if is_not_found(&failure) || is_conflict(&failure) => {}
                outcome => drop(outcome.doing(|| format!("deleting replica set {set_name} beyond the history limit"))?),
            }
        }
        self.write_status(deployment, api, plan.status, plan.revision).await?;
        Ok(plan.look_again.map_or(Next::Done, Next::After))
    }

    fn tell_scalings(&self, deployment: &Deployment, set: &WorkingSet) {
        for text in &set.scalings {
            self.recorder.event(deployment, EventKind::Normal, "ScalingReplicaSet", text.clone());
        }
    }

    async fn create(
        &self,
        deployment: &Deployment,
        api: &Api<Deployment>,
        sets: &Api<ReplicaSet>,
        set: &WorkingSet,
    ) -> Result<(), ControllerError> {
        let set_name = name(&set.set.metadata);
        let doing = || format!("creating replica set {set_name}");
        match sets.create(&PostParams::default(), &set.set).await {
            Ok(_) => {
                self.tell_scalings(deployment, set);
                Ok(())
            }
            Err(failure) if is_already_exists(&failure) => {
                let taken = sets.get_opt(set_name).await.doing(|| format!("reading replica set {set_name}"))?;
                if taken.as_ref().is_some_and(|taken| is_ours(taken, deployment)) {
                    return Ok(());
                }
                if taken.is_some() {
                    self.count_collision(deployment, api).await?;
                }
                Err(failure).doing(doing)
            }
            Err(failure) if is_namespace_terminating(&failure) => Err(failure).doing(doing),
            Err(failure) => {
                let text = format!("Failed to create new replica set {set_name:?}: {}", message(&failure));
                if progress_deadline(deployment).is_some() {
                    let mut status = deployment.status.clone().unwrap_or_default();
                    set_create_error(&mut status, &text, self.clock.now());
                    self.write_status(deployment, api, status, None).await?;
                }
                self.recorder.event(deployment, EventKind::Warning, REPLICA_SET_CREATE_ERROR, text);
                Err(failure).doing(doing)
            }
        }
    }

    /// Another template's ReplicaSet has the name: the count goes into the hash, so the next pass finds another name.
    async fn count_collision(&self, deployment: &Deployment, api: &Api<Deployment>) -> Result<(), ControllerError> {
        let mut status = deployment.status.clone().unwrap_or_default();
        let collisions = status.collision_count.unwrap_or(0).saturating_add(1);
        status.collision_count = Some(collisions);
        info!(deployment = name(&deployment.metadata), collisions, "the name of the new replica set is taken");
        self.write_status(deployment, api, status, None).await
    }

    /// Writes status and revision if they differ from what was observed.
    async fn write_status(
        &self,
        deployment: &Deployment,
        api: &Api<Deployment>,
        status: k8s_openapi::api::apps::v1::DeploymentStatus,
        revision: Option<String>,
    ) -> Result<(), ControllerError> {
        let deployment_name = name(&deployment.metadata);
        let mut current = deployment.clone();
        if let Some(revision) = &revision {
            current.metadata.annotations.get_or_insert_default().insert(REVISION.into(), revision.clone());
        }
        if revision.is_none() && deployment.status.as_ref() == Some(&status) {
            return Ok(());
        }
        current.status = Some(status);
        let doing = || format!("writing the status of deployment {deployment_name}");
        let written = api.replace_status(deployment_name, &PostParams::default(), &current).await.doing(doing)?;
        // Kubernetes takes the annotation along with the status; a server that does not gets it by a patch.
        let noted = written.metadata.annotations.as_ref().and_then(|annotations| annotations.get(REVISION));
        if revision.is_some() && noted != revision.as_ref() {
            let patch = json!({"metadata": {"annotations": {REVISION: revision}}});
            let patched = api.patch(deployment_name, &PatchParams::default(), &Patch::Merge(patch)).await;
            patched.doing(|| format!("writing the revision of deployment {deployment_name}"))?;
        }
        Ok(())
    }
}

/// Whether an existing ReplicaSet is the one that was to be created: made by an earlier pass that has not reached the cache.
fn is_ours(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let wanted = deployment.spec.as_ref().map(|spec| &spec.template);
    controller_of(&set.metadata).is_some_and(|owner| owner.uid == uid(&deployment.metadata))
        && template.zip(wanted).is_some_and(|(template, wanted)| same_template(template, wanted))
}

fn set_create_error(status: &mut k8s_openapi::api::apps::v1::DeploymentStatus, text: &str, now: jiff::Timestamp) {
    set(status, condition(PROGRESSING, "False", REPLICA_SET_CREATE_ERROR, text, now));
}
