//! openraft's log storage over [`RaftLog`]: appended entries can be read at once, and are acknowledged when they are synced.

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    sync::Arc,
};

use futures::Stream;
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use trireme_storage::{
    fail_point,
    log::{LogRecord, RaftLog},
};

use crate::{
    record,
    types::{Entry, LogId, TypeConfig, Vote},
    writer::{Done, Operation, Writer},
};

const VOTE_KEY: &str = "vote";
/// A read for replication or apply returns about this many bytes at most.
const READ_BYTES: usize = 1 << 20;
/// Synced entries stay in memory, for followers that are a little behind, as long as there are no more than these.
const KEPT_ENTRIES: usize = 1024;
const KEPT_BYTES: usize = 8 << 20;

/// The newest entries, and the ends of the log.
struct Tail {
    purged: Option<LogId>,
    last: Option<LogId>,
    vote: Option<Vote>,
    /// Where the log begins, if it holds anything.
    start: u64,
    /// Without a gap, up to `last`. Entries that are not synced yet are always here.
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
    /// The index of the first entry that is not known to be synced.
    unsynced_from: u64,
}

impl Tail {
    fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|(entry, _)| entry.log_id.index)
    }

    fn push(&mut self, entry: Entry, bytes: usize) {
        if let Some((newest, _)) = self.entries.back() {
            assert_eq!(entry.log_id.index, newest.log_id.index + 1, "the log has no holes");
        }
        if self.last == self.purged {
            self.start = entry.log_id.index;
        }
        self.last = Some(entry.log_id);
        self.bytes += bytes;
        self.entries.push_back((entry, bytes));
    }

    fn trim(&mut self) {
        while self.entries.len() > KEPT_ENTRIES || self.bytes > KEPT_BYTES {
            match self.entries.front() {
                Some((entry, bytes)) if entry.log_id.index < self.unsynced_from => self.bytes -= bytes,
                _ => break,
            }
            self.entries.pop_front();
        }
    }

    fn drop_through(&mut self, index: u64) {
        while let Some((entry, bytes)) = self.entries.front()
            && entry.log_id.index <= index
        {
            self.bytes -= bytes;
            self.entries.pop_front();
        }
    }

    fn drop_from(&mut self, index: u64) {
        while let Some((entry, bytes)) = self.entries.back()
            && entry.log_id.index >= index
        {
            self.bytes -= bytes;
            self.entries.pop_back();
        }
        self.unsynced_from = self.unsynced_from.min(index);
    }
}

/// The log, as openraft wants it. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    log: RaftLog,
    writer: Writer,
    tail: Arc<Mutex<Tail>>,
}

impl LogStore {
    /// Reads the ends of the log and starts its writer. Blocks.
    pub fn open(log: RaftLog) -> io::Result<Self> {
        let bounds = log.bounds();
        let purged = bounds.purged_marker.as_deref().map(record::decode_log_id).transpose()?;
        let last = match bounds.last {
            None => purged,
            Some(index) => {
                let records = log.read(index..index + 1, READ_BYTES).map_err(io::Error::other)?;
                let newest =
                    records.first().ok_or_else(|| io::Error::other(format!("the newest log record {index} is missing")))?;
                Some(record::decode_entry(index, &newest.record)?.log_id)
            }
        };
        let vote = log.meta(VOTE_KEY).map_err(io::Error::other)?.as_deref().map(record::decode_vote).transpose()?;
        let unsynced_from = last.map_or(0, |id| id.index + 1);
        let start = bounds.first.unwrap_or_else(|| purged.map_or(0, |id| id.index + 1));
        let tail = Tail { purged, last, vote, start, entries: VecDeque::new(), bytes: 0, unsynced_from };
        let tail = Arc::new(Mutex::new(tail));
        let flushed_tail = tail.clone();
        let writer = Writer::start(log.clone(), move |index| {
            let mut tail = flushed_tail.lock();
            tail.unsynced_from = tail.unsynced_from.max(index + 1);
            tail.trim();
        })?;
        Ok(Self { log, writer, tail })
    }

    /// What the log is kept in.
    pub fn log(&self) -> &RaftLog {
        &self.log
    }

    /// The log's writer.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Whether this member has never taken part in a group.
    pub fn is_pristine(&self) -> bool {
        let tail = self.tail.lock();
        tail.last.is_none() && tail.vote.is_none()
    }

    /// The newest entry that was purged: a snapshot holds it and all before.
    pub fn purged(&self) -> Option<LogId> {
        self.tail.lock().purged
    }

