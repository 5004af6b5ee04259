//! Pods and runtime states for tests, in few words.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::memory::Observed;
use crate::runtime::{ContainerState, ContainerStatus, PodIdentity, SandboxState, SandboxStatus};

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if container["image"].is_null() {
                container["image"] = json!("image");
            }
        }
    }
    let metadata = json!({ "name": "web", "namespace": "ns", "uid": "u" });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
}

/// A state in lines: `sandbox 0 ready` or `<container> <attempt> <sandbox attempt> running|created|exited <code>`.
/// A container's id is `<name>-<attempt>`; it started at second 10 times its attempt and ended 5 seconds later.
pub fn observed(text: &str) -> Observed {
    let identity = PodIdentity { namespace: "ns".to_owned(), name: "web".to_owned(), uid: "u".to_owned() };
    let (mut sandboxes, mut containers) = (Vec::new(), Vec::new());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let attempt: u32 = words[1].parse().unwrap();
        if words[0] == "sandbox" {
            let ready = words[2] == "ready";
            sandboxes.push(SandboxStatus {
                id: format!("s{attempt}"),
                pod: identity.clone(),
                attempt,
                state: if ready { SandboxState::Ready } else { SandboxState::NotReady },
                created_at: at(0),
                addresses: if ready { vec!["10.0.0.7".parse().unwrap()] } else { Vec::new() },
            });
            continue;
        }
        let start = i64::from(attempt) * 10;
        let (state, exit_code) = match words[3] {
            "running" => (ContainerState::Running, 0),
            "created" => (ContainerState::Created, 0),
            "exited" => (ContainerState::Exited, words[4].parse().unwrap()),
            other => panic!("no such state: {other}"),
        };
        containers.push(ContainerStatus {
            id: format!("{}-{attempt}", words[0]),
            sandbox_id: format!("s{}", words[2]),
            pod: identity.clone(),
            name: words[0].to_owned(),
            attempt,
            state,
            created_at: at(start),
            started_at: (state != ContainerState::Created).then(|| at(start)),
            finished_at: (state == ContainerState::Exited).then(|| at(start + 5)),
            exit_code,
            signal: 0,
            reason: String::new(),
            message: String::new(),
            image: "image".to_owned(),
            image_id: "sha256:1".to_owned(),
            log_path: format!("/logs/{}/{attempt}.log", words[0]).into(),
        });
    }
    Observed::new(sandboxes, containers)
}
