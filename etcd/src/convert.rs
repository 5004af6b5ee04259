//! etcd's messages as the store's words, and back. Keys and values are shared, never copied.

use bytes::Bytes;
use trireme_storage::model::{
    Compare, CompareOrder, CompareTarget, Event, EventKind, KeyRange, KeyValue, LeaseId, Operation, OperationResult, PutLease,
    PutValue, Revision, Transaction, TransactionResult,
};

use crate::{
    error::EtcdError,
    proto::{
        etcdserverpb::{
            self as pb, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RequestOp, ResponseHeader, ResponseOp,
            TxnRequest, TxnResponse, compare, request_op::Request, response_op::Response,
        },
        mvccpb,
    },
    range::Selection,
};

/// etcd's numbers are signed; ours never come near the sign.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The keys from `key` to `range_end`: none means one key, a zero byte "to the end".
pub fn key_range(key: &Bytes, range_end: &Bytes) -> KeyRange {
    match range_end.as_ref() {
        [] => KeyRange::One(key.clone()),
        [0] => KeyRange::Span { start: key.clone(), end: Bytes::new() },
        _ => KeyRange::Span { start: key.clone(), end: range_end.clone() },
    }
}

pub fn key_value(found: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: found.key,
        create_revision: signed(found.create_revision.0),
        mod_revision: signed(found.mod_revision.0),
        version: signed(found.version),
        value: found.value,
        lease: found.lease.0,
    }
}

/// An event; `with_previous` keeps what the key was before.
pub fn event(event: &Event, with_previous: bool) -> mvccpb::Event {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event {
        r#type: kind.into(),
        kv: Some(key_value(event.key_value.clone())),
        prev_kv: event.previous.clone().filter(|_| with_previous).map(key_value),
    }
}

pub fn put(request: &PutRequest) -> Operation {
    Operation::Put {
        key: request.key.clone(),
        value: if request.ignore_value { PutValue::Keep } else { PutValue::Set(request.value.clone()) },
        lease: if request.ignore_lease { PutLease::Keep } else { PutLease::Set(LeaseId(request.lease)) },
        return_previous: request.prev_kv,
    }
}

pub fn delete(request: &DeleteRangeRequest) -> Operation {
    Operation::Delete { range: key_range(&request.key, &request.range_end), return_previous: request.prev_kv }
}

/// A transaction, which must have passed [`crate::check::transaction`].
pub fn transaction(request: &TxnRequest) -> Result<Transaction, EtcdError> {
    Ok(Transaction {
        compares: request.compare.iter().map(comparison).collect::<Result<_, _>>()?,
        success: operations(&request.success)?,
        failure: operations(&request.failure)?,
        fence: None,
    })
}

fn operations(requests: &[RequestOp]) -> Result<Vec<Operation>, EtcdError> {
    requests.iter().filter_map(|operation| operation.request.as_ref()).map(operation).collect()
}

fn operation(request: &Request) -> Result<Operation, EtcdError> {
    Ok(match request {
        Request::RequestRange(range) => {
            let keys = key_range(&range.key, &range.range_end);
            Operation::Range(Selection::of(range).to_store(keys, range.revision))
        }
        Request::RequestPut(request) => put(request),
        Request::RequestDeleteRange(request) => delete(request),
        Request::RequestTxn(request) => Operation::Transaction(Box::new(transaction(request)?)),
    })
}

/// What a key is compared with: a number that may be out of our range, or something else.
enum Wanted {
    Number(fn(u64) -> CompareTarget, i64),
    Other(CompareTarget),
}

