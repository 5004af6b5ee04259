//! `trireme store hash`: what each master holds at one revision, side by side.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use futures::future::join_all;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use trireme_etcd::proto::etcdserverpb::HashKvRequest;

use super::HashArgs;
use crate::{cli::OutputFormat, endpoints::NamedEndpoint, etcd_client::Masters};

/// Hashing reads everything.
const HASH_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a master may take to come to the revision.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// What came of asking one master.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    master: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Hashes {
    revision: i64,
    masters: Vec<Answer>,
}

pub async fn run(args: &HashArgs) -> Result<()> {
    let masters = Masters::find(&args.masters)?;
    compare(&masters, args.revision, args.output).await
}

/// Hashes what every master holds, prints it, and fails unless all of them hold the same.
pub async fn compare(masters: &Masters, revision: Option<i64>, output: OutputFormat) -> Result<()> {
    let revision = match revision {
        Some(revision) => revision,
        None => masters.connect_to_any().await?.catch_up().await?,
    };
    if revision == 0 {
        bail!("the store is empty");
    }
    let asked = masters.endpoints.iter().map(|endpoint| async {
        let hash = hash(masters, endpoint, revision).await;
        let (hash, error) = match hash {
            Ok(hash) => (Some(format!("{hash:08x}")), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Answer { master: endpoint.name.clone(), hash, error }
    });
    let hashes = Hashes { revision, masters: join_all(asked).await };
    match output {
        OutputFormat::Json => say!("{}", serde_json::to_string_pretty(&hashes)?),
        OutputFormat::Table => say!("{}", table(&hashes)),
    }
    let verdict = judge(&hashes)?;
    if output == OutputFormat::Table {
        say!("\n{verdict}");
    }
    Ok(())
}

async fn hash(masters: &Masters, endpoint: &NamedEndpoint, revision: i64) -> Result<u32> {
    let master = masters.connect(endpoint).await?;
    let deadline = Instant::now() + CATCH_UP_LIMIT;
    loop {
        let reached = master.revision().await?;
        if reached >= revision {
            break;
        }
        if Instant::now() > deadline {
            bail!("{}: it is at revision {reached} of {revision}", master.name);
        }
        sleep(POLL).await;
    }
    let mut client = master.maintenance();
    Ok(master.within_limit(HASH_TIMEOUT, client.hash_kv(HashKvRequest { revision })).await?.hash)
}

/// Whether all masters hold the same, in one line.
fn judge(hashes: &Hashes) -> Result<String> {
    let known: Vec<&str> = hashes.masters.iter().filter_map(|answer| answer.hash.as_deref()).collect();
    let first = known.first().context("no master gave its hash")?;
    let (all, revision) = (hashes.masters.len(), hashes.revision);
    if known.iter().any(|hash| hash != first) {
        bail!("the masters hold different data at revision {revision}");
    }
    if known.len() < all {
        bail!("{} of {all} masters gave no hash at revision {revision}; the others hold the same", all - known.len());
    }
    Ok(match all {
        1 => format!("One master holds this at revision {revision}."),
        _ => format!("All {all} masters hold the same at revision {revision}."),
    })
}

fn table(hashes: &Hashes) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_width(u16::MAX).set_header(["MASTER", "REVISION", "HASH"]);
    for answer in &hashes.masters {
        let told = answer.hash.clone().or_else(|| answer.error.clone()).unwrap_or_default();
        table.add_row([answer.master.clone(), hashes.revision.to_string(), told]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(hashes: &[Option<&str>]) -> Result<String> {
        let answer = |hash: &Option<&str>| Answer { master: "m".into(), hash: hash.map(str::to_owned), error: None };
        judge(&Hashes { revision: 7, masters: hashes.iter().map(answer).collect() })
    }

    #[test]
    fn only_what_all_masters_confirm_is_agreement() {
        assert_eq!(judged(&[Some("a"), Some("a"), Some("a")]).unwrap(), "All 3 masters hold the same at revision 7.");
        let reason = |hashes: &[Option<&str>]| judged(hashes).unwrap_err().to_string();
        assert_eq!(reason(&[Some("a"), Some("b"), None]), "the masters hold different data at revision 7");
        assert_eq!(reason(&[Some("a"), Some("a"), None]), "1 of 3 masters gave no hash at revision 7; the others hold the same");
        assert_eq!(reason(&[None]), "no master gave its hash");
    }
}
