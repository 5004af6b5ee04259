//! A runtime on a temporary folder, with what tests of real containers need around it.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod namespace;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use trireme_api::clock::SystemClock;
use trireme_nodeagent::{
    embedded::{EmbeddedConfig, EmbeddedRuntime},
    image::{RegistryOptions, build::busybox_image},
    network::{Attachment, NetworkError, PodNetwork},
    runtime::{
        ContainerConfig, ContainerResources, ContainerSecurity, ContainerState, ContainerStatus, PodIdentity, Runtime,
        SandboxConfig,
    },
};

pub const IMAGE: &str = "localhost/busybox:test";

/// Fails with a clear message where real containers cannot run.
pub fn require_root() {
    assert!(nix::unistd::Uid::effective().is_root(), "this test runs real containers and needs root");
}

pub fn busybox() -> PathBuf {
    let path = PathBuf::from("/bin/busybox");
    assert!(path.exists(), "this test needs the package busybox-static (apt-get install busybox-static)");
    path
}

/// A network that connects nothing: pods have a namespace and no interface in it.
pub struct NoNetwork;

#[async_trait]
impl PodNetwork for NoNetwork {
    async fn ready(&self) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn attach(&self, _: &Attachment) -> Result<Vec<IpAddr>, NetworkError> {
        Ok(Vec::new())
    }

    async fn detach(&self, _: &Attachment) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn retain(&self, _: &BTreeSet<String>) -> Result<(), NetworkError> {
        Ok(())
    }
}

/// Everything of one test: its folder, its cgroup, its pods' logs.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub cgroup: PathBuf,
    pub network: Arc<dyn PodNetwork>,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with_network(Arc::new(NoNetwork))
    }

    pub fn with_network(network: Arc<dyn PodNetwork>) -> Bench {
        require_root();
        let cgroup = PathBuf::from(format!("/trireme-test/{}", uuid::Uuid::new_v4().simple()));
        Bench { folder: tempfile::tempdir().unwrap(), cgroup, network }
    }

    pub async fn open(&self) -> EmbeddedRuntime {
        EmbeddedRuntime::open(EmbeddedConfig {
            data_dir: self.folder.path().join("runtime"),
            image_store: self.folder.path().join("images"),
            node_name: "node-1".to_owned(),
            cgroup_root: self.cgroup.clone(),
            shim_command: vec![env!("CARGO_BIN_EXE_trireme-shim").into()],
            network: self.network.clone(),
            registries: RegistryOptions::default(),
            clock: Arc::new(SystemClock),
        })
        .await
        .unwrap()
    }

    /// A runtime with the busybox image in its store.
    pub async fn open_with_image(&self) -> EmbeddedRuntime {
        let runtime = self.open().await;
        let archive = self.folder.path().join("busybox.tar");
        busybox_image(&busybox()).unwrap().write_docker_archive(&archive, IMAGE).unwrap();
        runtime.load_image(&archive, IMAGE).await.unwrap();
        runtime
    }

    pub fn sandbox(&self, name: &str) -> SandboxConfig {
        SandboxConfig {
            pod: PodIdentity { namespace: "default".to_owned(), name: name.to_owned(), uid: format!("uid-{name}") },
            attempt: 0,
            hostname: name.to_owned(),
            host_network: false,
            host_pid: false,
            host_ipc: false,
            share_process_namespace: false,
            dns: None,
            sysctls: Default::default(),
            log_directory: self.folder.path().join("logs").join(name),
            labels: Default::default(),
            annotations: Default::default(),
            cgroup_parent: format!("besteffort/pod{name}"),
            port_mappings: Vec::new(),
            resources: Default::default(),
        }
    }

    /// What is left on the machine of this test's pods: mounts, cgroups and processes.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let place = self.folder.path().to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(mounts.lines().filter(|line| line.contains(&place)).map(str::to_owned));
        let cgroup = self.cgroup.to_string_lossy().into_owned();
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let state = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            if state.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('Z')) {
                continue;
            }
            let cgroups = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
            let command = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            if cgroups.contains(&cgroup) || command.contains(&place) {
                found.push(format!("process {:?} {command:?}", process.file_name()));
            }
        }
        let is_class = |folder: &PathBuf| folder.ends_with("besteffort") || folder.ends_with("burstable");
        let folders = cgroup_folders(&self.cgroup).into_iter().filter(|folder| !is_class(folder));
        found.extend(folders.map(|folder| folder.display().to_string()));
        found
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Only what a failed test left: processes in its own cgroup or on its own folder.
        let marks = [self.folder.path().to_string_lossy().into_owned(), self.cgroup.to_string_lossy().into_owned()];
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(number) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let read = |name: &str| std::fs::read_to_string(process.path().join(name)).unwrap_or_default();
            if read("cmdline").contains(&marks[0]) || read("cgroup").contains(&marks[1]) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(number), nix::sys::signal::Signal::SIGKILL);
            }
        }
        for folder in cgroup_folders(&self.cgroup) {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// The content of a file of a cgroup, in whichever hierarchy has it.
pub fn cgroup_file(cgroup: &Path, file: &str) -> Option<String> {
    let inside = cgroup.strip_prefix("/").unwrap();
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|hierarchy| hierarchy.path());
    let mut places = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|place| place.join(inside).join(file));
    places.find_map(|place| std::fs::read_to_string(place).ok()).map(|text| text.trim().to_owned())
}

/// The folders below (not at) the cgroup, in every hierarchy.
fn cgroup_folders(cgroup: &Path) -> Vec<PathBuf> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                collect(&entry.path(), found);
                found.push(entry.path());
            }
        }
    }
    let inside = cgroup.strip_prefix("/").unwrap();
    let mut found = Vec::new();
    collect(&Path::new("/sys/fs/cgroup").join(inside), &mut found);
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        collect(&hierarchy.path().join(inside), &mut found);
    }
    found
}

pub fn container(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.to_owned(),
        attempt: 0,
        image: IMAGE.to_owned(),
        command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
        args: Vec::new(),
        working_directory: None,
        environment: Vec::new(),
        mounts: Vec::new(),
        resources: ContainerResources::default(),
        security: ContainerSecurity::default(),
        stdin: false,
        stdin_once: false,
        tty: false,
        log_path: format!("{name}/0.log").into(),
        labels: Default::default(),
        annotations: Default::default(),
    }
}

/// Creates and starts the container.
pub async fn start(runtime: &EmbeddedRuntime, sandbox: &str, config: &SandboxConfig, container: &ContainerConfig) -> String {
    let id = runtime.create_container(sandbox, config, container).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    id
}

pub async fn status(runtime: &EmbeddedRuntime, id: &str) -> ContainerStatus {
    let all = runtime.list_containers().await.unwrap();
    all.into_iter().find(|status| status.id == id).unwrap_or_else(|| panic!("container {id} is not listed"))
}

/// Waits until the container has exited.
pub async fn exited(runtime: &EmbeddedRuntime, id: &str) -> ContainerStatus {
    for _ in 0..400 {
        let status = status(runtime, id).await;
        if status.state == ContainerState::Exited {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("container {id} does not exit: {:?}", status(runtime, id).await)
}

/// The texts of the log, without time, stream and tag.
pub fn log_of(status: &ContainerStatus) -> String {
    let text = std::fs::read_to_string(&status.log_path).unwrap();
    text.lines().map(|line| format!("{}\n", line.splitn(4, ' ').nth(3).unwrap())).collect()
}

pub fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}
