//! `GET` of a collection with `watch=true`: a stream of events that never skips, repeats or reorders.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use rand::RngExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trireme_api::{registry::Resource, status::Status};
use trireme_storage::model::Revision;

use super::list_options::{Bookmarks, InitialEvents, ListOptions};
use crate::{
    ApiServer,
    answer::Answer,
    body,
    cache::{CachedObject, ChangeKind, Delivery, Peek, SubscribeError, Subscription, View, event_frame},
    filter::Filter,
    negotiate::Form,
    request::ApiRequest,
    store_error::{status_of, too_large_resource_version},
    table::{self, IncludeObject},
};

/// The shortest time for which a watch runs when the client names none; the longest is twice that.
const MINIMUM_WATCH: Duration = Duration::from_secs(1800);
/// The longest time for which a watch runs, whatever the client asks for.
const MAXIMUM_WATCH: Duration = Duration::from_secs(24 * 3600);

/// Begins a watch. One after a resourceVersion whose following events are no longer known begins too, and its only event is
/// the refusal (410): clients list again when they are told so in the stream, as by `k8s.io/apiserver/pkg/storage/cacher`.
///
/// # Errors
/// 400 or 422 for bad parameters, 504 for a resourceVersion that this server does not reach in time.
pub async fn watch(server: &Arc<ApiServer>, request: &ApiRequest) -> Result<Answer, Status> {
    let options = ListOptions::parse(&request.query, true)?;
    let filter = Filter::parse(&request.resource, request.namespace.as_deref(), request.name.as_deref(), &request.query)?;
    let include = IncludeObject::parse(request.query.get("includeObject"))?;
    let cache = server.cache(&request.resource)?.clone();
    let send_state = options.initial_events == Some(InitialEvents::Sent);
    let start = begin(server, &options, send_state).await?;
    let mut initial = VecDeque::new();
    let (subscription, from) = match start {
        Start::State => {
            let (snapshot, subscription) = cache.snapshot_and_subscribe(filter.clone(), server.caches.applied());
            if options.initial_events != Some(InitialEvents::Skipped) {
                match filter.single_path() {
                    Some(path) => {
                        let object = snapshot.objects.get(path.as_str()).filter(|object| filter.matches(object));
                        initial.extend(object.cloned());
                    }
                    None => {
                        let objects = snapshot.iter(filter.namespace.as_deref(), None);
                        initial.extend(objects.filter(|object| filter.matches(object)).cloned());
                    }
                }
            }
            (subscription, snapshot.revision)
        }
        Start::After(revision) => match cache.subscribe(filter.clone(), revision) {
            Ok(subscription) => (subscription, revision),
            Err(SubscribeError::TooOld { requested, oldest }) => {
                return Ok(refusal(&Status::expired(format!("too old resource version: {requested} ({oldest})"))));
            }
        },
    };
    let now = Instant::now();
    let duration = options.timeout_seconds.filter(|seconds| *seconds > 0).map_or_else(
        || MINIMUM_WATCH + Duration::from_secs(server.random.lock().random_range(0..MINIMUM_WATCH.as_secs())),
        |seconds| Duration::from_secs(seconds).min(MAXIMUM_WATCH),
    );
    let session = Session {
        server: server.clone(),
        resource: request.resource.clone(),
        form: request.accepted.form,
        include,
        initial,
        initial_end: send_state && options.bookmarks == Bookmarks::Allowed,
        subscription,
        reached: from,
        columns: Columns::Unsent,
        bookmarks: options.bookmarks,
        next_bookmark: now + server.bookmark_period,
        deadline: now + duration,
        shutdown: server.shutdown.clone(),
        is_over: false,
    };
    let frames = stream::unfold(session, |mut session| async move { session.next().await.map(|frame| (frame, session)) });
    Ok(Answer::Stream { content_type: "application/json", body: body::stream(frames) })
}

/// A watch that ends with its first event.
fn refusal(status: &Status) -> Answer {
    Answer::Stream { content_type: "application/json", body: body::full(error_frame(status)) }
}

fn error_frame(status: &Status) -> Bytes {
    event_frame("ERROR", status.to_json().to_string().as_bytes())
}

/// Where a watch begins.
enum Start {
    /// With the state as it is.
    State,
    /// With what happened after a revision.
    After(Revision),
}

