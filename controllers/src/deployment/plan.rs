//! One pass over a Deployment: from what is observed to what is to be written, without I/O.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::annotations::{REVISION, note_revision, note_sizes, revision};
use super::conditions::{
    DEPLOYMENT_PAUSED, DEPLOYMENT_RESUMED, FOUND_NEW_REPLICA_SET, NEW_REPLICA_SET_CREATED, PROGRESS_DEADLINE_EXCEEDED,
    PROGRESSING, condition, find, reason, set,
};
use super::progress::{counts, is_complete, next_deadline, progress_deadline, rollout_status};
use super::proportion::{scale, was_scaled};
use super::rolling::{new_size, reconcile_new, reconcile_old};
use super::sets::{Sets, WorkingSet, by_age};
use super::strategy::{Strategy, desired, strategy};
use super::template::{POD_TEMPLATE_HASH, same_template, template_hash};
use crate::shared::ControllerError;
use crate::shared::claim::controller_reference;
use crate::shared::meta::{controller_of, is_deleting, is_finished, name, uid};

/// The longest name of a ReplicaSet.
const MAX_NAME_LENGTH: usize = 253;

/// What a pass is decided from.
pub struct Observed<'a> {
    pub deployment: &'a Deployment,
    /// The ReplicaSets it owns, adoption done.
    pub replica_sets: Vec<Arc<ReplicaSet>>,
    /// The pods of these ReplicaSets, those being deleted among them. Only the Recreate strategy looks at them.
    pub pods: Vec<Arc<Pod>>,
    pub now: Timestamp,
}

/// What a pass writes, in this order.
#[derive(Debug)]
pub struct Plan {
    /// The ReplicaSet of a new template.
    pub create: Option<WorkingSet>,
    /// ReplicaSets with another size, annotations or `minReadySeconds`.
    pub update: Vec<WorkingSet>,
    /// ReplicaSets beyond the revision history limit.
    pub delete: Vec<Arc<ReplicaSet>>,
    pub status: DeploymentStatus,
    /// The Deployment's revision annotation, if it has to change.
    pub revision: Option<String>,
    /// When to look again without any change.
    pub look_again: Option<Duration>,
}

/// Whether a pass may make the ReplicaSet of a new template.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IfMissing {
    Create,
    Leave,
}

/// Decides one pass. Fails only if the template cannot be encoded.
pub fn plan(observed: &Observed<'_>) -> Result<Plan, ControllerError> {
    let mut pass = Pass::new(observed);
    let deployment = observed.deployment;
    if is_deleting(&deployment.metadata) {
        pass.sync_new(IfMissing::Leave)?;
        return Ok(pass.finish_counts());
    }
    pass.note_pause();
    if is_paused(deployment) {
        pass.sync_new(IfMissing::Leave)?;
        scale(&mut pass.sets, deployment);
        pass.clean_up();
        return Ok(pass.finish_counts());
    }
    if was_scaled(&pass.sets, deployment) {
        pass.sync_new(IfMissing::Leave)?;
        scale(&mut pass.sets, deployment);
        return Ok(pass.finish_counts());
    }
    match strategy(deployment) {
        Strategy::RollingUpdate => pass.roll()?,
        Strategy::Recreate => pass.recreate()?,
    }
    Ok(pass.finish_rollout())
}

fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false)
}

/// A pass while it is decided.
struct Pass<'a> {
    observed: &'a Observed<'a>,
    sets: Sets,
    /// The observed status, with the conditions this pass has added.
    before: DeploymentStatus,
    delete: Vec<Arc<ReplicaSet>>,
    revision: Option<String>,
}

impl<'a> Pass<'a> {
    fn new(observed: &'a Observed<'a>) -> Self {
        let template = observed.deployment.spec.as_ref().map(|spec| &spec.template);
        let mut all = observed.replica_sets.clone();
        all.sort_by(|left, right| by_age(left, right));
        // Two ReplicaSets of the same template can exist after adoption; the oldest is the one.
        let position = all.iter().position(|set| {
            let of_set = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            of_set.zip(template).is_some_and(|(of_set, template)| same_template(of_set, template))
        });
        let new = position.map(|position| WorkingSet::observed(all.remove(position)));
        let sets = Sets { new, old: all.into_iter().map(WorkingSet::observed).collect() };
        let before = observed.deployment.status.clone().unwrap_or_default();
        Pass { observed, sets, before, delete: Vec::new(), revision: None }
    }

