//! From a Pod to what the runtime is asked for: everything resolved, every file in place.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{ContainerPort, Pod, VolumeMount};

use crate::{
    agent::Agent,
    log,
    pod::{
        bundle::Bundle,
        dns,
        environment::environment,
        expansion::expand,
        fields::Downward,
        hosts,
        memory::Observed,
        model::{self, Role, Slot},
        qos::qos_class,
        resources, security,
    },
    runtime::{ContainerConfig, Fidelity, Image, Mount, MountPropagation, PortMapping, SandboxConfig, SeccompProfile, hollow},
    volume::{
        pod_directory,
        setup::{Failure, Paths, Setup},
        subpath,
    },
};

/// The sandbox of a pod.
pub fn sandbox_config(agent: &Agent, pod: &Pod, attempt: u32) -> SandboxConfig {
    let spec = model::spec(pod);
    let identity = model::identity(pod);
    let class = qos_class(pod).cgroup_parent().map(|class| format!("{class}/")).unwrap_or_default();
    let sysctls = spec.security_context.as_ref().and_then(|context| context.sysctls.as_deref()).unwrap_or_default();
    let ports = model::all_slots(pod).into_iter().flat_map(|slot| slot.container.ports.iter().flatten());
    SandboxConfig {
        attempt,
        hostname: if model::host_network(pod) { node_hostname(agent) } else { hosts::hostname(pod) },
        host_network: model::host_network(pod),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        share_process_namespace: spec.share_process_namespace.unwrap_or(false),
        dns: Some(resolver(agent, pod)),
        sysctls: sysctls.iter().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
        log_directory: agent.config.data_dir.as_deref().map(|folder| log::pod_directory(folder, &identity)).unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: format!("{class}pod{}", identity.uid),
        port_mappings: if model::host_network(pod) { Vec::new() } else { ports.filter_map(port_mapping).collect() },
        pod: identity,
        resources: resources::pod_resources(pod),
    }
}

/// What a pod on the node's network sees as its host's name: it shares the name with the machine.
fn node_hostname(agent: &Agent) -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| agent.config.name.clone())
}

fn resolver(agent: &Agent, pod: &Pod) -> crate::runtime::DnsConfig {
    let node = match agent.runtime.fidelity() {
        Fidelity::Real => fs::read_to_string(&agent.config.resolv_conf).unwrap_or_default(),
        Fidelity::Simulated => String::new(),
    };
    dns::resolver(pod, &agent.config.cluster_dns, &agent.config.cluster_domain, &dns::parse_resolv_conf(&node))
}

fn port_mapping(port: &ContainerPort) -> Option<PortMapping> {
    Some(PortMapping {
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        container_port: u16::try_from(port.container_port).ok()?,
        host_port: port.host_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)?,
        host_ip: port.host_ip.as_deref().and_then(|address| address.parse().ok()),
    })
}

/// The addresses of a pod as text: the sandbox's, or the node's on its network.
pub fn addresses(agent: &Agent, pod: &Pod, observed: &Observed) -> Vec<String> {
    if model::host_network(pod) {
        return vec![agent.config.node_ip.to_string()];
    }
    observed.ready_sandbox().map(|sandbox| sandbox.addresses.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

/// Makes the pod's volumes, or brings them up to date. Nothing is made by an agent without a data folder.
///
/// # Errors
/// The volume that could not be made, and why.
pub async fn volumes(agent: &Arc<Agent>, pod: &Arc<Pod>, bundle: &Arc<Bundle>, pod_ips: Vec<String>) -> Result<Paths, Failure> {
    let no_volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref()).is_none_or(Vec::is_empty);
    let Some(data_dir) = agent.config.data_dir.clone().filter(|_| !no_volumes) else { return Ok(Paths::new()) };
    let (agent, pod, bundle) = (Arc::clone(agent), Arc::clone(pod), Arc::clone(bundle));
    let work = move || {
        let spec = model::spec(&pod);
        let host_ip = agent.config.node_ip.to_string();
        let setup = Setup {
            data_dir: &data_dir,
            uid: pod.metadata.uid.as_deref().unwrap_or_default(),
            downward: Downward { pod: &pod, capacity: agent.capacity, host_ip: &host_ip, pod_ips: &pod_ips },
            bundle: &bundle,
            fs_group: spec.security_context.as_ref().and_then(|context| context.fs_group),
            fidelity: agent.runtime.fidelity(),
            now: agent.clock.now(),
        };
        setup.all(spec.volumes.as_deref().unwrap_or_default())
    };
    let failure = |message: String| Failure { volume: String::new(), message };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(failure(error.to_string())))
}

