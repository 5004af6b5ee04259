//! Indexes over the pods that are placed: how many of a kind are on which node. A selector is evaluated once for each
//! distinct set of labels, not once for each pod.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    cluster::NodeIndex,
    pod::{PodClass, PodInfo},
    terms::AffinityTerm,
};

/// Pods by node.
type Counts = BTreeMap<NodeIndex, usize>;

fn increase(counts: &mut Counts, node: NodeIndex) {
    *counts.entry(node).or_default() += 1;
}

fn decrease(counts: &mut Counts, node: NodeIndex) {
    let count = counts.get_mut(&node);
    assert!(count.is_some(), "only what was counted is taken away");
    if let Some(count) = count {
        *count -= 1;
        if *count == 0 {
            counts.remove(&node);
        }
    }
}

/// Pods of one class: those that live, and those that are being deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ClassCounts {
    live: Counts,
    terminating: Counts,
}

/// Pods by namespace and labels.
#[derive(Clone, Debug, Default)]
pub struct ClassIndex {
    namespaces: HashMap<Arc<str>, HashMap<Arc<PodClass>, ClassCounts>>,
}

impl ClassIndex {
    pub fn add(&mut self, pod: &PodInfo, node: NodeIndex) {
        let classes = self.namespaces.entry(Arc::clone(&pod.class.namespace)).or_default();
        let counts = classes.entry(Arc::clone(&pod.class)).or_default();
        increase(if pod.terminating { &mut counts.terminating } else { &mut counts.live }, node);
    }

    pub fn remove(&mut self, pod: &PodInfo, node: NodeIndex) {
        let Some(classes) = self.namespaces.get_mut(&pod.class.namespace) else { return };
        let Some(counts) = classes.get_mut(&pod.class) else { return };
        decrease(if pod.terminating { &mut counts.terminating } else { &mut counts.live }, node);
        if *counts == ClassCounts::default() {
            classes.remove(&pod.class);
            if classes.is_empty() {
                self.namespaces.remove(&pod.class.namespace);
            }
        }
    }

    /// Calls `found` with (node, pods) for live pods of one namespace whose labels `matches` accepts.
    pub fn live_in_namespace(
        &self,
        namespace: &str,
        matches: impl Fn(&PodClass) -> bool,
        mut found: impl FnMut(NodeIndex, usize),
    ) {
        let classes = self.namespaces.get(namespace).into_iter().flatten();
        for (_, counts) in classes.filter(|(class, _)| matches(class)) {
            counts.live.iter().for_each(|(node, count)| found(*node, *count));
        }
    }

    /// Calls `found` with (node, pods) for all pods in the namespaces that `selects` accepts and whose class `matches` accepts.
    pub fn all(
        &self,
        selects: impl Fn(&str) -> bool,
        matches: impl Fn(&PodClass) -> bool,
        mut found: impl FnMut(NodeIndex, usize),
    ) {
        let classes = self.namespaces.iter().filter(|(namespace, _)| selects(namespace)).flat_map(|(_, classes)| classes);
        for (_, counts) in classes.filter(|(class, _)| matches(class)) {
            counts.live.iter().chain(&counts.terminating).for_each(|(node, count)| found(*node, *count));
        }
    }
}

/// Live pods by the controller that owns them.
#[derive(Clone, Debug, Default)]
pub struct GroupIndex {
    controllers: HashMap<Arc<str>, Counts>,
}

impl GroupIndex {
    pub fn add(&mut self, pod: &PodInfo, node: NodeIndex) {
        if let Some(controller) = pod.controller.as_ref().filter(|_| !pod.terminating) {
            increase(self.controllers.entry(Arc::clone(controller)).or_default(), node);
        }
    }

    pub fn remove(&mut self, pod: &PodInfo, node: NodeIndex) {
        let Some(controller) = pod.controller.as_ref().filter(|_| !pod.terminating) else { return };
        let Some(counts) = self.controllers.get_mut(controller) else { return };
        decrease(counts, node);
        if counts.is_empty() {
            self.controllers.remove(controller);
        }
    }

    /// (node, pods) of one controller.
    pub fn of<'a>(&'a self, controller: &str) -> impl Iterator<Item = (NodeIndex, usize)> + 'a {
        self.controllers.get(controller).into_iter().flatten().map(|(node, count)| (*node, *count))
    }
}

/// How a placed pod's term bears on pods that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TermRole {
    RequiredAntiAffinity,
    RequiredAffinity,
    /// With its weight; negative for anti-affinity.
    Preferred(i64),
}

/// One term, and the nodes with pods that bear it.
#[derive(Clone, Debug)]
pub struct TermEntry {
    pub term: AffinityTerm,
    nodes: Counts,
}

impl TermEntry {
    /// (node, pods that bear the term).
    pub fn nodes(&self) -> impl Iterator<Item = (NodeIndex, usize)> + '_ {
        self.nodes.iter().map(|(node, count)| (*node, *count))
    }
}

/// Terms of placed pods, each distinct one once.
#[derive(Clone, Debug, Default)]
pub struct TermIndex {
    entries: BTreeMap<(TermRole, Arc<str>), TermEntry>,
}

fn terms_of(pod: &PodInfo) -> impl Iterator<Item = (TermRole, &AffinityTerm)> {
    let affinity = &pod.affinity;
    let anti = affinity.required_anti.iter().map(|term| (TermRole::RequiredAntiAffinity, term));
    let required = affinity.required.iter().map(|term| (TermRole::RequiredAffinity, term));
    let preferred = affinity.preferred.iter().map(|(weight, term)| (TermRole::Preferred(*weight), term));
    anti.chain(required).chain(preferred)
}

impl TermIndex {
    pub fn add(&mut self, pod: &PodInfo, node: NodeIndex) {
        for (role, term) in terms_of(pod) {
            let entry = self.entries.entry((role, Arc::clone(&term.identity)));
            let entry = entry.or_insert_with(|| TermEntry { term: term.clone(), nodes: Counts::new() });
            increase(&mut entry.nodes, node);
        }
    }

    pub fn remove(&mut self, pod: &PodInfo, node: NodeIndex) {
        for (role, term) in terms_of(pod) {
            let key = (role, Arc::clone(&term.identity));
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            decrease(&mut entry.nodes, node);
            if entry.nodes.is_empty() {
                self.entries.remove(&key);
            }
        }
    }

    pub fn entries(&self) -> impl Iterator<Item = (TermRole, &TermEntry)> {
        self.entries.iter().map(|((role, _), entry)| (*role, entry))
    }
}
