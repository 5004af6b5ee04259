//! The certificates that servers show.

use std::{fs, path::Path, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

const LIMIT: Duration = Duration::from_secs(10);

/// Shakes hands with the server at `port` of this machine, verifying it for `server_name`, with the certificate `<name>.crt` of a
/// folder; returns what it shows.
///
/// # Errors
/// When the server cannot be reached, or either side refuses the other.
pub async fn certificate(port: u16, server_name: &str, folder: &Path, name: &str) -> Result<Vec<u8>, String> {
    let read = |name: String| fs::read(folder.join(&name)).map_err(|error| format!("{name}: {error}"));
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(&read("ca.crt".to_owned())?).map_err(|error| error.to_string())?;
    roots.add(authority).map_err(|error| error.to_string())?;
    let own = CertificateDer::from_pem_slice(&read(format!("{name}.crt"))?).map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(&read(format!("{name}.key"))?).map_err(|error| error.to_string())?;
    let tls = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(vec![own], key);
    let mut tls = tls.map_err(|error| error.to_string())?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let server_name = ServerName::try_from(server_name.to_owned()).map_err(|error| error.to_string())?;
    let shaking = async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        TlsConnector::from(Arc::new(tls)).connect(server_name, stream).await
    };
    let stream = timeout(LIMIT, shaking).await.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    shown.map(|certificate| certificate.to_vec()).ok_or_else(|| "no certificate".to_owned())
}
