//! A healthy group.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use trireme_consensus::{Consensus, ConsensusError, Limits, PeerTls, Role, Timing};
use trireme_storage::{
    model::{Operation, Revision, Term, Transaction},
    store::{Store, StoreError},
};

use crate::cluster::{Cluster, Disk, converge, eventually, id, put, read, read_stale, test_timing, write};

#[tokio::test(flavor = "multi_thread")]
async fn every_member_writes_and_every_member_reads_what_was_written() {
    let cluster = Cluster::start().await;
    let (leader, term) = cluster.leader().await;
    for (writer_id, writer) in &cluster.members {
        let key = format!("from-{writer_id}");
        let written = write(writer, &key, "value").await.unwrap();
        // The member that answered has applied the write itself.
        assert_eq!(read_stale(writer, &key).await.unwrap().as_deref(), Some("value"));
        assert!(writer.revision() >= written.revision);
        for reader in cluster.members.values() {
            assert_eq!(read(reader, &key).await.unwrap().as_deref(), Some("value"));
        }
    }
    let (revision, _) = converge(&cluster).await;
    assert_eq!(revision, Revision(3));
    assert!(cluster.links.dialled() > 0, "the members speak over the test's network");
    // Nothing of this needed an election.
    assert_eq!(cluster.leader().await, (leader, term));
    for status in cluster.statuses() {
        assert_eq!(status.members.len(), 3);
        assert_eq!(status.leader, Some(leader));
        let expected = if status.node_id == leader { Role::Leader } else { Role::Follower };
        assert_eq!(status.role, expected);
    }
    let mut registry = prometheus_client::registry::Registry::default();
    cluster.members[&leader].register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in ["etcd_server_has_leader 1", "etcd_server_is_leader 1", "etcd_server_leader_changes_seen_total 1"] {
        assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("etcd_disk_wal_fsync_duration_seconds_count"), "{text}");
    let asked = cluster.members[&leader].peer_status(cluster.followers(leader)[0]).await.unwrap();
    assert_eq!(asked.role, Role::Follower);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_share_entries_and_lose_nothing() {
    let cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    let before = cluster.members[&leader].status().last_log.unwrap();
    let mut writers = Vec::new();
    const WRITERS: usize = 96;
    const WRITES: usize = 20;
    for writer in 0..WRITERS {
        let ids = cluster.ids();
        let member = cluster.members[&ids[writer % ids.len()]].clone();
        writers.push(tokio::spawn(async move {
            for number in 0..WRITES {
                member.transact(put(format!("{writer}/{number}"), "x".repeat(100))).await.unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let (revision, _) = converge(&cluster).await;
    assert_eq!(revision, Revision((WRITERS * WRITES) as u64));
    let entries = cluster.members[&leader].status().last_log.unwrap() - before;
    assert!(entries < (WRITERS * WRITES) as u64, "{entries} entries: waiting writes share an entry");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_member_is_a_group() {
    let cluster = Cluster::start_with(1, test_timing(), Limits::default(), |_| Disk::in_memory()).await;
    let (only, _) = cluster.leader().await;
    write(&cluster.members[&only], "key", "value").await.unwrap();
    assert_eq!(read(&cluster.members[&only], "key").await.unwrap().as_deref(), Some("value"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_when_asked_and_on_shutdown_and_fences_the_old_leader() {
    let mut cluster = Cluster::start().await;
    let (first, first_term) = cluster.leader().await;
    let fenced =
        |term: Term| Transaction { success: vec![Operation::put("loop", "acts")], fence: Some(term), ..Transaction::default() };
    cluster.members[&first].transact(fenced(first_term)).await.unwrap();

    // A follower passes the request on to the leader.
    let second = cluster.followers(first)[0];
    cluster.members[&second].transfer_leadership(second).await.unwrap();
    let (leader, second_term) = cluster.leader().await;
    assert_eq!(leader, second);
    assert!(second_term > first_term);
    for member in cluster.members.values() {
        let refused = member.transact(fenced(first_term)).await;
        assert_eq!(refused, Err(StoreError::Fenced { stamped: first_term, current: second_term }));
    }
    cluster.members[&first].transact(fenced(second_term)).await.unwrap();

    // A leader that ends on purpose hands over first: the others have a leader at once.
    let leaving = cluster.members.remove(&second).unwrap();
    leaving.shutdown().await;
    assert_eq!(leaving.leadership().borrow().role, Role::Stopped);
    let (third, third_term) = cluster.leader().await;
    assert!(third != second && third_term > second_term);
    write(&cluster.members[&third], "after", "shutdown").await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_history_is_compacted_and_new_history_kept() {
    let timing = Timing {
        history_retention: Duration::from_millis(600),
        compaction_interval: Duration::from_millis(100),
        ..test_timing()
    };
    let cluster = Cluster::start_with(3, timing, Limits::default(), |_| Disk::in_memory()).await;
    let (leader, _) = cluster.leader().await;
    for number in 0..5 {
        write(&cluster.members[&leader], "key", format!("value {number}")).await.unwrap();
    }
    eventually("every member has compacted", || async {
        cluster.members.values().all(|member| member.compacted_revision() >= Revision(5)).then_some(())
    })
    .await;
    for member in cluster.members.values() {
        assert!(matches!(member.watch(Revision(1)).await.map(|_| ()), Err(StoreError::Compacted { .. })));
        assert_eq!(read(member, "key").await.unwrap().as_deref(), Some("value 4"));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_command_is_refused_and_the_group_goes_on() {
    let limits = Limits { command_bytes: 4 << 20, ..Limits::default() };
    let cluster = Cluster::start_with(3, test_timing(), limits, |_| Disk::in_memory()).await;
    let (leader, _) = cluster.leader().await;
    let follower = cluster.followers(leader)[0];
    for member in [leader, follower] {
        let refused = cluster.members[&member].transact(put("large", "x".repeat(5 << 20))).await;
        assert!(matches!(refused, Err(StoreError::InvalidTransaction(_))), "{refused:?}");
        write(&cluster.members[&member], "large", "x".repeat(3 << 20)).await.unwrap();
    }
    converge(&cluster).await;
    cluster.shutdown().await;
}

/// Whether a member answers the HTTP/2 greeting of a client with these keys.
async fn greet(address: &str, keys: &PeerTls) -> bool {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(keys.ca_pem.as_bytes()).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(keys.cert_pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(keys.key_pem.as_bytes()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("test.peers.trireme.internal").unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let Ok(mut stream) = connector.connect(name, stream).await else { return false };
    // The preface and an empty SETTINGS frame.
    if stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.is_err() {
        return false;
    }
    stream.read_u8().await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_turned_away() {
    let mut cluster = Cluster::start_with(1, test_timing(), Limits::default(), |_| Disk::in_memory()).await;
    cluster.leader().await;
    // A certificate of the same authority that is not a peer's does not even start.
    cluster.disks.insert(id(9), Disk::in_memory());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = cluster.config(id(9), listener);
    config.tls = cluster.authority.keys("admin.trireme.internal");
    assert!(matches!(Consensus::start(config).await.map(|_| ()), Err(ConsensusError::Tls(_))));
    // Nor does it get through to a member: the connection is closed before a byte is served.
    let address = cluster.bootstrap[0].1.address.clone();
    for (dns_name, is_peer) in [("admin.trireme.internal", false), ("test.peers.trireme.internal", true)] {
        let answered = greet(&address, &cluster.authority.keys(dns_name)).await;
        assert_eq!(answered, is_peer, "{dns_name}");
    }
    // A folder of another cluster is refused, and so is one of another member.
    let only = id(1);
    cluster.kill(only).await;
    for (cluster_id, node_id) in [("other", only), ("test", id(5))] {
        cluster.disks.insert(node_id, cluster.disks[&only].clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = cluster.config(node_id, listener);
        config.cluster_id = cluster_id.to_owned();
        config.members = Vec::new();
        config.tls = cluster.authority.keys(&trireme_consensus::peer_dns_name(cluster_id));
        let refused = Consensus::start(config).await.map(|_| ());
        assert!(matches!(refused, Err(ConsensusError::OtherCluster { .. } | ConsensusError::OtherMember { .. })), "{refused:?}");
    }
    let broken = PeerTls { ca_pem: "nonsense".into(), cert_pem: String::new(), key_pem: String::new() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = cluster.config(only, listener);
    config.tls = broken;
    assert!(matches!(Consensus::start(config).await.map(|_| ()), Err(ConsensusError::Tls(_))));
}
