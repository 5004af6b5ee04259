//! Waiting for a condition, with a deadline.

use std::{fmt::Debug, time::Duration};

use tokio::time::{Instant, sleep};

const POLL: Duration = Duration::from_millis(20);
/// How long anything may take that should happen soon; generous, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks `probe` until it answers `Ok`, and gives that answer.
///
/// # Panics
/// When [`PATIENCE`] is over, with what was awaited and the last reason why it was not so.
pub async fn until<T, E: Debug, F: Future<Output = Result<T, E>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match probe().await {
            Ok(answer) => return answer,
            Err(why) if Instant::now() >= deadline => panic!("not within {PATIENCE:?}: {what}: {why:?}"),
            Err(_) => sleep(POLL).await,
        }
    }
}
