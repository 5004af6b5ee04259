//! What the engine has to know about the kind that owns the pods.

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::Resource;
use serde::Serialize;

use crate::shared::informer::Watched;

/// The replica counts of a status, over the active pods an owner has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub replicas: i32,
    /// Pods that carry every label of the template.
    pub fully_labeled: i32,
    pub ready: i32,
    /// Ready for at least `minReadySeconds`.
    pub available: i32,
    /// Pods being deleted that have not ended yet; they count in none of the others. Not every kind of owner reports them.
    pub terminating: Option<i32>,
    /// The generation of the spec that was acted on.
    pub observed_generation: i64,
}

/// One status condition; the only type is `ReplicaFailure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub type_: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_transition_time: Option<Timestamp>,
}

/// A kind that owns pods by replica count.
pub trait ReplicaOwner: Watched + Resource<Scope = NamespaceResourceScope> + Serialize {
    /// The loop's name, which is also the queue's.
    const LOOP: &'static str;
    /// Whether its status has `terminatingReplicas`.
    const REPORTS_TERMINATING: bool;

    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn selector(&self) -> LabelSelector;
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// The counts its status has now.
    fn counts(&self) -> Counts;
    fn conditions(&self) -> Vec<Condition>;
    /// The same object with another status.
    fn with_status(&self, counts: Counts, conditions: Vec<Condition>) -> Self;
}

impl ReplicaOwner for ReplicaSet {
    const LOOP: &'static str = "replicaset-controller";
    const REPORTS_TERMINATING: bool = true;

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> LabelSelector {
        self.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default()
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
            terminating: status.terminating_replicas,
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
                last_transition_time: condition.last_transition_time.as_ref().map(|time| time.0),
            })
            .collect()
    }

    fn with_status(&self, counts: Counts, conditions: Vec<Condition>) -> Self {
        let conditions: Vec<ReplicaSetCondition> = conditions
            .into_iter()
            .map(|condition| ReplicaSetCondition {
                type_: condition.type_,
                status: condition.status,
                reason: Some(condition.reason),
                message: Some(condition.message),
                last_transition_time: condition.last_transition_time.map(Time),
            })
            .collect();
        let status = ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: non_zero(counts.fully_labeled),
            ready_replicas: non_zero(counts.ready),
            available_replicas: non_zero(counts.available),
            terminating_replicas: counts.terminating,
            observed_generation: Some(counts.observed_generation),
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        ReplicaSet { status: Some(status), ..self.clone() }
    }
}

/// Kubernetes leaves these counts out when they are zero.
pub(crate) fn non_zero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}
