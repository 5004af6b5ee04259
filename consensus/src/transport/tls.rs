//! Mutual TLS between members. A peer's certificate must come from the cluster's authority and bear the cluster's peer name,
//! so that neither another cluster's master nor a client of this cluster can speak as a peer.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, verify_server_name},
    server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};

/// The keys of one member, as PEM.
#[derive(Clone)]
pub struct PeerTls {
    /// The authority that signs every peer's certificate.
    pub ca_pem: String,
    /// This member's certificate, with [`peer_dns_name`] among its DNS names, good for servers and clients.
    pub cert_pem: String,
    pub key_pem: String,
}

/// What is wrong with a member's keys.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("invalid cluster id {0:?}: must be a DNS label of at most 63 lower case letters, digits and hyphens")]
    ClusterId(String),
    #[error("invalid PEM in the peer {what}: {reason}")]
    Pem { what: &'static str, reason: String },
    #[error("the peer certificate does not work: {0}")]
    Certificate(String),
    #[error("the peer certificate does not bear the name {0}")]
    Name(String),
}

/// The DNS name that every peer certificate of a cluster bears.
pub fn peer_dns_name(cluster_id: &str) -> String {
    format!("{cluster_id}.peers.trireme.internal")
}

/// The certificate that a member shows in each new connection, at either end.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Both ends of a member's connections.
#[derive(Clone)]
pub(super) struct TlsEnds {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
    shown: Arc<Shown>,
    /// What a peer, at either end, must prove to be.
    pub name: ServerName<'static>,
}

impl TlsEnds {
    pub fn new(tls: &PeerTls, cluster_id: &str) -> Result<Self, TlsError> {
        let is_label = !cluster_id.is_empty()
            && cluster_id.len() <= 63
            && cluster_id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !cluster_id.starts_with('-')
            && !cluster_id.ends_with('-');
        if !is_label {
            return Err(TlsError::ClusterId(cluster_id.to_owned()));
        }
        let dns_name = peer_dns_name(cluster_id);
        let name = ServerName::try_from(dns_name).map_err(|_| TlsError::ClusterId(cluster_id.to_owned()))?;

        let mut roots = RootCertStore::empty();
        for certificate in certificates("authority", &tls.ca_pem)? {
            roots.add(certificate).map_err(|error| TlsError::Certificate(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let shown = Arc::new(Shown(RwLock::new(certified(tls, &name)?)));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let broken = |error: rustls::Error| TlsError::Certificate(error.to_string());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| TlsError::Certificate(error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(broken)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(shown.clone());
        server.alpn_protocols = vec![b"h2".to_vec()];
        // A session that is resumed would go on with the peer's certificate of before, which may have ended since.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(broken)?
            .with_root_certificates(roots)
            .with_client_cert_resolver(shown.clone());
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { server: Arc::new(server), client: Arc::new(client), shown, name })
    }

    /// Shows the certificate of `tls` in new connections. The authority stays the one of the start.
    pub fn replace(&self, tls: &PeerTls) -> Result<(), TlsError> {
        *self.shown.0.write() = certified(tls, &self.name)?;
        Ok(())
    }

    /// Whether the certificate that a client showed (and whose chain was verified) is a peer's of this cluster.
    pub fn admits(&self, peer: Option<&[CertificateDer<'_>]>) -> bool {
        peer.and_then(|chain| chain.first()).is_some_and(|certificate| bears_name(certificate, &self.name))
    }
}

/// The member's certificate and key, if they belong together and the certificate is a peer's.
fn certified(tls: &PeerTls, name: &ServerName<'_>) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates("certificate", &tls.cert_pem)?;
    let key = PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes())
        .map_err(|error| TlsError::Pem { what: "key", reason: error.to_string() })?;
    let own = chain.first().ok_or(TlsError::Pem { what: "certificate", reason: "there is none".to_owned() })?;
    if !bears_name(own, name) {
        return Err(TlsError::Name(name.to_str().into_owned()));
    }
    let pair = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider());
    pair.map(Arc::new).map_err(|error| TlsError::Certificate(error.to_string()))
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::Pem { what, reason: error.to_string() })
}

fn bears_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok())
}
