//! Keeps as many pods running as a ReplicationController asks for: the ReplicaSet engine over another kind.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};

use crate::replica_set::{Condition, Counts, ReplicaOwner, non_zero};

impl ReplicaOwner for ReplicationController {
    const LOOP: &'static str = "replication-controller";
    const REPORTS_TERMINATING: bool = false;

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> LabelSelector {
        let labels = self.spec.as_ref().and_then(|spec| spec.selector.clone());
        LabelSelector { match_labels: labels, match_expressions: None }
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn counts(&self) -> Counts {
        let status = self.status.clone().unwrap_or_default();
        Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: None,
            observed_generation: status.observed_generation.unwrap_or(0),
        }
    }

    fn conditions(&self) -> Vec<Condition> {
        let conditions = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions
            .map(|condition| Condition {
                type_: condition.type_.clone(),
                status: condition.status.clone(),
                reason: condition.reason.clone().unwrap_or_default(),
                message: condition.message.clone().unwrap_or_default(),
                last_transition_time: condition.last_transition_time.as_ref().map(|time: &Time| -> Timestamp { time.0 }),
            })
            .collect()
    }

    fn with_status(&self, counts: Counts, conditions: Vec<Condition>) -> Self {
        let conditions: Vec<ReplicationControllerCondition> = conditions
            .into_iter()
            .map(|condition| ReplicationControllerCondition {
                type_: condition.type_,
                status: condition.status,
                reason: Some(condition.reason),
                message: Some(condition.message),
                last_transition_time: condition.last_transition_time.map(Time),
            })
            .collect();
        let status = ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: non_zero(counts.fully_labeled),
            ready_replicas: non_zero(counts.ready),
            available_replicas: non_zero(counts.available),
            observed_generation: Some(counts.observed_generation),
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        ReplicationController { status: Some(status), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_status_survives_a_round_trip() {
        let owner: ReplicationController =
            serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"app": "web"}}}))
                .unwrap();
        let counts = Counts { replicas: 2, fully_labeled: 2, ready: 1, available: 0, terminating: None, observed_generation: 3 };
        let condition = Condition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: "FailedCreate".into(),
            message: "quota".into(),
            last_transition_time: Some(Timestamp::UNIX_EPOCH),
        };
        let written = owner.with_status(counts, vec![condition.clone()]);
        assert_eq!((written.counts(), written.conditions()), (counts, vec![condition]));
        assert_eq!((written.replicas(), written.selector().match_labels), (2, owner.spec.unwrap().selector));
    }
}
