//! The little that the agent and the shim do with cgroups themselves, on v1, hybrid and v2: killing and removing trees of
//! them, and reading whether the kernel killed for memory. Limits are libcontainer's work.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    /// With its controllers.
    V1(Vec<String>),
    V2,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount_point: PathBuf,
    version: Version,
}

const KILL_ROUNDS: u32 = 100;
const REMOVE_ROUNDS: u32 = 50;
const ROUND: Duration = Duration::from_millis(20);

/// Kills every process in the cgroup and below it, in all hierarchies, and waits until none is left.
pub fn kill_all(path: &Path) -> io::Result<()> {
    let folders = existing(path)?;
    for _ in 0..KILL_ROUNDS {
        let mut found = false;
        for folder in &folders {
            found |= kill_tree(folder)?;
        }
        if !found {
            return Ok(());
        }
        std::thread::sleep(ROUND);
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("processes in cgroup {} do not end", path.display())))
}

/// Removes the cgroup and those below it from all hierarchies. There must be no process left in them.
pub fn remove(path: &Path) -> io::Result<()> {
    for folder in existing(path)? {
        remove_tree(&folder)?;
    }
    Ok(())
}

/// Removes the cgroup where it is empty; where it is not, or is not there, it stays so.
pub fn remove_if_empty(path: &Path) -> io::Result<()> {
    for folder in existing(path)? {
        drop(fs::remove_dir(folder));
    }
    Ok(())
}

/// Moves the process there, in all hierarchies that take it. Failing in one leaves the process where it was there.
pub fn join(path: &Path, process: i32) -> io::Result<()> {
    for hierarchy in hierarchies()? {
        if matches!(&hierarchy.version, Version::V1(controllers) if controllers.iter().any(|name| name == "cpuset")) {
            continue;
        }
        let folder = inside(&hierarchy.mount_point, path);
        if fs::create_dir_all(&folder).is_ok() {
            drop(fs::write(folder.join("cgroup.procs"), process.to_string()));
        }
    }
    Ok(())
}

