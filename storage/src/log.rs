//! The Raft log: records by index, each append synced, over an engine of its own.
//!
//! Records are opaque bytes; consensus encodes them. All calls block. The newest records are kept in memory too, because
//! they are what replication and apply ask for.

use std::{
    collections::VecDeque,
    ops::{ControlFlow, Range},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{self, Durability, Engine, EngineError, Keyspace, Span, View, WriteBatch},
    fail_point,
    format::{self, Purpose},
    log_sizes::LogSizes,
    metrics::StorageMetrics,
};

const PURGED_KEY: &[u8] = b"log/purged";
const META_PREFIX: &str = "log/meta/";
/// How many bytes of the newest records are kept in memory.
const TAIL_LIMIT_BYTES: usize = 4 << 20;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    pub index: u64,
    pub record: Bytes,
}

/// What the log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBounds {
    /// The index of the oldest record; `None` when the log is empty.
    pub first: Option<u64>,
    /// The index of the newest record; `None` when the log is empty.
    pub last: Option<u64>,
    /// Every record up to this index was purged.
    pub purged: Option<u64>,
    /// The marker that the last purge was given.
    pub purged_marker: Option<Bytes>,
}

/// Why the log did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LogError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Appended records must follow the last one without a gap.
    #[error("log record {found} does not follow; the next index is {expected}")]
    Gap { expected: u64, found: u64 },
}

#[derive(Serialize, Deserialize)]
struct Purged {
    index: u64,
    marker: Vec<u8>,
}

struct State {
    bounds: LogBounds,
    /// Of every record between the bounds.
    sizes: LogSizes,
    /// The newest records, without a gap, up to the last.
    tail: VecDeque<LogRecord>,
    tail_bytes: usize,
    /// An append failed, and may have left records on disk after `bounds.last`: the next one clears them.
    unclean_tail: bool,
}

/// The log of one member. Clones share it.
#[derive(Clone)]
pub struct RaftLog {
    engine: Arc<dyn Engine>,
    state: Arc<Mutex<State>>,
    metrics: StorageMetrics,
}

impl RaftLog {
    /// Opens the log that `engine` holds, or begins one.
    pub fn open(engine: Arc<dyn Engine>) -> Result<Self, LogError> {
        format::check_or_initialize(engine.as_ref(), Purpose::Log)?;
        let (bounds, sizes) = engine::read(engine.as_ref(), load_bounds)?;
        let state = State { bounds, sizes, tail: VecDeque::new(), tail_bytes: 0, unclean_tail: false };
        Ok(Self { engine, state: Arc::new(Mutex::new(state)), metrics: StorageMetrics::default() })
    }

