//! openraft's network trait over gRPC. Replication is one bidirectional stream to each peer, pipelined; heartbeats and votes
//! have a connection of their own; snapshots another.

use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::{
    OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{Backoff, RPCOption, stream_append_sequential},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
        TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotOf,
};
use tonic::{Code, Status};

use super::{Channels, Lane, channel::Client, snapshot_sender};
use crate::{
    machine::SnapshotData,
    types::{LogId, Member, NodeId, TypeConfig, Vote},
    wire::{self, WireError, proto},
};

/// The pauses between attempts to reach a peer that cannot be reached: short, because a peer that restarts is soon back.
const BACKOFF_MS: [u64; 5] = [10, 20, 50, 100, 200];

/// Makes the clients with which openraft speaks to each peer.
#[derive(Clone)]
pub struct NetworkFactory {
    node_id: NodeId,
    channels: Channels,
}

impl NetworkFactory {
    pub fn new(node_id: NodeId, channels: Channels) -> Self {
        Self { node_id, channels }
    }

    fn network(&self, target: NodeId, member: &Member, lane: Lane) -> Network {
        Network {
            node_id: self.node_id,
            target,
            lane,
            client: self.channels.client_of(target, member, lane),
            control: self.channels.client_of(target, member, Lane::Control),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Network {
        self.network(target, node, Lane::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> Network {
        self.network(target, node, Lane::Control)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &Member) -> Network {
        self.network(target, node, Lane::Snapshot)
    }
}

/// The way to one peer.
pub struct Network {
    node_id: NodeId,
    target: NodeId,
    lane: Lane,
    /// On the connection of this network's lane.
    client: Client,
    control: Client,
}

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

impl Network {
    fn timed_out(&self, action: RPCTypes, timeout: Duration) -> RPCError<TypeConfig> {
        Timeout { action, id: self.node_id, target: self.target, timeout }.into()
    }

    async fn within<T>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Rpc<T> {
        match tokio::time::timeout(option.hard_ttl(), call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(rpc_error(&status)),
            Err(_) => Err(self.timed_out(action, option.hard_ttl())),
        }
    }
}

/// A peer that cannot be reached is left alone for a while; any other failure is tried again sooner.
fn rpc_error(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        // The last one: its disk is full.
        Code::Unavailable | Code::FailedPrecondition | Code::Unimplemented | Code::ResourceExhausted => {
            Unreachable::new(status).into()
        }
        _ => NetworkError::new(status).into(),
    }
}

fn malformed(error: WireError) -> RPCError<TypeConfig> {
    NetworkError::new(&error).into()
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let request = wire::append_request(&rpc).map_err(malformed)?;
        let last = rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id);
        let mut client = self.client.clone();
        let response = self.within(RPCTypes::AppendEntries, &option, client.append(request)).await?;
        Ok(match wire::parse_append_response(response).map_err(malformed)? {
            Ok(matched) if matched == last => AppendEntriesResponse::Success,
            Ok(matched) => AppendEntriesResponse::PartialSuccess(matched),
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.lane != Lane::Replication {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            // openraft waits between attempts when it is asked for the first request: one that connected before would try again and
            // again, without a pause, to reach a member that does not run.
            let Some(first) = input.next().await else {
                let nothing: BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>> = Box::pin(futures::stream::empty());
                return Ok(nothing);
            };
            let input = futures::stream::iter([first]).chain(input);
            let requests = futures::stream::unfold(input, |mut input| async move {
                match wire::append_request(&input.next().await?) {
                    Ok(request) => Some((request, input)),
                    Err(error) => {
                        tracing::error!(%error, "cannot encode entries for replication");
                        None
                    }
                }
            });
            let answers = self.client.append_stream(requests).await.map_err(|status| rpc_error(&status))?.into_inner();
            let answers = answers.map(|answer| match answer {
                Ok(answer) => wire::parse_append_response(answer).map_err(malformed),
                Err(status) => Err(rpc_error(&status)),
            });
            let answers: BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>> = Box::pin(answers);
            Ok(answers)
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let mut client = self.control.clone();
        let response = self.within(RPCTypes::Vote, &option, client.vote(wire::vote_request(&rpc))).await?;
        wire::parse_vote_response(response).map_err(malformed)
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let mut client = self.control.clone();
        let response = self.within(RPCTypes::Vote, &option, client.pre_vote(wire::vote_request(&rpc))).await?;
        wire::parse_vote_response(response).map_err(malformed)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sending = snapshot_sender::send(&self.client, self.target, vote, snapshot);
        tokio::select! {
            sent = sending => sent,
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        use proto::transfer_leader_response::Outcome;
        let mut client = self.control.clone();
        let response =
            self.within(RPCTypes::TransferLeader, &option, client.transfer_leader(wire::transfer_request(&req))).await?;
        Ok(match response.outcome.ok_or_else(|| malformed(WireError::Missing("outcome")))? {
            Outcome::Accepted(_) => Ok(()),
            Outcome::VoteChanged(actual) => {
                Err(TransferLeaderError::VoteChanged { expected: *req.from_leader(), actual: actual.into() })
            }
            Outcome::NotFlushed(actual) => Err(TransferLeaderError::LogNotFlushed {
                expected: req.last_log_id().copied(),
                actual: actual.last_log.map(LogId::from),
            }),
        })
    }

    fn backoff(&self) -> Option<Backoff> {
        let last = BACKOFF_MS[BACKOFF_MS.len() - 1];
        Some(Backoff::new(BACKOFF_MS.into_iter().chain(std::iter::repeat(last)).map(Duration::from_millis)))
    }
}
