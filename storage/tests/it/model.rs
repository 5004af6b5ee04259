//! A naive store, written from the rules and not from the code: it keeps a whole copy of the state for each revision.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use trireme_storage::{
    command::{Command, CommandReply, CommandResult, Lease},
    model::{
        Compare, CompareOrder, CompareTarget, Event, EventBatch, EventKind, KeyRange, KeyValue, LeaseId, Operation,
        OperationResult, PutLease, PutValue, RangeContent, RangeRequest, RangeResult, Revision, Term, Transaction,
        TransactionResult,
    },
    store::StoreError,
};

/// Few keys, so that commands meet; some that try the order and the escaping.
pub const KEYS: [&[u8]; 8] = [b"a", b"a\0", b"a\0\xff", b"a/1", b"a/2", b"b", b"c\0\0", b"\xff\xff"];

type Values = BTreeMap<Bytes, KeyValue>;

#[derive(Clone)]
pub struct Model {
    /// The state at each revision; the last is the newest.
    states: Vec<Values>,
    pub batches: Vec<EventBatch>,
    pub compacted: Revision,
    pub leases: BTreeMap<LeaseId, Lease>,
}

impl Model {
    pub fn new() -> Self {
        Self { states: vec![Values::new()], batches: Vec::new(), compacted: Revision(0), leases: BTreeMap::new() }
    }

    pub fn revision(&self) -> Revision {
        Revision(self.states.len() as u64 - 1)
    }

    fn newest(&self) -> &Values {
        self.states.last().unwrap()
    }

    pub fn apply(&mut self, term: Term, command: &Command) -> CommandResult {
        let now = self.revision();
        let mut attempt = Attempt { values: self.newest().clone(), events: Vec::new(), store: self };
        let mut leases = self.leases.clone();
        let reply = match command {
            Command::Compact(revision) => {
                if *revision > now {
                    return Err(StoreError::FutureRevision { requested: *revision, current: now });
                }
                if *revision <= self.compacted {
                    return Err(StoreError::Compacted { requested: *revision, compacted: self.compacted });
                }
                self.compacted = *revision;
                return Ok(CommandReply::Compacted);
            }
            Command::Transact(transaction) => CommandReply::Transaction(attempt.transact(term, transaction)?),
            Command::LeaseGrant { id, .. } if id.0 == 0 => {
                return Err(StoreError::InvalidTransaction("a lease's id must not be 0".into()));
            }
            Command::LeaseGrant { id, .. } if leases.contains_key(id) => return Err(StoreError::LeaseExists(*id)),
            Command::LeaseGrant { id, ttl_seconds, now_ms } => {
                let lease = Lease { id: *id, ttl_seconds: *ttl_seconds, deadline_ms: now_ms + ttl_seconds * 1000 };
                leases.insert(*id, lease);
                CommandReply::LeaseGranted(lease)
            }
            Command::LeaseKeepAlive { id, now_ms } => {
                let lease = leases.get_mut(id).ok_or(StoreError::LeaseNotFound(*id))?;
                lease.deadline_ms = (lease.deadline_ms + 1).max(now_ms + lease.ttl_seconds * 1000);
                CommandReply::LeaseKeptAlive(*lease)
            }
            Command::LeaseRevoke { id } => {
                leases.remove(id).ok_or(StoreError::LeaseNotFound(*id))?;
                attempt.delete_where(|key_value| key_value.lease == *id);
                CommandReply::LeaseRevoked { revision: attempt.revision() }
            }
            Command::LeaseExpire { ids, now_ms } => {
                let mut expired = Vec::new();
                for id in ids {
                    if leases.get(id).is_some_and(|lease| lease.deadline_ms <= *now_ms) {
                        leases.remove(id);
                        attempt.delete_where(|key_value| key_value.lease == *id);
                        expired.push(*id);
                    }
                }
                CommandReply::LeasesExpired { ids: expired, revision: attempt.revision() }
            }
        };
        let (values, events) = (attempt.values, attempt.events);
        self.leases = leases;
        if !events.is_empty() {
            self.states.push(values);
            self.batches.push(EventBatch { revision: now.next(), events: events.into() });
        }
        Ok(reply)
    }

    /// The keys attached to a lease, in order.
    pub fn attached(&self, id: LeaseId) -> Vec<Bytes> {
        self.newest().values().filter(|key_value| key_value.lease == id).map(|key_value| key_value.key.clone()).collect()
    }

    /// What a watch from a revision is told, up to now.
    pub fn watch(&self, from: Revision) -> Result<Vec<EventBatch>, StoreError> {
        if from < self.compacted {
            return Err(StoreError::Compacted { requested: from, compacted: self.compacted });
        }
        if from > self.revision().next() {
            return Err(StoreError::FutureRevision { requested: from, current: self.revision() });
        }
        Ok(self.batches.iter().filter(|batch| batch.revision >= from).cloned().collect())
    }

