//! A pod as the scheduler sees it: parsed once, when the API server tells of it.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use trireme_api::{
    kinds::pod_resources::{is_sidecar, pod_requests},
    selector::{LabelSelector, Operator, Requirement},
};

use crate::{
    resources::Resources,
    terms::{AffinityTerm, HostPort, LabelMap, NodeAffinity, Toleration, selector_with},
};

/// What a container without a request counts for in scores (`GetNonzeroRequests`).
const DEFAULT_CPU_MILLI: i64 = 100;
const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// Pods that look the same to every selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodClass {
    pub namespace: Arc<str>,
    pub labels: LabelMap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WhenUnsatisfiable {
    DoNotSchedule,
    ScheduleAnyway,
}

/// Whether nodes that a pod could not go to for another reason count for spreading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InclusionPolicy {
    Honor,
    Ignore,
}

/// One of `topologySpreadConstraints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpreadConstraint {
    pub topology_key: Arc<str>,
    pub max_skew: i64,
    pub min_domains: i64,
    pub when: WhenUnsatisfiable,
    pub selector: LabelSelector,
    pub node_affinity: InclusionPolicy,
    pub node_taints: InclusionPolicy,
}

impl SpreadConstraint {
    fn new(constraint: &core::TopologySpreadConstraint, labels: &LabelMap) -> Self {
        let keyed = constraint.match_label_keys.iter().flatten().filter_map(|key| {
            Some(Requirement { key: key.clone(), operator: Operator::In, values: vec![labels.get(key)?.clone()] })
        });
        let policy = |text: &Option<String>, default| match text.as_deref() {
            Some("Honor") => InclusionPolicy::Honor,
            Some("Ignore") => InclusionPolicy::Ignore,
            _ => default,
        };
        Self {
            topology_key: constraint.topology_key.as_str().into(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            when: match constraint.when_unsatisfiable.as_str() {
                "ScheduleAnyway" => WhenUnsatisfiable::ScheduleAnyway,
                _ => WhenUnsatisfiable::DoNotSchedule,
            },
            selector: selector_with(constraint.label_selector.as_ref(), keyed.collect()),
            node_affinity: policy(&constraint.node_affinity_policy, InclusionPolicy::Honor),
            node_taints: policy(&constraint.node_taints_policy, InclusionPolicy::Ignore),
        }
    }
}

/// Affinity to, and anti-affinity against, other pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodAffinity {
    pub required: Vec<AffinityTerm>,
    pub required_anti: Vec<AffinityTerm>,
    /// Weight and term; a negative weight is anti-affinity.
    pub preferred: Vec<(i64, AffinityTerm)>,
}

impl PodAffinity {
    fn new(spec: &core::PodSpec, namespace: &str, labels: &LabelMap) -> Self {
        let mut affinity = Self::default();
        let Some(object) = &spec.affinity else { return affinity };
        let term = |term: &core::PodAffinityTerm| AffinityTerm::new(term, namespace, labels);
        let weighted = |terms: &Option<Vec<core::WeightedPodAffinityTerm>>, sign: i64| -> Vec<(i64, AffinityTerm)> {
            terms.iter().flatten().map(|each| (sign * i64::from(each.weight), term(&each.pod_affinity_term))).collect()
        };
        if let Some(wanted) = &object.pod_affinity {
            affinity.required = wanted.required_during_scheduling_ignored_during_execution.iter().flatten().map(term).collect();
            affinity.preferred = weighted(&wanted.preferred_during_scheduling_ignored_during_execution, 1);
        }
        if let Some(unwanted) = &object.pod_anti_affinity {
            affinity.required_anti =
                unwanted.required_during_scheduling_ignored_during_execution.iter().flatten().map(term).collect();
            affinity.preferred.extend(weighted(&unwanted.preferred_during_scheduling_ignored_during_execution, -1));
        }
        affinity
    }

    pub fn is_empty(&self) -> bool {
        self.required.is_empty() && self.required_anti.is_empty() && self.preferred.is_empty()
    }
}

