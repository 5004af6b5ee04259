//! The Lock service.

use tonic::{Request, Response, Status};
use trireme_storage::model::{KeyRange, Operation, Transaction};

use crate::{
    caller::Caller,
    error::{EtcdError, refuse},
    proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server},
    server::EtcdServer,
};

impl EtcdServer {
    async fn acquire(&self, request: LockRequest, caller: Caller) -> Result<LockResponse, EtcdError> {
        let place = self.take_place(&request.name, request.lease, Default::default(), caller).await?;
        place.wait().await?;
        let key = place.key.clone();
        place.keep();
        Ok(LockResponse { header: self.header(), key })
    }

    async fn release(&self, request: UnlockRequest, caller: Caller) -> Result<UnlockResponse, EtcdError> {
        if request.key.is_empty() {
            return Err(EtcdError::EmptyKey);
        }
        caller.check_write(&KeyRange::One(request.key.clone()))?;
        let delete = Transaction { success: vec![Operation::delete(request.key)], ..Transaction::default() };
        let result = self.inner.store.transact(delete).await?;
        Ok(UnlockResponse { header: self.header_at(result.revision) })
    }
}

#[tonic::async_trait]
impl lock_server::Lock for EtcdServer {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let caller = Caller::from_request(&request);
        self.acquire(request.into_inner(), caller).await.map(Response::new).map_err(refuse)
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let caller = Caller::from_request(&request);
        self.release(request.into_inner(), caller).await.map(Response::new).map_err(refuse)
    }
}
