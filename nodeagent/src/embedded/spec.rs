//! Writes the OCI runtime configuration (`config.json` of the runtime specification 1.0) of a container: a pure function of
//! the records. Defaults are those of the CRI runtimes.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    state::{ContainerRecord, SandboxRecord, ShimRecord},
    users::Credentials,
};
use crate::runtime::{ContainerResources, ContainerSecurity, Mount, MountPropagation};

/// What the configuration needs to know of the machine.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Whether cgroup v2 is the only one.
    pub unified_cgroups: bool,
    /// Whether swap can be limited together with memory.
    pub limits_swap: bool,
    /// The machine's devices, for privileged containers.
    pub devices: Vec<Device>,
    /// The capabilities that can be given at all: this process's own, one bit each.
    pub capabilities: u64,
}

/// A device node of the machine.
#[derive(Clone, Debug)]
pub struct Device {
    pub path: PathBuf,
    pub kind: char,
    pub major: u64,
    pub minor: u64,
    pub mode: u32,
    pub user: u32,
    pub group: u32,
}

/// The paths that the sandbox brings into each of its containers.
#[derive(Clone, Debug, Default)]
pub struct SandboxFiles {
    pub resolver: Option<PathBuf>,
    pub hostname: Option<PathBuf>,
    pub shared_memory: PathBuf,
}

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// In the kernel's order (`linux/capability.h`).
const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of `CAP_SYS_RESOURCE`.
const SYS_RESOURCE: u32 = 24;

const MASKED_PATHS: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The container's configuration, or why it cannot be run.
pub fn configuration(
    sandbox: &SandboxRecord,
    shim: &ShimRecord,
    container: &ContainerRecord,
    credentials: &Credentials,
    files: &SandboxFiles,
    surroundings: &Surroundings,
) -> Result<Value, String> {
    let security = &container.config.security;
    let mut configuration = json!({
        "ociVersion": "1.0.2",
        "process": process(sandbox, container, credentials, surroundings)?,
        "root": { "path": "rootfs", "readonly": security.read_only_root_filesystem },
        "mounts": mounts(container, files, surroundings)?,
        "linux": {
            "cgroupsPath": container.cgroup,
            "namespaces": namespaces(sandbox, shim, surroundings),
            "resources": resources(&container.config.resources, security, surroundings),
        },
    });
    if security.privileged {
        let devices: Vec<Value> = surroundings
            .devices
            .iter()
            .map(|device| {
                json!({
                    "path": device.path, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
                    "fileMode": device.mode, "uid": device.user, "gid": device.group,
                })
            })
            .collect();
        configuration["linux"]["devices"] = json!(devices);
    } else {
        configuration["linux"]["maskedPaths"] = json!(MASKED_PATHS);
        configuration["linux"]["readonlyPaths"] = json!(READ_ONLY_PATHS);
    }
    Ok(configuration)
}

/// The process of a command run later in the container: the container's own, with other arguments.
pub fn exec_process(configuration: &Value, command: &[String]) -> Value {
    let mut process = configuration["process"].clone();
    process["args"] = json!(command);
    process["terminal"] = json!(false);
    process
}

/// The command line: the pod's `command` replaces the entrypoint and hides the image's command; `args` replaces that.
fn arguments(container: &ContainerRecord) -> Result<Vec<String>, String> {
    let (command, args) = (&container.config.command, &container.config.args);
    let defaults = &container.defaults;
    let mut arguments = if command.is_empty() { defaults.entrypoint.clone().unwrap_or_default() } else { command.clone() };
    if !args.is_empty() {
        arguments.extend(args.iter().cloned());
    } else if command.is_empty() {
        arguments.extend(defaults.cmd.iter().flatten().cloned());
    }
    if arguments.first().is_none_or(String::is_empty) {
        return Err("no command specified".to_owned());
    }
    Ok(arguments)
}