    pub fn range(&self, request: &RangeRequest) -> Result<RangeResult, StoreError> {
        range(self, self.newest(), self.revision(), request)
    }
}

fn range(store: &Model, newest: &Values, revision: Revision, request: &RangeRequest) -> Result<RangeResult, StoreError> {
    let values = match request.revision {
        None => newest,
        Some(at) if at > store.revision() => {
            return Err(StoreError::FutureRevision { requested: at, current: store.revision() });
        }
        Some(at) if at < store.compacted => return Err(StoreError::Compacted { requested: at, compacted: store.compacted }),
        Some(at) => &store.states[at.0 as usize],
    };
    let all: Vec<&KeyValue> = values.values().filter(|key_value| request.range.contains(&key_value.key)).collect();
    let limit = request.limit.unwrap_or(u64::MAX) as usize;
    let content = |key_value: &&KeyValue| match request.content {
        RangeContent::KeysOnly => KeyValue { value: Bytes::new(), ..(*key_value).clone() },
        _ => (*key_value).clone(),
    };
    let count_only = request.content == RangeContent::CountOnly;
    Ok(RangeResult {
        key_values: if count_only { Vec::new() } else { all.iter().take(limit).map(content).collect() },
        count: all.len() as u64,
        more: !count_only && all.len() > limit,
        revision,
    })
}

struct Attempt<'s> {
    store: &'s Model,
    values: Values,
    events: Vec<Event>,
}

impl Attempt<'_> {
    fn revision(&self) -> Revision {
        if self.events.is_empty() { self.store.revision() } else { self.store.revision().next() }
    }

    fn delete_where(&mut self, doomed: impl Fn(&KeyValue) -> bool) -> Vec<KeyValue> {
        let doomed: Vec<KeyValue> = self.values.values().filter(|key_value| doomed(key_value)).cloned().collect();
        for previous in &doomed {
            self.values.remove(&previous.key);
            let key_value = KeyValue {
                key: previous.key.clone(),
                value: Bytes::new(),
                create_revision: Revision(0),
                mod_revision: self.store.revision().next(),
                version: 0,
                lease: LeaseId(0),
            };
            self.events.push(Event { kind: EventKind::Delete, key_value, previous: Some(previous.clone()) });
        }
        doomed
    }

    fn transact(&mut self, term: Term, transaction: &Transaction) -> Result<TransactionResult, StoreError> {
        check_fences(term, transaction)?;
        if clashes(transaction) {
            return Err(StoreError::DuplicateKey);
        }
        self.run(transaction)
    }

    fn run(&mut self, transaction: &Transaction) -> Result<TransactionResult, StoreError> {
        // Compares look at the state before the whole transaction.
        let before = self.store.newest();
        let succeeded = transaction.compares.iter().all(|compare| holds(before, compare));
        let mut responses = Vec::new();
        for operation in if succeeded { &transaction.success } else { &transaction.failure } {
            responses.push(match operation {
                Operation::Put { key, value, lease, return_previous } => {
                    let previous = self.put(key, value, *lease)?;
                    OperationResult::Put { previous: if *return_previous { previous } else { None } }
                }
                Operation::Delete { range, return_previous } => {
                    let doomed = self.delete_where(|key_value| range.contains(&key_value.key));
                    let deleted = doomed.len() as u64;
                    OperationResult::Delete { deleted, previous: if *return_previous { doomed } else { Vec::new() } }
                }
                Operation::Range(request) => OperationResult::Range(range(self.store, &self.values, self.revision(), request)?),
                Operation::Transaction(nested) => OperationResult::Transaction(self.run(nested)?),
            });
        }
        Ok(TransactionResult { succeeded, revision: self.revision(), responses })
    }

    fn put(&mut self, key: &Bytes, value: &PutValue, lease: PutLease) -> Result<Option<KeyValue>, StoreError> {
        let previous = self.values.get(key).cloned();
        let value = match value {
            PutValue::Set(value) => value.clone(),
            PutValue::Keep => previous.clone().ok_or(StoreError::KeyNotFound)?.value,
        };
        let lease = match lease {
            PutLease::Set(lease) => lease,
            PutLease::Keep => previous.clone().ok_or(StoreError::KeyNotFound)?.lease,
        };
        if lease.0 != 0 && !self.store.leases.contains_key(&lease) {
            return Err(StoreError::LeaseNotFound(lease));
        }
        let revision = self.store.revision().next();
        let key_value = KeyValue {
            key: key.clone(),
            value,
            create_revision: previous.as_ref().map_or(revision, |previous| previous.create_revision),
            mod_revision: revision,
            version: previous.as_ref().map_or(0, |previous| previous.version) + 1,
            lease,
        };
        self.values.insert(key.clone(), key_value.clone());
        self.events.push(Event { kind: EventKind::Put, key_value, previous: previous.clone() });
        Ok(previous)
    }
}

