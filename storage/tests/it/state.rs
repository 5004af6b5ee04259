//! The state machine against the naive model.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use trireme_storage::{
    command::{ApplyBatch, ApplyEntry, Command, CommandReply, CommandResult},
    engine::{Engine, memory::MemoryEngine},
    local::LocalStore,
    log::RaftLog,
    metrics::StorageMetrics,
    model::{
        EventBatch, EventKind, KeyRange, LeaseId, Operation, PutLease, PutValue, RangeContent, RangeRequest, RangeResult,
        Revision, Term, Transaction,
    },
    rows::Row,
    state_machine::StateMachine,
    store::{StoreError, Watch},
};

use crate::{
    engines,
    model::{self, Model},
};

pub const TERM: Term = Term(1);

/// A batch with one entry for each command.
pub fn batch(number: usize, commands: &[Command]) -> ApplyBatch {
    let entries = commands.iter().map(|command| ApplyEntry { term: TERM, commands: vec![command.clone()] }).collect();
    ApplyBatch { entries, applied: Bytes::from(format!("applied {number}")) }
}

/// A batch whose commands all stand in one entry.
fn batch_of_one_entry(number: usize, commands: &[Command]) -> ApplyBatch {
    ApplyBatch {
        entries: vec![ApplyEntry { term: TERM, commands: commands.to_vec() }],
        applied: Bytes::from(format!("applied {number}")),
    }
}

pub fn put(key: &str, value: &str) -> Command {
    Command::Transact(Transaction { success: vec![Operation::put(key.to_owned(), value.to_owned())], ..Transaction::default() })
}

/// Every event that can still be watched.
pub fn all_events(machine: &StateMachine) -> Vec<EventBatch> {
    events_from(machine, machine.compacted_revision()).unwrap()
}

/// What a watch from a revision is told, up to now.
fn events_from(machine: &StateMachine, from: Revision) -> Result<Vec<EventBatch>, StoreError> {
    let mut watch = machine.watch(from)?;
    let reading = async {
        let mut events = Vec::new();
        for _ in from.0.max(1)..=machine.revision().0 {
            events.push(watch.next().await?);
        }
        Ok(events)
    };
    // On a thread of its own, because tests that have a runtime call this, too.
    let run = || tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(reading);
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// Row by row there is the same to be found, where the request takes all of a range.
fn check_visit(
    machine: &StateMachine,
    request: &RangeRequest,
    expected: Result<RangeResult, StoreError>,
) -> Result<(), TestCaseError> {
    let mut rows = Vec::new();
    let visited = machine.visit(&request.range, request.revision, &mut |row: Row<'_>| {
        rows.push((row.key.to_vec(), row.value.to_vec(), row.create_revision, row.mod_revision, row.version, row.lease));
        ControlFlow::Continue(())
    });
    match expected {
        Err(error) => prop_assert_eq!(visited, Err(error)),
        Ok(found) => {
            prop_assert_eq!((visited, rows.len() as u64), (Ok(found.revision), found.count));
            if request.limit.is_none() && request.content == RangeContent::Values {
                let found = found.key_values.into_iter();
                let found = found
                    .map(|it| (it.key.to_vec(), it.value.to_vec(), it.create_revision, it.mod_revision, it.version, it.lease));
                prop_assert_eq!(rows, found.collect::<Vec<_>>());
            }
        }
    }
    Ok(())
}

/// The leases with their keys; at every revision the answers to all requests, and what a watch from there is told.
fn check_everything(machine: &StateMachine, model: &Model, requests: &[RangeRequest]) -> Result<(), TestCaseError> {
    prop_assert_eq!(machine.revision(), model.revision());
    prop_assert_eq!(machine.compacted_revision(), model.compacted);
    prop_assert_eq!(machine.leases(), model.leases.values().copied().collect::<Vec<_>>());
    for lease in model.leases.values() {
        prop_assert_eq!(machine.lease(lease.id), Some((*lease, model.attached(lease.id))));
    }
    let whole = [KeyRange::all(), KeyRange::prefix("a"), KeyRange::One(Bytes::from_static(b"a/1"))].map(RangeRequest::new);
    for at in (0..=model.revision().0 + 2).map(Revision) {
        for request in whole.iter().chain(requests) {
            let request = request.clone().at(at);
            let expected = model.range(&request);
            prop_assert_eq!(machine.range(&request), expected.clone());
            check_visit(machine, &request, expected)?;
        }
        prop_assert_eq!(events_from(machine, at), model.watch(at));
    }
    Ok(())
}