/// The image's variables, then the pod's, which win; each name once.
fn environment(sandbox: &SandboxRecord, container: &ContainerRecord) -> Vec<String> {
    let mut environment: Vec<String> = Vec::new();
    let mut set = |variable: String| {
        let name_length = variable.find('=').map_or(variable.len(), |equals| equals + 1);
        match environment.iter_mut().find(|known| known.get(..name_length) == variable.get(..name_length)) {
            Some(known) => *known = variable,
            None => environment.push(variable),
        }
    };
    set(DEFAULT_PATH.to_owned());
    set(format!("HOSTNAME={}", sandbox.config.hostname));
    for variable in container.defaults.env.iter().flatten() {
        set(variable.clone());
    }
    for (name, value) in &container.config.environment {
        set(format!("{name}={value}"));
    }
    environment
}

fn process(
    sandbox: &SandboxRecord,
    container: &ContainerRecord,
    credentials: &Credentials,
    surroundings: &Surroundings,
) -> Result<Value, String> {
    let config = &container.config;
    let working_directory = config
        .working_directory
        .clone()
        .or_else(|| container.defaults.working_dir.clone())
        .filter(|directory| !directory.is_empty())
        .unwrap_or_else(|| "/".to_owned());
    let capabilities = capabilities(&config.security, surroundings.capabilities)?;
    let mut process = json!({
        "terminal": false,
        "user": {
            "uid": credentials.user,
            "gid": credentials.group,
            "additionalGids": credentials.additional_groups,
        },
        "args": arguments(container)?,
        "env": environment(sandbox, container),
        "cwd": working_directory,
        "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        "oomScoreAdj": oom_score_adjustment(config.resources.oom_score_adj, surroundings.capabilities),
    });
    if config.security.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    Ok(process)
}

/// Without `CAP_SYS_RESOURCE` (a node agent in a container, say) the kernel lets nobody go below zero.
fn oom_score_adjustment(asked: i32, capabilities: u64) -> i32 {
    if capabilities >> SYS_RESOURCE & 1 == 1 { asked } else { asked.max(0) }
}

fn capabilities(security: &ContainerSecurity, available: u64) -> Result<BTreeSet<String>, String> {
    let is_available =
        |name: &&str| ALL_CAPABILITIES.iter().position(|known| known == name).is_some_and(|number| available >> number & 1 == 1);
    let everything = ALL_CAPABILITIES.iter().copied().filter(|name| is_available(name));
    let mut names: BTreeSet<&str> = BTreeSet::new();
    if security.privileged {
        names.extend(everything);
        return Ok(names.into_iter().map(|name| format!("CAP_{name}")).collect());
    }
    let parse = |text: &String| {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        ALL_CAPABILITIES.into_iter().find(|known| *known == name).ok_or_else(|| format!("unknown capability {text:?}"))
    };
    let is_all = |text: &String| text.eq_ignore_ascii_case("ALL");
    names.extend(DEFAULT_CAPABILITIES);
    if security.add_capabilities.iter().any(is_all) {
        names.extend(everything);
    }
    if security.drop_capabilities.iter().any(is_all) {
        names.clear();
    }
    for text in security.add_capabilities.iter().filter(|text| !is_all(text)) {
        names.insert(parse(text)?);
    }
    for text in security.drop_capabilities.iter().filter(|text| !is_all(text)) {
        names.remove(parse(text)?);
    }
    Ok(names.into_iter().filter(is_available).map(|name| format!("CAP_{name}")).collect())
}

