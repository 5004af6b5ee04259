//! Bad input from users and clients: a clear reason, nothing changed, and no harm to anyone else.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use http::Method;
use serde_json::{Value, json};
use trireme_tests::{
    cluster::{Cluster, Pods, binary, free_ports, take_turn},
    connection::Connection,
};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn trireme(arguments: &[&str], folder: &Path) -> Output {
    Command::new(binary()).args(arguments).arg("--data-dir").arg(folder).output().expect("the binary runs")
}

/// Checks that a command failed with one line on standard error that holds `reason`.
fn assert_one_line(output: &Output, reason: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "not refused: {reason}");
    assert!(stderr.contains(reason), "`{reason}` is not in: {stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "more than one line: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn wrong_flags_are_refused_before_anything_is_made() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("cluster");
    let refused: &[(&[&str], &str)] = &[
        (&["up", "--masters", "0", "--runtime", "hollow"], "--masters must be between 1 and"),
        (&["up", "--nodes", "1000", "--runtime", "hollow"], "--nodes must be at most"),
        (&["up", "--port-base", "80", "--runtime", "hollow"], "--port-base must be between"),
        (&["up", "--zones", "a zone", "--runtime", "hollow"], "`a zone` is not a zone's name"),
        (&["up", "--zones=-a", "--runtime", "hollow"], "`-a` is not a zone's name"),
        (&["up", "--zones", "node-1", "--runtime", "hollow"], "`node-1` is not a zone's name"),
    ];
    for (arguments, reason) in refused {
        assert_one_line(&trireme(arguments, &folder), reason);
        assert!(!folder.exists(), "{arguments:?} left something behind");
    }
    // What the command line's own grammar refuses has a hint below the reason.
    for arguments in [&["up", "--runtime", "docker"][..], &["up", "--mastres", "3"], &["launch"]] {
        let output = trireme(arguments, &folder);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "), "{arguments:?}");
        assert!(!folder.exists(), "{arguments:?} left something behind");
    }
}

#[test]
fn a_folder_with_other_things_in_it_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("thesis.tex"), "the only copy").expect("a file");
    assert_one_line(&trireme(&["up", "--runtime", "hollow", "--detach"], folder.path()), "is not empty and holds no cluster");
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("the folder").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_full_disk_is_named_before_anything_is_made() {
    let disk = tempfile::tempdir().expect("a folder");
    let mount = |arguments: &[&str]| {
        let status = std::process::Command::new("mount").args(arguments).arg(disk.path()).status();
        assert!(status.expect("mount is there").success(), "this test mounts a small file system, which needs root");
    };
    mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"]);
    let output = trireme(&["up", "--runtime", "hollow", "--detach"], &disk.path().join("cluster"));
    let left: Vec<_> = std::fs::read_dir(disk.path()).expect("the folder").collect();
    let unmounted = std::process::Command::new("umount").arg(disk.path()).status().expect("umount is there");
    assert!(unmounted.success());
    assert_one_line(&output, "has 8 MiB free and a cluster needs at least 256");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn commands_on_a_folder_without_a_cluster_say_so() {
    let folder = tempfile::tempdir().expect("a folder");
    for arguments in [&["status"][..], &["down"], &["kill", "master-1"], &["image", "load", "/nowhere", "--name", "x"]] {
        assert_one_line(&trireme(arguments, folder.path()), "holds no cluster");
    }
}

#[test]
fn masters_elsewhere_are_named_alike_in_all_commands() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("copy").display().to_string();
    for command in [&["member", "list"][..], &["leader", "move"], &["store", "hash"], &["snapshot", "save", &copy]] {
        let elsewhere = |endpoint| trireme(&[command, &["--endpoints", endpoint]].concat(), folder.path());
        assert_one_line(&elsewhere("m1:x"), "`m1:x` is not an endpoint; it must be of the form https://host:2379");
        assert_one_line(&elsewhere("http://m1"), "masters speak TLS only");
        assert_one_line(&elsewhere("m1"), "admin.crt is not there; name the certificates with --cacert, --cert and --key");
    }
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_started() {
    let _turn = take_turn();
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("cluster");
    let base = free_ports();
    let taken = TcpListener::bind(("127.0.0.1", base + 2)).expect("the port was free");
    let output =
        trireme(&["up", "--detach", "--runtime", "hollow", "--netns", "none", "--port-base", &base.to_string()], &folder);
    assert_one_line(&output, &format!("127.0.0.1:{}", base + 2));
    assert!(!folder.join("cluster.yaml").exists() && !folder.join("processes").exists());
    drop(taken);
}

#[test]
fn a_folder_of_a_newer_version_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let description = "format: 99\nsomething-new: true\n";
    fs::write(folder.path().join("cluster.yaml"), description).expect("the folder can be written");
    for command in ["up", "status", "down"] {
        assert_one_line(&trireme(&[command], folder.path()), "was written by a newer trireme (format 99");
    }
    assert_eq!(fs::read_to_string(folder.path().join("cluster.yaml")).expect("it is there"), description);
}

