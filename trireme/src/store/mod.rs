//! `trireme store`: whether the masters hold the same, whether a master's disk is whole, and compaction of the history.

mod compact;
mod hash;
mod verify;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{cli::OutputFormat, endpoints::MastersArgs};

#[derive(Debug, Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    pub command: StoreCommand,
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Hash what each master holds at one revision, and say whether they agree.
    Hash(HashArgs),
    /// Drop the history of the store below a revision.
    Compact(CompactArgs),
    /// Check a stopped master's data folder, every checksum and every row of it; or, for a running cluster, compare what all masters hold.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub struct HashArgs {
    #[command(flatten)]
    pub masters: MastersArgs,
    /// The revision to hash [default: the newest].
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(1..))]
    pub revision: Option<i64>,
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

#[derive(Debug, Args)]
pub struct CompactArgs {
    /// The oldest revision that can still be read afterwards [default: the newest].
    #[arg(value_parser = clap::value_parser!(i64).range(1..))]
    pub revision: Option<i64>,
    #[command(flatten)]
    pub masters: MastersArgs,
}

/// `--data-dir` may name a master's data folder here: then what lies in it is read, and nothing is changed. The master must not run.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub masters: MastersArgs,
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

pub async fn run(args: StoreArgs) -> Result<()> {
    match args.command {
        StoreCommand::Hash(args) => hash::run(&args).await,
        StoreCommand::Compact(args) => compact::run(&args).await,
        StoreCommand::Verify(args) => verify::run(args).await,
    }
}
