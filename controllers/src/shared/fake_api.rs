//! A small API server for tests: objects in a map, watches, finalizers, preconditions, discovery of a few kinds, and requests
//! that fail when a test wants it. It does what the loops rely on and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

/// Kind, plural, group version, namespaced.
const KINDS: &[(&str, &str, &str, bool)] = &[
    ("Pod", "pods", "v1", true),
    ("ConfigMap", "configmaps", "v1", true),
    ("Event", "events", "v1", true),
    ("Namespace", "namespaces", "v1", false),
    ("Node", "nodes", "v1", false),
    ("ReplicationController", "replicationcontrollers", "v1", true),
    ("ReplicaSet", "replicasets", "apps/v1", true),
    ("Deployment", "deployments", "apps/v1", true),
    ("ServiceAccount", "serviceaccounts", "v1", true),
    ("Service", "services", "v1", true),
    ("Endpoints", "endpoints", "v1", true),
    ("EndpointSlice", "endpointslices", "discovery.k8s.io/v1", true),
    ("Lease", "leases", "coordination.k8s.io/v1", true),
];

/// `group/version`, plural, namespace, name.
type Key = (String, String, String, String);
type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    revision: u64,
    /// Type of event, key, object, in order of revision.
    history: Vec<Happening>,
    /// Requests to refuse: method, part of the path, status code, how often.
    failures: Vec<(Method, String, u16, usize)>,
    /// Method and path of every write.
    requests: Vec<String>,
    /// Plurals whose watches deliver nothing for now.
    stalled: BTreeSet<String>,
}

/// The server. Cheap to clone.
#[derive(Clone, Default)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

struct Target {
    group_version: String,
    plural: String,
    namespace: String,
    name: String,
    subresource: String,
}