proptest! {
    #![proptest_config(crate::cases(96))]

    /// The answers, the state at every revision, the leases and what is watched from every revision equal the model's; a machine that is
    /// opened anew holds the same, and has its events from history alone.
    #[test]
    fn the_machine_equals_the_model(batches in model::batches(), requests in prop::collection::vec(model::range_request(), 0..6)) {
        let engine = Arc::new(MemoryEngine::new());
        check_engine(engine, &batches, &requests)?;
    }

    /// A transaction that only reads is answered as if it had gone through the log, and changes nothing.
    #[test]
    fn reading_transactions_equal_the_model(batches in model::batches(), transactions in prop::collection::vec(model::reading(), 1..6)) {
        let machine = StateMachine::open(Arc::new(MemoryEngine::new())).unwrap();
        let mut model = Model::new();
        for (number, commands) in batches.iter().enumerate() {
            commands.iter().for_each(|command| drop(model.apply(TERM, command)));
            machine.apply(batch(number, commands)).unwrap();
        }
        let standing = machine.standing();
        for transaction in transactions {
            let expected = model.apply(TERM, &Command::Transact(transaction.clone()));
            prop_assert_eq!(machine.read_transaction(&transaction).map(CommandReply::Transaction), expected);
        }
        prop_assert_eq!(machine.standing(), standing);
        let writing = Transaction { success: vec![Operation::put("a", "1")], ..Transaction::default() };
        prop_assert!(matches!(machine.read_transaction(&writing), Err(StoreError::InvalidTransaction(_))));
    }

    /// How commands are dealt into batches and entries makes no difference to answers, state or hash.
    #[test]
    fn batching_makes_no_difference(batches in model::batches()) {
        let (one, other) = (StateMachine::open(Arc::new(MemoryEngine::new())).unwrap(), StateMachine::open(Arc::new(MemoryEngine::new())).unwrap());
        let mut number = 0;
        for commands in &batches {
            let together: Vec<CommandResult> = one.apply(batch_of_one_entry(number, commands)).unwrap().into_iter().flatten().collect();
            let mut apart = Vec::new();
            for command in commands {
                number += 1;
                apart.extend(other.apply(batch(number, std::slice::from_ref(command))).unwrap().into_iter().flatten());
            }
            prop_assert_eq!(together, apart);
        }
        prop_assert_eq!(one.hash(), other.hash());
        prop_assert_eq!(one.range(&RangeRequest::new(KeyRange::all())), other.range(&RangeRequest::new(KeyRange::all())));
        prop_assert_eq!(all_events(&one), all_events(&other));
    }

    /// Compaction takes away what is below its revision, and changes nothing from there on.
    #[test]
    fn compaction_changes_nothing_above(batches in model::batches(), revision in any::<prop::sample::Index>()) {
        let commands: Vec<Command> = batches.into_iter().flatten().filter(|command| !matches!(command, Command::Compact(_))).collect();
        let machine = StateMachine::open(Arc::new(MemoryEngine::new())).unwrap();
        machine.apply(batch(0, &commands)).unwrap();
        let newest = machine.revision();
        prop_assume!(newest > Revision(0));
        let revision = 1 + revision.index(newest.0 as usize) as u64;
        let states: Vec<_> = (revision..=newest.0).map(|at| machine.range(&RangeRequest::new(KeyRange::all()).at(Revision(at))).unwrap()).collect();
        let events: Vec<_> = all_events(&machine).into_iter().filter(|batch| batch.revision.0 >= revision).collect();
        let hash = machine.hash();
        machine.apply(batch(1, &[Command::Compact(Revision(revision))])).unwrap();
        for (at, state) in (revision..).zip(&states) {
            prop_assert_eq!(&machine.range(&RangeRequest::new(KeyRange::all()).at(Revision(at))).unwrap(), state);
        }
        prop_assert_eq!(all_events(&machine), events);
        prop_assert_eq!(machine.hash(), hash);
        for at in 0..revision {
            let compacted = StoreError::Compacted { requested: Revision(at), compacted: Revision(revision) };
            prop_assert_eq!(machine.range(&RangeRequest::new(KeyRange::all()).at(Revision(at))), Err(compacted.clone()));
            prop_assert_eq!(machine.watch(Revision(at)).err(), Some(compacted));
        }
    }
}

