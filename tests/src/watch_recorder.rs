//! Watchers over the etcd API that write down what they are told, for the checkers of [`trireme_jepsen::watch`]. They go on at another
//! member wherever a stream breaks.

use std::{collections::HashMap, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::interval};
use tonic::Streaming;
use trireme_etcd::proto::{
    etcdserverpb::{
        WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, watch_client::WatchClient,
        watch_create_request::FilterType, watch_request::RequestUnion,
    },
    mvccpb,
};
use trireme_jepsen::watch::history::{Event, EventKind, KeyState, Keys, Response, Revision, Session, SessionEnd, Watcher};

use crate::etcd::Access;

/// How often a stream asks how far it is.
const PROGRESS_PERIOD: Duration = Duration::from_millis(300);
/// Between one try to connect and the next.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// How long the last events may take after the last change.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// Responses to watchers that take no fragments may be so large.
const MESSAGE_BYTES: usize = 64 << 20;

/// What a watcher is to ask for.
#[derive(Clone, Debug)]
pub struct Wish {
    pub name: &'static str,
    pub keys: Keys,
    pub without: Vec<EventKind>,
    pub wants_previous: bool,
    pub start: Revision,
    pub fragments: bool,
}

impl Wish {
    /// Everything about these keys, from now on.
    pub fn of(name: &'static str, keys: Keys) -> Self {
        Self { name, keys, without: Vec::new(), wants_previous: true, start: 0, fragments: false }
    }
}

/// Watchers that share a stream, while they watch.
pub struct Recorder {
    task: JoinHandle<Vec<Watcher>>,
    settled: watch::Sender<Option<Revision>>,
    created: watch::Receiver<usize>,
}

impl Recorder {
    /// Begins to watch, first at the member with this number.
    pub fn start(access: &Access, member: usize, wishes: Vec<Wish>) -> Self {
        let (settled, stop) = watch::channel(None);
        let (creations, created) = watch::channel(0);
        let group = Group {
            access: access.clone(),
            member,
            watchers: wishes.iter().map(new_watcher).collect(),
            wishes,
            current: HashMap::new(),
            next_id: 1,
            creations,
        };
        Self { task: tokio::spawn(group.run(stop)), settled, created }
    }

    /// Waits until every watcher has been created once.
    ///
    /// # Panics
    /// When the recorder has failed.
    pub async fn ready(&mut self, count: usize) {
        self.created.wait_for(|created| *created >= count).await.expect("the recorder goes on");
    }

    /// Nothing changes after this revision: waits until everything up to it is told, and gives what was written down.
    ///
    /// # Panics
    /// When it is not told in time.
    pub async fn finish(self, last: Revision) -> Vec<Watcher> {
        self.settled.send_replace(Some(last));
        let ended = tokio::time::timeout(SETTLE_LIMIT, self.task).await;
        ended.unwrap_or_else(|_| panic!("not every event up to revision {last} came")).expect("the recorder does not panic")
    }
}

/// Every change of the keys between two revisions, both included, as one member tells it.
///
/// # Panics
/// When it does not tell.
pub async fn read_changes(access: &Access, member: usize, keys: Keys, from: Revision, through: Revision) -> Vec<Event> {
    let wish = Wish { start: from, ..Wish::of("reference", keys) };
    let watchers = Recorder::start(access, member, vec![wish]).finish(through).await;
    let events = watchers.into_iter().flat_map(|watcher| watcher.sessions).flat_map(|session| session.responses);
    let events = events.flat_map(|response| match response {
        Response::Events { events, .. } => events,
        Response::Progress(_) => Vec::new(),
    });
    events.filter(|event| event.revision() <= through).collect()
}

fn new_watcher(wish: &Wish) -> Watcher {
    Watcher {
        name: wish.name.to_owned(),
        keys: wish.keys.clone(),
        without: wish.without.clone(),
        wants_previous: wish.wants_previous,
        sessions: Vec::new(),
    }
}

/// One session that is going on.
struct Current {
    watcher: usize,
    /// None until the member says that it is created.
    session: Option<Session>,
    /// The first pieces of a response that comes in several.
    pieces: Vec<Vec<Event>>,
}

struct Group {
    access: Access,
    member: usize,
    wishes: Vec<Wish>,
    watchers: Vec<Watcher>,
    /// By the id of the watcher on the stream.
    current: HashMap<i64, Current>,
    next_id: i64,
    creations: watch::Sender<usize>,
}

