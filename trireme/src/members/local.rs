//! Masters of a cluster on this machine: the group is changed, and the processes with it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use tokio::time::{Instant, sleep};
use trireme_etcd::group::NewMember;

use super::{AddArgs, NewMasterArgs, POLL, ReplaceArgs, masters::Masters, promote_when_ready, remove_from_group, view::View};
use crate::{
    https,
    local::{
        control::{self, Request},
        layout::Layout,
        process::ProcessState,
        spec::{ClusterSpec, MasterSpec},
        up,
    },
    pki,
    settings::MemberId,
    tls,
};

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a new master is given a vote.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vote {
    WhenReady,
    Never,
}

pub async fn add(masters: &Masters, layout: &Layout, spec: &ClusterSpec, args: &AddArgs) -> Result<()> {
    let view = masters.view().await?;
    let master = new_master(spec, args.name.as_deref(), &args.new, None)?;
    let vote = if args.learner { Vote::Never } else { Vote::WhenReady };
    take_in(masters, layout, spec, &view, master, vote, Duration::from_secs(args.new.timeout_seconds)).await.map(drop)
}

pub async fn remove(masters: &Masters, layout: &Layout, spec: &ClusterSpec, named: &str) -> Result<()> {
    check_running(layout).await?;
    let view = masters.view().await?;
    let name = match view.find(named) {
        Ok(member) => {
            remove_from_group(masters, &view, member.id.0, &member.name).await?;
            member.name.clone()
        }
        // An earlier command did not get any further.
        Err(_) if spec.masters.iter().any(|master| master.name == named) => named.to_owned(),
        Err(unknown) => return Err(unknown),
    };
    let ids = ids(&view);
    ask(layout, &Request::RemoveMaster { name: name.clone(), ids }).await?;
    say!("{name} is removed.");
    Ok(())
}

pub async fn replace(masters: &Masters, layout: &Layout, spec: &ClusterSpec, args: ReplaceArgs) -> Result<()> {
    let view = masters.view().await?;
    let old = view.find(&args.old)?;
    let zone = spec.masters.iter().find(|master| master.name == old.name).map(|master| master.zone.clone());
    let master = new_master(spec, args.new_name.as_deref(), &args.new, zone.as_deref())?;
    let limit = Duration::from_secs(args.new.timeout_seconds);
    let masters = take_in(masters, layout, spec, &view, master, Vote::WhenReady, limit).await?;
    let spec = ClusterSpec::load_existing(layout)?;
    remove(&masters, layout, &spec, &old.id.to_string()).await
}

fn new_master(spec: &ClusterSpec, name: Option<&str>, new: &NewMasterArgs, zone: Option<&str>) -> Result<MasterSpec> {
    ensure!(
        new.peer_address.is_none(),
        "the masters of a local cluster get their addresses by themselves; leave --peer-address out"
    );
    spec.new_master(name, new.zone.as_deref().or(zone))
}

/// Adds a master to the group and to the cluster, and waits until it votes and serves. When that fails, nothing is left of it.
/// Returns the masters to be asked from then on.
async fn take_in(
    masters: &Masters,
    layout: &Layout,
    spec: &ClusterSpec,
    view: &View,
    mut master: MasterSpec,
    vote: Vote,
    limit: Duration,
) -> Result<Masters> {
    check_running(layout).await?;
    ensure!(
        !view.members.iter().any(|member| member.name == master.name),
        "a member of the cluster is called {} already",
        master.name
    );
    let new = NewMember { address: master.peer.to_string(), name: master.name.clone(), zone: master.zone.clone() };
    let added = masters.add(&new, true).await.with_context(|| format!("{} cannot be added", master.name))?;
    let id = added.member.context("the answer names no member")?.id;
    master.member_id = Some(MemberId(id));
    say!("{} in {} is member {}; waiting until it has caught up.", master.name, master.zone, MemberId(id));
    let in_place = settle(masters, layout, view, &master, id, vote, limit).await;
    if let Err(error) = in_place {
        undo(masters, layout, view, &master, id).await.with_context(|| format!("{} could not be taken back", master.name))?;
        return Err(error.context(format!("{} was not added", master.name)));
    }
    say!(
        "{} {}.",
        master.name,
        if vote == Vote::WhenReady { "votes" } else { "has no vote; `trireme member promote` gives it one" }
    );
    Ok(masters.clone().with(spec.etcd_address(&master).to_string()))
}

async fn settle(
    masters: &Masters,
    layout: &Layout,
    view: &View,
    master: &MasterSpec,
    id: u64,
    vote: Vote,
    limit: Duration,
) -> Result<()> {
    ask(layout, &Request::AddMaster { master: master.clone(), ids: ids(view) }).await?;
    if vote == Vote::WhenReady {
        promote_when_ready(masters, id, limit, || check_alive(layout, &master.name)).await?;
    }
    let tls = Arc::new(tls::client(&pki::admin_paths(&layout.pki()))?);
    let deadline = Instant::now() + READY_TIMEOUT;
    while let Err(error) = https::ready(master.api, &tls, PROBE_TIMEOUT).await {
        check_alive(layout, &master.name).await?;
        if Instant::now() >= deadline {
            return Err(error);
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Takes back what was made of a master that did not come into being.
async fn undo(masters: &Masters, layout: &Layout, view: &View, master: &MasterSpec, id: u64) -> Result<()> {
    remove_from_group(masters, view, id, &master.name).await?;
    // What is in its place may be somebody else's of the same name.
    let spec = ClusterSpec::load_existing(layout)?;
    if spec.masters.iter().any(|one| one.name == master.name && one.member_id == master.member_id) {
        ask(layout, &Request::RemoveMaster { name: master.name.clone(), ids: BTreeMap::new() }).await?;
    }
    Ok(())
}

fn ids(view: &View) -> BTreeMap<String, MemberId> {
    view.members.iter().map(|member| (member.name.clone(), member.id)).collect()
}

async fn check_alive(layout: &Layout, name: &str) -> Result<()> {
    let processes = ask(layout, &Request::List).await?;
    let is_dead = processes.iter().any(|process| process.name == name && process.state == ProcessState::Stopped);
    if is_dead {
        bail!("it ended: {}", up::last_line(&layout.process_log(name)));
    }
    Ok(())
}

async fn check_running(layout: &Layout) -> Result<()> {
    ask(layout, &Request::List).await.map(drop)
}

async fn ask(layout: &Layout, request: &Request) -> Result<Vec<control::Process>> {
    let answer = control::ask(layout, request).await?;
    answer.with_context(|| format!("the cluster in {} is not running; start it with `trireme up`", layout.root().display()))
}
