//! A runtime behind the container runtime interface: containerd or CRI-O over its socket.

mod cgroup_driver;
mod convert;

/// The interface's messages, compiled from `proto/cri.proto`.
#[allow(clippy::all, clippy::pedantic, reason = "generated code")]
mod api {
    tonic::include_proto!("runtime.v1");
}

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, process::Command};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use self::{
    api::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
    cgroup_driver::CgroupDriver,
};
use crate::{
    image::ImageReference,
    runtime::{
        ContainerConfig, ContainerStatus, ExecOutput, Image, PodIdentity, RegistryCredentials, Runtime, RuntimeError,
        RuntimeEvent, RuntimeVersion, SandboxConfig, SandboxStatus,
    },
};

const QUICK: Duration = Duration::from_secs(30);
/// Making a sandbox may mean pulling its image and running CNI plugins.
const SLOW: Duration = Duration::from_secs(240);
const PULL: Duration = Duration::from_secs(3600);
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// How often the pods are looked at, as the interface's own events are optional.
const RELIST: Duration = Duration::from_secs(1);

/// Whose pods are made and seen on a socket that others may use too: another cluster's nodes, or a kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What tells this cluster from others.
    pub cluster: String,
    /// The node's name.
    pub node: String,
}

/// A runtime behind the CRI.
pub struct CriRuntime {
    owner: Owner,
    cgroup_driver: CgroupDriver,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    socket: PathBuf,
    /// Containers and their states as of the last look, and the events not handed out yet.
    relist: tokio::sync::Mutex<Relist>,
}

#[derive(Default)]
struct Relist {
    known: Option<BTreeSet<(String, i32)>>,
    events: Vec<RuntimeEvent>,
}

impl CriRuntime {
    /// Connects and makes sure that the CRI is spoken there. Only sandboxes and containers of `owner` are seen and touched.
    pub async fn connect(socket: &Path, owner: Owner) -> Result<CriRuntime, RuntimeError> {
        let path = socket.to_owned();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let unavailable = |error: tonic::transport::Error| RuntimeError::Unavailable(format!("{}: {error}", socket.display()));
        let endpoint = Endpoint::try_from("http://cri.invalid").map_err(unavailable)?.connect_timeout(QUICK);
        let channel = endpoint.connect_with_connector(connector).await.map_err(unavailable)?;
        let mut runtime = CriRuntime {
            owner,
            cgroup_driver: CgroupDriver::Cgroupfs,
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
            socket: socket.to_owned(),
            relist: tokio::sync::Mutex::default(),
        };
        runtime.version().await?;
        runtime.cgroup_driver = runtime.ask_cgroup_driver().await?;
        Ok(runtime)
    }

    async fn ask_cgroup_driver(&self) -> Result<CgroupDriver, RuntimeError> {
        match self.runtime().runtime_config(timed(api::RuntimeConfigRequest {}, QUICK)).await {
            Ok(answer) => Ok(match answer.into_inner().linux.map(|linux| linux.cgroup_driver()) {
                Some(api::CgroupDriver::Systemd) => CgroupDriver::Systemd,
                Some(api::CgroupDriver::Cgroupfs) | None => CgroupDriver::Cgroupfs,
            }),
            Err(status) if status.code() == Code::Unimplemented => {
                let status = self.runtime().status(timed(api::StatusRequest { verbose: true }, QUICK)).await;
                Ok(CgroupDriver::from_status(&status.map_err(failed("status"))?.into_inner().info))
            }
            Err(status) => Err(failed("runtime")(status)),
        }
    }

    fn sandbox_config(&self, config: &SandboxConfig) -> api::PodSandboxConfig {
        convert::sandbox_config(&self.owner, self.cgroup_driver, config)
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }

    async fn sandboxes(&self, pod: Option<&PodIdentity>) -> Result<Vec<SandboxStatus>, RuntimeError> {
        let filter = api::PodSandboxFilter { label_selector: convert::selector(&self.owner, pod), ..Default::default() };
        let mut runtime = self.runtime();
        let answer = runtime.list_pod_sandbox(timed(api::ListPodSandboxRequest { filter: Some(filter) }, QUICK));
        let items = answer.await.map_err(failed("sandboxes"))?.into_inner().items;
        let mut sandboxes = Vec::new();
        for item in items {
            let request = api::PodSandboxStatusRequest { pod_sandbox_id: item.id, verbose: false };
            match self.runtime().pod_sandbox_status(timed(request, QUICK)).await {
                Ok(answer) => sandboxes.extend(answer.into_inner().status.and_then(convert::sandbox_status)),
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(failed("sandbox")(status)),
            }
        }
        Ok(sandboxes)
    }