/// A stream's two directions.
struct Stream {
    requests: tokio::sync::mpsc::UnboundedSender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Stream {
    fn send(&self, request: RequestUnion) {
        // A stream that broke says so when it is read.
        let _ = self.requests.send(WatchRequest { request_union: Some(request) });
    }
}

impl Group {
    async fn run(mut self, mut settled: watch::Receiver<Option<Revision>>) -> Vec<Watcher> {
        loop {
            if let Some(mut stream) = self.open().await {
                for watcher in 0..self.watchers.len() {
                    self.create(&stream, watcher);
                }
                if let Some(last) = self.follow(&mut stream, &mut settled).await {
                    self.end_all(SessionEnd::Settled(last));
                    return self.watchers;
                }
                self.end_all(SessionEnd::Broken);
            }
            self.member += 1;
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    async fn open(&self) -> Option<Stream> {
        let channel = self.access.connect(self.member).await.ok()?;
        let (requests, mut queue) = tokio::sync::mpsc::unbounded_channel();
        let outgoing = futures::stream::poll_fn(move |context| queue.poll_recv(context));
        let mut client = WatchClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        let answers = client.watch(outgoing).await.ok()?.into_inner();
        Some(Stream { requests, answers })
    }

    /// Asks for a watcher, from where it was told everything before.
    fn create(&mut self, stream: &Stream, watcher: usize) {
        let wish = &self.wishes[watcher];
        let start = self.start(watcher);
        let filter = |kind: &EventKind| match kind {
            EventKind::Put => FilterType::Noput.into(),
            EventKind::Delete => FilterType::Nodelete.into(),
        };
        let request = WatchCreateRequest {
            key: wish.keys.key.clone().into(),
            range_end: wish.keys.range_end.clone().into(),
            start_revision: i64::try_from(start).expect("revisions are small"),
            filters: wish.without.iter().map(filter).collect(),
            prev_kv: wish.wants_previous,
            fragment: wish.fragments,
            watch_id: self.next_id,
            ..WatchCreateRequest::default()
        };
        self.current.insert(self.next_id, Current { watcher, session: None, pieces: Vec::new() });
        self.next_id += 1;
        stream.send(RequestUnion::CreateRequest(request));
    }

    fn start(&self, watcher: usize) -> Revision {
        let Some(before) = self.watchers[watcher].sessions.last() else { return self.wishes[watcher].start };
        match before.end {
            SessionEnd::Compacted(oldest) => before.next_revision().max(oldest),
            SessionEnd::Broken | SessionEnd::Settled(_) => before.next_revision(),
        }
    }

    /// Writes down what comes until the stream breaks, or until everything up to the last revision is told, which it then gives.
    async fn follow(&mut self, stream: &mut Stream, settled: &mut watch::Receiver<Option<Revision>>) -> Option<Revision> {
        let mut ticks = interval(PROGRESS_PERIOD);
        let mut may_settle = true;
        loop {
            let last = *settled.borrow();
            if let Some(last) = last
                && self.has_told(last)
            {
                return Some(last);
            }
            tokio::select! {
                _ = ticks.tick() => stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {})),
                changed = settled.changed(), if may_settle => may_settle = changed.is_ok(),
                answer = stream.answers.message() => match answer {
                    Ok(Some(answer)) => self.take(stream, answer),
                    Ok(None) | Err(_) => return None,
                },
            }
        }
    }

    fn has_told(&self, last: Revision) -> bool {
        let told = |current: &Current| current.session.as_ref().is_some_and(|session| session.next_revision() > last);
        self.current.len() == self.watchers.len() && self.current.values().all(told)
    }

    fn take(&mut self, stream: &Stream, answer: WatchResponse) {
        let revision =
            u64::try_from(answer.header.as_ref().map_or(0, |header| header.revision)).expect("revisions are not negative");
        if answer.watch_id == -1 {
            assert!(!answer.created && !answer.canceled, "a watcher is refused: {answer:?}");
            // Told to all that share the stream. One that is not created yet was not there when it was asked.
            for session in self.current.values_mut().filter_map(|current| current.session.as_mut()) {
                session.responses.push(Response::Progress(revision));
            }
            return;
        }
        let member = self.access.endpoints[self.member % self.access.endpoints.len()].clone();
        let start = self.current.get(&answer.watch_id).map(|current| self.start(current.watcher));
        let Some(current) = self.current.get_mut(&answer.watch_id) else {
            panic!("an answer for a watcher that was never created, or that has ended: {answer:?}")
        };
        if answer.created {
            assert!(current.session.is_none() && answer.events.is_empty(), "created twice, or with events: {answer:?}");
            let (start, end) = (start.unwrap_or(0), SessionEnd::Broken);
            current.session = Some(Session { member, start, created_at: revision, responses: Vec::new(), end });
            self.creations.send_modify(|created| *created += 1);
            return;
        }
        let session = current.session.as_mut().unwrap_or_else(|| panic!("an answer before the creation: {answer:?}"));
        if answer.canceled {
            assert!(answer.compact_revision > 0, "canceled for another reason than a compaction: {answer:?}");
            session.end = SessionEnd::Compacted(u64::try_from(answer.compact_revision).expect("it is above 0"));
            let watcher = current.watcher;
            self.end(answer.watch_id);
            self.create(stream, watcher);
            return;
        }
        if answer.events.is_empty() {
            session.responses.push(Response::Progress(revision));
            return;
        }
        current.pieces.push(answer.events.into_iter().map(event).collect());
        if !answer.fragment {
            let fragments = current.pieces.len() as u64;
            let events = current.pieces.drain(..).flatten().collect();
            session.responses.push(Response::Events { events, fragments });
        }
    }

    /// Files a session that has ended with its watcher.
    fn end(&mut self, id: i64) {
        let current = self.current.remove(&id);
        if let Some(Current { watcher, session: Some(session), .. }) = current {
            self.watchers[watcher].sessions.push(session);
        }
    }

    fn end_all(&mut self, end: SessionEnd) {
        for current in self.current.values_mut() {
            if let Some(session) = &mut current.session {
                session.end = end;
            }
        }
        let ids: Vec<i64> = self.current.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end(id));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the writers write text")
}

fn number(signed: i64) -> u64 {
    u64::try_from(signed).expect("revisions and versions are not negative")
}

fn state(found: &mvccpb::KeyValue) -> KeyState {
    KeyState {
        value: text(&found.value),
        create_revision: number(found.create_revision),
        mod_revision: number(found.mod_revision),
        version: number(found.version),
        lease: found.lease,
    }
}

fn event(told: mvccpb::Event) -> Event {
    let kind = match told.r#type() {
        mvccpb::event::EventType::Put => EventKind::Put,
        mvccpb::event::EventType::Delete => EventKind::Delete,
    };
    let changed = told.kv.as_ref().expect("an event has a key");
    Event { kind, key: text(&changed.key), now: state(changed), previous: told.prev_kv.as_ref().map(state) }
}
