//! The store over one engine, without a group: for tests and tools.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    command::{ApplyBatch, ApplyEntry, Command, CommandReply, CommandResult},
    engine::{Engine, EngineError, memory::MemoryEngine},
    model::{RangeRequest, RangeResult, Revision, Term, Transaction, TransactionResult},
    state_machine::StateMachine,
    store::{Store, StoreError, Watch},
};

struct Position {
    /// Counts applied batches: the applied record must differ from batch to batch.
    sequence: u64,
    term: Term,
}

/// A store of its own, in one term until [`LocalStore::set_term`].
pub struct LocalStore {
    machine: StateMachine,
    position: Mutex<Position>,
}

impl LocalStore {
    /// A new store in memory.
    pub fn in_memory() -> Result<Self, EngineError> {
        Self::open(Arc::new(MemoryEngine::new()))
    }

    /// The store that `engine` holds, or a new one.
    pub fn open(engine: Arc<dyn Engine>) -> Result<Self, EngineError> {
        let machine = StateMachine::open(engine)?;
        let sequence = match machine.applied() {
            None => 0,
            Some(record) => u64::from_be_bytes(
                record.as_ref().try_into().map_err(|_| EngineError::Corruption("the store belongs to a group".into()))?,
            ),
        };
        Ok(Self { machine, position: Mutex::new(Position { sequence, term: Term(1) }) })
    }

    /// Commits what follows in another Raft term, to try fenced writes.
    pub fn set_term(&self, term: Term) {
        self.position.lock().term = term;
    }

    pub fn state_machine(&self) -> &StateMachine {
        &self.machine
    }

    /// Carries out one command.
    pub fn apply(&self, command: Command) -> CommandResult {
        let mut position = self.position.lock();
        position.sequence += 1;
        let entries = vec![ApplyEntry { term: position.term, commands: vec![command] }];
        let batch = ApplyBatch { entries, applied: Bytes::copy_from_slice(&position.sequence.to_be_bytes()) };
        let answer = self.machine.apply(batch)?.into_iter().flatten().next();
        answer.unwrap_or_else(|| Err(StoreError::Failed("a command had no answer".into())))
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn transact(&self, transaction: Transaction) -> Result<TransactionResult, StoreError> {
        match self.apply(Command::Transact(transaction))? {
            CommandReply::Transaction(result) => Ok(result),
            other => Err(StoreError::Failed(format!("a transaction was answered by {other:?}"))),
        }
    }

    async fn read_barrier(&self) -> Result<Revision, StoreError> {
        Ok(self.machine.revision())
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResult, StoreError> {
        self.machine.range(&request)
    }

    async fn watch(&self, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(self.machine.watch(from)?))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.apply(Command::Compact(revision)).map(|_| ())
    }

    fn revision(&self) -> Revision {
        self.machine.revision()
    }

    fn compacted_revision(&self) -> Revision {
        self.machine.compacted_revision()
    }
}
