//! Which pods are behind a Service, and on which ports: shared by Endpoints and EndpointSlices.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::shared::meta::{is_deleting, is_finished, name, namespace, ready_condition, uid};
use crate::shared::{Change, Informer, ObjectKey};

/// The annotation that tells since when the change that caused the last write was due.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The label of Endpoints and EndpointSlices of headless Services.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// The selector, if this Service's endpoints are ours to keep.
pub fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))?;
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// Whether the Service's selector matches these labels.
pub fn selects(service: &Service, labels: Option<&BTreeMap<String, String>>) -> bool {
    let has = |(key, value): (&String, &String)| labels.is_some_and(|labels| labels.get(key) == Some(value));
    selector(service).is_some_and(|selector| selector.iter().all(has))
}

/// Whether the Service has no address of its own.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

/// Whether pods that are not ready count like ready ones.
pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.publish_not_ready_addresses == Some(true))
}

/// What happens to pods that are being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminating {
    Included,
    LeftOut,
}

/// The pod's address, if it can be an endpoint: it has one and has not run to its end.
pub fn address(pod: &Pod, terminating: Terminating) -> Option<String> {
    if is_finished(pod) || (terminating == Terminating::LeftOut && is_deleting(&pod.metadata)) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str());
    listed.chain(status.pod_ip.as_deref()).find(|ip| ip.parse::<Ipv4Addr>().is_ok()).map(str::to_owned)
}

/// The name the pod has within its Service's domain.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let in_domain = spec.subdomain.as_deref() == Some(name(&service.metadata));
    spec.hostname.clone().filter(|hostname| in_domain && !hostname.is_empty())
}

/// The reference to the pod that endpoints carry.
pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: Some(namespace(&pod.metadata).to_owned()),
        name: Some(name(&pod.metadata).to_owned()),
        uid: Some(uid(&pod.metadata).to_owned()),
        ..ObjectReference::default()
    }
}

/// A port of a pod that a Service leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetPort {
    pub name: Option<String>,
    pub protocol: String,
    pub port: i32,
    pub app_protocol: Option<String>,
}

/// The ports of the pod that the Service leads to; those whose name the pod does not know are left out.
pub fn target_ports(service: &Service, pod: &Pod) -> Vec<TargetPort> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let of_port = |port: &ServicePort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let number = match &port.target_port {
            None => port.port,
            Some(IntOrString::Int(0)) => port.port,
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(name)) if name.is_empty() => port.port,
            Some(IntOrString::String(name)) => named_port(pod, name, &protocol)?,
        };
        let name = port.name.clone().filter(|name| !name.is_empty());
        Some(TargetPort { name, protocol, port: number, app_protocol: port.app_protocol.clone() })
    };
    ports.filter_map(of_port).collect()
}

/// The number of a container port by name; sidecars among the init containers count too.
fn named_port(pod: &Pod, wanted: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let mut ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .find(|port| port.name.as_deref() == Some(wanted) && port.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|port| port.container_port)
}

/// The Services of the change's namespace that select the pod as it was or is.
pub fn services_of(services: &Informer<Service>, change: &Change<Pod>) -> Vec<ObjectKey> {
    let pod = change.object();
    let before = match change {
        Change::Updated { old, .. } if old.metadata.labels != pod.metadata.labels => Some(old),
        _ => None,
    };
    let concerned = |service: &Arc<Service>| {
        selects(service, pod.metadata.labels.as_ref()) || before.is_some_and(|old| selects(service, old.metadata.labels.as_ref()))
    };
    let services = services.list_in(namespace(&pod.metadata));
    services.iter().filter(|service| concerned(service)).map(|service| ObjectKey::of(&**service)).collect()
}

