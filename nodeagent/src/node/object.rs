//! The Node object as this agent wants it: pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
        NodeSystemInfo,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, Time},
    },
};

use crate::{
    config::{Capacity, NodeAgentConfig},
    node::{
        eviction::{EvictionThresholds, Signal, Supply},
        machine,
    },
};

/// One of the node's conditions before it has times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub kind: &'static str,
    pub holds: Truth,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    True,
    False,
}

impl Truth {
    pub fn as_str(self) -> &'static str {
        match self {
            Truth::True => "True",
            Truth::False => "False",
        }
    }
}

/// What the conditions are judged by.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Why the runtime cannot start pods.
    pub runtime_error: Option<String>,
    pub memory_bytes: Option<Supply>,
    pub disk: Option<machine::Disk>,
    pub processes: Option<Supply>,
}

/// The node's conditions, in the kubelet's order and words.
pub fn verdicts(health: &Health, thresholds: &EvictionThresholds) -> Vec<Verdict> {
    let is_short = |signal, supply: Option<Supply>| supply.is_some_and(|supply| thresholds.is_short(signal, supply));
    let memory_short = is_short(Signal::MemoryAvailable, health.memory_bytes);
    let disk_short = is_short(Signal::NodefsAvailable, health.disk.map(|disk| disk.bytes))
        || is_short(Signal::NodefsInodesFree, health.disk.map(|disk| disk.inodes));
    let processes_short = is_short(Signal::PidAvailable, health.processes);
    let pressure = |kind, short, bad: (&'static str, &str), good: (&'static str, &str)| {
        let (holds, (reason, message)) = if short { (Truth::True, bad) } else { (Truth::False, good) };
        Verdict { kind, holds, reason, message: message.to_owned() }
    };
    let ready = match &health.runtime_error {
        None => Verdict {
            kind: "Ready",
            holds: Truth::True,
            reason: "KubeletReady",
            message: "kubelet is posting ready status".to_owned(),
        },
        Some(error) => Verdict {
            kind: "Ready",
            holds: Truth::False,
            reason: "KubeletNotReady",
            message: format!("container runtime is not ready: {error}"),
        },
    };
    vec![
        pressure(
            "MemoryPressure",
            memory_short,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            "DiskPressure",
            disk_short,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            processes_short,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        ready,
    ]
}

/// The conditions with their times: a transition is when the truth changed, not the words.
pub fn conditions(verdicts: &[Verdict], previous: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let conditions = verdicts.iter().map(|verdict| {
        let unchanged =
            previous.iter().find(|condition| condition.type_ == verdict.kind && condition.status == verdict.holds.as_str());
        let transition = unchanged.and_then(|condition| condition.last_transition_time.clone()).unwrap_or(Time(now));
        NodeCondition {
            type_: verdict.kind.to_owned(),
            status: verdict.holds.as_str().to_owned(),
            reason: Some(verdict.reason.to_owned()),
            message: Some(verdict.message.clone()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(transition),
        }
    });
    conditions.collect()
}

/// Whether anything but heartbeat times differs.
pub fn same_conditions(left: &[NodeCondition], right: &[NodeCondition]) -> bool {
    let words = |conditions: &[NodeCondition]| -> BTreeMap<String, (String, Option<String>, Option<String>)> {
        let entry = |c: &NodeCondition| (c.type_.clone(), (c.status.clone(), c.reason.clone(), c.message.clone()));
        conditions.iter().map(entry).collect()
    };
    let (left, right) = (words(left), words(right));
    left.iter().all(|(kind, state)| right.get(kind) == Some(state))
}

/// The well-known labels and the operator's.
pub fn labels(config: &NodeAgentConfig) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    let architecture = machine::architecture();
    for (key, value) in [
        ("kubernetes.io/hostname", config.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture),
        ("topology.kubernetes.io/zone", config.zone.as_str()),
        ("topology.kubernetes.io/region", config.region.as_str()),
    ] {
        if !value.is_empty() {
            labels.insert(key.to_owned(), value.to_owned());
        }
    }
    labels
}

/// The part of the status that does not change while the agent runs.
pub fn fixed_status(config: &NodeAgentConfig, capacity: Capacity, info: NodeSystemInfo) -> NodeStatus {
    let quantities: BTreeMap<String, Quantity> = [
        ("cpu", cpu_quantity(capacity.cpu_millis)),
        ("memory", format!("{}Ki", capacity.memory_bytes / 1024)),
        ("ephemeral-storage", format!("{}Ki", capacity.ephemeral_storage_bytes / 1024)),
        ("pods", config.max_pods.to_string()),
    ]
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .into();
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    NodeStatus {
        addresses: Some(vec![address("InternalIP", config.node_ip.to_string()), address("Hostname", config.name.clone())]),
        capacity: Some(quantities.clone()),
        allocatable: Some(quantities),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.listen.port()) }),
        }),
        node_info: Some(info),
        ..NodeStatus::default()
    }
}

