//! The one thread that writes the log. It drains what waits, syncs once, and then completes every append of the round:
//! group commit, with votes, truncations and purges kept in order among the appends.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use openraft::storage::IOFlushed;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use trireme_storage::{
    engine::EngineError,
    fail_point,
    log::{LogError, LogRecord, RaftLog},
};

use crate::types::TypeConfig;

/// How long the writer waits before it tries a write again for which the disk had no space.
const NO_SPACE_RETRY: Duration = Duration::from_millis(500);
/// No more operations than this are taken into one round.
const ROUND_OPERATIONS: usize = 4096;

/// Tells one waiting caller how its write went.
pub type Done = oneshot::Sender<io::Result<()>>;

/// One thing for the writer to do.
pub enum Operation {
    Append { records: Vec<LogRecord>, done: IOFlushed<TypeConfig> },
    SaveMeta { key: &'static str, value: Bytes, done: Done },
    TruncateFrom { index: u64, done: Done },
    PurgeThrough { index: u64, marker: Bytes, done: Done },
}

/// What the writer tells the outside.
#[derive(Default)]
pub struct WriterState {
    /// The disk is full: the writer waits for space.
    no_space: AtomicBool,
    /// The member shuts down: do not wait for space any longer.
    closing: AtomicBool,
    /// A write is under way.
    writing: AtomicBool,
    /// Held while something is written; set when nothing may be written any more.
    stopped: Mutex<bool>,
}

impl WriterState {
    /// Whether the log waits for space on its disk.
    pub fn is_out_of_space(&self) -> bool {
        self.no_space.load(Ordering::Relaxed)
    }

    /// Whether a write is under way.
    pub fn is_writing(&self) -> bool {
        self.writing.load(Ordering::Relaxed)
    }
}

/// The way to the writer's thread. The thread ends when the last handle is dropped, which waits for it: the engine must not be in
/// use any more when the process ends.
#[derive(Clone)]
pub struct Writer {
    thread: Arc<Running>,
    state: Arc<WriterState>,
}

/// The thread, for as long as somebody may give it work.
struct Running {
    /// `None` while it is dropped.
    operations: Option<Sender<Operation>>,
    handle: Option<thread::JoinHandle<()>>,
    state: Arc<WriterState>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::Relaxed);
        self.operations = None;
        if let Some(handle) = self.handle.take()
            && handle.thread().id() != thread::current().id()
            && handle.join().is_err()
        {
            tracing::error!("the log writer ended with a panic");
        }
    }
}

impl Writer {
    /// Starts the thread. `flushed` is called with the last index of each append that has become durable.
    pub fn start(log: RaftLog, flushed: impl Fn(u64) + Send + 'static) -> io::Result<Self> {
        let (operations, queue) = channel();
        let state = Arc::new(WriterState::default());
        let thread_state = state.clone();
        let owner = fail_point::owner();
        let handle = thread::Builder::new().name("raft-log-writer".to_owned()).spawn(move || {
            fail_point::set_owner(owner);
            Thread { log, queue, state: thread_state, flushed, failure: None }.run();
        })?;
        let thread = Running { operations: Some(operations), handle: Some(handle), state: state.clone() };
        Ok(Self { thread: Arc::new(thread), state })
    }

    /// Queues an operation. Its `done` hears of the outcome; when the thread is gone, by being dropped.
    pub fn submit(&self, operation: Operation) -> io::Result<()> {
        let stopped = || io::Error::other("the log writer has stopped");
        let operations = self.thread.operations.as_ref().ok_or_else(stopped)?;
        operations.send(operation).map_err(|_| stopped())
    }

    /// What the writer tells the outside, for those who must not keep it running.
    pub fn state(&self) -> Arc<WriterState> {
        self.state.clone()
    }

    /// Whether the log waits for space on its disk.
    pub fn is_out_of_space(&self) -> bool {
        self.state.is_out_of_space()
    }

    /// Has nothing written any more: what is under way is waited for, and what still waits fails.
    pub fn stop(&self) {
        self.close();
        *self.state.stopped.lock() = true;
    }

    /// Makes the writer give up a write that waits for space.
    pub fn close(&self) {
        self.state.closing.store(true, Ordering::Relaxed);
    }
}

struct Thread<F> {
    log: RaftLog,
    queue: Receiver<Operation>,
    state: Arc<WriterState>,
    flushed: F,
    /// After a failed write nothing may be written any more: the log would get a hole.
    failure: Option<String>,
}

impl<F: Fn(u64)> Thread<F> {
    fn run(mut self) {
        while let Ok(first) = self.queue.recv() {
            let mut round = vec![first];
            while round.len() < ROUND_OPERATIONS
                && let Ok(next) = self.queue.try_recv()
            {
                round.push(next);
            }
            self.write_round(round);
        }
    }

    fn write_round(&mut self, round: Vec<Operation>) {
        let mut records = Vec::new();
        let mut waiting = Vec::new();
        for operation in round {
            match operation {
                Operation::Append { records: more, done } => {
                    records.extend(more);
                    waiting.push(done);
                }
                other => {
                    self.append(std::mem::take(&mut records), std::mem::take(&mut waiting));
                    self.carry_out(other);
                }
            }
        }
        self.append(records, waiting);
    }

    fn append(&mut self, records: Vec<LogRecord>, waiting: Vec<IOFlushed<TypeConfig>>) {
        let last = records.last().map(|record| record.index);
        let result = self.write(|log| log.append(records.clone()));
        if let (Ok(()), Some(last)) = (&result, last) {
            (self.flushed)(last);
        }
        for done in waiting {
            done.io_completed(copy(&result));
        }
    }

    fn carry_out(&mut self, operation: Operation) {
        let (result, done) = match operation {
            Operation::Append { records, done } => return self.append(records, vec![done]),
            Operation::SaveMeta { key, value, done } => (self.write(|log| log.save_meta(key, value.clone())), done),
            Operation::TruncateFrom { index, done } => (self.write(|log| log.truncate_from(index)), done),
            Operation::PurgeThrough { index, marker, done } => (self.write(|log| log.purge_through(index, marker.clone())), done),
        };
        // A caller that is gone does not need the answer.
        let _ = done.send(result);
    }

    fn write(&mut self, attempt: impl Fn(&RaftLog) -> Result<(), LogError>) -> io::Result<()> {
        if let Some(failure) = &self.failure {
            return Err(io::Error::other(failure.clone()));
        }
        loop {
            let attempted = {
                let stopped = self.state.stopped.lock();
                if *stopped {
                    return Err(io::Error::other("the log writer has stopped"));
                }
                self.state.writing.store(true, Ordering::Relaxed);
                let attempted = attempt(&self.log);
                self.state.writing.store(false, Ordering::Relaxed);
                attempted
            };
            let error = match attempted {
                Ok(()) => {
                    self.state.no_space.store(false, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) => error,
            };
            let may_heal = matches!(error, LogError::Engine(EngineError::NoSpace));
            if !may_heal || self.state.closing.load(Ordering::Relaxed) {
                tracing::error!(%error, "cannot write the raft log; this member stops");
                self.failure = Some(error.to_string());
                return Err(io::Error::other(error));
            }
            if !self.state.no_space.swap(true, Ordering::Relaxed) {
                tracing::error!("no space left on the disk of the raft log; writes wait");
            }
            thread::sleep(NO_SPACE_RETRY);
        }
    }
}

fn copy(result: &io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}