/// Labels of a Service with those of `own` added.
pub fn labels(service: &Service, own: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.extend(own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// Puts the trigger time into the annotations; takes an older one away where there is none.
pub fn set_trigger(meta: &mut ObjectMeta, trigger: Option<Timestamp>) {
    let annotations = meta.annotations.get_or_insert_default();
    match trigger {
        Some(time) => annotations.insert(TRIGGER_TIME.to_owned(), time.to_string()),
        None => annotations.remove(TRIGGER_TIME),
    };
    if annotations.is_empty() {
        meta.annotations = None;
    }
}

/// What of each Service and its pods was seen by the last pass.
#[derive(Debug, Default)]
pub struct TriggerTimes {
    seen: HashMap<ObjectKey, HashMap<String, Timestamp>>,
}

impl TriggerTimes {
    /// The time of the earliest change since the last pass over this Service: its creation, or a pod's becoming ready or not.
    pub fn observe(&mut self, key: &ObjectKey, service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        let created = service.metadata.creation_timestamp.as_ref().map(|time| (String::new(), time.0));
        let changed = pods.iter().filter_map(|pod| {
            let at = ready_condition(pod)?.last_transition_time.as_ref()?.0;
            Some((uid(&pod.metadata).to_owned(), at))
        });
        let current: HashMap<String, Timestamp> = created.into_iter().chain(changed).collect();
        let before = self.seen.insert(key.clone(), current.clone()).unwrap_or_default();
        current.iter().filter(|(uid, at)| before.get(*uid) != Some(*at)).map(|(_, at)| *at).min()
    }

    /// The Service is gone.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.seen.remove(key);
    }
}

#[cfg(test)]
pub mod samples {
    use super::*;
    use serde_json::{Value, json};

    /// A Service `web` with a numbered and a named port.
    pub fn service(more: Value) -> Service {
        let base = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "n", "uid": "s"},
            "spec": {"clusterIP": "10.0.0.1", "selector": {"app": "web"}, "ports": [
                {"name": "http", "port": 80, "targetPort": 8080}, {"name": "named", "port": 81, "targetPort": "metrics"}]}});
        serde_json::from_value(crate::shared::test_loop::with(base, more)).unwrap()
    }

    /// A ready pod of that Service.
    pub fn pod_json(name: &str, ip: &str, more: Value) -> Value {
        let base = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "node", "containers": [{"name": "c", "ports": [{"name": "metrics", "containerPort": 9090}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]}});
        crate::shared::test_loop::with(base, more)
    }

    pub fn pod(name: &str, ip: &str, more: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(pod_json(name, ip, more)).unwrap())
    }

    pub fn not_ready() -> Value {
        json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
    }

    pub fn deleting() -> Value {
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{deleting, pod, service};
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn ports_are_resolved_for_each_pod() {
        let numbers = |pod: &Pod| target_ports(&service(Value::Null), pod).iter().map(|port| port.port).collect::<Vec<_>>();
        assert_eq!(numbers(&pod("a", "10.1.0.1", Value::Null)), [8080, 9090]);
        assert_eq!(numbers(&pod("a", "10.1.0.1", json!({"spec": {"containers": [{"name": "c"}]}}))), [8080]);
    }

    #[test]
    fn only_pods_with_a_future_have_an_address() {
        let of = |more, terminating| address(&pod("a", "10.1.0.1", more), terminating);
        assert_eq!(of(Value::Null, Terminating::LeftOut).as_deref(), Some("10.1.0.1"));
        assert_eq!(of(deleting(), Terminating::LeftOut), None);
        assert_eq!(of(deleting(), Terminating::Included).as_deref(), Some("10.1.0.1"));
        assert_eq!(of(json!({"status": {"phase": "Failed"}}), Terminating::Included), None);
        assert_eq!(of(json!({"status": {"podIP": "", "podIPs": []}}), Terminating::Included), None);
    }

    #[test]
    fn the_earliest_change_since_the_last_pass_is_the_trigger() {
        let ready_at = |time: &str| {
            pod(
                "a",
                "10.1.0.1",
                json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": time}]}}),
            )
        };
        let (key, service) = (ObjectKey::new("n", "web"), service(Value::Null));
        let mut times = TriggerTimes::default();
        let first = "2026-01-01T00:00:01Z";
        assert_eq!(times.observe(&key, &service, &[ready_at(first)]), Some(first.parse().unwrap()));
        assert_eq!(times.observe(&key, &service, &[ready_at(first)]), None);
        let second = "2026-01-01T00:00:09Z";
        assert_eq!(times.observe(&key, &service, &[ready_at(second)]), Some(second.parse().unwrap()));
    }
}
