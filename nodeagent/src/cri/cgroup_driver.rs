//! Whether the container runtime makes cgroups itself or by systemd: the parent that a pod's sandbox is given has another form.

use std::{collections::HashMap, path::Path};

use serde_json::Value;

/// Who makes the cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    Cgroupfs,
    Systemd,
}

impl CgroupDriver {
    /// From the verbose status of a runtime that does not know the call for it (containerd before 2.0): its configuration is in
    /// `config`, in JSON.
    pub fn from_status(info: &HashMap<String, String>) -> CgroupDriver {
        let config: Value = info.get("config").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let containerd = &config["containerd"];
        let runtime = containerd["defaultRuntimeName"].as_str().unwrap_or("runc");
        match containerd["runtimes"][runtime]["options"]["SystemdCgroup"].as_bool() {
            Some(true) => CgroupDriver::Systemd,
            Some(false) | None => CgroupDriver::Cgroupfs,
        }
    }

    /// The parent of a pod's cgroups. systemd's are slices below `kubepods.slice`, each with the names of those above it in its
    /// own, and without dashes in the parts (`pkg/kubelet/cm/cgroup_manager_linux.go: ToSystemd`).
    pub fn parent(self, parent: &str) -> String {
        let relative = parent.trim_start_matches('/');
        if self == CgroupDriver::Cgroupfs {
            return format!("/{relative}");
        }
        let (mut name, mut path) = ("kubepods".to_owned(), "/kubepods.slice".to_owned());
        for part in Path::new(relative).components() {
            name = format!("{name}-{}", part.as_os_str().to_string_lossy().replace('-', "_"));
            path = format!("{path}/{name}.slice");
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_bear_the_names_of_those_above() {
        for (driver, parent, expected) in [
            (CgroupDriver::Cgroupfs, "burstable/pod1-2", "/burstable/pod1-2"),
            (CgroupDriver::Cgroupfs, "/test/pod1", "/test/pod1"),
            (CgroupDriver::Systemd, "pod1-2", "/kubepods.slice/kubepods-pod1_2.slice"),
            (
                CgroupDriver::Systemd,
                "burstable/pod1-2",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
            ),
        ] {
            assert_eq!(driver.parent(parent), expected);
        }
    }

    #[test]
    fn containerd_tells_it_in_its_configuration() {
        let of = |text: &str| CgroupDriver::from_status(&[("config".to_owned(), text.to_owned())].into());
        let systemd = r#"{"containerd":{"defaultRuntimeName":"r","runtimes":{"r":{"options":{"SystemdCgroup":true}}}}}"#;
        assert_eq!(of(systemd), CgroupDriver::Systemd);
        assert_eq!(of(&systemd.replace("true", "false")), CgroupDriver::Cgroupfs);
        assert_eq!(of("no JSON"), CgroupDriver::Cgroupfs);
        assert_eq!(CgroupDriver::from_status(&HashMap::new()), CgroupDriver::Cgroupfs);
    }
}
