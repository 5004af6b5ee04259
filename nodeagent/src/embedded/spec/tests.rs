use std::collections::BTreeSet;

use super::{capabilities::ALL_CAPABILITIES, *};
use crate::{
    image::ProcessDefaults,
    runtime::{ContainerConfig, ContainerResources, ContainerSecurity, Mount, MountPropagation, PodIdentity, SandboxConfig},
};

fn records() -> (SandboxRecord, ShimRecord, ContainerRecord) {
    let pod = PodIdentity { namespace: "default".to_owned(), name: "web".to_owned(), uid: "u1".to_owned() };
    let config = SandboxConfig {
        pod: pod.clone(),
        attempt: 0,
        hostname: "web".to_owned(),
        host_network: false,
        host_pid: false,
        host_ipc: false,
        share_process_namespace: false,
        dns: None,
        sysctls: Default::default(),
        log_directory: "/var/log/pods/x".into(),
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: "besteffort/podu1".to_owned(),
        port_mappings: Vec::new(),
        resources: Default::default(),
    };
    let sandbox = SandboxRecord {
        id: "s1".to_owned(),
        config,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        cgroup: "/trireme/besteffort/podu1".into(),
        addresses: Vec::new(),
        complete: true,
        stopped: false,
    };
    let container = ContainerRecord {
        id: "c1".to_owned(),
        sandbox_id: "s1".to_owned(),
        pod,
        config: ContainerConfig {
            name: "main".to_owned(),
            attempt: 0,
            image: "busybox".to_owned(),
            command: Vec::new(),
            args: Vec::new(),
            working_directory: None,
            environment: Vec::new(),
            mounts: Vec::new(),
            resources: ContainerResources::default(),
            security: ContainerSecurity::default(),
            stdin: false,
            stdin_once: false,
            tty: false,
            log_path: "main/0.log".into(),
            labels: Default::default(),
            annotations: Default::default(),
        },
        image_id: "sha256:0".to_owned(),
        image_reference: "busybox".to_owned(),
        defaults: ProcessDefaults {
            entrypoint: Some(vec!["/entry".to_owned()]),
            cmd: Some(vec!["serve".to_owned()]),
            env: Some(vec!["A=image".to_owned(), "AB=image".to_owned()]),
            ..ProcessDefaults::default()
        },
        layers_folder: "/layers".into(),
        layers: vec!["l1".to_owned()],
        cgroup: "/trireme/besteffort/podu1/c1".into(),
        log_path: "/var/log/pods/x/main/0.log".into(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    };
    (sandbox, ShimRecord { process: 4711, pause: None }, container)
}

fn surroundings() -> Surroundings {
    Surroundings { unified_cgroups: false, limits_swap: false, devices: Vec::new(), capabilities: (1 << 41) - 1 }
}

fn build(sandbox: &SandboxRecord, shim: &ShimRecord, container: &ContainerRecord) -> Value {
    let files = SandboxFiles { shared_memory: "/shm".into(), ..SandboxFiles::default() };
    configuration(sandbox, shim, container, &Credentials::default(), &files, &surroundings()).unwrap()
}

#[test]
fn libcontainer_reads_the_configuration() {
    let (sandbox, shim, mut container) = records();
    container.config.resources =
        ContainerResources { memory_limit_bytes: Some(1 << 20), cpu_quota_us: Some(5), ..ContainerResources::default() };
    let text = build(&sandbox, &shim, &container).to_string();
    let parsed: oci_spec::runtime::Spec = serde_json::from_str(&text).unwrap();
    assert_eq!(parsed.linux().as_ref().unwrap().namespaces().as_ref().unwrap().len(), 5);
}

#[test]
fn commands_follow_the_table_of_the_kubernetes_documentation() {
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    for (command, args, expected) in [
        (vec![], vec![], vec!["/entry", "serve"]),
        (vec!["/c"], vec![], vec!["/c"]),
        (vec![], vec!["a"], vec!["/entry", "a"]),
        (vec!["/c"], vec!["a"], vec!["/c", "a"]),
    ] {
        let (_, _, mut container) = records();
        container.config.command = list(&command);
        container.config.args = list(&args);
        assert_eq!(arguments(&container).unwrap(), list(&expected));
    }
    let (_, _, mut empty) = records();
    empty.defaults = ProcessDefaults::default();
    assert_eq!(arguments(&empty), Err("no command specified".to_owned()));
}

#[test]
fn the_pods_variables_win_and_names_are_compared_whole() {
    let (sandbox, _, mut container) = records();
    container.config.environment = vec![("A".to_owned(), "pod".to_owned())];
    let environment = environment(&sandbox, &container);
    assert_eq!(environment, [DEFAULT_PATH, "HOSTNAME=web", "A=pod", "AB=image"]);
}

#[test]
fn capabilities_are_added_and_dropped() {
    let security = |add: &[&str], drop: &[&str]| ContainerSecurity {
        add_capabilities: add.iter().map(|name| (*name).to_owned()).collect(),
        drop_capabilities: drop.iter().map(|name| (*name).to_owned()).collect(),
        ..ContainerSecurity::default()
    };
    let of = |security| capabilities(&security, &surroundings()).unwrap();
    assert_eq!(of(security(&[], &[])).len(), 14);
    assert_eq!(of(security(&["NET_ADMIN"], &["ALL"])), BTreeSet::from(["CAP_NET_ADMIN".to_owned()]));
    assert_eq!(of(security(&["ALL"], &["cap_kill"])).len(), 40);
    assert!(capabilities(&security(&["FLY"], &[]), &surroundings()).is_err());
    assert_eq!(
        capabilities(&security(&[], &[]), &Surroundings { capabilities: 0b1, ..surroundings() }).unwrap(),
        BTreeSet::from(["CAP_CHOWN".to_owned()]),
        "what the agent has"
    );
    assert_eq!(of(ContainerSecurity { privileged: true, ..security(&[], &["ALL"]) }).len(), 41);
}

#[test]
fn a_mount_of_the_pod_replaces_the_default_and_parents_come_first() {
    let (sandbox, shim, mut container) = records();
    let mount = |path: &str| Mount {
        host_path: "/host".into(),
        container_path: path.into(),
        read_only: true,
        propagation: MountPropagation::HostToContainer,
    };
    container.config.mounts = vec![mount("/data/inner"), mount("/data"), mount("/dev/shm")];
    let configuration = build(&sandbox, &shim, &container);
    let mounts = configuration["mounts"].as_array().unwrap();
    let places: Vec<&str> = mounts.iter().filter_map(|mount| mount["destination"].as_str()).collect();
    assert_eq!(places[places.len() - 3..], ["/data", "/data/inner", "/dev/shm"]);
    assert_eq!(places.iter().filter(|place| **place == "/dev/shm").count(), 1);
    assert_eq!(mounts.last().unwrap()["options"], json!(["rbind", "rslave", "ro"]));
}

#[test]
fn the_oom_score_stays_where_it_cannot_be_lowered() {
    assert_eq!(oom_score_adjustment(-997, u64::MAX), -997);
    assert_eq!(oom_score_adjustment(-997, !(1 << 24)), 0);
    assert_eq!(oom_score_adjustment(1000, 0), 1000);
    assert_eq!(ALL_CAPABILITIES[24], "SYS_RESOURCE");
}

#[test]
fn shared_namespaces_are_the_sandboxs() {
    let (mut sandbox, mut shim, container) = records();
    shim.pause = Some(99);
    let namespaces = build(&sandbox, &shim, &container)["linux"]["namespaces"].clone();
    assert!(namespaces.as_array().unwrap().contains(&json!({ "type": "pid", "path": "/proc/99/ns/pid" })));
    assert!(namespaces.as_array().unwrap().contains(&json!({ "type": "network", "path": "/proc/4711/ns/net" })));

    sandbox.config.host_network = true;
    sandbox.config.host_ipc = true;
    sandbox.config.host_pid = true;
    shim.pause = None;
    let namespaces = build(&sandbox, &shim, &container)["linux"]["namespaces"].clone();
    assert_eq!(namespaces, json!([{ "type": "mount" }]));
}

#[test]
fn only_a_privileged_container_sees_everything() {
    let (sandbox, shim, mut container) = records();
    assert_eq!(build(&sandbox, &shim, &container)["linux"]["maskedPaths"].as_array().unwrap().len(), 10);
    container.config.security.privileged = true;
    let configuration = build(&sandbox, &shim, &container);
    assert!(configuration["linux"].get("maskedPaths").is_none());
    assert_eq!(configuration["linux"]["resources"]["devices"].as_array().unwrap().len(), 1);
}

#[test]
fn where_no_devices_are_filtered_a_container_can_neither_make_nor_find_any() {
    let unified = Surroundings { unified_cgroups: true, ..surroundings() };
    let (sandbox, shim, mut container) = records();
    let volume = Mount {
        host_path: "/host".into(),
        container_path: "/data".into(),
        read_only: false,
        propagation: MountPropagation::Private,
    };
    container.config.mounts = vec![volume];
    let build = |container: &ContainerRecord| {
        let files = SandboxFiles { shared_memory: "/shm".into(), ..SandboxFiles::default() };
        configuration(&sandbox, &shim, container, &Credentials::default(), &files, &unified)
    };
    let bounding = |configuration: &Value| configuration["process"]["capabilities"]["bounding"].as_array().unwrap().clone();
    let plain = build(&container).unwrap();
    assert!(!bounding(&plain).contains(&json!("CAP_MKNOD")), "{plain:#}");
    assert_eq!(plain["mounts"].as_array().unwrap().last().unwrap()["options"], json!(["rbind", "rprivate", "rw", "nodev"]));
    assert!(plain["linux"]["namespaces"].as_array().unwrap().contains(&json!({ "type": "cgroup" })));
    container.config.security.add_capabilities = vec!["ALL".to_owned()];
    assert!(!bounding(&build(&container).unwrap()).contains(&json!("CAP_MKNOD")), "part of ALL");
    container.config.security.add_capabilities = vec!["cap_mknod".to_owned()];
    assert!(build(&container).unwrap_err().contains("MKNOD cannot be added"));
    assert_eq!(verify(&container.config.security, false), Ok(()), "cgroup v1 filters devices");
    container.config.security.privileged = true;
    assert!(bounding(&build(&container).unwrap()).contains(&json!("CAP_MKNOD")));
    for (privileged, unified, expected) in [
        (false, true, nix::mount::MsFlags::MS_NODEV),
        (true, true, nix::mount::MsFlags::empty()),
        (false, false, nix::mount::MsFlags::empty()),
    ] {
        assert_eq!(root_flags(privileged, unified), expected);
    }
}
