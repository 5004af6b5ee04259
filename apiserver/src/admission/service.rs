//! The addresses and node ports of Services. Each one that is taken is a key of its own, written in the same transaction as
//! the Service under the condition that the key is absent: two Services can never hold the same one, and a
//! Service that goes gives back what it had.

use std::{collections::BTreeSet, net::Ipv4Addr};

use rand::RngExt;
use serde_json::{Value, json};
use trireme_api::{field::FieldError, status::Status};
use trireme_storage::model::{Compare, KeyRange, Operation, RangeContent, RangeRequest, Revision};

use crate::{
    ApiServer, keys,
    store_error::status_of,
    write::{Companions, Target},
};

const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// How many random candidates are tried before the range is searched in order.
const RANDOM_TRIES: usize = 16;

/// What a Service holds of the shared ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Claims {
    addresses: BTreeSet<Ipv4Addr>,
    ports: BTreeSet<u16>,
}

impl Claims {
    fn of(service: &Value) -> Self {
        let spec = &service["spec"];
        if spec["type"] == "ExternalName" {
            return Self::default();
        }
        let listed = spec["clusterIPs"].as_array().into_iter().flatten();
        let addresses = listed.chain([&spec["clusterIP"]]).filter_map(|address| address.as_str()?.parse().ok()).collect();
        let node_ports = spec["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
        let ports = node_ports.chain([&spec["healthCheckNodePort"]]).filter_map(positive).collect();
        Self { addresses, ports }
    }
}

fn positive(port: &Value) -> Option<u16> {
    port.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
}

fn address_key(address: Ipv4Addr) -> String {
    format!("{}ranges/serviceips/{address}", keys::ROOT)
}

fn port_key(port: u16) -> String {
    format!("{}ranges/servicenodeports/{port}", keys::ROOT)
}

/// A client that replaces a Service need not repeat what was allocated to it (`patchAllocatedValues`).
pub fn before_update(new: &mut Value, old: &Value) {
    let needs_address =
        |service: &Value| matches!(service["spec"]["type"].as_str(), None | Some("" | "ClusterIP" | "NodePort" | "LoadBalancer"));
    let needs_ports = |service: &Value| matches!(service["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer"));
    if !new["spec"].is_object() {
        return;
    }
    if needs_address(new) && needs_address(old) {
        let is_missing = |value: &Value| value.is_null() || value == "" || value.as_array().is_some_and(Vec::is_empty);
        if is_missing(&new["spec"]["clusterIP"]) && is_missing(&new["spec"]["clusterIPs"]) {
            for field in ["clusterIP", "clusterIPs"] {
                new["spec"][field] = old["spec"][field].clone();
            }
        }
    }
    if needs_ports(new) && needs_ports(old) {
        let old_ports = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let same = |a: &Value, b: &Value| a["port"] == b["port"] && protocol(a) == protocol(b);
        for port in new["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if positive(&port["nodePort"]).is_none()
                && let Some(before) = old_ports.iter().find(|before| same(before, port))
            {
                port["nodePort"] = before["nodePort"].clone();
            }
        }
        let is_local = |service: &Value| service["spec"]["externalTrafficPolicy"] == "Local";
        let is_missing = positive(&new["spec"]["healthCheckNodePort"]).is_none();
        if is_missing && is_local(new) && is_local(old) && !old["spec"]["healthCheckNodePort"].is_null() {
            new["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
        }
    }
}

fn protocol(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

/// Gives a Service the address and the ports that it needs and has not chosen itself, and takes them.
pub async fn allocate(
    server: &ApiServer,
    target: &Target,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<Companions, Status> {
    let held = old.map(Claims::of).unwrap_or_default();
    check_wishes(server, target, service, &held).await?;
    let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
    if kind != "ExternalName" {
        give_address(server, service).await?;
    }
    let wants_ports =
        kind == "NodePort" || kind == "LoadBalancer" && service["spec"]["allocateLoadBalancerNodePorts"] != json!(false);
    if wants_ports {
        give_ports(server, service, &kind).await?;
    }
    let wanted = Claims::of(service);
    let owner = keys::object_path(target.namespace.as_deref(), &target.name);
    let mut companions = Companions::default();
    let taken = wanted.addresses.difference(&held.addresses).map(|address| address_key(*address));
    for key in taken.chain(wanted.ports.difference(&held.ports).map(|port| port_key(*port))) {
        companions.compares.push(Compare::mod_revision(key.clone(), Revision::default()));
        companions.operations.push(Operation::put(key, owner.clone()));
    }
    let given_back = held.addresses.difference(&wanted.addresses).map(|address| address_key(*address));
    let given_back = given_back.chain(held.ports.difference(&wanted.ports).map(|port| port_key(*port)));
    companions.operations.extend(given_back.map(Operation::delete));
    Ok(companions)
}

/// What a Service that is removed gives back.
pub fn release(service: &Value) -> Companions {
    let held = Claims::of(service);
    let keys = held.addresses.iter().map(|address| address_key(*address)).chain(held.ports.iter().map(|port| port_key(*port)));
    Companions { compares: Vec::new(), operations: keys.map(Operation::delete).collect() }
}

/// What the client chose itself is in range and free.
async fn check_wishes(server: &ApiServer, target: &Target, service: &Value, held: &Claims) -> Result<(), Status> {
    let mut errors = Vec::new();
    let wished = Claims::of(service);
    let range = server.service_cidr;
    for address in wished.addresses.difference(&held.addresses) {
        let refuse = |why: String| {
            FieldError::invalid(
                "spec.clusterIPs",
                json!([address.to_string()]),
                format!("failed to allocate IP {address}: {why}"),
            )
        };
        if !range.contains(*address) {
            let why = format!("the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}");
            errors.push(refuse(why));
        } else if is_taken(server, address_key(*address)).await? {
            errors.push(refuse("provided IP is already allocated".to_owned()));
        }
    }
    let node_ports = service["spec"]["ports"].as_array().into_iter().flatten().enumerate();
    let node_ports = node_ports.map(|(position, port)| (format!("spec.ports[{position}].nodePort"), &port["nodePort"]));
    let health_port = ("spec.healthCheckNodePort".to_owned(), &service["spec"]["healthCheckNodePort"]);
    for (path, port) in node_ports.chain([health_port]) {
        let Some(port) = positive(port).filter(|port| !held.ports.contains(port)) else { continue };
        if !NODE_PORTS.contains(&port) {
            let why = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                NODE_PORTS.start(),
                NODE_PORTS.end()
            );
            errors.push(FieldError::invalid(path, port, why));
        } else if is_taken(server, port_key(port)).await? {
            errors.push(FieldError::invalid(path, port, "provided port is already allocated"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&target.resource, &target.name, &errors)) }
}

async fn give_address(server: &ApiServer, service: &mut Value) -> Result<(), Status> {
    let spec = &mut service["spec"];
    let first = spec["clusterIPs"].as_array().and_then(|list| list.first()).and_then(Value::as_str).map(str::to_owned);
    let given = spec["clusterIP"].as_str().filter(|address| !address.is_empty()).map(str::to_owned).or(first);
    let address = match given {
        Some(given) => given,
        None => free_address(server).await?.to_string(),
    };
    spec["clusterIP"] = json!(address);
    spec["clusterIPs"] = json!([address]);
    if spec["ipFamilies"].as_array().is_none_or(Vec::is_empty) {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    if spec["ipFamilyPolicy"].as_str().is_none_or(str::is_empty) {
        spec["ipFamilyPolicy"] = json!("SingleStack");
    }
    Ok(())
}

async fn give_ports(server: &ApiServer, service: &mut Value, kind: &str) -> Result<(), Status> {
    let mut own = Claims::of(service).ports;
    let count = service["spec"]["ports"].as_array().map_or(0, Vec::len);
    for position in 0..count {
        let ports = &service["spec"]["ports"];
        if positive(&ports[position]["nodePort"]).is_some() {
            continue;
        }
        let number = match shared_number(ports, position) {
            Some(number) => number,
            None => free_port(server, &own).await?,
        };
        own.insert(number);
        service["spec"]["ports"][position]["nodePort"] = json!(number);
    }
    let is_local = service["spec"]["externalTrafficPolicy"] == "Local";
    if kind == "LoadBalancer" && is_local && positive(&service["spec"]["healthCheckNodePort"]).is_none() {
        service["spec"]["healthCheckNodePort"] = json!(free_port(server, &own).await?);
    }
    Ok(())
}

/// The node port of the same port of another protocol: DNS over TCP and over UDP has one number.
fn shared_number(ports: &Value, position: usize) -> Option<u16> {
    let ports = ports.as_array()?;
    let wanted = ports.get(position)?;
    let number = |port: &Value| positive(&port["nodePort"]);
    let number_of_twin =
        ports.iter().filter(|port| port["port"] == wanted["port"] && protocol(port) != protocol(wanted)).find_map(number)?;
    let is_used = |port: &Value| number(port) == Some(number_of_twin) && protocol(port) == protocol(wanted);
    (!ports.iter().any(is_used)).then_some(number_of_twin)
}

async fn free_address(server: &ApiServer) -> Result<Ipv4Addr, Status> {
    let range = server.service_cidr;
    for _ in 0..RANDOM_TRIES {
        let position = server.random.lock().random_range(0..range.size());
        let candidate = range.address(position);
        if candidate != range.first() && !is_taken(server, address_key(candidate)).await? {
            return Ok(candidate);
        }
    }
    let taken = taken(server, "serviceips").await?;
    let free = (1..range.size()).map(|position| range.address(position)).find(|address| !taken.contains(&address.to_string()));
    free.ok_or_else(|| Status::internal("Internal error occurred: failed to allocate a serviceIP: range is full"))
}

async fn free_port(server: &ApiServer, own: &BTreeSet<u16>) -> Result<u16, Status> {
    for _ in 0..RANDOM_TRIES {
        let candidate = server.random.lock().random_range(NODE_PORTS);
        if !own.contains(&candidate) && !is_taken(server, port_key(candidate)).await? {
            return Ok(candidate);
        }
    }
    let taken = taken(server, "servicenodeports").await?;
    let mut free = NODE_PORTS.filter(|port| !own.contains(port) && !taken.contains(&port.to_string()));
    free.next().ok_or_else(|| Status::internal("Internal error occurred: failed to allocate a nodePort: range is full"))
}

async fn is_taken(server: &ApiServer, key: String) -> Result<bool, Status> {
    let mut request = RangeRequest::new(KeyRange::One(key.into()));
    request.content = RangeContent::CountOnly;
    Ok(server.store.range(request).await.map_err(|error| status_of(&error))?.count > 0)
}

/// Everything that is taken of a range, by the last part of its keys.
async fn taken(server: &ApiServer, range: &str) -> Result<BTreeSet<String>, Status> {
    let prefix = format!("{}ranges/{range}/", keys::ROOT);
    let mut request = RangeRequest::new(KeyRange::prefix(prefix.clone()));
    request.content = RangeContent::KeysOnly;
    let result = server.store.range(request).await.map_err(|error| status_of(&error))?;
    let names = result.key_values.iter().filter_map(|key_value| std::str::from_utf8(&key_value.key).ok()?.strip_prefix(&prefix));
    Ok(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_what_a_service_holds() {
        let service = json!({ "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{ "nodePort": 30001 }, { "port": 1 }],
        } });
        let claims = Claims::of(&service);
        assert_eq!(claims.addresses, BTreeSet::from([Ipv4Addr::new(10, 96, 0, 9)]));
        assert_eq!(claims.ports, BTreeSet::from([30001]));
        assert_eq!(Claims::of(&json!({ "spec": { "clusterIP": "None", "clusterIPs": ["None"] } })), Claims::default());
    }

    #[test]
    fn protocols_share_the_number_of_a_port() {
        let ports = json!([
            { "port": 53, "protocol": "TCP", "nodePort": 30053 }, { "port": 53, "protocol": "UDP" }, { "port": 54, "protocol": "UDP" },
            { "port": 53, "protocol": "SCTP" }, { "port": 99, "protocol": "SCTP", "nodePort": 30053 },
        ]);
        assert_eq!(shared_number(&ports, 1), Some(30053));
        assert_eq!(shared_number(&ports, 2), None);
        assert_eq!(shared_number(&ports, 3), None, "the number is another port's in this protocol");
    }

    #[test]
    fn an_update_need_not_repeat_what_was_allocated() {
        let old = json!({ "spec": { "type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{ "port": 80, "nodePort": 30001 }] } });
        let mut new = json!({ "spec": { "type": "NodePort", "ports": [{ "port": 80 }, { "port": 81 }] } });
        before_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
        assert_eq!(new["spec"]["ports"], json!([{ "port": 80, "nodePort": 30001 }, { "port": 81 }]));
    }
}
