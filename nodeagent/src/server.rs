//! The agent's own HTTPS API, as the kubelet's: logs, health, pods, metrics. Who may connect is the business of the TLS
//! configuration, which asks for client certificates of the cluster's authority; who may ask for more than health is decided
//! here: the cluster's masters, not every node.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, RawQuery, Request, State},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures::StreamExt;
use http::{StatusCode, header};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use k8s_openapi::api::core::v1::Pod;
use prometheus_client::{encoding::text::encode, metrics::gauge::Gauge, registry::Registry};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agent,
    log::{options::LogOptions, reader},
    pod::{memory::Observed, model},
    runtime::{ContainerState, ContainerStatus, PodIdentity},
};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connections are waited for at the end.
const DRAIN: Duration = Duration::from_secs(1);

/// Serves until `shutdown`.
pub async fn serve(agent: Arc<Agent>, listener: TcpListener, tls: Arc<rustls::ServerConfig>, shutdown: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    let routes = router(agent);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(acceptor.clone(), stream, routes.clone(), shutdown.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        connections.shutdown().await;
    }
}

async fn connection(acceptor: TlsAcceptor, stream: TcpStream, routes: Router, shutdown: CancellationToken) {
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return,
    };
    let caller = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map_or(Caller::Anyone, |own| Caller::of(own));
    let routes = routes.layer(Extension(caller));
    let builder = Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(routes));
    tokio::pin!(serving);
    tokio::select! {
        _ = serving.as_mut() => {}
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            // Streams of logs end when the process does; the others get to finish.
            let _ = serving.await;
        }
    }
}

/// The paths.
pub fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/pods", get(pods))
        .route("/metrics", get(metrics))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs))
        .layer(from_fn(authorize))
        .route("/healthz", get(async || "ok"))
        .with_state(agent)
}

/// Who asks, by the certificate of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// An API server or an administrator.
    Masters,
    Anyone,
}

/// The group that may do everything (the kubelet's authorization asks the API; this is what it would say).
const MASTERS: &str = "system:masters";

impl Caller {
    fn of(certificate: &[u8]) -> Caller {
        let is_master = x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, certificate)| {
            certificate.subject().iter_organization().any(|organization| organization.as_str() == Ok(MASTERS))
        });
        if is_master { Caller::Masters } else { Caller::Anyone }
    }
}

async fn authorize(request: Request, next: Next) -> Response {
    match request.extensions().get() {
        Some(Caller::Masters) => next.run(request).await,
        Some(Caller::Anyone) | None => {
            (StatusCode::FORBIDDEN, format!("Forbidden: only members of {MASTERS} may ask for this")).into_response()
        }
    }
}

async fn pods(State(agent): State<Arc<Agent>>) -> Response {
    let items: Vec<Arc<Pod>> = agent.pods.read().values().cloned().collect();
    let items: Vec<&Pod> = items.iter().map(AsRef::as_ref).collect();
    Json(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })).into_response()
}

