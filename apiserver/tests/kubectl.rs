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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads_are_shown_and_changed() {
    let kubectl = Kubectl::start().await;
    assert_eq!(kubectl.run("create namespace n").await, "namespace/n created\n");
    assert_eq!(kubectl.run("create deployment web -n n --image=nginx:1 --replicas=2").await, "deployment.apps/web created\n");
    let wide = kubectl.run("get deployments -n n -o wide").await;
    let header = "NAME READY UP-TO-DATE AVAILABLE AGE CONTAINERS IMAGES SELECTOR";
    assert!(wide.lines().next().is_some_and(|line| line.split_whitespace().eq(header.split(' '))), "{wide}");
    assert!(wide.contains("0/2") && wide.contains("nginx:1"), "{wide}");
    assert_eq!(kubectl.run("scale deployment web -n n --replicas=3").await, "deployment.apps/web scaled\n");
    assert_eq!(kubectl.run("set image deployment/web -n n nginx=nginx:2").await, "deployment.apps/web image updated\n");
    let path = "{.spec.replicas}/{.spec.template.spec.containers[0].image}/{.metadata.generation}";
    assert_eq!(kubectl.run(&format!("get deployment web -n n -o jsonpath={path}")).await, "3/nginx:2/3");
    assert!(kubectl.run("rollout pause deployment/web -n n").await.contains("paused"));
    assert!(kubectl.run("describe deployment web -n n").await.contains("Replicas:               3 desired"));
    assert_eq!(kubectl.run("run p -n n --image=busybox:1 --restart=Never --env=A=b").await, "pod/p created\n");
    let pods = kubectl.run("get pods -n n").await;
    assert!(pods.lines().nth(1).is_some_and(|line| line.starts_with("p      0/1     Pending   0")), "{pods}");
    assert!(kubectl.run("describe pod p -n n").await.contains("Status:           Pending"));
    assert_eq!(kubectl.run("create secret generic s -n n --from-literal=a=b").await, "secret/s created\n");
    assert_eq!(kubectl.run("get secret s -n n -o jsonpath={.data.a}").await, "Yg==");
    assert_eq!(kubectl.run("create serviceaccount robot -n n").await, "serviceaccount/robot created\n");
    assert_eq!(kubectl.run("expose deployment web -n n --port=80").await, "service/web exposed\n");
    assert!(kubectl.run("get all -n n").await.contains("service/web"));
    assert!(kubectl.run("get events -n n").await.is_empty());
    assert!(kubectl.run("wait --for=jsonpath={.status.phase}=Pending pod/p -n n --timeout=5s").await.contains("condition met"));
    kubectl.file("node.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n");
    kubectl.run("create -f node.yaml").await;
    assert_eq!(kubectl.run("cordon n1").await, "node/n1 cordoned\n");
    assert_eq!(kubectl.run("taint nodes n1 k=v:NoSchedule").await, "node/n1 tainted\n");
    assert!(kubectl.run("get nodes").await.contains("SchedulingDisabled"));
    let bind = r#"create --raw /api/v1/namespaces/n/pods/p/binding -f bind.json"#;
    kubectl.file(
        "bind.json",
        r#"{"kind":"Binding","apiVersion":"v1","metadata":{"name":"p"},"target":{"kind":"Node","name":"n1"}}"#,
    );
    kubectl.run(bind).await;
    let drained = kubectl.run("drain n1 --force --grace-period=0 --timeout=20s").await;
    assert!(drained.contains("pod/p evicted") && drained.contains("node/n1 drained"), "{drained}");
    assert_eq!(kubectl.run("uncordon n1").await, "node/n1 uncordoned\n");
    assert_eq!(
        kubectl.run("delete deployment web -n n --cascade=orphan --wait=false").await,
        "deployment.apps \"web\" deleted\n"
    );
    assert!(kubectl.fail("create deployment bad -n nowhere --image=x").await.contains("namespaces \"nowhere\" not found"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority_is_refused() {
    let kubectl = Kubectl::start().await;
    let stranger = Authority::new();
    let (certificate, key) = stranger.issue("admin", Some("system:masters"), &[], ExtendedKeyUsagePurpose::ClientAuth);
    kubectl.file("stranger.crt", &certificate);
    kubectl.file("stranger.key", &key);
    kubectl.run("config set-credentials s --client-certificate=stranger.crt --client-key=stranger.key").await;
    let refused = kubectl.fail("get configmaps --user=s").await;
    assert!(refused.contains("tls") || refused.contains("certificate") || refused.contains("connection"), "{refused}");
    assert_eq!(kubectl.run("get configmaps -o name").await, "", "others are served on");
}
