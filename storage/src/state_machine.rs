//! The replicated state: values, history, leases, and how far consensus has applied, over one engine.
//!
//! One caller applies; any number read and watch meanwhile. Apply evaluates a whole batch against the engine's
//! view, writes everything in one engine batch, and only then shows it to readers and watchers.

mod read;

use std::{ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::{
    command::{ApplyBatch, CommandResult, Lease},
    content::{self, Content, ContentCheck},
    engine::{self, Durability, Engine, EngineError, Keyspace, Space, Stage, View, WriteBatch},
    fail_point,
    format::{self, Purpose},
    hashes::Hashes,
    history::{self, HistoryLimits},
    layout::{APPLIED_KEY, HEAD_KEY, Head},
    lease::Leases,
    metrics::StorageMetrics,
    model::{EventBatch, KeyRange, LeaseId, Revision},
    overlay::{self, Overlay},
    rows,
    snapshot::{SnapshotManifest, SnapshotSink, SnapshotSource},
    store::StoreError,
    transaction,
    watch::{Hub, StateWatch},
};

/// A long look at all rows asks so often whether it is still wanted.
const ROWS_BETWEEN_LOOKS: u64 = 1024;

/// The state of one member. Clones share it.
#[derive(Clone)]
pub struct StateMachine {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<dyn Engine>,
    /// Held by whoever changes the state: apply and install.
    writer: Mutex<Writer>,
    /// What is applied, for readers; changed by the writer after the engine's write.
    published: RwLock<Published>,
    hub: Hub,
    metrics: StorageMetrics,
}

#[derive(Clone, Default)]
struct Published {
    head: Head,
    applied: Option<Bytes>,
    leases: Leases,
    hashes: Hashes,
}

/// Where a state machine stands: everything as of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Consensus's record of the last batch that was applied.
    pub applied: Option<Bytes>,
    pub revision: Revision,
    /// The rolling hash at `revision`.
    pub hash: u64,
    pub content: Content,
    /// The rolling hash at some older revisions.
    pub samples: Vec<(Revision, u64)>,
}

#[derive(Default)]
struct Writer {
    /// A batch whose write failed: it may have reached the disk none the less.
    doubtful: Option<Outcome>,
    is_closed: bool,
}

/// A batch that was evaluated.
struct Outcome {
    head: Head,
    applied: Bytes,
    leases: Leases,
    batches: Vec<EventBatch>,
    hashes: Vec<(Revision, u64)>,
    results: Vec<Vec<CommandResult>>,
}

/// What the engine holds besides the values.
fn load(view: &dyn View) -> Result<Published, EngineError> {
    let head = view.get(Keyspace::Meta, HEAD_KEY)?.map(|row| Head::decode(&row)).transpose()?.unwrap_or_default();
    let applied = view.get(Keyspace::Meta, APPLIED_KEY)?;
    let leases = Leases::load(view)?;
    Ok(Published { head, applied, leases, hashes: Hashes::beginning_with(head.revision, head.hash) })
}

impl StateMachine {
    /// Opens the state that `engine` holds, or begins one at revision 0.
    ///
    /// # Errors
    /// [`EngineError::NewerFormat`] or [`EngineError::Foreign`] when the engine holds something else; nothing is changed then.
    pub fn open(engine: Arc<dyn Engine>) -> Result<Self, EngineError> {
        Self::open_with_metrics(engine, StorageMetrics::default())
    }

    /// As [`StateMachine::open`], reporting durations to `metrics`.
    pub fn open_with_metrics(engine: Arc<dyn Engine>, metrics: StorageMetrics) -> Result<Self, EngineError> {
        format::check_or_initialize(engine.as_ref(), Purpose::State)?;
        let published = engine::read(engine.as_ref(), load)?;
        engine.discard_below(published.head.compacted.0);
        let hub = Hub::new(published.head.revision);
        let inner = Inner { engine, writer: Mutex::default(), published: RwLock::new(published), hub, metrics };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Consensus's record of the last batch that was applied.
    pub fn applied(&self) -> Option<Bytes> {
        self.inner.published.read().applied.clone()
    }

    /// Carries out committed entries: one engine batch for everything, `batch.applied` included. Returns the answers, for each entry
    /// for each command. `batch.applied` must differ from that of every batch before.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] and [`StoreError::Failed`]: nothing of the batch is to be seen. The same batch may be given again; not
    /// another one in its place, because the write that failed may have reached the disk.
    pub fn apply(&self, batch: ApplyBatch) -> Result<Vec<Vec<CommandResult>>, StoreError> {
        let mut writer = self.writer()?;
        if let Some(results) = self.settle(&mut writer, &batch.applied)? {
            return Ok(results);
        }
        fail_point!("apply/evaluate/before");
        let (outcome, rows) = self.evaluate(batch)?;
        fail_point!("apply/write/before");
        let written = self.inner.metrics.backend_commit.time(|| self.inner.engine.write(&rows, Durability::NoSync));
        if let Err(error) = written {
            writer.doubtful = Some(outcome);
            return Err(error.into());
        }
        fail_point!("apply/write/after");
        let results = self.publish(outcome);
        fail_point!("apply/publish/after");
        Ok(results)
    }

    /// The right to change the state, which nobody has once it is closed.
    fn writer(&self) -> Result<MutexGuard<'_, Writer>, StoreError> {
        let writer = self.inner.writer.lock();
        if writer.is_closed { Err(StoreError::Failed("the state machine is closed".into())) } else { Ok(writer) }
    }

