//! The project's own chores, each a sub-command of `cargo xtask`: what would otherwise be shell scripts longer than a page.
//!
//! It owns the RocksDB archive cache, the Debian packages that building and testing need, the benchmark of a local cluster, and
//! the tests of the workspace's own rules (`floors.rs`, `sources.rs`). It imports no crate of the workspace and not RocksDB, so that
//! it builds in seconds. Start at [`Task`].

#![forbid(unsafe_code)]

mod bench;
mod bench_store;
mod demo_image;
#[cfg(test)]
mod floors;
mod packages;
mod process;
mod rocksdb;
#[cfg(test)]
mod sources;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the Trireme project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Compile RocksDB once for this machine and print the folder of its archive, for ROCKSDB_LIB_DIR.
    Rocksdb(rocksdb::RocksdbArgs),
    /// Install the packages that a purpose needs and this machine lacks.
    Packages(packages::PackagesArgs),
    /// Make a small image from this machine's busybox, to try a cluster with.
    DemoImage(demo_image::DemoImageArgs),
    /// Measure a local cluster: start-up, memory, and fail-over of the leader.
    Bench(bench::BenchArgs),
    /// Measure the store side by side with etcd.
    BenchStore(bench_store::BenchStoreArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Rocksdb(args) => rocksdb::run(&args),
        Task::Packages(args) => packages::run(&args),
        Task::DemoImage(args) => demo_image::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::BenchStore(args) => bench_store::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
