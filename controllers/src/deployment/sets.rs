//! The ReplicaSets of one Deployment as a plan changes them: copies, each with what it was and why it is scaled.

use std::cmp::Ordering;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::annotations::{desired_replicas, max_replicas, note_sizes};
use super::strategy::{desired, max_surge};
use crate::shared::meta::name;

/// One ReplicaSet while a plan is made.
#[derive(Clone, Debug)]
pub struct WorkingSet {
    /// As it will be written.
    pub set: ReplicaSet,
    /// As it was observed; `None` for one that is to be created.
    pub observed: Option<Arc<ReplicaSet>>,
    /// Texts of the `ScalingReplicaSet` events, in order.
    pub scalings: Vec<String>,
}

impl WorkingSet {
    pub fn observed(set: Arc<ReplicaSet>) -> Self {
        WorkingSet { set: (*set).clone(), observed: Some(set), scalings: Vec::new() }
    }

    /// The size it is asked to have.
    pub fn replicas(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    /// Whether its status is of an earlier spec than the one observed.
    fn is_stale(&self) -> bool {
        let observed = self.set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
        self.set.metadata.generation.unwrap_or(0) > observed
    }

    /// The available pods its status reports.
    pub fn available(&self) -> i32 {
        self.set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
    }

    /// The available pods that can be relied on: a status of an earlier spec may count pods that are being deleted, so it counts
    /// as none; and no more stay than are asked for.
    pub fn dependable(&self) -> i32 {
        if self.is_stale() { 0 } else { self.available().min(self.replicas()) }
    }

    /// The ready pods its status reports.
    pub fn ready(&self) -> i32 {
        self.set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
    }

    /// The pods its status reports.
    pub fn actual(&self) -> i32 {
        self.set.status.as_ref().map_or(0, |status| status.replicas)
    }

    /// Whether the write is needed: something differs from what was observed.
    pub fn changed(&self) -> bool {
        self.observed.as_ref().is_some_and(|observed| **observed != self.set)
    }

    /// Sets the size and notes what it was scaled for; returns whether the size changed.
    pub fn scale(&mut self, replicas: i32, deployment: &Deployment) -> bool {
        assert!(replicas >= 0, "a ReplicaSet is never scaled below zero");
        let before = self.replicas();
        let wanted = desired(deployment);
        let noted = desired_replicas(&self.set) == Some(wanted)
            && max_replicas(&self.set) == Some(wanted.saturating_add(max_surge(deployment)));
        if !noted {
            note_sizes(&mut self.set, deployment);
        }
        if before == replicas {
            return false;
        }
        self.set.spec.get_or_insert_default().replicas = Some(replicas);
        let direction = if before < replicas { "up" } else { "down" };
        self.scalings.push(format!("Scaled {direction} replica set {} from {before} to {replicas}", name(&self.set.metadata)));
        true
    }
}

/// The ReplicaSet of the current template, if there is one, and all others.
#[derive(Clone, Debug)]
pub struct Sets {
    pub new: Option<WorkingSet>,
    pub old: Vec<WorkingSet>,
}

impl Sets {
    pub fn all(&self) -> impl Iterator<Item = &WorkingSet> {
        self.old.iter().chain(&self.new)
    }

    /// Those with a size above zero.
    pub fn active_mut(&mut self) -> Vec<&mut WorkingSet> {
        self.old.iter_mut().chain(&mut self.new).filter(|set| set.replicas() > 0).collect()
    }

    /// The sum of the sizes asked for.
    pub fn total(&self) -> i32 {
        self.all().map(WorkingSet::replicas).sum()
    }
}

/// Oldest first; by name among equals.
pub fn by_age(left: &ReplicaSet, right: &ReplicaSet) -> Ordering {
    let age = |set: &ReplicaSet| set.metadata.creation_timestamp.as_ref().map(|time| time.0);
    age(left).cmp(&age(right)).then_with(|| name(&left.metadata).cmp(name(&right.metadata)))
}
