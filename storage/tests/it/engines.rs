//! What every engine must do, tried on both.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use proptest::prelude::*;
use tempfile::TempDir;
use trireme_storage::engine::{
    self, Durability, Engine, EngineError, Keyspace, Span, View, WriteBatch,
    memory::MemoryEngine,
    rocks::{RocksEngine, RocksOptions},
};

/// An engine, and the folder that it must not outlive.
pub struct Fixture {
    pub engine: Arc<dyn Engine>,
    pub name: &'static str,
    _folder: Option<TempDir>,
}

pub fn memory() -> Fixture {
    Fixture { engine: Arc::new(MemoryEngine::new()), name: "memory", _folder: None }
}

pub fn rocks() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(folder.path(), RocksOptions::for_state()).unwrap();
    Fixture { engine: Arc::new(engine), name: "rocks", _folder: Some(folder) }
}

pub fn rocks_log() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(folder.path(), RocksOptions::for_log()).unwrap();
    Fixture { engine: Arc::new(engine), name: "rocks log", _folder: Some(folder) }
}

pub fn both() -> [Fixture; 2] {
    [memory(), rocks()]
}

pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn scan(view: &dyn View, keyspace: Keyspace, start: &[u8], end: &[u8]) -> Rows {
    let mut rows = Rows::new();
    view.scan(keyspace, Span { start, end }, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

pub fn dump(engine: &dyn Engine) -> Vec<(Keyspace, Rows)> {
    let spaces = [Keyspace::Meta, Keyspace::Current, Keyspace::History, Keyspace::Versions, Keyspace::Leases];
    engine::read(engine, |view| Ok::<_, EngineError>(spaces.map(|space| (space, scan(view, space, b"", b""))).to_vec())).unwrap()
}

/// Copies a checkpoint of one engine into another, in small pieces.
pub fn copy(
    from: &dyn Engine,
    to: &dyn Engine,
    validate: &mut dyn FnMut(&dyn View) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let checkpoint = from.checkpoint()?;
    let mut stage = to.stage()?;
    for file in checkpoint.files() {
        let mut offset = 0;
        stage.write_at(&file.name, 0, &[])?;
        while offset < file.size_bytes {
            let piece = checkpoint.read_at(&file.name, offset, 1000)?;
            stage.write_at(&file.name, offset, &piece)?;
            offset += piece.len() as u64;
        }
    }
    stage.commit(validate)
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    DeleteRange(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..20_u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        1 => (0..20_u8).prop_map(Step::Delete),
        1 => (0..20_u8, 0..20_u8).prop_map(|(start, end)| Step::DeleteRange(start, end)),
    ]
}

fn build(steps: &[Step]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for step in steps {
        match *step {
            Step::Put(key, value) => batch.put(Keyspace::Current, vec![key], vec![value]),
            Step::Delete(key) => batch.delete(Keyspace::Current, vec![key]),
            Step::DeleteRange(start, end) => batch.delete_range(Keyspace::Current, vec![start], vec![end]),
        }
    }
    batch
}

fn carry_out(model: &mut BTreeMap<u8, u8>, steps: &[Step]) {
    for step in steps {
        match *step {
            Step::Put(key, value) => {
                model.insert(key, value);
            }
            Step::Delete(key) => {
                model.remove(&key);
            }
            Step::DeleteRange(start, end) => model.retain(|key, _| *key < start || *key >= end),
        }
    }
}

fn rows_of(model: &BTreeMap<u8, u8>) -> Rows {
    model.iter().map(|(key, value)| (vec![*key], vec![*value])).collect()
}

proptest! {
    #![proptest_config(crate::cases(24))]

    #[test]
    fn batches_equal_a_map(batches in prop::collection::vec(prop::collection::vec(step(), 0..8), 1..12), bounds in (0..20_u8, 0..20_u8)) {
        for fixture in both() {
            let mut model = BTreeMap::new();
            for (number, steps) in batches.iter().enumerate() {
                let durability = if number % 2 == 0 { Durability::Sync } else { Durability::NoSync };
                fixture.engine.write(&build(steps), durability).unwrap();
                carry_out(&mut model, steps);
                for key in 0..20_u8 {
                    let found = fixture.engine.get(Keyspace::Current, &[key]).unwrap();
                    prop_assert_eq!(found.as_deref(), model.get(&key).map(std::slice::from_ref), "{}", fixture.name);
                }
            }
            let (start, end) = bounds;
            let part = engine::read(fixture.engine.as_ref(), |view| Ok::<_, EngineError>(scan(view, Keyspace::Current, &[start], &[end]))).unwrap();
            let expected: Rows = rows_of(&model).into_iter().filter(|(key, _)| key[0] >= start && key[0] < end).collect();
            prop_assert_eq!(part, expected, "{}", fixture.name);
        }
    }

    /// A crash of the memory engine leaves what stood after the last sync: a prefix of the writes.
    #[test]
    fn a_crash_keeps_a_prefix(batches in prop::collection::vec((prop::collection::vec(step(), 0..4), any::<bool>()), 1..20)) {
        let engine = MemoryEngine::new();
        let (mut model, mut synced) = (BTreeMap::new(), BTreeMap::new());
        for (steps, sync) in &batches {
            engine.write(&build(steps), if *sync { Durability::Sync } else { Durability::NoSync }).unwrap();
            carry_out(&mut model, steps);
            if *sync {
                synced = model.clone();
            }
        }
        engine.crash();
        let left = engine::read(&engine, |view| Ok::<_, EngineError>(scan(view, Keyspace::Current, b"", b""))).unwrap();
        prop_assert_eq!(left, rows_of(&synced));
    }
}

fn put_one(engine: &dyn Engine, key: &str, value: &str) {
    let mut batch = WriteBatch::new();
    batch.put(Keyspace::Current, key.as_bytes().to_vec(), value.as_bytes().to_vec());
    engine.write(&batch, Durability::NoSync).unwrap();
}

#[test]
fn a_view_does_not_change() {
    for fixture in both() {
        put_one(fixture.engine.as_ref(), "a", "1");
        let engine = Arc::clone(&fixture.engine);
        engine::read(fixture.engine.as_ref(), |view| {
            let before = scan(view, Keyspace::Current, b"", b"");
            std::thread::spawn(move || put_one(engine.as_ref(), "b", "2")).join().unwrap();
            assert_eq!(scan(view, Keyspace::Current, b"", b""), before, "{}", fixture.name);
            assert_eq!(view.get(Keyspace::Current, b"b").unwrap(), None, "{}", fixture.name);
            Ok::<_, EngineError>(())
        })
        .unwrap();
        assert!(fixture.engine.get(Keyspace::Current, b"b").unwrap().is_some(), "{}", fixture.name);
    }
}

#[test]
fn a_checkpoint_is_the_data_of_its_moment() {
    for (source, target) in both().into_iter().zip(both()) {
        put_one(source.engine.as_ref(), "a", "1");
        put_one(target.engine.as_ref(), "gone", "after the restore");
        let moment = dump(source.engine.as_ref());
        copy(source.engine.as_ref(), target.engine.as_ref(), &mut |_| Ok(())).unwrap();
        put_one(source.engine.as_ref(), "b", "later");
        assert_eq!(dump(target.engine.as_ref()), moment, "{}", target.name);
        put_one(target.engine.as_ref(), "c", "goes on");
        assert_eq!(target.engine.get(Keyspace::Current, b"c").unwrap().as_deref(), Some(b"goes on".as_slice()));
    }
}

#[test]
fn a_refused_restore_changes_nothing() {
    for (source, target) in both().into_iter().zip(both()) {
        put_one(source.engine.as_ref(), "a", "1");
        put_one(target.engine.as_ref(), "b", "2");
        let before = dump(target.engine.as_ref());
        let refusal = EngineError::Corruption("refused".into());
        assert_eq!(copy(source.engine.as_ref(), target.engine.as_ref(), &mut |_| Err(refusal.clone())), Err(refusal.clone()));
        assert_eq!(dump(target.engine.as_ref()), before, "{}", target.name);
        let empty = target.engine.stage().unwrap().commit(&mut |_| Ok(()));
        assert!(empty.is_err(), "{}: nothing was staged", target.name);
        assert_eq!(dump(target.engine.as_ref()), before, "{}", target.name);
        put_one(target.engine.as_ref(), "c", "3");
    }
}

#[test]
fn names_that_lead_out_of_the_folder_are_refused() {
    for fixture in both() {
        for name in ["", "..", "../x", "/etc/x", "a/b", ".hidden", "a\0b"] {
            let mut stage = fixture.engine.stage().unwrap();
            assert!(stage.write_at(name, 0, b"x").is_err(), "{} took {name:?}", fixture.name);
        }
    }
}

/// Else all reads and writes wait behind a restore, which waits for one long reader.
#[test]
fn a_long_reader_hears_of_who_waits_for_him() {
    let (source, target) = (rocks(), rocks());
    put_one(source.engine.as_ref(), "a", "1");
    let (from, to) = (source.engine.clone(), target.engine.clone());
    let mut restoring = None;
    target
        .engine
        .view(&mut |_| {
            assert!(!target.engine.is_awaited());
            let (from, to) = (from.clone(), to.clone());
            restoring = Some(std::thread::spawn(move || copy(from.as_ref(), to.as_ref(), &mut |_| Ok(()))));
            while !target.engine.is_awaited() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        })
        .unwrap();
    restoring.unwrap().join().unwrap().unwrap();
    assert!(!target.engine.is_awaited());
    assert_eq!(dump(target.engine.as_ref()), dump(source.engine.as_ref()));
}
