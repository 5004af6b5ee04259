//! The status of a Deployment: its counts, whether it is available, and whether its rollout progresses.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};

use super::conditions::{
    AVAILABLE, NEW_REPLICA_SET_AVAILABLE, PROGRESS_DEADLINE_EXCEEDED, PROGRESSING, REPLICA_FAILURE, REPLICA_SET_UPDATED,
    condition, find, reason, remove, replace, set,
};
use super::sets::{Sets, WorkingSet};
use super::strategy::{desired, max_unavailable};
use crate::replica_set::non_zero;
use crate::shared::meta::name;

/// The seconds after which a rollout without progress has failed; `None` if progress is not judged.
pub fn progress_deadline(deployment: &Deployment) -> Option<i32> {
    let seconds = deployment.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds);
    seconds.filter(|seconds| *seconds != i32::MAX)
}

/// The counts and the `Available` condition; all other conditions are kept from `before`.
pub fn counts(deployment: &Deployment, before: &DeploymentStatus, sets: &Sets, now: Timestamp) -> DeploymentStatus {
    let sum = |of: fn(&WorkingSet) -> i32| sets.all().map(of).sum::<i32>();
    let available = sum(WorkingSet::available);
    let terminating: Option<Vec<i32>> =
        sets.all().map(|set| set.set.status.as_ref().and_then(|status| status.terminating_replicas)).collect();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: non_zero(sum(WorkingSet::actual)),
        updated_replicas: non_zero(sets.new.as_ref().map_or(0, WorkingSet::actual)),
        ready_replicas: non_zero(sum(WorkingSet::ready)),
        available_replicas: non_zero(available),
        unavailable_replicas: non_zero((sum(WorkingSet::replicas) - available).max(0)),
        // A ReplicaSet that has not reported yet leaves the whole unknown.
        terminating_replicas: terminating.map(|counts| counts.iter().sum()),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
    };
    let availability = if available >= desired(deployment) - max_unavailable(deployment) {
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", now)
    } else {
        condition(AVAILABLE, "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.", now)
    };
    set(&mut status, availability);
    status
}

/// Every pod is of the current template and available, and no other is left.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = desired(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// More new pods, fewer old ones, more ready or more available ones than before.
fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let count = |count: Option<i32>| count.unwrap_or(0);
    let old = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(after.updated_replicas) > count(before.updated_replicas)
        || old(after) < old(before)
        || count(after.ready_replicas) > count(before.ready_replicas)
        || count(after.available_replicas) > count(before.available_replicas)
}

/// No progress was reported for longer than the deadline.
fn has_timed_out(deadline: i32, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(condition) = find(status, PROGRESSING) else { return false };
    match condition.reason.as_deref() {
        Some(NEW_REPLICA_SET_AVAILABLE) => false,
        Some(PROGRESS_DEADLINE_EXCEEDED) => true,
        _ => time_left(deadline, condition, now).is_some_and(|left| left < SignedDuration::ZERO),
    }
}

fn time_left(deadline: i32, condition: &DeploymentCondition, now: Timestamp) -> Option<SignedDuration> {
    let since = condition.last_update_time.as_ref()?.0;
    Some(SignedDuration::from_secs(deadline.into()) - now.duration_since(since))
}

/// The status during and after a rollout. `before` is the observed status with what this pass added to its conditions.
pub fn rollout_status(deployment: &Deployment, before: &DeploymentStatus, sets: &Sets, now: Timestamp) -> DeploymentStatus {
    let mut status = counts(deployment, before, sets, now);
    match progress_deadline(deployment) {
        None => remove(&mut status, PROGRESSING),
        // A rollout that has completed is not judged again when pods come and go later.
        Some(_)
            if status.replicas == status.updated_replicas && reason(before, PROGRESSING) == Some(NEW_REPLICA_SET_AVAILABLE) => {}
        Some(deadline) => judge_progress(deployment, before, &mut status, sets, deadline, now),
    }
    match replica_failure(sets) {
        Some(failure) => set(&mut status, failure),
        None => remove(&mut status, REPLICA_FAILURE),
    }
    status
}

fn judge_progress(
    deployment: &Deployment,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
    sets: &Sets,
    deadline: i32,
    now: Timestamp,
) {
    let subject = match &sets.new {
        Some(new) => format!("ReplicaSet {:?}", name(&new.set.metadata)),
        None => format!("Deployment {:?}", name(&deployment.metadata)),
    };
    if is_complete(deployment, status) {
        let text = format!("{subject} has successfully progressed.");
        set(status, condition(PROGRESSING, "True", NEW_REPLICA_SET_AVAILABLE, text, now));
    } else if has_progressed(before, status) {
        // Progress moves the time of update even if status and reason stay: the deadline counts from it.
        let mut progressing = condition(PROGRESSING, "True", REPLICA_SET_UPDATED, format!("{subject} is progressing."), now);
        if let Some(earlier) = find(before, PROGRESSING).filter(|earlier| earlier.status == "True") {
            progressing.last_transition_time.clone_from(&earlier.last_transition_time);
        }
        replace(status, progressing);
    } else if has_timed_out(deadline, status, now) {
        let text = format!("{subject} has timed out progressing.");
        set(status, condition(PROGRESSING, "False", PROGRESS_DEADLINE_EXCEEDED, text, now));
    }
}

/// The failure of a ReplicaSet to make its pods: the new one's, or else the first of another.
fn replica_failure(sets: &Sets) -> Option<DeploymentCondition> {
    let failure = |set: &WorkingSet| {
        let conditions = set.set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE).cloned()
    };
    let found = sets.new.as_ref().and_then(failure).or_else(|| sets.old.iter().find_map(failure))?;
    Some(DeploymentCondition {
        type_: REPLICA_FAILURE.into(),
        status: found.status,
        reason: found.reason,
        message: found.message,
        last_update_time: found.last_transition_time.clone(),
        last_transition_time: found.last_transition_time,
    })
}

/// When to look again, because the deadline may have passed by then without anything else happening.
pub fn next_deadline(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline = progress_deadline(deployment)?;
    let progressing = find(status, PROGRESSING)?;
    if is_complete(deployment, status)
        || matches!(progressing.reason.as_deref(), Some(PROGRESS_DEADLINE_EXCEEDED | NEW_REPLICA_SET_AVAILABLE))
    {
        return None;
    }
    let left = Duration::try_from(time_left(deadline, progressing, now)?).unwrap_or(Duration::ZERO);
    // A second more, because the condition's time has lost its fraction.
    Some(left + Duration::from_secs(1))
}