proptest! {
    #![proptest_config(crate::cases(16))]

    #[test]
    fn the_machine_on_rocks_equals_the_model(batches in model::batches(), requests in prop::collection::vec(model::range_request(), 0..6)) {
        let fixture = engines::rocks();
        check_engine(Arc::clone(&fixture.engine), &batches, &requests)?;
    }
}

fn check_engine(engine: Arc<dyn Engine>, batches: &[Vec<Command>], requests: &[RangeRequest]) -> Result<(), TestCaseError> {
    let machine = StateMachine::open(Arc::clone(&engine)).unwrap();
    let mut model = Model::new();
    for (number, commands) in batches.iter().enumerate() {
        let expected: Vec<CommandResult> = commands.iter().map(|command| model.apply(TERM, command)).collect();
        let results: Vec<CommandResult> = machine.apply(batch(number, commands)).unwrap().into_iter().flatten().collect();
        prop_assert_eq!(results, expected);
        for request in requests {
            prop_assert_eq!(machine.range(request), model.range(request));
        }
    }
    check_everything(&machine, &model, requests)?;
    let (applied, hash) = (machine.applied(), machine.hash());
    drop(machine);
    let again = StateMachine::open(engine).unwrap();
    prop_assert_eq!((again.applied(), again.hash()), (applied, hash));
    check_everything(&again, &model, requests)
}

/// The properties above prove little if the generated commands do little.
#[test]
fn the_generated_commands_do_something() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..100 {
        let mut model = Model::new();
        for command in model::batches().new_tree(&mut runner).unwrap().current().into_iter().flatten() {
            let name = match (&command, model.apply(TERM, &command)) {
                (_, Err(StoreError::Fenced { .. })) => "fenced",
                (_, Err(_)) => "refused",
                (Command::Transact(transaction), Ok(CommandReply::Transaction(result))) => {
                    let nested = transaction.success.iter().any(|operation| matches!(operation, Operation::Transaction(_)));
                    match (result.succeeded, nested) {
                        (true, true) => "nested transaction",
                        (true, false) => "success",
                        (false, _) => "failure",
                    }
                }
                (_, Ok(CommandReply::Compacted)) => "compaction",
                (_, Ok(CommandReply::LeaseRevoked { .. })) => "lease ended",
                (_, Ok(CommandReply::LeasesExpired { ids, .. })) if !ids.is_empty() => "lease ended",
                (_, Ok(_)) => "lease",
            };
            *seen.entry(name).or_default() += 1;
        }
        for event in model.batches.iter().flat_map(|batch| batch.events.iter()) {
            let name = match (event.kind, &event.previous) {
                (EventKind::Delete, _) => "key deleted",
                (EventKind::Put, Some(_)) => "key replaced",
                (EventKind::Put, None) => "key created",
            };
            *seen.entry(name).or_default() += 1;
            if event.previous.as_ref().is_some_and(|previous| previous.lease.0 != 0) {
                *seen.entry("key with a lease changed").or_default() += 1;
            }
        }
    }
    let expected = [
        ("compaction", 40),
        ("failure", 200),
        ("fenced", 40),
        ("key created", 300),
        ("key deleted", 200),
        ("key replaced", 500),
        ("key with a lease changed", 20),
        ("lease", 100),
        ("lease ended", 20),
        ("nested transaction", 100),
        ("refused", 200),
        ("success", 500),
    ];
    for (name, least) in expected {
        assert!(seen.get(name).is_some_and(|count| *count >= least), "too little of {name:?}: {seen:?}");
    }
}

