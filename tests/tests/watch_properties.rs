//! The nine properties of watches, held against what many watchers of three real masters are told while several clients write, the
//! leader is killed and history is compacted.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use trireme_etcd::proto::etcdserverpb::{
    CompactionRequest, LeaseLeasesRequest, RangeRequest, kv_client::KvClient, lease_client::LeaseClient,
};
use trireme_jepsen::watch::{
    check,
    coverage::Coverage,
    history::{EventKind, History, Keys, Revision},
};
use trireme_tests::{
    cluster::{Cluster, Pods},
    etcd::Access,
    wait::until,
    watch_recorder::{Recorder, Wish, read_changes},
    watch_writers::Writer,
};

const WRITERS: usize = 3;
/// How long is written before, between and after the faults.
const STRETCH: Duration = Duration::from_secs(4);
const LIMIT: Duration = Duration::from_secs(60);
/// A transaction of two such values whose keys held such values before makes events that do not fit into one message of a watcher that
/// takes fragments.
const LARGE_BYTES: usize = 600_000;

fn all() -> Keys {
    Keys::between("w/", "w0")
}

/// The revision of the whole store, as its leader has it.
async fn revision(access: &Access) -> Revision {
    until("a linearizable read", LIMIT, || async {
        for member in 0..access.endpoints.len() {
            let Ok(channel) = access.connect(member).await else { continue };
            let request = RangeRequest { key: "w/".into(), count_only: true, ..RangeRequest::default() };
            if let Ok(answer) = KvClient::new(channel).range(request).await {
                return Ok(answer.into_inner().header.map_or(0, |header| u64::try_from(header.revision).unwrap_or(0)));
            }
        }
        Err("no member answers")
    })
    .await
}

/// Drops the history below a revision.
async fn compact(access: &Access, revision: Revision) {
    let revision = i64::try_from(revision).expect("revisions are small");
    until("a compaction", LIMIT, || async {
        let channel = access.connect(0).await.map_err(|error| error.to_string())?;
        match KvClient::new(channel).compact(CompactionRequest { revision, physical: true }).await {
            Ok(_) => Ok(()),
            // A try before this one went through, and its answer was lost.
            Err(status) if status.code() == Code::OutOfRange => Ok(()),
            Err(status) => Err(status.to_string()),
        }
    })
    .await;
}

/// Waits until every lease has ended: nothing changes by itself from then on.
async fn leases_to_end(access: &Access) {
    until("the end of every lease", LIMIT, || async {
        let channel = access.connect(0).await.map_err(|error| error.to_string())?;
        let answer = LeaseClient::new(channel).lease_leases(LeaseLeasesRequest {}).await;
        let left = answer.map_err(|error| error.to_string())?.into_inner().leases.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} leases are left")) }
    })
    .await;
}

/// Watchers of every sort; those of one list share a stream.
fn wishes() -> Vec<Vec<Wish>> {
    let without = |kind: EventKind, wish: Wish| Wish { without: vec![kind], ..wish };
    let one = |name, key: &str| Wish { wants_previous: false, ..Wish::of(name, Keys::one(key)) };
    vec![
        vec![Wish { fragments: true, ..Wish::of("all with fragments", all()) }],
        vec![Wish { start: 1, ..Wish::of("all from the beginning", all()) }, one("one key", "w/k2")],
        vec![
            without(EventKind::Put, Wish::of("deletes", all())),
            without(EventKind::Delete, Wish { fragments: true, ..Wish::of("puts", all()) }),
            Wish::of("a part", Keys::between("w/k2", "w/k5")),
        ],
        vec![Wish { wants_previous: false, ..Wish::of("all without previous values", all()) }],
        vec![without(EventKind::Put, one("deletes of one key", "w/k4")), Wish::of("to the end", Keys::between("w/k6", "\0"))],
        vec![Wish::of("nothing", Keys::between("x/", "x0"))],
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_watcher_is_told_the_truth() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    let access = Access::of(&cluster);
    let mut recorders = Vec::new();
    for (number, wishes) in wishes().into_iter().enumerate() {
        let count = wishes.len();
        let mut recorder = Recorder::start(&access, number, wishes);
        recorder.ready(count).await;
        recorders.push(recorder);
    }
    let (stop, origin) = (CancellationToken::new(), Instant::now());
    let writers: Vec<_> =
        (0..WRITERS).map(|number| tokio::spawn(Writer::new(&access, number, origin).run(stop.clone()))).collect();
    let mut large = Writer::new(&access, WRITERS, origin);
    sleep(STRETCH).await;
    large.put_large(&["w/large1", "w/large2"], LARGE_BYTES).await;
    large.put_large(&["w/large1", "w/large2"], LARGE_BYTES).await;

    // The members that do not lead lose no watcher; those of the leader go on elsewhere.
    let leader = cluster.leader().await;
    cluster.kill_at_once(std::slice::from_ref(&leader));
    sleep(STRETCH).await;
    cluster.up();
    recorders.push(Recorder::start(&access, 1, vec![Wish { start: 1, ..Wish::of("all from the past", all()) }]));

    // What is compacted is read before; who comes later is sent to where history begins.
    let compacted = revision(&access).await;
    let mut reference = read_changes(&access, 0, all(), 1, compacted).await;
    compact(&access, compacted).await;
    let mut late = Recorder::start(&access, 2, vec![Wish { start: 1, ..Wish::of("all from before the compaction", all()) }]);
    late.ready(1).await;
    recorders.push(late);
    sleep(STRETCH).await;

    stop.cancel();
    let mut operations = large.operations();
    for writer in writers {
        operations.extend(writer.await.expect("a writer does not panic"));
    }
    leases_to_end(&access).await;
    let last = revision(&access).await;
    reference.extend(read_changes(&access, 1, all(), compacted + 1, last).await);
    let mut watchers = Vec::new();
    for recorder in recorders {
        watchers.extend(recorder.finish(last).await);
    }

    let history = History { reference, operations, watchers };
    let coverage = Coverage::of(&history);
    assert_eq!(coverage.missing(), Vec::<&str>::new(), "too little happened: {coverage:?}");
    let violations = check(&history).expect("the store's own account agrees with the writers'");
    let told: Vec<String> = violations.iter().map(|violation| violation.to_string().chars().take(1000).collect()).collect();
    assert!(told.is_empty(), "{} promises were broken:\n{}", told.len(), told.join("\n"));
    println!("{} operations, {coverage:?}", history.operations.len());
}
