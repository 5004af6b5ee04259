//! The KV service: reads, writes, transactions and compaction.

use tonic::{Request, Response, Status, body::Body};
use trireme_storage::model::{Operation, OperationResult, Revision, Transaction, TransactionResult};

use crate::{
    answer::{self, PageBytes, Replacement, TakesReplacement},
    caller::Caller,
    check, convert,
    error::{EtcdError, refuse},
    proto::etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, TxnRequest, TxnResponse, kv_server::Kv,
    },
    range::Selection,
    server::EtcdServer,
};

impl EtcdServer {
    /// Reads a range, after a barrier unless the request can do without.
    async fn read_range(&self, request: RangeRequest) -> Result<RangeResponse, EtcdError> {
        check::range(&request)?;
        let selection = Selection::of(&request);
        let asked = selection.to_store(convert::key_range(&request.key, &request.range_end), request.revision);
        if !request.serializable {
            self.inner.store.read_barrier().await?;
        }
        let found = self.inner.store.range(asked).await?;
        let header = self.header_at(found.revision);
        Ok(RangeResponse { header, ..selection.answer(found) })
    }

    /// The body of the answer to a range that may be large and whose first rows are the ones wanted, after a barrier unless the request
    /// can do without.
    async fn begin_range(&self, request: RangeRequest) -> Result<Body, EtcdError> {
        check::range(&request)?;
        let asked = Selection::of(&request).to_store(convert::key_range(&request.key, &request.range_end), request.revision);
        if !request.serializable {
            self.inner.store.read_barrier().await?;
        }
        let (server, store, sizes) = (self.clone(), self.inner.store.clone(), self.inner.sizes.clone());
        answer::begin(store, sizes, asked, PageBytes::DEFAULT, move |revision| server.header_at(revision)).await
    }

    /// Carries out one operation that changes keys.
    async fn change(&self, operation: Operation, caller: Caller) -> Result<(Revision, OperationResult), EtcdError> {
        let transaction = Transaction { success: vec![operation], ..Transaction::default() };
        for range in convert::written(&transaction) {
            caller.check_write(&range)?;
        }
        let TransactionResult { revision, mut responses, .. } = self.inner.store.transact(transaction).await?;
        let result = responses.pop().ok_or_else(|| EtcdError::Internal("an operation had no answer".to_owned()))?;
        Ok((revision, result))
    }

    async fn write_key(&self, request: PutRequest, caller: Caller) -> Result<PutResponse, EtcdError> {
        check::put(&request)?;
        check::size(&request)?;
        let (revision, result) = self.change(convert::put(&request), caller).await?;
        let OperationResult::Put { previous } = result else { return Err(mismatched(&result)) };
        Ok(PutResponse { header: self.header_at(revision), ..convert::put_response(previous) })
    }

    async fn delete_keys(&self, request: DeleteRangeRequest, caller: Caller) -> Result<DeleteRangeResponse, EtcdError> {
        check::delete(&request)?;
        check::size(&request)?;
        let (revision, result) = self.change(convert::delete(&request), caller).await?;
        let OperationResult::Delete { deleted, previous } = result else { return Err(mismatched(&result)) };
        Ok(DeleteRangeResponse { header: self.header_at(revision), ..convert::delete_response(deleted, previous) })
    }

    async fn carry_out(&self, request: TxnRequest, caller: Caller) -> Result<TxnResponse, EtcdError> {
        check::transaction(&request)?;
        check::size(&request)?;
        let transaction = convert::transaction(&request)?;
        trireme_storage::validate::validate(&transaction)?;
        for range in convert::written(&transaction) {
            caller.check_write(&range)?;
        }
        let result = self.inner.store.transact(transaction).await?;
        let header = self.header_at(result.revision);
        Ok(TxnResponse { header, ..convert::transaction_response(&request, result) })
    }

    /// Drops history. The rows are deleted in the write that moves the compaction point, so that `physical` has nothing to wait for.
    async fn drop_history(&self, request: CompactionRequest, caller: Caller) -> Result<CompactionResponse, EtcdError> {
        caller.check_administrator()?;
        // etcd's own answer to 0 and less: every store is compacted that far.
        let revision = u64::try_from(request.revision).map_err(|_| EtcdError::Compacted)?;
        self.inner.store.compact(Revision(revision)).await?;
        Ok(CompactionResponse { header: self.header() })
    }
}

fn mismatched(result: &OperationResult) -> EtcdError {
    EtcdError::Internal(format!("an operation was answered by {result:?}"))
}

#[tonic::async_trait]
impl Kv for EtcdServer {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let takes_replacement = request.extensions().get::<TakesReplacement>().is_some();
        let request = request.into_inner();
        if !takes_replacement || request.range_end.is_empty() || !Selection::of(&request).is_prefix() {
            return self.read_range(request).await.map(Response::new).map_err(refuse);
        }
        let body = self.begin_range(request).await.map_err(refuse)?;
        let mut response = Response::new(RangeResponse::default());
        response.extensions_mut().insert(Replacement::new(body));
        Ok(response)
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let caller = Caller::from_request(&request);
        self.write_key(request.into_inner(), caller).await.map(Response::new).map_err(refuse)
    }

    async fn delete_range(&self, request: Request<DeleteRangeRequest>) -> Result<Response<DeleteRangeResponse>, Status> {
        let caller = Caller::from_request(&request);
        self.delete_keys(request.into_inner(), caller).await.map(Response::new).map_err(refuse)
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let caller = Caller::from_request(&request);
        self.carry_out(request.into_inner(), caller).await.map(Response::new).map_err(refuse)
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let caller = Caller::from_request(&request);
        self.drop_history(request.into_inner(), caller).await.map(Response::new).map_err(refuse)
    }
}