    /// Finds out what became of a batch whose write failed. `Some`: it is on disk after all, and is the one that is given again.
    fn settle(&self, writer: &mut Writer, applied: &Bytes) -> Result<Option<Vec<Vec<CommandResult>>>, StoreError> {
        let Some(doubtful) = &writer.doubtful else {
            return Ok(None);
        };
        let landed = self.inner.engine.get(Keyspace::Meta, APPLIED_KEY)?.as_ref() == Some(&doubtful.applied);
        let Some(outcome) = writer.doubtful.take().filter(|_| landed) else {
            return Ok(None);
        };
        let same = outcome.applied == applied;
        let results = self.publish(outcome);
        if same {
            return Ok(Some(results));
        }
        Err(StoreError::Failed("the batch that failed before is applied after all; go on from the applied record".into()))
    }

    fn evaluate(&self, batch: ApplyBatch) -> Result<(Outcome, WriteBatch), StoreError> {
        let (head, leases) = {
            let published = self.inner.published.read();
            (published.head, published.leases.clone())
        };
        engine::read(self.inner.engine.as_ref(), |view| {
            let mut overlay = Overlay::new(view, head, leases);
            let mut results = Vec::with_capacity(batch.entries.len());
            for entry in &batch.entries {
                let mut answers = Vec::with_capacity(entry.commands.len());
                for command in &entry.commands {
                    answers.push(transaction::carry_out(&mut overlay, entry.term, command)?);
                }
                results.push(answers);
            }
            let outcome = Outcome {
                head: overlay.head,
                applied: batch.applied.clone(),
                leases: overlay.leases.clone(),
                batches: std::mem::take(&mut overlay.batches),
                hashes: std::mem::take(&mut overlay.hashes),
                results,
            };
            let mut rows = overlay.into_rows();
            rows.put(Keyspace::Meta, HEAD_KEY, outcome.head.encode());
            rows.put(Keyspace::Meta, APPLIED_KEY, batch.applied);
            Ok((outcome, rows))
        })
    }

    fn publish(&self, outcome: Outcome) -> Vec<Vec<CommandResult>> {
        let compacted = {
            let mut published = self.inner.published.write();
            assert!(outcome.head.revision >= published.head.revision, "revisions do not go back");
            let compacted = (outcome.head.compacted > published.head.compacted).then_some(outcome.head.compacted);
            published.head = outcome.head;
            published.applied = Some(outcome.applied);
            published.leases = outcome.leases;
            outcome.hashes.into_iter().for_each(|(revision, hash)| published.hashes.push(revision, hash));
            compacted
        };
        self.inner.hub.publish(outcome.batches);
        if let Some(compacted) = compacted {
            fail_point!("compaction/publish/after");
            self.discard_below(compacted);
        }
        outcome.results
    }

    /// Lets the engine drop what was compacted. Only after `compacted` is published: a reader that began before finds it after its read,
    /// and throws away what it saw. And only after it is durable: a loss of power must not bring back a state that still promises
    /// the rows that are gone.
    fn discard_below(&self, compacted: Revision) {
        match self.inner.engine.sync() {
            Ok(()) => {
                fail_point!("compaction/discard/before");
                self.inner.engine.discard_below(compacted.0);
                fail_point!("compaction/discard/after");
            }
            Err(error) => tracing::warn!(%error, "compacted history stays on the disk until the next compaction"),
        }
    }

    /// The engine may drop rows of compacted revisions from under a view: what was read is good only if they were not compacted by the end.
    fn check_not_compacted(&self, requested: Revision) -> Result<(), StoreError> {
        let compacted = self.compacted_revision();
        if requested < compacted { Err(StoreError::Compacted { requested, compacted }) } else { Ok(()) }
    }

