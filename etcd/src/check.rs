//! etcd's checks of requests, before anything is read or written (`v3rpc` of etcd 3.5).

use prost::Message;

use crate::{
    error::EtcdError,
    proto::etcdserverpb::{
        DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        range_request::{SortOrder, SortTarget},
        request_op::Request,
    },
};

/// Each list of a transaction may have so many entries, nested ones counted against their parents' (etcd's `--max-txn-ops`).
pub const TRANSACTION_OPERATIONS: usize = 128;
/// A request that writes may be so large (etcd's `--max-request-bytes`).
pub const REQUEST_BYTES: usize = 3 << 19;

pub fn range(request: &RangeRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    let known = SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(EtcdError::InvalidSortOption) }
}

pub fn put(request: &PutRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(EtcdError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(EtcdError::LeaseProvided);
    }
    Ok(())
}

pub fn delete(request: &DeleteRangeRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() { Err(EtcdError::EmptyKey) } else { Ok(()) }
}

/// Checks everything of a transaction but whether its operations clash, which the store does.
pub fn transaction(request: &TxnRequest) -> Result<(), EtcdError> {
    nested(request, TRANSACTION_OPERATIONS)
}

fn nested(request: &TxnRequest, limit: usize) -> Result<(), EtcdError> {
    let longest = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = limit.checked_sub(longest).ok_or(EtcdError::TooManyOperations)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(EtcdError::EmptyKey);
    }
    request.success.iter().chain(&request.failure).try_for_each(|operation| operation_of(operation, left))
}

fn operation_of(operation: &RequestOp, left: usize) -> Result<(), EtcdError> {
    match &operation.request {
        Some(Request::RequestRange(request)) => range(request),
        Some(Request::RequestPut(request)) => put(request),
        Some(Request::RequestDeleteRange(request)) => delete(request),
        Some(Request::RequestTxn(request)) => nested(request, left),
        // etcd's answer to an operation that is empty.
        None => Err(EtcdError::KeyNotFound),
    }
}

/// Whether a request that writes is small enough for the log.
pub fn size(request: &impl Message) -> Result<(), EtcdError> {
    if request.encoded_len() > REQUEST_BYTES { Err(EtcdError::RequestTooLarge) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn put_of(key: &'static str) -> RequestOp {
        operation(Request::RequestPut(PutRequest { key: key.into(), ..PutRequest::default() }))
    }

    #[test]
    fn malformed_requests_are_refused_in_etcds_words() {
        let key = || "k".into();
        assert_eq!(range(&RangeRequest::default()), Err(EtcdError::EmptyKey));
        assert_eq!(range(&RangeRequest { key: key(), sort_order: 9, ..Default::default() }), Err(EtcdError::InvalidSortOption));
        assert_eq!(range(&RangeRequest { key: key(), sort_target: -1, ..Default::default() }), Err(EtcdError::InvalidSortOption));
        assert_eq!(put(&PutRequest::default()), Err(EtcdError::EmptyKey));
        let with_value = PutRequest { key: key(), value: "v".into(), ignore_value: true, ..Default::default() };
        assert_eq!(put(&with_value), Err(EtcdError::ValueProvided));
        let with_lease = PutRequest { key: key(), lease: 1, ignore_lease: true, ..Default::default() };
        assert_eq!(put(&with_lease), Err(EtcdError::LeaseProvided));
        assert_eq!(delete(&DeleteRangeRequest::default()), Err(EtcdError::EmptyKey));
        assert_eq!(
            size(&PutRequest { value: vec![0; REQUEST_BYTES].into(), ..Default::default() }),
            Err(EtcdError::RequestTooLarge)
        );
        assert_eq!(size(&PutRequest { value: vec![0; REQUEST_BYTES - 4].into(), ..Default::default() }), Ok(()));
    }

    #[test]
    fn a_transactions_operations_are_counted_with_those_nested_in_it() {
        let flat = |count: usize| TxnRequest { success: vec![put_of("k"); count], ..TxnRequest::default() };
        let around =
            |inner: TxnRequest| TxnRequest { failure: vec![operation(Request::RequestTxn(inner))], ..TxnRequest::default() };
        assert_eq!(transaction(&flat(128)), Ok(()));
        assert_eq!(transaction(&flat(129)), Err(EtcdError::TooManyOperations));
        assert_eq!(transaction(&around(flat(127))), Ok(()));
        assert_eq!(transaction(&around(flat(128))), Err(EtcdError::TooManyOperations));
        assert_eq!(transaction(&TxnRequest { success: vec![put_of("")], ..Default::default() }), Err(EtcdError::EmptyKey));
        let empty = TxnRequest { success: vec![RequestOp::default()], ..Default::default() };
        assert_eq!(transaction(&empty), Err(EtcdError::KeyNotFound));
        let compare = TxnRequest { compare: vec![Default::default()], ..Default::default() };
        assert_eq!(transaction(&compare), Err(EtcdError::EmptyKey));
    }
}
