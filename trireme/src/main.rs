//! `trireme`: a highly available, multi-zone, Kubernetes-compatible cluster in one binary.
//!
//! This crate owns the command line, configuration, certificates, the life of processes and the wiring of the other crates. It
//! knows no business rules. Start at [`cli`], then [`master`] and [`node`] for what the long-running commands put together, and
//! [`local`] for clusters of processes on one machine.

// All but `processor`, whose check must run before `main`.
#![deny(unsafe_code)]
// These panic when nobody reads; `say!` and `remark!` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod output;

mod bench;
mod cli;
mod client;
mod dial;
mod endpoints;
mod etcd_client;
mod fail_points;
mod group;
mod https;
mod leader;
mod local;
mod logging;
mod master;
mod members;
mod node;
mod node_folder;
mod pki;
mod process_metrics;
mod processor;
mod settings;
mod snapshot;
mod store;
mod tls;
mod version;

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches, Parser};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use trireme_api::clock::{Clock, SystemClock};

use cli::{Cli, Command, ConfigCommand, ImageCommand, PkiCommand};
use local::{control, control::Action};

/// Requests are many small allocations on several threads, which the C library's allocator spends a fifth of a write's time on.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The hidden first argument that makes this process a pod's shim instead of a command.
pub const SHIM: &str = "shim";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // A shim must stay single-threaded, so it is told apart before anything else happens.
    if arguments.get(1).is_some_and(|first| first == SHIM) {
        return trireme_nodeagent::embedded::shim_main(&arguments[2..]);
    }
    match run(arguments).and_then(|()| output::finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            remark!("trireme: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<OsString>) -> Result<()> {
    let command = parse(arguments)?;
    tls::install_provider();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().worker_threads(workers()).build().context("cannot start the async runtime")?;
    let outcome = runtime.block_on(dispatch(command));
    // Whatever still runs has been told to stop; nothing may keep the process.
    runtime.shutdown_background();
    outcome
}

/// How many threads serve requests: half of the processors. The rest is for the log's writer, for what applies entries and for
/// RocksDB; handing a request from one thread to another costs more than it gains.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))
}

/// Parses the command line, with the settings of a `--config` file put in.
fn parse(arguments: Vec<OsString>) -> Result<Command> {
    let path: Vec<String> = arguments.iter().skip(1).take(2).map(|word| word.to_string_lossy().into_owned()).collect();
    let depth = match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["master" | "node", ..] => 1,
        ["config", "master" | "node"] => 2,
        _ => return Ok(Cli::parse_from(arguments).command),
    };
    let mut commands = Cli::command();
    let mut command = &mut commands;
    for name in &path[..depth] {
        command = command.find_subcommand_mut(name).with_context(|| format!("there is no command `{name}`"))?;
    }
    let arguments = settings::with_config_file(arguments, command, depth + 1)?;
    let matches = Cli::command().get_matches_from(arguments);
    Ok(Cli::from_arg_matches(&matches)?.command)
}

async fn dispatch(command: Command) -> Result<()> {
    let now = SystemClock.now();
    match command {
        Command::Up(args) => local::up::run(args, now).await,
        Command::Down(args) => local::down::run(args).await,
        Command::Status(args) => local::status::run(args).await,
        Command::Stop(args) => control::run(args, Action::Stop).await,
        Command::Start(args) => control::run(args, Action::Start).await,
        Command::Kill(args) => control::run(args, Action::Kill).await,
        Command::Pause(args) => control::run(args, Action::Pause).await,
        Command::Resume(args) => control::run(args, Action::Resume).await,
        Command::Member(args) => members::member(args).await,
        Command::Leader(args) => members::leader(args).await,
        Command::Image(args) => match args.command {
            ImageCommand::Load(args) => local::image::load(args).await,
        },
        Command::Snapshot(args) => snapshot::run(args).await,
        Command::Store(args) => store::run(args).await,
        Command::Master(args) => {
            logging::start(&args.log)?;
            fail_points::arm_from_environment()?;
            master::run(args.settings, shutdown_on_signals()?).await
        }
        Command::Node(args) => {
            logging::start(&args.log)?;
            node::run(args.settings, shutdown_on_signals()?).await
        }
        Command::StopPods(args) => node::stop_pods(&args.settings).await,
        Command::Config(args) => {
            let text = match args.command {
                ConfigCommand::Master(args) => settings::to_yaml(&args.settings, &args.log)?,
                ConfigCommand::Node(args) => settings::to_yaml(&args.settings, &args.log)?,
            };
            output::result(format_args!("{text}"));
            Ok(())
        }
        Command::Pki(args) => match args.command {
            PkiCommand::Master(args) => pki::commands::master(&args, now),
            PkiCommand::Node(args) => pki::commands::node(&args, now),
            PkiCommand::Admin(args) => pki::commands::admin(&args, now),
        },
        Command::Certs(args) => pki::certs::run(&args, now),
        Command::Bench(args) => bench::run(args).await,
        Command::Version(args) => version::run(args.output),
        Command::Supervise(folder) => {
            logging::start(&logging::LogArgs::to_stderr())?;
            local::up::supervise(folder, shutdown_on_signals()?).await
        }
    }
}

/// A token that is cancelled by SIGINT or SIGTERM.
pub fn shutdown_on_signals() -> Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let shutdown = CancellationToken::new();
    let cancelled = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(shutdown)
}