    /// Reports its durations to `metrics`.
    pub fn with_metrics(mut self, metrics: StorageMetrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Appends records; they are durable, all of them, when the call returns. After an error none is part of the log.
    pub fn append(&self, records: Vec<LogRecord>) -> Result<(), LogError> {
        let mut state = self.state.lock();
        let (Some(first), Some(last)) = (records.first().map(|record| record.index), records.last().map(|record| record.index))
        else {
            return Ok(());
        };
        for (expected, record) in (state.expected_next().unwrap_or(first)..).zip(&records) {
            if record.index != expected {
                return Err(LogError::Gap { expected, found: record.index });
            }
        }
        let mut batch = WriteBatch::new();
        if state.unclean_tail {
            batch.delete_range(Keyspace::Log, index_key(first), END_OF_LOG);
        }
        for record in &records {
            batch.put(Keyspace::Log, index_key(record.index), record.record.clone());
        }
        state.unclean_tail = true;
        fail_point!("log/append/before");
        self.write_synced(&batch)?;
        fail_point!("log/append/after");
        state.unclean_tail = false;
        state.bounds.first.get_or_insert(first);
        state.bounds.last = Some(last);
        records.iter().for_each(|record| state.sizes.push(record.index, record.record.len()));
        state.remember(records);
        Ok(())
    }

    /// The records of `range` that exist, oldest first, until `max_bytes` are reached; at least one if there is any.
    pub fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<LogRecord>, LogError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let bounds = {
            let state = self.state.lock();
            let (Some(first), Some(last)) = (state.bounds.first, state.bounds.last) else {
                return Ok(Vec::new());
            };
            if let Some(records) = state.read_tail(&range, max_bytes) {
                return Ok(records);
            }
            range.start.max(first)..range.end.min(last + 1)
        };
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut expected = bounds.start;
        let mut malformed = None;
        engine::read(self.engine.as_ref(), |view| {
            let (start, end) = (index_key(bounds.start), index_key(bounds.end));
            view.scan(Keyspace::Log, Span { start: &start, end: &end }, &mut |key, value| {
                if !records.is_empty() && bytes + value.len() > max_bytes {
                    return ControlFlow::Break(());
                }
                if key != expected.to_be_bytes() {
                    malformed = Some(expected);
                    return ControlFlow::Break(());
                }
                records.push(LogRecord { index: expected, record: Bytes::copy_from_slice(value) });
                bytes += value.len();
                expected += 1;
                ControlFlow::Continue(())
            })
        })?;
        match malformed {
            None if !records.is_empty() || bounds.is_empty() => Ok(records),
            // A purge or truncation that came in between explains a hole; anything else is damage.
            _ if self.bounds().first.is_none_or(|first| first > bounds.start)
                || self.bounds().last.is_none_or(|last| last < bounds.end - 1) =>
            {
                self.read(range, max_bytes)
            }
            _ => Err(EngineError::Corruption(format!("log record {} is missing", malformed.unwrap_or(bounds.start))).into()),
        }
    }

    /// Drops every record from `index` on; durable when the call returns.
    pub fn truncate_from(&self, index: u64) -> Result<(), LogError> {
        let mut state = self.state.lock();
        let mut batch = WriteBatch::new();
        batch.delete_range(Keyspace::Log, index_key(index), END_OF_LOG);
        fail_point!("log/truncate/before");
        self.write_synced(&batch)?;
        fail_point!("log/truncate/after");
        match (state.bounds.first, state.bounds.last) {
            (Some(first), _) if first >= index => (state.bounds.first, state.bounds.last) = (None, None),
            (_, Some(last)) if last >= index => state.bounds.last = Some(index - 1),
            _ => {}
        }
        state.sizes.truncate_from(index);
        while state.tail.back().is_some_and(|record| record.index >= index) {
            state.forget_newest();
        }
        Ok(())
    }

    /// Drops every record up to and with `index`, and keeps `marker` (what consensus must remember of them). A log that ends before
    /// `index` is empty afterwards and goes on after `index`.
    pub fn purge_through(&self, index: u64, marker: Bytes) -> Result<(), LogError> {
        let mut state = self.state.lock();
        if state.bounds.purged.is_some_and(|purged| purged > index) {
            return Ok(());
        }
        let mut batch = WriteBatch::new();
        let from = state.bounds.first.unwrap_or(0);
        batch.delete_range(Keyspace::Log, index_key(from), index_key(index + 1));
        let record = format::encode_stored(&Purged { index, marker: marker.to_vec() }, "the purge record of the log")?;
        batch.put(Keyspace::Meta, PURGED_KEY, record);
        fail_point!("log/purge/before");
        self.write_synced(&batch)?;
        fail_point!("log/purge/after");
        state.bounds.purged = Some(index);
        state.bounds.purged_marker = Some(marker);
        if state.bounds.last.is_some_and(|last| last <= index) {
            (state.bounds.first, state.bounds.last) = (None, None);
        } else if state.bounds.first.is_some_and(|first| first <= index) {
            state.bounds.first = Some(index + 1);
        }
        state.sizes.drop_through(index);
        while state.tail.front().is_some_and(|record| record.index <= index) {
            state.forget_oldest();
        }
        Ok(())
    }

