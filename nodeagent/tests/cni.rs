//! Pods connected by plugins. The first tests use plugins that are shell scripts; the last one Debian's
//! `containernetworking-plugins`. Needs root, iproute2, iptables, busybox-static and containernetworking-plugins.

mod real;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use real::{
    Bench, container,
    namespace::{Namespace, WHO_SERVER, who, who_at_last},
    start, words,
};
use serde_json::{Value, json};
use trireme_nodeagent::{
    network::{Attachment, CniConfig, CniNetwork, NetworkError, PodNetwork},
    runtime::{PodIdentity, PortMapping, Runtime},
};

/// Writes down how it was called and what it was told; answers with the file `<name>.answer`, exits with `<name>.exit`.
const SCRIPT: &str = r#"#!/bin/sh
name=$(basename "$0")
folder=$(dirname "$0")
cat > "$folder/$name.$CNI_COMMAND.input"
echo "$CNI_COMMAND $name $CNI_CONTAINERID $CNI_IFNAME ${CNI_NETNS:-none} $CNI_ARGS" >> "$folder/calls"
if [ -e "$folder/$name.$CNI_COMMAND.wait" ]; then sleep 1000 & wait; fi
if [ "$CNI_COMMAND" = ADD ] || [ -e "$folder/$name.$CNI_COMMAND.exit" ]; then cat "$folder/$name.answer"; fi
if [ -e "$folder/$name.$CNI_COMMAND.exit" ]; then exit 1; fi
"#;

struct Scripted {
    folder: tempfile::TempDir,
    namespace: Namespace,
}

impl Scripted {
    fn new() -> Scripted {
        let place = Scripted { folder: tempfile::tempdir().unwrap(), namespace: Namespace::new() };
        for folder in ["conf", "bin"] {
            fs::create_dir(place.folder.path().join(folder)).unwrap();
        }
        for name in ["first", "second"] {
            place.write(&format!("bin/{name}"), SCRIPT);
            fs::set_permissions(place.path(&format!("bin/{name}")), fs::Permissions::from_mode(0o755)).unwrap();
        }
        place.write("bin/first.answer", &json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.9.0.1/24" }] }).to_string());
        place.write("bin/second.answer", &json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.9.0.2/24" }] }).to_string());
        place.write(
            "conf/10-net.conflist",
            &json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [
                { "type": "first", "own": 1 }, { "type": "second", "capabilities": { "portMappings": true } },
            ] })
            .to_string(),
        );
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn network(&self) -> CniNetwork {
        CniNetwork::open(CniConfig {
            plugin_dirs: vec![self.path("elsewhere"), self.path("bin")],
            plugin_timeout: Duration::from_secs(3),
            ..CniConfig::new(self.path("conf"), self.path("state"))
        })
        .unwrap()
    }

    fn attachment(&self) -> Attachment {
        Attachment {
            sandbox_id: "abc123".to_owned(),
            pod: PodIdentity { namespace: "prod".to_owned(), name: "web-0".to_owned(), uid: "u-1".to_owned() },
            namespace: Some(self.namespace.path()),
            port_mappings: vec![PortMapping { protocol: "TCP".to_owned(), container_port: 80, host_port: 8080, host_ip: None }],
        }
    }

    /// The calls since the last time, as `COMMAND plugin`.
    fn calls(&self) -> Vec<String> {
        let path = self.path("bin/calls");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    }

    fn input(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(&format!("bin/{name}.input"))).unwrap()).unwrap()
    }

    fn records(&self) -> usize {
        fs::read_dir(self.path("state/results")).unwrap().count()
    }
}

