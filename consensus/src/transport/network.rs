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
    log_store::LogStore,
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
    log: LogStore,
}

impl NetworkFactory {
    pub fn new(node_id: NodeId, channels: Channels, log: LogStore) -> Self {
        Self { node_id, channels, log }
    }

    fn network(&self, target: NodeId, member: &Member, lane: Lane) -> Network {
        Network {
            node_id: self.node_id,
            target,
            lane,
            log: self.log.clone(),
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
    /// This member's own, from which openraft takes what it replicates.
    log: LogStore,
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

/// Ends a session of replication that has entries to send which were purged.
///
/// openraft (0.10.0-alpha.37) turns to a snapshot when an attempt fails and the log behind it can then be purged; but its task for the
/// peer may take up the failed errand once more. The log answers it with nothing (see `log_store`), so it sends request after request
/// without an entry, and only looks for a newer errand when the session is over. One such request is also how a commit is told.
fn while_not_in_vain(
    requests: impl Stream<Item = AppendEntriesRequest<TypeConfig>>,
    purged: impl Fn() -> Option<LogId>,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> {
    let mut was_in_vain = false;
    requests.take_while(move |request| {
        let is_in_vain = request.entries.is_empty() && request.prev_log_id < purged();
        let goes_on = !(is_in_vain && was_in_vain);
        was_in_vain = is_in_vain;
        futures::future::ready(goes_on)
    })
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
            let log = self.log.clone();
            let input = while_not_in_vain(futures::stream::iter([first]).chain(input), move || log.purged());
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

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use openraft::EntryPayload;

    use super::*;
    use crate::types::{Entry, NodeId, log_id};

    /// A request for what follows `prev`, with so many entries.
    fn request(prev: u64, entries: u64) -> AppendEntriesRequest<TypeConfig> {
        let entries = (1..=entries).map(|number| Entry { log_id: log_id(1, prev + number), payload: EntryPayload::Blank });
        AppendEntriesRequest {
            vote: Vote::new_committed(1, NodeId(1)),
            prev_log_id: Some(log_id(1, prev)),
            entries: entries.collect(),
            leader_commit: None,
        }
    }

    /// How many of `requests` go out when the log is purged through entry 100.
    fn sent(requests: Vec<AppendEntriesRequest<TypeConfig>>) -> usize {
        block_on(while_not_in_vain(futures::stream::iter(requests), || Some(log_id(1, 100))).count())
    }

    #[test]
    fn a_session_for_purged_entries_ends() {
        assert_eq!(sent(vec![request(50, 0), request(50, 0), request(50, 0)]), 1);
        assert_eq!(sent(vec![request(50, 50), request(100, 0), request(100, 0), request(100, 3)]), 4);
        assert_eq!(sent(vec![request(99, 0), request(99, 1), request(100, 0)]), 3);
    }
}
