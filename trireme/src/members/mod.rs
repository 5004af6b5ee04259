//! `trireme member` and `trireme leader`: who belongs to the group of masters, and who leads it.
//!
//! [`masters`] speaks to the masters, over their etcd API; [`view`] is what they say of themselves; [`local`] does for a cluster on
//! this machine what on real machines is the operator's part, which [`remote`] spells out.

mod local;
mod masters;
mod remote;
mod view;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use tokio::time::{Instant, sleep};

use self::{
    masters::{Masters, Refused},
    view::View,
};
use crate::{
    cli::{MOST_SECONDS, OutputFormat},
    endpoints::MastersArgs,
    local::{layout::Layout, spec::ClusterSpec},
};

const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub struct MemberArgs {
    #[command(subcommand)]
    pub command: MemberCommand,
}

#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// Show the members, who leads, and how far each one is behind.
    List(ListArgs),
    /// Add a master. In a local cluster it is made and started, too; on real machines you are told what to run.
    Add(AddArgs),
    /// Give a vote to a member that has caught up.
    Promote(TargetArgs),
    /// Remove a master. In a local cluster it is stopped, and its folder is deleted; elsewhere it ends by itself.
    Remove(TargetArgs),
    /// Put a new master in the place of one: add the new one, wait until it votes, remove the old one.
    Replace(ReplaceArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub masters: MastersArgs,
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// What a new master is to be.
#[derive(Clone, Debug, Args)]
pub struct NewMasterArgs {
    /// Where the other masters will reach it, `host:port`; only on real machines.
    #[arg(long, value_name = "HOST:PORT")]
    pub peer_address: Option<String>,
    /// Its availability zone [default: in a local cluster, the zone with the fewest masters].
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// How long it may take to catch up, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    pub timeout_seconds: u64,
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// The new master's name [default: in a local cluster, `master-` and the next number].
    pub name: Option<String>,
    #[command(flatten)]
    pub new: NewMasterArgs,
    /// Leave it without a vote until `member promote`.
    #[arg(long)]
    pub learner: bool,
    #[command(flatten)]
    pub masters: MastersArgs,
}

#[derive(Debug, Args)]
pub struct TargetArgs {
    /// A member's name or id.
    pub member: String,
    #[command(flatten)]
    pub masters: MastersArgs,
}

#[derive(Debug, Args)]
pub struct ReplaceArgs {
    /// The name or id of the member that goes.
    pub old: String,
    /// The new master's name [default: in a local cluster, `master-` and the next number].
    pub new_name: Option<String>,
    #[command(flatten)]
    pub new: NewMasterArgs,
    #[command(flatten)]
    pub masters: MastersArgs,
}

#[derive(Debug, Args)]
pub struct LeaderArgs {
    #[command(subcommand)]
    pub command: LeaderCommand,
}

#[derive(Debug, Subcommand)]
pub enum LeaderCommand {
    /// Have another master take over the leadership.
    Move(MoveArgs),
}

#[derive(Debug, Args)]
pub struct MoveArgs {
    /// The name or id of the master that is to lead [default: the one that is least behind].
    pub member: Option<String>,
    #[command(flatten)]
    pub masters: MastersArgs,
}

/// The masters that a command is about: of a cluster on this machine, or of one elsewhere.
enum Place {
    Local(Masters, Layout, ClusterSpec),
    Remote(Masters),
}

impl Place {
    fn find(args: &MastersArgs) -> Result<Self> {
        let named = args.find()?;
        let addresses = named.endpoints.into_iter().map(|endpoint| endpoint.address).collect();
        let masters = Masters::new(addresses, &named.keys)?;
        Ok(match named.local {
            Some((layout, spec)) => Self::Local(masters, layout, spec),
            None => Self::Remote(masters),
        })
    }

    fn masters(&self) -> &Masters {
        match self {
            Self::Local(masters, ..) | Self::Remote(masters) => masters,
        }
    }
}

pub async fn member(args: MemberArgs) -> Result<()> {
    match args.command {
        MemberCommand::List(args) => {
            let view = Place::find(&args.masters)?.masters().view().await?;
            match args.output {
                OutputFormat::Json => say!("{}", serde_json::to_string_pretty(&view.members)?),
                OutputFormat::Table => say!("{}", view.table()),
            }
            Ok(())
        }
        MemberCommand::Add(args) => match Place::find(&args.masters)? {
            Place::Local(masters, layout, spec) => local::add(&masters, &layout, &spec, &args).await.map(drop),
            Place::Remote(masters) => remote::add(&masters, &args).await,
        },
        MemberCommand::Promote(args) => {
            let place = Place::find(&args.masters)?;
            let view = place.masters().view().await?;
            let member = view.find(&args.member)?;
            if member.voter {
                bail!("{} has a vote already", member.name);
            }
            let promoted = place.masters().promote(member.id.0).await;
            promoted.with_context(|| format!("{} cannot be given a vote", member.name))?;
            say!("{} votes.", member.name);
            Ok(())
        }
        MemberCommand::Remove(args) => match Place::find(&args.masters)? {
            Place::Local(masters, layout, spec) => local::remove(&masters, &layout, &spec, &args.member).await,
            Place::Remote(masters) => remote::remove(&masters, &args.member).await,
        },
        MemberCommand::Replace(args) => match Place::find(&args.masters)? {
            Place::Local(masters, layout, spec) => local::replace(&masters, &layout, &spec, args).await,
            Place::Remote(masters) => remote::replace(&masters, args).await,
        },
    }
}

pub async fn leader(args: LeaderArgs) -> Result<()> {
    let LeaderCommand::Move(args) = args.command;
    let place = Place::find(&args.masters)?;
    let view = place.masters().view().await?;
    let leader = view.leader()?;
    let target = match &args.member {
        Some(named) => view.find(named)?,
        None => view.successor().context("there is no other voter that answers")?,
    };
    if target.id == leader.id {
        say!("{} leads already.", target.name);
        return Ok(());
    }
    if !target.voter {
        bail!("{} has no vote, so it cannot lead; give it one with `trireme member promote {}`", target.name, target.name);
    }
    let moved = place.masters().move_leader(&leader.client_address()?, target.id.0).await;
    moved.with_context(|| format!("the leadership cannot be moved from {} to {}", leader.name, target.name))?;
    say!("{} leads.", target.name);
    Ok(())
}

/// Asks for a vote for a new member until it has caught up. `check` may end the waiting.
async fn promote_when_ready<F: Future<Output = Result<()>>>(
    masters: &Masters,
    id: u64,
    limit: Duration,
    check: impl Fn() -> F,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let refused = match masters.promote(id).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match refused.downcast_ref::<Refused>() {
            Some(refusal) if refusal.is_voter() => return Ok(()),
            Some(refusal) if !refusal.may_pass() => return Err(refused),
            _ => {}
        }
        check().await?;
        if Instant::now() >= deadline {
            return Err(refused).with_context(|| format!("it has not caught up within {limit:?}"));
        }
        sleep(POLL).await;
    }
}

/// Removes a member. One that is gone already, because an answer was lost, counts as removed.
async fn remove_from_group(masters: &Masters, view: &View, id: u64, name: &str) -> Result<()> {
    // The one that goes is asked last: it may end before it answers.
    let asked = masters.asking_last(&view.address_of(id));
    let Err(error) = asked.remove(id).await else { return Ok(()) };
    let is_gone = error.downcast_ref::<Refused>().is_none()
        && asked.view().await.is_ok_and(|view| view.members.iter().all(|member| member.id.0 != id));
    if is_gone { Ok(()) } else { Err(error).with_context(|| format!("{name} cannot be removed")) }
}
