//! `trireme bench store`: the same loads against one store, or against two by turns.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http::Uri;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    load::Seen,
    metrics::Usage,
    report::{self, Figures, Line},
    scenario::{self, SCENARIOS, Scenario, Shape},
    target::Target,
    watchers::Clock,
};
use crate::{
    cli::{MOST_SECONDS, OutputFormat},
    pki::TlsPaths,
    process_metrics, tls,
};

const MEBIBYTE: f64 = 1_048_576.0;

#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The client URLs of the store's members, `https://host:port`.
    #[arg(long, required = true, value_delimiter = ',', value_name = "URL")]
    endpoints: Vec<Uri>,
    /// What the report calls the store.
    #[arg(long, default_value = "trireme")]
    name: String,
    /// The client URLs of a second store, to compare the first one with: each load runs against one, then against the other.
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    against: Vec<Uri>,
    /// What the report calls the second store.
    #[arg(long, default_value = "etcd")]
    against_name: String,
    /// The authority of the servers' certificates.
    #[arg(long, value_name = "FILE")]
    cacert: PathBuf,
    /// The client's certificate.
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// The client's key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Only these loads: whole names, or what stands before a dash in them, as `puts`.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// How often each load runs; the report gives medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each load is measured, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    seconds: u64,
    /// The size of values, in bytes.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    value_bytes: u32,
    /// How many connections go to each member.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Lay out so many keys first, and leave all keys there in the end. Without `--only`, no loads are run.
    #[arg(long, value_name = "COUNT")]
    fill: Option<u64>,
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    output: OutputFormat,
}

/// Runs the loads and prints the report.
pub async fn run(args: StoreArgs) -> Result<()> {
    // On one thread, so that the client takes as little as it can of what the servers could use.
    let measuring = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("cannot start the async runtime")?.block_on(measure(args))
    };
    tokio::task::spawn_blocking(measuring).await?
}

async fn measure(args: StoreArgs) -> Result<()> {
    let chosen: Vec<Scenario> = SCENARIOS.into_iter().filter(|scenario| is_chosen(scenario.name, &args.only)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        bail!("--only chooses no load; there are {}", names.join(", "));
    }
    let paths = TlsPaths { ca: args.cacert.clone(), certificate: args.cert.clone(), key: args.key.clone() };
    let connections = usize::try_from(args.connections)?;
    let mut targets = vec![Target::open(&args.name, &args.endpoints, tls::client(&paths)?, connections).await?];
    if !args.against.is_empty() {
        targets.push(Target::open(&args.against_name, &args.against, tls::client(&paths)?, connections).await?);
    }
    let shape = Shape {
        value: incompressible(usize::try_from(args.value_bytes)?),
        warm_up: Duration::from_secs(1),
        duration: Duration::from_secs(args.seconds),
    };
    let runs_loads = args.fill.is_none() || !args.only.is_empty();
    let read = chosen.iter().filter(|_| runs_loads).map(Scenario::keys_to_read);
    let keys = read.chain(args.fill).max().unwrap_or(0);
    for target in &targets {
        scenario::clear(target).await.with_context(|| format!("clearing {}", target.name))?;
        if keys > 0 {
            remark!("laying out {keys} keys in {}", target.name);
            scenario::fill(target, keys, &shape.value).await.with_context(|| format!("filling {}", target.name))?;
        }
    }
    if !runs_loads {
        return Ok(());
    }
    let clock = Arc::new(Clock::new());
    let mut lines = Vec::new();
    for scenario in &chosen {
        let mut rounds = vec![Vec::new(); targets.len()];
        for round in 1..=args.rounds {
            for (target, rounds) in targets.iter().zip(&mut rounds) {
                let figures = once(scenario, target, &shape, &clock).await;
                let figures = figures.with_context(|| format!("{} against {}", scenario.name, target.name))?;
                remark!(
                    "{} {round}/{}: {} {:.0}/s, p99 {:.2} ms",
                    scenario.name,
                    args.rounds,
                    target.name,
                    figures.operations_per_second,
                    figures.p99_milliseconds
                );
                rounds.push(figures);
            }
        }
        for (target, rounds) in targets.iter().zip(&rounds) {
            let medians = report::medians(rounds);
            lines.push(Line { load: scenario.name.to_owned(), store: target.name.clone(), rounds: rounds.len(), medians });
        }
    }
    if args.fill.is_none() {
        for target in &targets {
            scenario::clear(target).await?;
        }
    }
    match args.output {
        OutputFormat::Table => say!("{}", report::table(&lines)),
        OutputFormat::Json => say!("{}", serde_json::to_string_pretty(&lines)?),
    }
    Ok(())
}

/// Bytes that no compression makes shorter: a store that compresses should not look better by it.
fn incompressible(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(1).fill_bytes(&mut bytes);
    bytes.into()
}

fn is_chosen(name: &str, prefixes: &[String]) -> bool {
    prefixes.is_empty()
        || prefixes
            .iter()
            .any(|prefix| name.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
}

fn own_cpu_seconds() -> Result<f64> {
    process_metrics::cpu_seconds().context("the system does not tell how much processor time this process has used")
}

/// Runs a load once, and reads what it cost.
async fn once(scenario: &Scenario, target: &Target, shape: &Shape, clock: &Arc<Clock>) -> Result<Figures> {
    let (before, own_before) = (target.usage().await?, own_cpu_seconds()?);
    let seen = scenario.run(target, shape, clock).await?;
    let (after, own_after) = (target.usage().await?, own_cpu_seconds()?);
    // The cost is that of the warm-up, too.
    let measured = (shape.warm_up + shape.duration).as_secs_f64() / shape.duration.as_secs_f64();
    figures(&seen, before, after, own_after - own_before, seen.operations as f64 * measured)
}

fn figures(seen: &Seen, before: Usage, after: Usage, own_cpu_seconds: f64, operations: f64) -> Result<Figures> {
    ensure!(operations > 0.0, "nothing was measured");
    let milliseconds = |micros: u64| micros as f64 / 1000.0;
    Ok(Figures {
        operations_per_second: seen.operations as f64 / seen.seconds,
        p50_milliseconds: milliseconds(seen.latencies.value_at_quantile(0.5)),
        p99_milliseconds: milliseconds(seen.latencies.value_at_quantile(0.99)),
        worst_milliseconds: milliseconds(seen.latencies.max()),
        server_cpu_microseconds: (after.cpu_seconds - before.cpu_seconds) * 1e6 / operations,
        client_cpu_microseconds: own_cpu_seconds * 1e6 / operations,
        fsyncs: (after.fsyncs - before.fsyncs) / operations,
        resident_mebibytes: after.resident_bytes / MEBIBYTE,
        disk_mebibytes: after.disk_bytes / MEBIBYTE,
    })
}
