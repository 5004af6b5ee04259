//! Carrying out one command on a draft of the state. Pure: no clock, no chance, no I/O but reads of the view.

use bytes::Bytes;

use crate::{
    command::{Command, CommandReply, CommandResult},
    engine::{EngineError, View},
    fail_point,
    layout::Head,
    lease::Leases,
    model::{
        Compare, CompareOrder, CompareTarget, KeyRange, KeyValue, LeaseId, Operation, OperationResult, PutLease, PutValue, Term,
        Transaction, TransactionResult,
    },
    overlay::{Draft, Overlay},
    store::StoreError,
    validate,
};

/// Carries out a command. The outer error is the engine's: then nothing can be said of the command.
pub(crate) fn carry_out(overlay: &mut Overlay<'_>, term: Term, command: &Command) -> Result<CommandResult, StoreError> {
    if let Command::Compact(revision) = command {
        fail_point!("compaction/evaluate/before");
        return Ok(overlay.compact(*revision).map(|()| CommandReply::Compacted));
    }
    let mut draft = Draft::new(overlay);
    let result = match command {
        Command::Transact(transaction) => transact(&mut draft, term, transaction).map(CommandReply::Transaction),
        Command::Compact(_) => unreachable!("handled above"),
        Command::LeaseGrant { id, ttl_seconds, now_ms } => {
            let (leases, rows) = draft.leases_mut();
            leases.grant(*id, *ttl_seconds, *now_ms, rows).map(CommandReply::LeaseGranted)
        }
        Command::LeaseKeepAlive { id, now_ms } => {
            let (leases, rows) = draft.leases_mut();
            leases.keep_alive(*id, *now_ms, rows).map(CommandReply::LeaseKeptAlive)
        }
        Command::LeaseRevoke { id } => {
            end_lease(&mut draft, *id).map(|()| CommandReply::LeaseRevoked { revision: draft.revision() })
        }
        Command::LeaseExpire { ids, now_ms } => expire(&mut draft, ids, *now_ms),
    };
    match result {
        Ok(reply) => {
            let changes = draft.into_changes();
            overlay.accept(changes);
            Ok(Ok(reply))
        }
        Err(error @ (StoreError::Failed(_) | StoreError::NoSpace)) => Err(error),
        Err(refusal) => Ok(Err(refusal)),
    }
}

/// Carries out a transaction that changes nothing, on a state that stands at `head`.
pub(crate) fn read(view: &dyn View, head: Head, transaction: &Transaction) -> Result<TransactionResult, StoreError> {
    // Leases matter to writes only.
    let overlay = Overlay::new(view, head, Leases::default());
    let mut draft = Draft::new(&overlay);
    let result = transact(&mut draft, Term::default(), transaction)?;
    assert!(draft.into_changes().is_empty(), "a transaction that only reads changes nothing");
    Ok(result)
}

fn end_lease(draft: &mut Draft<'_, '_>, id: LeaseId) -> Result<(), StoreError> {
    for key in draft.leases().keys(id)? {
        let key_value = draft
            .get(&key)?
            .ok_or_else(|| StoreError::from(EngineError::Corruption("a lease holds a key that does not exist".into())))?;
        draft.delete(key_value)?;
    }
    let (leases, rows) = draft.leases_mut();
    leases.remove(id, rows)
}

fn expire(draft: &mut Draft<'_, '_>, ids: &[LeaseId], now_ms: u64) -> Result<CommandReply, StoreError> {
    let mut expired = Vec::new();
    for id in ids {
        if draft.leases().get(*id).is_some_and(|lease| lease.deadline_ms <= now_ms) {
            end_lease(draft, *id)?;
            expired.push(*id);
        }
    }
    Ok(CommandReply::LeasesExpired { ids: expired, revision: draft.revision() })
}

fn transact(draft: &mut Draft<'_, '_>, term: Term, transaction: &Transaction) -> Result<TransactionResult, StoreError> {
    validate::check_fence(transaction, term)?;
    validate::validate(transaction)?;
    let mut path = Vec::new();
    choose_path(draft, transaction, &mut path)?;
    let result = run(draft, transaction, &mut path.into_iter())?;
    Ok(result)
}

