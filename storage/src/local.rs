//! The store over one engine, without a group: for tests and tools.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    command::{ApplyBatch, ApplyEntry, Command, CommandReply, CommandResult, Lease},
    content::Content,
    engine::{Engine, EngineError, memory::MemoryEngine},
    model::{KeyRange, LeaseId, RangeRequest, RangeResult, Revision, Term, Transaction, TransactionResult},
    rows::RowVisitor,
    state_machine::StateMachine,
    store::{Leases, Store, StoreError, Watch},
};

struct Position {
    /// Counts applied batches: the applied record must differ from batch to batch.
    sequence: u64,
    term: Term,
}

/// A store of its own, in one term until [`LocalStore::set_term`], at one time until [`LocalStore::set_now_ms`].
pub struct LocalStore {
    machine: StateMachine,
    position: Mutex<Position>,
    /// What the leases' clock shows.
    now_ms: AtomicU64,
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
        let position = Mutex::new(Position { sequence, term: Term(1) });
        Ok(Self { machine, position, now_ms: AtomicU64::new(0) })
    }

    /// Commits what follows in another Raft term, to try fenced writes.
    pub fn set_term(&self, term: Term) {
        self.position.lock().term = term;
    }

    /// Sets the clock of the leases. Nothing expires by that alone: [`LocalStore::expire_leases`].
    pub fn set_now_ms(&self, now_ms: u64) {
        self.now_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Ends the leases whose time is over.
    pub fn expire_leases(&self) -> CommandResult {
        let now_ms = self.now_ms();
        self.apply(Command::LeaseExpire { ids: self.machine.expired_leases(now_ms), now_ms })
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
        if transaction.is_read_only() {
            return self.machine.read_transaction(&transaction);
        }
        match self.apply(Command::Transact(transaction))? {
            CommandReply::Transaction(result) => Ok(result),
            other => Err(unexpected(&other)),
        }
    }

    async fn read_barrier(&self) -> Result<Revision, StoreError> {
        Ok(self.machine.revision())
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResult, StoreError> {
        self.machine.range(&request)
    }

    fn visit(&self, range: &KeyRange, revision: Option<Revision>, visitor: &mut RowVisitor<'_>) -> Result<Revision, StoreError> {
        self.machine.visit(range, revision, visitor)
    }

    async fn watch(&self, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(self.machine.watch(from)?))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.apply(Command::Compact(revision)).map(|_| ())
    }

    async fn content_at(&self, revision: Revision) -> Result<Content, StoreError> {
        self.machine.content_at(revision)
    }

    fn revision(&self) -> Revision {
        self.machine.revision()
    }

    fn compacted_revision(&self) -> Revision {
        self.machine.compacted_revision()
    }
}

/// A command was given an answer of another kind.
fn unexpected(reply: &CommandReply) -> StoreError {
    StoreError::Failed(format!("a command was answered by {reply:?}"))
}

#[async_trait]
impl Leases for LocalStore {
    async fn grant_lease(&self, id: LeaseId, ttl_seconds: u64) -> Result<Lease, StoreError> {
        match self.apply(Command::LeaseGrant { id, ttl_seconds, now_ms: self.now_ms() })? {
            CommandReply::LeaseGranted(lease) => Ok(lease),
            other => Err(unexpected(&other)),
        }
    }

    async fn revoke_lease(&self, id: LeaseId) -> Result<Revision, StoreError> {
        match self.apply(Command::LeaseRevoke { id })? {
            CommandReply::LeaseRevoked { revision } => Ok(revision),
            other => Err(unexpected(&other)),
        }
    }

    async fn keep_lease_alive(&self, id: LeaseId) -> Result<Lease, StoreError> {
        match self.apply(Command::LeaseKeepAlive { id, now_ms: self.now_ms() })? {
            CommandReply::LeaseKeptAlive(lease) => Ok(lease),
            other => Err(unexpected(&other)),
        }
    }

    fn lease(&self, id: LeaseId) -> Option<(Lease, Vec<Bytes>)> {
        self.machine.lease(id)
    }

    fn leases(&self) -> Vec<Lease> {
        self.machine.leases()
    }

    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }
}
