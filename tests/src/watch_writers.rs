//! Writers over the etcd API that write down what they asked and were answered, for the checkers of [`trireme_jepsen::watch`].

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};
use trireme_etcd::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RequestOp, TxnRequest, TxnResponse, compare, kv_client::KvClient,
    lease_client::LeaseClient, request_op::Request, response_op::Response,
};
use trireme_jepsen::watch::history::{Change, Keys, Operation, Outcome};

use crate::etcd::Access;

/// How long an answer may take; after that it is not known.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Between one operation and the next, so that a small machine has time for the watchers.
const PAUSE: Duration = Duration::from_millis(15);
/// After a failure, before the next member is tried.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// How long the writers' leases last: nobody keeps them alive.
const LEASE_SECONDS: i64 = 1;

/// Numbers that look like chance, and are the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// One client that writes one thing after another, at one member until that fails.
pub struct Writer {
    name: String,
    access: Access,
    member: usize,
    channel: Option<Channel>,
    numbers: Numbers,
    /// The zero of the writers' common clock.
    origin: Instant,
    written: u64,
    operations: Vec<Operation>,
}

/// What is sent, and what it is in the history's words.
struct Plan {
    request: TxnRequest,
    changes: Vec<Change>,
}

impl Writer {
    pub fn new(access: &Access, number: usize, origin: Instant) -> Self {
        Self {
            name: format!("writer-{number}"),
            access: access.clone(),
            member: number,
            channel: None,
            numbers: Numbers(number as u64),
            origin,
            written: 0,
            operations: Vec::new(),
        }
    }

    /// Writes until it is told to stop, and gives what it wrote down.
    pub async fn run(mut self, stop: CancellationToken) -> Vec<Operation> {
        while !stop.is_cancelled() {
            let plan = self.plan().await;
            self.carry_out(plan).await;
            sleep(PAUSE).await;
        }
        self.operations
    }

    /// Puts values of this size under several keys, at once.
    pub async fn put_large(&mut self, keys: &[&str], bytes: usize) {
        let puts = keys.iter().map(|key| {
            let value = self.value();
            Change::Put { key: (*key).to_owned(), value: value + &".".repeat(bytes), lease: 0 }
        });
        let changes: Vec<Change> = puts.collect();
        self.carry_out(transaction(Vec::new(), changes)).await;
    }

    /// What was written down.
    pub fn operations(self) -> Vec<Operation> {
        self.operations
    }

    async fn channel(&mut self) -> Channel {
        loop {
            if let Some(channel) = &self.channel {
                return channel.clone();
            }
            match self.access.connect(self.member).await {
                Ok(channel) => self.channel = Some(channel),
                Err(_) => self.give_up().await,
            }
        }
    }

    /// Goes on at the next member.
    async fn give_up(&mut self) {
        self.channel = None;
        self.member += 1;
        sleep(RETRY_DELAY).await;
    }

    /// A value that nobody else ever puts.
    fn value(&mut self) -> String {
        self.written += 1;
        format!("{} {}", self.name, self.written)
    }

    fn key(&mut self) -> String {
        format!("w/k{}", self.numbers.below(9))
    }

    fn put(&mut self, key: String, lease: i64) -> Change {
        Change::Put { key, value: self.value(), lease }
    }

    async fn plan(&mut self) -> Plan {
        let key = self.key();
        match self.numbers.below(12) {
            0..=3 => {
                let put = self.put(key, 0);
                transaction(Vec::new(), vec![put])
            }
            4 | 5 => {
                let lease = self.grant().await;
                let put = self.put(key, lease);
                transaction(Vec::new(), vec![put])
            }
            6 | 7 => {
                let first = self.numbers.below(6);
                let mut changes: Vec<Change> = (first..first + 3).map(|number| self.put(format!("w/k{number}"), 0)).collect();
                changes.push(Change::Delete(Keys::between("w/k8", "w/kz")));
                transaction(Vec::new(), changes)
            }
            8 => {
                let put = self.put(key.clone(), 0);
                let absent = Compare {
                    key: key.into(),
                    target: compare::CompareTarget::Version.into(),
                    target_union: Some(compare::TargetUnion::Version(0)),
                    ..Compare::default()
                };
                transaction(vec![absent], vec![put])
            }
            9 | 10 => transaction(Vec::new(), vec![Change::Delete(Keys::one(key))]),
            _ => transaction(Vec::new(), vec![Change::Delete(Keys::between("w/k3", "w/k7"))]),
        }
    }

    /// A lease, or none where no member grants one.
    async fn grant(&mut self) -> i64 {
        let mut client = LeaseClient::new(self.channel().await);
        let request = LeaseGrantRequest { ttl: LEASE_SECONDS, id: 0 };
        match timeout(ANSWER_LIMIT, client.lease_grant(request)).await {
            Ok(Ok(granted)) => granted.into_inner().id,
            _ => {
                self.give_up().await;
                0
            }
        }
    }

    async fn carry_out(&mut self, plan: Plan) {
        let mut client = KvClient::new(self.channel().await);
        let began = self.now();
        let answer = timeout(ANSWER_LIMIT, client.txn(plan.request)).await;
        let outcome = match answer {
            Ok(Ok(answer)) => acknowledged(&answer.into_inner()),
            Ok(Err(status)) => refused(&status),
            Err(_) => Outcome::Unknown,
        };
        let (client, ended) = (self.name.clone(), self.now());
        self.operations.push(Operation { client, began, ended, changes: plan.changes, outcome });
        if outcome == Outcome::Unknown {
            self.give_up().await;
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

fn transaction(compare: Vec<Compare>, changes: Vec<Change>) -> Plan {
    let request = |change: &Change| match change {
        Change::Put { key, value, lease } => Request::RequestPut(PutRequest {
            key: key.clone().into(),
            value: value.clone().into(),
            lease: *lease,
            ..PutRequest::default()
        }),
        Change::Delete(keys) => Request::RequestDeleteRange(DeleteRangeRequest {
            key: keys.key.clone().into(),
            range_end: keys.range_end.clone().into(),
            ..DeleteRangeRequest::default()
        }),
    };
    let success = changes.iter().map(|change| RequestOp { request: Some(request(change)) }).collect();
    Plan { request: TxnRequest { compare, success, failure: Vec::new() }, changes }
}

fn acknowledged(answer: &TxnResponse) -> Outcome {
    let changed = answer.responses.iter().any(|response| match &response.response {
        Some(Response::ResponsePut(_)) => true,
        Some(Response::ResponseDeleteRange(deleted)) => deleted.deleted > 0,
        _ => false,
    });
    let revision = answer.header.as_ref().map_or(0, |header| header.revision);
    if changed { Outcome::Done(u64::try_from(revision).unwrap_or(0)) } else { Outcome::Unchanged }
}

fn refused(status: &Status) -> Outcome {
    match status.code() {
        // A lease that has ended meanwhile.
        Code::NotFound | Code::InvalidArgument => Outcome::Refused,
        _ => Outcome::Unknown,
    }
}
