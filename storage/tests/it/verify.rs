//! What lies on the disk, looked at: whole stores are found whole, and every damage is found.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;
use trireme_storage::{
    command::Command,
    content::{Content, ContentCheck},
    engine::{
        Durability, Engine, EngineError, Keyspace, WriteBatch,
        rocks::{RocksEngine, RocksOptions},
    },
    log::{LogRecord, RaftLog},
    model::{KeyRange, LeaseId, Operation, RangeRequest, Revision, Transaction},
    state_machine::StateMachine,
    verify::{self, Contents, Report},
};

use crate::{
    engines, model,
    state::{batch, put},
};

fn open(folder: &Path) -> Arc<dyn Engine> {
    Arc::new(RocksEngine::open(folder, RocksOptions::for_state()).unwrap())
}

/// A store with current, overwritten and deleted keys, a lease and a compacted part.
fn filled(folder: &Path) {
    let machine = StateMachine::open(open(folder)).unwrap();
    let attached = Operation::Put {
        key: "leased".into(),
        value: trireme_storage::model::PutValue::Set("v".into()),
        lease: trireme_storage::model::PutLease::Set(LeaseId(5)),
        return_previous: false,
    };
    let transact = |success| Command::Transact(Transaction { success, ..Transaction::default() });
    let mut commands = vec![Command::LeaseGrant { id: LeaseId(5), ttl_seconds: 9, now_ms: 1 }, transact(vec![attached])];
    for round in 0..20 {
        commands.extend((0..50).map(|number| put(&format!("key-{number}"), &format!("value {round} {}", "x".repeat(200)))));
        commands.push(transact(vec![Operation::delete("key-7"), Operation::delete("key-8"), Operation::put("pair", "1")]));
    }
    commands.push(Command::Compact(Revision(400)));
    commands.extend((0..50).map(|number| put(&format!("key-{number}"), "last")));
    for (number, commands) in commands.chunks(40).enumerate() {
        machine.apply(batch(number, commands)).unwrap();
    }
    machine.flush().unwrap();
}

