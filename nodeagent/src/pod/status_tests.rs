use serde_json::{Value, json};

use super::*;
use crate::pod::{
    fixture::{at, observed, pod},
    memory::{PodFailure, PodMemory, Probed, Waiting},
};

fn generated(spec: Value, state: &str, memory: &PodMemory, previous: Option<Value>) -> Value {
    let mut pod = pod(spec);
    pod.status = previous.map(|status| serde_json::from_value(status).unwrap());
    let observed = observed(state);
    let node = NodeFacts { node_ip: "192.0.2.1".parse().unwrap(), runtime_name: "trireme".to_owned() };
    let view = View { pod: &pod, observed: &observed, memory, now: at(1000) };
    serde_json::to_value(generate(view, &node, pod.status.as_ref())).unwrap()
}

/// `Type=Status(Reason)` of each condition.
fn conditions(status: &Value) -> String {
    let word = |condition: &Value| {
        let reason = condition["reason"].as_str().map(|reason| format!("({reason})")).unwrap_or_default();
        format!("{}={}{reason}", condition["type"].as_str().unwrap(), condition["status"].as_str().unwrap())
    };
    status["conditions"].as_array().unwrap().iter().map(word).collect::<Vec<_>>().join(" ")
}

fn one() -> Value {
    json!({ "containers": [{ "name": "a" }] })
}

#[test]
fn a_pod_that_is_being_made_waits() {
    let status = generated(one(), "", &PodMemory::default(), None);
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["containerStatuses"][0]["state"], json!({ "waiting": { "reason": "ContainerCreating" } }));
    assert_eq!(
        conditions(&status),
        "PodReadyToStartContainers=False Initialized=True Ready=False(ContainersNotReady) \
         ContainersReady=False(ContainersNotReady) PodScheduled=True"
    );
    assert_eq!(status["conditions"][2]["message"], "containers with unready status: [a]");
}

#[test]
fn a_running_pod_is_ready() {
    let status = generated(one(), "sandbox 0 ready\n a 0 0 running", &PodMemory::default(), None);
    assert_eq!(
        (&status["phase"], &status["podIP"], &status["hostIP"]),
        (&json!("Running"), &json!("10.0.0.7"), &json!("192.0.2.1"))
    );
    let container = &status["containerStatuses"][0];
    assert_eq!(container["containerID"], "trireme://a-0");
    assert_eq!((&container["ready"], &container["started"]), (&json!(true), &json!(true)));
    assert_eq!(
        conditions(&status),
        "PodReadyToStartContainers=True Initialized=True Ready=True ContainersReady=True PodScheduled=True"
    );
}

#[test]
fn a_crashing_container_shows_why_it_waits_and_how_it_ended() {
    let mut memory = PodMemory::default();
    memory.container("a").waiting = Some(Waiting { reason: "CrashLoopBackOff".to_owned(), message: "back-off 10s".to_owned() });
    memory.termination_messages.insert("a-1".to_owned(), "it broke".to_owned());
    let status = generated(one(), "sandbox 0 ready\n a 0 0 exited 1\n a 1 0 exited 2", &memory, None);
    assert_eq!(status["phase"], "Running");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["state"], json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 10s" } }));
    let ended = &container["lastState"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"], &ended["message"]), (&json!(2), &json!("Error"), &json!("it broke")));
    assert_eq!(container["restartCount"], 1);
}

#[test]
fn a_restarted_container_shows_its_last_end() {
    let status = generated(one(), "sandbox 0 ready\n a 0 0 exited 3\n a 1 0 running", &PodMemory::default(), None);
    let container = &status["containerStatuses"][0];
    assert!(container["state"]["running"].is_object());
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
}

#[test]
fn phases_of_jobs() {
    let never = json!({ "restartPolicy": "Never", "containers": [{ "name": "a" }, { "name": "b" }] });
    for (state, phase) in [
        ("sandbox 0 ready\n a 0 0 exited 0\n b 0 0 running", "Running"),
        ("sandbox 0 ready\n a 0 0 exited 0\n b 0 0 exited 0", "Succeeded"),
        ("sandbox 0 ready\n a 0 0 exited 0\n b 0 0 exited 1", "Failed"),
        ("sandbox 0 ready\n a 0 0 running", "Pending"),
    ] {
        assert_eq!(generated(never.clone(), state, &PodMemory::default(), None)["phase"], phase, "{state}");
    }
    let done = generated(never, "sandbox 0 dead\n a 0 0 exited 0\n b 0 0 exited 0", &PodMemory::default(), None);
    assert!(conditions(&done).contains("Initialized=True(PodCompleted) Ready=False(PodCompleted)"), "{}", conditions(&done));
}

#[test]
fn a_pod_past_its_deadline_has_failed() {
    let failure = Some(PodFailure { reason: "DeadlineExceeded", message: "too long".to_owned() });
    let memory = PodMemory { failure, ended: Some(Ended::Stopped), ..PodMemory::default() };
    let status = generated(one(), "sandbox 0 dead\n a 0 0 exited 137", &memory, None);
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("DeadlineExceeded")));
    assert!(status["containerStatuses"][0]["state"]["terminated"].is_object());
}

