//! Disks that fill: each master's folder lies on a small file system of its own, which is filled and given space again.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use nix::unistd::Pid;
use serde_json::Value;
use tokio::time::sleep;
use trireme_tests::{
    cluster::{Cluster, Pods},
    etcdctl::Etcdctl,
    wait::until,
};

const LIMIT: Duration = Duration::from_secs(60);
const DISK: &str = "size=256m";
/// What etcd's clients are told by a full disk.
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

/// The masters' folders, each on a file system of its own.
struct Disks<'c> {
    cluster: &'c Cluster,
    mounted: Vec<PathBuf>,
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {stderr}", arguments.join(" "));
}

impl<'c> Disks<'c> {
    /// Moves the folders of a cluster's masters, which stops meanwhile, and starts it again.
    fn under(cluster: &'c Cluster) -> Self {
        cluster.trireme(&["down"]);
        let mut disks = Self { cluster, mounted: Vec::new() };
        for master in cluster.masters() {
            let folder = disks.folder(&master);
            let (place, aside) = (folder.display().to_string(), format!("{}.aside", folder.display()));
            fs::rename(&folder, &aside).expect("the folder can be moved");
            fs::create_dir(&folder).expect("the folder can be made");
            run("mount", &["-t", "tmpfs", "-o", DISK, "trireme-test", &place]);
            disks.mounted.push(folder);
            run("cp", &["-a", &format!("{aside}/."), &place]);
            fs::remove_dir_all(&aside).expect("the folder can be removed");
        }
        cluster.up();
        disks
    }

    fn folder(&self, master: &str) -> PathBuf {
        self.cluster.folder().join("processes").join(master)
    }

    fn filler(&self, master: &str) -> PathBuf {
        self.folder(master).join("somebody-elses-file")
    }