    /// Looks at the sizes of all records as of one moment. May wait for a write.
    pub fn measure<T>(&self, look: impl FnOnce(&LogSizes) -> T) -> T {
        look(&self.state.lock().sizes)
    }

    pub fn bounds(&self) -> LogBounds {
        self.state.lock().bounds.clone()
    }

    /// Keeps a small record beside the log (the vote, the node's id); durable when the call returns.
    pub fn save_meta(&self, key: &str, value: Bytes) -> Result<(), LogError> {
        let mut batch = WriteBatch::new();
        batch.put(Keyspace::Meta, meta_key(key), value);
        Ok(self.write_synced(&batch)?)
    }

    /// What [`RaftLog::save_meta`] kept.
    pub fn meta(&self, key: &str) -> Result<Option<Bytes>, LogError> {
        Ok(self.engine.get(Keyspace::Meta, &meta_key(key))?)
    }

    fn write_synced(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        self.metrics.wal_fsync.time(|| self.engine.write(batch, Durability::Sync))
    }
}

impl State {
    /// The index that must come next; any when the log has never held a record.
    fn expected_next(&self) -> Option<u64> {
        self.bounds.last.or(self.bounds.purged).map(|index| index + 1)
    }

    fn remember(&mut self, records: Vec<LogRecord>) {
        for record in records {
            self.tail_bytes += record.record.len();
            self.tail.push_back(record);
        }
        while self.tail_bytes > TAIL_LIMIT_BYTES && !self.tail.is_empty() {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(record) = self.tail.pop_front() {
            self.tail_bytes -= record.record.len();
        }
    }

    fn forget_newest(&mut self) {
        if let Some(record) = self.tail.pop_back() {
            self.tail_bytes -= record.record.len();
        }
    }

    /// The answer to a read, if the records in memory hold it.
    fn read_tail(&self, range: &Range<u64>, max_bytes: usize) -> Option<Vec<LogRecord>> {
        let oldest = self.tail.front()?.index;
        let skip = usize::try_from(range.start.checked_sub(oldest)?).ok()?;
        let mut records = Vec::new();
        let mut bytes = 0;
        for record in self.tail.range(skip.min(self.tail.len())..).take_while(|record| record.index < range.end) {
            bytes += record.record.len();
            if !records.is_empty() && bytes > max_bytes {
                break;
            }
            records.push(record.clone());
        }
        Some(records)
    }
}

/// Behind every index.
const END_OF_LOG: &[u8] = &[u8::MAX; 9];

fn index_key(index: u64) -> Bytes {
    Bytes::copy_from_slice(&index.to_be_bytes())
}

fn meta_key(key: &str) -> Vec<u8> {
    format!("{META_PREFIX}{key}").into_bytes()
}

fn load_bounds(view: &dyn View) -> Result<(LogBounds, LogSizes), EngineError> {
    let (mut bounds, mut sizes) = (LogBounds::default(), LogSizes::default());
    if let Some(record) = view.get(Keyspace::Meta, PURGED_KEY)? {
        let purged: Purged = format::decode_stored(&record, "the purge record of the log")?;
        bounds.purged = Some(purged.index);
        bounds.purged_marker = Some(purged.marker.into());
    }
    let mut broken = None;
    view.scan(Keyspace::Log, Span::ALL, &mut |key, record| {
        let index = <[u8; 8]>::try_from(key).map(u64::from_be_bytes);
        let expected = bounds.last.or(bounds.purged).map(|index| index + 1);
        match index {
            Ok(index) if expected.is_none_or(|expected| expected == index) => {
                bounds.first.get_or_insert(index);
                bounds.last = Some(index);
                sizes.push(index, record.len());
                ControlFlow::Continue(())
            }
            _ => {
                broken = Some(expected);
                ControlFlow::Break(())
            }
        }
    })?;
    match broken {
        None => Ok((bounds, sizes)),
        Some(expected) => Err(EngineError::Corruption(format!("log record {} is missing", expected.unwrap_or_default()))),
    }
}
