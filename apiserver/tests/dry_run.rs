//! Dry runs on a member that is behind the others.

mod support;

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;
use support::TestServer;
use trireme_storage::{
    content::Content,
    local::LocalStore,
    model::{KeyRange, RangeRequest, RangeResult, Revision, Transaction, TransactionResult},
    rows::RowVisitor,
    store::{Store, StoreError, Watch},
};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A member that has applied nothing since a revision, until it waits for the others.
struct Behind {
    store: Arc<LocalStore>,
    stopped_at: Mutex<Option<Revision>>,
}

#[async_trait]
impl Store for Behind {
    async fn transact(&self, transaction: Transaction) -> Result<TransactionResult, StoreError> {
        self.store.transact(transaction).await
    }

    async fn read_barrier(&self) -> Result<Revision, StoreError> {
        *self.stopped_at.lock() = None;
        self.store.read_barrier().await
    }

    async fn range(&self, mut request: RangeRequest) -> Result<RangeResult, StoreError> {
        request.revision = request.revision.or(*self.stopped_at.lock());
        self.store.range(request).await
    }

    fn visit(&self, range: &KeyRange, revision: Option<Revision>, visitor: &mut RowVisitor<'_>) -> Result<Revision, StoreError> {
        self.store.visit(range, revision.or(*self.stopped_at.lock()), visitor)
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

#[tokio::test]
async fn a_dry_run_is_of_the_newest_state() {
    let store = Arc::new(LocalStore::in_memory().expect("a store"));
    let behind = Arc::new(Behind { store: store.clone(), stopped_at: Mutex::new(None) });
    let server = TestServer::seeing(store.clone(), behind.clone()).await;
    let map = |text: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "k": text } });
    assert_eq!(server.post(MAPS, &map("old")).await.code, 201);
    *behind.stopped_at.lock() = Some(store.revision());
    let elsewhere = TestServer::over(store).await;
    assert_eq!(elsewhere.put(&format!("{MAPS}/a"), &map("new")).await.code, 200);
    assert!(behind.stopped_at.lock().is_some(), "the member is still behind");
    let label = json!({ "metadata": { "labels": { "l": "m" } } });
    let tried = server.patch(&format!("{MAPS}/a?dryRun=All"), "merge", &label).await.json();
    assert_eq!((&tried["data"]["k"], &tried["metadata"]["labels"]["l"]), (&json!("new"), &json!("m")));
}
