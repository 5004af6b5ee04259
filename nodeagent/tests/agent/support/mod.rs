//! An API server of a few hundred lines, in process: enough of the verbs for an agent to live with.

pub mod scripted;

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The fake. Clones share their objects.
#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<(String, Value)>,
}

#[derive(Default)]
struct State {
    /// By `<plural path>/<name>`, as in `/api/v1/namespaces/default/pods/web`.
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Refuse everything, as if every master were away.
    down: bool,
    /// Give new Nodes a range of pod addresses.
    assigns_ranges: bool,
    /// Every state that an object ever had, in order.
    history: Vec<(String, Value)>,
}

impl FakeApi {
    pub fn new() -> Self {
        let (events, _) = broadcast::channel(10_000);
        let state = State { assigns_ranges: true, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), events }
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Leaves new Nodes without a range of pod addresses.
    pub fn assign_no_ranges(&self) {
        self.state.lock().assigns_ranges = false;
    }

    pub fn set_down(&self, down: bool) {
        self.state.lock().down = down;
    }

    /// Puts an object as another client would.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut state = self.state.lock();
        let kind = if state.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-of-{}", path.rsplit('/').next().unwrap()));
        }
        self.store(&mut state, path, object, kind);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    /// The states that an object has had so far.
    pub fn history(&self, path: &str) -> Vec<Value> {
        self.state.lock().history.iter().filter(|(at, _)| at == path).map(|(_, object)| object.clone()).collect()
    }

    /// Every object under a path.
    pub fn list(&self, prefix: &str) -> Vec<Value> {
        self.state.lock().objects.iter().filter(|(path, _)| path.starts_with(prefix)).map(|(_, object)| object.clone()).collect()
    }

    /// Deletes gracefully, as `kubectl delete` does.
    pub fn delete_gracefully(&self, path: &str, grace_seconds: i64) {
        let mut object = self.get(path).unwrap();
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace_seconds);
        self.put(path, object);
    }

    /// Deletes at once, as `kubectl delete --force` does.
    pub fn delete_now(&self, path: &str) {
        let mut state = self.state.lock();
        self.remove(&mut state, path);
    }

    /// Waits until an object is as wanted.
    pub async fn until(&self, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..1000 {
            if let Some(object) = self.get(path).filter(&wanted) {
                return object;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{path} did not become {what}: {:#}", self.get(path).unwrap_or_default());
    }

    pub async fn until_gone(&self, path: &str) {
        for _ in 0..1000 {
            if self.get(path).is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{path} is still there: {:#}", self.get(path).unwrap_or_default());
    }

    fn store(&self, state: &mut State, path: &str, mut object: Value, kind: &str) {
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.objects.insert(path.to_owned(), object.clone());
        state.history.push((path.to_owned(), object.clone()));
        let _ = self.events.send((path.to_owned(), json!({ "type": kind, "object": object })));
    }

    fn remove(&self, state: &mut State, path: &str) {
        if let Some(mut object) = state.objects.remove(path) {
            state.version += 1;
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            let _ = self.events.send((path.to_owned(), json!({ "type": "DELETED", "object": object })));
        }
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        if self.state.lock().down {
            return refusal(503, "ServiceUnavailable", "every master is away");
        }
        let (object_path, _subresource) = match path.strip_suffix("/status") {
            Some(object) => (object.to_owned(), Some("status")),
            None => (path.clone(), None),
        };
        match parts.method {
            Method::GET if query.contains("watch=true") => self.watch(&path, node_of(&query)),
            Method::GET if is_collection(&path) => self.list_answer(&path, node_of(&query)),
            Method::GET => match self.get(&path) {
                Some(object) => json_answer(200, &object),
                None => refusal(404, "NotFound", &not_found(&path)),
            },
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let object_path = format!("{path}/{name}");
                if self.get(&object_path).is_some() {
                    return refusal(409, "AlreadyExists", "there is one already");
                }
                let mut body = body;
                if path.ends_with("/nodes") {
                    let state = self.state.lock();
                    body["metadata"]["uid"] = json!(format!("uid-{}", state.version));
                    if state.assigns_ranges {
                        // As the controllers of a cluster do, if not as soon.
                        body["spec"]["podCIDRs"] = json!(["10.88.0.0/16"]);
                    }
                }
                self.put(&object_path, body);
                json_answer(201, &self.get(&object_path).unwrap())
            }
            Method::PATCH => {
                let mut state = self.state.lock();
                let Some(mut object) = state.objects.get(&object_path).cloned() else {
                    return refusal(404, "NotFound", &not_found(&object_path));
                };
                let before = object.clone();
                if !body["metadata"]["uid"].is_null() && body["metadata"]["uid"] != object["metadata"]["uid"] {
                    return refusal(409, "Conflict", "the uid is another");
                }
                merge(&mut object, &body);
                if object != before {
                    self.store(&mut state, &object_path, object, "MODIFIED");
                }
                json_answer(200, &state.objects[&object_path])
            }
            Method::DELETE => {
                let mut state = self.state.lock();
                let Some(object) = state.objects.get(&object_path).cloned() else {
                    return refusal(404, "NotFound", &not_found(&object_path));
                };
                let wanted = &body["preconditions"]["uid"];
                if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
                    return refusal(409, "Conflict", "the uid is another");
                }
                self.remove(&mut state, &object_path);
                json_answer(200, &object)
            }
            _ => refusal(405, "MethodNotAllowed", "no such method"),
        }
    }

    fn list_answer(&self, path: &str, node: Option<String>) -> Answer {
        let state = self.state.lock();
        let items: Vec<Value> = state
            .objects
            .iter()
            .filter(|(at, object)| matches_collection(path, at) && is_on(object, &node))
            .map(|(_, object)| object.clone())
            .collect();
        let list = json!({
            "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": state.version.to_string() }, "items": items,
        });
        json_answer(200, &list)
    }

    fn watch(&self, path: &str, node: Option<String>) -> Answer {
        let path = path.to_owned();
        let events = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe());
        let lines = events.filter_map(move |event| {
            let line = event.ok().filter(|(at, event)| matches_collection(&path, at) && is_on(&event["object"], &node)).map(
                |(_, event)| {
                    let mut line = serde_json::to_vec(&event).unwrap();
                    line.push(b'\n');
                    Ok::<_, Infallible>(Frame::data(Bytes::from(line)))
                },
            );
            async move { line }
        });
        Response::builder().status(StatusCode::OK).body(StreamBody::new(lines).boxed_unsync()).unwrap()
    }
}

