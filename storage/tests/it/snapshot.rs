//! Snapshots: what goes out comes in, whole or not at all.

use std::sync::Arc;

use proptest::prelude::*;
use trireme_storage::{
    command::Command,
    engine::{Engine, Keyspace},
    model::{KeyRange, RangeRequest, Revision},
    portable::{self, PortableError, PortableSnapshot},
    snapshot::{SnapshotManifest, SnapshotSource},
    state_machine::StateMachine,
    store::{StoreError, Watch},
};

use crate::{
    engines::{self, Rows, dump},
    model,
    state::{all_events, batch, put},
};

/// All rows but those of versions that are compacted: each engine drops them when it sees fit.
fn lasting_rows(engine: &dyn Engine, compacted: Revision) -> Vec<(Keyspace, Rows)> {
    let mut rows = dump(engine);
    let is_lasting = |key: &[u8]| key.last_chunk().is_some_and(|revision| u64::from_be_bytes(*revision) >= compacted.0);
    let versions = rows.iter_mut().filter(|(keyspace, _)| *keyspace == Keyspace::Versions);
    versions.for_each(|(_, rows)| rows.retain(|(key, _)| is_lasting(key)));
    rows
}

fn send(source: &SnapshotSource, target: &StateMachine, manifest: &SnapshotManifest) -> Result<(), StoreError> {
    let mut sink = target.begin_install()?;
    // Backwards and twice, as a transfer that is resumed may be.
    for file in source.files() {
        let pieces: Vec<u64> = (0..file.size_bytes.div_ceil(700).max(1)).collect();
        for piece in pieces.iter().rev().chain(pieces.first()) {
            let bytes = source.read_at(&file.name, piece * 700, 700)?;
            sink.write_at(&file.name, piece * 700, &bytes)?;
        }
    }
    sink.finish(manifest)
}

fn check_identity(
    source_engine: Arc<dyn Engine>,
    target_engine: Arc<dyn Engine>,
    batches: &[Vec<Command>],
) -> Result<(), TestCaseError> {
    let source = StateMachine::open(Arc::clone(&source_engine)).unwrap();
    let target = StateMachine::open(Arc::clone(&target_engine)).unwrap();
    target.apply(batch(1000, &[put("stale", "1")])).unwrap();
    for (number, commands) in batches.iter().enumerate() {
        source.apply(batch(number, commands)).unwrap();
    }
    let snapshot = source.begin_snapshot().unwrap();
    let before = (source.applied(), source.hash(), source.leases(), source.compacted_revision(), all_events(&source));
    let rows = lasting_rows(source_engine.as_ref(), source.compacted_revision());
    source.apply(batch(2000, &[put("later", "1")])).unwrap();
    send(&snapshot, &target, snapshot.manifest()).unwrap();
    prop_assert_eq!((target.applied(), target.hash(), target.leases(), target.compacted_revision(), all_events(&target)), before);
    prop_assert_eq!(lasting_rows(target_engine.as_ref(), target.compacted_revision()), rows);
    // It goes on as the source does.
    target.apply(batch(2000, &[put("later", "1")])).unwrap();
    prop_assert_eq!(target.hash(), source.hash());
    Ok(())
}

proptest! {
    #![proptest_config(crate::cases(8))]

    #[test]
    fn a_restored_snapshot_is_the_same(batches in model::batches()) {
        let (source, target) = (engines::memory(), engines::memory());
        check_identity(Arc::clone(&source.engine), Arc::clone(&target.engine), &batches)?;
        let (source, target) = (engines::rocks(), engines::rocks());
        check_identity(Arc::clone(&source.engine), Arc::clone(&target.engine), &batches)?;
    }

    /// As one stream it holds the same, too.
    #[test]
    fn a_snapshot_that_was_carried_elsewhere_is_the_same(batches in model::batches(), piece in 1..5000_usize) {
        for (source, target) in engines::both().into_iter().zip(engines::both()) {
            let (from, to) = (StateMachine::open(Arc::clone(&source.engine)).unwrap(), StateMachine::open(Arc::clone(&target.engine)).unwrap());
            for (number, commands) in batches.iter().enumerate() {
                from.apply(batch(number, commands)).unwrap();
            }
            receive(&to, &carry(&from, piece)).unwrap();
            prop_assert_eq!((to.applied(), to.hash(), to.leases(), to.compacted_revision()), (from.applied(), from.hash(), from.leases(), from.compacted_revision()));
            prop_assert_eq!(all_events(&to), all_events(&from));
            let [arrived, sent] = [&target, &source].map(|fixture| lasting_rows(fixture.engine.as_ref(), from.compacted_revision()));
            prop_assert_eq!(arrived, sent, "{}", target.name);
        }
    }
}

