//! Watches: every event exactly once, in order, whatever the readers' pace.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use trireme_storage::{
    command::Command,
    engine::memory::MemoryEngine,
    local::LocalStore,
    model::{KeyRange, Operation, RangeRequest, Revision, Transaction},
    retention::Retention,
    state_machine::StateMachine,
    store::{Store, StoreError, Watch},
};

use crate::state::{batch, put};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

proptest! {
    #![proptest_config(crate::cases(12))]

    /// Watchers start anywhere, read at different paces while one writes (values large enough to push most of history out of the hub's
    /// memory), and see the same: revision after revision.
    #[test]
    fn every_event_once_and_in_order(starts in prop::collection::vec((1..200_u64, 0..3_u8), 1..6), size in prop::sample::select(vec![10_usize, 50_000])) {
        runtime().block_on(async {
            let store = Arc::new(LocalStore::in_memory().unwrap());
            for number in 0..200_u64 {
                store.apply(put(&format!("k{}", number % 7), &format!("{number}"))).unwrap();
            }
            let last = 1000;
            let watchers: Vec<_> = starts.into_iter().map(|(from, pace)| {
                let mut watch = store.state_machine().watch(Revision(from)).unwrap();
                tokio::spawn(async move {
                    for expected in from..=last {
                        let batch = watch.next().await.unwrap();
                        assert_eq!(batch.revision, Revision(expected));
                        let event = &batch.events[0];
                        assert_eq!(event.key_value.mod_revision, batch.revision);
                        assert!(event.key_value.value.starts_with(format!("{}", expected - 1).as_bytes()));
                        assert!(event.previous.as_ref().is_none_or(|previous| previous.mod_revision.0 == expected - 7));
                        if pace > 0 && expected % 64 == 0 {
                            tokio::time::sleep(Duration::from_millis(u64::from(pace))).await;
                        }
                    }
                })
            }).collect();
            let writer = Arc::clone(&store);
            tokio::task::spawn_blocking(move || {
                for number in 200..last {
                    let value = format!("{number}{}", " ".repeat(size));
                    writer.apply(put(&format!("k{}", number % 7), &value)).unwrap();
                }
            }).await.unwrap();
            for watcher in watchers {
                watcher.await.unwrap();
            }
        });
    }
}

#[tokio::test]
async fn a_watch_begins_within_history_or_next() {
    let store = LocalStore::in_memory().unwrap();
    store.apply(put("a", "1")).unwrap();
    assert!(store.watch(Revision(0)).await.is_ok());
    assert!(store.watch(Revision(2)).await.is_ok());
    assert_eq!(
        store.watch(Revision(3)).await.err(),
        Some(StoreError::FutureRevision { requested: Revision(3), current: Revision(1) })
    );
    store.apply(put("a", "2")).unwrap();
    store.apply(Command::Compact(Revision(2))).unwrap();
    assert_eq!(
        store.watch(Revision(1)).await.err(),
        Some(StoreError::Compacted { requested: Revision(1), compacted: Revision(2) })
    );
    let mut watch = store.watch(Revision(2)).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, Revision(2));
}

#[tokio::test]
async fn a_watcher_that_fell_behind_compaction_is_told() {
    let store = LocalStore::in_memory().unwrap();
    store.apply(put("a", "1")).unwrap();
    let mut watch = store.watch(Revision(1)).await.unwrap();
    // Enough to push revision 1 out of the hub.
    for _ in 0..40 {
        store.apply(put("a", &" ".repeat(1 << 20))).unwrap();
    }
    store.apply(Command::Compact(Revision(41))).unwrap();
    assert_eq!(watch.next().await, Err(StoreError::Compacted { requested: Revision(1), compacted: Revision(41) }));
}

#[tokio::test]
async fn a_transaction_is_one_batch_in_its_order() {
    let store = LocalStore::in_memory().unwrap();
    store.apply(put("a", "1")).unwrap();
    let mut watch = store.watch(Revision(2)).await.unwrap();
    let operations = vec![Operation::put("z", "1"), Operation::delete("a"), Operation::put("b", "2")];
    store.transact(Transaction { success: operations, ..Transaction::default() }).await.unwrap();
    let live = watch.next().await.unwrap();
    let keys: Vec<_> = live.events.iter().map(|event| event.key_value.key.clone()).collect();
    assert_eq!(keys, ["z", "a", "b"]);
    assert_eq!(live.revision, Revision(2));
}

#[tokio::test]
async fn a_closed_store_ends_its_watches_and_applies_nothing() {
    let machine = StateMachine::open(Arc::new(MemoryEngine::new())).unwrap();
    let mut watch = machine.watch(Revision(1)).unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    machine.close();
    assert_eq!(waiting.await.unwrap(), Err(StoreError::Unavailable("the store is closed".into())));
    assert!(matches!(machine.apply(batch(1, &[put("a", "1")])), Err(StoreError::Failed(_))));
    assert_eq!(machine.range(&RangeRequest::new(KeyRange::all())).unwrap().count, 0);
}

#[test]
fn retention_compacts_what_is_old() {
    let mut retention = Retention::new(Duration::from_secs(300));
    let mut compacted = Vec::new();
    // One revision a second, looked at every 10 seconds, for 20 minutes.
    for second in (0..1200).step_by(10) {
        if let Some(target) = retention.observe(second * 1000, Revision(second)) {
            assert!(target.0 <= second - 300, "at {second} s, revision {target} is too young to go");
            assert!(target.0 + 320 >= second, "at {second} s, revision {target} should have gone before");
            compacted.push(target);
        }
    }
    assert!(compacted.len() > 80, "{}", compacted.len());
    assert!(compacted.is_sorted());
    // A clock that jumps back keeps more, never less.
    assert_eq!(retention.observe(0, Revision(1200)), None);
    assert_eq!(retention.observe(299_000, Revision(1201)), None);
    assert_eq!(retention.observe(300_000, Revision(1202)), Some(Revision(1200)));
    assert_eq!(Retention::default().observe(5, Revision(0)), None);
}