/// Decides every branch, nested ones too, before anything is changed, as etcd does: in the order in which [`run`] meets them.
fn choose_path(draft: &Draft<'_, '_>, transaction: &Transaction, path: &mut Vec<bool>) -> Result<(), StoreError> {
    let mut succeeded = true;
    for compare in &transaction.compares {
        if !holds(draft, compare)? {
            succeeded = false;
            break;
        }
    }
    path.push(succeeded);
    for operation in branch(transaction, succeeded) {
        if let Operation::Transaction(nested) = operation {
            choose_path(draft, nested, path)?;
        }
    }
    Ok(())
}

fn branch(transaction: &Transaction, succeeded: bool) -> &[Operation] {
    if succeeded { &transaction.success } else { &transaction.failure }
}

fn run(
    draft: &mut Draft<'_, '_>,
    transaction: &Transaction,
    path: &mut impl Iterator<Item = bool>,
) -> Result<TransactionResult, StoreError> {
    let succeeded = path.next().unwrap_or_else(|| unreachable!("the path holds every transaction that runs"));
    let operations = branch(transaction, succeeded);
    let mut responses = Vec::with_capacity(operations.len());
    for operation in operations {
        responses.push(match operation {
            Operation::Put { key, value, lease, return_previous } => {
                let previous = put(draft, key, value, *lease)?;
                OperationResult::Put { previous: previous.filter(|_| *return_previous) }
            }
            Operation::Delete { range, return_previous } => {
                let doomed = draft.all(range)?;
                for key_value in &doomed {
                    draft.delete(key_value.clone())?;
                }
                let deleted = doomed.len() as u64;
                OperationResult::Delete { deleted, previous: if *return_previous { doomed } else { Vec::new() } }
            }
            Operation::Range(request) => OperationResult::Range(draft.range(request)?),
            Operation::Transaction(nested) => OperationResult::Transaction(run(draft, nested, path)?),
        });
    }
    Ok(TransactionResult { succeeded, revision: draft.revision(), responses })
}

fn put(draft: &mut Draft<'_, '_>, key: &Bytes, value: &PutValue, lease: PutLease) -> Result<Option<KeyValue>, StoreError> {
    let held = if *value == PutValue::Keep || lease == PutLease::Keep {
        let held = draft.get(key)?;
        Some(held.ok_or(StoreError::KeyNotFound)?)
    } else {
        None
    };
    let value = match (value, &held) {
        (PutValue::Set(value), _) => value.clone(),
        (PutValue::Keep, held) => held.as_ref().map(|held| held.value.clone()).unwrap_or_default(),
    };
    let lease = match (lease, &held) {
        (PutLease::Set(lease), _) => lease,
        (PutLease::Keep, held) => held.as_ref().map(|held| held.lease).unwrap_or_default(),
    };
    draft.put(key, value, lease)
}

/// Whether the compare holds for every key of its range. A range without keys counts as one absent key.
fn holds(draft: &Draft<'_, '_>, compare: &Compare) -> Result<bool, StoreError> {
    let found = match &compare.range {
        KeyRange::One(key) => draft.get(key)?.into_iter().collect(),
        span @ KeyRange::Span { .. } => draft.all(span)?,
    };
    if found.is_empty() {
        return Ok(holds_for(compare, None));
    }
    Ok(found.iter().all(|key_value| holds_for(compare, Some(key_value))))
}

fn holds_for(compare: &Compare, key_value: Option<&KeyValue>) -> bool {
    let number = |number: fn(&KeyValue) -> u64| key_value.map_or(0, number);
    let ordering = match &compare.target {
        CompareTarget::Version(version) => number(|found| found.version).cmp(version),
        CompareTarget::CreateRevision(revision) => number(|found| found.create_revision.0).cmp(&revision.0),
        CompareTarget::ModRevision(revision) => number(|found| found.mod_revision.0).cmp(&revision.0),
        CompareTarget::Lease(lease) => key_value.map_or(LeaseId(0), |found| found.lease).cmp(lease),
        CompareTarget::Value(value) => match key_value {
            // Absence is no value: no comparison with one holds, not even "not equal" (etcd's rule).
            None => return false,
            Some(found) => found.value.cmp(value),
        },
    };
    match compare.order {
        CompareOrder::Equal => ordering.is_eq(),
        CompareOrder::NotEqual => ordering.is_ne(),
        CompareOrder::Greater => ordering.is_gt(),
        CompareOrder::Less => ordering.is_lt(),
    }
}
