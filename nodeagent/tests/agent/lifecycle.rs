//! A whole agent over a fake API and the hollow runtime.

use std::{sync::Arc, time::Duration};

use crate::support::FakeApi;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use trireme_api::clock::SystemClock;
use trireme_nodeagent::{
    NodeAgentConfig,
    runtime::{
        Runtime,
        hollow::{HollowConfig, HollowRuntime, Logs},
    },
};

struct Cluster {
    api: FakeApi,
    runtime: HollowRuntime,
    shutdown: CancellationToken,
    agent: tokio::task::JoinHandle<()>,
}

impl Cluster {
    fn start() -> Self {
        let clock = Arc::new(SystemClock);
        Self::over(FakeApi::new(), HollowRuntime::new(HollowConfig::default(), clock))
    }

    fn over(api: FakeApi, runtime: HollowRuntime) -> Self {
        let shutdown = CancellationToken::new();
        let mut config = NodeAgentConfig::new("n1", "192.0.2.1".parse().unwrap());
        config.zone = "zone-a".to_owned();
        let run =
            trireme_nodeagent::run(api.client(), config, Arc::new(runtime.clone()), Arc::new(SystemClock), shutdown.clone());
        let agent = tokio::spawn(async move { run.await.unwrap() });
        Self { api, runtime, shutdown, agent }
    }

    async fn stop(self) -> (FakeApi, HollowRuntime) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.agent).await.expect("the agent stops in time").unwrap();
        (self.api, self.runtime)
    }
}

const POD: &str = "/api/v1/namespaces/default/pods/web";

fn pod(spec: Value) -> Value {
    let mut pod = json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "example.com/web:1" }] },
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.and_then(|conditions| conditions.iter().find(|condition| condition["type"] == kind));
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default()
}

fn running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && condition(pod, "Ready") == "True"
}

