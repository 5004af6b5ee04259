//! The scheduler's picture of the cluster, changed step by step as objects change: nodes with what is taken of them, and
//! indexes by which spreading and affinity are evaluated without visiting every pod.
//!
//! **Invariant:** whatever the order of the changes, the picture equals one built anew from the objects.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use trireme_api::selector::LabelSelector;

use crate::{
    index::{ClassIndex, GroupIndex, TermIndex},
    node::{NodeSpec, NodeState},
    pod::PodInfo,
    terms::LabelMap,
};

/// Labels of the namespaces.
pub type Namespaces = HashMap<Arc<str>, LabelMap>;

/// The place of a node in [`Cluster`]; valid until the node and its last pod are gone.
pub type NodeIndex = usize;

#[derive(Clone, Debug, Default)]
pub struct Cluster {
    slots: Vec<Option<NodeState>>,
    free: Vec<NodeIndex>,
    by_name: HashMap<Arc<str>, NodeIndex>,
    /// Where each pod that is placed is, by uid.
    placed: HashMap<Arc<str>, NodeIndex>,
    /// Where each pod is nominated, by uid.
    nominated: HashMap<Arc<str>, NodeIndex>,
    /// Nodes with an object, taking the zones in turn.
    order: Vec<NodeIndex>,
    order_is_stale: bool,
    pub(crate) classes: ClassIndex,
    pub(crate) groups: GroupIndex,
    pub(crate) terms: TermIndex,
    /// How many nodes hold an image.
    image_nodes: HashMap<Arc<str>, usize>,
    namespaces: Namespaces,
    /// Selectors of services by namespace and name.
    services: BTreeMap<(Arc<str>, Arc<str>), LabelSelector>,
}

impl Cluster {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node or takes over its new state. Gives the state before.
    pub fn set_node(&mut self, name: &str, spec: Arc<NodeSpec>) -> Option<Arc<NodeSpec>> {
        let index = self.slot_for(name);
        for image in spec.images.keys() {
            *self.image_nodes.entry(Arc::clone(image)).or_default() += 1;
        }
        let old = self.slots[index].as_mut().and_then(|node| node.spec.replace(Arc::clone(&spec)));
        if let Some(old) = &old {
            self.forget_images(old);
        }
        self.order_is_stale |= old.as_ref().is_none_or(|old| old.zone() != spec.zone());
        old
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(&index) = self.by_name.get(name) else { return };
        let Some(old) = self.slots[index].as_mut().and_then(|node| node.spec.take()) else { return };
        self.forget_images(&old);
        self.order_is_stale = true;
        self.drop_slot_if_unused(index);
    }

