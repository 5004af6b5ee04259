//! The loads: what each client asks for, again and again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use tonic::Status;
use trireme_etcd::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

use super::{
    load::{self, Seen},
    target::{Target, Through},
    upkeep,
    watchers::{self, Clock},
};

/// Where this program's keys lie.
pub const PREFIX: &str = "trireme-bench/";
/// How many keys are overwritten by puts.
const PUT_KEYS: u64 = 100_000;
/// How many keys are written in one transaction when data are laid out.
const FILL_BATCH: u64 = 100;
const FILL_CLIENTS: usize = 16;
/// Etcd's limit of a transaction's size leaves room for so many bytes of values.
const FILL_BYTES: u64 = 1 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Puts,
    /// Puts while the store is compacted, and snapshots of it are taken.
    PutsDuringUpkeep,
    Gets {
        through: Through,
        serializable: bool,
    },
    /// The first so many keys of a prefix.
    Ranges {
        keys: u64,
    },
    /// Transactions that create a key if it is absent, which it is.
    Creates,
    /// A lease that is granted and revoked.
    Leases,
    /// So many watchers of one prefix, in which so many puts a second happen.
    Watchers {
        watchers: usize,
        puts_per_second: u64,
    },
}

/// A load, under the name by which `--only` chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    pub name: &'static str,
    pub clients: usize,
    pub work: Work,
}

const fn gets(through: Through, serializable: bool) -> Work {
    Work::Gets { through, serializable }
}

/// Every load, in the order in which they run.
pub const SCENARIOS: [Scenario; 16] = [
    Scenario { name: "puts-1", clients: 1, work: Work::Puts },
    Scenario { name: "puts-16", clients: 16, work: Work::Puts },
    Scenario { name: "puts-64", clients: 64, work: Work::Puts },
    Scenario { name: "puts-256", clients: 256, work: Work::Puts },
    Scenario { name: "puts-1000", clients: 1000, work: Work::Puts },
    Scenario { name: "upkeep-16", clients: 16, work: Work::PutsDuringUpkeep },
    Scenario { name: "gets-linearizable-1", clients: 1, work: gets(Through::All, false) },
    Scenario { name: "gets-linearizable-64", clients: 64, work: gets(Through::All, false) },
    Scenario { name: "gets-followers-64", clients: 64, work: gets(Through::Followers, false) },
    Scenario { name: "gets-serializable-64", clients: 64, work: gets(Through::All, true) },
    Scenario { name: "ranges-1000", clients: 4, work: Work::Ranges { keys: 1000 } },
    Scenario { name: "ranges-100000", clients: 1, work: Work::Ranges { keys: 100_000 } },
    Scenario { name: "creates-64", clients: 64, work: Work::Creates },
    Scenario { name: "leases-64", clients: 64, work: Work::Leases },
    Scenario { name: "watchers-100", clients: 1, work: Work::Watchers { watchers: 100, puts_per_second: 1000 } },
    Scenario { name: "watchers-1000", clients: 1, work: Work::Watchers { watchers: 1000, puts_per_second: 1000 } },
];

/// How the loads are run.
#[derive(Clone, Debug)]
pub struct Shape {
    pub value: Bytes,
    pub warm_up: Duration,
    pub duration: Duration,
}

fn key(folder: &str, number: u64) -> Bytes {
    Bytes::from(format!("{PREFIX}{folder}/{number:012}"))
}

/// The end of the range of all keys that begin with `prefix`, which ends with a slash.
pub fn prefix_end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// A number that looks random and is the same in every run.
fn scatter(client: usize, sequence: u64) -> u64 {
    (client as u64 ^ 0x9e37_79b9_7f4a_7c15).wrapping_add(sequence).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31)
}

impl Scenario {
    /// How many keys must lie in the folder of reads before this load.
    pub fn keys_to_read(&self) -> u64 {
        match self.work {
            Work::Gets { .. } => 10_000,
            Work::Ranges { keys } => keys,
            _ => 0,
        }
    }

