//! What a container may do beyond what any process may: capabilities, and how far its out-of-memory score can go.

use std::collections::BTreeSet;

use super::Surroundings;
use crate::runtime::ContainerSecurity;

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
pub(super) const ALL_CAPABILITIES: [&str; 41] = [
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

/// On cgroup v2 nothing keeps a container from a device whose node it can make, so that it may not make any.
const MAKE_NODES: &str = "MKNOD";

/// Refuses a container whose capabilities are unknown or could only be given at the price of every device of the machine.
///
/// # Errors
/// The message of `CreateContainerError`.
pub fn verify(security: &ContainerSecurity, unified_cgroups: bool) -> Result<(), String> {
    if security.privileged {
        return Ok(());
    }
    for text in security.add_capabilities.iter().filter(|text| !text.eq_ignore_ascii_case("ALL")) {
        if parse(text)? == MAKE_NODES && unified_cgroups {
            return Err("capability MKNOD cannot be added: with cgroup v2 this runtime filters no devices; only a privileged \
                        container may make device nodes"
                .to_owned());
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<&'static str, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL_CAPABILITIES.into_iter().find(|known| *known == name).ok_or_else(|| format!("unknown capability {text:?}"))
}

/// The number of `CAP_SYS_RESOURCE`.
const SYS_RESOURCE: u32 = 24;

/// Without `CAP_SYS_RESOURCE` (a node agent in a container, say) the kernel lets nobody go below zero.
pub(super) fn oom_score_adjustment(asked: i32, capabilities: u64) -> i32 {
    if capabilities >> SYS_RESOURCE & 1 == 1 { asked } else { asked.max(0) }
}

/// The capabilities by their names in the runtime specification, or why they cannot be given.
pub(super) fn capabilities(security: &ContainerSecurity, surroundings: &Surroundings) -> Result<BTreeSet<String>, String> {
    let available = surroundings.capabilities;
    let is_available =
        |name: &&str| ALL_CAPABILITIES.iter().position(|known| known == name).is_some_and(|number| available >> number & 1 == 1);
    let everything = ALL_CAPABILITIES.iter().copied().filter(|name| is_available(name));
    let mut names: BTreeSet<&str> = BTreeSet::new();
    if security.privileged {
        names.extend(everything);
        return Ok(names.into_iter().map(|name| format!("CAP_{name}")).collect());
    }
    verify(security, surroundings.unified_cgroups)?;
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
    if surroundings.unified_cgroups {
        names.remove(MAKE_NODES);
    }
    Ok(names.into_iter().filter(is_available).map(|name| format!("CAP_{name}")).collect())
}