/// A target whose value is missing, or that of another target, is compared with zero or nothing (etcd's rule).
fn comparison(request: &pb::Compare) -> Result<Compare, EtcdError> {
    use compare::{CompareResult, CompareTarget as Target, TargetUnion};
    let malformed = || EtcdError::Invalid("unknown comparison in txn request".to_owned());
    let target = Target::try_from(request.target).map_err(|_| malformed())?;
    let wanted = match (target, &request.target_union) {
        (Target::Version, Some(TargetUnion::Version(version))) => Wanted::Number(CompareTarget::Version, *version),
        (Target::Version, _) => Wanted::Number(CompareTarget::Version, 0),
        (Target::Create, Some(TargetUnion::CreateRevision(revision))) => Wanted::Number(created, *revision),
        (Target::Create, _) => Wanted::Number(created, 0),
        (Target::Mod, Some(TargetUnion::ModRevision(revision))) => Wanted::Number(modified, *revision),
        (Target::Mod, _) => Wanted::Number(modified, 0),
        (Target::Value, Some(TargetUnion::Value(value))) => Wanted::Other(CompareTarget::Value(value.clone())),
        (Target::Value, _) => Wanted::Other(CompareTarget::Value(Bytes::new())),
        (Target::Lease, Some(TargetUnion::Lease(lease))) => Wanted::Other(CompareTarget::Lease(LeaseId(*lease))),
        (Target::Lease, _) => Wanted::Other(CompareTarget::Lease(LeaseId(0))),
    };
    let order = match CompareResult::try_from(request.result).map_err(|_| malformed())? {
        CompareResult::Equal => CompareOrder::Equal,
        CompareResult::Greater => CompareOrder::Greater,
        CompareResult::Less => CompareOrder::Less,
        CompareResult::NotEqual => CompareOrder::NotEqual,
    };
    let (target, order) = match wanted {
        Wanted::Other(target) => (target, order),
        Wanted::Number(target, number) => match (u64::try_from(number), order) {
            (Ok(number), order) => (target(number), order),
            // Every version and revision is greater than a negative number.
            (Err(_), CompareOrder::Greater | CompareOrder::NotEqual) => (target(u64::MAX), CompareOrder::NotEqual),
            (Err(_), CompareOrder::Equal | CompareOrder::Less) => (target(0), CompareOrder::Less),
        },
    };
    Ok(Compare { range: key_range(&request.key, &request.range_end), target, order })
}

fn created(revision: u64) -> CompareTarget {
    CompareTarget::CreateRevision(Revision(revision))
}

fn modified(revision: u64) -> CompareTarget {
    CompareTarget::ModRevision(Revision(revision))
}

pub fn put_response(previous: Option<KeyValue>) -> PutResponse {
    PutResponse { header: None, prev_kv: previous.map(key_value) }
}

pub fn delete_response(deleted: u64, previous: Vec<KeyValue>) -> DeleteRangeResponse {
    DeleteRangeResponse { header: None, deleted: signed(deleted), prev_kvs: previous.into_iter().map(key_value).collect() }
}

/// The answer to a transaction, but for its header. The headers inside carry the revision alone, as etcd's do.
pub fn transaction_response(request: &TxnRequest, result: TransactionResult) -> TxnResponse {
    let branch = if result.succeeded { &request.success } else { &request.failure };
    let header = Some(ResponseHeader { revision: signed(result.revision.0), ..ResponseHeader::default() });
    let operations = branch.iter().filter_map(|operation| operation.request.as_ref());
    let responses = operations.zip(result.responses).map(|(request, result)| {
        let response = match (request, result) {
            (Request::RequestRange(request), OperationResult::Range(found)) => {
                let mut response = Selection::of(request).answer(found);
                response.header = header;
                Response::ResponseRange(response)
            }
            (_, OperationResult::Put { previous }) => Response::ResponsePut(PutResponse { header, ..put_response(previous) }),
            (_, OperationResult::Delete { deleted, previous }) => {
                Response::ResponseDeleteRange(DeleteRangeResponse { header, ..delete_response(deleted, previous) })
            }
            (Request::RequestTxn(request), OperationResult::Transaction(result)) => {
                Response::ResponseTxn(TxnResponse { header, ..transaction_response(request, result) })
            }
            (request, result) => unreachable!("the store answered {request:?} with {result:?}"),
        };
        ResponseOp { response: Some(response) }
    });
    TxnResponse { header: None, succeeded: result.succeeded, responses: responses.collect() }
}

/// Every range that a transaction may change.
pub fn written(transaction: &Transaction) -> Vec<KeyRange> {
    let operations = transaction.success.iter().chain(&transaction.failure);
    let ranges = operations.flat_map(|operation| match operation {
        Operation::Put { key, .. } => vec![KeyRange::One(key.clone())],
        Operation::Delete { range, .. } => vec![range.clone()],
        Operation::Transaction(nested) => written(nested),
        Operation::Range(_) => Vec::new(),
    });
    ranges.collect()
}