    /// Notes in the conditions that the rollout was paused or resumed: the time between does not count as lack of progress.
    fn note_pause(&mut self) {
        let deployment = self.observed.deployment;
        let reason = reason(&self.before, PROGRESSING);
        if progress_deadline(deployment).is_none() || reason == Some(PROGRESS_DEADLINE_EXCEEDED) {
            return;
        }
        let (reason, text) = match (is_paused(deployment), reason == Some(DEPLOYMENT_PAUSED)) {
            (true, false) => (DEPLOYMENT_PAUSED, "Deployment is paused"),
            (false, true) => (DEPLOYMENT_RESUMED, "Deployment is resumed"),
            _ => return,
        };
        set(&mut self.before, condition(PROGRESSING, "Unknown", reason, text, self.observed.now));
    }

    /// Brings the new ReplicaSet's annotations and revision up to date, or plans its creation.
    fn sync_new(&mut self, if_missing: IfMissing) -> Result<(), ControllerError> {
        let deployment = self.observed.deployment;
        let new_revision = self.sets.old.iter().map(|set| revision(&set.set)).max().unwrap_or(0) + 1;
        if let Some(new) = &mut self.sets.new {
            note_revision(&mut new.set, deployment, new_revision);
            let seconds = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
            if let Some(spec) = new.set.spec.as_mut().filter(|spec| spec.min_ready_seconds.unwrap_or(0) != seconds) {
                spec.min_ready_seconds = Some(seconds);
            }
            self.revision = new.set.metadata.annotations.as_ref().and_then(|annotations| annotations.get(REVISION)).cloned();
            if progress_deadline(deployment).is_some() && find(&self.before, PROGRESSING).is_none() {
                let text = format!("Found new replica set {:?}", name(&new.set.metadata));
                set(&mut self.before, condition(PROGRESSING, "True", FOUND_NEW_REPLICA_SET, text, self.observed.now));
            }
            return Ok(());
        }
        if if_missing == IfMissing::Create {
            let mut created = new_replica_set(deployment, self.before.collision_count)?;
            let size = match strategy(deployment) {
                Strategy::RollingUpdate => new_size(self.sets.total(), 0, deployment),
                Strategy::Recreate => desired(deployment),
            };
            note_revision(&mut created, deployment, new_revision);
            note_sizes(&mut created, deployment);
            created.spec.get_or_insert_default().replicas = Some(size);
            let set_name = name(&created.metadata).to_owned();
            let scaled_up = (size > 0).then(|| format!("Scaled up replica set {set_name} from 0 to {size}"));
            self.sets.new = Some(WorkingSet { set: created, observed: None, scalings: scaled_up.into_iter().collect() });
            self.revision = Some(new_revision.to_string());
            if progress_deadline(deployment).is_some() {
                let text = format!("Created new replica set {set_name:?}");
                set(&mut self.before, condition(PROGRESSING, "True", NEW_REPLICA_SET_CREATED, text, self.observed.now));
            }
        }
        Ok(())
    }

    fn roll(&mut self) -> Result<(), ControllerError> {
        let deployment = self.observed.deployment;
        self.sync_new(IfMissing::Create)?;
        if reconcile_new(&mut self.sets, deployment) || reconcile_old(&mut self.sets, deployment) {
            return Ok(());
        }
        self.clean_up_if_complete();
        Ok(())
    }

    fn recreate(&mut self) -> Result<(), ControllerError> {
        let deployment = self.observed.deployment;
        self.sync_new(IfMissing::Leave)?;
        let mut scaled_down = false;
        for old in self.sets.old.iter_mut().filter(|set| set.replicas() > 0) {
            scaled_down |= old.scale(0, deployment);
        }
        if scaled_down || self.old_pods_are_left() {
            return Ok(());
        }
        if self.sets.new.is_none() {
            self.sync_new(IfMissing::Create)?;
        }
        if let Some(new) = self.sets.new.as_mut().filter(|new| new.replicas() != desired(deployment)) {
            new.scale(desired(deployment), deployment);
        }
        self.clean_up_if_complete();
        Ok(())
    }

    /// Whether pods of another template may still be running; pods being deleted are.
    fn old_pods_are_left(&self) -> bool {
        let new_uid = self.sets.new.as_ref().map(|new| uid(&new.set.metadata));
        let is_old = |pod: &Arc<Pod>| controller_of(&pod.metadata).map(|owner| owner.uid.as_str()) != new_uid;
        self.sets.old.iter().any(|set| set.actual() > 0) || self.observed.pods.iter().any(|pod| is_old(pod) && !is_finished(pod))
    }