#[tokio::test]
async fn the_node_registers_and_beats() {
    let cluster = Cluster::start();
    let node = cluster.api.until("/api/v1/nodes/n1", "ready", |node| condition(node, "Ready") == "True").await;
    assert_eq!(node["metadata"]["labels"]["topology.kubernetes.io/zone"], "zone-a");
    assert_eq!(node["status"]["addresses"][0], json!({ "type": "InternalIP", "address": "192.0.2.1" }));
    assert_eq!(node["status"]["allocatable"]["pods"], "110");
    assert!(node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap().starts_with("hollow://"));
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    let lease = cluster.api.until(lease, "there", |_| true).await;
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"]);
    cluster.stop().await;
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted_gracefully() {
    let cluster = Cluster::start();
    cluster.api.put(POD, pod(json!({})));
    let pod = cluster.api.until(POD, "running", running).await;
    let status = &pod["status"];
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert!(status["podIP"].as_str().unwrap().starts_with("10.88."));
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["containerStatuses"][0]["ready"], true);
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert!(status["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("hollow://"));
    cluster.api.delete_gracefully(POD, 30);
    cluster.api.until_gone(POD).await;
    let (_, runtime) = cluster.stop().await;
    assert!(runtime.list_sandboxes().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_pod_deleted_by_force_is_stopped() {
    let cluster = Cluster::start();
    cluster.api.put(POD, pod(json!({})));
    cluster.api.until(POD, "running", running).await;
    cluster.api.delete_now(POD);
    for _ in 0..500 {
        if cluster.runtime.list_sandboxes().await.unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (_, runtime) = cluster.stop().await;
    assert!(runtime.list_containers().await.unwrap().is_empty());
    assert!(runtime.list_sandboxes().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_job_ends_as_its_containers_do() {
    for (code, phase, reason) in [("0", "Succeeded", "Completed"), ("3", "Failed", "Error")] {
        let cluster = Cluster::start();
        let mut pod = pod(json!({ "restartPolicy": "Never" }));
        pod["metadata"]["annotations"] =
            json!({ "hollow.trireme.io/exit-after-seconds": "0", "hollow.trireme.io/exit-code": code });
        cluster.api.put(POD, pod);
        let pod = cluster.api.until(POD, phase, |pod| pod["status"]["phase"] == phase).await;
        assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], reason);
        assert_eq!(condition(&pod, "Ready"), "False");
        cluster.stop().await;
    }
}

#[tokio::test]
async fn a_crashed_container_restarts_and_then_backs_off() {
    let cluster = Cluster::start();
    cluster.api.put(POD, pod(json!({})));
    cluster.api.until(POD, "running", running).await;
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().replace("hollow://", "");
    let first = id(&cluster.api.get(POD).unwrap());
    cluster.runtime.exit_container(&first, 1);
    let again = |pod: &Value| running(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1;
    let pod = cluster.api.until(POD, "running again", again).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
    cluster.runtime.exit_container(&id(&pod), 1);
    let waits = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = cluster.api.until(POD, "backing off", waits).await;
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["message"], "back-off 10s restarting failed container=c pod=web_default(uid-of-web)");
    assert_eq!(pod["status"]["phase"], "Running");
    cluster.stop().await;
}

#[tokio::test]
async fn a_restarted_agent_adopts_what_runs() {
    let cluster = Cluster::start();
    cluster.api.put(POD, pod(json!({})));
    let before = cluster.api.until(POD, "running", running).await;
    let (api, runtime) = cluster.stop().await;
    let cluster = Cluster::over(api, runtime);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = cluster.api.until(POD, "running", running).await;
    assert_eq!(before["status"], after["status"]);
    assert_eq!(cluster.runtime.list_containers().await.unwrap().len(), 1);
    cluster.stop().await;
}

#[tokio::test]
async fn pods_outlive_the_masters_and_are_restarted_meanwhile() {
    let cluster = Cluster::start();
    cluster.api.put(POD, pod(json!({})));
    let pod = cluster.api.until(POD, "running", running).await;
    cluster.api.set_down(true);
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().replace("hollow://", "");
    cluster.runtime.exit_container(&id, 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.runtime.list_containers().await.unwrap().len(), 2, "the container runs again though the API is away");
    cluster.api.set_down(false);
    let again = |pod: &Value| running(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1;
    cluster.api.until(POD, "told to be running again", again).await;
    cluster.stop().await;
}

/// An agent with a folder, whose API is served with TLS.
struct Disk {
    cluster: Cluster,
    folder: tempfile::TempDir,
    port: u16,
    authority: Authority,
}

/// A certificate authority, and what it says of those who show its certificates.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    certificate: rustls_pki_types::CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap().der().clone();
        Self { issuer: rcgen::Issuer::new(parameters, key), certificate }
    }

    fn certify(
        &self,
        organization: &str,
    ) -> (Vec<rustls_pki_types::CertificateDer<'static>>, rustls_pki_types::PrivateKeyDer<'static>) {
        let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (vec![certificate.der().clone()], key)
    }
}

impl Disk {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let authority = Authority::new();
        let (chain, private) = authority.certify("system:nodes");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(chain, private)
            .unwrap();
        let api = FakeApi::new();
        let clock = Arc::new(SystemClock);
        let runtime = HollowRuntime::new(HollowConfig { logs: Logs::Written, ..HollowConfig::default() }, clock);
        let mut config = NodeAgentConfig::new("n1", "192.0.2.1".parse().unwrap());
        config.data_dir = Some(folder.path().join("data"));
        config.listen = format!("127.0.0.1:{port}").parse().unwrap();
        config.serving_tls = Some(Arc::new(tls));
        config.resync_interval = Duration::from_millis(200);
        config.volume_refresh_interval = Duration::from_millis(200);
        let shutdown = CancellationToken::new();
        let run =
            trireme_nodeagent::run(api.client(), config, Arc::new(runtime.clone()), Arc::new(SystemClock), shutdown.clone());
        let agent = tokio::spawn(async move { run.await.unwrap() });
        Self { cluster: Cluster { api, runtime, shutdown, agent }, folder, port, authority }
    }

    /// Asks the agent's API as an API server does.
    async fn get(&self, path: &str) -> String {
        self.get_as("system:masters", path).await
    }

    /// Asks the agent's API, over TLS, as a member of that group.
    async fn get_as(&self, organization: &str, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (chain, private) = self.authority.certify(organization);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(crate::support::Trusting))
            .with_client_auth_cert(chain, private)
            .unwrap();
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The server need not say goodbye in TLS.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }
}

#[tokio::test]
async fn volumes_and_logs_are_on_disk_while_the_pod_is() {
    let disk = Disk::start();
    let api = &disk.cluster.api;
    let config_map = "/api/v1/namespaces/default/configmaps/settings";
    let data = |value: &str| json!({ "metadata": { "name": "settings", "namespace": "default" }, "data": { "key": value } });
    let volumes = json!([{ "name": "v", "configMap": { "name": "settings" } }, { "name": "e", "emptyDir": {} }]);
    let containers = json!([{ "name": "c", "image": "i:1", "volumeMounts": [{ "name": "v", "mountPath": "/etc/settings" }],
        "env": [{ "name": "KEY", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "key" } } }] }]);
    api.put(POD, pod(json!({ "volumes": volumes, "containers": containers })));
    // Nothing can start before the ConfigMap is there, and an event says why.
    let why = "MountVolume.SetUp failed for volume \"v\" : configmap \"settings\" not found";
    for _ in 0..500 {
        if api.list("/api/v1/namespaces/default/events/").iter().any(|event| event["message"] == why) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        api.list("/api/v1/namespaces/default/events/")
            .iter()
            .any(|event| event["reason"] == "FailedMount" && event["message"] == why)
    );
    api.put(config_map, data("1"));
    api.until(POD, "running", running).await;
    let folder = disk.folder.path().join("data/pods/uid-of-web");
    let file = folder.join("volumes/kubernetes.io~configmap/v/key");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");
    assert!(std::fs::read_to_string(folder.join("etc-hosts")).unwrap().contains("\tweb\n"));
    // A change of the ConfigMap comes into the running pod.
    api.put(config_map, data("2"));
    for _ in 0..500 {
        if std::fs::read_to_string(&file).unwrap() == "2" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "2");
    let log = disk.get("/containerLogs/default/web/c?tailLines=1").await;
    assert!(log.starts_with("HTTP/1.1 200") && log.contains("a hollow container has started\n"), "{log}");
    let none = disk.get("/containerLogs/default/web/c?previous=true").await;
    assert!(
        none.starts_with("HTTP/1.1 400") && none.ends_with("previous terminated container \"c\" in pod \"web\" not found"),
        "{none}"
    );
    assert!(disk.get("/containerLogs/default/none/c").await.starts_with("HTTP/1.1 404"));
    assert!(disk.get("/healthz").await.ends_with("ok"));
    assert!(disk.get("/metrics").await.contains("kubelet_running_pods 1"));
    assert!(disk.get("/pods").await.contains("uid-of-web"));
    // Another node may ask for its health, and for nothing of its pods.
    assert!(disk.get_as("system:nodes", "/healthz").await.ends_with("ok"));
    for path in ["/pods", "/metrics", "/containerLogs/default/web/c"] {
        let refused = disk.get_as("system:nodes", path).await;
        assert!(refused.starts_with("HTTP/1.1 403") && !refused.contains("uid-of-web"), "{path}: {refused}");
    }
    api.delete_gracefully(POD, 1);
    api.until_gone(POD).await;
    for _ in 0..500 {
        if !folder.exists() && std::fs::read_dir(disk.folder.path().join("data/logs/pods")).unwrap().next().is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!folder.exists());
    assert_eq!(std::fs::read_dir(disk.folder.path().join("data/logs/pods")).unwrap().count(), 0);
    disk.cluster.stop().await;
}

