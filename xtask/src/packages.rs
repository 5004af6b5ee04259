//! The packages that building, running and testing need: what is missing is listed with its reason, then installed with apt.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{process, workspace};

#[derive(Debug, Args)]
pub struct PackagesArgs {
    /// What the packages are for.
    #[arg(value_enum)]
    pub purpose: Purpose,
}

/// What a package is for; each purpose takes in those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Purpose {
    /// To compile the project.
    Build,
    /// To run a cluster on this machine and use it.
    Up,
    /// To measure a cluster.
    Bench,
    /// To run every test.
    Test,
    /// To measure the store beside etcd.
    BenchStore,
}

/// One package and the sign that it is there.
struct Package {
    name: &'static str,
    sign: Sign,
    purpose: Purpose,
    reason: &'static str,
}

/// What tells that a package, or something as good, is on the machine.
enum Sign {
    Program(&'static str),
    File(&'static str),
}

const PACKAGES: &[Package] = &[
    package("g++", Sign::Program("c++"), Purpose::Build, "compiles RocksDB"),
    package("gcc", Sign::Program("cc"), Purpose::Build, "links programs"),
    package(
        "ca-certificates",
        Sign::File("/etc/ssl/certs/ca-certificates.crt"),
        Purpose::Build,
        "trusts registries of crates and images",
    ),
    package("iproute2", Sign::Program("ip"), Purpose::Up, "makes the local nodes' network namespaces"),
    package("nftables", Sign::Program("nft"), Purpose::Up, "lets local nodes and pods reach other machines"),
    package("util-linux", Sign::Program("nsenter"), Purpose::Up, "starts local nodes in their namespaces"),
    package("busybox-static", Sign::Program("busybox"), Purpose::Up, "gives a small image to try the cluster with"),
    package("kubernetes-client", Sign::Program("kubectl"), Purpose::Up, "kubectl, to use the cluster"),
    package("curl", Sign::Program("curl"), Purpose::Bench, "writes to the masters that are measured"),
    package("etcd-server", Sign::Program("etcd"), Purpose::BenchStore, "the store is compared with it"),
    package("git", Sign::Program("git"), Purpose::Test, "lists the project's files"),
    package("etcd-client", Sign::Program("etcdctl"), Purpose::Test, "etcdctl, to use the store"),
    package("containerd", Sign::Program("containerd"), Purpose::Test, "the CRI runtime's tests run against it"),
    package("runc", Sign::Program("runc"), Purpose::Test, "containerd runs containers with it"),
    package(
        "containernetworking-plugins",
        Sign::File("/usr/lib/cni/bridge"),
        Purpose::Test,
        "the tests of CNI networks run them",
    ),
];

/// The package of an old kubectl, for the tests that use the oldest supported version beside the machine's own.
const OLD_KUBECTL: &str = "kubernetes-client";

const fn package(name: &'static str, sign: Sign, purpose: Purpose, reason: &'static str) -> Package {
    Package { name, sign, purpose, reason }
}

impl Sign {
    fn is_there(&self) -> bool {
        match self {
            Self::Program(name) => process::find_program(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

/// The packages for a purpose, without those that `there` finds.
fn missing(purpose: Purpose, there: impl Fn(&Sign) -> bool) -> Vec<&'static Package> {
    PACKAGES.iter().filter(|package| package.purpose <= purpose && !there(&package.sign)).collect()
}

/// Installs what is missing.
///
/// # Errors
/// When something is missing and cannot be installed; the message says what to do by hand.
pub fn run(args: &PackagesArgs) -> Result<()> {
    let missing = missing(args.purpose, Sign::is_there);
    if !missing.is_empty() {
        eprintln!("This machine lacks:");
        for package in &missing {
            eprintln!("  {:<28} {}", package.name, package.reason);
        }
        install(&missing)?;
    }
    if args.purpose >= Purpose::Test {
        fetch_old_kubectl()?;
    }
    Ok(())
}

fn install(packages: &[&Package]) -> Result<()> {
    let by_hand: Vec<&str> = packages.iter().map(|package| package.name).collect();
    let by_hand = by_hand.join(" ");
    if process::find_program("apt-get").is_none() {
        bail!("there is no apt-get here; install by other means what these Debian packages hold: {by_hand}");
    }
    let advice = || format!("install them yourself: apt-get install {by_hand}");
    process::run(&mut as_root("apt-get", &["update", "-qq"])?).with_context(advice)?;
    let (found, absent): (Vec<&Package>, Vec<&Package>) = packages.iter().partition(|package| has_candidate(package.name));
    if !found.is_empty() {
        let names: Vec<&str> = found.iter().map(|package| package.name).collect();
        let arguments = [&["install", "--yes", "--no-install-recommends"], names.as_slice()].concat();
        process::run(&mut as_root("apt-get", &arguments)?).with_context(advice)?;
    }
    for package in absent {
        install_otherwise(package)?;
    }
    Ok(())
}

/// Ubuntu has no package of kubectl, but a snap.
fn install_otherwise(package: &Package) -> Result<()> {
    if package.name == OLD_KUBECTL && process::find_program("snap").is_some() {
        return process::run(&mut as_root("snap", &["install", "kubectl", "--classic"])?);
    }
    bail!(
        "this system's package lists have no {} ({}); install it by other means and run this again",
        package.name,
        package.reason
    )
}

/// Whether apt knows a version of the package to install.
fn has_candidate(name: &str) -> bool {
    let policy = process::output(Command::new("apt-cache").args(["policy", name]).env("LC_ALL", "C"));
    policy.is_ok_and(|text| {
        text.lines().any(|line| line.trim().strip_prefix("Candidate: ").is_some_and(|version| version != "(none)"))
    })
}

/// A command that runs as root: as it is when we are root, else through sudo.
fn as_root(program: &str, arguments: &[&str]) -> Result<Command> {
    let user = process::output(Command::new("id").arg("-u"))?;
    let mut command = Command::new("env");
    if user.trim() != "0" {
        if process::find_program("sudo").is_none() {
            bail!("installing packages needs root, and there is no sudo; as root, run: {program} {}", arguments.join(" "));
        }
        command = Command::new("sudo");
        command.arg("env");
    }
    command.arg("DEBIAN_FRONTEND=noninteractive").arg(program).args(arguments);
    Ok(command)
}

/// Where the old kubectl is kept: beside the system's own, which may be newer.
fn old_kubectl() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("kubectl-old/usr/bin/kubectl"))
}

/// Unpacks the distribution's kubectl (1.20 in Debian 12) into the cache, without installing it. Where the distribution has no
/// such package, the tests use the machine's kubectl alone, and this says so.
fn fetch_old_kubectl() -> Result<()> {
    let program = old_kubectl()?;
    if program.is_file() {
        return Ok(());
    }
    let has_apt = process::find_program("apt-get").is_some();
    if has_apt && !has_candidate(OLD_KUBECTL) {
        // A fresh machine has no package lists yet.
        process::run(&mut as_root("apt-get", &["update", "-qq"])?)?;
    }
    if !has_apt || !has_candidate(OLD_KUBECTL) {
        eprintln!("apt has no {OLD_KUBECTL} here: the tests use this machine's kubectl alone.");
        return Ok(());
    }
    let root = workspace::cache()?.join("kubectl-old");
    let download = root.join("download");
    std::fs::create_dir_all(&download).with_context(|| format!("cannot make {}", download.display()))?;
    process::run(Command::new("apt-get").args(["download", "-qq", OLD_KUBECTL]).current_dir(&download))?;
    let fetched = std::fs::read_dir(&download)?.filter_map(Result::ok).map(|entry| entry.path());
    let archive = fetched.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let archive = archive.with_context(|| format!("apt-get left no package in {}", download.display()))?;
    process::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&root))?;
    std::fs::remove_dir_all(&download).with_context(|| format!("cannot delete {}", download.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(packages: &[&Package]) -> Vec<&'static str> {
        packages.iter().map(|package| package.name).collect()
    }

    #[test]
    fn a_purpose_takes_in_those_before_it() {
        let all_of = |purpose| names(&missing(purpose, |_| false));
        assert!(all_of(Purpose::Build).contains(&"g++"));
        assert!(!all_of(Purpose::Build).contains(&"iproute2"));
        assert!(all_of(Purpose::Up).contains(&"kubernetes-client") && !all_of(Purpose::Up).contains(&"containerd"));
        assert_eq!(all_of(Purpose::BenchStore).len(), PACKAGES.len());
    }

    #[test]
    fn what_is_there_is_not_installed() {
        assert!(missing(Purpose::BenchStore, |_| true).is_empty());
        let without_kubectl = missing(Purpose::Up, |sign| !matches!(sign, Sign::Program("kubectl")));
        assert_eq!(names(&without_kubectl), ["kubernetes-client"]);
    }

    #[test]
    fn each_package_is_named_once() {
        let mut all: Vec<&str> = PACKAGES.iter().map(|package| package.name).collect();
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
