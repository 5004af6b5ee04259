//! The API as a tower service, for callers in this process.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use tower::Service;

use crate::{
    ApiServer,
    body::{BodyError, BoxError, ResponseBody},
    context::RequestContext,
};

/// The API for one caller. Cheap to clone.
#[derive(Clone)]
pub struct ApiService {
    server: Arc<ApiServer>,
    context: RequestContext,
}

impl ApiService {
    pub(crate) fn new(server: Arc<ApiServer>, context: RequestContext) -> Self {
        Self { server, context }
    }
}

impl<B> Service<Request<B>> for ApiService
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (server, context) = (self.server.clone(), self.context.clone());
        let request = request.map(|body| body.map_err(BodyError::new).boxed_unsync());
        Box::pin(async move { Ok(server.handle(context, request).await) })
    }
}
