//! Who owns whom, as the watches have shown it. A plain value: objects in, work out.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::shared::discovery::group_of;

/// On an object that waits until its blocking dependents are gone.
pub const FOREGROUND_FINALIZER: &str = "foregroundDeletion";
/// On an object whose dependents are to be orphaned before it goes.
pub const ORPHAN_FINALIZER: &str = "orphan";

/// Where an object is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub api_version: String,
    pub kind: String,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub identity: Identity,
    pub owners: Vec<OwnerReference>,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// It is being deleted and waits for its dependents to be deleted.
    pub foreground: bool,
    /// It is being deleted and waits for its dependents to be orphaned.
    pub orphaning: bool,
}

impl Node {
    /// The node of an object with this metadata.
    pub fn new(api_version: &str, kind: &str, meta: &ObjectMeta) -> Self {
        let deleting = meta.deletion_timestamp.is_some();
        let finalizer = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        Node {
            identity: Identity {
                api_version: api_version.to_owned(),
                kind: kind.to_owned(),
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
                uid: meta.uid.clone().unwrap_or_default(),
            },
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting,
            foreground: deleting && finalizer(FOREGROUND_FINALIZER),
            orphaning: deleting && finalizer(ORPHAN_FINALIZER),
        }
    }

    /// Whether a reference on an object in `namespace` names this node: kind, name and namespace as well as the UID. A namespaced
    /// owner can only own within its namespace.
    fn is_meant_by(&self, reference: &OwnerReference, namespace: &str) -> bool {
        let own = &self.identity;
        own.uid == reference.uid
            && own.kind == reference.kind
            && group_of(&own.api_version) == group_of(&reference.api_version)
            && own.name == reference.name
            && (own.namespace.is_empty() || own.namespace == namespace)
    }
}

/// Something to be looked into, by UID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// The object may have to be deleted, or its foreground deletion completed.
    Delete(String),
    /// The object's dependents are to be orphaned.
    Orphan(String),
}