const PLURALS: [&str; 8] = ["pods", "nodes", "leases", "events", "configmaps", "secrets", "serviceaccounts", "services"];

/// The node that a field selector asks for.
fn node_of(query: &str) -> Option<String> {
    let (_, rest) = query.split_once("fieldSelector=spec.nodeName%3D")?;
    rest.split('&').next().map(ToOwned::to_owned)
}

fn is_on(object: &Value, node: &Option<String>) -> bool {
    node.as_ref().is_none_or(|node| object["spec"]["nodeName"] == *node.as_str())
}

fn is_collection(path: &str) -> bool {
    PLURALS.contains(&path.rsplit('/').next().unwrap_or_default())
}

/// Whether an object's path is in a collection, of one namespace or of all.
fn matches_collection(collection: &str, object: &str) -> bool {
    let Some((parent, _)) = object.rsplit_once('/') else { return false };
    let plural = collection.rsplit('/').next().unwrap_or_default();
    parent == collection || (!collection.contains("/namespaces/") && parent.ends_with(&format!("/{plural}")))
}

fn not_found(path: &str) -> String {
    let mut segments = path.rsplit('/');
    let (name, plural) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    format!("{plural} \"{name}\" not found")
}

/// A merge patch in which lists of things with a `type` merge by it, as conditions do.
fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(key);
                } else {
                    merge(target.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (Value::Array(target), Value::Array(patch)) if patch.iter().all(|item| item["type"].is_string()) => {
            for item in patch {
                match target.iter_mut().find(|known| known["type"] == item["type"]) {
                    Some(known) => merge(known, item),
                    None => target.push(item.clone()),
                }
            }
        }
        (target, Value::Array(patch)) => {
            *target = patch.iter().filter(|item| item["$patch"].is_null()).cloned().collect();
        }
        (target, Value::Object(patch)) => {
            *target = json!({});
            merge(target, &Value::Object(patch.clone()));
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn json_answer(code: u16, body: &Value) -> Answer {
    let bytes = Bytes::from(serde_json::to_vec(body).unwrap());
    let body = StreamBody::new(stream::once(async move { Ok::<_, Infallible>(Frame::data(bytes)) }));
    Response::builder().status(code).header("content-type", "application/json").body(body.boxed_unsync()).unwrap()
}

fn refusal(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    json_answer(code, &status)
}

/// Takes any server certificate.
#[derive(Debug)]
pub struct Trusting;

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls_pki_types::CertificateDer<'_>,
        _intermediates: &[rustls_pki_types::CertificateDer<'_>],
        _server_name: &rustls_pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &rustls_pki_types::CertificateDer<'_>,
        _signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &rustls_pki_types::CertificateDer<'_>,
        _signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
