//! Making one probe or HTTP hook: exec, HTTP, TCP.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, ExecAction, HTTPGetAction, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    probe::counter::Outcome,
    runtime::{Runtime, RuntimeError},
};

/// Longest answer that is read.
const MOST_BODY_BYTES: usize = 10 << 10;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Result(Outcome, String),
    /// The probe could not be made.
    Unknown(String),
}

/// Where a probe goes.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub runtime: &'a dyn Runtime,
    pub container: &'a Container,
    pub container_id: &'a str,
    /// The pod's address, the default host.
    pub address: &'a str,
}

impl Target<'_> {
    /// Makes a probe.
    pub async fn probe(&self, probe: &Probe, timeout: Duration) -> Found {
        if let Some(exec) = &probe.exec {
            return self.exec(exec, timeout).await;
        }
        let network = async {
            if let Some(action) = &probe.http_get {
                self.http(action).await
            } else if let Some(action) = &probe.tcp_socket {
                self.tcp(action).await
            } else if probe.grpc.is_some() {
                Found::Unknown("gRPC probes are not supported by this node".to_owned())
            } else {
                Found::Unknown("missing probe handler".to_owned())
            }
        };
        match tokio::time::timeout(timeout, network).await {
            Ok(found) => found,
            Err(_) => Found::Result(Outcome::Failure, self.timeout_text(probe)),
        }
    }

    fn timeout_text(&self, probe: &Probe) -> String {
        match &probe.http_get {
            Some(action) => match self.url(action) {
                Ok(url) => {
                    format!("Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)", url.text)
                }
                Err(message) => message,
            },
            None => "dial tcp: i/o timeout".to_owned(),
        }
    }

    async fn exec(&self, exec: &ExecAction, timeout: Duration) -> Found {
        let command = exec.command.clone().unwrap_or_default();
        match self.runtime.exec(self.container_id, &command, timeout).await {
            Ok(output) => {
                let mut text = output.stdout;
                text.extend_from_slice(&output.stderr);
                text.truncate(MOST_BODY_BYTES);
                let text = String::from_utf8_lossy(&text).into_owned();
                let outcome = if output.exit_code == 0 { Outcome::Success } else { Outcome::Failure };
                Found::Result(outcome, text)
            }
            Err(RuntimeError::Timeout(..)) => {
                let command = command.join(" ");
                Found::Result(Outcome::Failure, format!("command timed out: {command:?} timed out after {}s", timeout.as_secs()))
            }
            Err(error) => Found::Unknown(error.to_string()),
        }
    }

    async fn tcp(&self, action: &TCPSocketAction) -> Found {
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(self.address);
        let port = match port(&action.port, self.container) {
            Ok(port) => port,
            Err(message) => return Found::Unknown(message),
        };
        match TcpStream::connect((host, port)).await {
            Ok(_) => Found::Result(Outcome::Success, String::new()),
            Err(error) => Found::Result(Outcome::Failure, format!("dial tcp {host}:{port}: {error}")),
        }
    }

    async fn http(&self, action: &HTTPGetAction) -> Found {
        let url = match self.url(action) {
            Ok(url) => url,
            Err(message) => return Found::Unknown(message),
        };
        match get(&url, action).await {
            Ok((status, body)) if (200..400).contains(&status) => Found::Result(Outcome::Success, body),
            Ok((status, _)) => Found::Result(Outcome::Failure, format!("HTTP probe failed with statuscode: {status}")),
            Err(error) => Found::Result(Outcome::Failure, format!("Get {:?}: {error}", url.text)),
        }
    }

    fn url(&self, action: &HTTPGetAction) -> Result<Url, String> {
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(self.address).to_owned();
        let port = port(&action.port, self.container)?;
        let secure = action.scheme.as_deref() == Some("HTTPS");
        let path = action.path.as_deref().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let scheme = if secure { Scheme::Https } else { Scheme::Http };
        let text = format!("{}://{bracketed}:{port}{path}", scheme.as_str());
        Ok(Url { scheme, authority: format!("{bracketed}:{port}"), host, port, path, text })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

struct Url {
    scheme: Scheme,
    host: String,
    port: u16,
    authority: String,
    path: String,
    text: String,
}

/// A port by number, or by the name that one of the container's ports has.
fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("invalid port number: {port:?}"))
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn get(url: &Url, action: &HTTPGetAction) -> Result<(u16, String), BoxError> {
    let stream = TcpStream::connect((url.host.as_str(), url.port))
        .await
        .map_err(|error| format!("dial tcp {}: {error}", url.authority))?;
    match url.scheme {
        Scheme::Http => exchange(stream, url, action).await,
        Scheme::Https => {
            let connector = tokio_rustls::TlsConnector::from(Arc::new(unverified_tls()?));
            let name = ServerName::try_from(url.host.clone())?;
            exchange(connector.connect(name, stream).await?, url, action).await
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Url,
    action: &HTTPGetAction,
) -> Result<(u16, String), BoxError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let headers: Vec<(&str, &str)> =
        action.http_headers.iter().flatten().map(|header| (header.name.as_str(), header.value.as_str())).collect();
    let given = |wanted: &str| headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
    let mut request = http::Request::get(&url.path);
    for (name, default) in [("host", url.authority.as_str()), ("user-agent", "kube-probe/1.36"), ("accept", "*/*")] {
        if !given(name) {
            request = request.header(name, default);
        }
    }
    for (name, value) in &headers {
        request = request.header(*name, *value);
    }
    let request = request.header("connection", "close").body(Empty::<Bytes>::new())?;
    let talk = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        // A body that is too long or broken off does not change the verdict.
        let body =
            Limited::new(response.into_body(), MOST_BODY_BYTES).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    // The connection may end before its last answer was taken; how it ended is told by the answer.
    let drive = async {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "a probe's connection ended");
        }
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        answer = talk => answer,
        never = drive => match never {},
    }
}

/// TLS that takes any certificate, as the kubelet's probes do.
fn unverified_tls() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AnyCertificate { algorithms: provider.signature_verification_algorithms });
    Ok(ClientConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

#[derive(Debug)]
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "handler_tests.rs"]
mod tests;