#[tokio::test]
async fn a_chain_is_run_forwards_and_undone_backwards() {
    let place = Scripted::new();
    let network = place.network();
    network.ready().await.unwrap();
    let addresses = network.attach(&place.attachment()).await.unwrap();
    assert_eq!(addresses, ["10.9.0.2".parse::<std::net::IpAddr>().unwrap()], "the last plugin's result counts");
    let line = format!(
        "ADD first abc123 eth0 {} IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc123;K8S_POD_UID=u-1",
        place.namespace.path().display()
    );
    assert_eq!(fs::read_to_string(place.path("bin/calls")).unwrap().lines().next(), Some(line.as_str()));
    assert_eq!(place.calls(), ["ADD first", "ADD second"]);
    assert_eq!(place.input("first.ADD"), json!({ "cniVersion": "1.0.0", "name": "net", "type": "first", "own": 1 }));
    assert_eq!(
        place.input("second.ADD"),
        json!({ "cniVersion": "1.0.0", "name": "net", "type": "second",
            "prevResult": { "cniVersion": "1.0.0", "ips": [{ "address": "10.9.0.1/24" }] },
            "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "" }] } }),
    );

    // After a restart, with another configuration in force: asked again it checks, and it is undone as it was made.
    place.write("conf/00-other.conf", &json!({ "cniVersion": "1.0.0", "name": "other", "type": "other" }).to_string());
    let network = place.network();
    assert!(network.ready().await.unwrap_err().to_string().starts_with("failed to find plugin \"other\" in path ["));
    assert_eq!(network.attach(&place.attachment()).await.unwrap(), addresses);
    assert_eq!(place.calls(), ["CHECK first", "CHECK second"]);
    let result = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.9.0.2/24" }] });
    assert_eq!(place.input("first.CHECK")["prevResult"], result);
    network.detach(&Attachment { namespace: None, ..place.attachment() }).await.unwrap();
    assert!(fs::read_to_string(place.path("bin/calls")).unwrap().contains("DEL second abc123 eth0 none "));
    assert_eq!(place.calls(), ["DEL second", "DEL first"]);
    assert_eq!(place.input("first.DEL")["prevResult"], result);
    assert_eq!(place.records(), 0);
    network.detach(&place.attachment()).await.unwrap();
    assert_eq!(place.calls(), Vec::<String>::new(), "what is not connected is disconnected");
}

#[tokio::test]
async fn a_failed_attachment_is_undone_and_told_in_the_plugins_words() {
    let place = Scripted::new();
    let network = place.network();
    place.write("bin/second.ADD.exit", "");
    place.write("bin/second.answer", r#"{ "cniVersion": "1.0.0", "code": 11, "msg": "no address left", "details": "of 254" }"#);
    let error = network.attach(&place.attachment()).await.unwrap_err();
    assert!(matches!(error, NetworkError::Plugin(_)));
    assert_eq!(error.to_string(), "plugin type=\"second\" failed (add): no address left; of 254");
    assert_eq!(place.calls(), ["ADD first", "ADD second", "DEL second", "DEL first"]);
    assert_eq!(place.records(), 0);

    place.write("bin/second.answer", "Segmentation fault");
    let error = network.attach(&place.attachment()).await.unwrap_err().to_string();
    assert_eq!(error, "plugin type=\"second\" failed (add): exit status: 1: Segmentation fault");

    // What cannot be undone is remembered, and undone when the sandbox is known to be gone.
    place.write("bin/first.DEL.exit", "");
    network.attach(&place.attachment()).await.unwrap_err();
    assert_eq!(place.records(), 1);
    network.retain(&BTreeSet::from(["abc123".to_owned()])).await.unwrap();
    assert_eq!(place.records(), 1);
    fs::remove_file(place.path("bin/first.DEL.exit")).unwrap();
    place.network().retain(&BTreeSet::new()).await.unwrap();
    assert_eq!(place.records(), 0);
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let place = Scripted::new();
    let network = place.network();
    place.write("bin/first.ADD.wait", "");
    let began = tokio::time::Instant::now();
    let error = network.attach(&place.attachment()).await.unwrap_err().to_string();
    assert_eq!(error, "plugin type=\"first\" failed (add): it did not end within 3s");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(place.calls(), ["ADD first", "DEL second", "DEL first"]);
    let own_group = |stat: &str| stat.contains("(sleep)");
    let sleepers = fs::read_dir("/proc").unwrap().flatten().filter(|process| {
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let folder = fs::read_to_string(process.path().join("environ")).unwrap_or_default();
        own_group(&stat) && folder.contains(&place.folder.path().display().to_string())
    });
    assert_eq!(sleepers.count(), 0);
}

fn files(folder: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name.starts_with("10.")).collect()
}

#[test]
fn real_plugins_connect_real_pods() {
    let plugins = Path::new("/usr/lib/cni");
    assert!(plugins.join("bridge").exists(), "this test needs the package containernetworking-plugins");
    let (node, outside) = (Namespace::new(), Namespace::new());
    node.join("172.30.7.1/24", &outside, "172.30.7.2/24");
    let folder = tempfile::tempdir().unwrap();
    let (configurations, addresses) = (folder.path().join("conf"), folder.path().join("addresses"));
    fs::create_dir(&configurations).unwrap();
    let list = json!({ "cniVersion": "1.0.0", "name": "test", "plugins": [
        { "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
          "ipam": { "type": "host-local", "dataDir": addresses, "subnet": "10.77.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }] } },
        { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
    ] });
    fs::write(configurations.join("10-test.conflist"), list.to_string()).unwrap();
    let given = addresses.join("test");
    let state = folder.path().join("state");
    let open = move || Arc::new(CniNetwork::open(CniConfig::new(configurations.clone(), state.clone())).unwrap());

    let bench = Bench::with_network(open());
    let (mut bench, sandbox, own, given) = node.run(async move || {
        let runtime = bench.open_with_image().await;
        runtime.ready().await.unwrap();
        let mut config = bench.sandbox("server");
        config.port_mappings.push(PortMapping {
            protocol: "TCP".to_owned(),
            container_port: 8080,
            host_port: 18080,
            host_ip: None,
        });
        let sandbox = runtime.run_sandbox(&config).await.unwrap();
        let id = start(&runtime, &sandbox, &config, &container("main", WHO_SERVER)).await;
        let own = runtime.list_sandboxes().await.unwrap()[0].addresses[0];
        assert_eq!(files(&given), BTreeSet::from([own.to_string()]));
        assert_eq!(who_at_last(&format!("{own}:8080")).await, "10.77.0.1", "the node is the gateway");
        let itself = words(&["wget", "-q", "-O", "-", "http://127.0.0.1:8080/cgi-bin/who"]);
        let answer = runtime.exec(&id, &itself, Duration::from_secs(10)).await.unwrap();
        assert_eq!(answer.exit_code, 0, "the loopback interface is up");

        let client_config = bench.sandbox("client");
        let client = runtime.run_sandbox(&client_config).await.unwrap();
        let client_id = start(&runtime, &client, &client_config, &container("main", "sleep 1000")).await;
        let ask = words(&["wget", "-q", "-O", "-", &format!("http://{own}:8080/cgi-bin/who")]);
        let answer = runtime.exec(&client_id, &ask, Duration::from_secs(20)).await.unwrap();
        assert!(String::from_utf8_lossy(&answer.stdout).contains("10.77.0."), "{answer:?}");
        runtime.remove_sandbox(&client).await.unwrap();
        assert_eq!(files(&given), BTreeSet::from([own.to_string()]), "the address is free again");
        drop(runtime);
        (bench, sandbox, own, given)
    });
    let through_the_node = outside.run(async || who_at_last("172.30.7.1:18080").await);
    assert_eq!(through_the_node, "172.30.7.2");

    // A restarted agent adopts the pod and can disconnect it.
    bench.network = open();
    node.run(async move || {
        let runtime = bench.open().await;
        assert_eq!(runtime.list_sandboxes().await.unwrap()[0].addresses, [own]);
        runtime.remove_sandbox(&sandbox).await.unwrap();
        assert_eq!(files(&given), BTreeSet::new());
        assert_eq!(bench.leftovers(), Vec::<String>::new());
    });
    assert_eq!(outside.run(async || who("172.30.7.1:18080").await), None);
}