/// Everything in a folder: paths, times of the last change, contents.
fn everything(folder: &Path) -> Vec<(PathBuf, SystemTime, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(everything(&path));
        } else {
            found.push((path.clone(), fs::metadata(&path).unwrap().modified().unwrap(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn state_of(report: &Report) -> verify::StateContents {
    match report.contents {
        Contents::State(state) => state,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_store_is_found_whole_and_is_not_changed() {
    let folder = TempDir::new().unwrap();
    filled(folder.path());
    for _ in 0..2 {
        let before = everything(folder.path());
        let report = verify::state(folder.path()).unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(everything(folder.path()), before, "looking has changed something");
        let machine = StateMachine::open(open(folder.path())).unwrap();
        let held = state_of(&report);
        assert_eq!((held.revision, held.hash), machine.hash());
        assert_eq!((held.keys, held.leases, held.compacted), (machine.keys(), 1, Revision(400)));
        assert_eq!(held.changes, machine_changes(&machine));
        // As tables, too, instead of RocksDB's log.
        drop(machine.begin_snapshot().unwrap());
    }
}

fn machine_changes(machine: &StateMachine) -> u64 {
    crate::state::all_events(machine).iter().map(|batch| batch.events.len() as u64).sum()
}

#[test]
fn a_folder_without_a_store_or_of_another_format_is_told() {
    let folder = TempDir::new().unwrap();
    assert!(matches!(verify::state(folder.path()), Err(EngineError::Io { .. })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    fs::write(folder.path().join("FORMAT"), "trireme storage format 99\n").unwrap();
    assert!(matches!(verify::state(folder.path()), Err(EngineError::NewerFormat { found: 99, .. })));
}

/// Changes rows as no log ever would, and looks.
fn after(change: impl FnOnce(&dyn Engine, &mut WriteBatch)) -> Report {
    let folder = TempDir::new().unwrap();
    filled(folder.path());
    {
        let engine = open(folder.path());
        let mut rows = WriteBatch::new();
        change(engine.as_ref(), &mut rows);
        engine.write(&rows, Durability::Sync).unwrap();
    }
    verify::state(folder.path()).unwrap()
}

fn flipped(row: &Bytes, position: usize) -> Bytes {
    let mut row = row.to_vec();
    row[position] ^= 1;
    row.into()
}

#[test]
fn rows_that_do_not_agree_are_found() {
    let space =
        |keyspace| move |engine: &dyn Engine| engines::dump(engine).into_iter().find(|(one, _)| *one == keyspace).unwrap().1;
    let current = |engine: &dyn Engine, key: &str| engine.get(Keyspace::Current, key.as_bytes()).unwrap().unwrap();
    let cases: Vec<(&str, Report)> = vec![
        (
            "changed by something else",
            after(|engine, rows| {
                let row = current(engine, "key-3");
                rows.put(Keyspace::Current, "key-3", flipped(&row, row.len() - 1));
            }),
        ),
        ("changed by something else", after(|_, rows| rows.delete(Keyspace::Current, "key-3"))),
        ("its last change", after(|_, rows| rows.delete(Keyspace::Current, "key-3"))),
        ("cannot be read", after(|_, rows| rows.put(Keyspace::Current, "key-3", "short"))),
        (
            "is missing",
            after(|engine, rows| {
                let (key, _) = space(Keyspace::Versions)(engine).pop().unwrap();
                rows.delete(Keyspace::Versions, key);
            }),
        ),
        (
            "is missing in the history",
            after(|engine, rows| {
                let (key, _) = space(Keyspace::History)(engine).pop().unwrap();
                rows.delete(Keyspace::History, key);
            }),
        ),
        (
            "the history ends at",
            after(|engine, rows| {
                let (key, _) = space(Keyspace::History)(engine).pop().unwrap();
                rows.delete(Keyspace::History, key);
            }),
        ),
        (
            "does not go on",
            after(|engine, rows| {
                let all = space(Keyspace::History)(engine);
                rows.delete(Keyspace::History, all[all.len() / 2].0.clone());
            }),
        ),
        (
            "lease",
            after(|engine, rows| {
                let (key, _) = space(Keyspace::Leases)(engine).remove(0);
                rows.delete(Keyspace::Leases, key);
            }),
        ),
        ("the head of the state", after(|_, rows| rows.put(Keyspace::Meta, "state/head", "short"))),
    ];
    for (expected, report) in cases {
        assert!(!report.is_sound() && report.findings.iter().any(|finding| finding.contains(expected)), "{expected}: {report:?}");
    }
}

#[test]
fn a_flipped_bit_of_a_table_is_found_and_its_file_named() {
    let folder = TempDir::new().unwrap();
    filled(folder.path());
    drop(StateMachine::open(open(folder.path())).unwrap().begin_snapshot().unwrap());
    let tables: Vec<PathBuf> = everything(folder.path())
        .into_iter()
        .map(|(path, ..)| path)
        .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
        .collect();
    assert!(tables.len() >= 4, "{tables:?}");
    for table in tables {
        let whole = fs::read(&table).unwrap();
        // The first blocks of a table are its data.
        let mut damaged = whole.clone();
        damaged[10] ^= 0x10;
        fs::write(&table, &damaged).unwrap();
        let name = table.file_name().unwrap().to_str().unwrap();
        let told = match verify::state(folder.path()) {
            Ok(report) => {
                assert!(!report.is_sound(), "{name}");
                report.findings.join("\n")
            }
            Err(error) => error.to_string(),
        };
        assert!(told.contains(name), "{name}: {told}");
        fs::write(&table, &damaged[..damaged.len() / 2]).unwrap();
        let told = match verify::state(folder.path()) {
            Ok(report) => report.findings.join("\n"),
            Err(error) => error.to_string(),
        };
        assert!(told.contains(name), "cut off: {name}: {told}");
        fs::write(&table, whole).unwrap();
    }
    assert!(verify::state(folder.path()).unwrap().is_sound());
}

#[test]
fn a_log_is_looked_at_too() {
    let folder = TempDir::new().unwrap();
    let record = |index: u64| LogRecord { index, record: trireme_storage::codec::encode(&index).unwrap().into() };
    let engine = || Arc::new(RocksEngine::open(folder.path(), RocksOptions::for_log()).unwrap());
    RaftLog::open(engine()).unwrap().append((1..=30).map(record).collect()).unwrap();
    let report = verify::log(folder.path()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.contents, Contents::Log(verify::LogContents { records: 30, first: Some(1), last: Some(30) }));
    let mut rows = WriteBatch::new();
    rows.delete(Keyspace::Log, 9_u64.to_be_bytes().to_vec());
    rows.put(Keyspace::Log, 20_u64.to_be_bytes().to_vec(), "not a record");
    engine().write(&rows, Durability::Sync).unwrap();
    let report = verify::log(folder.path()).unwrap();
    assert_eq!(report.wrong, 2, "{report:?}");
    assert!(report.findings[0].contains("9 to 9 are missing") && report.findings[1].contains("log record 20"), "{report:?}");
}

#[test]
fn a_value_that_was_changed_behind_the_back_of_the_state_is_found_and_changes_its_hash() {
    for (one, other) in engines::both().into_iter().zip(engines::both()) {
        let machines = [&one, &other].map(|fixture| StateMachine::open(Arc::clone(&fixture.engine)).unwrap());
        let both = |number, command: Command| {
            machines.iter().for_each(|machine| {
                machine.apply(batch(number, std::slice::from_ref(&command))).unwrap();
            });
        };
        both(1, put("a", "1"));
        both(2, put("b", "1"));
        let row = one.engine.get(Keyspace::Current, b"a").unwrap().unwrap();
        let mut rows = WriteBatch::new();
        rows.put(Keyspace::Current, "a", flipped(&row, row.len() - 1));
        one.engine.write(&rows, Durability::Sync).unwrap();
        assert_eq!(machines[0].hash(), machines[1].hash(), "nothing has looked at it yet");
        assert!(matches!(machines[0].check_content(&|| true), Ok(ContentCheck::Differs { .. })));
        assert!(matches!(machines[1].check_content(&|| true), Ok(ContentCheck::Sound(Content { keys: 2, .. }))));
        // The next write of the key finds something else than on the other member.
        both(3, put("a", "2"));
        assert_ne!(machines[0].hash(), machines[1].hash());
        assert_ne!(machines[0].standing().hash, machines[1].standing().hash);
        both(4, put("c", "1"));
        assert_ne!(machines[0].hash(), machines[1].hash(), "it is never made good by later writes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// The content that is kept up to date is what the rows add up to, at every revision that can be read.
    #[test]
    fn the_content_is_that_of_the_rows(batches in model::batches()) {
        let fixture = engines::memory();
        let machine = StateMachine::open(Arc::clone(&fixture.engine)).unwrap();
        let mut contents = Vec::new();
        for (number, commands) in batches.iter().enumerate() {
            for (position, command) in commands.iter().enumerate() {
                // Commands may be refused; the batch is not.
                machine.apply(batch(number * 1000 + position, std::slice::from_ref(command))).unwrap();
                contents.push((machine.revision(), machine.standing().content));
            }
        }
        let standing = machine.standing();
        prop_assert_eq!(machine.check_content(&|| true), Ok(ContentCheck::Sound(standing.content)));
        prop_assert_eq!(machine.range(&RangeRequest::new(KeyRange::all())).unwrap().count, machine.keys());
        for (revision, content) in contents {
            if revision >= machine.compacted_revision() {
                prop_assert_eq!(machine.content_at(revision), Ok(content));
            }
        }
        let folder = TempDir::new().unwrap();
        let stored = StateMachine::open(open(folder.path())).unwrap();
        for (number, commands) in batches.iter().enumerate() {
            stored.apply(batch(number, commands)).unwrap();
        }
        stored.flush().unwrap();
        drop(stored);
        let report = verify::state(folder.path()).unwrap();
        prop_assert!(report.is_sound(), "{:?}", report);
    }
}
