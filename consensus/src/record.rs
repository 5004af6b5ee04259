//! What consensus writes to disk: log records, votes, the applied record. All are structs of our own in the versioned
//! envelope of [`trireme_storage::codec`], so that the library underneath may change its types.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::vote::RaftVote;
use serde::{Deserialize, Serialize};
use trireme_storage::codec::{self, CodecError};

use crate::types::{
    Entry, LogId, Member, Membership, NodeId, Payload, Proposal, SnapshotMeta, StoredMembership, Vote, log_id, term_of,
};

/// A log record does not say what it should.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot decode a {what}: {source}")]
    Codec { what: &'static str, source: CodecError },
    #[error("invalid membership in a record: {0}")]
    Membership(String),
}

impl From<RecordError> for std::io::Error {
    fn from(error: RecordError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// One entry of the log, as stored and as sent; its index is the key it is stored under.
#[derive(Debug, Serialize, Deserialize)]
struct LogRecordBody {
    term: u64,
    payload: PayloadRecord,
}

#[derive(Debug, Serialize, Deserialize)]
enum PayloadRecord {
    /// The entry with which a leader begins its term.
    Blank,
    /// Encoded commands.
    Commands(Vec<Bytes>),
    Membership(MembershipRecord),
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct MembershipRecord {
    /// One set of voters, or two while a change is under way (joint consensus).
    configs: Vec<BTreeSet<u64>>,
    /// Every member, learners too.
    members: BTreeMap<u64, Member>,
}

impl From<&Membership> for MembershipRecord {
    fn from(membership: &Membership) -> Self {
        Self {
            configs: membership.get_joint_config().iter().map(|config| config.iter().map(|id| id.0).collect()).collect(),
            members: membership.nodes().map(|(id, member)| (id.0, member.clone())).collect(),
        }
    }
}

impl MembershipRecord {
    fn into_membership(self) -> Result<Membership, RecordError> {
        if self.configs.is_empty() && self.members.is_empty() {
            return Ok(Membership::default());
        }
        let configs = self.configs.into_iter().map(|config| config.into_iter().map(NodeId).collect()).collect();
        let members: BTreeMap<NodeId, Member> = self.members.into_iter().map(|(id, member)| (NodeId(id), member)).collect();
        Membership::new(configs, members).map_err(|error| RecordError::Membership(error.to_string()))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct VoteRecord {
    term: u64,
    node_id: u64,
    committed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct LogIdRecord {
    term: u64,
    index: u64,
}

impl From<&LogId> for LogIdRecord {
    fn from(id: &LogId) -> Self {
        Self { term: term_of(id), index: id.index }
    }
}

impl From<LogIdRecord> for LogId {
    fn from(record: LogIdRecord) -> Self {
        log_id(record.term, record.index)
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct AppliedRecord {
    last: Option<LogIdRecord>,
    membership_at: Option<LogIdRecord>,
    membership: MembershipRecord,
}

/// How far the state machine is, and the membership it has seen: stored in one batch with the data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppliedState {
    pub last: Option<LogId>,
    pub membership: StoredMembership,
}

impl AppliedState {
    /// The same, as openraft describes a snapshot.
    pub fn snapshot_meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone() }
    }

    /// Whether a leader by this vote can have it: no leader has entries of later terms than its own.
    pub fn is_within(&self, vote: &Vote) -> bool {
        self.last.is_none_or(|last| term_of(&last) <= vote.leader_id().term)
    }
}

impl From<&SnapshotMeta> for AppliedState {
    fn from(meta: &SnapshotMeta) -> Self {
        Self { last: meta.last_log_id, membership: meta.last_membership.clone() }
    }
}

fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Bytes, RecordError> {
    codec::encode(value).map(Bytes::from).map_err(|source| RecordError::Codec { what, source })
}

fn decode<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, RecordError> {
    codec::decode(bytes).map_err(|source| RecordError::Codec { what, source })
}

/// The bytes of an entry.
pub fn encode_entry(entry: &Entry) -> Result<Bytes, RecordError> {
    let payload = match &entry.payload {
        Payload::Blank => PayloadRecord::Blank,
        Payload::Normal(proposal) => PayloadRecord::Commands(proposal.commands.clone()),
        Payload::Membership(membership) => PayloadRecord::Membership(membership.into()),
    };
    encode("log record", &LogRecordBody { term: term_of(&entry.log_id), payload })
}

/// The entry at `index`.
pub fn decode_entry(index: u64, bytes: &[u8]) -> Result<Entry, RecordError> {
    let body: LogRecordBody = decode("log record", bytes)?;
    let payload = match body.payload {
        PayloadRecord::Blank => Payload::Blank,
        PayloadRecord::Commands(commands) => Payload::Normal(Proposal { commands }),
        PayloadRecord::Membership(record) => Payload::Membership(record.into_membership()?),
    };
    Ok(Entry { log_id: log_id(body.term, index), payload })
}

pub fn encode_vote(vote: &Vote) -> Result<Bytes, RecordError> {
    let leader = vote.leader_id();
    encode("vote", &VoteRecord { term: leader.term, node_id: leader.voted_for.0, committed: vote.is_committed() })
}

pub fn decode_vote(bytes: &[u8]) -> Result<Vote, RecordError> {
    let record: VoteRecord = decode("vote", bytes)?;
    let leader = crate::types::LeaderId { term: record.term, voted_for: NodeId(record.node_id) };
    Ok(Vote::from_leader_id(leader, record.committed))
}

pub fn encode_log_id(id: &LogId) -> Result<Bytes, RecordError> {
    encode("log id", &LogIdRecord::from(id))
}

pub fn decode_log_id(bytes: &[u8]) -> Result<LogId, RecordError> {
    decode::<LogIdRecord>("log id", bytes).map(LogId::from)
}

pub fn encode_applied(applied: &AppliedState) -> Result<Bytes, RecordError> {
    let record = AppliedRecord {
        last: applied.last.as_ref().map(LogIdRecord::from),
        membership_at: applied.membership.log_id().as_ref().map(LogIdRecord::from),
        membership: applied.membership.membership().into(),
    };
    encode("applied record", &record)
}

pub fn decode_applied(bytes: &[u8]) -> Result<AppliedState, RecordError> {
    let record: AppliedRecord = decode("applied record", bytes)?;
    let membership = record.membership.into_membership()?;
    Ok(AppliedState {
        last: record.last.map(LogId::from),
        membership: StoredMembership::new(record.membership_at.map(LogId::from), membership),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let member = |name: &str| Member { folder: Some(7), ..Member::new(name, "zone-a", format!("{name}:2380")) };
        let nodes = BTreeMap::from([(NodeId(1), member("a")), (NodeId(2), member("b")), (NodeId(3), member("c"))]);
        Membership::new(vec![BTreeSet::from([NodeId(1), NodeId(2)]), BTreeSet::from([NodeId(1)])], nodes).unwrap()
    }

    #[test]
    fn entries_survive_the_log() {
        let commands = Proposal { commands: vec![Bytes::from_static(b"one"), Bytes::new()] };
        for payload in [Payload::Blank, Payload::Normal(commands), Payload::Membership(membership())] {
            let entry = Entry { log_id: log_id(7, 42), payload };
            assert_eq!(decode_entry(42, &encode_entry(&entry).unwrap()).unwrap(), entry);
        }
    }

    #[test]
    fn applied_states_and_votes_survive() {
        let stored = StoredMembership::new(Some(log_id(1, 2)), membership());
        for applied in [AppliedState::default(), AppliedState { last: Some(log_id(3, 9)), membership: stored }] {
            assert_eq!(decode_applied(&encode_applied(&applied).unwrap()).unwrap(), applied);
        }
        for vote in [Vote::new(3, NodeId(9)), Vote::new_committed(u64::MAX, NodeId(u64::MAX))] {
            assert_eq!(decode_vote(&encode_vote(&vote).unwrap()).unwrap(), vote);
        }
    }

    #[test]
    fn a_leader_has_no_entries_of_later_terms() {
        let applied = |term| AppliedState { last: Some(log_id(term, 9)), ..AppliedState::default() };
        let vote = Vote::new_committed(3, NodeId(1));
        assert!(AppliedState::default().is_within(&vote) && applied(2).is_within(&vote) && applied(3).is_within(&vote));
        assert!(!applied(4).is_within(&vote));
    }

    /// Whether the bytes are refused as a record of some kind.
    type IsRefused = fn(&[u8]) -> bool;

    /// Cut off anywhere, or with any bit flipped, no record is taken for another one.
    #[test]
    fn damaged_records_are_refused() {
        let entry = Entry { log_id: log_id(7, 42), payload: Payload::Membership(membership()) };
        let applied =
            AppliedState { last: Some(log_id(3, 9)), membership: StoredMembership::new(Some(log_id(1, 2)), membership()) };
        let records: [(Bytes, IsRefused); 4] = [
            (encode_entry(&entry).unwrap(), |bytes| decode_entry(42, bytes).is_err()),
            (encode_applied(&applied).unwrap(), |bytes| decode_applied(bytes).is_err()),
            (encode_vote(&Vote::new(3, NodeId(9))).unwrap(), |bytes| decode_vote(bytes).is_err()),
            (encode_log_id(&log_id(3, 9)).unwrap(), |bytes| decode_log_id(bytes).is_err()),
        ];
        for (record, is_refused) in records {
            for length in 0..record.len() {
                assert!(is_refused(&record[..length]), "{length} bytes of {} were taken for a record", record.len());
            }
            for (position, bit) in (0..record.len()).flat_map(|position| (0..8).map(move |bit| (position, bit))) {
                let mut flipped = record.to_vec();
                flipped[position] ^= 1 << bit;
                assert!(is_refused(&flipped), "bit {bit} of byte {position} was flipped, and nobody noticed");
            }
        }
    }
}