async fn metrics(State(agent): State<Arc<Agent>>) -> Response {
    let containers = agent.runtime.list_containers().await.unwrap_or_default();
    let running: Vec<&ContainerStatus> =
        containers.iter().filter(|container| container.state == ContainerState::Running).collect();
    let pods: std::collections::HashSet<&str> = running.iter().map(|container| container.pod.uid.as_str()).collect();
    let mut registry = Registry::default();
    let mut add = |name: &str, help: &str, value: usize| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    add("kubelet_running_pods", "Number of pods that have a running container", pods.len());
    add("kubelet_running_containers", "Number of containers currently running", running.len());
    add("kubelet_desired_pods", "The number of pods the kubelet is being instructed to run", agent.pods.read().len());
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn logs(
    State(agent): State<Arc<Agent>>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    match open_logs(agent, &namespace, &name, &container, &query.unwrap_or_default()).await {
        Ok(body) => ([(header::CONTENT_TYPE, "text/plain")], body).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

type Refusal = (StatusCode, String);

async fn open_logs(agent: Arc<Agent>, namespace: &str, name: &str, container: &str, query: &str) -> Result<Body, Refusal> {
    let decoded: Vec<(String, String)> = decode_query(query);
    let pairs = decoded.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let options = LogOptions::parse(pairs, agent.clock.now()).map_err(|message| (StatusCode::BAD_REQUEST, message))?;
    let found = {
        let pods = agent.pods.read();
        let same =
            |pod: &&Arc<Pod>| pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name);
        // A pod that is being replaced may be here twice; the one that is not going is meant.
        let mut matching: Vec<Arc<Pod>> = pods.values().filter(same).cloned().collect();
        matching.sort_by_key(|pod| pod.metadata.deletion_timestamp.is_some());
        matching.into_iter().next()
    };
    let pod = found.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{name}_{namespace}\" not found")))?;
    if !model::all_slots(&pod).iter().any(|slot| slot.name() == container) {
        return Err((StatusCode::NOT_FOUND, format!("container {container:?} not found in pod \"{name}_{namespace}\"")));
    }
    let identity = model::identity(&pod);
    let (sandboxes, containers) =
        agent.runtime.pod_state(&identity).await.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let instance = choose(&pod, &Observed::new(sandboxes, containers), container, &options)?;
    // Opened here once, so that a missing file is an answer and not a broken stream.
    if let Err(error) = tokio::fs::metadata(&instance.log_path).await {
        return Err((StatusCode::INTERNAL_SERVER_ERROR, format!("failed to open log file {:?}: {error}", instance.log_path)));
    }
    let (sink, source) = mpsc::channel::<Bytes>(16);
    tokio::spawn(async move {
        let ended = || has_ended(&agent, &identity, &instance.id);
        if let Err(error) = reader::read(&instance.log_path, &options, ended, sink).await {
            tracing::debug!(log = %instance.log_path.display(), %error, "reading a log failed");
        }
    });
    Ok(Body::from_stream(ReceiverStream::new(source).map(Ok::<_, std::convert::Infallible>)))
}

async fn has_ended(agent: &Agent, pod: &PodIdentity, id: &str) -> bool {
    match agent.runtime.pod_state(pod).await {
        Ok((_, containers)) => {
            !containers.iter().any(|container| container.id == id && container.state == ContainerState::Running)
        }
        Err(_) => false,
    }
}

/// The instance whose log is meant.
fn choose(pod: &Pod, observed: &Observed, container: &str, options: &LogOptions) -> Result<ContainerStatus, Refusal> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let begun = |status: &&ContainerStatus| status.name == container && status.state != ContainerState::Created;
    let mut instances = observed.containers.iter().filter(begun);
    if options.previous {
        let latest_exited = observed.latest(container).filter(|latest| latest.state == ContainerState::Exited);
        let waits = pod_waits(pod, container);
        // While the next instance is held back, the one that has ended is the previous one.
        let previous = if waits.is_some() && latest_exited.is_some() { latest_exited } else { instances.nth(1) };
        let missing =
            || (StatusCode::BAD_REQUEST, format!("previous terminated container {container:?} in pod {name:?} not found"));
        return previous.cloned().ok_or_else(missing);
    }
    let waiting = || {
        let reason = pod_waits(pod, container).unwrap_or("ContainerCreating");
        (StatusCode::BAD_REQUEST, format!("container {container:?} in pod {name:?} is waiting to start: {reason}"))
    };
    instances.next().cloned().ok_or_else(waiting)
}

fn pod_waits<'a>(pod: &'a Pod, container: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let own = lists.into_iter().flatten().flatten().find(|status| status.name == container)?;
    own.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

/// `a=b&c=d` with percent-encoding and `+` read.
fn decode_query(query: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    };
    query.split('&').filter(|text| !text.is_empty()).map(pair).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = rest.clone().take(2).map(|digit| char::from(digit).to_digit(16)).collect::<Option<Vec<u32>>>();
                match digits.as_deref() {
                    Some([high, low]) => {
                        bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                        rest.nth(1);
                    }
                    _ => bytes.push(b'%'),
                }
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let pairs = decode_query("sinceTime=2026-01-01T00%3A00%3A00%2B02%3A00&follow&a=%zz+b&");
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("sinceTime", "2026-01-01T00:00:00+02:00"), ("follow", ""), ("a", "%zz b")]);
    }
}
