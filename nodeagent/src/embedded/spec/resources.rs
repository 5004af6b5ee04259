//! The limits of a container, and the devices that it may use.

use serde_json::{Value, json};

use super::Surroundings;
use crate::runtime::{ContainerResources, ContainerSecurity};

/// The limits in the specification's words.
pub(super) fn resources(limits: &ContainerResources, security: &ContainerSecurity, surroundings: &Surroundings) -> Value {
    let mut resources = json!({ "devices": device_rules(security.privileged) });
    if let Some(bytes) = limits.memory_limit_bytes.filter(|bytes| *bytes > 0) {
        resources["memory"] = json!({ "limit": bytes });
        if surroundings.limits_swap {
            resources["memory"]["swap"] = json!(bytes);
        }
    }
    let mut cpu = serde_json::Map::new();
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares > 0) {
        cpu.insert("shares".to_owned(), json!(shares));
    }
    if let Some(quota) = limits.cpu_quota_us.filter(|quota| *quota > 0) {
        cpu.insert("quota".to_owned(), json!(quota));
        cpu.insert("period".to_owned(), json!(limits.cpu_period_us.unwrap_or(100_000)));
    }
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(limit) = limits.pids_limit.filter(|limit| *limit > 0) {
        resources["pids"] = json!({ "limit": limit });
    }
    resources
}

/// Nodes of any device may be made; only the usual harmless ones may be used.
fn device_rules(privileged: bool) -> Value {
    if privileged {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    for (major, minor) in
        [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)]
    {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rules.push(rule);
    }
    json!(rules)
}