/// All objects and their dependents. The dependents of an owner that was never seen are kept too.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    pub fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The objects that refer to this UID as an owner.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &Node> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|dependent| self.nodes.get(dependent))
    }

    /// The dependents that must be gone before a foreground deletion of `owner` completes.
    pub fn blocking_dependents(&self, owner: &Node) -> Vec<Node> {
        let blocks = |dependent: &&Node| {
            let namespace = &dependent.identity.namespace;
            let blocking = |reference: &OwnerReference| {
                reference.block_owner_deletion == Some(true) && owner.is_meant_by(reference, namespace)
            };
            dependent.owners.iter().any(blocking)
        };
        self.dependents(&owner.identity.uid).filter(blocks).cloned().collect()
    }

    /// Whether every owner of the node is known to exist and does not wait for its dependents. Then there is nothing to look up:
    /// when one of them changes, the node is looked into again.
    pub fn is_held(&self, node: &Node) -> bool {
        node.owners.iter().all(|reference| {
            let owner = self.nodes.get(&reference.uid);
            owner.is_some_and(|owner| !owner.foreground && owner.is_meant_by(reference, &node.identity.namespace))
        })
    }

    /// An object was seen. Returns what is to be looked into because of it.
    pub fn apply(&mut self, node: Node) -> Vec<Work> {
        let mut work = Vec::new();
        let uid = node.identity.uid.clone();
        let before = self.nodes.insert(uid.clone(), node.clone());
        let owners_before = before.as_ref().map(|before| before.owners.clone()).unwrap_or_default();
        for reference in &owners_before {
            let still = node.owners.iter().find(|now| now.uid == reference.uid);
            if still.is_none() {
                self.unlink(&reference.uid, &uid);
            }
            let blocked = reference.block_owner_deletion == Some(true);
            let blocks = still.is_some_and(|now| now.block_owner_deletion == Some(true));
            if blocked && !blocks {
                self.owner_unblocked(&reference.uid, &mut work);
            }
        }
        for reference in &node.owners {
            self.dependents.entry(reference.uid.clone()).or_default().insert(uid.clone());
        }
        if node.owners != owners_before && !node.owners.is_empty() && !self.is_held(&node) {
            work.push(Work::Delete(uid.clone()));
        }
        if before.is_none() {
            // Dependents that were seen first and name this owner wrongly.
            let misled = self.dependents(&uid).filter(|dependent| {
                dependent.owners.iter().any(|owner| owner.uid == uid && !node.is_meant_by(owner, &dependent.identity.namespace))
            });
            work.extend(misled.map(|dependent| Work::Delete(dependent.identity.uid.clone())));
        }
        if node.orphaning && !before.as_ref().is_some_and(|before| before.orphaning) {
            work.push(Work::Orphan(uid.clone()));
        }
        if node.foreground && !before.as_ref().is_some_and(|before| before.foreground) {
            work.extend(self.dependents(&uid).map(|dependent| Work::Delete(dependent.identity.uid.clone())));
            work.push(Work::Delete(uid));
        }
        work
    }

    /// An object is gone. Returns what is to be looked into because of it.
    pub fn remove(&mut self, uid: &str) -> Vec<Work> {
        let mut work = Vec::new();
        let Some(node) = self.nodes.remove(uid) else { return work };
        for reference in &node.owners {
            self.unlink(&reference.uid, uid);
            self.owner_unblocked(&reference.uid, &mut work);
        }
        work.extend(self.dependents(uid).map(|dependent| Work::Delete(dependent.identity.uid.clone())));
        work
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn owner_unblocked(&self, owner: &str, work: &mut Vec<Work>) {
        if self.nodes.get(owner).is_some_and(|owner| owner.foreground) {
            work.push(Work::Delete(owner.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn reference(uid: &str, blocking: Option<bool>) -> OwnerReference {
        OwnerReference {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            name: uid.into(),
            uid: uid.into(),
            controller: None,
            block_owner_deletion: blocking,
        }
    }

    fn node(uid: &str, owners: &[&str]) -> Node {
        Node {
            identity: Identity {
                api_version: "v1".into(),
                kind: "ConfigMap".into(),
                namespace: "n".into(),
                name: uid.into(),
                uid: uid.into(),
            },
            owners: owners.iter().map(|owner| reference(owner, Some(true))).collect(),
            deleting: false,
            foreground: false,
            orphaning: false,
        }
    }

    fn delete(uids: &[&str]) -> Vec<Work> {
        uids.iter().map(|uid| Work::Delete((*uid).to_owned())).collect()
    }

    #[test]
    fn dependents_are_looked_into_when_their_owner_is_missing_or_goes() {
        let mut graph = Graph::default();
        assert_eq!(graph.apply(node("child", &["owner"])), delete(&["child"]), "the owner was never seen");
        assert_eq!(graph.apply(node("owner", &[])), vec![]);
        assert!(graph.is_held(graph.node("child").unwrap()));
        assert_eq!(graph.apply(node("second", &["owner"])), vec![]);
        assert_eq!(graph.remove("owner"), delete(&["child", "second"]));
        assert_eq!(graph.remove("child"), vec![]);
        assert_eq!(graph.remove("second"), vec![]);
        assert!(graph.nodes.is_empty() && graph.dependents.is_empty());
    }

    #[test]
    fn foreground_deletion_looks_into_dependents_and_then_the_owner() {
        let mut graph = Graph::default();
        graph.apply(node("owner", &[]));
        graph.apply(node("child", &["owner"]));
        let deleting = Node { deleting: true, foreground: true, ..node("owner", &[]) };
        assert_eq!(graph.apply(deleting.clone()), delete(&["child", "owner"]));
        assert_eq!(graph.blocking_dependents(&deleting).len(), 1);
        assert_eq!(graph.apply(deleting.clone()), vec![], "once");
        let unblocking = Node { owners: vec![reference("owner", Some(false))], ..node("child", &[]) };
        assert_eq!(graph.apply(unblocking), delete(&["owner", "child"]));
        assert!(graph.blocking_dependents(&deleting).is_empty());
        assert_eq!(graph.remove("child"), delete(&["owner"]));
    }

    #[test]
    fn orphaning_is_asked_for_once() {
        let mut graph = Graph::default();
        let deleting = Node { deleting: true, orphaning: true, ..node("owner", &[]) };
        assert_eq!(graph.apply(deleting.clone()), vec![Work::Orphan("owner".into())]);
        assert_eq!(graph.apply(deleting), vec![]);
    }

    #[test]
    fn an_owner_in_another_namespace_does_not_hold() {
        let mut graph = Graph::default();
        graph.apply(node("owner", &[]));
        let mut stranger = node("child", &["owner"]);
        stranger.identity.namespace = "other".into();
        assert_eq!(graph.apply(stranger.clone()), delete(&["child"]));
        assert!(!graph.is_held(&stranger));
        let deleting = Node { deleting: true, foreground: true, ..node("owner", &[]) };
        graph.apply(deleting.clone());
        assert!(graph.blocking_dependents(&deleting).is_empty(), "nor does it wait for it");
    }

    proptest! {
        /// Whatever happens, links mirror the owner references of the nodes there are, and nobody without a living owner is missed.
        #[test]
        fn links_mirror_owner_references(steps in prop::collection::vec((0_usize..6, prop::option::of(prop::collection::vec(0_usize..6, 0..3))), 1..60)) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let mut graph = Graph::default();
            let mut pending: BTreeSet<Work> = BTreeSet::new();
            for (index, owners) in steps {
                let work = match owners {
                    None => graph.remove(names[index]),
                    Some(owners) => {
                        let unique: BTreeSet<&str> = owners.iter().map(|owner| names[*owner]).collect();
                        graph.apply(node(names[index], &unique.into_iter().collect::<Vec<_>>()))
                    }
                };
                pending.extend(work);
                for node in graph.nodes.values() {
                    for owner in &node.owners {
                        prop_assert!(graph.dependents[&owner.uid].contains(&node.identity.uid));
                    }
                    if !graph.is_held(node) {
                        prop_assert!(pending.contains(&Work::Delete(node.identity.uid.clone())), "{} was missed", node.identity.uid);
                    }
                }
                let links: usize = graph.dependents.values().map(BTreeSet::len).sum();
                prop_assert_eq!(links, graph.nodes.values().map(|node| node.owners.len()).sum::<usize>());
            }
        }
    }
}
