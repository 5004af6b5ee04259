//! The edge: watches in, writes out, one loop. Nothing is left behind when it ends.

use std::{sync::Arc, time::Duration};

use futures::{
    FutureExt, Stream, StreamExt,
    stream::{self, BoxStream},
};
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use trireme_api::clock::Clock;

use crate::{
    brain::{Action, Brain, Event},
    config::SchedulerConfig,
    reports::Reports,
    writes::Writer,
};

/// So many changes are taken in before the next pod is tried, when changes keep coming.
const MAX_EVENTS_AT_ONCE: usize = 256;
/// How often pods that waited long are looked for.
const FLUSH_INTERVAL: Duration = Duration::from_secs(30);

/// A write that has ended.
enum Outcome {
    Bound(Arc<str>),
    BindingFailed(Arc<str>),
    Reported,
}

/// Schedules pods until `shutdown` is cancelled. Errors of the API are survived: watches are taken up again with a growing
/// delay, bindings that fail are tried again after the pod's back-off.
pub async fn run(client: Client, config: SchedulerConfig, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    let writer = Writer::new(client.clone(), &config, Arc::clone(&clock));
    let brain = Brain::new(config.scheduler_name.clone(), config.seed);
    let driver = Driver {
        brain,
        writer,
        clock,
        reports: Reports::default(),
        writes: JoinSet::new(),
        max_in_flight: config.max_in_flight.max(1),
        start: Instant::now(),
    };
    driver.run(events(&client), shutdown).await;
}

fn events(client: &Client) -> BoxStream<'static, Event> {
    stream::select_all([
        watch(client, Event::Node),
        watch(client, Event::Pod),
        watch(client, Event::Namespace),
        watch(client, Event::Service),
    ])
    .boxed()
}

fn watch<K>(client: &Client, wrap: fn(watcher::Event<K>) -> Event) -> BoxStream<'static, Event>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let api: Api<K> = Api::all(client.clone());
    watcher(api, watcher::Config::default())
        .default_backoff()
        .filter_map(move |event| async move {
            match event {
                Ok(event) => Some(wrap(event)),
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch broke off");
                    None
                }
            }
        })
        .boxed()
}

struct Driver {
    brain: Brain,
    writer: Writer,
    clock: Arc<dyn Clock>,
    reports: Reports,
    /// Bindings and reports under way; dropping it ends them.
    writes: JoinSet<Outcome>,
    max_in_flight: usize,
    start: Instant,
}

impl Driver {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    async fn run(mut self, mut events: impl Stream<Item = Event> + Unpin, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            self.take_in(&mut events);
            self.brain.advance(self.now());
            if self.can_decide() {
                self.decide();
                tokio::task::yield_now().await;
                continue;
            }
            let wake = self.brain.next_wake().map_or(FLUSH_INTERVAL, |at| at.saturating_sub(self.now()).min(FLUSH_INTERVAL));
            tokio::select! {
                () = shutdown.cancelled() => {}
                event = events.next() => match event {
                    Some(event) => self.brain.on_event(event, self.now()),
                    None => break,
                },
                Some(outcome) = self.writes.join_next() => self.finish(outcome),
                () = tokio::time::sleep(wake) => {}
            }
        }
        self.writes.shutdown().await;
    }

    fn can_decide(&self) -> bool {
        self.brain.has_work() && self.writes.len() < self.max_in_flight
    }

    /// Takes in what is there already, so that decisions rest on the newest picture.
    fn take_in(&mut self, events: &mut (impl Stream<Item = Event> + Unpin)) {
        for _ in 0..MAX_EVENTS_AT_ONCE {
            let Some(Some(event)) = events.next().now_or_never() else { break };
            self.brain.on_event(event, self.now());
        }
        while let Some(outcome) = self.writes.try_join_next() {
            self.finish(outcome);
        }
        if self.reports.len() > MAX_EVENTS_AT_ONCE {
            self.reports.retain(|uid| self.brain.is_pending(uid));
        }
    }

    fn decide(&mut self) {
        let Some(action) = self.brain.next(self.now()) else { return };
        let writer = self.writer.clone();
        match action {
            Action::Bind { pod, node } => {
                self.writes.spawn(async move {
                    match writer.bind(&pod, &node).await {
                        Ok(()) => Outcome::Bound(Arc::clone(&pod.uid)),
                        Err(error) => {
                            tracing::warn!(pod = pod.full_name(), %node, %error, "binding failed");
                            Outcome::BindingFailed(Arc::clone(&pod.uid))
                        }
                    }
                });
            }
            Action::Report { pod, message, plan, displaced } => {
                tracing::debug!(pod = pod.full_name(), message, "no node fits");
                let name = writer.new_event_name(&pod);
                let record = self.reports.note(&pod.uid, message, name, self.clock.now());
                self.writes.spawn(async move {
                    writer.report(&pod, &record, plan.as_ref()).await;
                    if let Some(plan) = &plan {
                        writer.evict(&pod, plan).await;
                    }
                    for other in &displaced {
                        writer.clear_nomination(other).await;
                    }
                    Outcome::Reported
                });
            }
        }
    }

    fn finish(&mut self, outcome: Result<Outcome, tokio::task::JoinError>) {
        match outcome {
            Ok(Outcome::Bound(uid)) => self.reports.forget(&uid),
            Ok(Outcome::BindingFailed(uid)) => self.brain.on_binding_failed(&uid, self.now()),
            Ok(Outcome::Reported) => {}
            Err(error) => tracing::error!(%error, "a write of the scheduler broke off"),
        }
    }
}
