//! `trireme snapshot`: the whole store as one portable file, and a new cluster from it.

mod file;
mod restore;
mod save;
mod status;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use jiff::Timestamp;

use crate::{
    cli::{MOST_SECONDS, OutputFormat},
    endpoints::MastersArgs,
    local::up::NetnsChoice,
    settings::{InitialMember, RuntimeChoice},
};

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    pub command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Write everything that the store holds now to a file.
    Save(SaveArgs),
    /// Check a snapshot file, and say what it holds.
    Status(StatusArgs),
    /// Make a new cluster, or one master of it, that begins with what a snapshot file holds.
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub struct SaveArgs {
    /// Where to write the snapshot. Its owner alone will be able to read it: it holds every Secret.
    pub file: PathBuf,
    #[command(flatten)]
    pub masters: MastersArgs,
    /// Replace the file if it exists.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The snapshot.
    pub file: PathBuf,
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// Without `--name` a whole local cluster is made, which `trireme up` then starts; with it, the data of one master on this machine.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The snapshot.
    pub file: PathBuf,
    /// The folder of the new cluster, or the data folder of the master. It must be empty, or not exist yet.
    #[arg(long, env = "TRIREME_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// How far the store's revision goes up, so that clients which knew the old cluster never see it go back. More than the old
    /// cluster has written since the snapshot.
    #[arg(long, value_name = "REVISIONS", default_value_t = 1_000_000_000)]
    pub bump_revision: u64,
    #[command(flatten)]
    pub master: OneMasterArgs,
    #[command(flatten)]
    pub cluster: LocalClusterArgs,
}

/// One master on this machine. Every master of the new cluster is restored from the same file, with the same members.
#[derive(Debug, Args)]
pub struct OneMasterArgs {
    /// The master's name: make its data alone, not a local cluster.
    #[arg(long, value_name = "NAME", requires_all = ["cluster_id", "initial_members"])]
    pub name: Option<String>,
    /// The new cluster's id, which must not be the old one's.
    #[arg(long, value_name = "ID", value_parser = crate::settings::cluster_id, requires = "name")]
    pub cluster_id: Option<String>,
    /// Every master that the new cluster begins with, this one too: `name=host:port` of its peer address, separated by commas.
    #[arg(long, value_name = "MEMBERS", value_delimiter = ',', requires = "name")]
    pub initial_members: Vec<InitialMember>,
}

/// A local cluster, as for `trireme up`.
#[derive(Debug, Args)]
pub struct LocalClusterArgs {
    /// How many masters: 1, 3 or 5 [default: 3].
    #[arg(long, value_name = "COUNT", conflicts_with = "name")]
    pub masters: Option<usize>,
    /// How many nodes [default: 3].
    #[arg(long, value_name = "COUNT", conflicts_with = "name")]
    pub nodes: Option<usize>,
    /// The availability zones; masters and nodes are dealt round them [default: zone-a,zone-b,zone-c].
    #[arg(long, value_name = "ZONES", value_delimiter = ',', conflicts_with = "name")]
    pub zones: Option<Vec<String>>,
    /// What runs containers [default: auto].
    #[arg(long, value_enum, conflicts_with = "name")]
    pub runtime: Option<RuntimeChoice>,
    /// The balancer's port; the masters' follow it [default: 6443].
    #[arg(long, value_name = "PORT", conflicts_with = "name")]
    pub port_base: Option<u16>,
    /// Which processes get a network namespace of their own [default: nodes for root, else none].
    #[arg(long, value_enum, conflicts_with = "name")]
    pub netns: Option<NetnsChoice>,
    /// How long a node may be silent before it counts as not ready, in seconds [default: 40].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(4..=MOST_SECONDS), conflicts_with = "name")]
    pub node_grace_seconds: Option<u64>,
}

pub async fn run(args: SnapshotArgs) -> Result<()> {
    match args.command {
        SnapshotCommand::Save(args) => save::run(args).await,
        SnapshotCommand::Status(args) => status::run(&args),
        SnapshotCommand::Restore(args) => restore::run(args).await,
    }
}

/// A moment in Unix milliseconds, for people.
fn time_of(milliseconds: u64) -> String {
    let moment = i64::try_from(milliseconds).ok().and_then(|milliseconds| Timestamp::from_millisecond(milliseconds).ok());
    moment.map_or_else(|| "-".to_owned(), |moment| moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
