//! A certificate authority for tests, and certificates that change while a group runs.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use trireme_consensus::{PeerTls, TlsError};

use crate::cluster::{Cluster, converge, read, write};

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    /// Keys whose certificate bears `dns_name`.
    pub fn keys(&self, dns_name: &str) -> PeerTls {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![dns_name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        PeerTls { ca_pem: self.issuer.pem(), cert_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_show_new_certificates_without_a_restart() {
    let mut cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    write(&cluster.members[&leader], "key", "before").await.unwrap();
    for member in cluster.members.values() {
        let foreign = member.replace_keys(&cluster.authority.keys("somebody.else"));
        assert!(matches!(foreign, Err(TlsError::Name(_))), "{foreign:?}");
        let mixed = PeerTls { key_pem: cluster.keys().key_pem, ..cluster.keys() };
        assert!(member.replace_keys(&mixed).is_err(), "a key of another certificate");
        member.replace_keys(&cluster.keys()).unwrap();
    }
    // Every connection of this one is made anew, in both directions.
    let follower = cluster.followers(leader)[0];
    cluster.kill(follower).await;
    cluster.restart(follower).await.unwrap();
    write(&cluster.members[&follower], "key", "after").await.unwrap();
    converge(&cluster).await;
    assert_eq!(read(&cluster.members[&leader], "key").await.unwrap().as_deref(), Some("after"));
    cluster.shutdown().await;
}
