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
        certificates::forget(&self.layout, &spec, name)?;
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        cli::Cli,
        local::{
            layout::Layout,
            spec::{NetworkMode, Wishes},
        },
        settings::RuntimeChoice,
    };

    #[test]
    fn after_a_change_every_master_joins_and_none_begins_a_cluster() {
        let wishes = Wishes {
            masters: 2,
            nodes: 1,
            zones: vec!["zone-a".into()],
            runtime: RuntimeChoice::Hollow,
            port_base: 6443,
            network: NetworkMode::Shared,
            node_grace_seconds: None,
            certificate_lifetime: None,
        };
        let mut spec = ClusterSpec::new(&wishes, "0123456789".into(), 0);
        let layout = Layout::find(Some(std::path::Path::new("/folder"))).unwrap();
        let arguments = |spec: &ClusterSpec, name: &str| {
            let arguments = crate::local::up::process_arguments(&layout, spec, name).unwrap();
            arguments.iter().map(|one| one.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert!(!arguments(&spec, "master-1").contains("--member-id"));
        for name in ["master-1", "node-1"] {
            let line = format!("trireme {}", arguments(&spec, name));
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }

        let mut third = spec.new_master(None, None).unwrap();
        third.member_id = Some(MemberId(0x3c));
        spec.masters.push(third);
        let ids = BTreeMap::from([("master-1".to_owned(), MemberId(0x1a)), ("master-2".to_owned(), MemberId(0x2b))]);
        name_members(&mut spec, &ids);
        for (name, id) in [("master-1", "1a"), ("master-2", "2b"), ("master-3", "3c")] {
            let arguments = arguments(&spec, name);
            assert!(arguments.contains(&format!("--member-id {id} ")), "{arguments}");
            let everyone = "--initial-members master-1=127.0.0.1:6544,master-2=127.0.0.1:6545,master-3=127.0.0.1:6546";
            assert!(arguments.contains(everyone), "{arguments}");
        }
        name_members(&mut spec, &BTreeMap::from([("master-3".to_owned(), MemberId(9))]));
        assert_eq!(spec.masters[2].member_id, Some(MemberId(0x3c)), "an id is never replaced");
    }
}
