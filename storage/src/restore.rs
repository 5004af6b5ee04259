//! A snapshot made the beginning of a new cluster: the same keys, values and leases, at a later revision, with no history and
//! nothing of the old cluster's consensus.
//!
//! Every member that is given the same snapshot begins with the same state, bit by bit: nothing here depends on the member.

use std::{io::Read, sync::Arc};

use bytes::Bytes;

use crate::{
    command::{ApplyBatch, ApplyEntry, Command},
    engine::{self, Durability, Engine, EngineError, Keyspace, WriteBatch},
    format,
    layout::{self, APPLIED_KEY, HEAD_KEY, Head},
    model::{KeyRange, Operation, RangeRequest, Revision, Term, Transaction},
    portable::{self, Description, PortableError},
    state_machine::StateMachine,
    store::StoreError,
};

/// The key that is put, and deleted at once, so that the restore itself has a place in the history that begins with it. It is made
/// longer if there is such a key.
const MARKER_KEY: &str = "trireme/restored";

/// What the new cluster is to be.
#[derive(Clone, Debug)]
pub struct Beginning<'a> {
    /// The new cluster's id.
    pub cluster_id: &'a str,
    /// How far the revision goes up, so that clients of the old cluster never see one go back.
    pub bump_revision: u64,
    /// Consensus's record of where the new group's log begins.
    pub applied: Bytes,
}

/// Where the restored state stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub revision: Revision,
    pub hash: u64,
    pub keys: u64,
    /// What the snapshot said of itself.
    pub snapshot: Description,
}

/// Fills `engine`, which must be new, with the snapshot that `stream` holds. Durable when it returns. After an error the engine is
/// of no use. Blocks.
///
/// # Errors
/// As [`portable::read`]; [`StoreError::InvalidTransaction`] when the revision would become too large.
pub fn restore(engine: Arc<dyn Engine>, stream: &mut dyn Read, beginning: &Beginning<'_>) -> Result<Restored, PortableError> {
    let machine = StateMachine::open(Arc::clone(&engine)).map_err(StoreError::from)?;
    let mut sink = machine.begin_install()?;
    let snapshot = portable::read_described(stream, &mut |file, offset, piece| sink.write_at(file, offset, piece))?;
    sink.finish(&snapshot.manifest)?;
    drop(machine);
    begin_anew(engine.as_ref(), beginning)?;
    let machine = StateMachine::open(engine).map_err(StoreError::from)?;
    mark(&machine, beginning)?;
    machine.flush()?;
    let (revision, hash) = machine.hash();
    Ok(Restored { revision, hash, keys: machine.keys(), snapshot })
}

/// Makes what the engine holds another cluster's, at a later revision and without a history.
fn begin_anew(engine: &dyn Engine, beginning: &Beginning<'_>) -> Result<(), StoreError> {
    let head = engine::read(engine, |view| {
        let row = view.get(Keyspace::Meta, HEAD_KEY)?;
        row.map(|row| Head::decode(&row)).transpose().map(Option::unwrap_or_default)
    })
    .map_err(|error: EngineError| StoreError::from(error))?;
    // etcd's clients read revisions as signed numbers.
    let revision = head.revision.0.checked_add(beginning.bump_revision).filter(|revision| *revision < i64::MAX as u64 / 2);
    let revision =
        revision.map(Revision).ok_or_else(|| StoreError::InvalidTransaction("the revision would become too large".into()))?;
    let mut batch = WriteBatch::new();
    batch.delete_range(Keyspace::History, layout::history_key(Revision(0), 0), layout::history_key(revision, 0));
    batch.put(Keyspace::Meta, HEAD_KEY, Head { revision, compacted: revision, ..head }.encode());
    batch.put(Keyspace::Meta, APPLIED_KEY, beginning.applied.clone());
    format::put_identity(&mut batch, beginning.cluster_id);
    Ok(engine.write(&batch, Durability::Sync)?)
}

