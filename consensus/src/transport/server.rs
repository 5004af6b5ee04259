//! The peers' protocol, served: TLS, who may speak, and each call handed to what carries it out.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{Stream, StreamExt, stream::FuturesUnordered};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use openraft::type_config::async_runtime::watch::WatchReceiver;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, service::interceptor::InterceptedService};
use trireme_storage::{codec, snapshot::SnapshotManifest, store::StoreError};

use super::{CLUSTER_HEADER, MESSAGE_BYTES, TARGET_HEADER};
use crate::{
    core::Core,
    error::ConsensusError,
    forward,
    snapshot::{self, IncomingError, SnapshotData},
    types::{Member, NodeId, SnapshotMeta, TypeConfig},
    wire::{self, proto},
};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// So many proposals of one follower may be under way.
const FORWARDED: usize = 8192;

/// One member's side of the protocol.
#[derive(Clone)]
pub struct PeerServer {
    core: Arc<Core>,
}

impl PeerServer {
    /// A member that does not know yet whether it is new must not vote or acknowledge anything.
    fn check_admitted(&self) -> Result<(), Status> {
        if self.core.bootstrap.is_admitted() { Ok(()) } else { Err(Status::unavailable("not yet a part of the group")) }
    }
}

/// What a leader is told whose entries a member has no space for.
fn no_space() -> Status {
    Status::resource_exhausted("no space left on the disk of this member")
}

