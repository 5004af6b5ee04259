//! Between our words and the CRI's.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{Owner, api, cgroup_driver::CgroupDriver};
use crate::runtime::{
    ContainerConfig, ContainerState, ContainerStatus, Image, MountPropagation, PodIdentity, SandboxConfig, SandboxState,
    SandboxStatus, SeccompProfile,
};

/// The labels by which every CRI client knows the pods of a node (`k8s.io/kubelet/pkg/types`).
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// The labels by which a node knows its own among what others run on the same socket.
const OWNER_CLUSTER: &str = "trireme.io/cluster";
const OWNER_NODE: &str = "trireme.io/node";

/// The image as the pod names it; what a runtime tells may be another name of the same image.
const IMAGE: &str = "trireme.io/image";

const MASKED_PATHS: [&str; 8] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub fn sandbox_config(owner: &Owner, driver: CgroupDriver, config: &SandboxConfig) -> api::PodSandboxConfig {
    let mut labels: HashMap<String, String> = config.labels.clone().into_iter().collect();
    labels.extend(pod_labels(&config.pod));
    labels.extend(selector(owner, None));
    api::PodSandboxConfig {
        metadata: Some(api::PodSandboxMetadata {
            name: config.pod.name.clone(),
            uid: config.pod.uid.clone(),
            namespace: config.pod.namespace.clone(),
            attempt: config.attempt,
        }),
        // A pod on the node's network has the node's name; the runtimes refuse another.
        hostname: if config.host_network { String::new() } else { config.hostname.clone() },
        log_directory: config.log_directory.to_string_lossy().into_owned(),
        dns_config: config.dns.as_ref().map(|dns| api::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        port_mappings: config
            .port_mappings
            .iter()
            .map(|mapping| api::PortMapping {
                protocol: match mapping.protocol.as_str() {
                    "UDP" => api::Protocol::Udp,
                    "SCTP" => api::Protocol::Sctp,
                    _ => api::Protocol::Tcp,
                } as i32,
                container_port: i32::from(mapping.container_port),
                host_port: i32::from(mapping.host_port),
                host_ip: mapping.host_ip.map(|address| address.to_string()).unwrap_or_default(),
            })
            .collect(),
        labels,
        annotations: config.annotations.clone().into_iter().collect(),
        linux: Some(api::LinuxPodSandboxConfig {
            cgroup_parent: driver.parent(&config.cgroup_parent),
            security_context: Some(api::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(config)),
                readonly_rootfs: false,
                privileged: false,
            }),
            sysctls: config.sysctls.clone().into_iter().collect(),
        }),
    }
}

/// The user that an image names: by number, by name, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

/// Who a container runs as when the pod names a group and no user: the interface takes no group alone.
pub fn image_user(image: &api::Image) -> ImageUser {
    match (&image.uid, image.username.as_str()) {
        (Some(uid), _) => ImageUser { uid: Some(uid.value), name: String::new() },
        (None, "") => ImageUser { uid: Some(0), name: String::new() },
        (None, name) => ImageUser { uid: None, name: name.to_owned() },
    }
}

