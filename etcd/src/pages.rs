//! The pages that etcd serves beside its API, for probes and for what collects metrics: `/health`, `/metrics`, `/version`.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use tonic::body::Body;

use crate::server::{EtcdServer, SERVED_VERSION};

const JSON: &str = "application/json";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    Health,
    Metrics,
    Version,
}

impl Page {
    /// The page at a path, if there is one.
    pub fn at(path: &str) -> Option<Self> {
        match path {
            "/health" => Some(Self::Health),
            "/metrics" => Some(Self::Metrics),
            "/version" => Some(Self::Version),
            _ => None,
        }
    }
}

fn text(code: StatusCode, content_type: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

impl EtcdServer {
    pub(crate) async fn page(&self, page: Page, method: &Method) -> Response<Body> {
        if method != Method::GET && method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "Method Not Allowed\n".to_owned());
        }
        match page {
            Page::Health => match self.fault().await {
                None => text(StatusCode::OK, JSON, r#"{"health":"true","reason":""}"#.to_owned()),
                Some(reason) => {
                    let reason = reason.replace(['"', '\\'], "'");
                    text(StatusCode::SERVICE_UNAVAILABLE, JSON, format!(r#"{{"health":"false","reason":"{reason}"}}"#))
                }
            },
            Page::Metrics => text(StatusCode::OK, OPEN_METRICS, (self.inner.metrics)()),
            Page::Version => {
                let cluster = SERVED_VERSION.rsplit_once('.').map_or(SERVED_VERSION, |(minor, _)| minor);
                let body = format!(r#"{{"etcdserver":"{SERVED_VERSION}","etcdcluster":"{cluster}.0"}}"#);
                text(StatusCode::OK, JSON, body)
            }
        }
    }

    /// Why this member is not healthy: an alarm, no leader, or a linearizable read that fails.
    async fn fault(&self) -> Option<String> {
        if let Some(alarm) = self.inner.group.alarms().await.first() {
            return Some(format!("ALARM {:?}", alarm.kind).to_uppercase());
        }
        if self.inner.group.leader().is_none() {
            return Some("RAFT NO LEADER".to_owned());
        }
        self.inner.store.read_barrier().await.err().map(|error| format!("RANGE ERROR:{error}"))
    }
}
