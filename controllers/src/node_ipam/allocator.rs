//! Which node has which part of the pods' range: a plain value.

use std::collections::{BTreeMap, BTreeSet};

use trireme_api::cidr::Ipv4Cidr;

/// The parts of the range and the nodes that hold them. A part may have several holders only where nodes came with overlapping
/// CIDRs of their own; a part that has a holder is never given away.
#[derive(Debug)]
pub struct Allocator {
    range: Ipv4Cidr,
    /// The prefix length of a node's part.
    prefix: u8,
    /// Who holds each part, by its position; a part without a holder is absent.
    holders: BTreeMap<u64, BTreeSet<String>>,
    /// What each node holds: the CIDR it was given here or came with.
    held: BTreeMap<String, BTreeSet<Ipv4Cidr>>,
    /// Where the search for a free part begins: after the last one given, so that a freed part rests before it is used again.
    next: u64,
}

impl Allocator {
    /// An allocator of parts of `prefix` bits of `range`.
    pub fn new(range: Ipv4Cidr, prefix: u8) -> Self {
        Allocator { range, prefix, holders: BTreeMap::new(), held: BTreeMap::new(), next: 0 }
    }

    /// The node has this CIDR.
    pub fn occupy(&mut self, node: &str, cidr: Ipv4Cidr) {
        self.held.entry(node.to_owned()).or_default().insert(cidr);
        if let Some((first, last)) = self.range.overlapped(self.prefix, cidr) {
            for position in first..=last {
                self.holders.entry(position).or_default().insert(node.to_owned());
            }
        }
    }

    /// The node is gone: what it held is free.
    pub fn release(&mut self, node: &str) {
        for cidr in self.held.remove(node).unwrap_or_default() {
            let Some((first, last)) = self.range.overlapped(self.prefix, cidr) else { continue };
            for position in first..=last {
                if let Some(holders) = self.holders.get_mut(&position) {
                    holders.remove(node);
                    if holders.is_empty() {
                        self.holders.remove(&position);
                    }
                }
            }
        }
    }

    /// The part for the node: the one it holds already, or a free one that is its own from now on. `None` if there is no free
    /// one.
    pub fn allocate(&mut self, node: &str) -> Option<Ipv4Cidr> {
        if let Some(cidr) = self.held.get(node).and_then(BTreeSet::first) {
            return Some(*cidr);
        }
        let count = self.range.subnets(self.prefix);
        if self.holders.len() as u64 >= count {
            return None;
        }
        let position = (0..count).map(|step| (self.next + step) % count).find(|position| !self.holders.contains_key(position))?;
        let cidr = self.range.subnet(self.prefix, position)?;
        self.next = (position + 1) % count;
        self.occupy(node, cidr);
        assert_eq!(self.holders.get(&position).map(BTreeSet::len), Some(1), "{cidr} is given to {node} and held by another node");
        Some(cidr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Ipv4Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn parts_are_given_in_order_and_rest_after_they_were_freed() {
        let mut allocator = Allocator::new(cidr("10.0.0.0/22"), 24);
        assert_eq!(allocator.allocate("a"), Some(cidr("10.0.0.0/24")));
        assert_eq!(allocator.allocate("a"), Some(cidr("10.0.0.0/24")), "asking again gives the same");
        assert_eq!(allocator.allocate("b"), Some(cidr("10.0.1.0/24")));
        allocator.release("a");
        assert_eq!(allocator.allocate("c"), Some(cidr("10.0.2.0/24")));
        assert_eq!(allocator.allocate("d"), Some(cidr("10.0.3.0/24")));
        assert_eq!(allocator.allocate("e"), Some(cidr("10.0.0.0/24")));
        assert_eq!(allocator.allocate("f"), None);
        allocator.release("c");
        assert_eq!(allocator.allocate("f"), Some(cidr("10.0.2.0/24")));
    }

    #[test]
    fn what_nodes_came_with_is_never_given_away() {
        let mut allocator = Allocator::new(cidr("10.0.0.0/22"), 24);
        allocator.occupy("wide", cidr("10.0.0.0/23"));
        allocator.occupy("twin", cidr("10.0.1.0/24"));
        allocator.occupy("elsewhere", cidr("192.168.0.0/24"));
        assert_eq!(allocator.allocate("a"), Some(cidr("10.0.2.0/24")));
        allocator.release("wide");
        assert_eq!(allocator.allocate("b"), Some(cidr("10.0.3.0/24")));
        assert_eq!(allocator.allocate("c"), Some(cidr("10.0.0.0/24")));
        assert_eq!(allocator.allocate("d"), None, "the twin still holds 10.0.1.0/24");
    }

    #[test]
    fn a_range_smaller_than_a_part_has_none() {
        assert_eq!(Allocator::new(cidr("10.0.0.0/25"), 24).allocate("a"), None);
    }

    proptest! {
        /// No part has two nodes, whatever comes and goes, and none is refused while one is free.
        #[test]
        fn every_node_has_a_part_of_its_own(steps in proptest::collection::vec((0_u8..12, any::<bool>()), 0..80)) {
            let mut allocator = Allocator::new(cidr("10.0.0.0/21"), 24);
            let mut given: BTreeMap<u8, Ipv4Cidr> = BTreeMap::new();
            for (node, come) in steps {
                if come {
                    match allocator.allocate(&node.to_string()) {
                        Some(part) => {
                            prop_assert!(given.iter().all(|(other, theirs)| *other == node || *theirs != part));
                            let before = given.insert(node, part);
                            prop_assert!(before.is_none_or(|before| before == part));
                        }
                        None => prop_assert_eq!(given.len(), 8),
                    }
                } else {
                    allocator.release(&node.to_string());
                    given.remove(&node);
                }
            }
        }
    }
}