#[tokio::test]
async fn a_container_with_a_missing_reference_says_so() {
    let disk = Disk::start();
    let env = json!([{ "name": "K", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }]);
    disk.cluster.api.put(POD, pod(json!({ "containers": [{ "name": "c", "image": "i:1", "env": env }] })));
    let waits = |pod: &Value| !pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].is_null();
    let pod = disk.cluster.api.until(POD, "refused", waits).await;
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(*waiting, json!({ "reason": "CreateContainerConfigError", "message": "secret \"s\" not found" }));
    disk.cluster.api.put(
        "/api/v1/namespaces/default/secrets/s",
        json!({ "metadata": { "name": "s", "namespace": "default" }, "data": { "k": "dg==" } }),
    );
    disk.cluster.api.until(POD, "running", running).await;
    disk.cluster.stop().await;
}

#[tokio::test]
async fn pods_that_went_while_the_agent_was_away_are_cleaned_up() {
    let cluster = Cluster::start();
    cluster.api.put(POD, pod(json!({})));
    cluster.api.until(POD, "running", running).await;
    let (api, runtime) = cluster.stop().await;
    api.delete_now(POD);
    let folder = tempfile::tempdir().unwrap();
    let mut config = NodeAgentConfig::new("n1", "192.0.2.1".parse().unwrap());
    config.data_dir = Some(folder.path().to_owned());
    std::fs::create_dir_all(folder.path().join("pods/uid-of-web/volumes")).unwrap();
    std::fs::create_dir_all(folder.path().join("logs/pods/default_web_uid-of-web")).unwrap();
    let shutdown = CancellationToken::new();
    // While the API is away nothing is removed.
    api.set_down(true);
    let run = trireme_nodeagent::run(api.client(), config, Arc::new(runtime.clone()), Arc::new(SystemClock), shutdown.clone());
    let agent = tokio::spawn(async move { run.await.unwrap() });
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(runtime.list_sandboxes().await.unwrap().len(), 1);
    api.set_down(false);
    for _ in 0..3000 {
        if runtime.list_sandboxes().await.unwrap().is_empty() && !folder.path().join("pods/uid-of-web").exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(runtime.list_sandboxes().await.unwrap().is_empty());
    assert!(!folder.path().join("pods/uid-of-web").exists());
    assert_eq!(std::fs::read_dir(folder.path().join("logs/pods")).unwrap().count(), 0);
    shutdown.cancel();
    agent.await.unwrap();
}

#[tokio::test]
async fn a_fleet_runs_many_nodes() {
    let api = FakeApi::new();
    let shutdown = CancellationToken::new();
    let fleet = trireme_nodeagent::FleetConfig { ramp: Duration::ZERO, ..Default::default() };
    let run = trireme_nodeagent::run_hollow_fleet(api.client(), 20, fleet, Arc::new(SystemClock), shutdown.clone());
    let running_fleet = tokio::spawn(run);
    for number in 0..20 {
        let node = format!("/api/v1/nodes/hollow-{number}");
        api.until(&node, "ready", |node| condition(node, "Ready") == "True").await;
    }
    let mut pod = pod(json!({}));
    pod["spec"]["nodeName"] = json!("hollow-7");
    api.put(POD, pod);
    let pod = api.until(POD, "running", running).await;
    assert!(pod["status"]["podIP"].as_str().unwrap().starts_with("10.88."));
    shutdown.cancel();
    running_fleet.await.unwrap().unwrap();
}
