//! A server over a store of its own, a group of one, and clients of both.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use tonic::Request;
use trireme_etcd::{
    Caller, EtcdServer, EtcdServerConfig,
    group::{Alarm, Group, GroupError, MemberInfo, NewMember, Progress},
    proto::etcdserverpb::{
        PutRequest, RangeRequest, RangeResponse, cluster_client::ClusterClient, cluster_server::ClusterServer,
        kv_client::KvClient, kv_server::KvServer, lease_client::LeaseClient, lease_server::LeaseServer,
        maintenance_client::MaintenanceClient, maintenance_server::MaintenanceServer, watch_client::WatchClient,
        watch_server::WatchServer,
    },
};
use trireme_storage::{local::LocalStore, model::Term, snapshot::SnapshotSource, store::StoreError};

pub const CLUSTER_ID: u64 = 77;
pub const MEMBER_ID: u64 = 7;

/// A group whose members are what the test says.
pub struct FakeGroup {
    store: Arc<LocalStore>,
    pub members: Mutex<Vec<MemberInfo>>,
    pub alarms: Mutex<Vec<Alarm>>,
}

pub fn member(id: u64, address: &str, is_learner: bool) -> MemberInfo {
    MemberInfo {
        id,
        name: format!("m{id}"),
        peer_urls: vec![format!("https://{address}")],
        client_urls: vec![format!("https://m{id}:2379")],
        zone: String::new(),
        is_learner,
    }
}

impl FakeGroup {
    fn change(&self, id: u64, change: impl FnOnce(&mut MemberInfo) -> Result<(), GroupError>) -> Result<(), GroupError> {
        let mut members = self.members.lock();
        change(members.iter_mut().find(|member| member.id == id).ok_or(GroupError::NotFound)?)
    }
}

#[async_trait]
impl Group for FakeGroup {
    fn cluster_id(&self) -> u64 {
        CLUSTER_ID
    }

    fn cluster(&self) -> String {
        "test".to_owned()
    }

    fn member_id(&self) -> u64 {
        MEMBER_ID
    }

    fn term(&self) -> Term {
        Term(3)
    }

    fn leader(&self) -> Option<u64> {
        Some(MEMBER_ID)
    }

    async fn progress(&self) -> Result<Progress, GroupError> {
        let (leader, term) = (self.leader(), self.term());
        Ok(Progress { leader, term, committed: 12, applied: 11, is_learner: false, size_bytes: 4096 })
    }

    async fn members(&self) -> Vec<MemberInfo> {
        self.members.lock().clone()
    }

    async fn add_learner(&self, NewMember { address, name, zone }: NewMember) -> Result<u64, GroupError> {
        let mut members = self.members.lock();
        let url = format!("https://{address}");
        if members.iter().any(|member| member.peer_urls.contains(&url)) {
            return Err(GroupError::AddressTaken);
        }
        let id = 100 + members.len() as u64;
        members.push(MemberInfo { name, zone, client_urls: Vec::new(), ..member(id, &address, true) });
        Ok(id)
    }

    async fn promote_later(&self, id: u64) {
        self.promote(id).await.expect("the fake learner is there");
    }

    async fn promote(&self, id: u64) -> Result<(), GroupError> {
        self.change(id, |member| if !std::mem::take(&mut member.is_learner) { Err(GroupError::NotLearner) } else { Ok(()) })
    }

    async fn remove(&self, id: u64) -> Result<(), GroupError> {
        if id == MEMBER_ID {
            return Err(GroupError::QuorumLost("7 is the last voter".to_owned()));
        }
        self.change(id, |_| Ok(()))?;
        self.members.lock().retain(|member| member.id != id);
        Ok(())
    }

    async fn update(&self, id: u64, address: String) -> Result<(), GroupError> {
        self.change(id, |member| {
            member.peer_urls = vec![format!("https://{address}")];
            Ok(())
        })
    }

    async fn move_leader(&self, _id: u64) -> Result<(), GroupError> {
        Ok(())
    }

    async fn alarms(&self) -> Vec<Alarm> {
        self.alarms.lock().clone()
    }

    async fn snapshot(&self) -> Result<SnapshotSource, StoreError> {
        self.store.state_machine().begin_snapshot()
    }
}

/// A server and what is behind it.
pub struct Service {
    pub store: Arc<LocalStore>,
    pub group: Arc<FakeGroup>,
    pub server: EtcdServer,
}

impl Service {
    pub fn new() -> Self {
        Self::with_progress_period(Duration::from_secs(600))
    }

    pub fn with_progress_period(progress_period: Duration) -> Self {
        let store = Arc::new(LocalStore::in_memory().unwrap());
        let members = Mutex::new(vec![member(MEMBER_ID, "m7:2380", false)]);
        let group = Arc::new(FakeGroup { store: store.clone(), members, alarms: Mutex::default() });
        let server = EtcdServer::new(EtcdServerConfig {
            store: store.clone(),
            leases: store.clone(),
            group: group.clone(),
            random_seed: [1; 32],
            progress_period,
            metrics: Arc::new(|| "# EOF\n".to_owned()),
        });
        Self { store, group, server }
    }

    pub fn key_values(&self) -> KvClient<KvServer<EtcdServer>> {
        KvClient::new(KvServer::new(self.server.clone()))
    }

    pub fn watches(&self) -> WatchClient<WatchServer<EtcdServer>> {
        WatchClient::new(WatchServer::new(self.server.clone()))
    }

    pub fn leases(&self) -> LeaseClient<LeaseServer<EtcdServer>> {
        LeaseClient::new(LeaseServer::new(self.server.clone()))
    }

    pub fn cluster(&self) -> ClusterClient<ClusterServer<EtcdServer>> {
        ClusterClient::new(ClusterServer::new(self.server.clone()))
    }

    pub fn maintenance(&self) -> MaintenanceClient<MaintenanceServer<EtcdServer>> {
        MaintenanceClient::new(MaintenanceServer::new(self.server.clone()))
    }

    /// Puts a key and returns the revision.
    pub async fn put(&self, key: &str, value: &str) -> i64 {
        let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
        self.key_values().put(put).await.unwrap().into_inner().header.unwrap().revision
    }

    pub async fn range(&self, request: RangeRequest) -> RangeResponse {
        self.key_values().range(request).await.unwrap().into_inner()
    }
}

/// A request of a member of `system:masters`.
pub fn by_administrator<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Caller::Administrator);
    request
}

/// The whole key space.
pub fn everything() -> RangeRequest {
    RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..RangeRequest::default() }
}

/// The keys of an answer, joined by commas.
pub fn keys(response: &RangeResponse) -> String {
    let keys: Vec<_> = response.kvs.iter().map(|found| String::from_utf8(found.key.to_vec()).unwrap()).collect();
    keys.join(",")
}