    /// Every change from revision `from` (inclusive) on; revision 0 is the same as 1.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], [`StoreError::FutureRevision`] when `from` is more than one past the current revision.
    pub fn watch(&self, from: Revision) -> Result<StateWatch, StoreError> {
        let mut head = self.inner.published.read().head;
        if from > head.revision.next() {
            // A read may have seen what is written and not yet published: a watch may go on from there.
            head = engine::read(self.inner.engine.as_ref(), load_head)?;
        }
        if from < head.compacted {
            return Err(StoreError::Compacted { requested: from, compacted: head.compacted });
        }
        if from > head.revision.next() {
            return Err(StoreError::FutureRevision { requested: from, current: head.revision });
        }
        Ok(StateWatch::new(self.clone(), &self.inner.hub, from))
    }

    /// Whole revisions of events from `from` on, from history.
    pub(crate) fn events_from(&self, from: Revision, limits: HistoryLimits) -> Result<Vec<EventBatch>, StoreError> {
        self.check_not_compacted(from)?;
        let batches = engine::read(self.inner.engine.as_ref(), |view| history::events_from(view, from, limits));
        self.check_not_compacted(from)?;
        let batches = batches?;
        if batches.is_empty() {
            return Err(EngineError::Corruption(format!("the changes of revision {from} are missing")).into());
        }
        Ok(batches)
    }

    #[cfg(test)]
    pub(crate) fn engine(&self) -> &dyn Engine {
        self.inner.engine.as_ref()
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.inner.hub
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.inner.published.read().head.revision
    }

    /// The oldest revision that can be read.
    pub fn compacted_revision(&self) -> Revision {
        self.inner.published.read().head.compacted
    }

    /// The newest revision and the rolling hash of all changes up to it: equal on every member that holds the same data.
    pub fn hash(&self) -> (Revision, u64) {
        let head = self.inner.published.read().head;
        (head.revision, head.hash)
    }

    /// The hash at one of the newest revisions, to compare members that have applied differently far; `None` when it is no longer known.
    pub fn hash_at(&self, revision: Revision) -> Option<u64> {
        self.inner.published.read().hashes.at(revision)
    }

    /// Everything that tells this member's state from another's, as of one moment.
    pub fn standing(&self) -> Standing {
        let published = self.inner.published.read();
        let Head { revision, hash, content, .. } = published.head;
        Standing { applied: published.applied.clone(), revision, hash, content, samples: published.hashes.samples() }
    }

    /// How many keys there are.
    pub fn keys(&self) -> u64 {
        self.inner.published.read().head.content.keys
    }

    /// Adds up the current values as they are on the disk, and compares that with what applying the log has made of them. Reads
    /// everything, and is given up when `goes_on`, which is asked now and then, says no, or when somebody needs the engine for himself.
    ///
    /// # Errors
    /// [`StoreError::Failed`] when something cannot be read: that is damage, too.
    pub fn check_content(&self, goes_on: &dyn Fn() -> bool) -> Result<ContentCheck, StoreError> {
        engine::read(self.inner.engine.as_ref(), |view| {
            let expected = load_head(view)?.content;
            let goes_on = || goes_on() && !self.inner.engine.is_awaited();
            let Some(found) = add_up(view, None, &goes_on)? else { return Ok(ContentCheck::Stopped) };
            Ok(if found == expected { ContentCheck::Sound(found) } else { ContentCheck::Differs { found, expected } })
        })
    }

    /// What the key-values as they were at `revision` add up to, as the disk has them.
    pub fn content_at(&self, revision: Revision) -> Result<Content, StoreError> {
        let content = engine::read(self.inner.engine.as_ref(), |view| {
            let head = load_head(view)?;
            overlay::check_readable(&head, revision)?;
            let past = (revision < head.revision).then_some(revision);
            Ok::<_, StoreError>(add_up(view, past, &|| true)?.unwrap_or_default())
        })?;
        self.check_not_compacted(revision)?;
        Ok(content)
    }

    /// Whose state this is: what [`format::claim`] was given.
    pub fn identity(&self) -> Result<Option<String>, StoreError> {
        Ok(format::identity(self.inner.engine.as_ref())?)
    }

    /// Every lease.
    pub fn leases(&self) -> Vec<Lease> {
        self.inner.published.read().leases.all()
    }

    /// The leases whose time is over at `now_ms`: what the leader proposes to expire.
    pub fn expired_leases(&self, now_ms: u64) -> Vec<LeaseId> {
        self.inner.published.read().leases.expired(now_ms)
    }

