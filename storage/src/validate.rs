//! What makes a transaction malformed, whatever the state is.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    model::{KeyRange, Operation, Term, Transaction},
    store::StoreError,
};

/// Transactions may nest so deep.
const DEPTH_LIMIT: usize = 16;

fn invalid(message: &str) -> StoreError {
    StoreError::InvalidTransaction(message.to_owned())
}

/// The keys that operations put and the ranges that they delete.
#[derive(Default)]
struct Touched {
    puts: BTreeSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Touched {
    /// Adds what may happen instead of the rest: no conflict.
    fn join_alternative(&mut self, other: Self) {
        self.puts.extend(other.puts);
        self.deletes.extend(other.deletes);
    }

    /// Adds what happens beside the rest: a key must not be put twice, nor put and deleted.
    fn join_sibling(&mut self, other: Self) -> Result<(), StoreError> {
        let conflict =
            other.puts.iter().any(|key| self.puts.contains(key) || self.deletes.iter().any(|range| range.contains(key)))
                || other.deletes.iter().any(|range| covers_any(range, &self.puts));
        if conflict {
            return Err(StoreError::DuplicateKey);
        }
        self.join_alternative(other);
        Ok(())
    }
}

fn covers_any(range: &KeyRange, puts: &BTreeSet<Bytes>) -> bool {
    match range {
        KeyRange::One(key) => puts.contains(key),
        KeyRange::Span { start, .. } => puts.range(start.clone()..).next().is_some_and(|key| range.contains(key)),
    }
}

fn touched(operations: &[Operation], depth: usize) -> Result<Touched, StoreError> {
    let mut all = Touched::default();
    for operation in operations {
        all.join_sibling(match operation {
            Operation::Put { key, .. } if key.is_empty() => return Err(invalid("key is not provided")),
            Operation::Put { key, .. } => Touched { puts: BTreeSet::from([key.clone()]), deletes: Vec::new() },
            Operation::Delete { range, .. } => Touched { puts: BTreeSet::new(), deletes: vec![range.clone()] },
            Operation::Range(_) => Touched::default(),
            Operation::Transaction(transaction) => branches(transaction, depth + 1)?,
        })?;
    }
    Ok(all)
}

fn branches(transaction: &Transaction, depth: usize) -> Result<Touched, StoreError> {
    if depth > DEPTH_LIMIT {
        return Err(invalid("transactions are nested too deep"));
    }
    let mut both = touched(&transaction.success, depth)?;
    both.join_alternative(touched(&transaction.failure, depth)?);
    Ok(both)
}

/// Refuses a transaction that is malformed. The rules are etcd's: whichever branches are taken, no key is put twice nor both put and
/// deleted. So each key changes at most once at a revision.
pub fn validate(transaction: &Transaction) -> Result<(), StoreError> {
    branches(transaction, 0).map(|_| ())
}

/// Refuses a transaction that is stamped, itself or a nested one, with another term than the one in which it commits.
pub(crate) fn check_fence(transaction: &Transaction, current: Term) -> Result<(), StoreError> {
    if let Some(stamped) = transaction.fence
        && stamped != current
    {
        return Err(StoreError::Fenced { stamped, current });
    }
    for operation in transaction.success.iter().chain(&transaction.failure) {
        if let Operation::Transaction(nested) = operation {
            check_fence(nested, current)?;
        }
    }
    Ok(())
}
