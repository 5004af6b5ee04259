//! Which master is asked: the one that answers, until it answers badly several times in a row.
//!
//! A master that has lost the others still takes connections and answers pings, and can do nothing: its requests time out or
//! end with a server error. Only requests tell it from a good one.

use std::{
    error::Error,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use http::{Method, Request, Response};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};

/// So many failures without a success between them, and another master is asked.
const FAILURES: u32 = 3;
/// How long a master may take to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A request whose caller lost patience counts as one without answer, if it was given this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// The masters, in order of preference, and what is thought of the present one.
pub struct Masters {
    names: Vec<String>,
    state: Mutex<State>,
}

struct State {
    /// The index of the master to try first.
    preferred: usize,
    /// Counts the times that a master was given up. What is heard of an earlier one says nothing of the present one.
    generation: u64,
    failures: u32,
    /// Cancelled when the master is given up: its connections end.
    connections: CancellationToken,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The master did something that takes a quorum.
    Written,
    /// It answered; that may be from what it remembers.
    Read,
    /// No answer, or a server error.
    Failed,
}

impl Masters {
    pub fn new(names: Vec<String>) -> Arc<Masters> {
        let state = State { preferred: 0, generation: 0, failures: 0, connections: CancellationToken::new() };
        Arc::new(Masters { names, state: Mutex::new(state) })
    }

    /// The masters to try, with their indices, and the end of the connection that is made.
    pub fn to_try(&self) -> (Vec<(usize, String)>, CancellationToken) {
        let state = self.state.lock();
        let order = (0..self.names.len()).map(|step| (state.preferred + step) % self.names.len());
        (order.map(|index| (index, self.names[index].clone())).collect(), state.connections.clone())
    }

    /// Notes that a connection that was begun with `connection` has come about.
    pub fn connected(&self, index: usize, connection: &CancellationToken) {
        let mut state = self.state.lock();
        if !connection.is_cancelled() {
            state.preferred = index;
        }
    }

    fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    fn judge(&self, generation: u64, outcome: Outcome) {
        let mut state = self.state.lock();
        if state.generation != generation {
            return;
        }
        match outcome {
            Outcome::Written => state.failures = 0,
            Outcome::Read => {}
            Outcome::Failed => state.failures += 1,
        }
        if state.failures < FAILURES || self.names.len() < 2 {
            return;
        }
        let given_up = &self.names[state.preferred];
        tracing::warn!(master = given_up, failures = state.failures, "the master answers no requests; going to the next one");
        state.preferred = (state.preferred + 1) % self.names.len();
        state.generation += 1;
        state.failures = 0;
        std::mem::take(&mut state.connections).cancel();
    }
}

/// Watches what comes of the requests of a client.
#[derive(Clone)]
pub struct JudgeLayer(pub Arc<Masters>);

impl<S> Layer<S> for JudgeLayer {
    type Service = Judge<S>;

    fn layer(&self, inner: S) -> Judge<S> {
        Judge { inner, masters: Arc::clone(&self.0) }
    }
}

/// A client whose requests are watched.
#[derive(Clone)]
pub struct Judge<S> {
    inner: S,
    masters: Arc<Masters>,
}

type BoxError = Box<dyn Error + Send + Sync>;

impl<S, Body, Answer> Service<Request<Body>> for Judge<S>
where
    S: Service<Request<Body>, Response = Response<Answer>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
        let trial = Trial::begin(&self.masters);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = match timeout(ANSWER_TIMEOUT, answer).await {
                Ok(answer) => answer.map_err(Into::into),
                Err(_) => Err(format!("the master did not answer within {ANSWER_TIMEOUT:?}").into()),
            };
            trial.end(match &answer {
                Ok(answer) if answer.status().is_server_error() => Outcome::Failed,
                Ok(_) if reads => Outcome::Read,
                Ok(_) => Outcome::Written,
                Err(_) => Outcome::Failed,
            });
            answer
        })
    }
}

/// One request under way.
struct Trial {
    masters: Weak<Masters>,
    generation: u64,
    began: Instant,
}

impl Trial {
    fn begin(masters: &Arc<Masters>) -> Trial {
        Trial { masters: Arc::downgrade(masters), generation: masters.generation(), began: Instant::now() }
    }

    fn end(mut self, outcome: Outcome) {
        if let Some(masters) = std::mem::take(&mut self.masters).upgrade() {
            masters.judge(self.generation, outcome);
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(masters) = self.masters.upgrade()
            && self.began.elapsed() >= PATIENCE
        {
            masters.judge(self.generation, Outcome::Failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masters() -> Arc<Masters> {
        Masters::new(["a", "b", "c"].map(str::to_owned).to_vec())
    }

    fn first(masters: &Masters) -> String {
        masters.to_try().0[0].1.clone()
    }

    #[test]
    fn a_master_is_given_up_after_failures_without_a_write_between_them() {
        use Outcome::{Failed, Read, Written};
        for (outcomes, expected) in [
            (vec![Failed, Failed], "a"),
            (vec![Failed, Failed, Failed], "b"),
            (vec![Failed, Failed, Written, Failed, Failed], "a"),
            // What it remembers it can still tell.
            (vec![Failed, Read, Failed, Read, Failed], "b"),
        ] {
            let masters = masters();
            let (_, connection) = masters.to_try();
            for outcome in &outcomes {
                masters.judge(masters.generation(), *outcome);
            }
            assert_eq!(first(&masters), expected, "{outcomes:?}");
            assert_eq!(connection.is_cancelled(), expected != "a", "its connections end with it");
        }
    }

    #[test]
    fn what_is_heard_late_of_one_master_is_not_laid_to_the_next() {
        let masters = masters();
        let (_, connection) = masters.to_try();
        for _ in 0..10 {
            masters.judge(0, Outcome::Failed);
        }
        assert_eq!(first(&masters), "b");
        masters.connected(0, &connection);
        assert_eq!(first(&masters), "b", "nor does a connection begun before count");
        masters.connected(2, &masters.to_try().1);
        assert_eq!(first(&masters), "c");
    }

    #[test]
    fn an_only_master_is_kept() {
        let masters = Masters::new(vec!["a".to_owned()]);
        let (_, connection) = masters.to_try();
        for _ in 0..10 {
            masters.judge(0, Outcome::Failed);
        }
        assert!(!connection.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_lost_patience_counts_and_one_that_left_early_does_not() {
        let masters = masters();
        for _ in 0..10 {
            drop(Trial::begin(&masters));
        }
        assert_eq!(first(&masters), "a");
        let trials: Vec<Trial> = (0..3).map(|_| Trial::begin(&masters)).collect();
        tokio::time::advance(PATIENCE).await;
        drop(trials);
        assert_eq!(first(&masters), "b");
    }
}
