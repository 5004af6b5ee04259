//! Hides pods behind their node's address when they speak to the world outside the cluster, by nftables. Between pods, and
//! between pods and nodes, addresses stay as they are.

use std::collections::BTreeSet;

use trireme_api::cidr::Ipv4Cidr;

use super::{NetworkError, bridge::Peer, nft};

const TABLE: &str = "trireme-pods";

/// Puts the rules in force, replacing those of before in one transaction.
pub async fn apply(bridge: &str, range: Ipv4Cidr, peers: &BTreeSet<Peer>) -> Result<nft::Outcome, NetworkError> {
    nft::run(&rules(bridge, range, peers)).await
}

fn rules(bridge: &str, range: Ipv4Cidr, peers: &BTreeSet<Peer>) -> String {
    let mut inside: BTreeSet<String> = BTreeSet::from([range.to_string()]);
    for peer in peers {
        inside.insert(peer.pod_cidr.to_string());
        inside.insert(peer.address.to_string());
    }
    let inside: Vec<String> = inside.into_iter().collect();
    format!(
        "add table ip {TABLE}\n\
         delete table ip {TABLE}\n\
         table ip {TABLE} {{\n\
         \tset inside {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {} }} }}\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tip saddr {range} ip daddr != @inside ip daddr != 224.0.0.0/4 oifname != \"{bridge}\" masquerade\n\
         \t}}\n\
         }}\n",
        inside.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_nodes_of_the_cluster_are_spared() {
        let peer = Peer { pod_cidr: "10.244.2.0/24".parse().unwrap(), address: "172.30.0.3".parse().unwrap() };
        let text = rules("trireme0", "10.244.1.0/24".parse().unwrap(), &BTreeSet::from([peer]));
        assert!(text.contains("elements = { 10.244.1.0/24, 10.244.2.0/24, 172.30.0.3 }"), "{text}");
        assert!(text.contains("ip saddr 10.244.1.0/24 ip daddr != @inside"), "{text}");
    }
}
