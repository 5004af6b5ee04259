//! What lock and election have in common: a line of keys under one prefix, each on the lease of its client. Whose key was created
//! first owns what the prefix stands for (the recipe of etcd's `client/v3/concurrency`).

use bytes::Bytes;
use trireme_storage::{
    model::{
        Compare, CompareOrder, CompareTarget, EventKind, KeyRange, KeyValue, LeaseId, Operation, OperationResult, PutLease,
        PutValue, RangeContent, RangeRequest, Revision, Transaction,
    },
    store::{Store, StoreError},
};

use crate::{caller::Caller, error::EtcdError, server::EtcdServer};

/// The time to live of the lease that a client gets who brings none, in seconds (the default of etcd's sessions).
const SESSION_TTL_SECONDS: i64 = 60;

/// A place in the line. Dropped before [`Place::keep`], it is given up: the client has gone away while it waited.
pub struct Place {
    server: EtcdServer,
    prefix: Bytes,
    pub key: Bytes,
    pub lease: LeaseId,
    /// The create revision of the key: the place in the line.
    pub created: Revision,
    /// What stood there before: the client had this place already.
    pub existing: Option<KeyValue>,
    is_kept: bool,
}

impl EtcdServer {
    /// Takes a place in the line of `name`, or finds the one that `lease` has there.
    pub(crate) async fn take_place(&self, name: &Bytes, lease: i64, value: Bytes, caller: Caller) -> Result<Place, EtcdError> {
        let prefix = line(name);
        caller.check_write(&KeyRange::prefix(prefix.clone()))?;
        let lease = match lease {
            0 => self.grant(0, SESSION_TTL_SECONDS).await?.id,
            lease => LeaseId(lease),
        };
        let mut key = prefix.to_vec();
        key.extend_from_slice(format!("{:x}", lease.0).as_bytes());
        let key = Bytes::from(key);
        let put =
            Operation::Put { key: key.clone(), value: PutValue::Set(value), lease: PutLease::Set(lease), return_previous: false };
        let transaction = Transaction {
            compares: vec![created_at(&key, Revision(0))],
            success: vec![put],
            failure: vec![Operation::get(key.clone())],
            fence: None,
        };
        let result = self.inner.store.transact(transaction).await?;
        let existing = match result.responses.into_iter().next() {
            Some(OperationResult::Range(found)) => found.key_values.into_iter().next(),
            _ => None,
        };
        let created = existing.as_ref().map_or(result.revision, |existing| existing.create_revision);
        let is_kept = existing.is_some();
        Ok(Place { server: self.clone(), prefix, key, lease, created, existing, is_kept })
    }

    /// The first of a line, with its value.
    pub(crate) async fn first_in_line(&self, name: &Bytes) -> Result<Option<KeyValue>, EtcdError> {
        self.inner.store.read_barrier().await?;
        let found = self.inner.store.range(RangeRequest::new(KeyRange::prefix(line(name)))).await?;
        Ok(found.key_values.into_iter().min_by_key(|one| one.create_revision))
    }
}

/// The prefix under which the places of `name` are.
pub fn line(name: &Bytes) -> Bytes {
    [name.as_ref(), b"/"].concat().into()
}

/// "The key was created at exactly this revision"; 0 means "the key does not exist".
pub fn created_at(key: &Bytes, revision: Revision) -> Compare {
    Compare { range: KeyRange::One(key.clone()), target: CompareTarget::CreateRevision(revision), order: CompareOrder::Equal }
}

impl Place {
    /// Waits until this place is the first of the line.
    pub async fn wait(&self) -> Result<(), EtcdError> {
        let store = self.server.inner.store.as_ref();
        loop {
            store.read_barrier().await?;
            let mut request = RangeRequest::new(KeyRange::prefix(self.prefix.clone()));
            request.content = RangeContent::KeysOnly;
            let found = store.range(request).await?;
            if found.key_values.iter().all(|one| one.key != self.key || one.create_revision != self.created) {
                return Err(EtcdError::SessionExpired);
            }
            let earlier = found.key_values.into_iter().filter(|one| one.create_revision < self.created);
            let Some(ahead) = earlier.max_by_key(|one| one.create_revision) else { return Ok(()) };
            deleted(store, &ahead.key, &self.key, found.revision).await?;
        }
    }

    /// The client has what it waited for.
    pub fn keep(mut self) {
        self.is_kept = true;
    }
}

/// Waits until either key is deleted after `since`, or history no longer tells.
async fn deleted(store: &dyn Store, ahead: &Bytes, own: &Bytes, since: Revision) -> Result<(), EtcdError> {
    let mut watch = match store.watch(since.next()).await {
        Err(StoreError::Compacted { .. }) => return Ok(()),
        watch => watch?,
    };
    loop {
        let batch = match watch.next().await {
            Err(StoreError::Compacted { .. }) => return Ok(()),
            batch => batch?,
        };
        let is_end = |event: &trireme_storage::model::Event| {
            event.kind == EventKind::Delete && (event.key_value.key == ahead || event.key_value.key == own)
        };
        if batch.events.iter().any(is_end) {
            return Ok(());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let leaving = Transaction {
            compares: vec![created_at(&self.key, self.created)],
            success: vec![Operation::delete(self.key.clone())],
            ..Transaction::default()
        };
        let server = self.server.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = server.inner.store.transact(leaving).await {
                    tracing::debug!(%error, "a place in a line is left to its lease");
                }
            });
        }
    }
}