impl FakeApi {
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        kube::Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let api = api.clone();
                async move { Ok::<_, Infallible>(api.handle(request).await) }
            }),
            "default",
        )
    }

    /// Refuses the next `times` requests of this method whose path has this part.
    pub fn fail(&self, method: Method, part: &str, code: u16, times: usize) {
        self.state.lock().failures.push((method, part.to_owned(), code, times));
    }

    /// Holds back the watch events of a plural, or lets them flow again.
    pub fn stall(&self, plural: &str, stall: Stall) {
        let mut state = self.state.lock();
        match stall {
            Stall::Hold => state.stalled.insert(plural.to_owned()),
            Stall::Flow => state.stalled.remove(plural),
        };
        drop(state);
        self.changed.notify_waiters();
    }

    /// All writes so far, as `METHOD path`.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().requests.clone()
    }

    /// All objects of a plural, ordered by namespace and name.
    pub fn list(&self, plural: &str) -> Vec<Value> {
        self.state.lock().objects.iter().filter(|(key, _)| key.1 == plural).map(|(_, object)| object.clone()).collect()
    }

    /// One object by plural and name, in whatever namespace.
    pub fn get(&self, plural: &str, name: &str) -> Option<Value> {
        self.state.lock().objects.iter().find(|(key, _)| key.1 == plural && key.3 == name).map(|(_, object)| object.clone())
    }

    /// Puts an object there as a client would create it.
    pub fn add(&self, object: Value) -> Value {
        let kind = object["kind"].as_str().unwrap();
        let row = KINDS.iter().find(|row| row.0 == kind).unwrap();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let key =
            (row.2.to_owned(), row.1.to_owned(), namespace, object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        let created = self.state.lock().create(key, object);
        self.changed.notify_waiters();
        created.unwrap()
    }

    /// Changes an object as its owner or kubelet would.
    pub fn edit(&self, plural: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.state.lock();
        let (key, mut object) = state
            .objects
            .iter()
            .find(|(key, _)| key.1 == plural && key.3 == name)
            .map(|(key, object)| (key.clone(), object.clone()))
            .unwrap();
        change(&mut object);
        state.store(key, object).unwrap();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Deletes an object with a propagation policy, as `kubectl delete --cascade=…` would.
    pub fn delete(&self, plural: &str, name: &str, policy: &str) {
        let mut state = self.state.lock();
        let key = state.objects.keys().find(|key| key.1 == plural && key.3 == name).cloned().unwrap();
        state.delete(&key, &json!({"propagationPolicy": policy})).unwrap();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits until `condition` holds, for at most a minute of the test's time.
    pub async fn until(&self, what: &str, condition: impl Fn(&FakeApi) -> bool) {
        for _ in 0..6_000 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let objects: Vec<String> = self.state.lock().objects.values().map(ToString::to_string).collect();
        panic!("{what} did not come true; objects:\n{}", objects.join("\n"));
    }

    async fn handle(&self, request: Request<Body>) -> Reply {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        if let Some(code) = self.planned_failure(&parts.method, &path) {
            return refuse(code, "InternalError", "planned failure");
        }
        if let Some(document) = discovery(&path) {
            return reply(200, &document);
        }
        let Some(target) = parse(&path) else { return refuse(404, "NotFound", &path) };
        if parts.method != Method::GET {
            self.state.lock().requests.push(format!("{} {path}", parts.method));
        }
        if query.contains("watch=true") {
            return self.watch(&target, &query);
        }
        let outcome = self.state.lock().serve(&parts.method, target, body);
        self.changed.notify_waiters();
        match outcome {
            Ok(value) => reply(200, &value),
            Err((code, reason, message)) => refuse(code, reason, &message),
        }
    }

    fn planned_failure(&self, method: &Method, path: &str) -> Option<u16> {
        let mut state = self.state.lock();
        let (.., code, left) = state
            .failures
            .iter_mut()
            .find(|(planned, part, _, left)| planned == method && path.contains(part.as_str()) && *left > 0)?;
        *left -= 1;
        Some(*code)
    }

    /// The first change after a revision of objects of one resource.
    async fn next_change(&self, from: u64, group_version: &str, plural: &str) -> Happening {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let of_resource = |(revision, _, key, _): &&Happening| *revision > from && key.0 == group_version && key.1 == plural;
            let next = {
                let state = self.state.lock();
                let flows = !state.stalled.contains(plural);
                state.history.iter().find(of_resource).filter(|_| flows).cloned()
            };
            if let Some(next) = next {
                return next;
            }
            changed.await;
        }
    }

    fn watch(&self, target: &Target, query: &str) -> Reply {
        let from = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="))
            .and_then(|text| text.parse().ok())
            .unwrap_or(0_u64);
        let (group_version, plural) = (target.group_version.clone(), target.plural.clone());
        let api = self.clone();
        let events = futures::stream::unfold((api, from), move |(api, from)| {
            let (group_version, plural) = (group_version.clone(), plural.clone());
            async move {
                let (revision, type_, _, object) = api.next_change(from, &group_version, &plural).await;
                let line = format!("{}\n", json!({"type": type_, "object": object}));
                Some((Ok(http_body::Frame::data(Bytes::from(line))), (api, revision)))
            }
        });
        Response::new(StreamBody::new(events.boxed()).boxed_unsync())
    }
}

/// Whether watch events are held back.
#[derive(Clone, Copy)]
pub enum Stall {
    Hold,
    Flow,
}

type Happening = (u64, &'static str, Key, Value);
type Outcome = Result<Value, (u16, &'static str, String)>;

impl State {
    fn serve(&mut self, method: &Method, target: Target, body: Value) -> Outcome {
        let key: Key = (target.group_version, target.plural, target.namespace, target.name);
        match (method.as_str(), key.3.is_empty()) {
            ("GET", true) => {
                let in_scope =
                    |candidate: &&Key| candidate.0 == key.0 && candidate.1 == key.1 && (key.2.is_empty() || candidate.2 == key.2);
                let items: Vec<Value> = self.objects.keys().filter(in_scope).map(|found| self.objects[found].clone()).collect();
                Ok(
                    json!({"kind": "List", "apiVersion": key.0, "metadata": {"resourceVersion": self.revision.to_string()}, "items": items}),
                )
            }
            ("GET", false) => self.objects.get(&key).cloned().ok_or_else(|| not_found(&key)),
            ("POST", true) => self.create(key, body),
            ("PUT", false) => self.replace(key, &target.subresource, body),
            ("PATCH", false) => {
                let mut object = self.objects.get(&key).cloned().ok_or_else(|| not_found(&key))?;
                let expected = &body["metadata"]["resourceVersion"];
                if expected.is_string() && *expected != object["metadata"]["resourceVersion"] {
                    return Err((409, "Conflict", "the object has been modified".into()));
                }
                patch(&mut object, &body, "");
                self.store(key, object)
            }
            ("DELETE", false) => self.delete(&key, &body),
            ("DELETE", true) => {
                let matching: Vec<Key> = self
                    .objects
                    .keys()
                    .filter(|found| found.0 == key.0 && found.1 == key.1 && found.2 == key.2)
                    .cloned()
                    .collect();
                for found in matching {
                    self.delete(&found, &body)?;
                }
                Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
            }
            _ => Err((405, "MethodNotAllowed", format!("{method} {key:?}"))),
        }
    }

    fn create(&mut self, mut key: Key, mut object: Value) -> Outcome {
        if key.3.is_empty() {
            key.3 = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        }
        if key.3.is_empty() {
            key.3 = format!("{}{:05}", object["metadata"]["generateName"].as_str().unwrap_or_default(), self.revision + 1);
            object["metadata"]["name"] = json!(key.3);
        }
        if self.objects.contains_key(&key) {
            return Err((409, "AlreadyExists", format!("{key:?} already exists")));
        }
        let row = KINDS.iter().find(|row| row.1 == key.1).unwrap();
        object["kind"] = json!(row.0);
        object["apiVersion"] = json!(row.2);
        object["metadata"]["uid"] = json!(format!("uid-{}", self.revision + 1));
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["creationTimestamp"] =
            json!(format!("2026-01-01T00:{:02}:{:02}Z", self.revision / 60 % 60, self.revision % 60));
        if !key.2.is_empty() {
            object["metadata"]["namespace"] = json!(key.2);
        }
        self.write("ADDED", key, object)
    }

    fn replace(&mut self, key: Key, subresource: &str, body: Value) -> Outcome {
        let current = self.objects.get(&key).cloned().ok_or_else(|| not_found(&key))?;
        if body["metadata"]["resourceVersion"] != current["metadata"]["resourceVersion"] {
            return Err((409, "Conflict", "the object has been modified".into()));
        }
        let mut next = current.clone();
        match subresource {
            "status" => next["status"] = body["status"].clone(),
            "finalize" => next["spec"]["finalizers"] = body["spec"]["finalizers"].clone(),
            _ => {
                next = body;
                next["status"] = current["status"].clone();
            }
        }
        self.store(key, next)
    }

    /// Stores a change: the generation follows the spec, and an object without finalizers that is being deleted goes.
    fn store(&mut self, key: Key, mut object: Value) -> Outcome {
        let current = self.objects.get(&key).cloned().ok_or_else(|| not_found(&key))?;
        if current["spec"] != object["spec"] {
            object["metadata"]["generation"] = json!(current["metadata"]["generation"].as_u64().unwrap_or(0) + 1);
        }
        if current == object {
            return Ok(object);
        }
        let held = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
        let namespace_held = key.1 == "namespaces" && held(&object["spec"]["finalizers"]);
        let free = !namespace_held && !held(&object["metadata"]["finalizers"]);
        if object["metadata"]["deletionTimestamp"].is_string() && free {
            return self.write("DELETED", key, object);
        }
        self.write("MODIFIED", key, object)
    }

    fn delete(&mut self, key: &Key, options: &Value) -> Outcome {
        let mut object = self.objects.get(key).cloned().ok_or_else(|| not_found(key))?;
        for field in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][field];
            if wanted.is_string() && *wanted != object["metadata"][field] {
                return Err((409, "Conflict", format!("the {field} in the precondition does not match")));
            }
        }
        let finalizer = match options["propagationPolicy"].as_str() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            if !finalizers.contains(&json!(finalizer)) {
                finalizers.push(json!(finalizer));
            }
            object["metadata"]["finalizers"] = json!(finalizers);
        }
        object["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
        self.store(key.clone(), object)
    }

    fn write(&mut self, type_: &'static str, key: Key, mut object: Value) -> Outcome {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        if type_ == "DELETED" {
            self.objects.remove(&key);
        } else {
            self.objects.insert(key.clone(), object.clone());
        }
        self.history.push((self.revision, type_, key, object.clone()));
        Ok(object)
    }
}