    async fn container_items(&self, pod: Option<&PodIdentity>) -> Result<Vec<api::Container>, Status> {
        let filter = api::ContainerFilter { label_selector: convert::selector(&self.owner, pod), ..Default::default() };
        let request = api::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime().list_containers(timed(request, QUICK)).await?.into_inner().containers)
    }

    async fn containers(&self, pod: Option<&PodIdentity>) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let items = self.container_items(pod).await.map_err(failed("containers"))?;
        let mut containers = Vec::new();
        for item in items {
            let request = api::ContainerStatusRequest { container_id: item.id, verbose: false };
            match self.runtime().container_status(timed(request, QUICK)).await {
                Ok(answer) => {
                    let status = answer.into_inner().status;
                    containers.extend(status.and_then(|status| convert::container_status(item.pod_sandbox_id, status)));
                }
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(failed("container")(status)),
            }
        }
        Ok(containers)
    }

    async fn find_image(&self, name: &str) -> Result<Option<Image>, RuntimeError> {
        Ok(self.image_status(name).await?.map(convert::image))
    }

    async fn image_status(&self, name: &str) -> Result<Option<api::Image>, RuntimeError> {
        let request = api::ImageStatusRequest { image: Some(image_spec(name)), verbose: false };
        let answer = self.images().image_status(timed(request, QUICK)).await.map_err(failed("image"))?;
        Ok(answer.into_inner().image)
    }
}

#[async_trait]
impl Runtime for CriRuntime {
    async fn version(&self) -> Result<RuntimeVersion, RuntimeError> {
        let request = api::VersionRequest { version: "v1".to_owned() };
        let answer = self.runtime().version(timed(request, QUICK)).await.map_err(failed("version"))?.into_inner();
        Ok(RuntimeVersion { name: answer.runtime_name, version: answer.runtime_version })
    }

    async fn ready(&self) -> Result<(), RuntimeError> {
        let request = api::StatusRequest { verbose: false };
        let answer = self.runtime().status(timed(request, QUICK)).await.map_err(failed("status"))?.into_inner();
        let conditions = answer.status.unwrap_or_default().conditions;
        for (name, subject) in [("RuntimeReady", "container runtime"), ("NetworkReady", "container runtime network")] {
            let condition = conditions.iter().find(|condition| condition.r#type == name);
            let Some(condition) = condition else {
                return Err(RuntimeError::Unavailable(format!("{subject} is not ready: no status of it")));
            };
            if !condition.status {
                return Err(RuntimeError::Unavailable(format!(
                    "{subject} is not ready: {name}=false reason:{} message:{}",
                    condition.reason, condition.message
                )));
            }
        }
        Ok(())
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<String, RuntimeError> {
        let request = api::RunPodSandboxRequest { config: Some(self.sandbox_config(config)), runtime_handler: String::new() };
        let answer = self.runtime().run_pod_sandbox(timed(request, SLOW)).await.map_err(failed("sandbox"))?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let request = api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        done(self.runtime().stop_pod_sandbox(timed(request, SLOW)).await)
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.stop_sandbox(id).await?;
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        done(self.runtime().remove_pod_sandbox(timed(request, SLOW)).await)
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        self.sandboxes(None).await
    }

    async fn pod_state(&self, pod: &PodIdentity) -> Result<(Vec<SandboxStatus>, Vec<ContainerStatus>), RuntimeError> {
        Ok((self.sandboxes(Some(pod)).await?, self.containers(Some(pod)).await?))
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        sandbox: &SandboxConfig,
        container: &ContainerConfig,
    ) -> Result<String, RuntimeError> {
        let security = &container.security;
        let image_user = match (security.run_as_user, security.run_as_group) {
            (None, Some(_)) => self.image_status(&container.image).await?.map(|image| convert::image_user(&image)),
            _ => None,
        };
        let config = convert::container_config(&self.owner, sandbox, container, &image_user.unwrap_or_default());
        let request = api::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config(sandbox)),
        };
        let answer = self.runtime().create_container(timed(request, SLOW)).await.map_err(failed("container"))?;
        Ok(answer.into_inner().container_id)
    }

