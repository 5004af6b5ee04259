//! The face of a container runtime, in the shape of the CRI (`k8s.io/cri-api/pkg/apis/runtime/v1`).
//!
//! Three implementations: `embedded` (built in), `cri` (containerd or CRI-O over its socket), `hollow` (simulated).
//! The pod workers know this trait and nothing of what is behind it.

pub mod hollow;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

/// What went wrong in a runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("{what} not found: {id}")]
    NotFound { what: &'static str, id: String },
    /// The image is not there, or cannot be had. `reason` is the waiting reason in the pod's status: `ErrImagePull`,
    /// `InvalidImageName`, `ErrImageNeverPull`, `RegistryUnavailable`.
    #[error("{message}")]
    Image { reason: &'static str, message: String },
    /// The container could not be made or started (no such command, a bad mount …): `CreateContainerError` or `RunContainerError`.
    #[error("{0}")]
    Container(String),
    #[error("the pod's network could not be set up: {0}")]
    Network(String),
    #[error("{0} did not answer within {1:?}")]
    Timeout(&'static str, Duration),
    #[error("the runtime is unavailable: {0}")]
    Unavailable(String),
    #[error("{context}: {source}")]
    Io { context: String, source: std::io::Error },
}

/// Name and version of the runtime, for `status.nodeInfo.containerRuntimeVersion`.
#[derive(Clone, Debug)]
pub struct RuntimeVersion {
    pub name: String,
    pub version: String,
}

/// Which pod a sandbox or container belongs to. Kept by the runtime, so that a restarted agent can adopt what runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(Default))]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What a sandbox (network namespace, address, pod cgroup) is made from.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(Default))]
pub struct SandboxConfig {
    pub pod: PodIdentity,
    /// Counts up when a pod's sandbox has to be made again.
    pub attempt: u32,
    pub hostname: String,
    /// Share the node's network instead of having a namespace (`spec.hostNetwork`).
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_process_namespace: bool,
    /// Lines for `/etc/resolv.conf`; the runtime writes none when `None`.
    pub dns: Option<DnsConfig>,
    pub sysctls: BTreeMap<String, String>,
    /// Where the containers' log files go: `<log_directory>/<container>/<attempt>.log`.
    pub log_directory: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The parent cgroup of the pod, relative to the agent's cgroup root: `burstable/pod<uid>`.
    pub cgroup_parent: String,
    pub port_mappings: Vec<PortMapping>,
}

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct PortMapping {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub container_port: u16,
    pub host_port: u16,
    pub host_ip: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxState {
    Ready,
    NotReady,
}

#[derive(Clone, Debug)]
pub struct SandboxStatus {
    pub id: String,
    pub pod: PodIdentity,
    pub attempt: u32,
    pub state: SandboxState,
    pub created_at: Timestamp,
    /// Empty for pods on the host's network.
    pub addresses: Vec<IpAddr>,
}

/// What a container is made from. Everything is resolved: no references to ConfigMaps, no defaults left.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ContainerConfig {
    pub name: String,
    /// Counts restarts, from 0.
    pub attempt: u32,
    /// The reference as the pod names it; it was pulled before.
    pub image: String,
    /// Overrides the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Overrides the image's command when not empty (or when `command` is given).
    pub args: Vec<String>,
    pub working_directory: Option<String>,
    pub environment: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub resources: ContainerResources,
    pub security: ContainerSecurity,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// Relative to the sandbox's log directory. Lines are in the CRI's log format.
    pub log_path: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    pub read_only: bool,
    pub propagation: MountPropagation,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum MountPropagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// Linux limits; `None` is no limit.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct ContainerResources {
    pub cpu_shares: Option<u64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub memory_limit_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    pub oom_score_adj: i32,
}

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct ContainerSecurity {
    pub privileged: bool,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: bool,
    pub supplemental_groups: Vec<i64>,
    pub read_only_root_filesystem: bool,
    pub no_new_privileges: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Clone, Debug)]
pub struct ContainerStatus {
    pub id: String,
    pub sandbox_id: String,
    pub pod: PodIdentity,
    pub name: String,
    pub attempt: u32,
    pub state: ContainerState,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    /// The signal that ended it, 0 if none.
    pub signal: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`; empty while it runs.
    pub reason: String,
    pub message: String,
    pub image: String,
    /// The image's digest reference or id, for `status.containerStatuses[].imageID`.
    pub image_id: String,
    /// Absolute.
    pub log_path: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Image {
    pub id: String,
    /// Every reference it is known under, digests too.
    pub references: Vec<String>,
    pub size_bytes: u64,
    /// The user that the image's configuration names, if it is a number.
    pub user: Option<i64>,
}

/// Credentials for a registry, from an image pull secret.
#[derive(Clone, Debug)]
pub struct RegistryCredentials {
    pub username: String,
    pub password: String,
}

#[derive(Clone, Debug)]
pub struct ExecOutput {
    pub exit_code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Something changed in a pod; the worker of that pod should look again.
#[derive(Clone, Debug)]
pub struct RuntimeEvent {
    pub pod: PodIdentity,
}

/// How much of a container there is behind a [`Runtime`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fidelity {
    /// Processes, files and addresses: probes are made and mounts are mounted.
    Real,
    /// Only states: probes and hooks succeed without being made, and nothing is mounted.
    Simulated,
}

/// A container runtime. Every call may be repeated: stopping what has stopped and removing what is gone succeed.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    async fn version(&self) -> Result<RuntimeVersion, RuntimeError>;

    /// `Ok` when pods can be started; else why not, for the node's Ready condition.
    async fn ready(&self) -> Result<(), RuntimeError>;

    /// Makes the pod's sandbox and returns its id. Its address is in [`Runtime::list_sandboxes`] when this returns.
    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<String, RuntimeError>;

    /// Ends every process in it and frees its address. The sandbox stays listed, `NotReady`.
    async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError>;

    /// Removes it and its containers.
    async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError>;

    /// All sandboxes, of every pod, those of an earlier agent process too.
    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError>;

    async fn create_container(
        &self,
        sandbox_id: &str,
        sandbox: &SandboxConfig,
        container: &ContainerConfig,
    ) -> Result<String, RuntimeError>;

    async fn start_container(&self, id: &str) -> Result<(), RuntimeError>;

    /// Sends the stop signal, waits up to `grace`, then kills. Returns when the container has exited.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError>;

    /// Removes an exited container. Its log file stays; the agent removes that.
    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError>;

    /// All containers, of every pod, exited ones too until they are removed.
    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError>;

    /// The sandboxes and containers of one pod. Runtimes that hold an index should answer from it.
    async fn pod_state(&self, pod: &PodIdentity) -> Result<(Vec<SandboxStatus>, Vec<ContainerStatus>), RuntimeError> {
        let mut sandboxes = self.list_sandboxes().await?;
        let mut containers = self.list_containers().await?;
        sandboxes.retain(|sandbox| sandbox.pod.uid == pod.uid);
        containers.retain(|container| container.pod.uid == pod.uid);
        Ok((sandboxes, containers))
    }

    /// The node's pod address ranges became known or changed (`Node.spec.podCIDRs`).
    async fn update_pod_cidrs(&self, cidrs: &[String]) -> Result<(), RuntimeError> {
        let _ = cidrs;
        Ok(())
    }

    /// Whether there are real processes behind the containers.
    fn fidelity(&self) -> Fidelity {
        Fidelity::Real
    }

    /// Runs a command in a running container and waits for it.
    async fn exec(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput, RuntimeError>;

    /// The log file was renamed away: open a new one at the same path.
    async fn reopen_log(&self, id: &str) -> Result<(), RuntimeError>;

    /// The image, if it is on this node.
    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError>;

    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError>;

    /// Pulls from a registry and returns the image.
    async fn pull_image(&self, reference: &str, credentials: &[RegistryCredentials]) -> Result<Image, RuntimeError>;

    /// Takes an image from an OCI layout folder or a docker or OCI archive file, and names it.
    async fn load_image(&self, file: &std::path::Path, reference: &str) -> Result<Image, RuntimeError>;

    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError>;

    /// Waits for the next change. Events may be missed; the agent also looks at everything from time to time.
    async fn next_event(&self) -> RuntimeEvent;
}
