//! `trireme snapshot restore`: the data of a new cluster's masters, made beside their place and put there when all of it is whole.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use trireme_consensus::{Member, NodeId, Restore, RestoreError, restore};
use trireme_storage::{
    engine::rocks::{RocksEngine, RocksOptions},
    portable::Description,
    restore::Restored,
};

use super::{LocalClusterArgs, OneMasterArgs, RestoreArgs, file};
use crate::{
    cli::DataDirArgs,
    local::{
        layout::Layout,
        spec::ClusterSpec,
        up::{self, UpArgs},
    },
    master::{LOG_FOLDER, STATE_FOLDER, node_id},
    pki::{self, LifetimeArgs},
    settings::InitialMember,
};

/// Where everything is made before it is moved to its place.
const STAGING: &str = ".restoring";

pub async fn run(args: RestoreArgs) -> Result<()> {
    let target =
        std::path::absolute(&args.data_dir).with_context(|| format!("{} is not a usable path", args.data_dir.display()))?;
    check_empty(&target)?;
    let path = args.file.clone();
    let description = tokio::task::spawn_blocking(move || file::verify(&path)).await??;
    let job = Job { file: args.file, target, bump_revision: args.bump_revision };
    match args.master {
        OneMasterArgs { name: Some(name), cluster_id: Some(cluster_id), initial_members } => {
            check_cluster_id(&description, &cluster_id)?;
            check_members(&name, &initial_members)?;
            let restored = tokio::task::spawn_blocking(move || job.master(&name, &cluster_id, &initial_members)).await??;
            report(&restored);
            say!("Restore the same file on every other master, then start all of them.");
        }
        _ => {
            let plan = plan(&job.target, args.cluster).await?;
            let target = job.target.clone();
            let restored = tokio::task::spawn_blocking(move || job.local_cluster(&plan)).await??;
            report(&restored);
            say!("Start the cluster: trireme up --data-dir {}", target.display());
        }
    }
    Ok(())
}

fn report(restored: &Restored) {
    let Restored { revision, hash, keys, snapshot } = restored;
    say!(
        "Restored {keys} keys of revision {}; the new cluster begins at revision {revision}, hash {hash:016x}.",
        snapshot.manifest.revision
    );
}

async fn plan(target: &Path, cluster: LocalClusterArgs) -> Result<ClusterSpec> {
    let LocalClusterArgs { masters, nodes, zones, runtime, port_base, netns, node_grace_seconds } = cluster;
    let folder = DataDirArgs { data_dir: Some(target.to_owned()) };
    up::plan(&UpArgs {
        folder,
        masters,
        nodes,
        zones,
        runtime,
        port_base,
        netns,
        node_grace_seconds,
        detach: true,
        certificates: LifetimeArgs::default(),
    })
    .await
}

/// Nothing may be in the folder: what was restored would mix with it.
fn check_empty(target: &Path) -> Result<()> {
    match fs::read_dir(target) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => bail!("{} is not empty; a snapshot is restored into a new folder", target.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", target.display())),
    }
}

fn check_cluster_id(description: &Description, cluster_id: &str) -> Result<()> {
    ensure!(
        description.cluster.as_deref() != Some(cluster_id),
        "the snapshot is of the cluster `{cluster_id}`; give the new one another --cluster-id, so that no master of the old one can join it"
    );
    Ok(())
}

fn check_members(name: &str, members: &[InitialMember]) -> Result<()> {
    ensure!(members.iter().any(|member| member.name == name), "--initial-members does not name this master, {name}");
    for (position, member) in members.iter().enumerate() {
        let is_double = |other: &InitialMember| other.name == member.name || other.peer_address == member.peer_address;
        ensure!(!members[..position].iter().any(is_double), "--initial-members names {member} twice");
    }
    Ok(())
}

/// What is restored where.
struct Job {
    file: PathBuf,
    target: PathBuf,
    bump_revision: u64,
}

impl Job {
    fn master(&self, name: &str, cluster_id: &str, members: &[InitialMember]) -> Result<Restored> {
        self.staged(|staging| self.fill(staging, name, cluster_id, members), &[STATE_FOLDER, LOG_FOLDER])
    }

