//! The network namespaces of a local cluster: each node (and, if asked, each master) is a machine of its own on a bridge.
//!
//! Everything is made with `ip` (iproute2) and is safe to repeat: what exists stays.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use tracing::warn;

use super::spec::{ClusterSpec, NetworkMode};

/// A process's own network namespace.
struct Namespace<'a> {
    process: &'a str,
    address: IpAddr,
}

impl Namespace<'_> {
    /// The host's end of the pair that joins it with the bridge, named after its address: others come and go.
    fn outer(&self, spec: &ClusterSpec) -> String {
        let last = match self.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        format!("t{}x{last}", spec.short_id())
    }
}

/// The name under which `ip netns` knows the namespace of a process.
fn namespace_name(spec: &ClusterSpec, process: &str) -> String {
    format!("trireme-{}-{process}", spec.short_id())
}

fn bridge_name(spec: &ClusterSpec) -> String {
    format!("tri{}", spec.short_id())
}

/// The namespace file that a process is to be started in, if it has one of its own.
pub fn namespace_path(spec: &ClusterSpec, process: &str) -> Option<PathBuf> {
    let own = namespaces(spec).iter().any(|namespace| namespace.process == process);
    own.then(|| PathBuf::from("/run/netns").join(namespace_name(spec, process)))
}

fn namespaces(spec: &ClusterSpec) -> Vec<Namespace<'_>> {
    let nodes = spec.nodes.iter().map(|node| Namespace { process: &node.name, address: node.address });
    let masters = spec.masters.iter().map(|master| Namespace { process: &master.name, address: master.api.ip() });
    match spec.network {
        NetworkMode::Shared => Vec::new(),
        NetworkMode::Nodes => nodes.collect(),
        NetworkMode::Masters => masters.chain(nodes).collect(),
    }
}

/// A subnet `100.64.<n>.0/24` that no interface of this machine uses; the search begins at `first`, so that clusters which are
/// stopped now are unlikely to want the same one.
pub async fn free_subnet(first: u8) -> Result<u8> {
    let used = used_subnets().await?;
    let candidates = (0..=u8::MAX).map(|step| first.wrapping_add(step));
    candidates
        .into_iter()
        .find(|subnet| !used.contains(subnet))
        .context("every subnet of 100.64.0.0/16 is in use on this machine")
}

async fn used_subnets() -> Result<BTreeSet<u8>> {
    let addresses = run(&["-o", "-4", "addr", "show"]).await?;
    Ok(addresses.split_whitespace().filter_map(|word| word.strip_prefix("100.64.")?.split('.').next()?.parse().ok()).collect())
}

/// Makes what is missing of the bridge and the namespaces.
pub async fn ensure(spec: &ClusterSpec) -> Result<()> {
    let namespaces = namespaces(spec);
    if namespaces.is_empty() {
        return Ok(());
    }
    let bridge = bridge_name(spec);
    if !interface_exists(&bridge) {
        if used_subnets().await?.contains(&spec.subnet) {
            bail!("another interface of this machine uses 100.64.{}.0/24, perhaps another cluster; stop that first", spec.subnet);
        }
        run(&["link", "add", &bridge, "type", "bridge"]).await?;
        run(&["addr", "add", &format!("{}/24", spec.bridge_address()), "dev", &bridge]).await?;
        run(&["link", "set", &bridge, "up"]).await?;
    }
    for namespace in &namespaces {
        ensure_namespace(spec, namespace, &bridge).await?;
    }
    if let Err(error) = let_out(spec, &bridge).await {
        warn!("nodes cannot reach other machines, so images must be loaded: {error:#}");
    }
    Ok(())
}

async fn ensure_namespace(spec: &ClusterSpec, namespace: &Namespace<'_>, bridge: &str) -> Result<()> {
    let name = namespace_name(spec, namespace.process);
    let outer = namespace.outer(spec);
    if interface_exists(&outer) && PathBuf::from("/run/netns").join(&name).exists() {
        return Ok(());
    }
    remove_namespace(&name, &outer).await?;
    run(&["netns", "add", &name]).await?;
    run(&["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &name]).await?;
    run(&["link", "set", &outer, "master", bridge, "up"]).await?;
    run(&["-n", &name, "link", "set", "lo", "up"]).await?;
    run(&["-n", &name, "addr", "add", &format!("{}/24", namespace.address), "dev", "eth0"]).await?;
    run(&["-n", &name, "link", "set", "eth0", "up"]).await?;
    run(&["-n", &name, "route", "add", "default", "via", &spec.bridge_address().to_string()]).await?;
    Ok(())
}

async fn remove_namespace(name: &str, outer: &str) -> Result<()> {
    if interface_exists(outer) {
        run(&["link", "delete", outer]).await?;
    }
    if PathBuf::from("/run/netns").join(name).exists() {
        run(&["netns", "delete", name]).await?;
    }
    Ok(())
}

/// Removes the namespace of one process, if it has one.
pub async fn remove_one(spec: &ClusterSpec, process: &str) -> Result<()> {
    match namespaces(spec).iter().find(|namespace| namespace.process == process) {
        Some(namespace) => remove_namespace(&namespace_name(spec, process), &namespace.outer(spec)).await,
        None => Ok(()),
    }
}

/// Removes the bridge and the namespaces.
pub async fn remove(spec: &ClusterSpec) -> Result<()> {
    let namespaces = namespaces(spec);
    for namespace in &namespaces {
        remove_namespace(&namespace_name(spec, namespace.process), &namespace.outer(spec)).await?;
    }
    if namespaces.is_empty() {
        return Ok(());
    }
    let bridge = bridge_name(spec);
    if interface_exists(&bridge) {
        run(&["link", "delete", &bridge]).await?;
    }
    // The table may never have been made: `nft` is not on every machine.
    let removed = Command::new("nft").args(["delete", "table", "ip", &bridge]).stderr(Stdio::null()).status().await;
    if let Ok(status) = removed
        && !status.success()
    {
        tracing::debug!("there was no table {bridge} to delete");
    }
    Ok(())
}

/// Lets the nodes reach what the machine reaches, to pull images.
async fn let_out(spec: &ClusterSpec, bridge: &str) -> Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot switch on IP forwarding")?;
    let rules = format!(
        "add table ip {bridge}\n\
         delete table ip {bridge}\n\
         table ip {bridge} {{\n\
           chain postrouting {{\n\
             type nat hook postrouting priority 100;\n\
             ip saddr 100.64.{subnet}.0/24 oifname != \"{bridge}\" masquerade\n\
           }}\n\
         }}\n",
        subnet = spec.subnet
    );
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run nft (package nftables)")?;
    if let Some(mut stdin) = nft.stdin.take() {
        tokio::io::AsyncWriteExt::write_all(&mut stdin, rules.as_bytes()).await?;
    }
    let output = nft.wait_with_output().await?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn interface_exists(name: &str) -> bool {
    PathBuf::from("/sys/class/net").join(name).exists()
}

async fn run(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).output().await.context("cannot run `ip`; install the package iproute2")?;
    if !output.status.success() {
        bail!("`ip {}`: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