/// Gives the new history its first revisions, and marks everything before as compacted.
fn mark(machine: &StateMachine, beginning: &Beginning<'_>) -> Result<(), StoreError> {
    let transact = |operation| Command::Transact(Transaction { success: vec![operation], ..Transaction::default() });
    let mut marker = MARKER_KEY.to_owned();
    while machine.range(&RangeRequest::new(KeyRange::One(marker.clone().into())))?.count > 0 {
        marker.push('+');
    }
    let began = machine.revision();
    let commands = vec![
        transact(Operation::put(marker.clone(), format!("from revision {}", began.0 - beginning.bump_revision))),
        transact(Operation::delete(marker)),
        Command::Compact(began.next().next()),
    ];
    let entries = vec![ApplyEntry { term: Term(0), commands }];
    let answers = machine.apply(ApplyBatch { entries, applied: beginning.applied.clone() })?;
    for answer in answers.into_iter().flatten() {
        answer?;
    }
    assert_eq!(machine.compacted_revision(), machine.revision(), "the history begins with the restore");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::memory::MemoryEngine,
        local::LocalStore,
        model::{LeaseId, PutLease, PutValue},
        portable::PortableSnapshot,
    };

    fn snapshot() -> Vec<u8> {
        let store = LocalStore::in_memory().unwrap();
        store.apply(Command::LeaseGrant { id: LeaseId(7), ttl_seconds: 60, now_ms: 1 }).unwrap();
        for number in 0..20 {
            let put = Operation::Put {
                key: format!("key-{number}").into(),
                value: PutValue::Set("value".into()),
                lease: PutLease::Set(LeaseId(if number == 3 { 7 } else { 0 })),
                return_previous: false,
            };
            store.apply(Command::Transact(Transaction { success: vec![put], ..Transaction::default() })).unwrap();
        }
        let mut snapshot = PortableSnapshot::new(store.state_machine().begin_snapshot().unwrap()).unwrap();
        let mut bytes = Vec::new();
        while let Some(piece) = snapshot.read(1000).unwrap() {
            bytes.extend_from_slice(&piece);
        }
        bytes
    }

    fn beginning(bump_revision: u64) -> Beginning<'static> {
        Beginning { cluster_id: "new", bump_revision, applied: Bytes::from_static(b"beginning") }
    }

    #[test]
    fn a_new_cluster_begins_with_the_same_keys_and_leases_at_a_later_revision() {
        let bytes = snapshot();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
        let restored = restore(Arc::clone(&engine), &mut bytes.as_slice(), &beginning(1000)).unwrap();
        assert_eq!((restored.revision, restored.keys, restored.snapshot.keys), (Revision(1022), 20, 20));
        let again = restore(Arc::new(MemoryEngine::new()), &mut bytes.as_slice(), &beginning(1000)).unwrap();
        assert_eq!(again, restored, "every member begins with the same");

        assert!(matches!(format::claim(engine.as_ref(), "old"), Err(EngineError::Foreign { .. })));
        format::claim(engine.as_ref(), "new").unwrap();
        let machine = StateMachine::open(engine).unwrap();
        assert_eq!((machine.applied(), machine.compacted_revision()), (Some("beginning".into()), Revision(1022)));
        assert_eq!(machine.lease(LeaseId(7)).unwrap().1, [Bytes::from("key-3")]);
        let found = machine.range(&RangeRequest::new(KeyRange::all())).unwrap();
        assert_eq!((found.count, found.key_values[0].mod_revision), (20, Revision(1)));
        for old in [1, 20, 500, 1021] {
            assert!(matches!(machine.watch(Revision(old)), Err(StoreError::Compacted { .. })), "{old}");
        }
        assert!(machine.watch(Revision(1022)).is_ok());
        assert!(matches!(machine.check_content(&|| true), Ok(crate::content::ContentCheck::Sound(_))));
    }

    #[test]
    fn a_damaged_snapshot_and_an_absurd_revision_are_refused() {
        let bytes = snapshot();
        let into = |bytes: &[u8], bump| restore(Arc::new(MemoryEngine::new()), &mut &*bytes, &beginning(bump));
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 4;
        assert!(into(&flipped, 0).is_err());
        assert!(into(&bytes[..bytes.len() - 100], 0).is_err());
        assert!(into(&bytes, u64::MAX).is_err());
        assert!(into(&bytes, 0).is_ok());
    }
}
