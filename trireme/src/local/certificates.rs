//! The certificates of a local cluster: made by `up`, renewed by its supervisor, shown and renewed by `trireme certs`.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Result;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use trireme_api::clock::Clock;

use super::{
    kubeconfig,
    layout::Layout,
    spec::{ClusterSpec, NetworkMode},
};
use crate::pki::{
    self, Authority, Issuing, KeyFolder, Lifetime,
    renew::{Renewal, Renewed, Which},
};

/// The administrator's certificate.
const ADMIN: &str = "admin";

/// Makes what is missing of the authority, every process's certificates and the kubeconfig, and what is no good any more.
pub fn issue(layout: &Layout, spec: &ClusterSpec, now: Timestamp) -> Result<()> {
    let authority = Authority::open(&layout.pki(), now)?;
    let files = KeyFolder::new(&layout.pki());
    let _lock = files.lock()?;
    let issuing = Issuing { authority: &authority, lifetime: spec.certificate_lifetime.unwrap_or_default(), now };
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for master in &spec.masters {
        let mut addresses = vec![loopback, master.api.ip(), master.peer.ip()];
        if spec.network != NetworkMode::Shared {
            addresses.push(spec.bridge_address());
        }
        addresses.dedup();
        issuing.master(&layout.process_pki(&master.name), &master.name, &spec.cluster_id, &addresses, &[])?;
    }
    for node in &spec.nodes {
        issuing.node(&layout.process_pki(&node.name), &node.name, &[node.address, loopback])?;
    }
    issuing.admin(&layout.pki())?;
    let existing = kubeconfig::read(&layout.kubeconfig())?;
    let text = kubeconfig::merge(&existing, &kubeconfig::servers(spec), authority.certificate(), &files.read(ADMIN)?);
    // One that cannot be read is of no use to anybody.
    let text =
        text.or_else(|_| kubeconfig::merge("", &kubeconfig::servers(spec), authority.certificate(), &files.read(ADMIN)?))?;
    pki::write_private(&layout.kubeconfig(), text.as_bytes())
}

/// Takes a master that leaves out of the kubeconfig. `spec` is the cluster without it.
pub fn forget(layout: &Layout, spec: &ClusterSpec, master: &str) -> Result<()> {
    let files = KeyFolder::new(&layout.pki());
    let _lock = files.lock()?;
    let existing = kubeconfig::read(&layout.kubeconfig())?;
    match kubeconfig::forget(&existing, master, &kubeconfig::servers(spec))? {
        Some(text) => pki::write_private(&layout.kubeconfig(), text.as_bytes()),
        None => Ok(()),
    }
}

/// The folders of a cluster's certificates: whose they are, and where.
pub fn folders(layout: &Layout, spec: &ClusterSpec) -> Vec<(String, PathBuf)> {
    let processes = spec.process_names().map(|name| (name.to_owned(), layout.process_pki(name)));
    std::iter::once((ADMIN.to_owned(), layout.pki())).chain(processes).collect()
}

/// Renews the certificates of `owners`: processes, or `admin`. The administrator's kubeconfig follows.
pub fn renew(
    layout: &Layout,
    spec: &ClusterSpec,
    owners: &[String],
    which: Which,
    lifetime: Option<Lifetime>,
    now: Timestamp,
) -> Result<Renewed> {
    let authority = Authority::load(&layout.pki())?;
    let files = KeyFolder::new(&layout.pki());
    let _lock = files.lock()?;
    let renewal = Renewal { authority: &authority, which, lifetime, now };
    let mut renewed = Renewed::default();
    for (owner, folder) in folders(layout, spec) {
        if owners.is_empty() || owners.contains(&owner) {
            match KeyFolder::new(&folder).names() {
                Ok(names) => renewal.folder(&folder, &names, &mut renewed),
                Err(error) => renewed.failures.push(format!("{error:#}")),
            }
        }
    }
    // Whether or not it is now that the certificate was made: an earlier renewal may have been cut off here.
    let existing = kubeconfig::read(&layout.kubeconfig())?;
    if let Some(text) = kubeconfig::renew(&existing, kubeconfig::Ours::Named, &files.read(ADMIN)?)? {
        pki::write_private(&layout.kubeconfig(), text.as_bytes())?;
    }
    Ok(renewed)
}

/// Renews what is due, until `shutdown`. `spec` says what the cluster consists of now.
pub async fn keep(layout: Layout, spec: impl Fn() -> Arc<ClusterSpec>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    loop {
        let (layout, spec, now) = (layout.clone(), spec(), clock.now());
        let pause = pki::renew::renew_by_itself(move || renew(&layout, &spec, &[], Which::Due, None, now)).await;
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}