/// The arguments of a running process, without the program.
fn arguments_of(cluster: &Cluster, name: &str) -> Vec<String> {
    let line = fs::read_to_string(format!("/proc/{}/cmdline", cluster.pid(name))).expect("the process runs");
    line.split('\0').skip(1).filter(|argument| !argument.is_empty()).map(str::to_owned).collect()
}

/// Runs a master in the foreground with one flag's value changed.
fn master_with(arguments: &[String], flag: &str, value: &str) -> Output {
    let mut arguments = arguments.to_vec();
    let position = arguments.iter().position(|argument| argument == flag).expect("the flag is there");
    arguments[position + 1] = value.to_owned();
    // It must end by itself; a master that starts in spite of it is ended, and then fails the test.
    Command::new("timeout").arg("20").arg(binary()).args(arguments).output().expect("the binary runs")
}

#[test]
fn a_master_refuses_the_data_of_another_cluster_and_missing_certificates() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    let arguments = arguments_of(&cluster, "master-1");
    cluster.trireme(&["stop", "master-1"]);
    for (flag, value, reason) in
        [("--cluster-id", "another-cluster", "another-cluster"), ("--pki-dir", "/nowhere/pki", "/nowhere/pki")]
    {
        let output = master_with(&arguments, flag, value);
        let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.code().is_some_and(|code| code != 0 && code != 124), "{flag} {value} was not refused: {text}");
        let line = text.lines().last().unwrap_or_default();
        assert!(line.starts_with("trireme: ") && line.contains(reason), "{flag} {value}: {text}");
    }
    // Nothing was changed: the master comes back with its own settings.
    cluster.up();
    assert_eq!(cluster.trireme(&["status"]).matches("running").count(), 3);
}

/// One request that must be refused.
struct Refusal {
    method: Method,
    path: &'static str,
    content_type: &'static str,
    body: String,
    code: u16,
    reason: &'static str,
    /// What the message or a cause must hold.
    says: &'static str,
}

