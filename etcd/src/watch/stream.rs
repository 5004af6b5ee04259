//! One watch stream: creates and cancels its watchers, and answers requests for progress.

use std::collections::HashMap;

use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Streaming;
use trireme_storage::model::{KeyRange, Revision};

use super::watcher::{self, Answers, WatcherSpec};
use crate::{
    convert,
    proto::etcdserverpb::{
        WatchCreateRequest, WatchRequest, WatchResponse, watch_create_request::FilterType, watch_request::RequestUnion,
    },
    server::EtcdServer,
};

/// The id in answers that belong to no watcher, or to the whole stream.
const NO_WATCHER: i64 = -1;

/// One watcher of the stream. Ends when it is dropped.
struct Watcher {
    task: JoinHandle<()>,
    /// Every event up to this revision is in the stream's queue.
    reached: watch::Receiver<Revision>,
    stop: DropGuard,
}

struct WatchStream {
    server: EtcdServer,
    answers: Answers,
    watchers: HashMap<i64, Watcher>,
    next_id: i64,
    /// Where watchers that end by themselves say so.
    ended: mpsc::UnboundedSender<i64>,
    /// Answers to requests for progress, until they can be given.
    progress: JoinSet<()>,
}

/// The client has gone.
struct Gone;

/// Serves a stream until its client closes it.
pub async fn serve(server: EtcdServer, mut requests: Streaming<WatchRequest>, answers: Answers) {
    let (ended, mut endings) = mpsc::unbounded_channel();
    let progress = JoinSet::new();
    let mut stream = WatchStream { server, answers, watchers: HashMap::new(), next_id: 0, ended, progress };
    loop {
        tokio::select! {
            () = stream.answers.closed() => return,
            Some(id) = endings.recv() => {
                // Only one that has ended: the id may have been given again.
                if stream.watchers.get(&id).is_some_and(|watcher| watcher.task.is_finished()) {
                    stream.watchers.remove(&id);
                }
            }
            Some(_) = stream.progress.join_next() => {}
            request = requests.message() => match request {
                Ok(Some(request)) => if stream.take(request).await.is_err() {
                    return;
                },
                Ok(None) => break,
                Err(_) => return,
            },
        }
    }
    // The client sends no more, but may still listen.
    stream.answers.closed().await;
}

impl WatchStream {
    async fn take(&mut self, request: WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request).await,
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => {
                self.report_progress();
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn send(&self, response: WatchResponse) -> Result<(), Gone> {
        self.answers.send(Ok(response)).await.map_err(|_| Gone)
    }

    async fn create(&mut self, request: WatchCreateRequest) -> Result<(), Gone> {
        let now = self.server.inner.store.revision();
        let created = WatchResponse { header: self.server.header_at(now), created: true, ..WatchResponse::default() };
        let (id, spec) = match self.plan(&request, now) {
            Ok(planned) => planned,
            Err(reason) => {
                let cancel_reason = reason.to_owned();
                return self.send(WatchResponse { watch_id: NO_WATCHER, canceled: true, cancel_reason, ..created }).await;
            }
        };
        self.send(WatchResponse { watch_id: id, ..created }).await?;
        let stop = CancellationToken::new();
        let (progress, reached) = watch::channel(Revision(spec.start.0 - 1));
        let (server, answers, ended) = (self.server.clone(), self.answers.clone(), self.ended.clone());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = watcher::run(server, spec, answers, progress) => {
                    // The stream may have ended.
                    let _ = ended.send(id);
                }
            }
        });
        self.watchers.insert(id, Watcher { task, reached, stop: stop.drop_guard() });
        Ok(())
    }

    /// The watcher that is asked for, and its id; or why there can be none, in etcd's words.
    fn plan(&mut self, request: &WatchCreateRequest, now: Revision) -> Result<(i64, WatcherSpec), &'static str> {
        let range = watched(request).ok_or("mvcc: watcher range is empty")?;
        let is_taken = |id: &i64| self.watchers.get(id).is_some_and(|watcher| !watcher.task.is_finished());
        let id = match request.watch_id {
            0 => {
                let free = (self.next_id..).find(|id| !is_taken(id)).unwrap_or(i64::MAX);
                self.next_id = free.saturating_add(1);
                free
            }
            id if is_taken(&id) => return Err("mvcc: duplicate watch ID provided on the WatchStream"),
            id => id,
        };
        let has = |filter: FilterType| request.filters.contains(&filter.into());
        let start = u64::try_from(request.start_revision).ok().filter(|start| *start > 0).map_or(now.next(), Revision);
        let spec = WatcherSpec {
            id,
            range,
            start,
            puts: !has(FilterType::Noput),
            deletes: !has(FilterType::Nodelete),
            previous: request.prev_kv,
            fragments: request.fragment,
            notifies: request.progress_notify,
        };
        Ok((id, spec))
    }

    /// Ends a watcher. One that does not exist is not answered, as in etcd.
    async fn cancel(&mut self, id: i64) -> Result<(), Gone> {
        let Some(Watcher { task, stop, .. }) = self.watchers.remove(&id) else { return Ok(()) };
        if task.is_finished() {
            return Ok(());
        }
        drop(stop);
        // Whatever it still had to say is in the queue, or never comes.
        if let Err(error) = task.await {
            tracing::error!(%error, "a watcher failed");
        }
        self.send(WatchResponse { header: self.server.header(), watch_id: id, canceled: true, ..WatchResponse::default() }).await
    }

    /// Answers as soon as every watcher has handed over what it has to say up to now.
    fn report_progress(&mut self) {
        let now = self.server.inner.store.revision();
        let header = self.server.header_at(now);
        let mut waiting: Vec<watch::Receiver<Revision>> = self.watchers.values().map(|watcher| watcher.reached.clone()).collect();
        let answers = self.answers.clone();
        self.progress.spawn(async move {
            // A watcher that ended has nothing to say any more.
            for reached in &mut waiting {
                let _has_reached = reached.wait_for(|reached| *reached >= now).await.is_ok();
            }
            // The client may have gone.
            let _ = answers.send(Ok(WatchResponse { header, watch_id: NO_WATCHER, ..WatchResponse::default() })).await;
        });
    }
}

/// The keys that a request watches; `None` when there can be none. An empty key is the first of all.
fn watched(request: &WatchCreateRequest) -> Option<KeyRange> {
    let key = if request.key.is_empty() { bytes::Bytes::from_static(&[0]) } else { request.key.clone() };
    let range = convert::key_range(&key, &request.range_end);
    match &range {
        KeyRange::Span { start, end } if !end.is_empty() && start >= end => None,
        _ => Some(range),
    }
}
