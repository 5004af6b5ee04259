//! Keeps the node's network in step with the cluster's Nodes: its own pod range, and the routes to the others'.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use tokio_util::sync::CancellationToken;
use trireme_api::cidr::Ipv4Cidr;

use super::{NodeNetwork, Peer};

/// How long to wait after the network could not be changed.
const RETRY: Duration = Duration::from_secs(2);

/// What one Node says about the pods' network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    pod_cidr: Option<Ipv4Cidr>,
    address: Option<Ipv4Addr>,
}

/// Watches the Nodes until `shutdown` and sets the network accordingly. While no master answers, the network stays as it is.
pub async fn follow_nodes(client: Client, own_name: String, network: Arc<NodeNetwork>, shutdown: CancellationToken) {
    let mut changes = watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff().boxed();
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    let mut listed: Option<BTreeMap<String, Place>> = None;
    let mut applied: Option<BTreeMap<String, Place>> = None;
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = tokio::time::sleep(RETRY), if applied.as_ref() != Some(&places) && listed.is_none() => {
                applied = set(&network, &own_name, &places).await.then(|| places.clone());
                continue;
            }
            () = shutdown.cancelled() => return,
        };
        match change {
            Some(Ok(watcher::Event::Init)) => listed = Some(BTreeMap::new()),
            Some(Ok(watcher::Event::InitApply(node))) => {
                if let (Some(listed), Some(name)) = (&mut listed, node.metadata.name.clone()) {
                    listed.insert(name, place(&node));
                }
                continue;
            }
            Some(Ok(watcher::Event::InitDone)) => places = listed.take().unwrap_or_default(),
            Some(Ok(watcher::Event::Apply(node))) => {
                if let Some(name) = node.metadata.name.clone() {
                    places.insert(name, place(&node));
                }
            }
            Some(Ok(watcher::Event::Delete(node))) => {
                if let Some(name) = &node.metadata.name {
                    places.remove(name);
                }
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the watch on nodes failed; trying again");
                continue;
            }
            None => return,
        }
        if listed.is_none() && applied.as_ref() != Some(&places) {
            applied = set(&network, &own_name, &places).await.then(|| places.clone());
        }
    }
}

fn place(node: &Node) -> Place {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    Place {
        pod_cidr: node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref()).and_then(|cidr| cidr.parse().ok()),
        address: addresses.filter(|address| address.type_ == "InternalIP").find_map(|address| address.address.parse().ok()),
    }
}

/// The other nodes that have a range and an address of their own. Those without share this node's network.
fn peers(own_name: &str, places: &BTreeMap<String, Place>) -> BTreeSet<Peer> {
    let others = places.iter().filter(|(name, _)| *name != own_name).map(|(_, place)| place);
    others
        .filter_map(|place| Some(Peer { pod_cidr: place.pod_cidr?, address: place.address? }))
        .filter(|peer| !peer.address.is_loopback())
        .collect()
}

/// Whether everything could be set.
async fn set(network: &NodeNetwork, own_name: &str, places: &BTreeMap<String, Place>) -> bool {
    if let Some(cidr) = places.get(own_name).and_then(|place| place.pod_cidr)
        && let Err(error) = network.set_pod_cidr(cidr).await
    {
        tracing::warn!(%error, %cidr, "the pod range cannot be taken into use; trying again");
        return false;
    }
    if let Err(error) = network.set_peers(peers(own_name, places)).await {
        tracing::warn!(%error, "the routes to the other nodes cannot be set; trying again");
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(cidr: Option<&str>, address: Option<&str>) -> Place {
        Place { pod_cidr: cidr.map(|cidr| cidr.parse().unwrap()), address: address.map(|address| address.parse().unwrap()) }
    }

    #[test]
    fn peers_are_the_other_nodes_that_can_be_routed_to() {
        let places = BTreeMap::from([
            ("own".to_owned(), at(Some("10.244.0.0/24"), Some("100.64.0.2"))),
            ("far".to_owned(), at(Some("10.244.1.0/24"), Some("100.64.0.3"))),
            ("no-range-yet".to_owned(), at(None, Some("100.64.0.4"))),
            ("no-address-yet".to_owned(), at(Some("10.244.3.0/24"), None)),
            ("on-loopback".to_owned(), at(Some("10.244.4.0/24"), Some("127.0.0.1"))),
        ]);
        let far = Peer { pod_cidr: "10.244.1.0/24".parse().unwrap(), address: "100.64.0.3".parse().unwrap() };
        assert_eq!(peers("own", &places), BTreeSet::from([far]));
    }
}