    fn forget_images(&mut self, spec: &NodeSpec) {
        for image in spec.images.keys() {
            if let Some(count) = self.image_nodes.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.image_nodes.remove(image);
                }
            }
        }
    }

    fn slot_for(&mut self, name: &str) -> NodeIndex {
        if let Some(&index) = self.by_name.get(name) {
            return index;
        }
        let name: Arc<str> = name.into();
        let node = NodeState { name: Arc::clone(&name), ..NodeState::default() };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = Some(node);
                index
            }
            None => {
                self.slots.push(Some(node));
                self.slots.len() - 1
            }
        };
        self.by_name.insert(name, index);
        index
    }

    fn drop_slot_if_unused(&mut self, index: NodeIndex) {
        let unused = |node: &NodeState| node.spec.is_none() && node.pods.is_empty() && node.nominated.is_empty();
        if let Some(node) = self.slots[index].take_if(|node| unused(node)) {
            self.by_name.remove(&node.name);
            self.free.push(index);
        }
    }

    /// Counts the pod on the node, in place of where it was counted before.
    pub fn place(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.remove_pod(&pod.uid);
        self.nominate(pod, None);
        let index = self.slot_for(node);
        self.place_at(pod, index);
    }

    pub(crate) fn place_at(&mut self, pod: &Arc<PodInfo>, index: NodeIndex) {
        let Some(node) = self.slots[index].as_mut() else { return };
        node.add(pod);
        self.placed.insert(Arc::clone(&pod.uid), index);
        self.classes.add(pod, index);
        self.groups.add(pod, index);
        self.terms.add(pod, index);
    }

    /// Takes the pod away from the node it is on. Gives the pod as it was counted, and the node.
    pub fn remove_pod(&mut self, uid: &str) -> Option<(Arc<PodInfo>, NodeIndex)> {
        let removed = self.lift(uid)?;
        self.drop_slot_if_unused(removed.1);
        Some(removed)
    }

    /// As [`Self::remove_pod`], but keeps the slot of a node without an object.
    pub(crate) fn lift(&mut self, uid: &str) -> Option<(Arc<PodInfo>, NodeIndex)> {
        let index = self.placed.remove(uid)?;
        let node = self.slots[index].as_mut()?;
        let pod = node.pods.get(uid).map(Arc::clone)?;
        node.remove(&pod);
        self.classes.remove(&pod, index);
        self.groups.remove(&pod, index);
        self.terms.remove(&pod, index);
        Some((pod, index))
    }

    /// Reserves room for a pod that others make way for; None takes the reservation back.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: Option<&str>) {
        if let Some(index) = self.nominated.remove(&pod.uid) {
            if let Some(state) = self.slots[index].as_mut() {
                state.nominated.retain(|other| other.uid != pod.uid);
            }
            self.drop_slot_if_unused(index);
        }
        if let Some(name) = node {
            let index = self.slot_for(name);
            if let Some(state) = self.slots[index].as_mut() {
                state.nominated.push(Arc::clone(pod));
                self.nominated.insert(Arc::clone(&pod.uid), index);
            }
        }
    }

    /// Takes back the room that is reserved for a pod. Gives the pod, if there was any.
    pub fn withdraw_nomination(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let node = self.slots[self.nominated_node(uid)?].as_ref()?;
        let pod = node.nominated.iter().find(|pod| &*pod.uid == uid).cloned()?;
        self.nominate(&pod, None);
        Some(pod)
    }

    /// Takes back the room that is reserved on a node for pods of a lower priority. Gives those pods.
    pub fn displace_nominated(&mut self, node: &str, priority: i32) -> Vec<Arc<PodInfo>> {
        let node = self.by_name.get(node).and_then(|index| self.slots[*index].as_ref());
        let reserved = node.into_iter().flat_map(|node| &node.nominated);
        let displaced: Vec<Arc<PodInfo>> = reserved.filter(|pod| pod.priority < priority).cloned().collect();
        displaced.iter().for_each(|pod| self.nominate(pod, None));
        displaced
    }

    pub fn nominated_node(&self, uid: &str) -> Option<NodeIndex> {
        self.nominated.get(uid).copied()
    }

    pub fn set_namespace(&mut self, name: &str, labels: LabelMap) {
        self.namespaces.insert(name.into(), labels);
    }

    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Notes a service's selector; one without a selector selects no pods.
    pub fn set_service(&mut self, namespace: &str, name: &str, selector: &LabelMap) {
        let key = (namespace.into(), name.into());
        if selector.is_empty() {
            self.services.remove(&key);
        } else {
            let labels = selector.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            self.services.insert(key, LabelSelector::from_labels(labels));
        }
    }

    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        self.services.remove(&(namespace.into(), name.into()));
    }

    /// Selectors of the services that the pod belongs to.
    pub fn services_of<'a>(&'a self, pod: &'a PodInfo) -> impl Iterator<Item = &'a LabelSelector> {
        let first = (Arc::clone(&pod.class.namespace), Arc::from(""));
        self.services
            .range(first..)
            .take_while(|((namespace, _), _)| *namespace == pod.class.namespace)
            .map(|(_, selector)| selector)
            .filter(|selector| selector.matches(pod.labels()))
    }

    /// To be called after changes and before [`Self::nodes_in_order`].
    pub fn refresh_order(&mut self) {
        if !self.order_is_stale {
            return;
        }
        self.order_is_stale = false;
        let mut zones: BTreeMap<(&str, &str), Vec<(&str, NodeIndex)>> = BTreeMap::new();
        for (index, node) in self.slots.iter().enumerate() {
            let Some(node) = node else { continue };
            if let Some(spec) = &node.spec {
                zones.entry(spec.zone()).or_default().push((&node.name, index));
            }
        }
        for nodes in zones.values_mut() {
            nodes.sort_unstable();
        }
        let longest = zones.values().map(Vec::len).max().unwrap_or(0);
        let turn = |at: usize| zones.values().filter_map(move |nodes| nodes.get(at).map(|(_, index)| *index)).collect::<Vec<_>>();
        self.order = (0..longest).flat_map(turn).collect();
    }

    pub fn nodes_in_order(&self) -> &[NodeIndex] {
        assert!(!self.order_is_stale, "the order of nodes is brought up to date before it is used");
        &self.order
    }

    /// How many slots there are: every [`NodeIndex`] is smaller.
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// A node that has an object.
    pub fn node(&self, index: NodeIndex) -> Option<(&NodeState, &NodeSpec)> {
        let node = self.slots.get(index)?.as_ref()?;
        Some((node, node.spec.as_deref()?))
    }

    /// All nodes that have an object, in no particular order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeIndex, &NodeState, &NodeSpec)> {
        self.slots.iter().enumerate().filter_map(|(index, node)| {
            let node = node.as_ref()?;
            Some((index, node, node.spec.as_deref()?))
        })
    }

    pub fn node_named(&self, name: &str) -> Option<NodeIndex> {
        let index = *self.by_name.get(name)?;
        self.node(index).map(|_| index)
    }

    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    /// A pod that is counted on a node.
    pub fn placed_pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.slots[*self.placed.get(uid)?].as_ref()?.pods.get(uid)
    }

    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.image_nodes.get(image).copied().unwrap_or(0)
    }

    /// The uids of all pods that are counted.
    pub fn placed_uids(&self) -> HashSet<Arc<str>> {
        self.placed.keys().cloned().collect()
    }
}
