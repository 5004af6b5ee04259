//! The downward API: fields of the pod and resources of its containers as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::{
    config::Capacity,
    pod::{
        model::{all_slots, spec},
        resources,
    },
};

/// What fields can be resolved against: the pod, the node's size and the addresses of both.
#[derive(Clone, Copy, Debug)]
pub struct Downward<'a> {
    pub pod: &'a Pod,
    pub capacity: Capacity,
    pub host_ip: &'a str,
    pub pod_ips: &'a [String],
}

impl Downward<'_> {
    /// `fieldRef`.
    ///
    /// # Errors
    /// A message, when the path is not one that may be asked for.
    pub fn field(&self, path: &str) -> Result<String, String> {
        let metadata = &self.pod.metadata;
        let spec = spec(self.pod);
        if let Some((map, key)) = path.split_once("['") {
            let key = key.strip_suffix("']").ok_or_else(|| format!("invalid path {path:?}"))?;
            return match map {
                "metadata.labels" => Ok(entry(&metadata.labels, key)),
                "metadata.annotations" => Ok(entry(&metadata.annotations, key)),
                _ => Err(format!("fieldPath {path:?} does not support subscript")),
            };
        }
        let text = match path {
            "metadata.name" => metadata.name.clone(),
            "metadata.namespace" => metadata.namespace.clone(),
            "metadata.uid" => metadata.uid.clone(),
            "metadata.labels" => Some(map_lines(&metadata.labels)),
            "metadata.annotations" => Some(map_lines(&metadata.annotations)),
            "spec.nodeName" => spec.node_name.clone(),
            "spec.serviceAccountName" => spec.service_account_name.clone(),
            "status.hostIP" | "status.hostIPs" => Some(self.host_ip.to_owned()),
            "status.podIP" => self.pod_ips.first().cloned(),
            "status.podIPs" => Some(self.pod_ips.join(",")),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        Ok(text.unwrap_or_default())
    }

    /// `resourceFieldRef`; `own` is the container that asks, where it is one.
    ///
    /// # Errors
    /// A message, when the container or the resource is not one that may be asked for.
    pub fn resource(&self, selector: &ResourceFieldSelector, own: Option<&Container>) -> Result<String, String> {
        let slots = all_slots(self.pod);
        let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => slots
                .iter()
                .find(|slot| slot.name() == name)
                .map(|slot| slot.container)
                .ok_or_else(|| format!("container {name} not found"))?,
            None => own.ok_or("resourceFieldRef: container name must be specified")?,
        };
        let unsupported = || format!("unsupported container resource : {}", selector.resource);
        let (list, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
        let whole_node = match resource {
            "cpu" => i128::from(self.capacity.cpu_millis) * 1_000_000,
            "memory" => i128::from(self.capacity.memory_bytes) * 1_000_000_000,
            "ephemeral-storage" => i128::from(self.capacity.ephemeral_storage_bytes) * 1_000_000_000,
            name if name.starts_with("hugepages-") => 0,
            _ => return Err(unsupported()),
        };
        let amount = match list {
            "limits" => resources::limit(container, resource).and_then(resources::nano).unwrap_or(whole_node),
            "requests" => resources::request(container, resource).and_then(resources::nano).unwrap_or(0),
            _ => return Err(unsupported()),
        };
        let divisor = selector.divisor.as_ref().and_then(|divisor| resources::nano(&divisor.0)).filter(|divisor| *divisor > 0);
        let divisor = divisor.unwrap_or(1_000_000_000);
        Ok(((amount + divisor - 1) / divisor).to_string())
    }
}

fn entry(map: &Option<BTreeMap<String, String>>, key: &str) -> String {
    map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
}

/// `key="escaped value"` lines, sorted by key (`pkg/fieldpath.FormatMap`).
fn map_lines(map: &Option<BTreeMap<String, String>>) -> String {
    let mut lines = String::new();
    for (index, (key, value)) in map.iter().flatten().enumerate() {
        let separator = if index == 0 { "" } else { "\n" };
        // Writing to a String cannot fail.
        let _ = write!(lines, "{separator}{key}={value:?}");
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(test: impl Fn(Downward<'_>, &Pod)) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns", "uid": "u", "labels": { "app": "a", "tier": "x\"y" } },
            "spec": { "nodeName": "n1", "containers": [
                { "name": "c", "resources": { "limits": { "cpu": "1500m" }, "requests": { "memory": "64Mi" } } }] },
        }))
        .unwrap();
        let capacity = Capacity { cpu_millis: 4000, memory_bytes: 8 << 30, ephemeral_storage_bytes: 1 };
        let ips = ["10.0.0.7".to_owned(), "fd00::7".to_owned()];
        test(Downward { pod: &pod, capacity, host_ip: "192.0.2.1", pod_ips: &ips }, &pod);
    }

    #[test]
    fn fields_of_the_pod() {
        check(|downward, _| {
            for (path, expected) in [
                ("metadata.name", Ok("web")),
                ("metadata.labels['app']", Ok("a")),
                ("metadata.labels['none']", Ok("")),
                ("metadata.labels", Ok("app=\"a\"\ntier=\"x\\\"y\"")),
                ("spec.nodeName", Ok("n1")),
                ("status.hostIP", Ok("192.0.2.1")),
                ("status.podIP", Ok("10.0.0.7")),
                ("status.podIPs", Ok("10.0.0.7,fd00::7")),
                ("status.phase", Err("unsupported fieldPath: status.phase")),
            ] {
                assert_eq!(downward.field(path), expected.map(String::from).map_err(String::from), "{path}");
            }
        });
    }

    #[test]
    fn resources_of_containers() {
        check(|downward, pod| {
            let own = &pod.spec.as_ref().unwrap().containers[0];
            for (resource, divisor, expected) in [
                ("limits.cpu", None, "2"),
                ("limits.cpu", Some("1m"), "1500"),
                ("requests.cpu", Some("1m"), "1500"),
                ("requests.memory", Some("1Mi"), "64"),
                ("limits.memory", Some("1Gi"), "8"),
            ] {
                let selector = serde_json::from_value(json!({ "resource": resource, "divisor": divisor })).unwrap();
                assert_eq!(downward.resource(&selector, Some(own)).as_deref(), Ok(expected), "{resource} {divisor:?}");
            }
        });
    }
}
