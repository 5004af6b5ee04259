//! The Maintenance service.

use std::pin::Pin;

use futures::{Stream, TryFutureExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use trireme_storage::{content::Content, model::Revision, portable::PortableSnapshot, store::StoreError};

use crate::{
    caller::Caller,
    convert::signed,
    error::{EtcdError, note_reason, refuse, refuse_change},
    group::{Alarm, AlarmKind, GroupError},
    proto::etcdserverpb::{
        AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, DowngradeRequest,
        DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse,
        SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse, alarm_request::AlarmAction,
        downgrade_request::DowngradeAction, maintenance_server::Maintenance,
    },
    server::{EtcdServer, SERVED_VERSION},
};

/// A snapshot is sent in pieces of so many bytes.
const PIECE_BYTES: usize = 64 << 10;
/// So many pieces wait for a client that is slow.
const PIECES: usize = 4;

fn alarm_type(kind: AlarmKind) -> AlarmType {
    match kind {
        AlarmKind::NoSpace => AlarmType::Nospace,
        AlarmKind::Corrupt => AlarmType::Corrupt,
    }
}

/// How etcd's status words an alarm.
fn words(alarm: &Alarm) -> String {
    format!("memberID:{} alarm:{} ", alarm.member_id, alarm_type(alarm.kind).as_str_name())
}

/// etcd's hashes have 32 bits.
fn folded(content: Content) -> u32 {
    let mixed = content.sum ^ content.keys.rotate_left(32);
    (mixed ^ (mixed >> 32)) as u32
}

impl EtcdServer {
    async fn status_now(&self) -> Result<StatusResponse, EtcdError> {
        let progress = self.inner.group.progress().await?;
        let size = signed(progress.size_bytes);
        Ok(StatusResponse {
            header: self.header(),
            version: SERVED_VERSION.to_owned(),
            db_size: size,
            leader: progress.leader.unwrap_or(0),
            raft_index: progress.committed,
            raft_term: progress.term.0,
            raft_applied_index: progress.applied,
            errors: self.inner.group.alarms().await.iter().map(words).collect(),
            db_size_in_use: size,
            is_learner: progress.is_learner,
        })
    }

    async fn hash_at(&self, revision: i64) -> Result<HashKvResponse, EtcdError> {
        let store = &self.inner.store;
        let asked = u64::try_from(revision).ok().filter(|revision| *revision > 0).map(Revision);
        let revision = asked.unwrap_or_else(|| store.revision());
        store.check_serving()?;
        let content = store.content_at(revision).await?;
        Ok(HashKvResponse {
            header: self.header(),
            hash: folded(content),
            compact_revision: signed(store.compacted_revision().0),
            hash_revision: signed(revision.0),
        })
    }

    /// Alarms say what is so; they go when it is no longer so. Nothing can be switched by them, so that to disarm one changes
    /// nothing, and to raise one is refused.
    async fn alarms(&self, request: AlarmRequest, caller: Caller) -> Result<AlarmResponse, EtcdError> {
        let (action, kind) = (request.action(), request.alarm());
        let is_meant = |alarm: &Alarm| {
            (request.member_id == 0 || alarm.member_id == request.member_id)
                && (kind == AlarmType::None || alarm_type(alarm.kind) == kind)
        };
        let raised = match action {
            AlarmAction::Get => self.inner.group.alarms().await,
            AlarmAction::Deactivate => {
                caller.check_administrator()?;
                Vec::new()
            }
            AlarmAction::Activate => return Err(EtcdError::NotSupported("alarms are raised by the members themselves")),
        };
        let alarms = raised.iter().filter(|alarm| is_meant(alarm));
        let alarms = alarms.map(|alarm| AlarmMember { member_id: alarm.member_id, alarm: alarm_type(alarm.kind).into() });
        Ok(AlarmResponse { header: self.header(), alarms: alarms.collect() })
    }

    /// Asked of the leader alone, as in etcd.
    async fn move_leader_to(&self, target: u64, caller: Caller) -> Result<MoveLeaderResponse, Status> {
        caller.check_administrator().map_err(refuse)?;
        let group = &self.inner.group;
        if group.leader() != Some(group.member_id()) {
            return Err(refuse(EtcdError::NotLeader));
        }
        let is_voter = group.members().await.iter().any(|member| member.id == target && !member.is_learner);
        if !is_voter {
            return Err(refuse(EtcdError::BadLeaderTransferee));
        }
        if target != group.member_id() {
            match group.move_leader(target).await {
                Err(error @ (GroupError::NotReady(_) | GroupError::Unhealthy(_) | GroupError::Failed(_))) => {
                    let mut status = refuse(EtcdError::LeaderTransferTimeout);
                    note_reason(&mut status, &error);
                    return Err(status);
                }
                done => done.map_err(refuse_change)?,
            }
        }
        Ok(MoveLeaderResponse { header: self.header() })
    }

    /// Reads a snapshot out, piece by piece, as fast as the client takes it.
    async fn send_snapshot(&self, pieces: &mpsc::Sender<Result<SnapshotResponse, Status>>) -> Result<(), StoreError> {
        self.inner.store.check_serving()?;
        let source = self.inner.group.snapshot().await?;
        let failed = |error: tokio::task::JoinError| StoreError::Failed(error.to_string());
        let mut snapshot = PortableSnapshot::taken_at(source, Some(self.inner.leases.now_ms()))?;
        let header = self.header_at(snapshot.revision());
        let mut remaining = snapshot.size_bytes();
        loop {
            let reading = tokio::task::spawn_blocking(move || (snapshot.read(PIECE_BYTES), snapshot));
            let (piece, rest) = reading.map_err(failed).await?;
            snapshot = rest;
            let Some(blob) = piece? else { return Ok(()) };
            remaining -= blob.len() as u64;
            let response = SnapshotResponse { header, remaining_bytes: remaining, blob, version: SERVED_VERSION.to_owned() };
            if pieces.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
    }
}

#[tonic::async_trait]
impl Maintenance for EtcdServer {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let caller = Caller::from_request(&request);
        self.alarms(request.into_inner(), caller).await.map(Response::new).map_err(refuse)
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.status_now().await.map(Response::new).map_err(refuse)
    }

    /// There is nothing to defragment: the store gives space back by itself.
    async fn defragment(&self, _request: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        Ok(Response::new(DefragmentResponse { header: self.header() }))
    }

    async fn hash(&self, _request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let HashKvResponse { header, hash, .. } = self.hash_at(0).await.map_err(refuse)?;
        Ok(Response::new(HashResponse { header, hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        self.hash_at(request.into_inner().revision).await.map(Response::new).map_err(refuse)
    }

    async fn snapshot(&self, _request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let (pieces, answers) = mpsc::channel(PIECES);
        let server = self.clone();
        tokio::spawn(async move {
            let sent = tokio::select! {
                sent = server.send_snapshot(&pieces) => sent,
                () = server.inner.shutdown.cancelled() => Err(StoreError::Unavailable("this member shuts down".to_owned())),
            };
            if let Err(error) = sent {
                // The client may have gone.
                let _ = pieces.send(Err(refuse(error))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        let caller = Caller::from_request(&request);
        self.move_leader_to(request.into_inner().target_id, caller).await.map(Response::new)
    }

    /// A store is never written in an older format.
    async fn downgrade(&self, request: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        Err(refuse(match request.into_inner().action() {
            DowngradeAction::Validate | DowngradeAction::Enable => EtcdError::InvalidDowngradeTarget,
            DowngradeAction::Cancel => EtcdError::NoDowngrade,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corrupt_member_is_worded_as_etcds() {
        let alarm = Alarm { member_id: 7, kind: AlarmKind::Corrupt };
        assert_eq!(words(&alarm), "memberID:7 alarm:CORRUPT ");
    }

    #[test]
    fn alarms_are_worded_as_etcds() {
        let alarm = Alarm { member_id: 7, kind: AlarmKind::NoSpace };
        assert_eq!(words(&alarm), "memberID:7 alarm:NOSPACE ");
    }
}
