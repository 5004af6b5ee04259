//! Writes the OCI runtime configuration (`config.json` of the runtime specification 1.0) of a container: a pure function of
//! the records. Defaults are those of the CRI runtimes.

mod capabilities;
mod mounts;
mod resources;

use std::path::PathBuf;

use serde_json::{Value, json};

pub use self::{capabilities::verify, mounts::root_flags};
use self::{
    capabilities::{capabilities, oom_score_adjustment},
    mounts::mounts,
    resources::resources,
};
use super::{
    state::{ContainerRecord, SandboxRecord, ShimRecord},
    users::Credentials,
};

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
    let capabilities = capabilities(&config.security, surroundings)?;
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

#[cfg(test)]
mod tests;
