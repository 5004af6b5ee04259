//! From a Pod to what the runtime is asked for: everything resolved.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;

use crate::{
    agent::Agent,
    pod::{
        model::{self, Slot},
        qos::qos_class,
        resources,
    },
    runtime::{ContainerConfig, ContainerSecurity, SandboxConfig},
};

/// The sandbox of a pod.
pub fn sandbox_config(agent: &Agent, pod: &Pod, attempt: u32) -> SandboxConfig {
    let spec = model::spec(pod);
    let identity = model::identity(pod);
    let class = qos_class(pod).cgroup_parent().map(|class| format!("{class}/")).unwrap_or_default();
    SandboxConfig {
        attempt,
        hostname: spec.hostname.clone().unwrap_or_else(|| identity.name.clone()),
        host_network: model::host_network(pod),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        share_process_namespace: spec.share_process_namespace.unwrap_or(false),
        dns: None,
        sysctls: Default::default(),
        log_directory: PathBuf::new(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: format!("{class}pod{}", identity.uid),
        port_mappings: Vec::new(),
        pod: identity,
    }
}

/// One instance of a container.
pub fn container_config(agent: &Agent, pod: &Pod, slot: &Slot<'_>, attempt: u32) -> ContainerConfig {
    let container = slot.container;
    ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: container.image.clone().unwrap_or_default(),
        command: container.command.clone().unwrap_or_default(),
        args: container.args.clone().unwrap_or_default(),
        working_directory: container.working_dir.clone(),
        environment: Vec::new(),
        mounts: Vec::new(),
        resources: resources::container_resources(pod, container, agent.capacity.memory_bytes),
        security: ContainerSecurity::default(),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        log_path: PathBuf::from(format!("{}/{attempt}.log", container.name)),
        labels: Default::default(),
        annotations: Default::default(),
    }
}