#[test]
fn a_stamped_write_of_another_term_changes_nothing() {
    let store = LocalStore::in_memory().unwrap();
    store.apply(put("k", "1")).unwrap();
    store.set_term(Term(5));
    let stamped = |term, value: &str| {
        Command::Transact(Transaction {
            success: vec![Operation::put("k", value.to_owned())],
            fence: Some(Term(term)),
            ..Transaction::default()
        })
    };
    assert_eq!(store.apply(stamped(4, "2")), Err(StoreError::Fenced { stamped: Term(4), current: Term(5) }));
    assert_eq!(store.apply(stamped(6, "2")), Err(StoreError::Fenced { stamped: Term(6), current: Term(5) }));
    assert_eq!(store.state_machine().revision(), Revision(1));
    store.apply(stamped(5, "3")).unwrap();
    assert_eq!(store.state_machine().revision(), Revision(2));
}

#[test]
fn malformed_transactions_are_refused_whole() {
    let store = LocalStore::in_memory().unwrap();
    let refuse = |operations: Vec<Operation>, expected: StoreError| {
        let command = Command::Transact(Transaction { success: operations, ..Transaction::default() });
        assert_eq!(store.apply(command), Err(expected));
        assert_eq!(store.state_machine().revision(), Revision(0));
    };
    refuse(vec![Operation::put("", "v")], StoreError::InvalidTransaction("key is not provided".into()));
    refuse(vec![Operation::put("a", "1"), Operation::put("a", "2")], StoreError::DuplicateKey);
    refuse(vec![Operation::put("a", "1"), Operation::delete("a")], StoreError::DuplicateKey);
    let keep = Operation::Put { key: "b".into(), value: PutValue::Keep, lease: PutLease::Keep, return_previous: false };
    refuse(vec![Operation::put("a", "1"), keep], StoreError::KeyNotFound);
    let deep = (0..20).fold(Transaction::default(), |inner, _| Transaction {
        success: vec![Operation::Transaction(Box::new(inner))],
        ..Transaction::default()
    });
    assert_eq!(
        store.apply(Command::Transact(deep)),
        Err(StoreError::InvalidTransaction("transactions are nested too deep".into()))
    );
}

#[test]
fn a_lease_takes_its_keys_with_it() {
    let store = LocalStore::in_memory().unwrap();
    let machine = store.state_machine();
    let lease = LeaseId(7);
    store.apply(Command::LeaseGrant { id: lease, ttl_seconds: 10, now_ms: 1_000 }).unwrap();
    let attach = |key: &'static str| Operation::Put {
        key: key.into(),
        value: PutValue::Set("v".into()),
        lease: PutLease::Set(lease),
        return_previous: false,
    };
    store
        .apply(Command::Transact(Transaction { success: vec![attach("a"), attach("b"), attach("c")], ..Transaction::default() }))
        .unwrap();
    // A put without the lease detaches the key.
    store.apply(put("b", "free")).unwrap();
    assert_eq!(machine.lease(lease).unwrap().1, vec![Bytes::from("a"), Bytes::from("c")]);
    assert_eq!(machine.expired_leases(10_999), vec![]);
    assert_eq!(machine.expired_leases(11_000), vec![lease]);
    store.apply(Command::LeaseKeepAlive { id: lease, now_ms: 5_000 }).unwrap();
    let early = store.apply(Command::LeaseExpire { ids: vec![lease], now_ms: 11_000 });
    assert_eq!(early, Ok(CommandReply::LeasesExpired { ids: vec![], revision: Revision(2) }), "the keep-alive came first");
    // Kept alive by a clock that is behind: the deadline does not go back, but moves, so that who watches it sees the sign of life.
    store.apply(Command::LeaseKeepAlive { id: lease, now_ms: 1_000 }).unwrap();
    assert_eq!(machine.expired_leases(15_000), vec![]);
    let due = store.apply(Command::LeaseExpire { ids: vec![lease], now_ms: 15_001 });
    assert_eq!(due, Ok(CommandReply::LeasesExpired { ids: vec![lease], revision: Revision(3) }));
    let left = machine.range(&RangeRequest::new(KeyRange::all())).unwrap();
    assert_eq!(left.key_values.iter().map(|key_value| key_value.key.clone()).collect::<Vec<_>>(), vec![Bytes::from("b")]);
    assert_eq!(store.apply(Command::LeaseRevoke { id: lease }), Err(StoreError::LeaseNotFound(lease)));
}