/// A merge patch; owner references that carry a `$patch` or come as a strategic patch are merged by UID when there are any.
fn patch(target: &mut Value, change: &Value, field: &str) {
    match (&mut *target, change) {
        (Value::Object(target), Value::Object(change)) => {
            for (name, value) in change {
                if value.is_null() {
                    target.remove(name);
                } else {
                    patch(target.entry(name.clone()).or_insert(Value::Null), value, name);
                }
            }
        }
        (target, Value::Array(items)) if field == "ownerReferences" && items.iter().any(|item| item["$patch"] == "delete") => {
            let gone: Vec<&Value> = items.iter().map(|item| &item["uid"]).collect();
            if let Some(list) = target.as_array_mut() {
                list.retain(|item| !gone.contains(&&item["uid"]));
            }
        }
        (target, change) => *target = change.clone(),
    }
}

fn not_found(key: &Key) -> (u16, &'static str, String) {
    (404, "NotFound", format!("{} {:?} not found", key.1, key.3))
}

fn parse(path: &str) -> Option<Target> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group_version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, plural, rest @ ..] if KINDS.iter().any(|row| row.1 == *plural) => {
            (*namespace, [&[*plural], rest].concat())
        }
        rest => ("", rest.to_vec()),
    };
    let part = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
    Some(Target { group_version, plural: part(0), namespace: namespace.to_owned(), name: part(1), subresource: part(2) })
}

fn discovery(path: &str) -> Option<Value> {
    let list = |group_version: &str| {
        let resources: Vec<Value> = KINDS
            .iter()
            .filter(|row| row.2 == group_version)
            .map(|(kind, plural, _, namespaced)| {
                json!({"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind,
                    "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]})
            })
            .collect();
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
    };
    match path.trim_matches('/') {
        "api/v1" => Some(list("v1")),
        "apis/apps/v1" => Some(list("apps/v1")),
        "apis" => {
            let version = json!({"groupVersion": "apps/v1", "version": "v1"});
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1",
                "groups": [{"name": "apps", "versions": [version], "preferredVersion": version}]}))
        }
        _ => None,
    }
}

fn reply(code: u16, value: &Value) -> Reply {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn refuse(code: u16, reason: &str, message: &str) -> Reply {
    reply(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": reason, "message": message}),
    )
}
