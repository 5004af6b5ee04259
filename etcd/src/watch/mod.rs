//! The Watch service: many watchers on one stream. Each watcher is a task with a watch of its own on the store; the stream's task
//! creates and cancels them, and keeps the order that etcd's clients rely on: "created" before a watcher's first event, "canceled"
//! after its last.

mod stream;
mod watcher;

use std::pin::Pin;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    error::{EtcdError, refuse},
    proto::etcdserverpb::{WatchRequest, WatchResponse, watch_server::Watch},
    server::{EtcdServer, requires_leader},
};

/// So many responses of one stream may wait for a client that is slow. Watchers wait then, and find what comes next in history.
const QUEUE: usize = 128;

#[tonic::async_trait]
impl Watch for EtcdServer {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, outgoing) = mpsc::channel(QUEUE);
        let server = self.clone();
        tokio::spawn(async move {
            let shutdown = server.inner.shutdown.clone();
            let wants_leader = requires_leader(&request);
            let watching = server.clone();
            tokio::select! {
                () = stream::serve(watching, request.into_inner(), answers.clone()) => {}
                () = server.leader_lost(), if wants_leader => {
                    // The client may have gone, or may not read.
                    let _ = answers.try_send(Err(refuse(EtcdError::NoLeader)));
                }
                () = shutdown.cancelled() => {
                    // The client may have gone, or may not read.
                    let _ = answers.try_send(Err(Status::unavailable("etcdserver: server stopped")));
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}