fn check_fences(term: Term, transaction: &Transaction) -> Result<(), StoreError> {
    match transaction.fence {
        Some(stamped) if stamped != term => return Err(StoreError::Fenced { stamped, current: term }),
        _ => {}
    }
    for operation in transaction.success.iter().chain(&transaction.failure) {
        if let Operation::Transaction(nested) = operation {
            check_fences(term, nested)?;
        }
    }
    Ok(())
}

/// The keys of the universe that an operation may put and delete.
fn touched(operation: &Operation) -> (BTreeSet<&'static [u8]>, BTreeSet<&'static [u8]>) {
    let within = |contains: &dyn Fn(&[u8]) -> bool| KEYS.into_iter().filter(|key| contains(key)).collect();
    match operation {
        Operation::Put { key, .. } => (within(&|candidate| candidate == key.as_ref()), BTreeSet::new()),
        Operation::Delete { range, .. } => (BTreeSet::new(), within(&|candidate| range.contains(candidate))),
        Operation::Range(_) => Default::default(),
        Operation::Transaction(nested) => {
            let all = nested.success.iter().chain(&nested.failure).map(touched);
            all.fold(Default::default(), |sum, other| (&sum.0 | &other.0, &sum.1 | &other.1))
        }
    }
}

fn clashes(transaction: &Transaction) -> bool {
    [&transaction.success, &transaction.failure].into_iter().any(|operations| {
        let nested = operations.iter().any(|operation| matches!(operation, Operation::Transaction(nested) if clashes(nested)));
        let pairs = (0..operations.len()).flat_map(|left| (left + 1..operations.len()).map(move |right| (left, right)));
        let mut pairs = pairs.map(|(left, right)| (touched(&operations[left]), touched(&operations[right])));
        nested
            || pairs.any(|(left, right)| {
                !left.0.is_disjoint(&right.0) || !left.0.is_disjoint(&right.1) || !left.1.is_disjoint(&right.0)
            })
    })
}

fn holds(values: &Values, compare: &Compare) -> bool {
    let found: Vec<&KeyValue> = values.values().filter(|key_value| compare.range.contains(&key_value.key)).collect();
    let order = |ordering: std::cmp::Ordering| match compare.order {
        CompareOrder::Equal => ordering.is_eq(),
        CompareOrder::NotEqual => !ordering.is_eq(),
        CompareOrder::Greater => ordering.is_gt(),
        CompareOrder::Less => ordering.is_lt(),
    };
    if found.is_empty() {
        return match &compare.target {
            CompareTarget::Version(number) => order(0.cmp(number)),
            CompareTarget::CreateRevision(revision) | CompareTarget::ModRevision(revision) => order(0.cmp(&revision.0)),
            CompareTarget::Lease(lease) => order(0.cmp(&lease.0)),
            CompareTarget::Value(_) => false,
        };
    }
    found.into_iter().all(|key_value| match &compare.target {
        CompareTarget::Version(number) => order(key_value.version.cmp(number)),
        CompareTarget::CreateRevision(revision) => order(key_value.create_revision.cmp(revision)),
        CompareTarget::ModRevision(revision) => order(key_value.mod_revision.cmp(revision)),
        CompareTarget::Lease(lease) => order(key_value.lease.cmp(lease)),
        CompareTarget::Value(value) => order(key_value.value.cmp(value)),
    })
}

fn key() -> impl Strategy<Value = Bytes> + Clone {
    prop::sample::select(&KEYS[..]).prop_map(Bytes::from_static)
}

pub fn key_range() -> impl Strategy<Value = KeyRange> + Clone {
    prop_oneof![
        3 => key().prop_map(KeyRange::One),
        2 => (key(), key()).prop_map(|(start, end)| KeyRange::Span { start, end }),
        1 => key().prop_map(|start| KeyRange::Span { start, end: Bytes::new() }),
        1 => Just(KeyRange::all()),
        1 => Just(KeyRange::prefix("a/")),
    ]
}

fn value() -> impl Strategy<Value = Bytes> + Clone {
    prop_oneof![(0..4_u8).prop_map(|number| Bytes::from(vec![b'v', number])), Just(Bytes::new())]
}

/// For puts and compares: mostly none.
fn lease_id() -> impl Strategy<Value = LeaseId> + Clone {
    prop_oneof![24 => Just(LeaseId(0)), 2 => Just(LeaseId(1)), 1 => Just(LeaseId(-2))]
}