    /// A lease, and the keys attached to it.
    pub fn lease(&self, id: LeaseId) -> Option<(Lease, Vec<Bytes>)> {
        let published = self.inner.published.read();
        Some((published.leases.get(id)?, published.leases.keys(id).ok()?))
    }

    /// Makes everything applied so far durable. Consensus calls it before it purges the log.
    pub fn flush(&self) -> Result<(), StoreError> {
        Ok(self.inner.engine.sync()?)
    }

    /// A snapshot of everything applied so far. Reads every file once, for the checksums.
    pub fn begin_snapshot(&self) -> Result<SnapshotSource, StoreError> {
        fail_point!("snapshot/begin/before");
        self.inner.engine.prepare_checkpoint()?;
        // Nothing is applied meanwhile, so that what is published is what the checkpoint holds.
        let (checkpoint, published) = {
            let writer = self.inner.writer.lock();
            if writer.doubtful.is_some() {
                return Err(StoreError::NoSpace);
            }
            (self.inner.engine.checkpoint()?, self.inner.published.read().clone())
        };
        fail_point!("snapshot/checkpoint/after");
        let identity = format::identity(self.inner.engine.as_ref())?;
        let Head { revision, hash, content, .. } = published.head;
        Ok(SnapshotSource::new(checkpoint, published.applied, (revision, hash), content.keys, identity)?)
    }

    /// Where the durations of this state's writes are reported.
    pub fn metrics(&self) -> &StorageMetrics {
        &self.inner.metrics
    }

    /// How much the state takes on the disk. Blocks.
    pub fn size_bytes(&self) -> u64 {
        self.inner.engine.size_bytes()
    }

    /// How much room the disk of the state has, as was last seen.
    pub fn space(&self) -> Space {
        self.inner.engine.space()
    }

    /// Begins to receive a snapshot that is to replace the state.
    pub fn begin_install(&self) -> Result<SnapshotSink, StoreError> {
        Ok(SnapshotSink::new(self.clone(), self.inner.engine.stage()?))
    }

    /// Replaces the state by what is staged, if that is what `manifest` says. Watchers go on from the new history.
    pub(crate) fn install(&self, stage: &mut dyn Stage, manifest: &SnapshotManifest) -> Result<(), StoreError> {
        let mut writer = self.writer()?;
        let mut loaded = None;
        fail_point!("snapshot/install/before");
        stage.commit(&mut |view| {
            if !format::check(view, Purpose::State)? {
                return Err(EngineError::Corruption("the snapshot holds no state".into()));
            }
            let published = load(view)?;
            let found = (published.head.revision, published.head.hash, &published.applied);
            if found != (manifest.revision, manifest.hash, &manifest.applied) {
                return Err(EngineError::Corruption("the snapshot is not the one that its manifest describes".into()));
            }
            loaded = Some(published);
            Ok(())
        })?;
        let published = loaded.ok_or_else(|| StoreError::Failed("the engine did not validate the snapshot".into()))?;
        writer.doubtful = None;
        let head = published.head;
        *self.inner.published.write() = published;
        self.inner.hub.reset(head.revision);
        self.inner.engine.discard_below(head.compacted.0);
        Ok(())
    }

    /// Ends every watch, so that the engine can be closed once the last handle is dropped. Nothing is applied or installed from here
    /// on: what consensus still had under way must not reach an engine that somebody else may open next.
    pub fn close(&self) {
        self.inner.writer.lock().is_closed = true;
        self.end_watches();
    }

    /// Ends every watch, and every one that is begun from here on; entries are applied as before.
    pub fn end_watches(&self) {
        self.inner.hub.close();
    }
}

fn load_head(view: &dyn View) -> Result<Head, EngineError> {
    Ok(view.get(Keyspace::Meta, HEAD_KEY)?.map(|row| Head::decode(&row)).transpose()?.unwrap_or_default())
}

/// Adds up the key-values of a view as they are or, with `past`, as they were at that revision. `None` when `goes_on` says no before
/// the end.
fn add_up(view: &dyn View, past: Option<Revision>, goes_on: &dyn Fn() -> bool) -> Result<Option<Content>, EngineError> {
    let (mut sum, mut stopped) = (Content::default(), false);
    rows::visit(view, &KeyRange::all(), past, rows::WINDOW_ROWS, &mut |row| {
        sum.add(content::hash_of(row));
        stopped = sum.keys.is_multiple_of(ROWS_BETWEEN_LOOKS) && !goes_on();
        if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok((!stopped).then_some(sum))
}
