//! How lists and maps of the built-in kinds merge: what Kubernetes' types say in `patchStrategy`, `patchMergeKey`, `listType`,
//! `listMapKey` and `mapType` tags. A list that is not named here is replaced as a whole.

/// How a field merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// The last two parts of the schema's name, and the field: `v1.PodSpec` `containers`.
    pub schema: &'static str,
    pub field: &'static str,
    /// `x-kubernetes-patch-strategy`: `merge`, `retainKeys`, `merge,retainKeys`, `replace`; empty for none.
    pub strategy: &'static str,
    /// `x-kubernetes-patch-merge-key`; empty for none.
    pub merge_key: &'static str,
    /// `x-kubernetes-list-map-keys` where `x-kubernetes-list-type` is `map`.
    pub map_keys: &'static [&'static str],
    /// `x-kubernetes-list-type`; empty for a field that is no list.
    pub list_type: &'static str,
}

/// A list that merges by one key, for patches and for server-side apply alike.
const fn keyed(schema: &'static str, field: &'static str, keys: &'static [&'static str]) -> Rule {
    Rule { schema, field, strategy: "merge", merge_key: keys[0], map_keys: keys, list_type: "map" }
}

/// The same, whose items are also unions: keys that a patch does not retain are dropped.
const fn retaining(schema: &'static str, field: &'static str, keys: &'static [&'static str]) -> Rule {
    Rule { strategy: "merge,retainKeys", ..keyed(schema, field, keys) }
}

/// A list that strategic merge patches merge, and server-side apply replaces.
const fn patched(schema: &'static str, field: &'static str, merge_key: &'static str) -> Rule {
    Rule { schema, field, strategy: "merge", merge_key, map_keys: &[], list_type: "atomic" }
}

/// A list that server-side apply merges, and strategic merge patches replace.
const fn applied(schema: &'static str, field: &'static str, keys: &'static [&'static str]) -> Rule {
    Rule { schema, field, strategy: "", merge_key: "", map_keys: keys, list_type: "map" }
}

/// A set of scalars that merge.
const fn set(schema: &'static str, field: &'static str) -> Rule {
    Rule { schema, field, strategy: "merge", merge_key: "", map_keys: &[], list_type: "set" }
}

/// A map with a strategy.
const fn map(schema: &'static str, field: &'static str, strategy: &'static str) -> Rule {
    Rule { schema, field, strategy, merge_key: "", map_keys: &[], list_type: "" }
}

pub(super) const RULES: &[Rule] = &[
    set("v1.ObjectMeta", "finalizers"),
    keyed("v1.ObjectMeta", "ownerReferences", &["uid"]),
    keyed("v1.Container", "env", &["name"]),
    keyed("v1.Container", "ports", &["containerPort", "protocol"]),
    keyed("v1.Container", "volumeDevices", &["devicePath"]),
    keyed("v1.Container", "volumeMounts", &["mountPath"]),
    keyed("v1.EphemeralContainer", "env", &["name"]),
    keyed("v1.EphemeralContainer", "ports", &["containerPort", "protocol"]),
    keyed("v1.EphemeralContainer", "volumeDevices", &["devicePath"]),
    keyed("v1.EphemeralContainer", "volumeMounts", &["mountPath"]),
    keyed("v1.ContainerStatus", "allocatedResourcesStatus", &["name"]),
    keyed("v1.ContainerStatus", "volumeMounts", &["mountPath"]),
    applied("v1.ResourceRequirements", "claims", &["name"]),
    keyed("v1.PodSpec", "containers", &["name"]),
    keyed("v1.PodSpec", "ephemeralContainers", &["name"]),
    keyed("v1.PodSpec", "hostAliases", &["ip"]),
    keyed("v1.PodSpec", "imagePullSecrets", &["name"]),
    keyed("v1.PodSpec", "initContainers", &["name"]),
    retaining("v1.PodSpec", "resourceClaims", &["name"]),
    keyed("v1.PodSpec", "schedulingGates", &["name"]),
    keyed("v1.PodSpec", "topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    retaining("v1.PodSpec", "volumes", &["name"]),
    keyed("v1.PodStatus", "conditions", &["type"]),
    patched("v1.PodStatus", "hostIPs", "ip"),
    keyed("v1.PodStatus", "podIPs", &["ip"]),
    retaining("v1.PodStatus", "resourceClaimStatuses", &["name"]),
    set("v1.NodeSpec", "podCIDRs"),
    keyed("v1.NodeStatus", "addresses", &["type"]),
    keyed("v1.NodeStatus", "conditions", &["type"]),
    keyed("v1.NamespaceStatus", "conditions", &["type"]),
    keyed("v1.ServiceSpec", "ports", &["port", "protocol"]),
    keyed("v1.ServiceStatus", "conditions", &["type"]),
    keyed("v1.ServiceAccount", "secrets", &["name"]),
    keyed("v1.ReplicationControllerStatus", "conditions", &["type"]),
    keyed("v1.PersistentVolumeClaimStatus", "conditions", &["type"]),
    keyed("v1.ComponentStatus", "conditions", &["type"]),
    map("v1.DeploymentSpec", "strategy", "retainKeys"),
    keyed("v1.DeploymentStatus", "conditions", &["type"]),
    keyed("v1.ReplicaSetStatus", "conditions", &["type"]),
    keyed("v1.StatefulSetStatus", "conditions", &["type"]),
    keyed("v1.DaemonSetStatus", "conditions", &["type"]),
    patched("v1.JobStatus", "conditions", "type"),
    map("v1.PodDisruptionBudgetSpec", "selector", "replace"),
    keyed("v1.PodDisruptionBudgetStatus", "conditions", &["type"]),
    keyed("v2.HorizontalPodAutoscalerStatus", "conditions", &["type"]),
    keyed("v1.MutatingWebhookConfiguration", "webhooks", &["name"]),
    keyed("v1.ValidatingWebhookConfiguration", "webhooks", &["name"]),
    keyed("v1.APIServiceStatus", "conditions", &["type"]),
    applied("v1.CustomResourceDefinitionStatus", "conditions", &["type"]),
    Rule { strategy: "", ..set("v1.Endpoint", "addresses") },
    Rule { strategy: "", ..set("v1.StorageVersionStatus", "storageVersions") },
];

/// Schemas whose objects are replaced as a whole by server-side apply.
pub(super) const ATOMIC_SCHEMAS: &[&str] = &[
    "v1.ConfigMapKeySelector",
    "v1.EndpointAddress",
    "v1.EndpointPort",
    "v1.FileKeySelector",
    "v1.LabelSelector",
    "v1.LocalObjectReference",
    "v1.NodeSelector",
    "v1.NodeSelectorTerm",
    "v1.ObjectFieldSelector",
    "v1.ObjectReference",
    "v1.OwnerReference",
    "v1.ResourceFieldSelector",
    "v1.ScopeSelector",
    "v1.SecretKeySelector",
    "v1.SecretReference",
    "v1.TopologySelectorTerm",
    "v1.TypedLocalObjectReference",
];

/// Maps (with any keys) that server-side apply replaces as a whole.
pub(super) const ATOMIC_MAPS: &[(&str, &str)] = &[
    ("v1.PodSpec", "nodeSelector"),
    ("v1.ServiceSpec", "selector"),
    ("v1.ReplicationControllerSpec", "selector"),
    ("v1.Overhead", "podFixed"),
];