/// What a container is made from.
#[derive(Clone, Copy)]
pub struct Ingredients<'a> {
    pub pod: &'a Pod,
    pub slot: &'a Slot<'a>,
    pub attempt: u32,
    pub bundle: &'a Bundle,
    /// The variables of Services.
    pub services: &'a BTreeMap<String, String>,
    pub volumes: &'a Paths,
    pub pod_ips: &'a [String],
    pub image: &'a Image,
}

/// One instance of a container. Writes its hosts file and termination log.
///
/// # Errors
/// The message of `CreateContainerConfigError`.
pub fn container_config(agent: &Agent, from: Ingredients<'_>) -> Result<ContainerConfig, String> {
    let Ingredients { pod, slot, attempt, bundle, pod_ips, .. } = from;
    let container = slot.container;
    let host_ip = agent.config.node_ip.to_string();
    let downward = Downward { pod, capacity: agent.capacity, host_ip: &host_ip, pod_ips };
    let environment = environment(container, downward, bundle, from.services)?;
    let variables: BTreeMap<&str, &str> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expand_all = |words: &Option<Vec<String>>| -> Vec<String> {
        words.iter().flatten().map(|word| expand(word, |name| variables.get(name).copied())).collect()
    };
    let mut security = security::security(pod, container);
    if let (SeccompProfile::Localhost(profile), Some(data_dir)) = (&mut security.seccomp, &agent.config.data_dir) {
        *profile = data_dir.join("seccomp").join(&*profile);
    }
    security::verify_non_root(pod, container, &security, Some(from.image))?;
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: container.image.clone().unwrap_or_default(),
        command: expand_all(&container.command),
        args: expand_all(&container.args),
        working_directory: container.working_dir.clone().filter(|folder| !folder.is_empty()),
        mounts: mounts(agent, from, &variables)?,
        environment,
        resources: resources::container_resources(pod, container, agent.capacity.memory_bytes),
        security,
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        log_path: PathBuf::from(&container.name).join(format!("{attempt}.log")),
        labels: labels(pod, slot),
        annotations: match slot.role {
            Role::Init => [(hollow::INIT.to_owned(), String::new())].into(),
            Role::Sidecar | Role::Regular => BTreeMap::new(),
        },
    })
}