proptest! {
    #![proptest_config(crate::cases(64))]

    /// A stream with a flipped bit, or cut off anywhere, is refused, and changes nothing.
    #[test]
    fn a_damaged_stream_is_refused(batches in model::batches(), position in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<prop::sample::Index>()) {
        let from = StateMachine::open(engines::memory().engine).unwrap();
        for (number, commands) in batches.iter().enumerate() {
            from.apply(batch(number, commands)).unwrap();
        }
        let stream = carry(&from, 1000);
        let to = StateMachine::open(engines::memory().engine).unwrap();
        to.apply(batch(7, &[put("old", "state")])).unwrap();
        let before = (to.hash(), to.applied(), all_events(&to));
        let mut flipped = stream.clone();
        flipped[position.index(stream.len())] ^= 1 << bit;
        prop_assert!(receive(&to, &flipped).is_err());
        prop_assert!(receive(&to, &stream[..cut.index(stream.len())]).is_err());
        prop_assert_eq!((to.hash(), to.applied(), all_events(&to)), before);
    }
}

/// A snapshot as one stream.
fn carry(from: &StateMachine, piece_bytes: usize) -> Vec<u8> {
    let mut snapshot = PortableSnapshot::new(from.begin_snapshot().unwrap()).unwrap();
    let mut stream = Vec::new();
    while let Some(piece) = snapshot.read(piece_bytes).unwrap() {
        stream.extend_from_slice(&piece);
    }
    stream
}

fn receive(to: &StateMachine, mut stream: &[u8]) -> Result<(), PortableError> {
    let mut sink = to.begin_install()?;
    let manifest = portable::read(&mut stream, &mut |file, offset, piece| sink.write_at(file, offset, piece))?;
    Ok(sink.finish(&manifest)?)
}

/// The files of a snapshot are its engine's own.
#[test]
fn a_snapshot_of_another_engine_is_refused_and_changes_nothing() {
    for (source, target) in [(engines::memory(), engines::rocks()), (engines::rocks(), engines::memory())] {
        let from = StateMachine::open(Arc::clone(&source.engine)).unwrap();
        from.apply(batch(1, &[put("a", "1")])).unwrap();
        let to = StateMachine::open(Arc::clone(&target.engine)).unwrap();
        to.apply(batch(7, &[put("old", "state")])).unwrap();
        let before = (to.hash(), to.applied(), dump(target.engine.as_ref()));
        assert!(receive(&to, &carry(&from, 1000)).is_err(), "{} took a snapshot of {}", target.name, source.name);
        assert_eq!((to.hash(), to.applied(), dump(target.engine.as_ref())), before, "{}", target.name);
        to.apply(batch(8, &[put("goes", "on")])).unwrap();
    }
}