/// Everything that decides where a pod may go and how well it would be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub class: Arc<PodClass>,
    pub priority: i32,
    /// Whether it may make others leave (`preemptionPolicy` is not `Never`).
    pub may_preempt: bool,
    pub requests: Resources,
    /// Requests of processor and memory with a default for containers that ask for nothing; for scores only.
    pub scored_cpu_milli: i64,
    pub scored_memory_bytes: i64,
    pub host_ports: Vec<HostPort>,
    pub required_node: Option<Arc<str>>,
    pub node_affinity: NodeAffinity,
    pub tolerations: Vec<Toleration>,
    pub affinity: PodAffinity,
    pub spread: Vec<SpreadConstraint>,
    /// Names of the containers' images, with a tag.
    pub images: Vec<Arc<str>>,
    pub gated: bool,
    pub scheduler_name: String,
    /// The uid of the controller that owns it: pods of one controller are spread by default.
    pub controller: Option<Arc<str>>,
    pub terminating: bool,
    pub created: Timestamp,
    /// When the node started it, or its creation before that.
    pub started: Timestamp,
}

impl PodInfo {
    /// None where the object lacks what every stored pod has.
    pub fn new(pod: &core::Pod) -> Option<Self> {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref()?;
        let namespace = meta.namespace.as_deref()?;
        let labels = meta.labels.clone().unwrap_or_default();
        let created = meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(created, |time| time.0);
        let (scored_cpu_milli, scored_memory_bytes) = scored_requests(spec);
        let controller = meta
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.controller == Some(true))
            .map(|owner| owner.uid.as_str().into());
        Some(Self {
            uid: meta.uid.as_deref()?.into(),
            name: meta.name.as_deref()?.into(),
            priority: spec.priority.unwrap_or(0),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            requests: Resources::requested(&pod_requests(spec)),
            scored_cpu_milli,
            scored_memory_bytes,
            host_ports: host_ports(spec),
            required_node: spec.node_name.as_deref().filter(|name| !name.is_empty()).map(Into::into),
            node_affinity: NodeAffinity::new(spec),
            tolerations: spec.tolerations.iter().flatten().filter_map(Toleration::new).collect(),
            affinity: PodAffinity::new(spec, namespace, &labels),
            spread: spec.topology_spread_constraints.iter().flatten().map(|each| SpreadConstraint::new(each, &labels)).collect(),
            images: spec.containers.iter().filter_map(|container| container.image.as_deref().map(normalized_image)).collect(),
            gated: spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()),
            scheduler_name: spec.scheduler_name.clone().unwrap_or_else(|| crate::DEFAULT_SCHEDULER_NAME.to_owned()),
            controller,
            terminating: meta.deletion_timestamp.is_some(),
            class: Arc::new(PodClass { namespace: namespace.into(), labels }),
            created,
            started,
        })
    }

    pub fn namespace(&self) -> &str {
        &self.class.namespace
    }

    pub fn labels(&self) -> &LabelMap {
        &self.class.labels
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.class.namespace, self.name)
    }
}

/// Whether the pod has ended for good and takes no room any more.
pub fn has_ended(pod: &core::Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn scored_requests(spec: &core::PodSpec) -> (i64, i64) {
    let mut filled = spec.clone();
    let containers = filled.containers.iter_mut().chain(filled.init_containers.iter_mut().flatten());
    for container in containers {
        let resources = container.resources.get_or_insert_default();
        let requests = resources.requests.get_or_insert_default();
        let quantity = |text: String| k8s_openapi::apimachinery::pkg::api::resource::Quantity(text);
        requests.entry("cpu".to_owned()).or_insert_with(|| quantity(format!("{DEFAULT_CPU_MILLI}m")));
        requests.entry("memory".to_owned()).or_insert_with(|| quantity(DEFAULT_MEMORY_BYTES.to_string()));
    }
    let requests = Resources::requested(&pod_requests(&filled));
    (requests.cpu_milli, requests.memory_bytes)
}

fn host_ports(spec: &core::PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let given =
        |text: &Option<String>, default: &str| text.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            Some(HostPort { port: number, protocol: given(&port.protocol, "TCP"), address: given(&port.host_ip, "0.0.0.0") })
        })
        .collect()
}

/// An image's name with `:latest` where it has neither tag nor digest.
pub fn normalized_image(name: &str) -> Arc<str> {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || name.contains('@') { name.into() } else { format!("{name}:latest").into() }
}