pub fn container_config(
    owner: &Owner,
    sandbox: &SandboxConfig,
    config: &ContainerConfig,
    image_user: &ImageUser,
) -> api::ContainerConfig {
    let mut labels: HashMap<String, String> = config.labels.clone().into_iter().collect();
    labels.extend(pod_labels(&sandbox.pod));
    labels.insert(CONTAINER_NAME.to_owned(), config.name.clone());
    labels.extend(selector(owner, None));
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let security = &config.security;
    let (masked_paths, readonly_paths) =
        if security.privileged { (Vec::new(), Vec::new()) } else { (owned(&MASKED_PATHS), owned(&READ_ONLY_PATHS)) };
    let number = |value: Option<i64>| value.map(|value| api::Int64Value { value });
    api::ContainerConfig {
        metadata: Some(api::ContainerMetadata { name: config.name.clone(), attempt: config.attempt }),
        image: Some(super::image_spec(&config.image)),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config.working_directory.clone().unwrap_or_default(),
        envs: config.environment.iter().map(|(key, value)| api::KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts: config
            .mounts
            .iter()
            .map(|mount| api::Mount {
                container_path: mount.container_path.to_string_lossy().into_owned(),
                host_path: mount.host_path.to_string_lossy().into_owned(),
                readonly: mount.read_only,
                selinux_relabel: false,
                propagation: match mount.propagation {
                    MountPropagation::Private => api::MountPropagation::PropagationPrivate,
                    MountPropagation::HostToContainer => api::MountPropagation::PropagationHostToContainer,
                    MountPropagation::Bidirectional => api::MountPropagation::PropagationBidirectional,
                } as i32,
            })
            .collect(),
        labels,
        annotations: config.annotations.clone().into_iter().chain([(IMAGE.to_owned(), config.image.clone())]).collect(),
        log_path: config.log_path.to_string_lossy().into_owned(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        linux: Some(api::LinuxContainerConfig {
            resources: Some(api::LinuxContainerResources {
                cpu_period: config.resources.cpu_period_us.and_then(|period| i64::try_from(period).ok()).unwrap_or(0),
                cpu_quota: config.resources.cpu_quota_us.unwrap_or(0),
                cpu_shares: config.resources.cpu_shares.and_then(|shares| i64::try_from(shares).ok()).unwrap_or(0),
                memory_limit_in_bytes: config.resources.memory_limit_bytes.unwrap_or(0),
                oom_score_adj: i64::from(config.resources.oom_score_adj),
            }),
            security_context: Some(api::LinuxContainerSecurityContext {
                capabilities: Some(api::Capability {
                    add_capabilities: security.add_capabilities.clone(),
                    drop_capabilities: security.drop_capabilities.clone(),
                }),
                privileged: security.privileged,
                namespace_options: Some(namespaces(sandbox)),
                run_as_user: number(security.run_as_user.or(image_user.uid)),
                run_as_username: if security.run_as_user.is_none() { image_user.name.clone() } else { String::new() },
                readonly_rootfs: security.read_only_root_filesystem,
                supplemental_groups: security.supplemental_groups.clone(),
                no_new_privs: security.no_new_privileges,
                run_as_group: number(security.run_as_group),
                masked_paths,
                readonly_paths,
                seccomp: Some(seccomp(security)),
            }),
        }),
    }
}

/// The labels of everything of one node, or of one pod of it.
pub fn selector(owner: &Owner, pod: Option<&PodIdentity>) -> HashMap<String, String> {
    let own = [(OWNER_CLUSTER, &owner.cluster), (OWNER_NODE, &owner.node)];
    let pod = pod.map(|pod| (POD_UID, &pod.uid));
    own.into_iter().chain(pod).map(|(key, value)| (key.to_owned(), value.clone())).collect()
}

fn seccomp(security: &crate::runtime::ContainerSecurity) -> api::SecurityProfile {
    use api::security_profile::ProfileType;
    let (kind, localhost_ref) = match &security.seccomp {
        // The runtimes refuse a privileged container that has a filter.
        _ if security.privileged => (ProfileType::Unconfined, String::new()),
        SeccompProfile::Unconfined => (ProfileType::Unconfined, String::new()),
        SeccompProfile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        SeccompProfile::Localhost(path) => (ProfileType::Localhost, path.to_string_lossy().into_owned()),
    };
    api::SecurityProfile { profile_type: kind as i32, localhost_ref }
}

pub fn sandbox_status(status: api::PodSandboxStatus) -> Option<SandboxStatus> {
    let metadata = status.metadata?;
    let network = status.network.unwrap_or_default();
    let addresses = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|address| address.ip));
    Some(SandboxStatus {
        id: status.id,
        pod: PodIdentity { namespace: metadata.namespace, name: metadata.name, uid: metadata.uid },
        attempt: metadata.attempt,
        state: if status.state == api::PodSandboxState::SandboxReady as i32 {
            SandboxState::Ready
        } else {
            SandboxState::NotReady
        },
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        addresses: addresses.filter_map(|address| address.parse().ok()).collect(),
    })
}