#[test]
fn hashes_of_recent_revisions_can_be_compared() {
    let store = LocalStore::in_memory().unwrap();
    let other = LocalStore::in_memory().unwrap();
    for number in 0..10 {
        store.apply(put("k", &number.to_string())).unwrap();
        if number < 5 {
            other.apply(put("k", &number.to_string())).unwrap();
        }
    }
    let (revision, hash) = other.state_machine().hash();
    assert_eq!(store.state_machine().hash_at(revision), Some(hash));
    assert_ne!(store.state_machine().hash().1, hash);
    other.apply(put("k", "something else")).unwrap();
    let (revision, hash) = other.state_machine().hash();
    assert_ne!(store.state_machine().hash_at(revision), Some(hash), "the histories differ");
    assert_eq!(store.state_machine().hash_at(Revision(99)), None);
}

#[test]
fn a_crash_leaves_whole_batches() {
    let engine = MemoryEngine::new();
    let machine = StateMachine::open(Arc::new(engine.clone())).unwrap();
    machine.apply(batch(1, &[put("a", "1"), put("b", "1")])).unwrap();
    machine.flush().unwrap();
    let durable = (machine.applied(), machine.hash(), machine.range(&RangeRequest::new(KeyRange::all())).unwrap());
    machine.apply(batch(2, &[put("a", "2"), put("c", "2")])).unwrap();
    engine.crash();
    let again = StateMachine::open(Arc::new(engine)).unwrap();
    assert_eq!((again.applied(), again.hash(), again.range(&RangeRequest::new(KeyRange::all())).unwrap()), durable);
    // Consensus gives the batch again: the state is what it would have been.
    again.apply(batch(2, &[put("a", "2"), put("c", "2")])).unwrap();
    assert_eq!((again.applied(), again.hash()), (machine.applied(), machine.hash()));
}

#[test]
fn a_full_disk_changes_nothing_and_heals() {
    let engine = MemoryEngine::new();
    let machine = StateMachine::open(Arc::new(engine.clone())).unwrap();
    machine.apply(batch(1, &[put("a", "1")])).unwrap();
    let before = (machine.applied(), machine.hash(), machine.range(&RangeRequest::new(KeyRange::all())).unwrap());
    engine.set_capacity_bytes(Some(10));
    assert_eq!(machine.apply(batch(2, &[put("b", "2")])), Err(StoreError::NoSpace));
    assert_eq!((machine.applied(), machine.hash(), machine.range(&RangeRequest::new(KeyRange::all())).unwrap()), before);
    engine.set_capacity_bytes(None);
    machine.apply(batch(2, &[put("b", "2")])).unwrap();
    assert_eq!(machine.revision(), Revision(2));
}

#[test]
fn durations_are_reported_under_the_names_of_etcd() {
    let metrics = StorageMetrics::default();
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let machine = StateMachine::open_with_metrics(Arc::new(MemoryEngine::new()), metrics.clone()).unwrap();
    machine.apply(batch(1, &[put("a", "1")])).unwrap();
    let log = RaftLog::open(Arc::new(MemoryEngine::new())).unwrap().with_metrics(metrics);
    log.save_meta("vote", Bytes::new()).unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for name in ["etcd_disk_wal_fsync_duration_seconds", "etcd_disk_backend_commit_duration_seconds"] {
        assert!(text.contains(&format!("{name}_count 1\n")), "{text}");
        assert!(text.contains(&format!("{name}_bucket{{le=\"8.192\"}} 1\n")), "{text}");
    }
}