fn cpu_quantity(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") }
}

/// The Node to register.
pub fn node(config: &NodeAgentConfig, status: NodeStatus) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(config.name.clone()),
            labels: Some(labels(config)),
            annotations: Some([("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec { taints: (!config.taints.is_empty()).then(|| config.taints.clone()), ..NodeSpec::default() }),
        status: Some(status),
    }
}

/// `status.images`: the fifty largest, as the kubelet reports them.
pub fn images(images: &[crate::runtime::Image]) -> Vec<ContainerImage> {
    let mut sorted: Vec<_> = images.iter().collect();
    sorted.sort_by(|left, right| right.size_bytes.cmp(&left.size_bytes).then_with(|| left.id.cmp(&right.id)));
    let entry = |image: &&crate::runtime::Image| ContainerImage {
        names: Some(image.references.clone()),
        size_bytes: i64::try_from(image.size_bytes).ok(),
    };
    sorted.iter().take(50).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn judged(health: &Health) -> Vec<Verdict> {
        verdicts(health, &EvictionThresholds::default())
    }

    #[test]
    fn a_healthy_node_is_ready_and_without_pressure() {
        let verdicts = judged(&Health::default());
        let states: Vec<_> = verdicts.iter().map(|verdict| (verdict.kind, verdict.holds.as_str())).collect();
        assert_eq!(states, [("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False"), ("Ready", "True")]);
    }

    #[test]
    fn shortage_is_told_by_the_kubelets_thresholds() {
        let disk = |available, inodes| machine::Disk {
            bytes: Supply { available, total: 1000 },
            inodes: Supply { available: inodes, total: 100 },
        };
        let holds = |health: &Health, kind: &str| judged(health).into_iter().find(|verdict| verdict.kind == kind).unwrap().holds;
        let memory = |available| Health { memory_bytes: Some(Supply { available, total: 1 << 30 }), ..Health::default() };
        assert_eq!(holds(&memory((100 << 20) - 1), "MemoryPressure"), Truth::True);
        assert_eq!(holds(&memory(100 << 20), "MemoryPressure"), Truth::False);
        assert_eq!(holds(&Health { disk: Some(disk(99, 50)), ..Health::default() }, "DiskPressure"), Truth::True);
        assert_eq!(holds(&Health { disk: Some(disk(100, 50)), ..Health::default() }, "DiskPressure"), Truth::False);
        assert_eq!(holds(&Health { disk: Some(disk(500, 4)), ..Health::default() }, "DiskPressure"), Truth::True);
        let processes = |available| Health { processes: Some(Supply { available, total: 100 }), ..Health::default() };
        assert_eq!(holds(&processes(4), "PIDPressure"), Truth::True);
        assert_eq!(holds(&processes(10), "PIDPressure"), Truth::False);
    }

    #[test]
    fn a_condition_keeps_its_transition_while_its_truth_stays() {
        let first = conditions(&judged(&Health::default()), &[], at(100));
        let second = conditions(&judged(&Health::default()), &first, at(200));
        assert_eq!(second[3].last_transition_time, Some(Time(at(100))));
        assert_eq!(second[3].last_heartbeat_time, Some(Time(at(200))));
        assert!(same_conditions(&second, &first));
        let down = Health { runtime_error: Some("socket closed".to_owned()), ..Health::default() };
        let third = conditions(&judged(&down), &second, at(300));
        assert_eq!(third[3].last_transition_time, Some(Time(at(300))));
        assert_eq!(third[3].message.as_deref(), Some("container runtime is not ready: socket closed"));
        assert!(!same_conditions(&third, &second));
    }

    #[test]
    fn labels_say_where_the_node_is() {
        let mut config = NodeAgentConfig::new("n1", "10.0.0.1".parse().unwrap());
        config.zone = "zone-a".to_owned();
        let labels = labels(&config);
        assert_eq!(labels["topology.kubernetes.io/zone"], "zone-a");
        assert_eq!(labels["kubernetes.io/hostname"], "n1");
        assert!(!labels.contains_key("topology.kubernetes.io/region"));
    }

    #[test]
    fn processors_are_whole_or_thousandths() {
        assert_eq!(cpu_quantity(2000), "2");
        assert_eq!(cpu_quantity(1500), "1500m");
    }
}
