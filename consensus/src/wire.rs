//! The peers' protocol: the generated messages, and how they and openraft's types become each other.

use openraft::{
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest, VoteResponse},
    vote::RaftVote,
};

use crate::{
    record::{self, RecordError},
    types::{LeaderId, LogId, Member, NodeId, TypeConfig, Vote, log_id, term_of},
};

/// Generated from `proto/peer.proto`.
#[allow(clippy::all, missing_docs)]
pub mod proto {
    tonic::include_proto!("trireme.peer.v1");
}

/// A peer sent a message that does not follow the protocol.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the message has no {0}")]
    Missing(&'static str),
    #[error("entry {0} does not follow what stands before it")]
    Gap(u64),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<&LogId> for proto::LogId {
    fn from(id: &LogId) -> Self {
        Self { term: term_of(id), index: id.index }
    }
}

impl From<proto::LogId> for LogId {
    fn from(id: proto::LogId) -> Self {
        log_id(id.term, id.index)
    }
}

fn optional_log_id(id: Option<&LogId>) -> Option<proto::LogId> {
    id.map(proto::LogId::from)
}

impl From<&Vote> for proto::Ballot {
    fn from(vote: &Vote) -> Self {
        let leader = vote.leader_id();
        Self { term: leader.term, node_id: leader.voted_for.0, committed: vote.is_committed() }
    }
}

impl From<proto::Ballot> for Vote {
    fn from(ballot: proto::Ballot) -> Self {
        let leader = LeaderId { term: ballot.term, voted_for: NodeId(ballot.node_id) };
        Vote::from_leader_id(leader, ballot.committed)
    }
}

/// The vote of a message, which every message of Raft must carry.
pub fn required_vote(ballot: Option<proto::Ballot>) -> Result<Vote, WireError> {
    ballot.map(Vote::from).ok_or(WireError::Missing("vote"))
}

pub fn append_request(request: &AppendEntriesRequest<TypeConfig>) -> Result<proto::AppendRequest, WireError> {
    let records = request
        .entries
        .iter()
        .map(|entry| {
            let payload = record::encode_entry(entry)?;
            Ok(proto::Record { term: term_of(&entry.log_id), index: entry.log_id.index, payload })
        })
        .collect::<Result<Vec<_>, RecordError>>()?;
    Ok(proto::AppendRequest {
        vote: Some((&request.vote).into()),
        previous: optional_log_id(request.prev_log_id.as_ref()),
        records,
        leader_commit: optional_log_id(request.leader_commit.as_ref()),
    })
}

pub fn parse_append_request(request: proto::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let entries = request
        .records
        .into_iter()
        .map(|record| record::decode_entry(record.index, &record.payload))
        .collect::<Result<Vec<_>, RecordError>>()?;
    let first = request.previous.as_ref().map_or(0, |previous| previous.index + 1);
    if let Some((entry, _)) = entries.iter().zip(first..).find(|(entry, expected)| entry.log_id.index != *expected) {
        return Err(WireError::Gap(entry.log_id.index));
    }
    Ok(AppendEntriesRequest {
        vote: required_vote(request.vote)?,
        prev_log_id: request.previous.map(LogId::from),
        entries,
        leader_commit: request.leader_commit.map(LogId::from),
    })
}

pub fn append_response(result: &StreamAppendResult<TypeConfig>) -> proto::AppendResponse {
    use proto::append_response::Outcome;
    let outcome = match result {
        Ok(matched) => Outcome::Matched(proto::Matched { log_id: optional_log_id(matched.as_ref()) }),
        Err(StreamAppendError::Conflict(id)) => Outcome::Conflict(id.into()),
        Err(StreamAppendError::HigherVote(vote)) => Outcome::HigherVote(vote.into()),
    };
    proto::AppendResponse { outcome: Some(outcome) }
}

pub fn parse_append_response(response: proto::AppendResponse) -> Result<StreamAppendResult<TypeConfig>, WireError> {
    use proto::append_response::Outcome;
    Ok(match response.outcome.ok_or(WireError::Missing("outcome"))? {
        Outcome::Matched(matched) => Ok(matched.log_id.map(LogId::from)),
        Outcome::Conflict(id) => Err(StreamAppendError::Conflict(id.into())),
        Outcome::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote.into())),
    })
}

pub fn vote_request(request: &VoteRequest<TypeConfig>) -> proto::VoteRequest {
    proto::VoteRequest {
        vote: Some((&request.vote).into()),
        last_log: optional_log_id(request.last_log_id.as_ref()),
        leadership_transfer: request.leadership_transfer,
    }
}

pub fn parse_vote_request(request: proto::VoteRequest) -> Result<VoteRequest<TypeConfig>, WireError> {
    let mut parsed = VoteRequest::new(required_vote(request.vote)?, request.last_log.map(LogId::from));
    parsed.leadership_transfer = request.leadership_transfer;
    Ok(parsed)
}

