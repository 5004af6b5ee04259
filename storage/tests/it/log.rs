//! The Raft log against a plain list, over both engines.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use proptest::prelude::*;
use trireme_storage::{
    engine::{Engine, EngineError, memory::MemoryEngine},
    log::{LogBounds, LogError, LogRecord, RaftLog},
    state_machine::StateMachine,
};

use crate::engines::{self, Fixture};

#[derive(Clone, Debug)]
enum Step {
    Append(usize, usize),
    Truncate(u64),
    Purge(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1..5_usize, 0..400_usize).prop_map(|(count, size)| Step::Append(count, size)),
        1 => (1..40_u64).prop_map(Step::Truncate),
        1 => (1..40_u64).prop_map(Step::Purge),
        1 => Just(Step::Reopen),
    ]
}

fn record(index: u64, size: usize, salt: usize) -> LogRecord {
    let mut bytes = format!("{index}/{salt}/").into_bytes();
    bytes.resize(bytes.len() + size, b'.');
    LogRecord { index, record: bytes.into() }
}

fn check(log: &RaftLog, model: &BTreeMap<u64, Bytes>, purged: Option<u64>, max_bytes: usize) -> Result<(), TestCaseError> {
    let bounds = log.bounds();
    prop_assert_eq!(bounds.first, model.keys().next().copied());
    prop_assert_eq!(bounds.last, model.keys().next_back().copied());
    prop_assert_eq!(bounds.purged, purged);
    prop_assert_eq!(bounds.purged_marker, purged.map(|index| Bytes::from(format!("marker {index}"))));
    for (start, end) in [(0, 100), (3, 9), (5, 5), (20, 22)] {
        let found = log.read(start..end, max_bytes).unwrap();
        let expected: Vec<(u64, Bytes)> = model.range(start..end).map(|(index, record)| (*index, record.clone())).collect();
        prop_assert_eq!(found.is_empty(), expected.is_empty());
        let bytes: usize = found.iter().map(|record| record.record.len()).sum();
        prop_assert!(found.len() <= 1 || bytes <= max_bytes);
        let cut = found.len();
        let next_fits = expected.get(cut).is_some_and(|(_, record)| bytes + record.len() <= max_bytes);
        prop_assert!(!next_fits, "a record that fits is not left out");
        let found: Vec<(u64, Bytes)> = found.into_iter().map(|record| (record.index, record.record)).collect();
        prop_assert_eq!(found, expected[..cut].to_vec());
    }
    Ok(())
}

fn run(fixture: &Fixture, steps: &[Step], max_bytes: usize) -> Result<(), TestCaseError> {
    let mut log = RaftLog::open(Arc::clone(&fixture.engine)).unwrap();
    let mut model: BTreeMap<u64, Bytes> = BTreeMap::new();
    let mut purged: Option<u64> = None;
    for (salt, step) in steps.iter().enumerate() {
        match *step {
            Step::Append(count, size) => {
                let next = model.keys().next_back().copied().or(purged).map_or(1, |last| last + 1);
                let records: Vec<LogRecord> = (next..next + count as u64).map(|index| record(index, size, salt)).collect();
                model.extend(records.iter().map(|record| (record.index, record.record.clone())));
                log.append(records).unwrap();
                let gap = log.append(vec![record(next + 1000, 0, salt)]);
                prop_assert_eq!(gap, Err(LogError::Gap { expected: next + count as u64, found: next + 1000 }));
            }
            Step::Truncate(index) => {
                log.truncate_from(index).unwrap();
                model.retain(|at, _| *at < index);
            }
            Step::Purge(index) => {
                log.purge_through(index, Bytes::from(format!("marker {index}"))).unwrap();
                if purged.is_none_or(|purged| purged <= index) {
                    purged = Some(index);
                    model.retain(|at, _| *at > index);
                }
            }
            Step::Reopen => {
                drop(log);
                log = RaftLog::open(Arc::clone(&fixture.engine)).unwrap();
            }
        }
        check(&log, &model, purged, max_bytes)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_log_equals_a_list(steps in prop::collection::vec(step(), 1..25), max_bytes in 0..1500_usize) {
        run(&engines::memory(), &steps, max_bytes)?;
        run(&engines::rocks_log(), &steps, max_bytes)?;
    }
}

#[test]
fn what_was_appended_survives_a_crash() {
    let engine = MemoryEngine::new();
    let log = RaftLog::open(Arc::new(engine.clone())).unwrap();
    log.append((1..=5).map(|index| record(index, 3, 0)).collect()).unwrap();
    log.save_meta("vote", Bytes::from_static(b"term 3")).unwrap();
    log.purge_through(2, Bytes::from_static(b"two")).unwrap();
    log.truncate_from(5).unwrap();
    engine.crash();
    let log = RaftLog::open(Arc::new(engine)).unwrap();
    let expected = LogBounds { first: Some(3), last: Some(4), purged: Some(2), purged_marker: Some(Bytes::from_static(b"two")) };
    assert_eq!(log.bounds(), expected);
    assert_eq!(log.meta("vote").unwrap().as_deref(), Some(b"term 3".as_slice()));
    assert_eq!(log.meta("other").unwrap(), None);
    assert_eq!(log.read(0..9, 1 << 20).unwrap(), vec![record(3, 3, 0), record(4, 3, 0)]);
}

#[test]
fn an_append_to_a_full_disk_is_no_part_of_the_log() {
    let engine = MemoryEngine::new();
    let log = RaftLog::open(Arc::new(engine.clone())).unwrap();
    log.append(vec![record(1, 10, 0)]).unwrap();
    engine.set_capacity_bytes(Some(500));
    assert_eq!(log.append(vec![record(2, 1000, 0)]), Err(LogError::Engine(EngineError::NoSpace)));
    assert_eq!(log.bounds().last, Some(1));
    engine.set_capacity_bytes(None);
    log.append(vec![record(2, 1000, 0)]).unwrap();
    assert_eq!(log.read(1..9, 1 << 20).unwrap().len(), 2);
}

#[test]
fn a_hole_in_the_log_is_found_at_open() {
    use trireme_storage::engine::{Durability, Keyspace, WriteBatch};
    let engine = MemoryEngine::new();
    let log = RaftLog::open(Arc::new(engine.clone())).unwrap();
    log.append((1..=5).map(|index| record(index, 3, 0)).collect()).unwrap();
    let mut batch = WriteBatch::new();
    batch.delete(Keyspace::Log, 3_u64.to_be_bytes().to_vec());
    engine.write(&batch, Durability::Sync).unwrap();
    let error = RaftLog::open(Arc::new(engine)).err().unwrap();
    assert_eq!(error.to_string(), "the stored data are corrupt: log record 3 is missing");
}

#[test]
fn an_engine_serves_one_purpose() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    RaftLog::open(Arc::clone(&engine)).unwrap();
    let error = StateMachine::open(engine).err().unwrap();
    assert_eq!(error.to_string(), "storage belongs to \"a Raft log\", not to \"a state machine\"");
}