/// For the commands on leases.
fn real_lease_id() -> impl Strategy<Value = LeaseId> + Clone {
    prop_oneof![1 => Just(LeaseId(0)), 12 => Just(LeaseId(1)), 6 => Just(LeaseId(-2))]
}

fn revision() -> impl Strategy<Value = Revision> + Clone {
    prop_oneof![6 => 0..8_u64, 1 => 8..30_u64].prop_map(Revision)
}

fn compare() -> impl Strategy<Value = Compare> + Clone {
    let target = prop_oneof![
        (0..3_u64).prop_map(CompareTarget::Version),
        revision().prop_map(CompareTarget::CreateRevision),
        revision().prop_map(CompareTarget::ModRevision),
        value().prop_map(CompareTarget::Value),
        lease_id().prop_map(CompareTarget::Lease),
    ];
    let order =
        prop::sample::select(vec![CompareOrder::Equal, CompareOrder::NotEqual, CompareOrder::Greater, CompareOrder::Less]);
    (key_range(), target, order).prop_map(|(range, target, order)| Compare { range, target, order })
}

pub fn range_request() -> impl Strategy<Value = RangeRequest> + Clone {
    let content =
        prop::sample::select(vec![RangeContent::Values, RangeContent::Values, RangeContent::KeysOnly, RangeContent::CountOnly]);
    (key_range(), prop::option::weighted(0.4, revision()), prop::option::of(0..4_u64), content)
        .prop_map(|(range, revision, limit, content)| RangeRequest { range, revision, limit, content })
}

fn operation() -> impl Strategy<Value = Operation> + Clone {
    let put_value = prop_oneof![15 => value().prop_map(PutValue::Set), 1 => Just(PutValue::Keep)];
    let put_lease = prop_oneof![15 => lease_id().prop_map(PutLease::Set), 1 => Just(PutLease::Keep)];
    let put = (key(), put_value, put_lease, any::<bool>()).prop_map(|(key, value, lease, return_previous)| Operation::Put {
        key,
        value,
        lease,
        return_previous,
    });
    let doomed = prop_oneof![3 => key().prop_map(KeyRange::One), 1 => key_range()];
    let delete = (doomed, any::<bool>()).prop_map(|(range, return_previous)| Operation::Delete { range, return_previous });
    prop_oneof![6 => put, 2 => delete, 1 => range_request().prop_map(Operation::Range)]
}

fn transaction_of(operation: impl Strategy<Value = Operation> + Clone) -> impl Strategy<Value = Transaction> + Clone {
    let fence = prop_oneof![12 => Just(None), 4 => Just(Some(Term(1))), 1 => Just(Some(Term(2)))];
    // More operations at once touch a key twice more often, which is refused.
    let operations = prop_oneof![3 => prop::collection::vec(operation.clone(), 1), 2 => prop::collection::vec(operation, 2..4)];
    (prop::collection::vec(compare(), 0..2), operations.clone(), operations, fence)
        .prop_map(|(compares, success, failure, fence)| Transaction { compares, success, failure, fence })
}

/// Transactions that only read.
pub fn reading() -> impl Strategy<Value = Transaction> + Clone {
    let without_fence = |transaction| Transaction { fence: None, ..transaction };
    let range = range_request().prop_map(Operation::Range);
    let nested = transaction_of(range.clone()).prop_map(move |nested| Operation::Transaction(Box::new(without_fence(nested))));
    transaction_of(prop_oneof![3 => range, 1 => nested]).prop_map(without_fence)
}

pub fn command() -> impl Strategy<Value = Command> + Clone {
    let nested = transaction_of(operation()).prop_map(|nested| Operation::Transaction(Box::new(nested)));
    let now_ms = (0..20_u64).prop_map(|seconds| seconds * 1000);
    prop_oneof![
        16 => transaction_of(prop_oneof![5 => operation(), 1 => nested]).prop_map(Command::Transact),
        2 => revision().prop_map(Command::Compact),
        3 => (real_lease_id(), 1..5_u64, now_ms.clone()).prop_map(|(id, ttl_seconds, now_ms)| Command::LeaseGrant { id, ttl_seconds, now_ms }),
        1 => real_lease_id().prop_map(|id| Command::LeaseRevoke { id }),
        1 => (real_lease_id(), now_ms.clone()).prop_map(|(id, now_ms)| Command::LeaseKeepAlive { id, now_ms }),
        1 => (prop::collection::vec(real_lease_id(), 1..3), now_ms).prop_map(|(ids, now_ms)| Command::LeaseExpire { ids, now_ms }),
    ]
}

/// Log entries, in batches: as consensus hands them to the state machine.
pub fn batches() -> impl Strategy<Value = Vec<Vec<Command>>> {
    prop::collection::vec(prop::collection::vec(command(), 0..9), 1..16)
}
