//! RocksDB's folder: formats, locks, what a crash leaves, and a full disk.

use std::{fs, path::Path, sync::Arc};

use tempfile::TempDir;
use trireme_storage::{
    engine::{
        Engine, EngineError, Space,
        rocks::{RocksEngine, RocksOptions},
    },
    format,
    model::{KeyRange, RangeRequest, Revision},
    state_machine::StateMachine,
    store::StoreError,
};

use crate::{
    engines::{self, copy, dump},
    state::{batch, put},
};

fn open(path: &Path) -> Result<RocksEngine, EngineError> {
    RocksEngine::open(path, RocksOptions::for_state())
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_newer_format_is_refused_and_untouched() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("FORMAT"), "trireme storage format 2\n").unwrap();
    let error = open(folder.path()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "storage was written by a newer version of trireme: its format is 2, this version knows up to 1"
    );
    assert_eq!(names(folder.path()), ["FORMAT"]);
    fs::write(folder.path().join("FORMAT"), "something else").unwrap();
    assert!(matches!(open(folder.path()), Err(EngineError::Corruption(_))));
}

#[test]
fn newer_rows_are_refused_by_the_state_machine() {
    use trireme_storage::engine::{Durability, Keyspace, WriteBatch};
    for fixture in engines::both() {
        StateMachine::open(Arc::clone(&fixture.engine)).unwrap();
        let mut newer = WriteBatch::new();
        newer.put(Keyspace::Meta, "format", b"\0\0\0\x02s".to_vec());
        fixture.engine.write(&newer, Durability::Sync).unwrap();
        let before = dump(fixture.engine.as_ref());
        assert_eq!(
            StateMachine::open(Arc::clone(&fixture.engine)).err(),
            Some(EngineError::NewerFormat { found: 2, supported: 1 })
        );
        assert_eq!(dump(fixture.engine.as_ref()), before, "{}", fixture.name);
    }
}

#[test]
fn a_store_of_another_cluster_is_refused() {
    for fixture in engines::both() {
        let engine = fixture.engine.as_ref();
        format::claim(engine, "cluster one").unwrap();
        format::claim(engine, "cluster one").unwrap();
        let refused = format::claim(engine, "cluster two");
        assert_eq!(refused, Err(EngineError::Foreign { found: "cluster one".into(), expected: "cluster two".into() }));
        format::claim(engine, "cluster one").unwrap();
    }
}

#[test]
fn a_folder_is_open_once() {
    let folder = TempDir::new().unwrap();
    let engine = open(folder.path()).unwrap();
    let error = open(folder.path()).err().unwrap().to_string();
    assert!(error.ends_with("data-1: it is in use by another process"), "{error}");
    drop(engine);
    open(folder.path()).unwrap();
}

#[test]
fn a_restart_finds_everything() {
    let folder = TempDir::new().unwrap();
    let machine = StateMachine::open(Arc::new(open(folder.path()).unwrap())).unwrap();
    machine.apply(batch(1, &[put("a", "1"), put("b", "2")])).unwrap();
    let before = (machine.applied(), machine.hash());
    drop(machine);
    let machine = StateMachine::open(Arc::new(open(folder.path()).unwrap())).unwrap();
    assert_eq!((machine.applied(), machine.hash()), before);
    assert_eq!(machine.range(&RangeRequest::new(KeyRange::all())).unwrap().count, 2);
}

/// An install that a crash cuts off leaves the old state before the pointer is replaced, and the new one after it.
#[test]
fn an_install_is_cut_off_cleanly() {
    let (folder, source) = (TempDir::new().unwrap(), engines::rocks());
    let engine = open(folder.path()).unwrap();
    StateMachine::open(Arc::new(engine.clone())).unwrap().apply(batch(1, &[put("old", "1")])).unwrap();
    let old = dump(&engine);
    StateMachine::open(Arc::clone(&source.engine)).unwrap().apply(batch(2, &[put("new", "1"), put("new", "2")])).unwrap();
    let new = dump(source.engine.as_ref());
    drop(engine);

    // While pieces arrive; after the folder was moved to its place; with a pointer half written.
    let checkpoint = source.engine.checkpoint().unwrap();
    for leftover in ["stage-1", "checkpoint-3", "data-2"] {
        let path = folder.path().join(leftover);
        fs::create_dir(&path).unwrap();
        for file in checkpoint.files() {
            fs::write(path.join(&file.name), checkpoint.read_at(&file.name, 0, file.size_bytes as usize).unwrap()).unwrap();
        }
    }
    fs::write(folder.path().join("DATA.new"), "data").unwrap();
    let engine = open(folder.path()).unwrap();
    assert_eq!(dump(&engine), old);
    assert!(
        names(folder.path()).iter().all(|name| ["DATA.new", "FORMAT", "data-1", "reserve"].contains(&name.as_str())),
        "{:?}",
        names(folder.path())
    );

    // After the pointer was replaced, before the old folder was removed.
    copy(source.engine.as_ref(), &engine, &mut |_| Ok(())).unwrap();
    assert_eq!(dump(&engine), new);
    drop(engine);
    fs::create_dir(folder.path().join("data-1")).unwrap();
    let engine = open(folder.path()).unwrap();
    assert_eq!(dump(&engine), new);
    assert!(!names(folder.path()).contains(&"data-1".to_owned()));
}

