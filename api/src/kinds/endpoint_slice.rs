//! EndpointSlice: some of the addresses behind a service (`discovery.k8s.io/v1`).

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use serde_json::{Value, json};

use super::{
    endpoints::special_address,
    table,
    typed::{Change, Generation, Kind},
    validate,
};
use crate::{field::FieldError, names, registry::Column};

pub struct EndpointSliceKind;

/// Ports and addresses that are shown in a row.
const SHOWN: usize = 3;
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20_000;
const MAX_ADDRESSES: usize = 100;
const UNSET: &str = "<unset>";

impl Kind for EndpointSliceKind {
    type Object = EndpointSlice;

    const CREATED_BY_UPDATE: bool = true;
    const GENERATION: Generation = Generation::Content;

    fn columns() -> Vec<Column> {
        vec![
            table::name_column(),
            table::column("AddressType", "string", "IPv4, IPv6 or FQDN."),
            table::column("Ports", "string", "Ports of every endpoint."),
            table::column("Endpoints", "string", "Addresses of the endpoints."),
            table::age_column(),
        ]
    }

    fn default(object: &mut EndpointSlice) {
        for port in object.ports.iter_mut().flatten() {
            port.name.get_or_insert_default();
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }

    fn validate(object: &EndpointSlice) -> Vec<FieldError> {
        let mut errors: Vec<FieldError> =
            validate::one_of("addressType", Some(&object.address_type), &["FQDN", "IPv4", "IPv6"]).into_iter().collect();
        let endpoints = object.endpoints.as_deref().unwrap_or_default();
        if endpoints.len() > MAX_ENDPOINTS {
            errors.push(validate::too_many("endpoints", endpoints.len(), MAX_ENDPOINTS));
        } else {
            for (index, endpoint) in endpoints.iter().enumerate() {
                errors.extend(validate_endpoint(&format!("endpoints[{index}]"), endpoint, &object.address_type));
            }
        }
        errors.extend(validate_ports("ports", object.ports.as_deref().unwrap_or_default()));
        errors
    }

    fn validate_update(change: &Change<EndpointSlice>) -> Vec<FieldError> {
        let (new, old) = (change.new, change.old);
        let mut errors = Self::validate(new);
        errors.extend(validate::unchanged(&new.address_type, &old.address_type, "addressType", new.address_type.clone()));
        errors
    }

    fn row(object: &EndpointSlice, now: Timestamp) -> Vec<Value> {
        let ports = object.ports.iter().flatten().map(|port| match (port.port, &port.name) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.clone(),
            (None, None) => "*".to_owned(),
        });
        let addresses = object.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.iter().cloned());
        let few = |all: Vec<String>| if all.is_empty() { UNSET.to_owned() } else { table::first_few(&all, SHOWN) };
        vec![
            json!(table::name(&object.metadata)),
            json!(object.address_type),
            json!(few(ports.collect())),
            json!(few(addresses.collect())),
            json!(table::age(&object.metadata, now)),
        ]
    }
}

fn validate_endpoint(path: &str, endpoint: &Endpoint, address_type: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let addresses_path = format!("{path}.addresses");
    if endpoint.addresses.is_empty() {
        errors.push(FieldError::required(&addresses_path, "must contain at least 1 address"));
    } else if endpoint.addresses.len() > MAX_ADDRESSES {
        errors.push(validate::too_many(&addresses_path, endpoint.addresses.len(), MAX_ADDRESSES));
    }
    for (index, address) in endpoint.addresses.iter().enumerate() {
        let path = format!("{addresses_path}[{index}]");
        let parsed = address.parse::<std::net::IpAddr>().ok();
        match address_type {
            "IPv4" if !parsed.is_some_and(|ip| ip.is_ipv4()) => {
                errors.push(FieldError::invalid(path, address.clone(), "must be an IPv4 address"));
            }
            "IPv6" if !parsed.is_some_and(|ip| ip.is_ipv6()) => {
                errors.push(FieldError::invalid(path, address.clone(), "must be an IPv6 address"));
            }
            "FQDN" => errors.extend(validate::checked(&path, address, names::is_dns1123_subdomain)),
            _ => errors.extend(special_address(&path, address)),
        }
    }
    if let Some(host) = endpoint.hostname.as_deref() {
        errors.extend(validate::checked(&format!("{path}.hostname"), host, names::is_dns1123_label));
    }
    if let Some(node) = endpoint.node_name.as_deref() {
        errors.extend(validate::checked(&format!("{path}.nodeName"), node, names::is_dns1123_subdomain));
    }
    errors
}

fn validate_ports(path: &str, ports: &[EndpointPort]) -> Vec<FieldError> {
    if ports.len() > MAX_PORTS {
        return vec![validate::too_many(path, ports.len(), MAX_PORTS)];
    }
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            errors.extend(validate::checked(&format!("{path}.name"), name, names::is_dns1123_label));
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        errors.extend(validate::one_of(&format!("{path}.protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]));
    }
    errors
}