    fn clean_up_if_complete(&mut self) {
        if is_complete(self.observed.deployment, self.observed.deployment.status.as_ref().unwrap_or(&self.before)) {
            self.clean_up();
        }
    }

    /// Plans to delete the oldest revisions beyond the history limit. One that has or may still have pods is kept.
    fn clean_up(&mut self) {
        let limit = self.observed.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX).and_then(|limit| usize::try_from(limit).ok()) else { return };
        let mut candidates: Vec<&WorkingSet> = self.sets.old.iter().filter(|set| !is_deleting(&set.set.metadata)).collect();
        candidates.sort_by_key(|set| Reverse(revision(&set.set)));
        let surplus = candidates.into_iter().skip(limit);
        let idle = |set: &&WorkingSet| {
            let observed = set.set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
            set.actual() == 0 && set.replicas() == 0 && set.set.metadata.generation.unwrap_or(0) <= observed
        };
        self.delete = surplus.filter(idle).filter_map(|set| set.observed.clone()).collect();
        let kept = |set: &WorkingSet| !self.delete.iter().any(|gone| gone.metadata.uid == set.set.metadata.uid);
        self.sets.old.retain(kept);
    }

    fn finish_counts(self) -> Plan {
        let status = counts(self.observed.deployment, &self.before, &self.sets, self.observed.now);
        self.finish(status)
    }

    fn finish_rollout(self) -> Plan {
        let status = rollout_status(self.observed.deployment, &self.before, &self.sets, self.observed.now);
        self.finish(status)
    }

    fn finish(self, status: DeploymentStatus) -> Plan {
        let deployment = self.observed.deployment;
        let noted = deployment.metadata.annotations.as_ref().and_then(|annotations| annotations.get(REVISION));
        let paused = is_paused(deployment) || is_deleting(&deployment.metadata);
        let look_again = if paused { None } else { next_deadline(deployment, &status, self.observed.now) };
        let (create, observed): (Vec<WorkingSet>, Vec<WorkingSet>) =
            self.sets.old.into_iter().chain(self.sets.new).partition(|set| set.observed.is_none());
        assert!(create.len() <= 1, "only the ReplicaSet of the current template is ever created");
        Plan {
            create: create.into_iter().next(),
            update: observed.into_iter().filter(WorkingSet::changed).collect(),
            delete: self.delete,
            status,
            revision: self.revision.filter(|wanted| noted != Some(wanted)),
            look_again,
        }
    }
}

