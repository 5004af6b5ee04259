//! The bodies of requests and responses.

use std::convert::Infallible;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http_body::Frame;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody, combinators::UnsyncBoxBody};
use trireme_api::status::Status;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// What comes in, from a socket or from a caller in this process.
pub type RequestBody = UnsyncBoxBody<Bytes, BodyError>;
/// What goes out.
pub type ResponseBody = UnsyncBoxBody<Bytes, BodyError>;

/// A body broke off.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(BoxError);

impl BodyError {
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into())
    }
}

/// The largest request body, as in Kubernetes.
pub const REQUEST_LIMIT_BYTES: usize = 3 * 1024 * 1024;

/// A body that is one piece of bytes.
pub fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body of pieces that come one by one.
pub fn stream(pieces: impl Stream<Item = Bytes> + Send + 'static) -> ResponseBody {
    StreamBody::new(pieces.map(|piece| Ok::<_, BodyError>(Frame::data(piece)))).boxed_unsync()
}

/// Reads a whole request body.
///
/// # Errors
/// 413 when it is too large, 400 when it breaks off.
pub async fn read(body: RequestBody) -> Result<Bytes, Status> {
    match Limited::new(body, REQUEST_LIMIT_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Status::too_large(format!("Request entity too large: limit is {REQUEST_LIMIT_BYTES}")))
        }
        Err(error) => Err(Status::bad_request(format!("the request body could not be read: {error}"))),
    }
}
