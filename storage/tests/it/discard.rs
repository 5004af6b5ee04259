//! Rows of compacted revisions go while readers read: what they then answer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;
use trireme_storage::{
    command::Command,
    engine::{
        Checkpoint, Durability, Engine, EngineError, Keyspace, Reader, Span, Stage, View, Visit, WriteBatch,
        memory::MemoryEngine,
        rocks::{RocksEngine, RocksOptions},
    },
    model::{KeyRange, RangeRequest, Revision},
    state_machine::StateMachine,
    store::{StoreError, Watch},
};

use crate::{
    engines::dump,
    state::{batch, put},
};

type Hook = Box<dyn FnOnce() + Send>;

/// An engine that drops compacted rows at once, from views that are being read too, and runs a hook in the middle of a read.
struct Ruthless {
    engine: MemoryEngine,
    horizon: AtomicU64,
    hook: Mutex<Option<Hook>>,
}

struct RuthlessView<'a> {
    engine: &'a Ruthless,
    view: &'a dyn View,
}

impl RuthlessView<'_> {
    fn is_gone(&self, keyspace: Keyspace, key: &[u8]) -> bool {
        let revision = match keyspace {
            Keyspace::History => key.first_chunk(),
            Keyspace::Versions => key.last_chunk(),
            _ => None,
        };
        revision.is_some_and(|revision| u64::from_be_bytes(*revision) < self.engine.horizon.load(Ordering::SeqCst))
    }
}

impl View for RuthlessView<'_> {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.view.get(keyspace, key)?.filter(|_| !self.is_gone(keyspace, key)))
    }

    fn scan(&self, keyspace: Keyspace, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        let hook = self.engine.hook.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        self.view.scan(keyspace, span, &mut |key, value| {
            if self.is_gone(keyspace, key) { std::ops::ControlFlow::Continue(()) } else { visit(key, value) }
        })
    }
}

impl Engine for Ruthless {
    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        self.engine.write(batch, durability)
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.engine.get(keyspace, key)
    }

    fn view(&self, reader: &mut Reader<'_>) -> Result<(), EngineError> {
        self.engine.view(&mut |view| reader(&RuthlessView { engine: self, view }))
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.engine.sync()
    }

    fn discard_below(&self, revision: u64) {
        self.horizon.fetch_max(revision, Ordering::SeqCst);
    }

    fn prepare_checkpoint(&self) -> Result<(), EngineError> {
        self.engine.prepare_checkpoint()
    }

    fn checkpoint(&self) -> Result<Box<dyn Checkpoint>, EngineError> {
        self.engine.checkpoint()
    }

    fn stage(&self) -> Result<Box<dyn Stage>, EngineError> {
        self.engine.stage()
    }

    fn size_bytes(&self) -> u64 {
        self.engine.size_bytes()
    }
}

/// A machine with ten revisions of two keys, whose hub has forgotten them, and a compaction to `revision` that strikes in the next scan.
fn about_to_be_compacted(revision: u64) -> StateMachine {
    let engine = Arc::new(Ruthless { engine: MemoryEngine::new(), horizon: AtomicU64::new(0), hook: Mutex::new(None) });
    let machine = StateMachine::open(Arc::clone(&engine) as Arc<dyn Engine>).unwrap();
    let puts: Vec<_> = (1..=10).map(|number| put(&format!("k{}", number % 2), &number.to_string())).collect();
    machine.apply(batch(1, &puts)).unwrap();
    let machine = StateMachine::open(Arc::clone(&engine) as Arc<dyn Engine>).unwrap();
    let compact = machine.clone();
    *engine.hook.lock() = Some(Box::new(move || {
        compact.apply(batch(2, &[Command::Compact(Revision(revision))])).unwrap();
    }));
    machine
}

#[test]
fn a_read_that_compaction_overtakes_is_refused() {
    let request = RangeRequest::new(KeyRange::all()).at(Revision(4));
    let overtaken = StoreError::Compacted { requested: Revision(4), compacted: Revision(9) };
    assert_eq!(about_to_be_compacted(9).range(&request), Err(overtaken));
    let in_time = about_to_be_compacted(4).range(&request).unwrap();
    let values: Vec<_> = in_time.key_values.iter().map(|key_value| key_value.value.clone()).collect();
    assert_eq!(values, ["4", "3"]);
}

#[tokio::test]
async fn a_watch_that_compaction_overtakes_is_told() {
    let overtaken = StoreError::Compacted { requested: Revision(3), compacted: Revision(9) };
    assert_eq!(about_to_be_compacted(9).watch(Revision(3)).unwrap().next().await, Err(overtaken));
    let in_time = about_to_be_compacted(3).watch(Revision(3)).unwrap().next().await.unwrap();
    assert_eq!(in_time.events[0].key_value.value, "3");
    assert_eq!(in_time.events[0].previous.as_ref().unwrap().value, "1");
}

/// Readers of old revisions, while one writes and compacts so much that RocksDB drops rows under them, see the true state of their
/// revision or are told that it is compacted.
#[test]
fn reads_of_old_revisions_are_true_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = RocksOptions::for_state();
    options.write_buffer_bytes = 64 << 10;
    let engine = RocksEngine::open(folder.path(), options).unwrap();
    let machine = StateMachine::open(Arc::new(engine.clone())).unwrap();
    let (keys, last) = (10, 4000);
    let truth = |key: u64, at: u64| ((at + 1).saturating_sub(keys).max(1)..=at).rev().find(|revision| revision % keys == key);
    let done = AtomicBool::new(false);
    let check = |salt: u64| {
        let (mut read, mut round) = (0, salt);
        while !done.load(Ordering::Relaxed) || read == 0 {
            round += 7;
            let (oldest, newest) = (machine.compacted_revision().0, machine.revision().0);
            let at = oldest + round % (newest - oldest + 1);
            match machine.range(&RangeRequest::new(KeyRange::all()).at(Revision(at))) {
                Ok(result) => {
                    let found = result.key_values.iter().map(|key_value| key_value.mod_revision.0);
                    assert_eq!(
                        found.collect::<Vec<_>>(),
                        (0..keys).filter_map(|key| truth(key, at)).collect::<Vec<_>>(),
                        "at {at}"
                    );
                    read += u64::from(newest > 100);
                }
                Err(StoreError::Compacted { compacted, .. }) => assert!(compacted.0 > at),
                Err(error) => panic!("{error}"),
            }
        }
        read
    };
    std::thread::scope(|scope| {
        let readers = [scope.spawn(|| check(1)), scope.spawn(|| check(3))];
        for revision in 1..=last {
            let mut commands = vec![put(&format!("k{}", revision % keys), &format!("{revision}{}", ".".repeat(500)))];
            if revision % 20 == 0 && revision > 60 {
                commands.push(Command::Compact(Revision(revision - 50)));
            }
            machine.apply(batch(revision as usize, &commands)).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0, "a reader must have read something old");
        }
    });
    let versions = dump(&engine).into_iter().find(|(space, _)| *space == Keyspace::Versions).unwrap().1.len();
    assert!(versions < last as usize / 2, "RocksDB has dropped few version rows: {versions} are left");
}