    /// Runs the load once.
    pub async fn run(&self, target: &Target, shape: &Shape, clock: &Arc<Clock>) -> Result<Seen> {
        let (warm_up, duration) = (shape.warm_up, shape.duration);
        let numbers = 0..self.clients;
        match self.work {
            Work::Puts => self.puts(target, shape).await,
            Work::PutsDuringUpkeep => upkeep::beside(target, self.puts(target, shape)).await,
            Work::Gets { through, serializable } => {
                let clients = numbers.map(|number| (target.key_value(through, number), serializable)).collect();
                let keys = self.keys_to_read();
                load::run(clients, warm_up, duration, move |number, sequence, (mut client, serializable)| async move {
                    let key = key("read", scatter(number, sequence) % keys);
                    let found = client.range(RangeRequest { key, serializable, ..RangeRequest::default() }).await?;
                    answered(found.into_inner().kvs.len() as u64, 1)?;
                    Ok((client, serializable))
                })
                .await
            }
            Work::Ranges { keys } => {
                let clients = numbers.map(|number| target.key_value(Through::All, number)).collect();
                load::run(clients, warm_up, duration, move |_, _, mut client| async move {
                    let (start, range_end) = (key("read", 0), key("read", keys));
                    let found = client.range(RangeRequest { key: start, range_end, ..RangeRequest::default() }).await?;
                    answered(found.into_inner().kvs.len() as u64, keys)?;
                    Ok(client)
                })
                .await
            }
            Work::Creates => {
                static CREATED: AtomicU64 = AtomicU64::new(0);
                let clients = numbers.map(|number| (target.key_value(Through::All, number), shape.value.clone())).collect();
                load::run(clients, warm_up, duration, |_, _, (mut client, value)| async move {
                    let key = key("create", CREATED.fetch_add(1, Ordering::Relaxed));
                    let created = client.txn(create(key, value.clone())).await?;
                    answered(u64::from(created.into_inner().succeeded), 1)?;
                    Ok((client, value))
                })
                .await
            }
            Work::Leases => {
                let clients = numbers.map(|number| target.lease(number)).collect();
                load::run(clients, warm_up, duration, |_, _, mut client| async move {
                    let granted = client.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await?.into_inner();
                    client.lease_revoke(LeaseRevokeRequest { id: granted.id }).await?;
                    Ok(client)
                })
                .await
            }
            Work::Watchers { watchers: number, puts_per_second } => {
                watchers::run(target, number, puts_per_second, shape, clock).await
            }
        }
    }

    async fn puts(&self, target: &Target, shape: &Shape) -> Result<Seen> {
        let numbers = 0..self.clients;
        let clients = numbers.map(|number| (target.key_value(Through::All, number), shape.value.clone())).collect();
        load::run(clients, shape.warm_up, shape.duration, |number, sequence, (mut client, value)| async move {
            let key = key("put", scatter(number, sequence) % PUT_KEYS);
            client.put(PutRequest { key, value: value.clone(), ..PutRequest::default() }).await?;
            Ok((client, value))
        })
        .await
    }
}

fn answered(found: u64, wanted: u64) -> Result<(), Status> {
    if found == wanted { Ok(()) } else { Err(Status::data_loss(format!("the answer holds {found} of {wanted}"))) }
}

fn create(key: Bytes, value: Bytes) -> TxnRequest {
    let absent = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(0)),
        ..Compare::default()
    };
    let put = Request::RequestPut(PutRequest { key, value, ..PutRequest::default() });
    TxnRequest { compare: vec![absent], success: vec![RequestOp { request: Some(put) }], failure: Vec::new() }
}

/// Lays out the keys that are read.
pub async fn fill(target: &Target, keys: u64, value: &Bytes) -> Result<()> {
    let batch = (FILL_BYTES / (value.len() as u64 + 64)).clamp(1, FILL_BATCH);
    let next = &AtomicU64::new(0);
    let fillers = (0..FILL_CLIENTS).map(|number| async move {
        let mut client = target.key_value(Through::All, number);
        loop {
            let first = next.fetch_add(batch, Ordering::Relaxed);
            if first >= keys {
                return Ok::<_, Status>(());
            }
            let put = |number| {
                let put = PutRequest { key: key("read", number), value: value.clone(), ..PutRequest::default() };
                RequestOp { request: Some(Request::RequestPut(put)) }
            };
            let success = (first..keys.min(first + batch)).map(put).collect();
            client.txn(TxnRequest { success, ..TxnRequest::default() }).await?;
        }
    });
    futures::future::try_join_all(fillers).await?;
    let range = RangeRequest { key: key("read", 0), range_end: key("read", keys), count_only: true, ..RangeRequest::default() };
    let count = target.key_value(Through::All, 0).range(range).await?.into_inner().count;
    ensure!(count == i64::try_from(keys)?, "{} of {keys} keys were laid out", count);
    Ok(())
}

/// Deletes every key of this program.
pub async fn clear(target: &Target) -> Result<()> {
    let request = DeleteRangeRequest { key: PREFIX.into(), range_end: prefix_end(PREFIX), prev_kv: false };
    target.key_value(Through::All, 0).delete_range(request).await?;
    Ok(())
}
