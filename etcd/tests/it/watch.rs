//! Watchers on streams.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use trireme_etcd::proto::{
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
        WatchResponse, watch_create_request::FilterType, watch_request::RequestUnion,
    },
    mvccpb::{Event, event::EventType},
};

use crate::service::{Service, by_administrator};

/// A stream and its client.
struct Client {
    requests: mpsc::UnboundedSender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Client {
    async fn open(service: &Service) -> Self {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let answers = service.watches().watch(UnboundedReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Self { requests, answers }
    }

    fn send(&self, request: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(request) }).unwrap();
    }

    async fn next(&mut self) -> WatchResponse {
        let answer = tokio::time::timeout(Duration::from_secs(10), self.answers.message()).await;
        answer.expect("an answer comes in time").unwrap().expect("the stream goes on")
    }

    /// Creates a watcher, and returns its id.
    async fn create(&mut self, request: WatchCreateRequest) -> i64 {
        self.send(RequestUnion::CreateRequest(request));
        let answer = self.next().await;
        assert!(answer.created && !answer.canceled && answer.events.is_empty(), "{answer:?}");
        answer.watch_id
    }

    /// The next events, of any number of answers, one line each.
    async fn events(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let answer = self.next().await;
            assert!(!answer.events.is_empty(), "{answer:?}");
            let through = answer.header.unwrap().revision;
            assert!(answer.events.iter().all(|event| event.kv.as_ref().unwrap().mod_revision <= through));
            lines.extend(answer.events.iter().map(|event| format!("{}: {}", answer.watch_id, line(event))));
        }
        lines
    }
}

fn line(event: &Event) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let kv = event.kv.as_ref().unwrap();
    let kind = if event.r#type() == EventType::Put { "put" } else { "delete" };
    let previous = event.prev_kv.as_ref().map(|previous| format!(" after {}", text(&previous.value)));
    format!("{kind} {}={}@{}{}", text(&kv.key), text(&kv.value), kv.mod_revision, previous.unwrap_or_default())
}

fn prefix(key: &'static str, end: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.into(), range_end: end.into(), ..WatchCreateRequest::default() }
}

async fn delete(service: &Service, key: &'static str) {
    service.key_values().delete_range(DeleteRangeRequest { key: key.into(), ..Default::default() }).await.unwrap();
}

#[tokio::test]
async fn watchers_of_one_stream_get_what_each_asked_for() {
    let service = Service::new();
    service.put("a1", "1").await;
    let mut client = Client::open(&service).await;
    let past = WatchCreateRequest { start_revision: 1, prev_kv: true, ..prefix("a", "b") };
    assert_eq!(client.create(past).await, 0);
    assert_eq!(client.events(1).await, ["0: put a1=1@1"]);
    let no_puts = WatchCreateRequest { filters: vec![FilterType::Noput.into()], watch_id: 9, ..prefix("a", "b") };
    assert_eq!(client.create(no_puts).await, 9);
    let one = WatchCreateRequest { filters: vec![FilterType::Nodelete.into()], ..prefix("b1", "") };
    assert_eq!(client.create(one).await, 1);
    // Not for anyone.
    service.put("c", "1").await;
    service.put("a1", "2").await;
    delete(&service, "a1").await;
    service.put("b1", "3").await;
    delete(&service, "b1").await;
    let mut events = client.events(4).await;
    events.sort();
    assert_eq!(events, ["0: delete a1=@4 after 2", "0: put a1=2@3 after 1", "1: put b1=3@5", "9: delete a1=@4"]);

    // The ninth says no more; the id may be given again, while those in use may not.
    client.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 9 }));
    let canceled = client.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.compact_revision), (9, true, 0));
    client.send(RequestUnion::CreateRequest(WatchCreateRequest { watch_id: 1, ..prefix("a", "b") }));
    let refused = client.next().await;
    assert!(refused.created && refused.canceled);
    assert_eq!((refused.watch_id, refused.cancel_reason.as_str()), (-1, "mvcc: duplicate watch ID provided on the WatchStream"));
    client.send(RequestUnion::CreateRequest(prefix("b", "a")));
    assert_eq!(client.next().await.cancel_reason, "mvcc: watcher range is empty");
    assert_eq!(client.create(WatchCreateRequest { watch_id: 9, ..prefix("z", "") }).await, 9);
    service.put("z", "1").await;
    assert_eq!(client.events(1).await, ["9: put z=1@7"]);
}

