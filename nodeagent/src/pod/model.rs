//! Small readings of a Pod that several places need.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::runtime::PodIdentity;

/// When exited containers are started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text? {
            "Always" => Some(Self::Always),
            "OnFailure" => Some(Self::OnFailure),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }

    /// Whether a container that ended with `exit_code` runs again.
    pub fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next starts.
    Init,
    /// An init container with `restartPolicy: Always` (KEP-753): runs beside the others.
    Sidecar,
    Regular,
}

/// One container of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    pub role: Role,
    pub container: &'a Container,
}

impl Slot<'_> {
    pub fn name(&self) -> &str {
        &self.container.name
    }

    /// The container's own policy, else the pod's.
    pub fn restart_policy(&self, pod: &Pod) -> RestartPolicy {
        let own = RestartPolicy::parse(self.container.restart_policy.as_deref());
        match (own, self.role) {
            (Some(policy), _) => policy,
            // An init container of an Always pod is restarted on failure only: it has to end.
            (None, Role::Init) if restart_policy(pod) == RestartPolicy::Always => RestartPolicy::OnFailure,
            (None, _) => restart_policy(pod),
        }
    }
}

pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    pod.spec.as_ref().and_then(|spec| RestartPolicy::parse(spec.restart_policy.as_deref())).unwrap_or(RestartPolicy::Always)
}

/// Init containers and sidecars, in order.
pub fn init_slots(pod: &Pod) -> Vec<Slot<'_>> {
    let containers = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let role = |container: &Container| match container.restart_policy.as_deref() {
        Some("Always") => Role::Sidecar,
        _ => Role::Init,
    };
    containers.iter().map(|container| Slot { role: role(container), container }).collect()
}

pub fn regular_slots(pod: &Pod) -> Vec<Slot<'_>> {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    containers.iter().map(|container| Slot { role: Role::Regular, container }).collect()
}

/// Every container, init ones first.
pub fn all_slots(pod: &Pod) -> Vec<Slot<'_>> {
    let mut slots = init_slots(pod);
    slots.extend(regular_slots(pod));
    slots
}

pub fn identity(pod: &Pod) -> PodIdentity {
    PodIdentity {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
    }
}

/// `name_namespace(uid)`, as the kubelet names a pod in its messages.
pub fn display(pod: &PodIdentity) -> String {
    format!("{}_{}({})", pod.name, pod.namespace, pod.uid)
}

pub fn spec(pod: &Pod) -> Cow<'_, PodSpec> {
    pod.spec.as_ref().map_or_else(|| Cow::Owned(PodSpec::default()), Cow::Borrowed)
}

pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}
