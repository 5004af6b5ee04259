//! An answer in pages against the same answer in one piece, and what it holds while it waits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use proptest::prelude::*;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status, body::Body};
use trireme_storage::{
    command::Command,
    content::Content,
    local::LocalStore,
    model::{KeyRange, Operation, RangeContent, RangeRequest, RangeResult, Revision, Transaction, TransactionResult},
    rows::{Row, RowVisitor},
    store::{Store, StoreError, Watch},
};

use super::{PageBytes, Sizes, begin};
use crate::{
    convert,
    error::EtcdError,
    proto::etcdserverpb::{RangeResponse, ResponseHeader},
};

const SMALL: PageBytes = PageBytes { first: 300, further: 100 };

/// At a row, a visit says so and waits.
struct Pause {
    row: u64,
    reached: oneshot::Sender<()>,
    go_on: std::sync::mpsc::Receiver<()>,
}

/// A store that counts what is visited.
struct Observed {
    store: LocalStore,
    sizes: Arc<Sizes>,
    rows: AtomicU64,
    bytes: AtomicU64,
    pause: Mutex<Option<Pause>>,
    /// Told when a visit has ended.
    ended: Mutex<Option<mpsc::UnboundedSender<()>>>,
}

impl Observed {
    fn new() -> Arc<Self> {
        let store = LocalStore::in_memory().unwrap();
        Arc::new(Self {
            store,
            sizes: Arc::default(),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            pause: Mutex::default(),
            ended: Mutex::default(),
        })
    }

    fn write(&self, operations: Vec<Operation>) {
        self.store.apply(Command::Transact(Transaction { success: operations, ..Transaction::default() })).unwrap();
    }

    /// Puts so many keys, each with a value of so many bytes.
    fn fill(&self, keys: u64, value_bytes: usize) {
        self.write((0..keys).map(|number| Operation::put(format!("k{number:06}"), vec![7; value_bytes])).collect());
    }

    async fn begin(self: &Arc<Self>, request: RangeRequest, pages: PageBytes) -> Result<Body, EtcdError> {
        begin(self.clone(), self.sizes.clone(), request, pages, header).await
    }
}

fn header(revision: Revision) -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 1, member_id: 2, revision: convert::signed(revision.0), raft_term: 3 })
}

#[async_trait]
impl Store for Observed {
    async fn transact(&self, transaction: Transaction) -> Result<TransactionResult, StoreError> {
        self.store.transact(transaction).await
    }

    async fn read_barrier(&self) -> Result<Revision, StoreError> {
        self.store.read_barrier().await
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResult, StoreError> {
        self.store.range(request).await
    }

    fn visit(&self, range: &KeyRange, revision: Option<Revision>, visitor: &mut RowVisitor<'_>) -> Result<Revision, StoreError> {
        let visited = self.store.visit(range, revision, &mut |row: Row<'_>| {
            let number = self.rows.fetch_add(1, Ordering::SeqCst) + 1;
            self.bytes.fetch_add((row.key.len() + row.value.len()) as u64, Ordering::SeqCst);
            if let Some(pause) = self.pause.lock().take_if(|pause| pause.row == number) {
                pause.reached.send(()).unwrap();
                pause.go_on.recv().unwrap();
            }
            visitor(row)
        });
        if let Some(ended) = self.ended.lock().as_ref() {
            let _ = ended.send(());
        }
        visited
    }

    async fn watch(&self, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.store.watch(from).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }

    async fn content_at(&self, revision: Revision) -> Result<Content, StoreError> {
        self.store.content_at(revision).await
    }

    fn revision(&self) -> Revision {
        self.store.revision()
    }

    fn compacted_revision(&self) -> Revision {
        self.store.compacted_revision()
    }
}

/// What a body sends: the bytes, and the status at the end. `between` is called after each frame of data.
async fn received(mut body: Body, mut between: impl FnMut(usize)) -> (Vec<u8>, Status) {
    let mut bytes = Vec::new();
    loop {
        let frame = body.frame().await.expect("an answer ends with a status").unwrap();
        match frame.into_data() {
            Ok(data) => {
                bytes.extend_from_slice(&data);
                between(bytes.len());
            }
            Err(frame) => {
                let status = Status::from_header_map(&frame.into_trailers().unwrap()).unwrap();
                assert!(body.frame().await.is_none(), "nothing follows the status");
                return (bytes, status);
            }
        }
    }
}

/// Takes the message out of its frame.
fn message(bytes: Vec<u8>) -> Vec<u8> {
    let mut bytes = Bytes::from(bytes);
    assert_eq!(bytes.get_u8(), 0, "not compressed");
    assert_eq!(bytes.get_u32() as usize, bytes.len(), "the length is what was announced");
    bytes.to_vec()
}

