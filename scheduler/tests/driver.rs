//! The whole scheduler against an API that lives in the test: lists, watches, bindings, conditions, events.

mod common;

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use common::{NodeCase, PodCase};
use futures::stream;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trireme_api::clock::SystemClock;
use trireme_scheduler::SchedulerConfig;

/// Objects by resource and key, and everything that happened to them.
#[derive(Default)]
struct Contents {
    objects: BTreeMap<(String, String), Value>,
    /// Resource and watch event; the resource version is the place in this list, from 1.
    log: Vec<(String, Value)>,
    refused_bindings: usize,
}

struct FakeApi {
    contents: parking_lot::Mutex<Contents>,
    version: watch::Sender<usize>,
}

impl FakeApi {
    fn new(refused_bindings: usize) -> Arc<Self> {
        let contents = Contents { refused_bindings, ..Contents::default() };
        Arc::new(Self { contents: parking_lot::Mutex::new(contents), version: watch::Sender::new(0) })
    }

    fn put(&self, resource: &str, object: Value) {
        self.change(resource, object, "MODIFIED");
    }

    fn change(&self, resource: &str, mut object: Value, change: &str) {
        let mut contents = self.contents.lock();
        let version = contents.log.len() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = (resource.to_owned(), object["metadata"]["name"].as_str().unwrap().to_owned());
        if change == "DELETED" {
            contents.objects.remove(&key);
        } else {
            contents.objects.insert(key, object.clone());
        }
        contents.log.push((resource.to_owned(), json!({ "type": change, "object": object })));
        drop(contents);
        self.version.send_replace(version);
    }

    fn get(&self, resource: &str, name: &str) -> Option<Value> {
        self.contents.lock().objects.get(&(resource.to_owned(), name.to_owned())).cloned()
    }

    fn all(&self, resource: &str) -> Vec<Value> {
        let contents = self.contents.lock();
        contents.objects.iter().filter(|((of, _), _)| of == resource).map(|(_, object)| object.clone()).collect()
    }

    fn list(&self, resource: &str) -> Value {
        let version = self.contents.lock().log.len().to_string();
        json!({ "metadata": { "resourceVersion": version }, "items": self.all(resource) })
    }