fn refusals() -> Vec<Refusal> {
    let refusal = |method: &Method, path, content_type, body: String, code, reason, says| Refusal {
        method: method.clone(),
        path,
        content_type,
        body,
        code,
        reason,
        says,
    };
    let (get, post, put, patch, delete) = (&Method::GET, &Method::POST, &Method::PUT, &Method::PATCH, &Method::DELETE);
    let map = |metadata: Value| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata }).to_string();
    let pod = |spec: Value| json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" }, "spec": spec }).to_string();
    let none = String::new;
    vec![
        refusal(post, CONFIG_MAPS, JSON, "{\"kind\": ".into(), 400, "BadRequest", ""),
        refusal(post, CONFIG_MAPS, YAML, "a: [1\nb".into(), 400, "BadRequest", ""),
        refusal(post, CONFIG_MAPS, JSON, "[]".into(), 400, "BadRequest", ""),
        refusal(
            post,
            CONFIG_MAPS,
            JSON,
            json!({ "apiVersion": "v1", "kind": "Secret" }).to_string(),
            400,
            "BadRequest",
            "ConfigMap",
        ),
        refusal(post, CONFIG_MAPS, "text/plain", map(json!({ "name": "x" })), 415, "UnsupportedMediaType", ""),
        refusal(patch, "/api/v1/namespaces/default/configmaps/x", JSON, "{}".into(), 415, "UnsupportedMediaType", ""),
        refusal(post, CONFIG_MAPS, JSON, map(json!({ "name": "Not_A_Name" })), 422, "Invalid", "metadata.name"),
        refusal(
            post,
            CONFIG_MAPS,
            JSON,
            map(json!({ "name": "x", "labels": { "a b": "c" } })),
            422,
            "Invalid",
            "metadata.labels",
        ),
        refusal(post, CONFIG_MAPS, JSON, map(json!({})), 422, "Invalid", "name or generateName is required"),
        refusal(post, CONFIG_MAPS, JSON, map(json!({ "name": "x", "namespace": "other" })), 400, "BadRequest", "namespace"),
        refusal(post, CONFIG_MAPS, JSON, map(json!({ "name": 7 })), 400, "BadRequest", "name"),
        refusal(
            post,
            "/api/v1/namespaces/default/configmaps?fieldValidation=Strict",
            JSON,
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "x" }, "dat": {} }).to_string(),
            400,
            "BadRequest",
            "unknown field \"dat\"",
        ),
        refusal(
            post,
            "/api/v1/namespaces/default/pods?fieldValidation=Strict",
            JSON,
            pod(json!({ "containers": [{ "name": "c", "image": "i", "imagge": "j" }] })),
            400,
            "BadRequest",
            "unknown field \"spec.containers[0].imagge\"",
        ),
        refusal(post, PODS, JSON, pod(json!({ "containers": [] })), 422, "Invalid", "spec.containers"),
        refusal(post, PODS, JSON, pod(json!({ "containers": [{ "name": "c" }] })), 422, "Invalid", "spec.containers[0].image"),
        refusal(post, PODS, JSON, pod(json!({ "containers": "none" })), 400, "BadRequest", "containers"),
        refusal(
            post,
            PODS,
            JSON,
            pod(json!({ "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": "much" } } }] })),
            400,
            "BadRequest",
            "",
        ),
        refusal(post, "/api/v1/namespaces/nowhere/configmaps", JSON, map(json!({ "name": "x" })), 404, "NotFound", "nowhere"),
        refusal(get, "/api/v1/namespaces/default/configmaps/absent", JSON, none(), 404, "NotFound", "absent"),
        refusal(delete, "/api/v1/namespaces/default/configmaps/absent", JSON, none(), 404, "NotFound", "absent"),
        refusal(get, "/api/v1/namespaces/default/gadgets", JSON, none(), 404, "NotFound", ""),
        refusal(get, "/apis/nobody.example/v1/things", JSON, none(), 404, "NotFound", ""),
        refusal(put, CONFIG_MAPS, JSON, map(json!({ "name": "x" })), 405, "MethodNotAllowed", ""),
        refusal(post, "/api/v1/namespaces/default/configmaps/x", JSON, map(json!({ "name": "x" })), 405, "MethodNotAllowed", ""),
        refusal(get, "/api/v1/configmaps?labelSelector=a%3D%3D%3Db", JSON, none(), 400, "BadRequest", ""),
        refusal(get, "/api/v1/configmaps?fieldSelector=spec.color%3Dred", JSON, none(), 400, "BadRequest", "spec.color"),
        refusal(get, "/api/v1/configmaps?limit=few", JSON, none(), 400, "BadRequest", ""),
        refusal(get, "/api/v1/configmaps?resourceVersion=yesterday", JSON, none(), 400, "BadRequest", ""),
        refusal(get, "/api/v1/configmaps?limit=1&continue=nonsense", JSON, none(), 400, "BadRequest", ""),
    ]
}