#[tokio::test]
async fn a_watcher_of_a_compacted_revision_is_canceled_with_the_revision_to_begin_at() {
    let service = Service::new();
    for number in 0..6 {
        service.put("k", &number.to_string()).await;
    }
    service.key_values().compact(by_administrator(CompactionRequest { revision: 4, physical: false })).await.unwrap();
    let mut client = Client::open(&service).await;
    client.create(WatchCreateRequest { start_revision: 2, ..prefix("k", "") }).await;
    let canceled = client.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.compact_revision), (0, true, 4));
    // The stream goes on, and a watcher at the compaction point is told everything since.
    assert_eq!(client.create(WatchCreateRequest { start_revision: 4, ..prefix("k", "") }).await, 1);
    assert_eq!(client.events(3).await, ["1: put k=3@4", "1: put k=4@5", "1: put k=5@6"]);
}

#[tokio::test]
async fn a_watcher_may_wait_for_a_revision_in_the_future() {
    let service = Service::new();
    let mut client = Client::open(&service).await;
    client.create(WatchCreateRequest { start_revision: 3, ..prefix("k", "") }).await;
    for number in 0..4 {
        service.put("k", &number.to_string()).await;
    }
    assert_eq!(client.events(2).await, ["0: put k=2@3", "0: put k=3@4"]);
}

#[tokio::test]
async fn progress_is_told_after_everything_before_it() {
    let service = Service::new();
    let mut client = Client::open(&service).await;
    client.create(prefix("k", "")).await;
    client.create(prefix("other", "")).await;
    for number in 0..50 {
        service.put("k", &number.to_string()).await;
    }
    client.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    let mut seen = 0;
    loop {
        let answer = client.next().await;
        if answer.watch_id == -1 {
            assert_eq!(answer.header.unwrap().revision, 50);
            break;
        }
        seen += answer.events.len();
    }
    assert_eq!(seen, 50);
}

#[tokio::test(start_paused = true)]
async fn an_idle_watcher_that_asked_for_it_is_told_its_progress() {
    let service = Service::with_progress_period(Duration::from_secs(5));
    let mut client = Client::open(&service).await;
    client.create(WatchCreateRequest { progress_notify: true, ..prefix("k", "") }).await;
    service.put("other", "1").await;
    let told = client.next().await;
    assert!(told.events.is_empty() && !told.canceled && !told.created);
    assert_eq!((told.watch_id, told.header.unwrap().revision), (0, 1));
}

#[tokio::test]
async fn large_answers_are_split_for_those_who_take_fragments() {
    let service = Service::new();
    let value = "x".repeat(900_000);
    let keys = ["k1", "k2", "k3"];
    // One revision of three keys.
    let operations = keys.map(|key| trireme_storage::model::Operation::put(key, value.clone()));
    let transaction = trireme_storage::model::Transaction { success: operations.into(), ..Default::default() };
    service.store.apply(trireme_storage::command::Command::Transact(transaction)).unwrap();
    let mut client = Client::open(&service).await;
    client.create(WatchCreateRequest { start_revision: 1, fragment: true, ..prefix("k", "l") }).await;
    let mut fragments = Vec::new();
    loop {
        let answer = client.next().await;
        fragments.push((answer.events.len(), answer.fragment));
        if !answer.fragment {
            break;
        }
    }
    assert_eq!(fragments, [(1, true), (1, true), (1, false)]);
}
