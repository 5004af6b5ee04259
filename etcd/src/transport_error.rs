//! What the transport refuses before a handler sees it, in the words of etcd's (grpc-go's): clients match on them, and tonic has others.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::future::BoxFuture;
use http::{Response, Uri};
use tonic::{Code, Status, body::Body};

use crate::answer::Replacement;

/// The answer to a call.
pub struct Answer {
    inner: BoxFuture<'static, Result<Response<Body>, Infallible>>,
    /// What was called.
    uri: Uri,
}

impl Answer {
    pub fn new(inner: BoxFuture<'static, Result<Response<Body>, Infallible>>, uri: Uri) -> Self {
        Self { inner, uri }
    }
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = ready!(self.inner.as_mut().poll(context))?;
        Replacement::apply(&mut response);
        Poll::Ready(Ok(in_words_of_etcd(&response, self.uri.path()).map_or(response, Status::into_http)))
    }
}

/// What is to be answered instead.
fn in_words_of_etcd(response: &Response<Body>, path: &str) -> Option<Status> {
    // Only an answer without a body has its status in the headers.
    let status = response.headers().contains_key(Status::GRPC_STATUS).then(|| Status::from_header_map(response.headers()))??;
    match status.code() {
        Code::Unimplemented if status.message().is_empty() => {
            let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
            Some(Status::unimplemented(format!("unknown method {method} for service {service}")))
        }
        Code::OutOfRange => {
            let sizes = status.message().strip_prefix("Error, decoded message length too large: found ")?;
            let (found, limit) = sizes.strip_suffix(" bytes")?.split_once(" bytes, the limit is: ")?;
            Some(Status::resource_exhausted(format!("grpc: received message larger than max ({found} vs. {limit})")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tonics_words_become_grpc_gos() {
        let path = "/etcdserverpb.KV/Nothing";
        let words = |status: Status| in_words_of_etcd(&status.into_http(), path).map(|it| (it.code(), it.message().to_owned()));
        let large = Status::out_of_range("Error, decoded message length too large: found 30 bytes, the limit is: 20 bytes");
        assert_eq!(words(large), Some((Code::ResourceExhausted, "grpc: received message larger than max (30 vs. 20)".into())));
        let method = Some((Code::Unimplemented, "unknown method Nothing for service etcdserverpb.KV".into()));
        assert_eq!(words(Status::unimplemented("")), method);
        for others in [Status::out_of_range("etcdserver: mvcc: …"), Status::unimplemented("unknown service x"), Status::ok("")]
        {
            assert_eq!(words(others), None);
        }
        assert!(in_words_of_etcd(&Response::new(Body::default()), path).is_none());
    }
}
