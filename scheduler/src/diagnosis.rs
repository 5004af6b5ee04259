//! Why no node would do, told as Kubernetes tells it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    cluster::NodeIndex,
    plugins::{Plugin, Rejection, Remedy},
};

/// Counts of reasons, in the form `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasons(BTreeMap<Cow<'static, str>, usize>);

impl Reasons {
    pub fn add(&mut self, reason: impl Into<Cow<'static, str>>) {
        self.add_times(reason, 1);
    }

    pub fn add_times(&mut self, reason: impl Into<Cow<'static, str>>, times: usize) {
        if times > 0 {
            *self.0.entry(reason.into()).or_default() += times;
        }
    }

    /// The message for a cluster with this many nodes.
    pub fn message(&self, nodes: usize) -> String {
        // Kubernetes sorts the texts with their counts in front.
        let mut texts: Vec<String> = self.0.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        texts.sort_unstable();
        let list = if texts.is_empty() { String::new() } else { format!(" {}.", texts.join(", ")) };
        format!("0/{nodes} nodes are available:{list}")
    }
}

/// What came of filtering when no node passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    pub nodes: usize,
    pub reasons: Reasons,
    /// The filters that turned nodes down: what can change their minds is what makes another try worthwhile.
    pub plugins: BTreeSet<Plugin>,
    /// Nodes that could do once some pods leave.
    pub preemptible: Vec<NodeIndex>,
}

impl Diagnosis {
    pub fn new(nodes: usize) -> Self {
        Self { nodes, ..Self::default() }
    }

    pub fn reject(&mut self, node: NodeIndex, rejection: Rejection) {
        self.plugins.insert(rejection.plugin);
        if rejection.remedy == Remedy::Preemption {
            self.preemptible.push(node);
        }
        rejection.reasons.into_iter().for_each(|reason| self.reasons.add(reason));
    }

    /// Notes nodes that were not looked at, since the pod names the only ones it can go to.
    pub fn reject_unnamed(&mut self, count: usize) {
        if count > 0 {
            self.plugins.insert(Plugin::NodeAffinity);
            self.reasons.add_times("node(s) didn't satisfy plugin(s) [NodeAffinity]", count);
        }
    }

    /// The whole text; `preemption` is what came of preemption, if it was tried in vain.
    pub fn message(&self, preemption: Option<&str>) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let filtering = self.reasons.message(self.nodes);
        preemption.map_or(filtering.clone(), |text| format!("{filtering} preemption: {text}"))
    }
}
