//! `trireme bench`: loads that measure a running cluster.

mod connection;
mod load;
mod metrics;
mod report;
mod scenario;
mod store;
mod target;
mod upkeep;
mod watchers;

use clap::{Args, Subcommand};

use self::store::StoreArgs;

#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Drive one store, or two side by side, over the etcd API: Trireme's own or etcd's.
    Store(Box<StoreArgs>),
}

/// Measures, and prints a report.
pub async fn run(args: BenchArgs) -> anyhow::Result<()> {
    match args.command {
        BenchCommand::Store(args) => store::run(*args).await,
    }
}