async fn assert_refused(connection: &mut Connection, refusal: Refusal) {
    let asked = format!("{} {} {}", refusal.method, refusal.path, refusal.body.chars().take(120).collect::<String>());
    let answer = connection.send(refusal.method, refusal.path, refusal.content_type, refusal.body).await;
    let body = &answer.body;
    assert_eq!(answer.code.as_u16(), refusal.code, "{asked}: {body}");
    assert_eq!(body["kind"], "Status", "{asked}: {body}");
    assert_eq!(body["code"], refusal.code, "{asked}: {body}");
    assert_eq!(body["reason"], refusal.reason, "{asked}: {body}");
    let said = format!("{} {}", body["message"].as_str().unwrap_or_default(), body["details"]);
    assert!(said.contains(refusal.says), "{asked}: `{}` is not in {body}", refusal.says);
    if refusal.code == 422 {
        let field = body["details"]["causes"][0]["field"].as_str();
        assert!(field.is_some_and(|field| !field.is_empty()), "{asked}: no field: {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_wrong_are_refused_as_kubernetes_does_on_a_connection_that_stays_usable() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    let mut connection = Connection::open(cluster.port_base() + 1, cluster.folder()).await;
    for refusal in refusals() {
        assert_refused(&mut connection, refusal).await;
    }

    // An object that is larger than the store takes, and then one that is larger than a request may be.
    for (bytes, codes) in [(2_000_000, [413, 422]), (8_000_000, [413, 413])] {
        let large = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "large" }, "data": { "x": "y".repeat(bytes) } });
        let mut one = Connection::open(cluster.port_base() + 1, cluster.folder()).await;
        let answer = one.send(Method::POST, CONFIG_MAPS, JSON, large.to_string()).await;
        assert!(codes.contains(&answer.code.as_u16()), "{bytes} bytes: {} {}", answer.code, answer.body);
        assert_eq!(answer.body["kind"], "Status", "{bytes} bytes: {}", answer.body);
    }

    // A stale resourceVersion, and one that was never given out.
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "fresh" }, "data": { "a": "1" } });
    let created = connection.send(Method::POST, CONFIG_MAPS, JSON, map.to_string()).await;
    assert_eq!(created.code.as_u16(), 201, "{}", created.body);
    let again = connection.send(Method::POST, CONFIG_MAPS, JSON, map.to_string()).await;
    assert_eq!((again.code.as_u16(), again.body["reason"].as_str()), (409, Some("AlreadyExists")));
    let path = format!("{CONFIG_MAPS}/fresh");
    let mut changed = created.body.clone();
    changed["data"]["a"] = json!("2");
    assert_eq!(connection.send(Method::PUT, &path, JSON, changed.to_string()).await.code.as_u16(), 200);
    changed["data"]["a"] = json!("3");
    let stale = connection.send(Method::PUT, &path, JSON, changed.to_string()).await;
    assert_eq!((stale.code.as_u16(), stale.body["reason"].as_str()), (409, Some("Conflict")), "{}", stale.body);

    // Nothing of what was refused was stored.
    let listed = connection.send(Method::GET, CONFIG_MAPS, JSON, "").await;
    let names: Vec<&str> =
        listed.body["items"].as_array().into_iter().flatten().filter_map(|item| item["metadata"]["name"].as_str()).collect();
    assert!(names.iter().all(|name| ["fresh", "kube-root-ca.crt"].contains(name)) && names.contains(&"fresh"), "{names:?}");
    let pods = connection.send(Method::GET, PODS, JSON, "").await;
    assert_eq!(pods.body["items"], json!([]));
}
