//! What is mounted in a container.

use std::path::Path;

use nix::mount::MsFlags;
use serde_json::{Value, json};

use super::{SandboxFiles, Surroundings};
use crate::{
    embedded::state::ContainerRecord,
    runtime::{Mount, MountPropagation},
};

/// The mounts in the order in which they are made.
pub(super) fn mounts(
    container: &ContainerRecord,
    files: &SandboxFiles,
    surroundings: &Surroundings,
) -> Result<Vec<Value>, String> {
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
        let mut options = vec!["rbind", propagation, access];
        if surroundings.unified_cgroups && !privileged {
            // Without a filter of devices, no device node that lies in a volume may work.
            options.push("nodev");
        }
        mounts.push(bind(&mount.container_path.to_string_lossy(), &mount.host_path, &options));
    }
    Ok(mounts)
}

/// How the container's root is mounted. The runtime filters devices by cgroup v1 alone: where there is only v2, device nodes in
/// the image, or made by the container, must not work.
pub fn root_flags(privileged: bool, unified_cgroups: bool) -> MsFlags {
    if unified_cgroups && !privileged { MsFlags::MS_NODEV } else { MsFlags::empty() }
}
