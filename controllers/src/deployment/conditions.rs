//! A Deployment's status conditions, with Kubernetes' reasons and texts.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub const AVAILABLE: &str = "Available";
pub const PROGRESSING: &str = "Progressing";
pub const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Reasons of `Progressing`.
pub const NEW_REPLICA_SET_CREATED: &str = "NewReplicaSetCreated";
pub const FOUND_NEW_REPLICA_SET: &str = "FoundNewReplicaSet";
pub const REPLICA_SET_UPDATED: &str = "ReplicaSetUpdated";
pub const NEW_REPLICA_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub const REPLICA_SET_CREATE_ERROR: &str = "ReplicaSetCreateError";
pub const PROGRESS_DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
pub const DEPLOYMENT_PAUSED: &str = "DeploymentPaused";
pub const DEPLOYMENT_RESUMED: &str = "DeploymentResumed";

/// A condition that has its times from `now`.
pub fn condition(type_: &str, status: &str, reason: &str, message: impl Into<String>, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// The condition of a type.
pub fn find<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

/// The reason of the condition of a type.
pub fn reason<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a str> {
    find(status, type_)?.reason.as_deref()
}

/// Sets a condition. The same status and reason again changes nothing; the same status keeps the time of transition.
pub fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(before) = find(status, &condition.type_) {
        if before.status == condition.status && before.reason == condition.reason {
            return;
        }
        if before.status == condition.status {
            condition.last_transition_time.clone_from(&before.last_transition_time);
        }
    }
    replace(status, condition);
}

/// Puts a condition in the place of the one of its type, whatever that was.
pub fn replace(status: &mut DeploymentStatus, condition: DeploymentCondition) {
    remove(status, &condition.type_);
    status.conditions.get_or_insert_default().push(condition);
}

/// Removes the condition of a type.
pub fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
    }
    if status.conditions.as_ref().is_some_and(Vec::is_empty) {
        status.conditions = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_times_move_only_with_the_status() {
        let (early, late) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        let mut status = DeploymentStatus::default();
        set(&mut status, condition(PROGRESSING, "True", REPLICA_SET_UPDATED, "a", early));
        set(&mut status, condition(PROGRESSING, "True", REPLICA_SET_UPDATED, "b", late));
        assert_eq!(find(&status, PROGRESSING).unwrap().message.as_deref(), Some("a"));
        set(&mut status, condition(PROGRESSING, "True", NEW_REPLICA_SET_AVAILABLE, "c", late));
        let now = find(&status, PROGRESSING).unwrap();
        assert_eq!(now.last_transition_time, Some(Time(early)));
        assert_eq!(now.last_update_time, Some(Time(late)));
        set(&mut status, condition(PROGRESSING, "False", PROGRESS_DEADLINE_EXCEEDED, "d", late));
        assert_eq!(find(&status, PROGRESSING).unwrap().last_transition_time, Some(Time(late)));
        remove(&mut status, PROGRESSING);
        assert_eq!(status.conditions, None);
    }
}