async fn begin(server: &ApiServer, options: &ListOptions, send_state: bool) -> Result<Start, Status> {
    match options.revision {
        // "Get state and start at most recent".
        None => {
            server.caches.barrier(server.store.as_ref()).await.map_err(|error| status_of(&error))?;
            Ok(Start::State)
        }
        Some(Revision(0)) => {
            // Before the caches are filled there is no state to begin with.
            server.caches.reach(Revision(0)).await.map_err(|_| Status::unavailable("the watch cache is not filled yet"))?;
            Ok(Start::State)
        }
        Some(revision) => {
            let reached = server.caches.reach(revision).await;
            reached.map_err(|behind| too_large_resource_version(behind.requested, behind.current))?;
            Ok(if send_state { Start::State } else { Start::After(revision) })
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Columns {
    Unsent,
    Sent,
}

/// One running watch. It lives in the body of the response: when the client goes, it goes.
struct Session {
    server: Arc<ApiServer>,
    resource: Arc<Resource>,
    form: Form,
    include: IncludeObject,
    /// The objects of the state that the watch begins with, not sent yet.
    initial: VecDeque<Arc<CachedObject>>,
    /// Whether a bookmark closes the initial state.
    initial_end: bool,
    subscription: Subscription,
    /// Everything up to this revision was sent.
    reached: Revision,
    /// Whether a table's columns were sent; only the first event carries them.
    columns: Columns,
    bookmarks: Bookmarks,
    next_bookmark: Instant,
    deadline: Instant,
    shutdown: CancellationToken,
    is_over: bool,
}

impl Session {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.is_over {
                return None;
            }
            if let Some(object) = self.initial.pop_front() {
                let object = self.server.served_object(&self.resource, object);
                return Some(self.encode(ChangeKind::Added.name(), object.json.clone()));
            }
            if self.initial_end {
                self.initial_end = false;
                return Some(self.bookmark(Some("true")));
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => self.is_over = true,
                () = tokio::time::sleep_until(self.deadline) => self.is_over = true,
                delivery = self.subscription.next() => return self.deliver(delivery),
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks == Bookmarks::Allowed => {
                    self.next_bookmark = Instant::now() + self.server.bookmark_period;
                    return self.mark();
                }
            }
        }
    }

    /// The frame of a delivery. A watcher that was cut off because it did not read just ends: it resumes where it was.
    fn deliver(&mut self, delivery: Option<Delivery>) -> Option<Bytes> {
        match delivery {
            Some(Delivery::Change(view)) => Some(self.change(&view)),
            Some(Delivery::Expired) => {
                self.is_over = true;
                Some(error_frame(&Status::expired("The resourceVersion for the provided watch is too old.")))
            }
            None => {
                self.is_over = true;
                None
            }
        }
    }

    fn change(&mut self, view: &View) -> Bytes {
        self.reached = self.reached.max(view.event.revision);
        if self.form == Form::Whole && !self.server.is_converted(&self.resource) {
            return view.frame();
        }
        let json = self.server.converted(&self.resource, view.object_json());
        self.encode(view.kind.name(), json)
    }

    /// A bookmark at the newest revision, after everything that comes before it. A watcher that was cut off has missed changes:
    /// it gets what is left of its own and no bookmark, which would carry it past them.
    fn mark(&mut self) -> Option<Bytes> {
        // Every change up to here is in the channel already, unless the watcher was cut off.
        let applied = self.server.caches.applied();
        let mut frames = Vec::new();
        while !self.is_over {
            match self.subscription.try_next() {
                Peek::Delivery(delivery) => frames.extend_from_slice(&self.deliver(Some(delivery)).unwrap_or_default()),
                Peek::Ended => self.is_over = true,
                Peek::Nothing => {
                    self.reached = self.reached.max(applied);
                    frames.extend_from_slice(&self.bookmark(None));
                    break;
                }
            }
        }
        (!frames.is_empty()).then(|| frames.into())
    }

    fn bookmark(&mut self, initial_events_end: Option<&str>) -> Bytes {
        let mut metadata = json!({ "resourceVersion": self.reached.to_string(), "creationTimestamp": null });
        if let Some(value) = initial_events_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": value });
        }
        let object = match self.form {
            Form::Whole => {
                json!({ "kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata })
            }
            Form::Metadata { version } => {
                json!({ "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata })
            }
            Form::Table { version } => {
                json!({ "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata, "columnDefinitions": [], "rows": [] })
            }
        };
        event_frame("BOOKMARK", object.to_string().as_bytes())
    }

    /// The frame of an object in the form that the client asked for.
    fn encode(&mut self, kind: &str, json: Bytes) -> Bytes {
        if self.form == Form::Whole {
            return event_frame(kind, &json);
        }
        // What the cache holds is valid JSON.
        let value: Value = serde_json::from_slice(&json).unwrap_or_default();
        let object = match self.form {
            Form::Whole => value,
            Form::Metadata { version } => table::partial_metadata(&value, version),
            Form::Table { version } => {
                let revision = value.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
                let rows = vec![table::row(&self.resource, &value, self.include, self.server.clock.now(), version)];
                let mut table = table::table(&self.resource, rows, revision, None, None, version);
                if self.columns == Columns::Sent {
                    table["columnDefinitions"] = json!([]);
                }
                self.columns = Columns::Sent;
                table
            }
        };
        event_frame(kind, object.to_string().as_bytes())
    }
}
