//! rustls configurations from PEM files, and certificates that change while they are in use.
//!
//! A long-running process shows, in each new connection, the certificate that [`LiveIdentity`] holds at that moment; [`follow`] puts a
//! new one there when the files change.

use std::{
    fmt,
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use parking_lot::RwLock;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::pki::{Certificate, Identity, TlsPaths, certified, read_identity};

/// How often the files are looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// Whether a server lets in clients that show no certificate (they are anonymous then).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    Required,
    Optional,
}

/// Makes ring the process's provider. Called once, first thing.
pub fn install_provider() {
    // A second call finds a provider installed, which is what it wants.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
}

/// What a client of one moment shows and whom it trusts; for commands that soon end.
pub fn client(paths: &TlsPaths) -> Result<ClientConfig> {
    LiveIdentity::load(paths)?.client()
}

/// A certificate with its key, as its files have it now. Configurations made from it show the newest one in each new connection.
pub struct LiveIdentity {
    paths: TlsPaths,
    current: RwLock<Arc<CertifiedKey>>,
}

impl fmt::Debug for LiveIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LiveIdentity({})", self.paths.certificate.display())
    }
}

impl LiveIdentity {
    /// Reads the files.
    pub fn load(paths: &TlsPaths) -> Result<Arc<Self>> {
        let pair = pair(&read_identity(&paths.certificate, &paths.key)?)?;
        Ok(Arc::new(Self { paths: paths.clone(), current: RwLock::new(pair) }))
    }

    /// Shows `identity` from now on.
    pub fn replace(&self, identity: &Identity) -> Result<()> {
        *self.current.write() = pair(identity)?;
        Ok(())
    }

    /// What a server shows and whom it trusts: certificates of the cluster's authority.
    pub fn server(self: &Arc<Self>, clients: ClientCertificates) -> Result<ServerConfig> {
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots(&self.paths.ca)?));
        let verifier = match clients {
            ClientCertificates::Required => verifier,
            ClientCertificates::Optional => verifier.allow_unauthenticated(),
        };
        let mut config = ServerConfig::builder().with_client_cert_verifier(verifier.build()?).with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A session that is resumed would go on with the client's certificate of before, which may have ended since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// What a client shows and whom it trusts.
    pub fn client(self: &Arc<Self>) -> Result<ClientConfig> {
        Ok(ClientConfig::builder().with_root_certificates(roots(&self.paths.ca)?).with_client_cert_resolver(self.clone()))
    }

    /// The files of this identity, to be followed.
    pub fn followed(self: &Arc<Self>) -> Followed {
        let live = self.clone();
        Followed::new(&self.paths, move |identity| live.replace(identity))
    }
}

impl ResolvesServerCert for LiveIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

impl ResolvesClientCert for LiveIdentity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn pair(identity: &Identity) -> Result<Arc<CertifiedKey>> {
    certified(identity)?.context("the certificate and the key do not belong together")
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("{} holds a certificate that is no authority", path.display()))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read a certificate from {}", path.display()))?;
    if found.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(found)
}

/// How a file looks from outside: another one in its place looks different.
type Look = Option<(u64, u64, SystemTime)>;

fn look(path: &Path) -> Look {
    let seen = |file: Metadata| Some((file.ino(), file.len(), file.modified().ok()?));
    std::fs::metadata(path).ok().and_then(seen)
}

/// Takes over what the files hold now.
type Take = Box<dyn Fn(&Identity) -> Result<()> + Send + Sync>;

/// The files of one certificate, and who is told when they change.
pub struct Followed {
    paths: TlsPaths,
    take: Take,
    /// How the files looked when they were last taken over, or said to be of no use; `None` before the first look.
    known: Option<[Look; 2]>,
}

impl Followed {
    pub fn new(paths: &TlsPaths, take: impl Fn(&Identity) -> Result<()> + Send + Sync + 'static) -> Self {
        Self { paths: paths.clone(), take: Box::new(take), known: None }
    }

    fn look(&self) -> [Look; 2] {
        [look(&self.paths.certificate), look(&self.paths.key)]
    }

    /// Takes over the files if they have changed. Files that are no pair, or not yet, are left for the next time, and what was there
    /// before stays in use.
    fn check(&mut self) {
        let now = self.look();
        if self.known == Some(now) {
            return;
        }
        let path = self.paths.certificate.display();
        let taken = read_identity(&self.paths.certificate, &self.paths.key).and_then(|identity| {
            (self.take)(&identity)?;
            Certificate::parse(&identity.certificate)
        });
        match taken {
            // The first look finds what the process was started with.
            Ok(_) if self.known.is_none() => {}
            Ok(certificate) => info!(%path, not_after = %certificate.not_after, "took over a new certificate"),
            Err(error) => warn!("{path} has changed and cannot be used: {error:#}; the one of before stays in use"),
        }
        self.known = Some(now);
    }
}

/// Follows the files until `shutdown`.
pub async fn follow(mut files: Vec<Followed>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let checking = tokio::task::spawn_blocking(move || {
            files.iter_mut().for_each(Followed::check);
            files
        });
        match checking.await {
            Ok(checked) => files = checked,
            Err(error) => return warn!(%error, "certificates are not followed any more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jiff::Timestamp;

    use super::*;
    use crate::pki::{Authority, KeyFolder, Lifetime, Subject};

    #[test]
    fn files_that_change_are_taken_over_and_a_mixed_pair_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let authority = Authority::open(folder.path(), now).unwrap();
        let files = KeyFolder::new(folder.path());
        let issue = || authority.issue(&Subject::admin(), Lifetime::days(30), now).unwrap();
        files.write("admin", &issue()).unwrap();
        let paths = TlsPaths::in_folder(folder.path(), "admin");
        let live = LiveIdentity::load(&paths).unwrap();
        let shown = || live.current.read().cert[0].clone();
        let certificate = |identity: &Identity| CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
        let mut followed = live.followed();
        followed.check();

        let (first, second) = (shown(), issue());
        files.write("admin", &second).unwrap();
        assert_eq!(shown(), first);
        followed.check();
        assert_eq!(shown(), certificate(&second));

        // Somebody copies new files over the old ones: first one, then the other.
        let third = issue();
        fs::write(files.key("admin"), &third.key).unwrap();
        followed.check();
        assert_eq!(shown(), certificate(&second));
        fs::write(files.certificate("admin"), &third.certificate).unwrap();
        followed.check();
        assert_eq!(shown(), certificate(&third));
        fs::remove_file(files.certificate("admin")).unwrap();
        followed.check();
        assert_eq!(shown(), certificate(&third));
    }
}
