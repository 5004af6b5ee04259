//! Facts about the machine, read from `/proc` and `/etc`.

use std::{fs, path::Path};

use k8s_openapi::api::core::v1::NodeSystemInfo;

use crate::{config::Capacity, node::eviction::Supply};

/// What the machine has.
pub fn capacity(data_dir: Option<&Path>) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let memory_bytes = meminfo_bytes("MemTotal").unwrap_or(1 << 30);
    let ephemeral_storage_bytes = disk(data_dir.unwrap_or(Path::new("/"))).map_or(0, |disk| disk.bytes.total);
    Capacity { cpu_millis: cpus * 1000, memory_bytes, ephemeral_storage_bytes }
}

/// One line of `/proc/meminfo`, in bytes.
fn meminfo_bytes(field: &str) -> Option<u64> {
    meminfo_field(&fs::read_to_string("/proc/meminfo").ok()?, field)
}

fn meminfo_field(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    pub bytes: Supply,
    pub inodes: Supply,
}

/// The file system that `path` is on.
pub fn disk(path: &Path) -> Option<Disk> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let unit = stat.fragment_size();
    Some(Disk {
        bytes: Supply { available: stat.blocks_available() * unit, total: stat.blocks() * unit },
        inodes: Supply { available: stat.files_available(), total: stat.files() },
    })
}

/// The machine's memory, in bytes.
pub fn memory() -> Option<Supply> {
    Some(Supply { available: meminfo_bytes("MemAvailable")?, total: meminfo_bytes("MemTotal")? })
}

/// How many more processes may run, of the most that are allowed.
pub fn processes() -> Option<Supply> {
    let limit = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let most = limit("/proc/sys/kernel/pid_max")?.min(limit("/proc/sys/kernel/threads-max").unwrap_or(u64::MAX));
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let now: u64 = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(Supply { available: most.saturating_sub(now), total: most })
}

/// `status.nodeInfo`. `runtime` is `name://version`.
pub fn system_info(kubelet_version: &str, runtime: String) -> NodeSystemInfo {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let machine_id = read("/etc/machine-id");
    let product = read("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime,
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: kubelet_version.to_owned(),
        system_uuid: if product.is_empty() { machine_id.clone() } else { product },
        machine_id,
        operating_system: "linux".to_owned(),
        os_image: os_image(&read("/etc/os-release")),
        swap: None,
    }
}

fn os_image(os_release: &str) -> String {
    let pretty = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The architecture's name in Go, as `kubernetes.io/arch` has it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo_lines() {
        let text = "MemTotal:       24689240 kB\nMemFree:        123 kB\nMemAvailable:     2 kB\n";
        assert_eq!(meminfo_field(text, "MemTotal"), Some(24_689_240 * 1024));
        assert_eq!(meminfo_field(text, "MemAvailable"), Some(2048));
        assert_eq!(meminfo_field(text, "Mem"), None);
    }

    #[test]
    fn reads_the_name_of_the_system() {
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"), "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(os_image(""), "Linux");
    }

    #[test]
    fn this_machine_has_processors_and_memory() {
        let capacity = capacity(None);
        assert!(capacity.cpu_millis >= 1000);
        assert!(capacity.memory_bytes > 0);
    }
}