    fn watch(self: &Arc<Self>, resource: &str, from: usize) -> UnsyncBoxBody<Bytes, Infallible> {
        let state = (Arc::clone(self), self.version.subscribe(), resource.to_owned(), from);
        let frames = stream::unfold(state, |(api, mut version, resource, mut at)| async move {
            loop {
                let next = api.contents.lock().log.get(at).cloned();
                match next {
                    Some((of, event)) => {
                        at += 1;
                        if of == resource {
                            let line = Bytes::from(format!("{event}\n"));
                            return Some((Ok(Frame::data(line)), (api, version, resource, at)));
                        }
                    }
                    None => version.changed().await.ok()?,
                }
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }

    async fn answer(self: Arc<Self>, request: Request<Body>) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let segments: Vec<&str> = parts.uri.path().trim_start_matches("/api/v1/").split('/').collect();
        let query = parts.uri.query().unwrap_or_default();
        let (code, answer) = match (&parts.method, segments.as_slice()) {
            (&Method::GET, [resource]) if query.contains("watch=true") => {
                let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).unwrap();
                return Ok(Response::new(self.watch(resource, from.parse().unwrap())));
            }
            (&Method::GET, [resource]) => (200, self.list(resource)),
            (&Method::POST, ["namespaces", _, "pods", name, "binding"]) => self.bind(name, &body),
            (&Method::POST, ["namespaces", _, "events"]) => {
                self.put("events", body.clone());
                (201, body)
            }
            (&Method::PATCH, ["namespaces", _, "pods", name, "status"]) => {
                let mut pod = self.get("pods", name).unwrap();
                for (field, value) in body["status"].as_object().unwrap() {
                    pod["status"][field] = value.clone();
                }
                self.put("pods", pod.clone());
                (200, pod)
            }
            (&Method::PATCH, ["namespaces", _, "events", name]) => {
                let mut event = self.get("events", name).unwrap();
                event["count"] = body["count"].clone();
                self.put("events", event.clone());
                (200, event)
            }
            (&Method::DELETE, ["namespaces", _, "pods", name]) => {
                let pod = self.get("pods", name).unwrap();
                self.change("pods", pod.clone(), "DELETED");
                (200, pod)
            }
            (method, path) => panic!("{method} {path:?} is not expected"),
        };
        let body = Full::new(Bytes::from(answer.to_string())).boxed_unsync();
        Ok(Response::builder().status(code).body(body).unwrap())
    }

    fn bind(&self, name: &str, binding: &Value) -> (u16, Value) {
        let refuse = {
            let mut contents = self.contents.lock();
            let refuse = contents.refused_bindings > 0;
            contents.refused_bindings = contents.refused_bindings.saturating_sub(1);
            refuse
        };
        if refuse {
            return (
                500,
                json!({ "kind": "Status", "status": "Failure", "code": 500, "reason": "InternalError", "message": "refused" }),
            );
        }
        let mut pod = self.get("pods", name).unwrap();
        assert_eq!(binding["metadata"]["uid"], pod["metadata"]["uid"]);
        assert!(pod["spec"]["nodeName"].is_null(), "{name} is bound twice");
        pod["spec"]["nodeName"] = binding["target"]["name"].clone();
        self.put("pods", pod);
        (201, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201 }))
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut version = self.version.subscribe();
        let wait = async {
            while !condition(self) {
                version.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("what is waited for happens");
    }
}

/// Runs the scheduler beside `scenario`, and checks that it ends.
async fn with_scheduler(api: &Arc<FakeApi>, scenario: impl Future<Output = ()>) {
    let served = Arc::clone(api);
    let service = tower::service_fn(move |request: Request<Body>| Arc::clone(&served).answer(request));
    let client = kube::Client::new(service, "default");
    let shutdown = CancellationToken::new();
    let running = trireme_scheduler::run(client, SchedulerConfig::default(), Arc::new(SystemClock), shutdown.clone());
    let scenario = async {
        scenario.await;
        shutdown.cancel();
    };
    tokio::time::timeout(Duration::from_secs(90), async { tokio::join!(running, scenario) }).await.expect("it ends in time");
}

fn node(text: &str) -> Value {
    serde_json::to_value(serde_saphyr::from_str::<NodeCase>(text).unwrap().object()).unwrap()
}

fn pods(text: &str) -> Vec<Value> {
    let pods = serde_saphyr::from_str::<PodCase>(text).unwrap().objects();
    pods.iter().map(|pod| serde_json::to_value(pod).unwrap()).collect()
}

fn bound(api: &FakeApi) -> usize {
    api.all("pods").iter().filter(|pod| !pod["spec"]["nodeName"].is_null()).count()
}

fn has_event(api: &FakeApi, pod: &str, reason: &str, message: &str) -> bool {
    let is_it =
        |event: &Value| event["involvedObject"]["name"] == pod && event["reason"] == reason && event["message"] == message;
    api.all("events").iter().any(is_it)
}

#[tokio::test]
async fn a_burst_is_bound_evenly_although_a_binding_fails() {
    let api = FakeApi::new(1);
    for zone in ["a", "b", "c"] {
        api.put("nodes", node(&format!("{{name: n-{zone}, zone: {zone}}}")));
    }
    pods("{name: web, copies: 6, owner: web}").into_iter().for_each(|pod| api.put("pods", pod));
    with_scheduler(&api, api.until(|api| bound(api) == 6 && api.all("events").len() >= 6)).await;
    let mut per_node: BTreeMap<String, usize> = BTreeMap::new();
    for pod in api.all("pods") {
        *per_node.entry(pod["spec"]["nodeName"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(per_node.values().copied().collect::<Vec<_>>(), [2, 2, 2]);
    let place = api.get("pods", "web-0").unwrap()["spec"]["nodeName"].as_str().unwrap().to_owned();
    assert!(has_event(&api, "web-0", "Scheduled", &format!("Successfully assigned default/web-0 to {place}")));
}

#[tokio::test]
async fn a_pod_that_does_not_fit_is_told_why_and_placed_when_a_node_comes() {
    let api = FakeApi::new(0);
    pods("{name: big, requests: {cpu: 8}}").into_iter().for_each(|pod| api.put("pods", pod));
    api.put("nodes", node("{name: small}"));
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    with_scheduler(&api, async {
        api.until(|api| {
            let condition = api.get("pods", "big").unwrap()["status"]["conditions"][0].clone();
            condition["reason"] == "Unschedulable"
                && condition["message"] == message
                && has_event(api, "big", "FailedScheduling", message)
        })
        .await;
        api.put("nodes", node("{name: large, allocatable: {cpu: 16}}"));
        api.until(|api| api.get("pods", "big").unwrap()["spec"]["nodeName"] == "large").await;
    })
    .await;
}

#[tokio::test]
async fn a_more_important_pod_takes_the_place_of_another() {
    let api = FakeApi::new(0);
    api.put("nodes", node("{name: only}"));
    pods("{name: low, node: only, requests: {cpu: 3}}").into_iter().for_each(|pod| api.put("pods", pod));
    pods("{name: high, priority: 100, requests: {cpu: 3}}").into_iter().for_each(|pod| api.put("pods", pod));
    with_scheduler(&api, api.until(|api| api.get("pods", "high").unwrap()["spec"]["nodeName"] == "only")).await;
    assert!(api.get("pods", "low").is_none());
    assert!(has_event(&api, "low", "Preempted", "Preempted by pod default/high on node only"));
    assert_eq!(api.get("pods", "high").unwrap()["status"]["nominatedNodeName"], "only");
}
