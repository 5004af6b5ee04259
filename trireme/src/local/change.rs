//! Masters that come to a local cluster, and that leave it: what the supervisor does about them. The group is not its business; who
//! asks has changed that before.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, ensure};
use tracing::info;
use trireme_api::clock::{Clock, SystemClock};

use super::{
    certificates, network,
    spec::{ClusterSpec, MasterSpec},
    supervisor::{STOP_TIMEOUT, Supervisor, stop},
};
use crate::settings::MemberId;

impl Supervisor {
    /// Takes a master in, makes its certificates and starts it.
    pub(super) async fn add_master(&self, master: &MasterSpec, ids: &BTreeMap<String, MemberId>) -> Result<()> {
        let _turn = self.changing.lock().await;
        let mut spec = ClusterSpec::clone(&self.spec());
        let is_taken = |other: &MasterSpec| other.name == master.name || other.peer == master.peer || other.api == master.api;
        ensure!(!spec.masters.iter().any(is_taken), "a master with the name or an address of {} is there already", master.name);
        // What another cluster's processes, or an earlier master of this name, have left is not this one's.
        let folder = self.layout.process(&master.name);
        ensure!(!folder.exists(), "{} is there already; delete it first", folder.display());
        spec.masters.push(master.clone());
        name_members(&mut spec, ids);
        certificates::issue(&self.layout, &spec, SystemClock.now())?;
        network::ensure(&spec).await?;
        self.take_over(spec)?;
        info!(master = master.name, "added");
        self.start(&master.name).await
    }

    /// Stops a master, takes it out, and deletes its folder. A master that is not there needs no removing.
    pub(super) async fn remove_master(&self, name: &str, ids: &BTreeMap<String, MemberId>) -> Result<()> {
        let _turn = self.changing.lock().await;
        let before = self.spec();
        let mut spec = ClusterSpec::clone(&before);
        spec.masters.retain(|master| master.name != name);
        if spec.masters.len() == before.masters.len() {
            return Ok(());
        }
        ensure!(!spec.masters.is_empty(), "{name} is the last master");
        name_members(&mut spec, ids);
        certificates::issue(&self.layout, &spec, SystemClock.now())?;
        // New connections go elsewhere from here on.
        self.take_over(spec)?;
        if let Some(id) = self.processes.lock().await.remove(name) {
            stop(id, STOP_TIMEOUT).await?;
        }
        network::remove_one(&before, name).await?;
        let folder = self.layout.process(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot delete {}", folder.display()))?;
        }
        info!(master = name, "removed");
        Ok(())
    }

    fn take_over(&self, spec: ClusterSpec) -> Result<()> {
        spec.save(&self.layout)?;
        self.masters.send_replace(spec.masters.iter().map(|master| master.api).collect());
        *self.spec.write() = Arc::new(spec);
        Ok(())
    }
}

/// From the first change on, every master is started under its id: one that lost its data must not take the masters that are left
/// for those of a new cluster.
fn name_members(spec: &mut ClusterSpec, ids: &BTreeMap<String, MemberId>) {
    for master in &mut spec.masters {
        master.member_id = master.member_id.or_else(|| ids.get(&master.name).copied());
    }
}
