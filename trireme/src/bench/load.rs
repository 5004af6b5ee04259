//! Clients that each send one request after another, for some time.

use std::time::Duration;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use tokio::{task::JoinSet, time::Instant};
use tonic::Status;

/// What was seen of a load, from outside.
#[derive(Clone, Debug)]
pub struct Seen {
    pub operations: u64,
    pub seconds: f64,
    /// Latencies in microseconds.
    pub latencies: Histogram<u64>,
}

/// Longer latencies count as this one.
const LONGEST_MICROS: u64 = 600_000_000;

/// An empty histogram of microseconds, precise to three digits.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST_MICROS, 3).unwrap_or_else(|_| unreachable!("these bounds are allowed"))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Runs all clients for `warm_up`, unmeasured, and then for `duration`. `operation` carries out the n-th request of one client.
///
/// # Errors
/// When a request fails: a figure that leaves failures out would not be comparable.
pub async fn run<C, F, Fut>(clients: Vec<C>, warm_up: Duration, duration: Duration, operation: F) -> Result<Seen>
where
    C: Send + 'static,
    F: Fn(usize, u64, C) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = Result<C, Status>> + Send,
{
    let begin = Instant::now() + warm_up;
    let end = begin + duration;
    let mut tasks = JoinSet::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        tasks.spawn(async move {
            let mut own = latencies();
            let mut sequence = 0;
            loop {
                let sent = Instant::now();
                if sent >= end {
                    return Ok::<_, Status>(own);
                }
                client = operation(number, sequence, client).await?;
                sequence += 1;
                let answered = Instant::now();
                if sent >= begin && answered <= end {
                    own.saturating_record(micros(answered - sent));
                }
            }
        });
    }
    let mut all = latencies();
    while let Some(ended) = tasks.join_next().await {
        all.add(ended??)?;
    }
    ensure!(!all.is_empty(), "no request was answered within {duration:?}");
    Ok(Seen { operations: all.len(), seconds: duration.as_secs_f64(), latencies: all })
}
