//! Containers by libcontainer: mounted root, configuration, start, commands, and cleaning up.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use libcontainer::{container::builder::ContainerBuilder, syscall::syscall::SyscallType};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, OpenHow, ResolveFlag, fcntl, open, openat2},
    mount::{MntFlags, mount, umount2},
    sys::stat::{Mode, mkdirat},
    unistd::{chdir, pipe2},
};
use serde_json::Value;

use super::{
    super::{
        cgroup,
        spec::{self, Device, SandboxFiles, Surroundings},
        state::{ContainerFolder, ContainerRecord, SandboxFolder, SandboxRecord, ShimRecord},
        users::Accounts,
    },
    executor::CommandExecutor,
    setup::protect_from_memory_shortage,
};

/// A process that was started, with the reading ends of its outputs.
pub struct Started {
    pub process: i32,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Mounts the container's root, writes its configuration, creates and starts it.
pub fn start(
    folder: &SandboxFolder,
    sandbox: &SandboxRecord,
    shim: &ShimRecord,
    record: &ContainerRecord,
) -> Result<Started, String> {
    let bundle = folder.container(&record.id);
    mount_root(&bundle, record).map_err(|error| format!("failed to mount rootfs: {error}"))?;
    let configuration = configure(folder, sandbox, shim, record, &bundle)?;
    let text = serde_json::to_vec(&configuration).map_err(|error| error.to_string())?;
    fs::write(bundle.0.join("config.json"), text).map_err(|error| format!("cannot write config.json: {error}"))?;
    let directory = configuration["process"]["cwd"].as_str().unwrap_or("/");
    make_folder_inside(&bundle.root(), Path::new(directory))
        .map_err(|error| format!("cannot make the working directory {directory}: {error}"))?;

    let outputs = Outputs::new().map_err(|error| error.to_string())?;
    let build = || {
        let mut container = builder(folder, &record.id, outputs.writers)?
            .validate_id()?
            .as_init(&bundle.0)
            .with_systemd(false)
            .with_detach(true)
            .build()?;
        container.start()?;
        Ok(container)
    };
    let result = build().map_err(|error: libcontainer::error::LibcontainerError| start_message(&error));
    protect_from_memory_shortage();
    let container = result?;
    let process = container.pid().ok_or("the container has no process")?.as_raw();
    Ok(Started { process, stdout: outputs.stdout, stderr: outputs.stderr })
}

/// Starts a further command in a running container.
pub fn exec(folder: &SandboxFolder, id: &str, command: &[String]) -> Result<Started, String> {
    let bundle = folder.container(id);
    let text = fs::read(bundle.0.join("config.json")).map_err(|error| format!("cannot read config.json: {error}"))?;
    let configuration: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let process_file = bundle.0.join("exec.json");
    fs::write(&process_file, spec::exec_process(&configuration, command).to_string())
        .map_err(|error| format!("cannot write exec.json: {error}"))?;
    let outputs = Outputs::new().map_err(|error| error.to_string())?;
    let build = || builder(folder, id, outputs.writers)?.as_tenant().with_process(Some(process_file)).with_detach(true).build();
    let result = build().map_err(|error| start_message(&error));
    protect_from_memory_shortage();
    Ok(Started { process: result?.as_raw(), stdout: outputs.stdout, stderr: outputs.stderr })
}

/// Removes what a started container leaves behind: processes, cgroup, libcontainer's state, its mounted root.
pub fn clean_up(folder: &SandboxFolder, id: &str, cgroup: &Path) -> io::Result<()> {
    cgroup::kill_all(cgroup)?;
    cgroup::remove(cgroup)?;
    match fs::remove_dir_all(folder.libcontainer().join(id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match umount2(&folder.container(id).root(), MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Outputs {
    stdout: OwnedFd,
    stderr: OwnedFd,
    writers: [OwnedFd; 2],
}

impl Outputs {
    fn new() -> io::Result<Outputs> {
        let (stdout, stdout_writer) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, stderr_writer) = pipe2(OFlag::O_CLOEXEC)?;
        for reader in [&stdout, &stderr] {
            fcntl(reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Outputs { stdout, stderr, writers: [stdout_writer, stderr_writer] })
    }
}

fn builder(
    folder: &SandboxFolder,
    id: &str,
    [stdout, stderr]: [OwnedFd; 2],
) -> Result<ContainerBuilder, libcontainer::error::LibcontainerError> {
    let stdin = File::open("/dev/null").map_err(libcontainer::error::LibcontainerError::OtherIO)?;
    let builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(folder.libcontainer())?
        .with_executor(CommandExecutor)
        .with_stdin(stdin)
        .with_stdout(stdout)
        .with_stderr(stderr);
    Ok(builder)
}

fn configure(
    folder: &SandboxFolder,
    sandbox: &SandboxRecord,
    shim: &ShimRecord,
    record: &ContainerRecord,
    bundle: &ContainerFolder,
) -> Result<Value, String> {
    let accounts = Accounts::read(&bundle.root()).map_err(|error| format!("cannot read the image's users: {error}"))?;
    let image_user = record.defaults.user.as_deref().unwrap_or_default();
    let credentials = accounts.resolve(&record.config.security, image_user)?;
    let existing = |path: PathBuf| path.exists().then_some(path);
    let shared_memory = if sandbox.config.host_ipc { PathBuf::from("/dev/shm") } else { folder.shared_memory() };
    let files = SandboxFiles { resolver: existing(folder.resolver()), hostname: existing(folder.hostname()), shared_memory };
    let devices = if record.config.security.privileged { devices(Path::new("/dev")) } else { Vec::new() };
    let surroundings = Surroundings {
        unified_cgroups: cgroup::is_unified(),
        limits_swap: cgroup::limits_swap(),
        devices,
        capabilities: own_capabilities(),
    };
    spec::configuration(sandbox, shim, record, &credentials, &files, &surroundings)
}

/// The capabilities that this process has and so can give, one bit each (proc_pid_status(5), `CapPrm`).
fn own_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Mounts the image's layers with a writable one on top. The layers' names are short and relative, as the mount's options
/// must fit a page.
fn mount_root(bundle: &ContainerFolder, record: &ContainerRecord) -> io::Result<()> {
    let [upper, work, empty] = ["upper", "work", "empty"].map(|name| bundle.0.join(name));
    for folder in [&bundle.root(), &upper, &work, &empty] {
        fs::create_dir_all(folder)?;
    }
    let lower = if record.layers.is_empty() { empty.display().to_string() } else { record.layers.join(":") };
    let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
    let back = std::env::current_dir()?;
    if !record.layers.is_empty() {
        chdir(&record.layers_folder)?;
    }
    let flags = spec::root_flags(record.config.security.privileged, cgroup::is_unified());
    let result = mount(Some("overlay"), &bundle.root(), Some("overlay"), flags, Some(options.as_str()));
    chdir(&back)?;
    Ok(result?)
}

/// Makes the folder and its parents, resolving every link inside the root.
fn make_folder_inside(root: &Path, path: &Path) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(root, flags, Mode::empty())?;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut walked = PathBuf::from(".");
    let mut folder = openat2(&root, &walked, how)?;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        walked.push(name);
        folder = match openat2(&root, &walked, how) {
            Ok(found) => found,
            Err(Errno::ENOENT) => {
                mkdirat(&folder, name, Mode::from_bits_truncate(0o755))?;
                openat2(&root, &walked, how)?
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(())
}

/// The machine's device nodes, without those that each container has of its own.
fn devices(folder: &Path) -> Vec<Device> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() && !["pts", "shm", "fd", "mqueue", ".lxc", ".udev"].iter().any(|own| name == *own) {
            found.extend(devices(&path));
            continue;
        }
        let kind = metadata.file_type();
        let letter = match (kind.is_char_device(), kind.is_block_device()) {
            (true, _) => 'c',
            (_, true) => 'b',
            _ => continue,
        };
        if ["console", "ptmx", "tty", "null", "zero", "full", "random", "urandom"].iter().any(|own| name == *own) {
            continue;
        }
        let number = metadata.rdev();
        found.push(Device {
            path,
            kind: letter,
            major: nix::sys::stat::major(number),
            minor: nix::sys::stat::minor(number),
            mode: metadata.mode() & 0o7777,
            user: metadata.uid(),
            group: metadata.gid(),
        });
    }
    found
}

/// The deepest cause, which says what is wrong in the pod; what is around it says how far libcontainer came.
fn start_message(error: &dyn std::error::Error) -> String {
    let mut messages = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        messages.push(error.to_string());
        cause = error.source();
    }
    messages.dedup();
    format!("unable to start container process: {}", messages.join(": "))
}
