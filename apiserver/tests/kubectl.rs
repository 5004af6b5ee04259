//! A stock kubectl against the server over TLS: what it prints.

mod support;

use std::{path::PathBuf, process::Output};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::ExtendedKeyUsagePurpose;
use support::{Authority, TestServer};
use tokio::process::Command;

/// A kubectl with a folder of its own.
struct Kubectl {
    folder: tempfile::TempDir,
    /// Kept while kubectl runs against it.
    _server: TestServer,
}

impl Kubectl {
    async fn start() -> Self {
        let server = TestServer::start().await;
        let authority = Authority::new();
        let address = server.listen(&authority).await;
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let (certificate, key) = authority.issue("admin", Some("system:masters"), &[], usage);
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: t\ncontexts:\n- name: t\n  context: {{cluster: t, user: t}}\n\
             clusters:\n- name: t\n  cluster:\n    server: https://{address}\n    certificate-authority-data: {}\n\
             users:\n- name: t\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            STANDARD.encode(&authority.certificate),
            STANDARD.encode(certificate),
            STANDARD.encode(key),
        );
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig).expect("a kubeconfig");
        Self { folder, _server: server }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .env("HOME", self.folder.path())
            .kill_on_drop(true);
        command
    }

    async fn output(&self, arguments: &str) -> Output {
        self.command(arguments).output().await.expect("kubectl runs")
    }

    /// What kubectl prints when it succeeds.
    async fn run(&self, arguments: &str) -> String {
        let output = self.output(arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What kubectl complains of when it fails.
    async fn fail(&self, arguments: &str) -> String {
        let output = self.output(arguments).await;
        assert!(!output.status.success(), "kubectl {arguments} should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_maps_are_created_changed_and_deleted() {
    let kubectl = Kubectl::start().await;
    assert_eq!(kubectl.run("create configmap a --from-literal=k=v").await, "configmap/a created\n");
    assert!(kubectl.fail("create configmap a").await.contains("configmaps \"a\" already exists"));
    assert_eq!(kubectl.run("get configmap a -o jsonpath={.data.k}").await, "v");
    kubectl.file("b.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {x: '1', y: '2'}\n");
    assert_eq!(kubectl.run("apply -f b.yaml").await, "configmap/b created\n");
    assert_eq!(kubectl.run("apply -f b.yaml").await, "configmap/b unchanged\n");
    kubectl.file("b.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {x: '3'}\n");
    assert!(kubectl.output("diff -f b.yaml").await.status.code() == Some(1));
    assert_eq!(kubectl.run("apply -f b.yaml").await, "configmap/b configured\n");
    assert_eq!(kubectl.run("get cm b -o jsonpath={.data}").await, "{\"x\":\"3\"}");
    assert_eq!(kubectl.run("label cm b app=web").await, "configmap/b labeled\n");
    assert_eq!(kubectl.run("annotate cm b note=x").await, "configmap/b annotated\n");
    assert_eq!(kubectl.run("get cm -l app=web -o name").await, "configmap/b\n");
    assert_eq!(kubectl.run("get cm --field-selector metadata.name=a -o name").await, "configmap/a\n");
    let table = kubectl.run("get cm --sort-by=.metadata.name").await;
    assert!(table.starts_with("NAME"), "{table}");
    assert!(table.lines().next().is_some_and(|header| header.split_whitespace().eq(["NAME", "DATA", "AGE"])), "{table}");
    assert!(kubectl.run("get cm -A --chunk-size=1").await.lines().count() >= 3);
    assert!(kubectl.run("describe cm b").await.contains("Name:         b"));
    let patched = kubectl.run(r#"patch cm b --type=json -p=[{"op":"replace","path":"/data/x","value":"4"}]"#).await;
    assert_eq!(patched, "configmap/b patched\n");
    assert_eq!(kubectl.run(r#"patch cm b -p={"data":{"z":"5"}} -o jsonpath={.data}"#).await, r#"{"x":"4","z":"5"}"#);
    kubectl.file("replace.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {only: this}\n");
    assert_eq!(kubectl.run("replace -f replace.yaml").await, "configmap/b replaced\n");
    assert_eq!(kubectl.run("delete cm b").await, "configmap \"b\" deleted\n");
    assert!(kubectl.fail("get cm b").await.contains("Error from server (NotFound): configmaps \"b\" not found"));
    assert!(kubectl.fail("get cm -n nowhere b").await.contains("not found"));
    assert!(kubectl.fail("create configmap x -n nowhere").await.contains("namespaces \"nowhere\" not found"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_says_what_it_offers() {
    let kubectl = Kubectl::start().await;
    assert!(kubectl.run("version").await.contains("Server Version: v1.36.0+trireme-0.1.0"));
    let resources = kubectl.run("api-resources").await;
    for line in ["configmaps", "namespaces", "pods", "deployments", "leases"] {
        assert!(resources.lines().any(|text| text.starts_with(line)), "{line} is missing:\n{resources}");
    }
    assert!(kubectl.run("api-versions").await.contains("apps/v1\n"));
    assert!(kubectl.run("cluster-info").await.contains("Kubernetes control plane"));
    assert!(kubectl.run("explain pods.spec.containers").await.contains("imagePullPolicy"));
    assert!(kubectl.run("explain deployments.spec.strategy --recursive").await.contains("maxSurge"));
    let namespaces = kubectl.run("get namespaces -o name").await;
    assert_eq!(namespaces, "namespace/default\nnamespace/kube-node-lease\nnamespace/kube-public\nnamespace/kube-system\n");
    assert!(kubectl.run("get --raw /readyz?verbose").await.contains("[+]informer-sync ok"));
    assert!(kubectl.run("get --raw /metrics").await.contains("apiserver_request_total"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_fields_and_bad_objects_are_refused() {
    let kubectl = Kubectl::start().await;
    kubectl.file("bad.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndatum: {x: '1'}\n");
    assert!(kubectl.fail("create -f bad.yaml").await.contains("strict decoding error: unknown field \"datum\""));
    assert_eq!(
        kubectl.run("create -f bad.yaml --validate=ignore --dry-run=server").await,
        "configmap/b created (server dry run)\n"
    );
    let warned = kubectl.output("create -f bad.yaml --validate=warn").await;
    assert!(String::from_utf8_lossy(&warned.stderr).contains("Warning: unknown field \"datum\""));
    assert!(kubectl.fail("create configmap Bad_Name").await.contains("metadata.name: Invalid value"));
    assert!(kubectl.fail("get cm --field-selector nothing=x").await.contains("field label not supported: nothing"));
    assert!(kubectl.fail("get nothing").await.contains("the server doesn't have a resource type \"nothing\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_print_changes() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let kubectl = Kubectl::start().await;
    let mut command = kubectl.command("get configmaps -w --no-headers -o name");
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("kubectl runs");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    kubectl.run("create configmap w1").await;
    assert_eq!(lines.next_line().await.expect("a line"), Some("configmap/w1".to_owned()));
    kubectl.run("create configmap w2").await;
    assert_eq!(lines.next_line().await.expect("a line"), Some("configmap/w2".to_owned()));
    child.kill().await.expect("it ends");
}