/// How often the kernel killed a process of the cgroup for want of memory.
pub fn memory_kills(path: &Path) -> u64 {
    let Ok(hierarchies) = hierarchies() else { return 0 };
    let count = |hierarchy: &Hierarchy| {
        let file = match &hierarchy.version {
            Version::V1(controllers) if controllers.iter().any(|name| name == "memory") => "memory.oom_control",
            Version::V1(_) => return None,
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(inside(&hierarchy.mount_point, path).join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
    };
    hierarchies.iter().filter_map(count).max().unwrap_or(0)
}

/// Whether the machine's controllers are in the one hierarchy of cgroup v2.
pub fn is_unified() -> bool {
    hierarchies().is_ok_and(|hierarchies| hierarchies.iter().all(|hierarchy| hierarchy.version == Version::V2))
}

/// Whether swap can be limited together with memory.
pub fn limits_swap() -> bool {
    hierarchies().is_ok_and(|hierarchies| {
        hierarchies.iter().any(|hierarchy| hierarchy.mount_point.join("memory.memsw.limit_in_bytes").exists())
    })
}

/// A limit of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// As cgroup v1 counts them: 1024 for one processor.
    CpuShares(u64),
    /// Of each 100 ms.
    CpuQuotaUs(i64),
    MemoryBytes(i64),
}

/// Sets a limit of the cgroup, which is made where it is not there. Where the machine has no such controller nothing happens.
pub fn set(path: &Path, setting: Setting) -> io::Result<()> {
    for hierarchy in hierarchies()? {
        let Some((controller, file, text)) = words(&hierarchy.version, setting) else { continue };
        let folder = inside(&hierarchy.mount_point, path);
        fs::create_dir_all(&folder)?;
        if hierarchy.version == Version::V2 {
            enable(&hierarchy.mount_point, path, controller);
        }
        let file = folder.join(file);
        // Of hybrid machines' v2 hierarchy the controllers are elsewhere.
        if hierarchy.version != Version::V2 || file.exists() {
            fs::write(file, text)?;
        }
    }
    Ok(())
}

/// The controller, its file and what is written to it; `None` when the hierarchy has no such controller.
fn words(version: &Version, setting: Setting) -> Option<(&'static str, &'static str, String)> {
    let controller = match setting {
        Setting::CpuShares(_) | Setting::CpuQuotaUs(_) => "cpu",
        Setting::MemoryBytes(_) => "memory",
    };
    let (file, text) = match (version, setting) {
        (Version::V1(controllers), _) if !controllers.iter().any(|name| name == controller) => return None,
        (Version::V1(_), Setting::CpuShares(shares)) => ("cpu.shares", shares.to_string()),
        (Version::V1(_), Setting::CpuQuotaUs(quota)) => ("cpu.cfs_quota_us", quota.to_string()),
        (Version::V1(_), Setting::MemoryBytes(bytes)) => ("memory.limit_in_bytes", bytes.to_string()),
        // From 2…262144 to 1…10000 (KEP-2254).
        (Version::V2, Setting::CpuShares(shares)) => {
            ("cpu.weight", (1 + shares.clamp(2, 262_144).saturating_sub(2) * 9999 / 262_142).to_string())
        }
        (Version::V2, Setting::CpuQuotaUs(quota)) => ("cpu.max", format!("{quota} 100000")),
        (Version::V2, Setting::MemoryBytes(bytes)) => ("memory.max", bytes.to_string()),
    };
    Some((controller, file, text))
}

/// Hands a controller down from the root to the cgroup; where that is not allowed, its file will not be there.
fn enable(mount_point: &Path, path: &Path, controller: &str) {
    let mut folder = mount_point.to_owned();
    for part in path.strip_prefix("/").unwrap_or(path).components() {
        drop(fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}")));
        folder.push(part);
    }
}

fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    Ok(parse_mounts(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// The cgroup hierarchies below `/sys/fs/cgroup`, from the text of `mountinfo` (proc_pid_mountinfo(5)).
fn parse_mounts(mountinfo: &str) -> Vec<Hierarchy> {
    let parse = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mount_point = PathBuf::from(mount.split(' ').nth(4)?);
        let mut fields = file_system.split(' ');
        let version = match fields.next()? {
            "cgroup2" => Version::V2,
            "cgroup" => Version::V1(fields.nth(1)?.split(',').map(str::to_owned).collect()),
            _ => return None,
        };
        mount_point.starts_with("/sys/fs/cgroup").then_some(Hierarchy { mount_point, version })
    };
    let mut found: Vec<Hierarchy> = mountinfo.lines().filter_map(parse).collect();
    found.dedup_by(|one, other| one.mount_point == other.mount_point);
    found
}

fn inside(mount_point: &Path, path: &Path) -> PathBuf {
    mount_point.join(path.strip_prefix("/").unwrap_or(path))
}

fn existing(path: &Path) -> io::Result<Vec<PathBuf>> {
    assert!(path.components().count() > 1, "the root cgroup is never killed or removed");
    let folders = hierarchies()?.into_iter().map(|hierarchy| inside(&hierarchy.mount_point, path));
    Ok(folders.filter(|folder| folder.is_dir()).collect())
}

/// Sends SIGKILL to everything in the tree; tells whether there was anything.
fn kill_tree(folder: &Path) -> io::Result<bool> {
    let mut found = false;
    for child in children(folder)? {
        found |= kill_tree(&child)?;
    }
    let processes = match fs::read_to_string(folder.join("cgroup.procs")) {
        Ok(processes) => processes,
        Err(error) if is_gone(&error) => return Ok(found),
        Err(error) => return Err(error),
    };
    for process in processes.lines().filter_map(|line| line.parse::<i32>().ok()) {
        if process == 0 {
            continue;
        }
        found = true;
        let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
    }
    Ok(found)
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for child in children(folder)? {
        remove_tree(&child)?;
    }
    let mut rounds = 0;
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) && rounds < REMOVE_ROUNDS => rounds += 1,
            Err(error) => return Err(error),
        }
        std::thread::sleep(ROUND);
    }
}

fn children(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let list = match fs::read_dir(folder) {
        Ok(list) => list,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut folders = Vec::new();
    for entry in list {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_the_words_of_their_hierarchy() {
        let v1 = |names: &[&str]| Version::V1(names.iter().map(|name| (*name).to_owned()).collect());
        for (version, setting, expected) in [
            (v1(&["rw", "cpu"]), Setting::CpuShares(512), Some(("cpu", "cpu.shares", "512"))),
            (v1(&["rw", "cpuset"]), Setting::CpuShares(512), None),
            (v1(&["rw", "memory"]), Setting::MemoryBytes(7), Some(("memory", "memory.limit_in_bytes", "7"))),
            (Version::V2, Setting::CpuShares(2), Some(("cpu", "cpu.weight", "1"))),
            (Version::V2, Setting::CpuShares(1024), Some(("cpu", "cpu.weight", "39"))),
            (Version::V2, Setting::CpuShares(262_144), Some(("cpu", "cpu.weight", "10000"))),
            (Version::V2, Setting::CpuQuotaUs(50_000), Some(("cpu", "cpu.max", "50000 100000"))),
        ] {
            let expected = expected.map(|(controller, file, text)| (controller, file, text.to_owned()));
            assert_eq!(words(&version, setting), expected);
        }
    }

    #[test]
    fn hierarchies_are_read_from_mountinfo() {
        let hybrid = "\
30 23 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
33 23 0:29 / /mnt/elsewhere rw - cgroup cgroup rw,memory
";
        let found = parse_mounts(hybrid);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].mount_point, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found[0].version, Version::V1(["rw", "cpu", "cpuacct"].map(str::to_owned).to_vec()));
        assert_eq!(found[1].version, Version::V2);

        let unified = parse_mounts("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(unified, [Hierarchy { mount_point: "/sys/fs/cgroup".into(), version: Version::V2 }]);
    }
}
