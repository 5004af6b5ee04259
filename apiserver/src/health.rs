//! `/livez`, `/readyz` and `/healthz`, with Kubernetes' checks and output.

use std::{sync::atomic::Ordering, time::Duration};

use http::{HeaderValue, Response, StatusCode, header};

use crate::{
    ApiServer,
    body::{self, ResponseBody},
    router::{Query, path::HealthRoute},
};

/// How long the store may take to confirm that it has a leader.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// One check and how it went.
struct Check {
    name: &'static str,
    failure: Option<String>,
}

/// Carries out the checks of an endpoint, or the one that is asked for.
pub async fn answer(server: &ApiServer, route: HealthRoute, query: Query) -> Response<ResponseBody> {
    let mut checks = checks(server, route.endpoint).await;
    if let Some(name) = &route.check {
        checks.retain(|check| check.name == name.as_str());
        if checks.is_empty() {
            return text(StatusCode::NOT_FOUND, format!("404 page not found: no check {name}\n"));
        }
    }
    checks.retain(|check| !query.all("exclude").any(|excluded| excluded == check.name));
    let has_failed = checks.iter().any(|check| check.failure.is_some());
    let code = if has_failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    if !has_failed && !query.flag("verbose") {
        return text(code, "ok".to_owned());
    }
    let mut report = String::new();
    for check in &checks {
        match &check.failure {
            None => report.push_str(&format!("[+]{} ok\n", check.name)),
            Some(why) => report.push_str(&format!("[-]{} failed: {why}\n", check.name)),
        }
    }
    let verdict = if has_failed { "failed" } else { "passed" };
    report.push_str(&format!("{} check {verdict}\n", route.endpoint));
    text(code, report)
}

/// A process is alive while it answers; it is ready when it can serve what was written anywhere.
async fn checks(server: &ApiServer, endpoint: &str) -> Vec<Check> {
    let mut checks = vec![Check { name: "ping", failure: None }];
    if endpoint == "livez" {
        return checks;
    }
    let store = match tokio::time::timeout(STORE_TIMEOUT, server.store.read_barrier()).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("the store did not confirm its leader in time".to_owned()),
    };
    checks.push(Check { name: "etcd", failure: store });
    let caches = (!server.is_ready()).then(|| "the watch caches are not filled yet".to_owned());
    checks.push(Check { name: "informer-sync", failure: caches });
    let stopping = server.metrics.is_stopping.load(Ordering::Relaxed);
    checks.push(Check { name: "shutdown", failure: stopping.then(|| "process is shutting down".to_owned()) });
    checks
}

fn text(code: StatusCode, text: String) -> Response<ResponseBody> {
    let mut response = Response::new(body::full(text));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
