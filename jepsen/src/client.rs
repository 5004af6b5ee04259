//! A client of one master's etcd API, with the administrator's certificate.

use std::{fs, path::Path, time::Duration};

use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use trireme_etcd::proto::etcdserverpb::{
    CompactionRequest, HashKvRequest, LeaseGrantRequest, Member, MemberAddRequest, MemberListRequest, MemberRemoveRequest,
    MoveLeaderRequest, PutRequest, RangeRequest, RequestOp, StatusRequest, StatusResponse, TxnRequest,
    cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    request_op::Request,
};

use crate::checkers::pairs::Stored;

/// How long a connection and a request may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(8);

/// Connections are made when they are needed, and made again when they broke.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
}

type Answer<T> = Result<T, Status>;

impl Client {
    /// A client of the master whose etcd API is on `port`. `pki` holds `ca.crt`, `admin.crt` and `admin.key`.
    ///
    /// # Panics
    /// When these files are not there or cannot be used.
    pub fn new(port: u16, pki: &Path) -> Self {
        let read = |name: &str| fs::read(pki.join(name)).unwrap_or_else(|error| panic!("cannot read {name}: {error}"));
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.crt")))
            .identity(Identity::from_pem(read("admin.crt"), read("admin.key")))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).expect("a URL");
        let endpoint = endpoint.tls_config(tls).expect("usable certificates");
        Self { channel: endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(TIMEOUT).connect_lazy() }
    }

    fn key_values(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// Puts all of these in one transaction; returns its revision.
    pub async fn put_all(&self, pairs: Vec<(String, String)>) -> Answer<i64> {
        let put = |(key, value): (String, String)| {
            let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
            RequestOp { request: Some(Request::RequestPut(put)) }
        };
        let request = TxnRequest { success: pairs.into_iter().map(put).collect(), ..TxnRequest::default() };
        let answer = self.key_values().txn(request).await?.into_inner();
        revision(answer.header)
    }

    /// Puts a key that goes with a lease.
    pub async fn put_leased(&self, key: &str, lease: i64) -> Answer<()> {
        let put = PutRequest { key: key.to_owned().into(), lease, ..PutRequest::default() };
        self.key_values().put(put).await.map(|_| ())
    }

    /// The group's revision, by a linearizable read.
    pub async fn revision(&self) -> Answer<i64> {
        self.newest(false).await
    }

    /// This member's own revision.
    pub async fn own_revision(&self) -> Answer<i64> {
        self.newest(true).await
    }

    async fn newest(&self, serializable: bool) -> Answer<i64> {
        let request = RangeRequest { key: "revision".into(), serializable, ..RangeRequest::default() };
        revision(self.key_values().range(request).await?.into_inner().header)
    }

    /// Whether a key is there, by a linearizable read.
    pub async fn has(&self, key: &str) -> Answer<bool> {
        let request = RangeRequest { key: key.to_owned().into(), count_only: true, ..RangeRequest::default() };
        Ok(self.key_values().range(request).await?.into_inner().count > 0)
    }

    /// What this member itself holds under `prefix`, as it was at `revision`.
    pub async fn stored(&self, prefix: &str, revision: i64) -> Answer<Stored> {
        let request = RangeRequest {
            key: prefix.to_owned().into(),
            range_end: end_of(prefix).into(),
            serializable: true,
            revision,
            ..RangeRequest::default()
        };
        let found = self.key_values().range(request).await?.into_inner().kvs;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(found.iter().map(|one| (text(&one.key), (text(&one.value), one.mod_revision))).collect())
    }

    /// Drops the history below `revision`.
    pub async fn compact(&self, revision: i64) -> Answer<()> {
        self.key_values().compact(CompactionRequest { revision, physical: false }).await.map(|_| ())
    }

    /// The hash of everything that this member holds, as it was at `revision`.
    pub async fn hash(&self, revision: i64) -> Answer<u32> {
        Ok(self.maintenance().hash_kv(HashKvRequest { revision }).await?.into_inner().hash)
    }

    fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    pub async fn status(&self) -> Answer<StatusResponse> {
        Ok(self.maintenance().status(StatusRequest {}).await?.into_inner())
    }

    /// Has the member `target` lead. Only the leader does that.
    pub async fn move_leader(&self, target: u64) -> Answer<()> {
        self.maintenance().move_leader(MoveLeaderRequest { target_id: target }).await.map(|_| ())
    }

    /// Grants a lease and returns its id.
    pub async fn grant_lease(&self, ttl_seconds: i64) -> Answer<i64> {
        let request = LeaseGrantRequest { ttl: ttl_seconds, id: 0 };
        Ok(LeaseClient::new(self.channel.clone()).lease_grant(request).await?.into_inner().id)
    }

    fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    /// Adds a member without a vote.
    pub async fn add_learner(&self, peer_url: &str) -> Answer<()> {
        let request = MemberAddRequest { peer_ur_ls: vec![peer_url.to_owned()], is_learner: true, ..MemberAddRequest::default() };
        self.cluster().member_add(request).await.map(|_| ())
    }

    pub async fn members(&self) -> Answer<Vec<Member>> {
        Ok(self.cluster().member_list(MemberListRequest { linearizable: true }).await?.into_inner().members)
    }

    pub async fn remove_member(&self, id: u64) -> Answer<()> {
        self.cluster().member_remove(MemberRemoveRequest { id }).await.map(|_| ())
    }
}

fn revision(header: Option<trireme_etcd::proto::etcdserverpb::ResponseHeader>) -> Answer<i64> {
    header.map(|header| header.revision).ok_or_else(|| Status::internal("the answer has no header"))
}

/// The end of the range of all keys that begin with `prefix`, which ends with a plain character.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