    fn local_cluster(&self, spec: &ClusterSpec) -> Result<Restored> {
        let member = |master: &crate::local::spec::MasterSpec| InitialMember {
            name: master.name.clone(),
            peer_address: master.peer.to_string(),
        };
        let members: Vec<InitialMember> = spec.masters.iter().map(member).collect();
        let make = |staging: &Path| {
            let layout = Layout::find(Some(staging))?;
            let mut all = Vec::new();
            for master in &spec.masters {
                all.push(self.fill(&layout.process(&master.name), &master.name, &spec.cluster_id, &members)?);
            }
            spec.save(&layout)?;
            let first = all.first().cloned().context("the cluster has no masters")?;
            ensure!(all.iter().all(|restored| *restored == first), "the masters were restored differently");
            Ok(first)
        };
        // What says that there is a cluster comes last.
        self.staged(make, &["processes", "cluster.yaml"])
    }

    /// Makes something in a folder of its own, and then moves its `entries`, in this order, to the target. After an error nothing is left.
    fn staged<T>(&self, make: impl FnOnce(&Path) -> Result<T>, entries: &[&str]) -> Result<T> {
        let is_new = !self.target.exists();
        let staging = self.target.join(STAGING);
        let outcome = pki::create_private_folder(&staging).and_then(|()| make(&staging)).and_then(|made| {
            for entry in entries {
                let (from, to) = (staging.join(entry), self.target.join(entry));
                fs::rename(&from, &to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))?;
            }
            fs::remove_dir(&staging).with_context(|| format!("cannot remove {}", staging.display()))?;
            let synced = fs::File::open(&self.target).and_then(|folder| folder.sync_all());
            synced.with_context(|| format!("cannot sync {}", self.target.display()))?;
            Ok(made)
        });
        if outcome.is_err() {
            let left = [STAGING].into_iter().chain(entries.iter().copied()).map(|entry| self.target.join(entry));
            for path in left.filter(|path| path.exists()) {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.unwrap_or_else(|error| remark!("trireme: cannot remove {}: {error}", path.display()));
            }
            if is_new && self.target.exists() {
                fs::remove_dir(&self.target)
                    .unwrap_or_else(|error| remark!("trireme: cannot remove {}: {error}", self.target.display()));
            }
        }
        outcome
    }

    /// Makes the data folder of one master.
    fn fill(&self, folder: &Path, name: &str, cluster_id: &str, members: &[InitialMember]) -> Result<Restored> {
        pki::create_private_folder(folder)?;
        let open = |part: &str, options: RocksOptions| {
            let path = folder.join(part);
            RocksEngine::open(&path, options).with_context(|| format!("cannot make the store in {}", path.display()))
        };
        let described = |member: &InitialMember| {
            let id: NodeId = node_id(cluster_id, &member.name);
            (id, Member { name: member.name.clone(), address: member.peer_address.clone(), ..Member::default() })
        };
        let member = Restore {
            cluster_id,
            node_id: node_id(cluster_id, name),
            members: members.iter().map(described).collect(),
            bump_revision: self.bump_revision,
            log_engine: Arc::new(open(LOG_FOLDER, RocksOptions::for_log())?),
            state_engine: Arc::new(open(STATE_FOLDER, RocksOptions::for_state())?),
        };
        restore(member, &mut file::open(&self.file)?).map_err(|error| match error {
            RestoreError::Snapshot(error) => file::explain(&self.file, &error),
            RestoreError::Member(error) => error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(text: &str) -> InitialMember {
        text.parse().unwrap()
    }

    #[test]
    fn members_are_named_once_and_the_master_is_among_them() {
        let members = [member("a=h:1"), member("b=h:2")];
        check_members("b", &members).unwrap();
        assert!(check_members("c", &members).unwrap_err().to_string().contains("does not name this master"));
        for double in ["a=h:3", "c=h:1"] {
            let members = [&members[..], &[member(double)]].concat();
            assert!(check_members("a", &members).unwrap_err().to_string().contains("twice"), "{double}");
        }
    }

    #[test]
    fn what_fails_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new");
        let job = Job { file: PathBuf::new(), target: target.clone(), bump_revision: 0 };
        let failed: Result<()> = job.staged(
            |staging| {
                fs::write(staging.join("a"), "half")?;
                bail!("it broke")
            },
            &["a"],
        );
        assert_eq!(failed.unwrap_err().to_string(), "it broke");
        assert!(!target.exists());
        job.staged(|staging| Ok(fs::write(staging.join("a"), "whole")?), &["a"]).unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "whole");
        assert!(check_empty(&target).is_err());
        assert!(check_empty(&folder.path().join("other")).is_ok());
    }
}
