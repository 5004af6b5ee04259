//! Waiting for a condition, with a deadline.

use std::{fmt::Debug, future::Future, time::Duration};

use tokio::time::{Instant, sleep};

const POLL: Duration = Duration::from_millis(50);

/// Asks `probe` until it answers `Ok`, and gives that answer.
///
/// # Panics
/// When `limit` has passed, with what was awaited and the last reason why it was not so.
pub async fn until<T, E, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> T
where
    E: Debug,
    F: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match probe().await {
            Ok(answer) => return answer,
            Err(why) if Instant::now() >= deadline => panic!("not within {limit:?}: {what}: {why:?}"),
            Err(_) => sleep(POLL).await,
        }
    }
}
