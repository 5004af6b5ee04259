//! The peers' protocol, served: TLS, who may speak, and each call handed to what carries it out.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task,
};

use futures::{FutureExt, Stream, StreamExt, future::Either, stream::FuturesUnordered};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use openraft::type_config::async_runtime::watch::WatchReceiver;
use prost::Message;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::{Ascii, MetadataValue},
};
use tower::Service;
use trireme_storage::{codec, fail_point, snapshot::SnapshotManifest, store::StoreError};

use super::{CLUSTER_HEADER, FOLDER_HEADER, MESSAGE_BYTES, TARGET_HEADER};
use crate::{
    core::Core,
    error::ConsensusError,
    forward,
    record::AppliedState,
    snapshot::{self, IncomingError, SnapshotData},
    types::{SnapshotMeta, TypeConfig, Vote},
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

/// Whom a request must be meant for.
struct Addressee {
    cluster: MetadataValue<Ascii>,
    member: String,
    folder: String,
}

impl Addressee {
    fn new(core: &Core) -> Self {
        Self {
            cluster: core.channels.cluster().clone(),
            member: core.node_id.0.to_string(),
            folder: core.bootstrap.folder_ids().own.to_string(),
        }
    }

    fn check<Body>(&self, request: &http::Request<Body>) -> Result<(), &'static str> {
        let header = |name: &str| request.headers().get(name).map(|value| value.as_bytes());
        if header(CLUSTER_HEADER) != Some(self.cluster.as_encoded_bytes()) {
            return Err("this is a member of another cluster");
        }
        // Who joins does not know yet who lives where.
        if request.uri().path().ends_with("/Join") {
            return Ok(());
        }
        if header(TARGET_HEADER) != Some(self.member.as_bytes()) {
            return Err("another member lives here now");
        }
        if header(FOLDER_HEADER).is_some_and(|folder| folder != self.folder.as_bytes()) {
            return Err("the member that lives here has another data folder");
        }
        Ok(())
    }
}

/// The protocol for those requests alone that are meant for this member.
#[derive(Clone)]
struct Addressed<S> {
    addressee: Arc<Addressee>,
    server: S,
}

impl<S, Body> Service<http::Request<Body>> for Addressed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<tonic::body::Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> task::Poll<Result<(), S::Error>> {
        self.server.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.addressee.check(&request) {
            Ok(()) => Either::Left(self.server.call(request)),
            Err(reason) => Either::Right(ready(Ok(Status::failed_precondition(reason).into_http()))),
        }
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
    let addressee = Arc::new(Addressee::new(&core));
    let timing = core.timing.clone();
    let server = proto::peer_server::PeerServer::new(PeerServer { core })
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .keep_alive_interval(timing.keep_alive_interval)
        .keep_alive_timeout(timing.keep_alive_timeout);
    builder
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(Addressed { addressee, server }))
        .await
        .map_err(|error| error.to_string())
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

/// What a snapshot that is sent by `vote` holds. A later term than that is refused: openraft panics in `install_full_snapshot` on it.
fn promised(manifest: &SnapshotManifest, vote: &Vote) -> Result<AppliedState, Status> {
    let applied = snapshot::applied_of(manifest).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if applied.is_within(vote) {
        Ok(applied)
    } else {
        Err(Status::invalid_argument("the snapshot is of a later term than its sender"))
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
        self.core.note_heartbeat();
        let answer = self.core.raft.append_entries(request).await.map_err(stopped)?;
        self.core.silence.end();
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
        let core = self.core.clone();
        let answers = self.core.raft.stream_append(requests).map(move |answer| match answer {
            Ok(result) => {
                core.silence.end();
                Ok(wire::append_response(&result))
            }
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
        self.core.check_serving().map_err(|error| Status::failed_precondition(error.to_string()))?;
        let request = wire::parse_transfer_request(request.into_inner())?;
        fail_point!("leadership/transfer/received");
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
        promised(&manifest, &vote)?;
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
        let meta: SnapshotMeta = promised(&received.manifest, &vote)?.snapshot_meta();
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

    async fn hashes(&self, request: Request<proto::HashesRequest>) -> Result<Response<proto::HashesResponse>, Status> {
        let report = self.core.report(&request.into_inner().revisions).map_err(stopped)?;
        Ok(Response::new(report.into()))
    }

    async fn administer(
        &self,
        request: Request<proto::AdministerRequest>,
    ) -> Result<Response<proto::AdministerResponse>, Status> {
        let action = request.into_inner().action.ok_or_else(|| Status::invalid_argument("the request has no action"))?;
        Ok(Response::new(administered(&self.core.administer_here(action).await)))
    }

    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::AdministerResponse>, Status> {
        let action = proto::administer_request::Action::Join(request.into_inner());
        Ok(Response::new(administered(&self.core.administer_once(action).await)))
    }
}

/// How another member is told what came of a change.
fn administered(done: &Result<(), ConsensusError>) -> proto::AdministerResponse {
    let Err(error) = done else { return proto::AdministerResponse::default() };
    proto::AdministerResponse {
        refused: error.to_string(),
        not_leader: matches!(error, ConsensusError::NoLeader(_)),
        refusal: match error {
            ConsensusError::Refused(refusal) => codec::encode(refusal).unwrap_or_default().into(),
            _ => bytes::Bytes::new(),
        },
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
                Ok(Some(request)) => waiting.extend(request.proposals.into_iter().map(|proposal| async move {
                    fail_point!("forward/receive/after");
                    let outcome = core.propose_forwarded(proposal.command).await;
                    fail_point!("forward/answer/before");
                    forward::answer(proposal.id, outcome)
                })),
                Ok(None) | Err(_) => return,
            },
            Some(first) = waiting.next() => {
                let (mut bytes, mut outcomes) = (first.encoded_len(), vec![first]);
                // Proposals of one entry have their outcomes together.
                while bytes < forward::MESSAGE_BYTES
                    && let Some(Some(next)) = waiting.next().now_or_never()
                {
                    bytes += next.encoded_len();
                    outcomes.push(next);
                }
                if answers.send(Ok(proto::ForwardResponse { outcomes })).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use trireme_storage::model::Revision;

    use super::*;
    use crate::{
        record,
        types::{NodeId, log_id},
    };

    #[test]
    fn a_snapshot_of_a_later_term_than_its_sender_is_refused() {
        let applied = AppliedState { last: Some(log_id(4, 9)), ..AppliedState::default() };
        let applied = Some(record::encode_applied(&applied).unwrap());
        let manifest = SnapshotManifest { files: Vec::new(), applied, revision: Revision(1), hash: 0 };
        let by = |term| promised(&manifest, &Vote::new_committed(term, NodeId(1)));
        assert_eq!(by(4).unwrap().last, Some(log_id(4, 9)));
        assert_eq!(by(3).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