/// The ReplicaSet of the Deployment's template: named, labelled and selecting by the template's hash.
fn new_replica_set(deployment: &Deployment, collision_count: Option<i32>) -> Result<ReplicaSet, ControllerError> {
    let spec = deployment.spec.clone().unwrap_or_default();
    let hash = template_hash(&spec.template, collision_count)?;
    let mut template: PodTemplateSpec = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(POD_TEMPLATE_HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.into(), hash.clone());
    let prefix: String = name(&deployment.metadata).chars().take(MAX_NAME_LENGTH - 1 - hash.len()).collect();
    Ok(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds.filter(|seconds| *seconds != 0),
            selector,
            template: Some(template),
        }),
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(change: impl FnOnce(&mut Value)) -> Deployment {
        let mut value = json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "d", "generation": 2},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 60,
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}},
            "status": {"replicas": 2, "updatedReplicas": 2, "observedGeneration": 2},
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    /// The ReplicaSet of the template above, with `available` of its two pods.
    fn current_set(available: i32) -> Arc<ReplicaSet> {
        let mut set = new_replica_set(&deployment(|_| {}), None).unwrap();
        set.metadata.uid = Some("r".into());
        set.spec.get_or_insert_default().replicas = Some(2);
        note_sizes(&mut set, &deployment(|_| {}));
        note_revision(&mut set, &deployment(|_| {}), 1);
        let status = json!({"replicas": 2, "readyReplicas": available, "availableReplicas": available});
        set.status = serde_json::from_value(status).unwrap();
        Arc::new(set)
    }

    fn progressing(reason: &str, updated: &str) -> Value {
        json!([{"type": "Progressing", "status": "True", "reason": reason, "message": "",
            "lastUpdateTime": updated, "lastTransitionTime": updated}])
    }

    fn told(plan: &Plan, type_: &str) -> String {
        let condition = find(&plan.status, type_);
        condition.map(|condition| format!("{} {}", condition.status, condition.reason.clone().unwrap())).unwrap_or_default()
    }

    #[test]
    fn progress_is_judged_by_the_deadline() {
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        // Reason and time of the condition, available pods, what is told afterwards, seconds until the next look
        let cases = [
            ("ReplicaSetUpdated", "2026-01-01T00:01:30Z", 0, "True ReplicaSetUpdated", Some(31)),
            ("ReplicaSetUpdated", "2026-01-01T00:00:59Z", 0, "False ProgressDeadlineExceeded", None),
            ("ReplicaSetUpdated", "2026-01-01T00:00:59Z", 1, "True ReplicaSetUpdated", Some(61)),
            ("ReplicaSetUpdated", "2026-01-01T00:00:59Z", 2, "True NewReplicaSetAvailable", None),
            ("NewReplicaSetAvailable", "2026-01-01T00:00:00Z", 0, "True NewReplicaSetAvailable", None),
        ];
        for (reason, updated, available, expected, next) in cases {
            let deployment = deployment(|value| value["status"]["conditions"] = progressing(reason, updated));
            let observed = Observed { deployment: &deployment, replica_sets: vec![current_set(available)], pods: vec![], now };
            let plan = plan(&observed).unwrap();
            assert_eq!(told(&plan, PROGRESSING), expected, "{reason} {updated} {available}");
            assert_eq!(plan.look_again.map(|delay| delay.as_secs()), next, "{reason} {updated} {available}");
            let available_now = if available == 2 { "True MinimumReplicasAvailable" } else { "False MinimumReplicasUnavailable" };
            assert_eq!(told(&plan, "Available"), available_now);
        }
    }

    #[test]
    fn pausing_stops_the_clock_and_resuming_starts_it_anew() {
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        let cases = [
            (true, "ReplicaSetUpdated", "Unknown DeploymentPaused"),
            (false, "DeploymentPaused", "Unknown DeploymentResumed"),
            (true, "ProgressDeadlineExceeded", "True ProgressDeadlineExceeded"),
        ];
        for (paused, reason, expected) in cases {
            let deployment = deployment(|value| {
                value["spec"]["paused"] = json!(paused);
                value["status"]["conditions"] = progressing(reason, "2026-01-01T00:01:50Z");
            });
            let observed = Observed { deployment: &deployment, replica_sets: vec![current_set(0)], pods: vec![], now };
            assert_eq!(told(&plan(&observed).unwrap(), PROGRESSING), expected, "{paused} {reason}");
        }
    }

    #[test]
    fn a_first_pass_creates_the_set_with_everything_it_needs() {
        let deployment = deployment(|value| {
            value["metadata"]["annotations"] = json!({"team": "shop"});
            value["status"] = Value::Null;
        });
        let observed = Observed { deployment: &deployment, replica_sets: vec![], pods: vec![], now: Timestamp::UNIX_EPOCH };
        let plan = plan(&observed).unwrap();
        let created = plan.create.unwrap();
        let hash = template_hash(&deployment.spec.as_ref().unwrap().template, None).unwrap();
        assert_eq!(
            serde_json::to_value(&created.set).unwrap(),
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
                "metadata": {"name": format!("web-{hash}"), "namespace": "n", "labels": {"app": "web", "pod-template-hash": hash},
                    "annotations": {"team": "shop", "deployment.kubernetes.io/revision": "1",
                        "deployment.kubernetes.io/desired-replicas": "2", "deployment.kubernetes.io/max-replicas": "3"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d",
                        "controller": true, "blockOwnerDeletion": true}]},
                "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web", "pod-template-hash": hash}},
                    "template": {"metadata": {"labels": {"app": "web", "pod-template-hash": hash}},
                        "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
        );
        assert_eq!(created.scalings, [format!("Scaled up replica set web-{hash} from 0 to 2")]);
        assert_eq!(plan.revision.as_deref(), Some("1"));
        assert_eq!(told_of(&plan.status), "True NewReplicaSetCreated");
    }

    fn told_of(status: &DeploymentStatus) -> String {
        let condition = find(status, PROGRESSING).unwrap();
        format!("{} {}", condition.status, condition.reason.clone().unwrap())
    }
}