/// Accepts peers on `listener` until shutdown, then closes every connection.
pub async fn serve(listener: TcpListener, core: Arc<Core>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = core.shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let core = core.clone();
                    connections.spawn(async move {
                        if let Err(reason) = connection(stream, core).await {
                            tracing::debug!(peer = %address, reason, "a peer's connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, core: Arc<Core>) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let tls = core.channels.tls().clone();
    let accepting = TlsAcceptor::from(tls.server.clone()).accept(stream);
    let stream = tokio::time::timeout(core.timing.connect_timeout, accepting)
        .await
        .map_err(|_| "the TLS handshake took too long".to_owned())?
        .map_err(|error| error.to_string())?;
    if !tls.admits(stream.get_ref().1.peer_certificates()) {
        tracing::warn!("turned away a client whose certificate is not a peer's of this cluster");
        return Err("not a peer's certificate".to_owned());
    }
    let cluster = core.channels.cluster().clone();
    let own = core.node_id.0.to_string();
    let timing = core.timing.clone();
    let server = proto::peer_server::PeerServer::new(PeerServer { core })
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let checked = InterceptedService::new(server, move |request: Request<()>| {
        if request.metadata().get(CLUSTER_HEADER) != Some(&cluster) {
            return Err(Status::failed_precondition("this is a member of another cluster"));
        }
        let target = request.metadata().get(TARGET_HEADER);
        if target.is_none_or(|target| target.as_bytes() != own.as_bytes()) {
            return Err(Status::failed_precondition("another member lives here now"));
        }
        Ok(request)
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .keep_alive_interval(timing.keep_alive_interval)
        .keep_alive_timeout(timing.keep_alive_timeout);
    builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(checked)).await.map_err(|error| error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the consensus core has stopped: {error}"))
}

fn unusable(error: &IncomingError) -> Status {
    match error {
        IncomingError::Store(StoreError::NoSpace) => no_space(),
        IncomingError::Store(_) => Status::internal(error.to_string()),
        IncomingError::Checksum(_) => Status::data_loss(error.to_string()),
        _ => Status::aborted(error.to_string()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, IncomingError> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| unusable(&error))
}

#[tonic::async_trait]
impl proto::peer_server::Peer for PeerServer {
    type AppendStreamStream = Answers<proto::AppendResponse>;
    type ForwardStream = Answers<proto::ForwardResponse>;

    async fn append(&self, request: Request<proto::AppendRequest>) -> Result<Response<proto::AppendResponse>, Status> {
        self.check_admitted()?;
        let request = wire::parse_append_request(request.into_inner())?;
        if !request.entries.is_empty() && self.core.disks.turns_entries_away() {
            return Err(no_space());
        }
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(previous);
        let answer = self.core.raft.append_entries(request).await.map_err(stopped)?;
        Ok(Response::new(wire::append_response(&answer.into_stream_result(previous, last))))
    }

    async fn append_stream(
        &self,
        request: Request<Streaming<proto::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        self.check_admitted()?;
        let turned_away = Arc::new(AtomicBool::new(false));
        let (core, is_turned_away) = (self.core.clone(), turned_away.clone());
        let state = (request.into_inner(), core, turned_away);
        let requests = futures::stream::unfold(state, |(mut incoming, core, turned_away)| async move {
            match incoming.message().await.map(|message| message.map(wire::parse_append_request)) {
                Ok(Some(Ok(request))) if !request.entries.is_empty() && core.disks.turns_entries_away() => {
                    turned_away.store(true, Ordering::Release);
                    None
                }
                Ok(Some(Ok(request))) => Some((request, (incoming, core, turned_away))),
                Ok(Some(Err(error))) => {
                    tracing::error!(%error, "a leader sent entries that cannot be read");
                    None
                }
                Ok(None) | Err(_) => None,
            }
        });
        let answers = self.core.raft.stream_append(requests).map(|answer| match answer {
            Ok(result) => Ok(wire::append_response(&result)),
            Err(fatal) => Err(stopped(fatal)),
        });
        // What came before is answered first.
        let end = futures::stream::once(async move { is_turned_away.load(Ordering::Acquire).then(|| Err(no_space())) });
        let answers = answers.chain(end.filter_map(std::future::ready));
        let answers = answers.take_until(self.core.shutdown.clone().cancelled_owned());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteResponse>, Status> {
        self.check_admitted()?;
        let request = wire::parse_vote_request(request.into_inner())?;
        let answer = self.core.raft.vote(request).await.map_err(stopped)?;
        Ok(Response::new(wire::vote_response(&answer)))
    }

    async fn pre_vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteResponse>, Status> {
        self.check_admitted()?;
        let request = wire::parse_vote_request(request.into_inner())?;
        let answer = self.core.raft.pre_vote(request).await.map_err(stopped)?;
        Ok(Response::new(wire::vote_response(&answer)))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderResponse>, Status> {
        self.check_admitted()?;
        use openraft::raft::TransferLeaderError;
        use proto::transfer_leader_response::Outcome;
        let request = wire::parse_transfer_request(request.into_inner())?;
        let outcome = match self.core.raft.handle_transfer_leader(request).await.map_err(stopped)? {
            Ok(()) => Outcome::Accepted(true),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => Outcome::VoteChanged((&actual).into()),
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                Outcome::NotFlushed(proto::NotFlushed { last_log: actual.as_ref().map(proto::LogId::from) })
            }
        };
        Ok(Response::new(proto::TransferLeaderResponse { outcome: Some(outcome) }))
    }

    async fn begin_snapshot(
        &self,
        request: Request<proto::BeginSnapshotRequest>,
    ) -> Result<Response<proto::BeginSnapshotResponse>, Status> {
        self.check_admitted()?;
        let request = request.into_inner();
        let vote = wire::required_vote(request.vote)?;
        let own = self.core.raft.server_metrics().borrow_watched().vote;
        if own > vote {
            let higher_vote = Some((&own).into());
            return Ok(Response::new(proto::BeginSnapshotResponse { received: Vec::new(), higher_vote }));
        }
        let manifest: SnapshotManifest =
            codec::decode(&request.manifest).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let incoming = self.core.incoming.clone();
        let received = blocking(move || incoming.begin(&request.id, manifest)).await?;
        Ok(Response::new(proto::BeginSnapshotResponse { received, higher_vote: None }))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotChunk>>,
    ) -> Result<Response<proto::SendSnapshotResponse>, Status> {
        let mut chunks = request.into_inner();
        let mut received_bytes = 0;
        while let Some(chunk) = chunks.message().await? {
            received_bytes += chunk.data.len() as u64;
            let incoming = self.core.incoming.clone();
            blocking(move || incoming.take(&chunk)).await?;
        }
        Ok(Response::new(proto::SendSnapshotResponse { received_bytes }))
    }

    async fn install_snapshot(
        &self,
        request: Request<proto::InstallSnapshotRequest>,
    ) -> Result<Response<proto::InstallSnapshotResponse>, Status> {
        let request = request.into_inner();
        let vote = wire::required_vote(request.vote)?;
        let incoming = self.core.incoming.clone();
        let received = blocking(move || incoming.finish(&request.id)).await?;
        let state = snapshot::applied_of(&received.manifest).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let meta: SnapshotMeta = state.snapshot_meta();
        let snapshot = openraft::type_config::alias::SnapshotOf::<TypeConfig, SnapshotData> {
            meta,
            snapshot: SnapshotData::Received(Box::new(received)),
        };
        let answer = self.core.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(proto::InstallSnapshotResponse { vote: Some((&answer.vote).into()) }))
    }

    async fn forward(&self, request: Request<Streaming<proto::ForwardRequest>>) -> Result<Response<Self::ForwardStream>, Status> {
        let (answers, outgoing) = mpsc::channel(1024);
        let core = self.core.clone();
        tokio::spawn(async move {
            let shutdown = core.shutdown.clone();
            tokio::select! {
                () = forwarded(&core, request.into_inner(), answers) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn read_index(&self, _request: Request<proto::ReadIndexRequest>) -> Result<Response<proto::ReadIndexResponse>, Status> {
        use proto::read_index_response::Outcome;
        let outcome = match self.core.reader.own_read_index().await {
            Ok(index) => Outcome::Index(index),
            Err(reason) => Outcome::Refused(reason),
        };
        Ok(Response::new(proto::ReadIndexResponse { outcome: Some(outcome) }))
    }

    async fn status(&self, _request: Request<proto::StatusRequest>) -> Result<Response<proto::StatusResponse>, Status> {
        Ok(Response::new((&self.core.status()).into()))
    }

    async fn administer(
        &self,
        request: Request<proto::AdministerRequest>,
    ) -> Result<Response<proto::AdministerResponse>, Status> {
        use proto::administer_request::Action;
        let action = request.into_inner().action.ok_or_else(|| Status::invalid_argument("the request has no action"))?;
        let done = match action {
            Action::AddLearner(info) => {
                let member = Member { name: info.name, zone: info.zone, address: info.address };
                self.core.add_learner_here(NodeId(info.node_id), member).await
            }
            Action::Promote(id) => self.core.promote_here(NodeId(id)).await,
            Action::Remove(id) => self.core.remove_here(NodeId(id)).await,
            Action::TransferLeadership(to) => self.core.transfer_here(NodeId(to)).await,
            Action::Update(moved) => self.core.update_here(NodeId(moved.node_id), moved.address).await,
        };
        Ok(Response::new(match done {
            Ok(()) => proto::AdministerResponse::default(),
            Err(error) => proto::AdministerResponse {
                refused: error.to_string(),
                not_leader: matches!(error, ConsensusError::NoLeader(_)),
                refusal: match &error {
                    ConsensusError::Refused(refusal) => codec::encode(refusal).unwrap_or_default().into(),
                    _ => bytes::Bytes::new(),
                },
            },
        }))
    }
}

/// Proposes what a follower forwards and answers each proposal when its outcome is known, until the follower is gone.
async fn forwarded(
    core: &Core,
    mut requests: Streaming<proto::ForwardRequest>,
    answers: mpsc::Sender<Result<proto::ForwardResponse, Status>>,
) {
    let mut waiting = FuturesUnordered::new();
    loop {
        tokio::select! {
            request = requests.message(), if waiting.len() < FORWARDED => match request {
                Ok(Some(request)) => waiting.push(async move {
                    forward::answer(request.id, core.propose_forwarded(request.command).await)
                }),
                Ok(None) | Err(_) => return,
            },
            Some(answer) = waiting.next() => if answers.send(Ok(answer)).await.is_err() {
                return;
            },
        }
    }
}