#[test]
fn a_snapshot_goes_when_it_is_dropped() {
    let folder = TempDir::new().unwrap();
    let machine = StateMachine::open(Arc::new(open(folder.path()).unwrap())).unwrap();
    machine.apply(batch(1, &[put("a", "1")])).unwrap();
    let before = names(folder.path());
    let snapshot = machine.begin_snapshot().unwrap();
    assert_ne!(names(folder.path()), before);
    drop(snapshot);
    let sink = machine.begin_install().unwrap();
    drop(sink);
    assert_eq!(names(folder.path()), before);
}

/// History that was compacted leaves the disk by range deletes and the compaction filter; what is current stays.
#[test]
fn compaction_drops_rows_and_keeps_current_values() {
    use trireme_storage::{command::Command, engine::Keyspace};
    for fixture in engines::both() {
        let machine = StateMachine::open(Arc::clone(&fixture.engine)).unwrap();
        let puts: Vec<_> = (0..300).map(|number| put(&format!("k{}", number % 10), &number.to_string())).collect();
        machine.apply(batch(1, &puts)).unwrap();
        machine.apply(batch(2, &[Command::Compact(Revision(295))])).unwrap();
        let rows = dump(fixture.engine.as_ref());
        let history = rows.iter().find(|(space, _)| *space == Keyspace::History).map(|(_, rows)| rows.len());
        assert_eq!(history, Some(6), "{}: revisions 295 to 300", fixture.name);
        let all = machine.range(&RangeRequest::new(KeyRange::all())).unwrap();
        assert_eq!(all.count, 10, "{}", fixture.name);
        let then = machine.range(&RangeRequest::new(KeyRange::all()).at(Revision(295))).unwrap();
        let values: Vec<_> =
            then.key_values.iter().map(|key_value| String::from_utf8(key_value.value.to_vec()).unwrap()).collect();
        assert_eq!(values, ["290", "291", "292", "293", "294", "285", "286", "287", "288", "289"], "{}", fixture.name);
    }
}

/// Needs the right to mount: run by `cargo nextest run -p trireme-storage --run-ignored only` as root.
#[test]
#[ignore = "mounts a small tmpfs, which only root may"]
fn a_full_disk_refuses_writes_and_heals() {
    let folder = TempDir::new().unwrap();
    let mount = |arguments: &[&str]| {
        let status = std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(folder.path()).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=24m", "trireme-test"]);
    let ballast = folder.path().join("ballast");
    fs::write(&ballast, vec![0; 12 << 20]).unwrap();
    let engine = open(&folder.path().join("state")).unwrap();
    let machine = StateMachine::open(Arc::new(engine.clone())).unwrap();
    assert_eq!(engine.space(), Space::Enough);
    let value = "x".repeat(100_000);
    let mut number = 0;
    let refused = loop {
        number += 1;
        let result = machine.apply(batch(number, &[put(&format!("k{number}"), &value)]));
        if let Err(error) = result {
            break error;
        }
        assert!(number < 1000, "the disk does not fill");
    };
    assert_eq!(refused, StoreError::NoSpace);
    assert_eq!(engine.check_space(), Space::Exhausted);
    let held = number as u64 - 1;
    let all = || machine.range(&RangeRequest::new(KeyRange::all())).map(|result| result.count);
    assert_eq!(all(), Ok(held), "reads go on");
    let again = || machine.apply(batch(number, &[put(&format!("k{number}"), &value)]));
    assert_eq!(again(), Err(StoreError::NoSpace));
    assert_eq!(all(), Ok(held), "reads go on");
    fs::remove_file(&ballast).unwrap();
    again().unwrap();
    assert_eq!(engine.check_space(), Space::Enough);
    assert_eq!(all(), Ok(held + 1));
    assert_eq!(machine.revision(), Revision(held + 1));
    let before = machine.hash();
    drop((machine, engine));
    let machine = StateMachine::open(Arc::new(open(&folder.path().join("state")).unwrap())).unwrap();
    assert_eq!(machine.hash(), before);
    drop(machine);
    mount(&["umount"]);
}
