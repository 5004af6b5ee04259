//! The bodies of requests and responses.

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
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
/// How much of a body that is too large is read and thrown away, so that the client, which sends before it listens, learns why and
/// can use the connection further. Past this it is closed.
const DISCARD_LIMIT_BYTES: usize = 64 * 1024 * 1024;

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
pub async fn read(mut body: RequestBody) -> Result<Bytes, Status> {
    let mut whole = BytesMut::new();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::bad_request(format!("the request body could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        received += data.len();
        if received > DISCARD_LIMIT_BYTES {
            break;
        } else if received > REQUEST_LIMIT_BYTES {
            whole = BytesMut::new();
        } else if whole.is_empty() {
            whole = BytesMut::from(data);
        } else {
            whole.extend_from_slice(&data);
        }
    }
    if received > REQUEST_LIMIT_BYTES {
        return Err(Status::too_large(format!("Request entity too large: limit is {REQUEST_LIMIT_BYTES}")));
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(pieces: usize) -> RequestBody {
        let piece = Bytes::from(vec![b'x'; 1024 * 1024]);
        stream(futures::stream::iter(std::iter::repeat_n(piece, pieces)))
    }

    #[tokio::test]
    async fn a_body_may_come_in_pieces_up_to_the_limit() {
        assert_eq!(read(body(0)).await.unwrap(), Bytes::new());
        assert_eq!(read(body(3)).await.unwrap().len(), REQUEST_LIMIT_BYTES);
        for pieces in [4, 70] {
            assert_eq!(read(body(pieces)).await.unwrap_err().code, 413);
        }
    }

    #[tokio::test]
    async fn what_is_too_large_is_read_to_its_end_before_it_is_refused() {
        let (read_to_end, mut ended) = tokio::sync::oneshot::channel();
        let piece = Bytes::from(vec![b'x'; 1024 * 1024]);
        let last = futures::stream::once(async move {
            read_to_end.send(()).unwrap();
            Bytes::from_static(b"end")
        });
        let pieces = futures::stream::iter(std::iter::repeat_n(piece, 8)).chain(last);
        assert_eq!(read(stream(pieces)).await.unwrap_err().code, 413);
        ended.try_recv().unwrap();
    }
}
