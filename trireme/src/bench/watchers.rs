//! Many watchers of one prefix while puts happen at a steady rate: how long each event takes to each of them.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};
use trireme_etcd::proto::etcdserverpb::{
    PutRequest, WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion,
};

use super::{
    load::{self, Seen},
    scenario::{PREFIX, Shape, prefix_end},
    target::{Target, Through},
};

/// So many watchers share one stream, as those of one client do.
const WATCHERS_OF_STREAM: usize = 100;
/// How long the last events may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Values are this long: the time at which the put was due, and padding.
const VALUE_BYTES: usize = 64;

/// Tells the time to values, in microseconds since it was made.
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    fn stamp(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }
}

/// One stream, and how many watchers are on it.
struct Watching {
    answers: Streaming<WatchResponse>,
    watchers: usize,
    /// Kept open as long as the answers are read.
    _requests: mpsc::UnboundedSender<WatchRequest>,
}

async fn watch(target: &Target, stream: usize, watchers: usize, folder: &str) -> Result<Watching> {
    let (requests, queue) = mpsc::unbounded_channel();
    for _ in 0..watchers {
        let create =
            WatchCreateRequest { key: folder.to_owned().into(), range_end: prefix_end(folder), ..WatchCreateRequest::default() };
        requests.send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })?;
    }
    let mut answers = target.watch(stream).watch(UnboundedReceiverStream::new(queue)).await?.into_inner();
    for _ in 0..watchers {
        let created = answers.message().await?.context("the watch stream ended")?;
        ensure!(created.created && !created.canceled, "a watch was not created: {}", created.cancel_reason);
    }
    Ok(Watching { answers, watchers, _requests: requests })
}

/// Reads a stream until each of its watchers has seen `puts` events; returns the latencies of those that were due from `begin` on.
async fn follow(mut stream: Watching, puts: u64, begin: u64, clock: Arc<Clock>) -> Result<Histogram<u64>> {
    let mut latencies = load::latencies();
    let mut missing = puts * stream.watchers as u64;
    while missing > 0 {
        let answer = stream.answers.message().await?.context("a watch stream ended")?;
        ensure!(!answer.canceled, "a watch was cancelled: {}", answer.cancel_reason);
        let now = clock.stamp(Instant::now());
        for event in &answer.events {
            let value = event.kv.as_ref().and_then(|found| found.value.first_chunk::<8>());
            let due = u64::from_be_bytes(*value.context("an event has no value")?);
            if due >= begin {
                latencies.saturating_record(now.saturating_sub(due));
            }
            missing = missing.checked_sub(1).context("there are more events than puts")?;
        }
    }
    Ok(latencies)
}

/// Puts `count` times at a steady rate, each as soon as it is due, whether those before are answered or not.
async fn put(target: &Target, folder: &str, rate: u64, count: u64, clock: &Clock) -> Result<()> {
    let start = Instant::now();
    let mut running: JoinSet<Result<(), Status>> = JoinSet::new();
    for number in 0..count {
        let due = start + Duration::from_nanos(1_000_000_000 / rate * number);
        tokio::time::sleep_until(due).await;
        let mut value = vec![0; VALUE_BYTES];
        value[..8].copy_from_slice(&clock.stamp(due).to_be_bytes());
        let key = Bytes::from(format!("{folder}{:06}", number % 10_000));
        let mut client = target.key_value(Through::All, usize::try_from(number)?);
        running
            .spawn(async move { client.put(PutRequest { key, value: value.into(), ..PutRequest::default() }).await.map(|_| ()) });
        while let Some(ended) = running.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(())
}

/// Runs the load once. An operation is an event that reached a watcher; its latency counts from when the put was due.
///
/// # Errors
/// When an event is missing.
pub async fn run(target: &Target, watchers: usize, rate: u64, shape: &Shape, clock: &Arc<Clock>) -> Result<Seen> {
    let folder = format!("{PREFIX}watch/");
    let count = u64::try_from((shape.warm_up + shape.duration).as_millis())? * rate / 1000;
    let begin = clock.stamp(Instant::now() + shape.warm_up);
    let mut following = JoinSet::new();
    for (number, first) in (0..watchers).step_by(WATCHERS_OF_STREAM).enumerate() {
        let stream = watch(target, number, WATCHERS_OF_STREAM.min(watchers - first), &folder).await?;
        following.spawn(follow(stream, count, begin, clock.clone()));
    }
    let started = Instant::now();
    put(target, &folder, rate, count, clock).await?;
    let mut all = load::latencies();
    let gather = async {
        while let Some(ended) = following.join_next().await {
            all.add(ended??)?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, gather).await.context("not every event reached every watcher")??;
    Ok(Seen { operations: count * watchers as u64, seconds: started.elapsed().as_secs_f64(), latencies: all })
}