    async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = api::StartContainerRequest { container_id: id.to_owned() };
        self.runtime().start_container(timed(request, SLOW)).await.map(drop).map_err(failed("container"))
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let timeout = i64::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let request = api::StopContainerRequest { container_id: id.to_owned(), timeout };
        done(self.runtime().stop_container(timed(request, grace.saturating_add(SLOW))).await)
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = api::RemoveContainerRequest { container_id: id.to_owned() };
        done(self.runtime().remove_container(timed(request, SLOW)).await)
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        self.containers(None).await
    }

    async fn exec(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput, RuntimeError> {
        let seconds = i64::try_from(timeout.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let request = api::ExecSyncRequest { container_id: id.to_owned(), cmd: command.to_vec(), timeout: seconds };
        match self.runtime().exec_sync(timed(request, timeout.saturating_add(QUICK))).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                Ok(ExecOutput { exit_code: answer.exit_code, stdout: answer.stdout, stderr: answer.stderr })
            }
            Err(status) if status.code() == Code::DeadlineExceeded || status.message().contains("timeout") => {
                Err(RuntimeError::Timeout("the command", timeout))
            }
            Err(status) => Err(failed("container")(status)),
        }
    }

    async fn reopen_log(&self, id: &str) -> Result<(), RuntimeError> {
        let request = api::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.runtime().reopen_container_log(timed(request, QUICK)).await.map(drop).map_err(failed("container"))
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        self.find_image(reference).await
    }

    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        let mut images = self.images();
        let answer = images.list_images(timed(api::ListImagesRequest { filter: None }, QUICK));
        let images = answer.await.map_err(failed("images"))?.into_inner().images;
        Ok(images.into_iter().map(convert::image).collect())
    }

    async fn pull_image(&self, reference: &str, credentials: &[RegistryCredentials]) -> Result<Image, RuntimeError> {
        ImageReference::parse(reference)
            .map_err(|error| RuntimeError::Image { reason: "InvalidImageName", message: error.to_string() })?;
        let logins = credentials.iter().map(|login| {
            Some(api::AuthConfig {
                username: login.username.clone(),
                password: login.password.clone(),
                ..api::AuthConfig::default()
            })
        });
        let mut last = None;
        for auth in logins.chain([None]) {
            let request = api::PullImageRequest { image: Some(image_spec(reference)), auth, sandbox_config: None };
            match self.images().pull_image(timed(request, PULL)).await {
                Ok(answer) => {
                    let id = answer.into_inner().image_ref;
                    let found = self.find_image(&id).await?;
                    return found.ok_or(RuntimeError::NotFound { what: "image", id });
                }
                Err(status) => last = Some(status),
            }
        }
        let status = last.unwrap_or_else(|| Status::unknown("nothing was tried"));
        let reason = if status.code() == Code::Unavailable { "RegistryUnavailable" } else { "ErrImagePull" };
        Err(RuntimeError::Image { reason, message: status.message().to_owned() })
    }

    /// The CRI has no call for this; containerd's own tool does it.
    async fn load_image(&self, file: &Path, reference: &str) -> Result<Image, RuntimeError> {
        let name = ImageReference::parse(reference)
            .map_err(|error| RuntimeError::Image { reason: "InvalidImageName", message: error.to_string() })?
            .to_string();
        let output = Command::new("ctr")
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", "k8s.io", "images", "import", "--index-name", &name])
            .arg(file)
            .output()
            .await
            .map_err(|source| RuntimeError::Io { context: "cannot run ctr to load an image".to_owned(), source })?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(RuntimeError::Image { reason: "ErrImagePull", message });
        }
        for _ in 0..50 {
            // containerd takes the new name into its CRI store by an event.
            if let Some(image) = self.find_image(&name).await? {
                return Ok(image);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(RuntimeError::Image { reason: "ErrImagePull", message: format!("the archive does not hold {name}") })
    }

    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        let request = api::RemoveImageRequest { image: Some(image_spec(reference)) };
        done(self.images().remove_image(timed(request, SLOW)).await)
    }

    async fn update_pod_cidrs(&self, cidrs: &[String]) -> Result<(), RuntimeError> {
        let network_config = Some(api::NetworkConfig { pod_cidr: cidrs.join(",") });
        let request = api::UpdateRuntimeConfigRequest { runtime_config: Some(api::RuntimeConfig { network_config }) };
        self.runtime().update_runtime_config(timed(request, QUICK)).await.map(drop).map_err(failed("runtime"))
    }

    async fn next_event(&self) -> RuntimeEvent {
        let mut relist = self.relist.lock().await;
        loop {
            if let Some(event) = relist.events.pop() {
                return event;
            }
            tokio::time::sleep(RELIST).await;
            let Ok(containers) = self.container_items(None).await else { continue };
            let now: BTreeSet<_> = containers.iter().map(|container| (container.id.clone(), container.state)).collect();
            if let Some(known) = &relist.known {
                let changed = containers.iter().filter(|container| !known.contains(&(container.id.clone(), container.state)));
                let pods: BTreeSet<_> = changed.filter_map(|container| convert::pod_of(&container.labels)).collect();
                relist.events = pods.into_iter().map(|pod| RuntimeEvent { pod }).collect();
            }
            relist.known = Some(now);
        }
    }
}

fn image_spec(image: &str) -> api::ImageSpec {
    api::ImageSpec { image: image.to_owned(), annotations: Default::default() }
}

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// What is gone already is done.
fn done<T>(result: Result<T, Status>) -> Result<(), RuntimeError> {
    match result {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(failed("runtime")(status)),
    }
}

fn failed(what: &'static str) -> impl FnOnce(Status) -> RuntimeError {
    move |status| match status.code() {
        Code::NotFound => RuntimeError::NotFound { what, id: status.message().to_owned() },
        Code::Unavailable => RuntimeError::Unavailable(status.message().to_owned()),
        Code::DeadlineExceeded | Code::Cancelled => RuntimeError::Timeout("the container runtime", QUICK),
        _ => RuntimeError::Container(status.message().to_owned()),
    }
}