/// The message of an answer that is read in one piece.
async fn whole(store: &Observed, request: RangeRequest) -> Vec<u8> {
    let found = store.range(request).await.unwrap();
    let kvs = found.key_values.into_iter().map(convert::key_value).collect();
    RangeResponse { header: header(found.revision), kvs, more: found.more, count: convert::signed(found.count) }.encode_to_vec()
}

/// Puts of a value of so many bytes, and deletes.
fn changes(longest: usize) -> impl Strategy<Value = Vec<(u8, Option<usize>)>> {
    prop::collection::vec((0..40_u8, prop::option::weighted(0.8, 0..longest)), 1..80)
}

fn carry_out(store: &Observed, (key, value): (u8, Option<usize>)) {
    let key = format!("k{key:02}");
    store.write(vec![match value {
        Some(bytes) => Operation::put(key, vec![b'v'; bytes]),
        None => Operation::delete(key),
    }]);
}

fn requests() -> impl Strategy<Value = RangeRequest> {
    let range = prop_oneof![
        Just(KeyRange::all()),
        Just(KeyRange::Span { start: "k05".into(), end: "k30".into() }),
        Just(KeyRange::Span { start: "k3".into(), end: "k2".into() }),
    ];
    let content =
        prop::sample::select(vec![RangeContent::Values, RangeContent::Values, RangeContent::KeysOnly, RangeContent::CountOnly]);
    (range, prop::option::of(0..30_u64), content).prop_map(|(range, limit, content)| RangeRequest {
        limit,
        content,
        ..RangeRequest::new(range)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// At the newest and at an older revision, with writes going on while the answer is sent, and whatever the pages hold: the bytes
    /// are those of the answer in one piece.
    #[test]
    fn pages_make_the_answer_in_one_piece(
        before in changes(120),
        during in changes(120),
        request in requests(),
        older in prop::option::of(any::<prop::sample::Index>()),
        first in 1..900_usize,
        further in 1..400_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = Observed::new();
            before.into_iter().for_each(|change| carry_out(&store, change));
            let revision = older.map(|index| Revision(index.index(store.revision().0 as usize + 1) as u64));
            let request = RangeRequest { revision, ..request };
            let mut during = during.into_iter();
            // From the second time on, the sizes may be known, as of a moment ago.
            for _ in 0..3 {
                let expected = whole(&store, request.clone()).await;
                let body = store.begin(request.clone(), PageBytes { first, further }).await.unwrap();
                let (bytes, status) = received(body, |_| during.by_ref().take(7).for_each(|change| carry_out(&store, change))).await;
                prop_assert_eq!(status.code(), Code::Ok);
                prop_assert!(message(bytes) == expected);
                during.by_ref().take(3).for_each(|change| carry_out(&store, change));
            }
            Ok(())
        })?;
    }
}

/// Sizes around the limit of the first page, which is where an answer begins to have a second one.
#[tokio::test]
async fn the_last_row_of_a_page_is_nowhere_twice_and_never_missing() {
    let store = Observed::new();
    store.fill(12, 40);
    let request = RangeRequest::new(KeyRange::all());
    let expected = whole(&store, request.clone()).await;
    for first in expected.len() - 130..expected.len() + 10 {
        let body = store.begin(request.clone(), PageBytes { first, further: 50 }).await.unwrap();
        let (bytes, status) = received(body, |_| ()).await;
        assert_eq!((status.code(), message(bytes) == expected), (Code::Ok, true), "a first page of {first} bytes");
    }
}