    async fn write(&self, operation: impl FnOnce(Done) -> Operation) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        self.writer.submit(operation(done))?;
        result.await.map_err(|_| io::Error::other("the log writer has stopped"))?
    }

    /// The entries of `range`, which must lie within the log, until `max_bytes` are reached; at least one.
    async fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = range.start;
        while next < range.end && (entries.is_empty() || bytes < max_bytes) {
            let stored_until = {
                let tail = self.tail.lock();
                match tail.first_index() {
                    Some(first) if first <= next => {
                        for (entry, size) in tail.entries.range((next - first) as usize..) {
                            if entry.log_id.index >= range.end || (!entries.is_empty() && bytes + size > max_bytes) {
                                return Ok(entries);
                            }
                            bytes += size;
                            entries.push(entry.clone());
                        }
                        return Ok(entries);
                    }
                    Some(first) => first.min(range.end),
                    None => range.end,
                }
            };
            let log = self.log.clone();
            let budget = max_bytes.saturating_sub(bytes);
            let records = tokio::task::spawn_blocking(move || log.read(next..stored_until, budget))
                .await
                .map_err(io::Error::other)?
                .map_err(io::Error::other)?;
            if records.is_empty() {
                return Err(io::Error::other(format!("log records from {next} to {stored_until} are missing")));
            }
            for stored in records {
                if stored.index != next {
                    return Err(io::Error::other(format!("log record {next} is missing; the next one is {}", stored.index)));
                }
                bytes += stored.record.len();
                entries.push(record::decode_entry(stored.index, &stored.record)?);
                next += 1;
            }
        }
        Ok(entries)
    }

    /// What of `range` the log holds.
    fn clamp(&self, range: impl RangeBounds<u64>) -> Range<u64> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let tail = self.tail.lock();
        let past = tail.last.map_or(0, |id| id.index + 1);
        start.max(tail.start)..end.min(past)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let range = self.clamp(range);
        self.read(range, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let entries = self.read(self.clamp(start..end), READ_BYTES).await;
        // openraft (0.10.0-alpha.37) may take up an errand again whose entries were purged since. What is left of them would have a gap
        // before it; nothing at all is to openraft a heartbeat. See `transport::network` for how the errand then ends.
        if self.tail.lock().start > start {
            return Ok(Vec::new());
        }
        entries
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let store = self.clone();
        let chunks = futures::stream::unfold(self.clamp(range), move |rest| {
            let store = store.clone();
            async move {
                if rest.is_empty() {
                    return None;
                }
                match store.read(rest.clone(), READ_BYTES).await {
                    Ok(entries) => {
                        let next = entries.last().map_or(rest.end, |entry| entry.log_id.index + 1);
                        Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), next..rest.end))
                    }
                    Err(error) => Some((vec![Err(error)], rest.end..rest.end)),
                }
            }
        });
        Box::pin(futures::StreamExt::flat_map(chunks, futures::stream::iter))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.tail.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let tail = self.tail.lock();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let value = record::encode_vote(vote)?;
        fail_point!("vote/save/before");
        self.write(|done| Operation::SaveMeta { key: VOTE_KEY, value, done }).await?;
        fail_point!("vote/save/after");
        self.tail.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        {
            let mut tail = self.tail.lock();
            for entry in entries {
                let record = record::encode_entry(&entry)?;
                records.push(LogRecord { index: entry.log_id.index, record: record.clone() });
                tail.push(entry, record.len());
            }
        }
        self.writer.submit(Operation::Append { records, done: callback })
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let index = last.map_or(0, |id| id.index + 1);
        {
            let mut tail = self.tail.lock();
            tail.drop_from(index);
            tail.last = tail.last.min(last).max(tail.purged);
        }
        self.write(|done| Operation::TruncateFrom { index, done }).await?;
        // Appends that were queued before have reported the cut entries as synced in the meantime.
        let mut tail = self.tail.lock();
        tail.unsynced_from = tail.unsynced_from.min(index);
        Ok(())
    }

    async fn purge(&mut self, through: LogId) -> io::Result<()> {
        {
            let mut tail = self.tail.lock();
            tail.drop_through(through.index);
            tail.purged = Some(through);
            tail.start = through.index + 1;
            tail.last = tail.last.max(Some(through));
            tail.unsynced_from = tail.unsynced_from.max(through.index + 1);
        }
        let marker = record::encode_log_id(&through)?;
        self.write(|done| Operation::PurgeThrough { index: through.index, marker, done }).await
    }
}

#[cfg(test)]
mod tests {
    use trireme_storage::engine::memory::MemoryEngine;

    use super::*;
    use crate::types::log_id;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_follows_purged_entries_is_not_taken_for_them() {
        let mut store = LogStore::open(RaftLog::open(Arc::new(MemoryEngine::new())).unwrap()).unwrap();
        let entries = (0..10).map(|index| Entry { log_id: log_id(1, index), payload: openraft::EntryPayload::Blank });
        store.append(entries, IOFlushed::noop()).await.unwrap();
        store.purge(log_id(1, 4)).await.unwrap();
        let indexes = async |store: &mut LogStore, start| {
            let entries = store.limited_get_log_entries(start, 10).await.unwrap();
            entries.into_iter().map(|entry| entry.log_id.index).collect::<Vec<_>>()
        };
        assert_eq!(indexes(&mut store, 3).await, [0; 0]);
        assert_eq!(indexes(&mut store, 4).await, [0; 0]);
        assert_eq!(indexes(&mut store, 5).await, [5, 6, 7, 8, 9]);
        assert_eq!(indexes(&mut store, 8).await, [8, 9]);
    }
}