#[test]
fn init_containers_hold_the_pod_pending() {
    let spec = json!({ "initContainers": [{ "name": "i" }], "containers": [{ "name": "a" }] });
    let status = generated(spec.clone(), "sandbox 0 ready\n i 0 0 running", &PodMemory::default(), None);
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    assert!(conditions(&status).contains("Initialized=False(ContainersNotInitialized)"), "{}", conditions(&status));
    let status = generated(spec, "sandbox 0 ready\n i 0 0 exited 0\n a 0 0 running", &PodMemory::default(), None);
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["initContainerStatuses"][0]["ready"], true);
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
}

#[test]
fn readiness_is_what_the_probes_say() {
    let spec = json!({ "containers": [{ "name": "a", "readinessProbe": {}, "startupProbe": {} }] });
    let state = "sandbox 0 ready\n a 0 0 running";
    for (started, ready, expected) in [
        (None, None, (false, false)),
        (Some(true), None, (true, false)),
        (Some(true), Some(false), (true, false)),
        (Some(true), Some(true), (true, true)),
        (None, Some(true), (false, false)),
    ] {
        let mut memory = PodMemory::default();
        memory.probed.insert("a-0".to_owned(), Probed { started, ready, condemned: None });
        let container = &generated(spec.clone(), state, &memory, None)["containerStatuses"][0];
        assert_eq!((&container["started"], &container["ready"]), (&json!(expected.0), &json!(expected.1)));
    }
}

#[test]
fn readiness_gates_hold_the_pod_back() {
    let spec = json!({ "containers": [{ "name": "a" }], "readinessGates": [{ "conditionType": "example.com/gate" }] });
    let state = "sandbox 0 ready\n a 0 0 running";
    let ready = |gate: Option<&str>| {
        let conditions: Vec<Value> = gate.iter().map(|status| json!({ "type": "example.com/gate", "status": status })).collect();
        let status = generated(spec.clone(), state, &PodMemory::default(), Some(json!({ "conditions": conditions })));
        (status["conditions"][2]["status"] == "True", status["conditions"][2]["message"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(ready(Some("True")), (true, String::new()));
    let closed = "the status of pod readiness gate \"example.com/gate\" is not \"True\", but False".to_owned();
    assert_eq!(ready(Some("False")), (false, closed));
    let absent = "corresponding condition of pod readiness gate \"example.com/gate\" does not exist.".to_owned();
    assert_eq!(ready(None), (false, absent));
}

#[test]
fn transitions_keep_their_time() {
    let state = "sandbox 0 ready\n a 0 0 running";
    let old = json!({ "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z" },
        { "type": "ContainersReady", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z" }] });
    let status = generated(one(), state, &PodMemory::default(), Some(old));
    assert_eq!(status["conditions"][2]["lastTransitionTime"], "2020-01-01T00:00:00Z");
    assert_eq!(status["conditions"][3]["lastTransitionTime"], "1970-01-01T00:16:40Z");
}

#[test]
fn a_container_that_was_lost_shows_it() {
    let old = json!({ "containerStatuses": [{ "name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 2,
        "containerID": "trireme://x", "state": { "running": {} } }] });
    let status = generated(one(), "sandbox 0 ready", &PodMemory::default(), Some(old));
    let container = &status["containerStatuses"][0];
    assert_eq!(container["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
    assert_eq!((&container["restartCount"], &container["state"]["waiting"]["reason"]), (&json!(3), &json!("ContainerCreating")));
}

#[test]
fn a_pod_is_not_finished_while_a_container_runs() {
    let sidecar = json!({ "restartPolicy": "Never", "initContainers": [{ "name": "s", "restartPolicy": "Always" }],
        "containers": [{ "name": "a" }] });
    let running = Some(json!({ "phase": "Running" }));
    let state = "sandbox 0 ready\n s 0 0 running\n a 0 0 exited 0";
    assert_eq!(generated(sidecar.clone(), state, &PodMemory::default(), running.clone())["phase"], "Running");
    let state = "sandbox 0 ready\n s 0 0 exited 143\n a 0 0 exited 0";
    assert_eq!(generated(sidecar, state, &PodMemory::default(), running.clone())["phase"], "Succeeded");

    let failure = PodFailure { reason: "DeadlineExceeded", message: "too long".to_owned() };
    let memory = PodMemory { failure: Some(failure), ended: Some(Ended::Stopping), ..PodMemory::default() };
    assert_eq!(generated(one(), "sandbox 0 ready\n a 0 0 running", &memory, running.clone())["phase"], "Running");
    assert_eq!(generated(one(), "sandbox 0 ready\n a 0 0 exited 143", &memory, running)["phase"], "Failed");
    // Whoever wrote that it has failed is not contradicted.
    let failed = Some(json!({ "phase": "Failed" }));
    assert_eq!(generated(one(), "sandbox 0 ready\n a 0 0 running", &PodMemory::default(), failed)["phase"], "Failed");
}