/// The labels by which other tools find the kubelet's containers.
fn labels(pod: &Pod, slot: &Slot<'_>) -> BTreeMap<String, String> {
    let identity = model::identity(pod);
    [
        ("io.kubernetes.pod.name", identity.name),
        ("io.kubernetes.pod.namespace", identity.namespace),
        ("io.kubernetes.pod.uid", identity.uid),
        ("io.kubernetes.container.name", slot.name().to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

fn mounts(agent: &Agent, from: Ingredients<'_>, variables: &BTreeMap<&str, &str>) -> Result<Vec<Mount>, String> {
    let Some(data_dir) = &agent.config.data_dir else { return Ok(Vec::new()) };
    let container = from.slot.container;
    let mut mounts = Vec::new();
    for (number, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = from
            .volumes
            .get(&wanted.name)
            .ok_or_else(|| format!("cannot find volume {:?} to mount into container {:?}", wanted.name, container.name))?;
        mounts.push(Mount {
            host_path: match sub_path(wanted, variables)? {
                None => volume.clone(),
                Some(sub_path) if agent.runtime.fidelity() == Fidelity::Simulated => {
                    subpath::verify(&sub_path)?;
                    volume.join(sub_path)
                }
                Some(sub_path) => {
                    let uid = from.pod.metadata.uid.as_deref().unwrap_or_default();
                    let place = subpath::place(data_dir, uid, &container.name, number);
                    subpath::bind(volume, &sub_path, &place)?;
                    place
                }
            },
            container_path: PathBuf::from(&wanted.mount_path),
            read_only: wanted.read_only.unwrap_or(false) || is_always_read_only(from.pod, &wanted.name),
            propagation: match wanted.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                _ => MountPropagation::Private,
            },
        });
    }
    let identity = model::identity(from.pod);
    let folder = pod_directory(data_dir, &identity.uid);
    let failed = |what: &str, error: io::Error| format!("failed to make the {what} of container {:?}: {error}", container.name);
    let free = |path: &str, mounts: &[Mount]| !mounts.iter().any(|mount| mount.container_path == Path::new(path));
    if free("/etc/hosts", &mounts) {
        let file = hosts_file(agent, from, &folder).map_err(|error| failed("hosts file", error))?;
        mounts.push(file_mount(file, "/etc/hosts"));
    }
    let log = container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/dev/termination-log");
    if free(log, &mounts) {
        let file = termination_log(&folder, &container.name, from.attempt);
        make_termination_log(&file).map_err(|error| failed("termination log", error))?;
        mounts.push(file_mount(file, log));
    }
    Ok(mounts)
}

/// What the API fills, and this agent goes on writing, no container may write to (`GetAttributes().ReadOnly` of the kubelet's
/// configMap, secret, downwardAPI and projected plugins).
fn is_always_read_only(pod: &Pod, volume: &str) -> bool {
    let spec = model::spec(pod);
    spec.volumes.iter().flatten().filter(|known| known.name == volume).any(|known| {
        known.config_map.is_some() || known.secret.is_some() || known.downward_api.is_some() || known.projected.is_some()
    })
}

fn file_mount(host_path: PathBuf, container_path: &str) -> Mount {
    Mount { host_path, container_path: PathBuf::from(container_path), read_only: false, propagation: MountPropagation::Private }
}

/// The `subPath` of a mount, or its `subPathExpr` with the container's variables.
fn sub_path(wanted: &VolumeMount, variables: &BTreeMap<&str, &str>) -> Result<Option<String>, String> {
    let expanded = wanted.sub_path_expr.as_deref().filter(|path| !path.is_empty()).map(|path| {
        let expanded = expand(path, |name| variables.get(name).copied());
        if expanded.contains("$(") { Err(format!("missing value for {path:?}")) } else { Ok(expanded) }
    });
    match expanded {
        Some(expanded) => expanded.map(Some),
        None => Ok(wanted.sub_path.clone().filter(|path| !path.is_empty())),
    }
}

fn hosts_file(agent: &Agent, from: Ingredients<'_>, folder: &Path) -> io::Result<PathBuf> {
    let node_hosts =
        if model::host_network(from.pod) { fs::read_to_string("/etc/hosts").unwrap_or_default() } else { String::new() };
    let text = hosts::content(from.pod, from.pod_ips, &agent.config.cluster_domain, &node_hosts);
    fs::create_dir_all(folder)?;
    let path = folder.join("etc-hosts");
    // Rewritten only when it differs: containers that run have it mounted.
    if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(path)
}

/// Where a container instance's termination log is on the machine.
pub fn termination_log(pod_folder: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_folder.join("containers").join(container).join(format!("{attempt}.termination"))
}

fn make_termination_log(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, "")?;
    // Whoever the container runs as may write to it.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_api_fills_is_read_only_whatever_the_pod_asks() {
        let volumes = json!([
            { "name": "config", "configMap": { "name": "a" } }, { "name": "secret", "secret": { "secretName": "a" } },
            { "name": "info", "downwardAPI": {} }, { "name": "all", "projected": {} },
            { "name": "scratch", "emptyDir": {} }, { "name": "host", "hostPath": { "path": "/x" } }]);
        let pod: Pod = serde_json::from_value(json!({ "spec": { "containers": [], "volumes": volumes } })).unwrap();
        for (name, expected) in
            [("config", true), ("secret", true), ("info", true), ("all", true), ("scratch", false), ("host", false)]
        {
            assert_eq!(is_always_read_only(&pod, name), expected, "{name}");
        }
    }
}