fn namespaces(sandbox: &SandboxRecord, shim: &ShimRecord, surroundings: &Surroundings) -> Vec<Value> {
    let held = |kind: &str, file: &str| json!({ "type": kind, "path": format!("/proc/{}/ns/{file}", shim.process) });
    let mut namespaces = vec![json!({ "type": "mount" })];
    if !sandbox.config.host_network {
        namespaces.push(held("network", "net"));
        namespaces.push(held("uts", "uts"));
    }
    if !sandbox.config.host_ipc {
        namespaces.push(held("ipc", "ipc"));
    }
    match shim.pause {
        Some(pause) => namespaces.push(json!({ "type": "pid", "path": format!("/proc/{pause}/ns/pid") })),
        None if sandbox.config.host_pid => {}
        None => namespaces.push(json!({ "type": "pid" })),
    }
    if surroundings.unified_cgroups {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    namespaces
}

fn mounts(container: &ContainerRecord, files: &SandboxFiles, surroundings: &Surroundings) -> Result<Vec<Value>, String> {
    let privileged = container.config.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let bind = |destination: &str, source: &Path, options: &[&str]| json!({ "destination": destination, "type": "bind", "source": source, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
        bind("/dev/shm", &files.shared_memory, &["rbind", "rprivate", "rw"]),
    ];
    if !surroundings.unified_cgroups && !privileged {
        // On v1 the hierarchies of the whole machine would show; nothing needs them.
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    }
    let root_access = if container.config.security.read_only_root_filesystem { "ro" } else { "rw" };
    if let Some(resolver) = &files.resolver {
        mounts.push(bind("/etc/resolv.conf", resolver, &["rbind", "rprivate", root_access]));
    }
    if let Some(hostname) = &files.hostname {
        mounts.push(bind("/etc/hostname", hostname, &["rbind", "rprivate", root_access]));
    }
    let mut asked: Vec<&Mount> = container.config.mounts.iter().collect();
    asked.sort_by_key(|mount| mount.container_path.components().count());
    for mount in asked {
        if !mount.container_path.is_absolute() {
            return Err(format!("mount path {} is not absolute", mount.container_path.display()));
        }
        mounts.retain(|known| known["destination"].as_str() != mount.container_path.to_str());
        let propagation = match mount.propagation {
            MountPropagation::Private => "rprivate",
            MountPropagation::HostToContainer => "rslave",
            MountPropagation::Bidirectional => "rshared",
        };
        let access = if mount.read_only { "ro" } else { "rw" };
        mounts.push(bind(&mount.container_path.to_string_lossy(), &mount.host_path, &["rbind", propagation, access]));
    }
    Ok(mounts)
}

fn resources(limits: &ContainerResources, security: &ContainerSecurity, surroundings: &Surroundings) -> Value {
    let mut resources = json!({ "devices": device_rules(security.privileged) });
    if let Some(bytes) = limits.memory_limit_bytes.filter(|bytes| *bytes > 0) {
        resources["memory"] = json!({ "limit": bytes });
        if surroundings.limits_swap {
            resources["memory"]["swap"] = json!(bytes);
        }
    }
    let mut cpu = serde_json::Map::new();
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares > 0) {
        cpu.insert("shares".to_owned(), json!(shares));
    }
    if let Some(quota) = limits.cpu_quota_us.filter(|quota| *quota > 0) {
        cpu.insert("quota".to_owned(), json!(quota));
        cpu.insert("period".to_owned(), json!(limits.cpu_period_us.unwrap_or(100_000)));
    }
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(limit) = limits.pids_limit.filter(|limit| *limit > 0) {
        resources["pids"] = json!({ "limit": limit });
    }
    resources
}

/// Nodes of any device may be made; only the usual harmless ones may be used.
fn device_rules(privileged: bool) -> Value {
    if privileged {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    for (major, minor) in
        [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)]
    {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rules.push(rule);
    }
    json!(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        image::ProcessDefaults,
        runtime::{ContainerConfig, PodIdentity, SandboxConfig},
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
        Surroundings { unified_cgroups: true, limits_swap: false, devices: Vec::new(), capabilities: (1 << 41) - 1 }
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
        assert_eq!(parsed.linux().as_ref().unwrap().namespaces().as_ref().unwrap().len(), 6);
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
        let of = |security| capabilities(&security, (1 << 41) - 1).unwrap();
        assert_eq!(of(security(&[], &[])).len(), 14);
        assert_eq!(of(security(&["NET_ADMIN"], &["ALL"])), BTreeSet::from(["CAP_NET_ADMIN".to_owned()]));
        assert_eq!(of(security(&["ALL"], &["cap_kill"])).len(), 40);
        assert!(capabilities(&security(&["FLY"], &[]), u64::MAX).is_err());
        assert_eq!(
            capabilities(&security(&[], &[]), 0b1).unwrap(),
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
        assert_eq!(namespaces, json!([{ "type": "mount" }, { "type": "cgroup" }]));
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
}
