//! `trireme store compact`.

use std::time::Duration;

use anyhow::Result;
use trireme_etcd::proto::etcdserverpb::CompactionRequest;

use super::CompactArgs;
use crate::etcd_client::Masters;

const TIMEOUT: Duration = Duration::from_secs(60);

pub async fn run(args: &CompactArgs) -> Result<()> {
    let master = Masters::find(&args.masters)?.connect_to_any().await?;
    let revision = match args.revision {
        Some(revision) => revision,
        None => master.catch_up().await?,
    };
    let mut client = master.key_values();
    master.within_limit(TIMEOUT, client.compact(CompactionRequest { revision, physical: true })).await?;
    say!("Compacted: revisions before {revision} cannot be read any more.");
    Ok(())
}
