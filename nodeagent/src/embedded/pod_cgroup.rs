//! The cgroups above those of containers: a pod's own, and those of the burstable and of the best-effort pods
//! (`pkg/kubelet/cm/qos_container_manager_linux.go`). What containers ask for counts among the containers of one pod only; these
//! make it count between pods.

use std::{io, path::Path};

use super::{
    cgroup::{self, Setting},
    state::SandboxRecord,
};

const BURSTABLE: &str = "burstable";
const BEST_EFFORT: &str = "besteffort";
const LEAST_SHARES: u64 = 2;
const MOST_SHARES: u64 = 262_144;
/// The sandbox's process is in the pod's cgroup too, and is not the containers' to pay for.
const OWN_MEMORY_BYTES: i64 = 64 << 20;

/// Sets the limits of the pod's cgroup. Blocking.
pub fn limit(record: &SandboxRecord) -> io::Result<()> {
    let Some(pod) = record.cgroup.parent() else { return Ok(()) };
    let resources = record.config.resources;
    let settings = [
        resources.cpu_shares.map(Setting::CpuShares),
        resources.cpu_quota_us.map(Setting::CpuQuotaUs),
        resources.memory_limit_bytes.map(|bytes| Setting::MemoryBytes(bytes.saturating_add(OWN_MEMORY_BYTES))),
    ];
    settings.into_iter().flatten().try_for_each(|setting| cgroup::set(pod, setting))
}

/// Sets what the two classes have against the guaranteed pods, which are beside them. Blocking.
pub fn balance(root: &Path, pods: &[SandboxRecord]) -> io::Result<()> {
    cgroup::set(&root.join(BURSTABLE), Setting::CpuShares(burstable_shares(pods)))?;
    cgroup::set(&root.join(BEST_EFFORT), Setting::CpuShares(LEAST_SHARES))
}

/// What the burstable pods ask for together.
fn burstable_shares(pods: &[SandboxRecord]) -> u64 {
    let burstable =
        pods.iter().filter(|record| Path::new(record.config.cgroup_parent.trim_start_matches('/')).starts_with(BURSTABLE));
    let shares = burstable.filter_map(|record| record.config.resources.cpu_shares);
    shares.fold(0, u64::saturating_add).clamp(LEAST_SHARES, MOST_SHARES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{PodResources, SandboxConfig};

    #[test]
    fn burstable_pods_count_together() {
        let record = |cgroup_parent: &str, shares| SandboxRecord {
            id: "s".to_owned(),
            config: SandboxConfig {
                cgroup_parent: cgroup_parent.to_owned(),
                resources: PodResources { cpu_shares: Some(shares), ..PodResources::default() },
                ..SandboxConfig::default()
            },
            created_at: jiff::Timestamp::UNIX_EPOCH,
            cgroup: "/t/x/s".into(),
            addresses: Vec::new(),
            complete: true,
            stopped: false,
        };
        assert_eq!(burstable_shares(&[]), 2);
        let pods =
            [record("burstable/poda", 512), record("podb", 4096), record("burstable/podc", 256), record("besteffort/podd", 2)];
        assert_eq!(burstable_shares(&pods), 768);
    }
}
