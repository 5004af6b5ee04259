//! How a Service's endpoints are dealt over slices, with as few writes as can be.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::endpoints::backends::{
    TargetPort, Terminating, address, hostname, labels, publishes_not_ready, set_trigger, target, target_ports,
};
use crate::node_lifecycle::node_of;
use crate::shared::meta::{is_deleting, is_ready, name, uid};

/// Endpoints in one slice (`--max-endpoints-per-slice`).
pub const SLICE_CAPACITY: usize = 100;
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";

/// Endpoints by address and pod UID, for each set of ports.
pub type Desired = BTreeMap<Vec<TargetPort>, BTreeMap<Identity, Endpoint>>;
type Identity = (String, String);

/// What to write.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<EndpointSlice>,
}

/// The endpoints a Service should have; `zone_of` tells the zone of a node by its name.
pub fn desired(service: &Service, pods: &[Arc<Pod>], zone_of: impl Fn(&str) -> Option<String>) -> Desired {
    let mut desired = Desired::new();
    for pod in pods {
        let Some(ip) = address(pod, Terminating::Included) else { continue };
        let mut ports = target_ports(service, pod);
        ports.sort();
        let (serving, terminating) = (is_ready(pod), is_deleting(&pod.metadata));
        let ready = publishes_not_ready(service) || (serving && !terminating);
        let endpoint = Endpoint {
            addresses: vec![ip.clone()],
            conditions: Some(EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) }),
            hostname: hostname(service, pod),
            node_name: node_of(pod).map(str::to_owned),
            target_ref: Some(target(pod)),
            zone: node_of(pod).and_then(&zone_of),
            ..Endpoint::default()
        };
        desired.entry(ports).or_default().insert((ip, uid(&pod.metadata).to_owned()), endpoint);
    }
    desired
}

fn identity(endpoint: &Endpoint) -> Identity {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()).unwrap_or_default();
    (endpoint.addresses.first().cloned().unwrap_or_default(), uid)
}

fn ports_of(slice: &EndpointSlice) -> Vec<TargetPort> {
    let port = |port: &EndpointPort| TargetPort {
        name: port.name.clone().filter(|name| !name.is_empty()),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        port: port.port.unwrap_or_default(),
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<TargetPort> = slice.ports.iter().flatten().map(port).collect();
    ports.sort();
    ports
}

/// What brings the slices there are to the endpoints there should be. An endpoint stays in the slice it is in.
pub fn plan(service: &Service, existing: &[Arc<EndpointSlice>], mut desired: Desired, trigger: Option<Timestamp>) -> Plan {
    if desired.is_empty() {
        // One slice without endpoints says that the Service is known and has none.
        desired.insert(Vec::new(), BTreeMap::new());
    }
    let mut plan = Plan::default();
    let mut by_ports: BTreeMap<Vec<TargetPort>, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in existing {
        let ports = ports_of(slice);
        if slice.address_type == "IPv4" && desired.contains_key(&ports) && !is_deleting(&slice.metadata) {
            by_ports.entry(ports).or_default().push(slice);
        } else if !is_deleting(&slice.metadata) {
            plan.delete.push((**slice).clone());
        }
    }
    for (ports, endpoints) in desired {
        let slices = by_ports.remove(&ports).unwrap_or_default();
        deal(service, &ports, endpoints, &slices, trigger, &mut plan);
    }
    plan
}

/// A slice and what it will hold.
struct Bin<'a> {
    slice: Option<&'a EndpointSlice>,
    endpoints: Vec<Endpoint>,
}

impl Bin<'_> {
    fn is_changed(&self) -> bool {
        self.slice.is_none_or(|slice| slice.endpoints.as_deref().unwrap_or_default() != self.endpoints)
    }
}

fn deal(
    service: &Service,
    ports: &[TargetPort],
    mut endpoints: BTreeMap<Identity, Endpoint>,
    slices: &[&EndpointSlice],
    trigger: Option<Timestamp>,
    plan: &mut Plan,
) {
    let only_placeholder = endpoints.is_empty();
    let mut bins: Vec<Bin> = slices
        .iter()
        .map(|slice| {
            let stay = slice.endpoints.iter().flatten().filter_map(|endpoint| endpoints.remove(&identity(endpoint)));
            Bin { slice: Some(slice), endpoints: stay.take(SLICE_CAPACITY).collect() }
        })
        .collect();
    // Newcomers go to slices that are written anyway, then to the fullest one that takes them all, then to new ones.
    let mut newcomers: Vec<Endpoint> = endpoints.into_values().collect();
    for bin in bins.iter_mut().filter(|bin| bin.is_changed() && !bin.endpoints.is_empty()) {
        let room = SLICE_CAPACITY - bin.endpoints.len();
        bin.endpoints.extend(newcomers.drain(..room.min(newcomers.len())));
    }
    while !newcomers.is_empty() {
        let amount = newcomers.len().min(SLICE_CAPACITY);
        let fits = |bin: &&mut Bin| bin.endpoints.len() + amount <= SLICE_CAPACITY;
        match bins.iter_mut().filter(fits).max_by_key(|bin| bin.endpoints.len()) {
            Some(bin) => bin.endpoints.extend(newcomers.drain(..amount)),
            None => bins.push(Bin { slice: None, endpoints: newcomers.drain(..amount).collect() }),
        }
    }
    if only_placeholder && bins.is_empty() {
        bins.push(Bin { slice: None, endpoints: Vec::new() });
    }
    let mut placeholder_kept = false;
    for bin in bins {
        assert!(bin.endpoints.len() <= SLICE_CAPACITY, "a slice holds {} endpoints", bin.endpoints.len());
        let keeps_place = only_placeholder && !std::mem::replace(&mut placeholder_kept, true);
        match bin.slice {
            Some(slice) if bin.endpoints.is_empty() && !keeps_place => plan.delete.push(slice.clone()),
            Some(slice) => plan.update.extend(changed(service, slice, bin.endpoints, trigger)),
            None => plan.create.push(made(service, ports, bin.endpoints, trigger)),
        }
    }
}

fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    labels(service, &[(SERVICE_NAME, name(&service.metadata)), (MANAGED_BY, MANAGER)])
}

fn changed(
    service: &Service,
    slice: &EndpointSlice,
    endpoints: Vec<Endpoint>,
    trigger: Option<Timestamp>,
) -> Option<EndpointSlice> {
    let labels = Some(slice_labels(service));
    if slice.endpoints.as_deref().unwrap_or_default() == endpoints && slice.metadata.labels == labels {
        return None;
    }
    let mut next = EndpointSlice { endpoints: Some(endpoints), ..slice.clone() };
    next.metadata.labels = labels;
    set_trigger(&mut next.metadata, trigger);
    Some(next)
}

fn made(service: &Service, ports: &[TargetPort], endpoints: Vec<Endpoint>, trigger: Option<Timestamp>) -> EndpointSlice {
    let port = |port: &TargetPort| EndpointPort {
        // A port without a name has the empty one here.
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    };
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name: name(&service.metadata).to_owned(),
        uid: uid(&service.metadata).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    let mut metadata = ObjectMeta {
        generate_name: Some(format!("{}-", name(&service.metadata))),
        namespace: service.metadata.namespace.clone(),
        labels: Some(slice_labels(service)),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    set_trigger(&mut metadata, trigger);
    EndpointSlice {
        metadata,
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.iter().map(port).collect()),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
