//! rustls configurations from PEM files.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::pki::TlsPaths;

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

/// What a server shows and whom it trusts: certificates of the cluster's authority.
pub fn server(paths: &TlsPaths, clients: ClientCertificates) -> Result<ServerConfig> {
    let roots = Arc::new(roots(&paths.ca)?);
    let verifier = WebPkiClientVerifier::builder(roots);
    let verifier = match clients {
        ClientCertificates::Required => verifier,
        ClientCertificates::Optional => verifier.allow_unauthenticated(),
    };
    let (chain, key) = identity(paths)?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier.build()?)
        .with_single_cert(chain, key)
        .with_context(|| format!("{} and {} do not belong together", paths.certificate.display(), paths.key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// What a client shows and whom it trusts.
pub fn client(paths: &TlsPaths) -> Result<ClientConfig> {
    let (chain, key) = identity(paths)?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots(&paths.ca)?)
        .with_client_auth_cert(chain, key)
        .with_context(|| format!("{} and {} do not belong together", paths.certificate.display(), paths.key.display()))?;
    Ok(config)
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("{} holds a certificate that is no authority", path.display()))?;
    }
    Ok(roots)
}

fn identity(paths: &TlsPaths) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let key =
        PrivateKeyDer::from_pem_file(&paths.key).with_context(|| format!("cannot read a key from {}", paths.key.display()))?;
    Ok((certificates(&paths.certificate)?, key))
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
