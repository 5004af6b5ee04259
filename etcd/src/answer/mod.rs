//! The answer to a range that may be large: sent while it is read, a page at a time, all at one revision.
//!
//! gRPC says how long a message is before its first byte. So the whole range is looked at once; what fits a page is kept, and of the
//! rest only the sizes; `sizes` remembers those. `encode` writes rows as they lie in the engine into frames, `read` reads pages, and `body` sends one page while
//! the next one is read: so the memory of an answer does not depend on its size, and a client that does not read holds up nothing but
//! its own answer. To the client it is an ordinary unary answer.

mod body;
mod encode;
mod read;
mod sizes;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::Response;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use trireme_storage::{
    model::{RangeRequest, Revision},
    store::Store,
};

use self::{body::PagedBody, read::Reader, sizes::Known};
pub use self::{read::PageBytes, sizes::Sizes};
use crate::{error::EtcdError, proto::etcdserverpb::ResponseHeader};

/// In a request: whoever carries it takes a [`Replacement`] of the answer's body.
#[derive(Clone, Copy, Debug)]
pub struct TakesReplacement;

/// In a response: the body that is to be sent in place of its own.
#[derive(Clone)]
pub struct Replacement(Arc<Mutex<Option<Body>>>);

impl Replacement {
    pub fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }

    /// Puts the replacement of a response's body, if it has one, in its place.
    pub fn apply(response: &mut Response<Body>) {
        if let Some(body) = response.extensions_mut().remove::<Self>().and_then(|replacement| replacement.0.lock().take()) {
            *response.body_mut() = body;
        }
    }
}

/// Begins the answer to a range: looks at it once, unless its size is known, and has the body that sends it.
pub async fn begin(
    store: Arc<dyn Store>,
    sizes: Arc<Sizes>,
    request: RangeRequest,
    pages: PageBytes,
    header_at: impl Fn(Revision) -> Option<ResponseHeader> + Clone + Send + 'static,
) -> Result<Body, EtcdError> {
    let unwanted = CancellationToken::new();
    // Dropped with this call, when the client has gone before the answer begins, or with the body.
    let waiting = unwanted.clone().drop_guard();
    let reader = Arc::new(Reader::new(store, sizes, request, pages, unwanted));
    let look = async |known: Option<Known>| {
        let (reader, header_at) = (reader.clone(), header_at.clone());
        let looked = tokio::task::spawn_blocking(move || reader.begin(known, header_at)).await;
        looked.map_err(|error| EtcdError::Internal(error.to_string())).flatten()
    };
    let known = reader.known().await;
    let beginning = match look(known).await {
        // What was newest a moment ago.
        Err(EtcdError::Compacted) if known.is_some() => look(None).await?,
        looked => looked?,
    };
    Ok(Body::new(PagedBody::new(reader, beginning, waiting)))
}
