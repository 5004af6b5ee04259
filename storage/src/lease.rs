//! Leases and the keys attached to them, kept in memory and in rows. Copies are cheap, so that a refused command can be undone.
//!
//! | key | value |
//! | --- | --- |
//! | `l`, lease id | ttl in seconds, deadline in milliseconds |
//! | `k`, lease id, key | nothing |

use std::ops::ControlFlow;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use imbl::{OrdMap, OrdSet};

use crate::{
    command::Lease,
    engine::{EngineError, Keyspace, Span, View, WriteBatch},
    model::LeaseId,
    store::StoreError,
};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Attached {
    lease: Lease,
    keys: OrdSet<Bytes>,
}

/// Every lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leases {
    by_id: OrdMap<LeaseId, Attached>,
}

fn row_key(tag: u8, id: LeaseId, key: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(9 + key.len());
    row.put_u8(tag);
    row.put_i64(id.0);
    row.put_slice(key);
    row.freeze()
}

fn put_row(lease: &Lease, rows: &mut WriteBatch) {
    let mut row = BytesMut::with_capacity(16);
    row.put_u64(lease.ttl_seconds);
    row.put_u64(lease.deadline_ms);
    rows.put(Keyspace::Leases, row_key(b'l', lease.id, &[]), row.freeze());
}

fn deadline_ms(ttl_seconds: u64, now_ms: u64) -> u64 {
    now_ms.saturating_add(ttl_seconds.saturating_mul(1000))
}

impl Leases {
    /// Reads all leases back. Rows of attached keys sort before the leases' own: `k` is less than `l`.
    pub fn load(view: &dyn View) -> Result<Self, EngineError> {
        let mut leases = Self::default();
        let mut attachments = Vec::new();
        let mut malformed = false;
        view.scan(Keyspace::Leases, Span::ALL, &mut |mut key, mut row| {
            malformed = key.len() < 9;
            if malformed {
                return ControlFlow::Break(());
            }
            let (tag, id) = (key.get_u8(), LeaseId(key.get_i64()));
            match tag {
                b'k' => attachments.push((id, Bytes::copy_from_slice(key))),
                b'l' if row.len() == 16 => {
                    let lease = Lease { id, ttl_seconds: row.get_u64(), deadline_ms: row.get_u64() };
                    leases.by_id.insert(id, Attached { lease, keys: OrdSet::new() });
                }
                _ => malformed = true,
            }
            if malformed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        for (id, key) in attachments {
            match leases.by_id.get_mut(&id) {
                Some(attached) => {
                    attached.keys.insert(key);
                }
                None => malformed = true,
            }
        }
        if malformed { Err(EngineError::Corruption("the leases cannot be read".into())) } else { Ok(leases) }
    }

    pub fn grant(&mut self, id: LeaseId, ttl_seconds: u64, now_ms: u64, rows: &mut WriteBatch) -> Result<Lease, StoreError> {
        if id == LeaseId(0) {
            return Err(StoreError::InvalidTransaction("a lease's id must not be 0".into()));
        }
        if self.by_id.contains_key(&id) {
            return Err(StoreError::LeaseExists(id));
        }
        let lease = Lease { id, ttl_seconds, deadline_ms: deadline_ms(ttl_seconds, now_ms) };
        put_row(&lease, rows);
        self.by_id.insert(id, Attached { lease, keys: OrdSet::new() });
        Ok(lease)
    }

    /// Starts the lease's time anew; it never ends sooner for it, however the proposers' clocks differ. The deadline always moves, so
    /// that it tells apart any two times that the lease was kept alive.
    pub fn keep_alive(&mut self, id: LeaseId, now_ms: u64, rows: &mut WriteBatch) -> Result<Lease, StoreError> {
        let attached = self.by_id.get_mut(&id).ok_or(StoreError::LeaseNotFound(id))?;
        attached.lease.deadline_ms =
            (attached.lease.deadline_ms.saturating_add(1)).max(deadline_ms(attached.lease.ttl_seconds, now_ms));
        put_row(&attached.lease, rows);
        Ok(attached.lease)
    }

    /// Ends the lease; its keys, in order, are the caller's to delete (each delete detaches one before).
    pub fn remove(&mut self, id: LeaseId, rows: &mut WriteBatch) -> Result<(), StoreError> {
        let attached = self.by_id.remove(&id).ok_or(StoreError::LeaseNotFound(id))?;
        assert!(attached.keys.is_empty(), "a lease ends after its keys");
        rows.delete(Keyspace::Leases, row_key(b'l', id, &[]));
        Ok(())
    }

    pub fn keys(&self, id: LeaseId) -> Result<Vec<Bytes>, StoreError> {
        let attached = self.by_id.get(&id).ok_or(StoreError::LeaseNotFound(id))?;
        Ok(attached.keys.iter().cloned().collect())
    }

    /// Whether `key` is attached to the lease.
    pub fn has_key(&self, id: LeaseId, key: &Bytes) -> bool {
        self.by_id.get(&id).is_some_and(|attached| attached.keys.contains(key))
    }

    /// Moves `key` from one lease to another; [`LeaseId`] 0 is none.
    pub fn move_key(&mut self, key: &Bytes, from: LeaseId, to: LeaseId, rows: &mut WriteBatch) -> Result<(), StoreError> {
        if to != LeaseId(0) && !self.by_id.contains_key(&to) {
            return Err(StoreError::LeaseNotFound(to));
        }
        if from == to {
            return Ok(());
        }
        if let Some(attached) = self.by_id.get_mut(&from) {
            attached.keys.remove(key);
            rows.delete(Keyspace::Leases, row_key(b'k', from, key));
        }
        if let Some(attached) = self.by_id.get_mut(&to) {
            attached.keys.insert(key.clone());
            rows.put(Keyspace::Leases, row_key(b'k', to, key), Bytes::new());
        }
        Ok(())
    }

    pub fn get(&self, id: LeaseId) -> Option<Lease> {
        self.by_id.get(&id).map(|attached| attached.lease)
    }

    pub fn all(&self) -> Vec<Lease> {
        self.by_id.values().map(|attached| attached.lease).collect()
    }

    /// The leases whose time is over.
    pub fn expired(&self, now_ms: u64) -> Vec<LeaseId> {
        self.by_id.values().filter(|attached| attached.lease.deadline_ms <= now_ms).map(|attached| attached.lease.id).collect()
    }
}
