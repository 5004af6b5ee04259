//! A runtime without containers: pods "run" at once, with made-up addresses. Cheap enough for thousands of nodes in one
//! process. Pods may ask to end by themselves with annotations.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;
use trireme_api::clock::Clock;

use super::{
    ContainerConfig, ContainerState, ContainerStatus, ExecOutput, Fidelity, Image, PodIdentity, RegistryCredentials, Runtime,
    RuntimeError, RuntimeEvent, RuntimeVersion, SandboxConfig, SandboxState, SandboxStatus,
};

/// Seconds after which each container of the pod ends by itself.
pub const EXIT_AFTER: &str = "hollow.trireme.io/exit-after-seconds";
/// The exit code of such a container; 0 when absent.
pub const EXIT_CODE: &str = "hollow.trireme.io/exit-code";

/// How the simulation behaves.
#[derive(Clone, Debug)]
pub struct HollowConfig {
    /// How long it takes to start a container.
    pub start_latency: Duration,
    /// Where pods get addresses until the node's own range is known: a network and its prefix length. Without one the node is
    /// not ready, and pods wait, until then.
    pub first_range: Option<(Ipv4Addr, u8)>,
    /// Whether containers leave a log file with a line that they have started.
    pub logs: Logs,
}

/// Whether log files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logs {
    Written,
    None,
}

impl Default for HollowConfig {
    fn default() -> Self {
        Self { start_latency: Duration::ZERO, first_range: Some((Ipv4Addr::new(10, 88, 0, 0), 16)), logs: Logs::None }
    }
}

/// The simulated runtime. Clones share their pods.
#[derive(Clone)]
pub struct HollowRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    config: HollowConfig,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    /// By pod uid.
    pods: HashMap<String, HollowPod>,
    /// Container or sandbox id to pod uid.
    owners: HashMap<String, String>,
    events: VecDeque<PodIdentity>,
    used_addresses: HashSet<u32>,
    range: Option<AddressRange>,
    next_address: u32,
    next_id: u64,
}

/// The addresses that pods may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AddressRange {
    first: u32,
    count: u32,
}

#[derive(Default)]
struct HollowPod {
    sandboxes: BTreeMap<String, SandboxStatus>,
    containers: BTreeMap<String, ContainerStatus>,
    exit: Option<(Duration, i32)>,
}

impl HollowRuntime {
    pub fn new(config: HollowConfig, clock: Arc<dyn Clock>) -> Self {
        let state = State {
            pods: HashMap::new(),
            owners: HashMap::new(),
            events: VecDeque::new(),
            used_addresses: HashSet::new(),
            range: config.first_range.map(|(network, prefix_length)| range(network, prefix_length)),
            next_address: 0,
            next_id: 0,
        };
        Self { inner: Arc::new(Inner { config, clock, state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// Ends a running container, as if its process had.
    pub fn exit_container(&self, id: &str, exit_code: i32) {
        self.inner.end(id, exit_code, 0);
    }
}

/// The usable host addresses of a network: without its own, the gateway's and the broadcast address.
fn range(network: Ipv4Addr, prefix_length: u8) -> AddressRange {
    let size = 1_u32.checked_shl(32 - u32::from(prefix_length.clamp(1, 30))).unwrap_or(u32::MAX);
    let base = u32::from(network) & !(size - 1);
    AddressRange { first: base + 2, count: size - 3 }
}

impl Inner {
    fn end(&self, id: &str, exit_code: i32, signal: i32) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let Some(uid) = state.owners.get(id).cloned() else { return };
        let Some(container) = state.pods.get_mut(&uid).and_then(|pod| pod.containers.get_mut(id)) else { return };
        if container.state != ContainerState::Running {
            return;
        }
        finish(container, exit_code, signal, now);
        let pod = container.pod.clone();
        state.events.push_back(pod);
        drop(state);
        self.changed.notify_one();
    }
}

fn finish(container: &mut ContainerStatus, exit_code: i32, signal: i32, now: Timestamp) {
    container.state = ContainerState::Exited;
    container.finished_at = Some(now);
    (container.exit_code, container.signal) = (exit_code, signal);
    container.reason = if exit_code == 0 { "Completed" } else { "Error" }.to_owned();
}

impl State {
    fn id(&mut self, pod: &PodIdentity) -> String {
        self.next_id += 1;
        let id = format!("{:032x}{:032x}", fingerprint(&pod.uid), self.next_id);
        self.owners.insert(id.clone(), pod.uid.clone());
        id
    }

    fn known_range(&self) -> Result<AddressRange, RuntimeError> {
        self.range.ok_or_else(|| RuntimeError::Network("the node has no range of pod addresses yet".to_owned()))
    }

    fn address(&mut self) -> Result<IpAddr, RuntimeError> {
        let AddressRange { first, count } = self.known_range()?;
        let free = (0..count)
            .map(|step| (self.next_address + step) % count)
            .find(|offset| !self.used_addresses.contains(&(first + offset)))
            .ok_or_else(|| RuntimeError::Network("no pod addresses are left".to_owned()))?;
        self.next_address = free + 1;
        self.used_addresses.insert(first + free);
        Ok(IpAddr::V4(Ipv4Addr::from(first + free)))
    }

    fn release(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            if let IpAddr::V4(address) = address {
                self.used_addresses.remove(&u32::from(*address));
            }
        }
    }
}

/// FNV-1a; ids only have to differ and to look like ids.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn no_such(what: &'static str, id: &str) -> RuntimeError {
    RuntimeError::NotFound { what, id: id.to_owned() }
}

fn image_of(reference: &str) -> Image {
    let id = format!("sha256:{:064x}", fingerprint(reference));
    Image { references: vec![reference.to_owned(), id.clone()], id, size_bytes: 0, user: None }
}

#[async_trait]
impl Runtime for HollowRuntime {
    async fn version(&self) -> Result<RuntimeVersion, RuntimeError> {
        Ok(RuntimeVersion { name: "hollow".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() })
    }