#[tokio::test]
async fn a_revision_that_is_compacted_meanwhile_ends_the_answer_with_etcds_error() {
    let store = Observed::new();
    store.fill(100, 50);
    let expected = whole(&store, RangeRequest::new(KeyRange::all())).await;
    let body = store.begin(RangeRequest::new(KeyRange::all()), SMALL).await.unwrap();
    let mut is_compacted = false;
    let (bytes, status) = received(body, |_| {
        if !std::mem::replace(&mut is_compacted, true) {
            store.write(vec![Operation::put("k000050", "new")]);
            store.store.apply(Command::Compact(Revision(2))).unwrap();
        }
    })
    .await;
    let words = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!((status.code(), status.message()), (Code::OutOfRange, words));
    assert!(bytes.len() < expected.len() && expected.starts_with(&bytes[5..]), "what was sent is right, and not all");
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_before_anything_is_sent() {
    let store = Observed::new();
    store.fill(3, 10);
    store.write(vec![Operation::put("k", "v")]);
    store.store.apply(Command::Compact(Revision(2))).unwrap();
    for (revision, error) in [(1, EtcdError::Compacted), (9, EtcdError::FutureRevision)] {
        let refused = store.begin(RangeRequest::new(KeyRange::all()).at(Revision(revision)), SMALL).await;
        assert_eq!(refused.err(), Some(error));
    }
}

/// The second time, only pages are read; after many changes, or a compaction of what was noted, all is looked at again.
#[tokio::test]
async fn a_range_that_was_read_before_is_not_looked_at_twice() {
    let store = Observed::new();
    store.fill(1000, 10);
    let mut rows = Vec::new();
    for round in 0..4 {
        match round {
            1 => store.write(vec![Operation::put("k000500", "longer than it was")]),
            2 => (0..1001).for_each(|_| store.write(vec![Operation::put("k000400", "x")])),
            3 => {
                ["k000998", "k000999"].into_iter().for_each(|key| store.write(vec![Operation::delete(key)]));
                let newest = store.store.revision();
                store.store.apply(Command::Compact(newest)).unwrap();
            }
            _ => {}
        }
        let expected = whole(&store, RangeRequest::new(KeyRange::all())).await;
        store.rows.store(0, Ordering::SeqCst);
        let body = store.begin(RangeRequest::new(KeyRange::all()), SMALL).await.unwrap();
        let (bytes, status) = received(body, |_| ()).await;
        assert_eq!((status.code(), message(bytes) == expected), (Code::Ok, true));
        rows.push(store.rows.load(Ordering::SeqCst));
    }
    let [first, second, third, fourth] = rows[..] else { panic!("four rounds") };
    assert!(first > second + 900 && third > second + 900, "{rows:?}");
    assert!(fourth > second + 900, "what was noted is compacted: {rows:?}");
}

/// What is read and not yet taken is never more than the first page, or a page that is sent and the one after it.
#[tokio::test]
async fn a_client_that_reads_slowly_holds_little_memory() {
    let store = Observed::new();
    store.fill(2000, 1000);
    let pages = PageBytes { first: 100_000, further: 50_000 };
    let body = store.begin(RangeRequest::new(KeyRange::all()), pages).await.unwrap();
    // The first look visits every row and keeps a page.
    let looked_at = store.bytes.swap(0, Ordering::SeqCst);
    assert!(looked_at > 2_000_000);
    let mut pages_read = Vec::new();
    let (bytes, status) = received(body, |taken| {
        // The next page is read meanwhile, and no other one after that: wait until it is.
        std::thread::sleep(Duration::from_millis(1));
        let read = pages.first as u64 + store.bytes.load(Ordering::SeqCst);
        let held = read.saturating_sub(taken as u64);
        assert!(held <= (pages.first + 2 * pages.further) as u64, "{held} bytes are held after {taken}");
        pages_read.push(read);
    })
    .await;
    assert_eq!((status.code(), message(bytes).len() > 2_000_000), (Code::Ok, true));
    assert!(pages_read.windows(2).filter(|reads| reads[0] < reads[1]).count() > 10, "it was read while it was sent");
}

/// Has the store pause at a row; when that is reached, and what lets it go on.
fn pause_at(store: &Observed, row: u64) -> (oneshot::Receiver<()>, std::sync::mpsc::Sender<()>) {
    let (reached, is_reached) = oneshot::channel();
    let (sender, go_on) = std::sync::mpsc::channel();
    *store.pause.lock() = Some(Pause { row, reached, go_on });
    (is_reached, sender)
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_reading() {
    let store = Observed::new();
    store.fill(50_000, 10);
    let (ended, mut has_ended) = mpsc::unbounded_channel();
    *store.ended.lock() = Some(ended);
    // Before the answer begins.
    let (reached, go_on) = pause_at(&store, 5000);
    tokio::select! {
        _ = store.begin(RangeRequest::new(KeyRange::all()), SMALL) => panic!("the reading goes on without being told to"),
        reached = reached => reached.unwrap(),
    }
    go_on.send(()).unwrap();
    has_ended.recv().await.unwrap();
    assert!(store.rows.swap(0, Ordering::SeqCst) < 5000 + 1025, "the rest was not looked at");
    // While it is sent: the first look sees all, and the page after the first one, which is to have the rest, is given up.
    let (reached, go_on) = pause_at(&store, 55_000);
    let pages = PageBytes { first: 100, further: 16 << 20 };
    let body = store.begin(RangeRequest::new(KeyRange::all()), pages).await.unwrap();
    reached.await.unwrap();
    drop(body);
    go_on.send(()).unwrap();
    has_ended.recv().await.unwrap();
    has_ended.recv().await.unwrap();
    assert!(store.rows.load(Ordering::SeqCst) < 55_000 + 1025, "the rest was not read");
}