#[test]
fn a_damaged_snapshot_is_refused_and_changes_nothing() {
    for (source, target) in engines::both().into_iter().zip(engines::both()) {
        let from = StateMachine::open(Arc::clone(&source.engine)).unwrap();
        from.apply(batch(1, &[put("a", "1"), put("b", "2")])).unwrap();
        let to = StateMachine::open(Arc::clone(&target.engine)).unwrap();
        to.apply(batch(7, &[put("old", "state")])).unwrap();
        let before = (to.hash(), to.applied(), dump(target.engine.as_ref()));
        let snapshot = from.begin_snapshot().unwrap();
        let refuse = |change: &dyn Fn(&mut SnapshotManifest)| {
            let mut manifest = snapshot.manifest().clone();
            change(&mut manifest);
            assert!(send(&snapshot, &to, &manifest).is_err(), "{}", target.name);
            assert_eq!((to.hash(), to.applied(), dump(target.engine.as_ref())), before, "{}", target.name);
        };
        refuse(&|manifest| manifest.files[0].sha256[3] ^= 1);
        refuse(&|manifest| manifest.files[0].size_bytes += 1);
        refuse(&|manifest| manifest.files[0].name.push('x'));
        refuse(&|manifest| drop(manifest.files.pop()));
        refuse(&|manifest| manifest.hash ^= 1);
        refuse(&|manifest| manifest.applied = None);
        // A transfer that is given up leaves nothing behind.
        let mut sink = to.begin_install().unwrap();
        sink.write_at(&snapshot.files()[0].name, 0, b"half").unwrap();
        drop(sink);
        send(&snapshot, &to, snapshot.manifest()).unwrap();
        assert_eq!(to.hash(), from.hash());
    }
}

#[test]
fn a_closed_state_takes_nothing_in() {
    for (source, target) in engines::both().into_iter().zip(engines::both()) {
        let from = StateMachine::open(Arc::clone(&source.engine)).unwrap();
        from.apply(batch(0, &[put("new", "1")])).unwrap();
        let to = StateMachine::open(Arc::clone(&target.engine)).unwrap();
        to.apply(batch(0, &[put("old", "1")])).unwrap();
        let (snapshot, before) = (from.begin_snapshot().unwrap(), (to.hash(), dump(target.engine.as_ref())));
        to.close();
        let closed = |refused: Option<StoreError>| matches!(refused, Some(StoreError::Failed(why)) if why.contains("closed"));
        assert!(closed(send(&snapshot, &to, snapshot.manifest()).err()));
        assert!(closed(to.apply(batch(1, &[put("late", "1")])).err()));
        assert_eq!((to.hash(), dump(target.engine.as_ref())), before);
    }
}

#[tokio::test]
async fn watchers_go_on_through_an_install() {
    for (source, target) in engines::both().into_iter().zip(engines::both()) {
        let (from, to) =
            (StateMachine::open(Arc::clone(&source.engine)).unwrap(), StateMachine::open(Arc::clone(&target.engine)).unwrap());
        from.apply(batch(1, &[put("a", "1"), put("b", "2")])).unwrap();
        to.apply(batch(1, &[put("a", "1"), put("b", "2")])).unwrap();
        let mut watch = to.watch(Revision(1)).unwrap();
        assert_eq!(watch.next().await.unwrap().revision, Revision(1));
        from.apply(batch(2, &[put("a", "3"), put("c", "4"), put("c", "5")])).unwrap();
        let snapshot = from.begin_snapshot().unwrap();
        send(&snapshot, &to, snapshot.manifest()).unwrap();
        let mut seen = Vec::new();
        for revision in 2..=5 {
            let batch = watch.next().await.unwrap();
            assert_eq!(batch.revision, Revision(revision));
            seen.push(batch);
        }
        assert_eq!(seen, all_events(&from)[1..].to_vec(), "{}", target.name);
        to.apply(batch(3, &[put("d", "6")])).unwrap();
        assert_eq!(watch.next().await.unwrap().events[0].key_value.key, "d");
    }
}

#[test]
fn a_log_is_no_snapshot_of_a_state() {
    let (log, target) = (engines::rocks_log(), engines::rocks());
    trireme_storage::log::RaftLog::open(Arc::clone(&log.engine)).unwrap();
    let to = StateMachine::open(Arc::clone(&target.engine)).unwrap();
    to.apply(batch(1, &[put("a", "1")])).unwrap();
    let refused = engines::copy(log.engine.as_ref(), target.engine.as_ref(), &mut |_| Ok(()));
    assert!(refused.is_err(), "the key spaces differ");
    assert_eq!(to.range(&RangeRequest::new(KeyRange::all())).unwrap().count, 1);
}