    async fn ready(&self) -> Result<(), RuntimeError> {
        self.inner.state.lock().known_range().map(drop)
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<String, RuntimeError> {
        let now = self.inner.clock.now();
        let mut state = self.inner.state.lock();
        let addresses = if config.host_network { Vec::new() } else { vec![state.address()?] };
        let id = state.id(&config.pod);
        let seconds = config.annotations.get(EXIT_AFTER).and_then(|text| text.parse().ok());
        let code = config.annotations.get(EXIT_CODE).and_then(|text| text.parse().ok()).unwrap_or(0);
        let pod = state.pods.entry(config.pod.uid.clone()).or_default();
        pod.exit = seconds.map(|seconds| (Duration::from_secs(seconds), code));
        let status = SandboxStatus {
            id: id.clone(),
            pod: config.pod.clone(),
            attempt: config.attempt,
            state: SandboxState::Ready,
            created_at: now,
            addresses,
        };
        pod.sandboxes.insert(id.clone(), status);
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let now = self.inner.clock.now();
        let mut state = self.inner.state.lock();
        let Some(uid) = state.owners.get(id).cloned() else { return Ok(()) };
        let Some(pod) = state.pods.get_mut(&uid) else { return Ok(()) };
        for container in pod.containers.values_mut() {
            if container.sandbox_id == id && container.state == ContainerState::Running {
                finish(container, 137, 9, now);
            }
        }
        let Some(sandbox) = pod.sandboxes.get_mut(id) else { return Ok(()) };
        sandbox.state = SandboxState::NotReady;
        let addresses = std::mem::take(&mut sandbox.addresses);
        state.release(&addresses);
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.stop_sandbox(id).await?;
        let mut state = self.inner.state.lock();
        let Some(uid) = state.owners.remove(id) else { return Ok(()) };
        let Some(pod) = state.pods.get_mut(&uid) else { return Ok(()) };
        pod.sandboxes.remove(id);
        let gone: Vec<String> = pod
            .containers
            .values()
            .filter(|container| container.sandbox_id == id)
            .map(|container| container.id.clone())
            .collect();
        for container in &gone {
            pod.containers.remove(container);
        }
        if pod.sandboxes.is_empty() {
            state.pods.remove(&uid);
        }
        for container in &gone {
            state.owners.remove(container);
        }
        Ok(())
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.inner.state.lock().pods.values().flat_map(|pod| pod.sandboxes.values().cloned()).collect())
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        sandbox: &SandboxConfig,
        container: &ContainerConfig,
    ) -> Result<String, RuntimeError> {
        let now = self.inner.clock.now();
        let mut state = self.inner.state.lock();
        let ready = state
            .pods
            .get(&sandbox.pod.uid)
            .and_then(|pod| pod.sandboxes.get(sandbox_id))
            .is_some_and(|sandbox| sandbox.state == SandboxState::Ready);
        if !ready {
            return Err(no_such("sandbox", sandbox_id));
        }
        let id = state.id(&sandbox.pod);
        let status = ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            pod: sandbox.pod.clone(),
            name: container.name.clone(),
            attempt: container.attempt,
            state: ContainerState::Created,
            created_at: now,
            started_at: None,
            finished_at: None,
            exit_code: 0,
            signal: 0,
            reason: String::new(),
            message: String::new(),
            image: container.image.clone(),
            image_id: image_of(&container.image).id,
            log_path: sandbox.log_directory.join(&container.log_path),
        };
        if let Some(pod) = state.pods.get_mut(&sandbox.pod.uid) {
            pod.containers.insert(id.clone(), status);
        }
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        if !self.inner.config.start_latency.is_zero() {
            tokio::time::sleep(self.inner.config.start_latency).await;
        }
        let now = self.inner.clock.now();
        let (exit, log_path) = {
            let mut state = self.inner.state.lock();
            let uid = state.owners.get(id).cloned().ok_or_else(|| no_such("container", id))?;
            let pod = state.pods.get_mut(&uid).ok_or_else(|| no_such("container", id))?;
            let exit = pod.exit;
            let container = pod.containers.get_mut(id).ok_or_else(|| no_such("container", id))?;
            if container.state == ContainerState::Created {
                container.state = ContainerState::Running;
                container.started_at = Some(now);
            }
            (exit, container.log_path.clone())
        };
        if self.inner.config.logs == Logs::Written {
            write_log(&log_path, now)?;
        }
        if let Some((after, code)) = exit {
            let (inner, id) = (Arc::downgrade(&self.inner), id.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                if let Some(inner) = inner.upgrade() {
                    inner.end(&id, code, 0);
                }
            });
        }
        Ok(())
    }

    async fn stop_container(&self, id: &str, _grace: Duration) -> Result<(), RuntimeError> {
        self.inner.end(id, 0, 0);
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let mut state = self.inner.state.lock();
        if let Some(uid) = state.owners.remove(id)
            && let Some(pod) = state.pods.get_mut(&uid)
        {
            pod.containers.remove(id);
        }
        Ok(())
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(self.inner.state.lock().pods.values().flat_map(|pod| pod.containers.values().cloned()).collect())
    }

    async fn pod_state(&self, pod: &PodIdentity) -> Result<(Vec<SandboxStatus>, Vec<ContainerStatus>), RuntimeError> {
        let state = self.inner.state.lock();
        let Some(pod) = state.pods.get(&pod.uid) else { return Ok((Vec::new(), Vec::new())) };
        Ok((pod.sandboxes.values().cloned().collect(), pod.containers.values().cloned().collect()))
    }

    async fn update_pod_cidrs(&self, cidrs: &[String]) -> Result<(), RuntimeError> {
        let parsed = cidrs.iter().find_map(|cidr| {
            let (network, prefix) = cidr.split_once('/')?;
            Some((network.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?))
        });
        if let Some((network, prefix_length)) = parsed {
            let range = Some(range(network, prefix_length));
            let mut state = self.inner.state.lock();
            if state.range != range {
                (state.range, state.next_address) = (range, 0);
            }
        }
        Ok(())
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Simulated
    }

    async fn exec(&self, id: &str, _command: &[String], _timeout: Duration) -> Result<ExecOutput, RuntimeError> {
        match self.inner.state.lock().owners.contains_key(id) {
            true => Ok(ExecOutput { exit_code: 0, stdout: Vec::new(), stderr: Vec::new() }),
            false => Err(no_such("container", id)),
        }
    }

    async fn reopen_log(&self, _id: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        Ok(Some(image_of(reference)))
    }

    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn pull_image(&self, reference: &str, _credentials: &[RegistryCredentials]) -> Result<Image, RuntimeError> {
        Ok(image_of(reference))
    }

    async fn load_image(&self, _file: &Path, reference: &str) -> Result<Image, RuntimeError> {
        Ok(image_of(reference))
    }

    async fn remove_image(&self, _reference: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn next_event(&self) -> RuntimeEvent {
        loop {
            let next = self.inner.state.lock().events.pop_front();
            if let Some(pod) = next {
                return RuntimeEvent { pod };
            }
            self.inner.changed.notified().await;
        }
    }
}