/// `None` for a container that is not of a pod of ours.
pub fn container_status(sandbox_id: String, status: api::ContainerStatus) -> Option<ContainerStatus> {
    let pod = pod_of(&status.labels)?;
    let metadata = status.metadata?;
    let state = match api::ContainerState::try_from(status.state) {
        Ok(api::ContainerState::ContainerCreated) => ContainerState::Created,
        Ok(api::ContainerState::ContainerRunning) => ContainerState::Running,
        Ok(api::ContainerState::ContainerExited) => ContainerState::Exited,
        Ok(api::ContainerState::ContainerUnknown) | Err(_) => ContainerState::Unknown,
    };
    Some(ContainerStatus {
        id: status.id,
        sandbox_id,
        pod,
        name: metadata.name,
        attempt: metadata.attempt,
        state,
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        signal: if (129..=192).contains(&status.exit_code) { status.exit_code - 128 } else { 0 },
        reason: status.reason,
        message: status.message,
        image: match status.annotations.get(IMAGE) {
            Some(reference) => reference.clone(),
            None => status.image.map(|image| image.image).unwrap_or_default(),
        },
        image_id: status.image_ref,
        log_path: status.log_path.into(),
    })
}

pub fn image(image: api::Image) -> Image {
    let user = image.uid.map(|uid| uid.value).or_else(|| image.username.parse().ok());
    let references = image.repo_tags.into_iter().chain(image.repo_digests).collect();
    Image { id: image.id, references, size_bytes: image.size, user }
}

/// The pod that labels of a sandbox or container name.
pub fn pod_of(labels: &HashMap<String, String>) -> Option<PodIdentity> {
    let label = |key: &str| labels.get(key).cloned();
    Some(PodIdentity { namespace: label(POD_NAMESPACE)?, name: label(POD_NAME)?, uid: label(POD_UID)? })
}

fn pod_labels(pod: &PodIdentity) -> [(String, String); 3] {
    [(POD_NAME, &pod.name), (POD_NAMESPACE, &pod.namespace), (POD_UID, &pod.uid)]
        .map(|(key, value)| (key.to_owned(), value.clone()))
}

fn namespaces(config: &SandboxConfig) -> api::NamespaceOption {
    let mode = |on_node: bool| if on_node { api::NamespaceMode::Node } else { api::NamespaceMode::Pod } as i32;
    let pid = match (config.host_pid, config.share_process_namespace) {
        (true, _) => api::NamespaceMode::Node,
        (false, true) => api::NamespaceMode::Pod,
        (false, false) => api::NamespaceMode::Container,
    };
    api::NamespaceOption {
        network: mode(config.host_network),
        pid: pid as i32,
        ipc: mode(config.host_ipc),
        target_id: String::new(),
    }
}

fn time(nanoseconds: i64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).ok().filter(|_| nanoseconds > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(node: &str) -> Owner {
        Owner { cluster: "c1".to_owned(), node: node.to_owned() }
    }

    #[test]
    fn a_group_alone_goes_with_the_images_user() {
        let image = |uid: Option<i64>, username: &str| api::Image {
            uid: uid.map(|value| api::Int64Value { value }),
            username: username.to_owned(),
            ..api::Image::default()
        };
        for (image, uid, name) in
            [(image(Some(1000), ""), Some(1000), ""), (image(None, "web"), None, "web"), (image(None, ""), Some(0), "")]
        {
            assert_eq!(image_user(&image), ImageUser { uid, name: name.to_owned() });
        }
    }

    #[test]
    fn a_pod_cannot_pass_itself_off_as_another_nodes() {
        let claimed = [(OWNER_NODE.to_owned(), "n2".to_owned()), (POD_UID.to_owned(), "other".to_owned())];
        let pod = PodIdentity { namespace: "ns".to_owned(), name: "web".to_owned(), uid: "u".to_owned() };
        let config = SandboxConfig { pod: pod.clone(), labels: claimed.into(), ..SandboxConfig::default() };
        let labels = sandbox_config(&owner("n1"), CgroupDriver::Cgroupfs, &config).labels;
        let matches = |selector: HashMap<String, String>| selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        assert!(matches(selector(&owner("n1"), Some(&pod))));
        assert!(!matches(selector(&owner("n2"), None)));
    }
}