pub fn vote_response(response: &VoteResponse<TypeConfig>) -> proto::VoteResponse {
    proto::VoteResponse {
        vote: Some((&response.vote).into()),
        granted: response.vote_granted,
        last_log: optional_log_id(response.last_log_id.as_ref()),
    }
}

pub fn parse_vote_response(response: proto::VoteResponse) -> Result<VoteResponse<TypeConfig>, WireError> {
    let vote = required_vote(response.vote)?;
    Ok(VoteResponse::new(vote, response.last_log.map(LogId::from), response.granted))
}

pub fn transfer_request(request: &TransferLeaderRequest<TypeConfig>) -> proto::TransferLeaderRequest {
    proto::TransferLeaderRequest {
        from: Some(request.from_leader().into()),
        to: request.to_node_id().0,
        last_log: optional_log_id(request.last_log_id()),
    }
}

pub fn parse_transfer_request(request: proto::TransferLeaderRequest) -> Result<TransferLeaderRequest<TypeConfig>, WireError> {
    Ok(TransferLeaderRequest::new(required_vote(request.from)?, NodeId(request.to), request.last_log.map(LogId::from)))
}

/// A member as the protocol spells it.
pub fn member_info(id: NodeId, member: &Member, voter: bool, matched: Option<u64>) -> proto::MemberInfo {
    let Member { name, zone, address, folder } = member.clone();
    proto::MemberInfo { node_id: id.0, name, zone, address, voter, matched, folder_id: folder }
}

/// The member that the protocol speaks of.
pub fn parse_member(info: proto::MemberInfo) -> (NodeId, Member) {
    let proto::MemberInfo { node_id, name, zone, address, folder_id, .. } = info;
    (NodeId(node_id), Member { name, zone, address, folder: folder_id })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{Entry, Payload, Proposal};

    #[test]
    fn append_requests_survive_the_wire() {
        let entry = |index| Entry {
            log_id: log_id(3, index),
            payload: Payload::Normal(Proposal { commands: vec![Bytes::from(format!("command {index}"))] }),
        };
        for request in [
            AppendEntriesRequest {
                vote: Vote::new_committed(3, NodeId(1)),
                prev_log_id: None,
                entries: vec![],
                leader_commit: None,
            },
            AppendEntriesRequest {
                vote: Vote::new_committed(3, NodeId(1)),
                prev_log_id: Some(log_id(2, 6)),
                entries: vec![entry(7), entry(8)],
                leader_commit: Some(log_id(2, 6)),
            },
        ] {
            let parsed = parse_append_request(append_request(&request).unwrap()).unwrap();
            assert_eq!(parsed.vote, request.vote);
            assert_eq!(parsed.prev_log_id, request.prev_log_id);
            assert_eq!(parsed.entries, request.entries);
            assert_eq!(parsed.leader_commit, request.leader_commit);
        }
    }

    #[test]
    fn entries_with_a_gap_are_refused() {
        let entry = |index| Entry { log_id: log_id(3, index), payload: Payload::Normal(Proposal { commands: vec![] }) };
        for (previous, entries) in
            [(Some(log_id(2, 6)), vec![entry(8)]), (None, vec![entry(1)]), (Some(log_id(2, 6)), vec![entry(7), entry(9)])]
        {
            let request = AppendEntriesRequest {
                vote: Vote::new_committed(3, NodeId(1)),
                prev_log_id: previous,
                entries,
                leader_commit: None,
            };
            let parsed = parse_append_request(append_request(&request).unwrap());
            assert!(matches!(parsed, Err(WireError::Gap(_))), "{parsed:?}");
        }
    }

    #[test]
    fn answers_survive_the_wire() {
        for result in [
            Ok(None),
            Ok(Some(log_id(1, 2))),
            Err(StreamAppendError::Conflict(log_id(4, 5))),
            Err(StreamAppendError::HigherVote(Vote::new(9, NodeId(2)))),
        ] {
            assert_eq!(parse_append_response(append_response(&result)).unwrap(), result);
        }
        let mut vote = VoteRequest::new(Vote::new(9, NodeId(2)), Some(log_id(1, 1)));
        vote.leadership_transfer = true;
        assert_eq!(parse_vote_request(vote_request(&vote)).unwrap(), vote);
        let answer = VoteResponse::new(Vote::new(9, NodeId(2)), None, true);
        assert_eq!(parse_vote_response(vote_response(&answer)).unwrap(), answer);
    }

    #[test]
    fn messages_without_their_fields_are_refused() {
        assert!(parse_append_request(proto::AppendRequest::default()).is_err());
        assert!(parse_append_response(proto::AppendResponse::default()).is_err());
        assert!(parse_vote_request(proto::VoteRequest::default()).is_err());
    }
}
