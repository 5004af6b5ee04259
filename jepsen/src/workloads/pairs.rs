//! Writers that put pairs of keys, each pair once, all in one transaction with a register of their own.
//!
//! A write that is carried out by halves shows, and so does one that is carried out though its client was told that it failed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use tonic::Status;

use crate::{
    client::Client,
    history::{EventClock, Outcome, Write},
    wait::until,
};

/// What a writer waits between two writes, so that the processes keep some of the machine for what is tested.
const PAUSE: Duration = Duration::from_millis(8);
/// What it waits after one that was not acknowledged.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(30);

/// The keys and the value of one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    pub left: String,
    pub right: String,
    /// Of both halves.
    pub value: String,
    /// Put by every write of the writer, with the write's number.
    pub register: String,
}

impl Keys {
    pub fn of(run: &str, writer: usize, number: u64) -> Self {
        let base = format!("{run}/{writer}");
        Self {
            left: format!("{base}/{number}/left"),
            right: format!("{base}/{number}/right"),
            value: format!("{base}/{number}"),
            register: format!("{base}/register"),
        }
    }
}

/// Writers at work.
pub struct Writers {
    stop: Arc<AtomicBool>,
    pause: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Vec<Write>>>,
}

impl Writers {
    /// Starts one writer for each client; their keys begin with `run`.
    pub fn start(run: &str, clients: Vec<Client>) -> Self {
        let [stop, pause] = [Arc::<AtomicBool>::default(), Arc::default()];
        let acknowledged: Arc<AtomicUsize> = Arc::default();
        let clock = Arc::new(EventClock::default());
        let start = |(writer, client): (usize, Client)| {
            let (run, [stop, pause], acknowledged, clock) =
                (run.to_owned(), [stop.clone(), pause.clone()], acknowledged.clone(), clock.clone());
            tokio::spawn(async move {
                let mut history = Vec::new();
                for number in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    while pause.load(Ordering::Relaxed) {
                        tokio::time::sleep(PAUSE).await;
                    }
                    let write = write(&run, writer, number, &client, &clock).await;
                    history.push(write);
                    if let Outcome::Acknowledged(_) = write.outcome {
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(PAUSE).await;
                    } else {
                        tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    }
                }
                history
            })
        };
        let tasks = clients.into_iter().enumerate().map(start).collect();
        Self { stop, pause, acknowledged, tasks }
    }

    /// Has the writers begin nothing new until [`Writers::resume`].
    pub fn pause(&self) {
        self.pause.store(true, Ordering::Relaxed);
    }

    pub fn resume(&self) {
        self.pause.store(false, Ordering::Relaxed);
    }

    /// Waits until `count` more writes are acknowledged.
    pub async fn acknowledge(&self, count: usize) {
        let wanted = self.acknowledged.load(Ordering::Relaxed) + count;
        until("writes are acknowledged", || async {
            let now = self.acknowledged.load(Ordering::Relaxed);
            if now >= wanted { Ok(()) } else { Err(format!("{now} of {wanted}")) }
        })
        .await;
    }

    /// Ends the writers and gives what they did.
    ///
    /// # Panics
    /// When a writer has.
    pub async fn stop(self) -> Vec<Write> {
        self.stop.store(true, Ordering::Relaxed);
        let mut history = Vec::new();
        for task in self.tasks {
            history.extend(task.await.expect("a writer ends in good order"));
        }
        history
    }
}

async fn write(run: &str, writer: usize, number: u64, client: &Client, clock: &EventClock) -> Write {
    let keys = Keys::of(run, writer, number);
    let pairs = vec![(keys.left, keys.value.clone()), (keys.right, keys.value), (keys.register, number.to_string())];
    let invoked = clock.tick();
    let answer = client.put_all(pairs).await;
    let completed = clock.tick();
    let outcome = match answer {
        Ok(revision) => Outcome::Acknowledged(revision),
        Err(status) if is_definite(&status) => Outcome::Failed,
        Err(_) => Outcome::Unknown,
    };
    Write { writer, number, invoked, completed, outcome }
}

/// Whether the write was certainly not carried out: the master found no leader to take it.
fn is_definite(status: &Status) -> bool {
    status.message() == "etcdserver: no leader"
}