    /// Fills a master's disk to the last byte.
    fn fill(&self, master: &str) {
        let mut file = File::create(self.filler(master)).expect("the file can be made");
        for size in [1 << 16, 1 << 10, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn free(&self, master: &str) {
        fs::remove_file(self.filler(master)).expect("the disk was filled");
    }

    fn resize(&self, master: &str, size: &str) {
        run("mount", &["-o", &format!("remount,size={size}"), &self.folder(master).display().to_string()]);
    }
}

impl Drop for Disks<'_> {
    fn drop(&mut self) {
        // A process holds its folder.
        let _ = self.cluster.try_trireme(&["down"]);
        for folder in &self.mounted {
            let _ = Command::new("umount").arg("-l").arg(folder).output();
        }
    }
}

fn pids(cluster: &Cluster) -> Vec<Pid> {
    cluster.masters().iter().map(|name| cluster.pid(name)).collect()
}

/// The members with an alarm, as etcdctl lists them.
fn alarms(etcdctl: &Etcdctl) -> Vec<String> {
    etcdctl.ok(&["alarm", "list"]).lines().filter(|line| line.contains("NOSPACE")).map(str::to_owned).collect()
}

async fn until_alarms(etcdctl: &Etcdctl, count: usize) {
    until(&format!("{count} members are out of space"), LIMIT, || async {
        let raised = alarms(etcdctl);
        if raised.len() == count { Ok(()) } else { Err(raised) }
    })
    .await;
}

/// Puts until it goes through.
async fn put(etcdctl: &Etcdctl, key: &str, value: &str) {
    until("a put goes through", LIMIT, || async {
        let output = etcdctl.run(&["put", key, value], "");
        if output.status.success() { Ok(()) } else { Err(said(&output)) }
    })
    .await;
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits until every member gives the same hash of all keys.
async fn until_equal(etcdctl: &Etcdctl) {
    until("all members hold the same", LIMIT, || async {
        let printed: Value = serde_json::from_str(&etcdctl.ok(&["get", "kept/0001", "-w", "json"])).expect("JSON");
        let revision = printed["header"]["revision"].to_string();
        let output = etcdctl.run(&["endpoint", "hashkv", "--rev", &revision, "-w", "json"], "");
        let hashes: Vec<Value> = serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {}", said(&output)))?;
        let hashes: Vec<String> = hashes.iter().map(|one| one["HashKV"]["hash"].to_string()).collect();
        if hashes.len() == 3 && hashes.iter().all(|hash| *hash == hashes[0]) { Ok(()) } else { Err(format!("{hashes:?}")) }
    })
    .await;
}

/// The endpoint of one master.
fn of(etcdctl: &Etcdctl, cluster: &Cluster, master: &str) -> Etcdctl {
    let position = cluster.masters().iter().position(|name| name == master).expect("it is a master");
    etcdctl.clone().with("ENDPOINTS", &etcdctl.endpoints()[position])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "mounts small file systems, which only root may"]
async fn masters_outlast_full_disks() {
    let cluster = Cluster::start(Pods::Hollow, 1);
    let disks = Disks::under(&cluster);
    let before = pids(&cluster);
    let (kubectl, etcdctl) = (cluster.kubectl(), Etcdctl::of(&cluster));
    let mut acknowledged: Vec<(String, String)> = Vec::new();
    let mut number = 0;
    let mut next = || {
        number += 1;
        (format!("kept/{number:04}"), format!("value {number}"))
    };

    // The leader's: another one leads, and writes go on.
    let leader = cluster.leader().await;
    disks.fill(&leader);
    for _ in 0..20 {
        let (key, value) = next();
        put(&etcdctl, &key, &value).await;
        acknowledged.push((key, value));
    }
    until("another master leads", LIMIT, || async {
        let now = cluster.leader().await;
        if now == leader { Err(now) } else { Ok(()) }
    })
    .await;
    until_alarms(&etcdctl, 1).await;
    assert!(of(&etcdctl, &cluster, &leader).ok(&["get", "kept/0001"]).contains("value 1"), "it still answers");
    disks.free(&leader);
    until_alarms(&etcdctl, 0).await;
    until_equal(&etcdctl).await;

    // A follower's: nobody else notices.
    let leader = cluster.leader().await;
    let follower = cluster.masters().into_iter().find(|name| *name != leader).expect("there are three");
    disks.fill(&follower);
    until_alarms(&etcdctl, 1).await;
    for _ in 0..20 {
        let (key, value) = next();
        of(&etcdctl, &cluster, &leader).ok(&["put", &key, &value]);
        acknowledged.push((key, value));
    }
    disks.free(&follower);
    until_alarms(&etcdctl, 0).await;
    until_equal(&etcdctl).await;

    // All of them.
    for master in cluster.masters() {
        disks.fill(&master);
    }
    until_alarms(&etcdctl, 3).await;
    until("writes are refused", LIMIT, || async {
        let output = etcdctl.run(&["put", "filling", "up"], "");
        if said(&output).contains(NO_SPACE) { Ok(()) } else { Err(said(&output)) }
    })
    .await;
    let refused = kubectl.refused(&["create", "configmap", "too-much"], "");
    assert!(refused.contains("no space left"), "{refused}");
    for master in cluster.masters() {
        let (key, value) = acknowledged.last().expect("something was written");
        assert!(of(&etcdctl, &cluster, &master).ok(&["get", key]).contains(value.as_str()), "{master} still answers");
        kubectl.context(&master).ok(&["get", "nodes"]);
    }
    // Far longer than a leader may be silent.
    let leader = cluster.leader().await;
    let term = cluster.status()["masters"][0]["term"].clone();
    sleep(Duration::from_secs(5)).await;
    assert_eq!((cluster.leader().await, cluster.status()["masters"][0]["term"].clone()), (leader, term), "heartbeats go on");
    for master in cluster.masters() {
        disks.free(&master);
    }
    put(&etcdctl, "resumed", "by itself").await;
    until_alarms(&etcdctl, 0).await;
    until_equal(&etcdctl).await;

    // By what is written.
    let large = "x".repeat(1_000_000);
    let mut written = 0;
    let refusal = loop {
        let output = etcdctl.run(&["put", &format!("large/{written:04}")], &large);
        if !output.status.success() {
            break said(&output);
        }
        written += 1;
        assert!(written < 1000, "the disks do not fill");
    };
    assert!(written > 20, "{written} values of 1 MB fill a disk of 256 MiB: {refusal}");
    until("writes are refused", LIMIT, || async {
        let output = etcdctl.run(&["put", "large/too-much"], &large);
        if said(&output).contains(NO_SPACE) { Ok(()) } else { Err(said(&output)) }
    })
    .await;
    for master in cluster.masters() {
        disks.resize(&master, "1g");
    }
    put(&etcdctl, "resumed", "with larger disks").await;
    until_alarms(&etcdctl, 0).await;
    until_equal(&etcdctl).await;

    assert_eq!(pids(&cluster), before, "no process died");
    for (key, value) in &acknowledged {
        assert!(etcdctl.ok(&["get", key, "--print-value-only"]).trim_end() == value, "{key} was lost");
    }
    let found = etcdctl.ok(&["get", "large/", "--prefix", "--keys-only"]).matches("large/").count();
    assert!(found >= written, "{written} were acknowledged: {found}");

    // A master comes back although its disk is full.
    let follower = cluster.masters().into_iter().next().expect("there are three");
    disks.fill(&follower);
    until_alarms(&etcdctl, 1).await;
    cluster.trireme(&["kill", &follower]);
    cluster.trireme(&["start", &follower]);
    put(&etcdctl, "meanwhile", "the others go on").await;
    disks.free(&follower);
    until_equal(&etcdctl).await;
}
