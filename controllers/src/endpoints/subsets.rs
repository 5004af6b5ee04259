//! The subsets of an Endpoints object: ports that lead to the same addresses are together.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Pod, Service};

use super::backends::{TargetPort, Terminating, address, hostname, is_headless, publishes_not_ready, target, target_ports};
use crate::node_lifecycle::node_of;
use crate::shared::meta::{is_ready, uid};

/// The addresses an Endpoints object may have.
pub const CAPACITY: usize = 1000;

/// Addresses by IP and pod UID, with whether they are ready.
type Addresses = BTreeMap<(String, String), (bool, EndpointAddress)>;

/// The subsets for a Service with these pods. Each address is in one subset for each set of ports it serves.
pub fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let publishes = publishes_not_ready(service);
    let terminating = if publishes { Terminating::Included } else { Terminating::LeftOut };
    let has_ports = service.spec.as_ref().is_some_and(|spec| spec.ports.as_ref().is_some_and(|ports| !ports.is_empty()));
    let mut by_port: BTreeMap<Option<TargetPort>, Addresses> = BTreeMap::new();
    for pod in pods {
        let Some(ip) = address(pod, terminating) else { continue };
        let entry = EndpointAddress {
            ip: ip.clone(),
            hostname: hostname(service, pod),
            node_name: node_of(pod).map(str::to_owned),
            target_ref: Some(target(pod)),
        };
        let ports: Vec<Option<TargetPort>> = match has_ports {
            true => target_ports(service, pod).into_iter().map(Some).collect(),
            false if is_headless(service) => vec![None],
            false => vec![],
        };
        let ready = publishes || is_ready(pod);
        for port in ports {
            let key = (ip.clone(), uid(&pod.metadata).to_owned());
            by_port.entry(port).or_default().insert(key, (ready, entry.clone()));
        }
    }
    pack(by_port)
}

fn pack(by_port: BTreeMap<Option<TargetPort>, Addresses>) -> Vec<EndpointSubset> {
    let mut groups: Vec<(Vec<EndpointPort>, Addresses)> = Vec::new();
    for (port, addresses) in by_port {
        let port = port.map(|port| EndpointPort {
            name: port.name,
            port: port.port,
            protocol: Some(port.protocol),
            app_protocol: port.app_protocol,
        });
        match groups.iter_mut().find(|(ports, others)| !ports.is_empty() && *others == addresses) {
            Some((ports, _)) => ports.extend(port),
            None => groups.push((port.into_iter().collect(), addresses)),
        }
    }
    let subset = |(ports, addresses): (Vec<EndpointPort>, Addresses)| {
        let (ready, not_ready): (Vec<_>, Vec<_>) = addresses.into_values().partition(|(ready, _)| *ready);
        let list = |entries: Vec<(bool, EndpointAddress)>| {
            (!entries.is_empty()).then(|| entries.into_iter().map(|(_, address)| address).collect::<Vec<_>>())
        };
        EndpointSubset {
            addresses: list(ready),
            not_ready_addresses: list(not_ready),
            ports: (!ports.is_empty()).then_some(ports),
        }
    };
    groups.into_iter().map(subset).collect()
}

/// Whether all addresses are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    Within,
    Truncated,
}

/// Leaves [`CAPACITY`] addresses in all subsets together, ready ones first.
pub fn truncate(subsets: &mut Vec<EndpointSubset>) -> Capacity {
    let size = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let total: usize = subsets.iter().map(|subset| size(&subset.addresses) + size(&subset.not_ready_addresses)).sum();
    if total <= CAPACITY {
        return Capacity::Within;
    }
    let mut room = CAPACITY;
    let mut cut = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = list {
            addresses.truncate(room);
            room -= addresses.len();
        }
        list.take_if(|addresses| addresses.is_empty());
    };
    subsets.iter_mut().for_each(|subset| cut(&mut subset.addresses));
    subsets.iter_mut().for_each(|subset| cut(&mut subset.not_ready_addresses));
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    Capacity::Truncated
}

#[cfg(test)]
mod tests {
    use super::super::backends::samples::{deleting, not_ready, pod, service};
    use super::*;
    use serde_json::{Value, json};

    /// Each subset as `ready|not ready|ports`.
    fn told(service: &Service, pods: &[Arc<Pod>]) -> Vec<String> {
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            list.iter().flatten().map(|address| address.ip.rsplit('.').next().unwrap()).collect::<Vec<_>>().join(",")
        };
        let ports = |subset: &EndpointSubset| {
            subset.ports.iter().flatten().map(|port| port.port.to_string()).collect::<Vec<_>>().join(",")
        };
        let text = |subset: &EndpointSubset| {
            format!("{}|{}|{}", ips(&subset.addresses), ips(&subset.not_ready_addresses), ports(subset))
        };
        subsets(service, pods).iter().map(text).collect()
    }

    #[test]
    fn ports_with_the_same_addresses_are_together() {
        let plain = service(Value::Null);
        let (a, b) = (pod("a", "10.1.0.1", Value::Null), pod("b", "10.1.0.2", not_ready()));
        let gone = pod("c", "10.1.0.3", deleting());
        assert_eq!(told(&plain, &[a.clone(), b.clone(), gone.clone()]), ["1|2|8080,9090"]);
        let lacks_named = pod("d", "10.1.0.4", json!({"spec": {"containers": [{"name": "c"}]}}));
        assert_eq!(told(&plain, &[a.clone(), lacks_named]), ["1,4||8080", "1||9090"]);
        assert_eq!(told(&plain, &[]), Vec::<String>::new());
        let publishing = service(json!({"spec": {"publishNotReadyAddresses": true}}));
        assert_eq!(told(&publishing, &[a.clone(), b.clone(), gone]), ["1,2,3||8080,9090"]);
        let headless = service(json!({"spec": {"clusterIP": "None", "ports": []}}));
        assert_eq!(told(&headless, &[a, b]), ["1|2|"]);
    }

    #[test]
    fn the_capacity_is_kept_with_ready_addresses_first() {
        let address =
            |number: usize| pod(&format!("p{number:04}"), &format!("10.1.{}.{}", number / 250, number % 250), Value::Null);
        let unready =
            |number: usize| pod(&format!("u{number:04}"), &format!("10.2.{}.{}", number / 250, number % 250), not_ready());
        let pods: Vec<_> = (0..800).map(address).chain((0..400).map(unready)).collect();
        let mut all = subsets(&service(Value::Null), &pods);
        assert_eq!(truncate(&mut all), Capacity::Truncated);
        assert_eq!((all[0].addresses.as_ref().unwrap().len(), all[0].not_ready_addresses.as_ref().unwrap().len()), (800, 200));
        assert_eq!(truncate(&mut all), Capacity::Within);
    }
}
