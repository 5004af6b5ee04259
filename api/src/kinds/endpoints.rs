//! Endpoints: the addresses behind a service, in the old form.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use serde_json::{Value, json};

use super::{table, typed::Kind, validate};
use crate::{field::FieldError, names, registry::Column};

pub struct EndpointsKind;

/// Addresses that are shown in a row.
const SHOWN: usize = 3;

impl Kind for EndpointsKind {
    type Object = Endpoints;

    const SHORT_NAMES: &'static [&'static str] = &["ep"];
    const CREATED_BY_UPDATE: bool = true;

    fn columns() -> Vec<Column> {
        vec![
            table::name_column(),
            table::column("Endpoints", "string", "Addresses and ports behind the service."),
            table::age_column(),
        ]
    }

    fn default(object: &mut Endpoints) {
        for port in object.subsets.iter_mut().flatten().flat_map(|subset| subset.ports.iter_mut().flatten()) {
            if port.protocol.as_deref().is_none_or(str::is_empty) {
                port.protocol = Some("TCP".to_owned());
            }
        }
    }

    fn validate(object: &Endpoints) -> Vec<FieldError> {
        let subsets = object.subsets.iter().flatten().enumerate();
        subsets.flat_map(|(index, subset)| validate_subset(&format!("subsets[{index}]"), subset)).collect()
    }

    fn row(object: &Endpoints, now: Timestamp) -> Vec<Value> {
        vec![json!(table::name(&object.metadata)), json!(shown(object)), json!(table::age(&object.metadata, now))]
    }
}

fn validate_subset(path: &str, subset: &EndpointSubset) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let ready = subset.addresses.as_deref().unwrap_or_default();
    let not_ready = subset.not_ready_addresses.as_deref().unwrap_or_default();
    if ready.is_empty() && not_ready.is_empty() {
        errors.push(FieldError::required(path, "must specify `addresses` or `notReadyAddresses`"));
    }
    for (field, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
        for (index, address) in addresses.iter().enumerate() {
            errors.extend(validate_address(&format!("{path}.{field}[{index}]"), address));
        }
    }
    let ports = subset.ports.as_deref().unwrap_or_default();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !name.is_empty() {
            errors.extend(validate::checked(&format!("{path}.name"), name, names::is_dns1123_label));
        }
        errors.extend(validate::port_number(&format!("{path}.port"), port.port));
        errors.extend(validate::one_of(&format!("{path}.protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]));
    }
    errors
}

fn validate_address(path: &str, address: &EndpointAddress) -> Vec<FieldError> {
    let ip_path = format!("{path}.ip");
    let mut errors = validate::checked(&ip_path, &address.ip, names::is_ip_address);
    if errors.is_empty() {
        errors.extend(special_address(&ip_path, &address.ip));
    }
    if let Some(host) = address.hostname.as_deref().filter(|host| !host.is_empty()) {
        errors.extend(validate::checked(&format!("{path}.hostname"), host, names::is_dns1123_label));
    }
    errors
}

/// Addresses that name no other machine cannot be behind a service.
pub fn special_address(path: &str, text: &str) -> Option<FieldError> {
    use std::net::IpAddr;
    let address: IpAddr = text.parse().ok()?;
    let why = match address {
        _ if address.is_unspecified() => "may not be unspecified",
        _ if address.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        IpAddr::V4(v4) if v4.is_link_local() => "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        IpAddr::V6(v6) if (v6.segments()[0] & 0xffc0) == 0xfe80 => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
        }
        _ if address.is_multicast() => "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        _ => return None,
    };
    Some(FieldError::invalid(path, text, why))
}

fn shown(object: &Endpoints) -> String {
    let subsets = object.subsets.as_deref().unwrap_or_default();
    if subsets.is_empty() {
        return table::NONE.to_owned();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let addresses = subset.addresses.as_deref().unwrap_or_default();
        let ports = subset.ports.as_deref().unwrap_or_default();
        if ports.is_empty() {
            all.extend(addresses.iter().map(|address| address.ip.clone()));
        }
        for port in ports {
            all.extend(addresses.iter().map(|address| host_and_port(&address.ip, port.port)));
        }
    }
    table::first_few(&all, SHOWN)
}

fn host_and_port(ip: &str, port: i32) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}