fn write_log(path: &Path, now: Timestamp) -> Result<(), RuntimeError> {
    let failed = |source| RuntimeError::Io { context: format!("could not write {}", path.display()), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, format!("{now} stdout F a hollow container has started\n")).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_leave_out_the_networks_own() {
        let AddressRange { first, count } = range(Ipv4Addr::new(10, 1, 2, 0), 24);
        assert_eq!(Ipv4Addr::from(first), Ipv4Addr::new(10, 1, 2, 2));
        assert_eq!(Ipv4Addr::from(first + count - 1), Ipv4Addr::new(10, 1, 2, 254));
    }

    #[tokio::test]
    async fn a_node_without_a_range_is_not_ready_and_pods_wait() {
        let config = HollowConfig { first_range: None, ..HollowConfig::default() };
        let runtime = HollowRuntime::new(config, Arc::new(trireme_api::clock::SystemClock));
        assert!(runtime.ready().await.is_err());
        assert!(runtime.run_sandbox(&SandboxConfig::default()).await.is_err());
        assert!(runtime.list_sandboxes().await.unwrap().is_empty(), "nothing is left of the try");
        runtime.update_pod_cidrs(&["10.244.3.0/24".to_owned()]).await.unwrap();
        runtime.ready().await.unwrap();
        runtime.run_sandbox(&SandboxConfig::default()).await.unwrap();
        let addresses: Vec<_> =
            runtime.list_sandboxes().await.unwrap().into_iter().flat_map(|sandbox| sandbox.addresses).collect();
        assert_eq!(addresses, [IpAddr::V4(Ipv4Addr::new(10, 244, 3, 2))]);
    }
}
