use std::fmt::Write;

use serde_json::{Value, json};

use super::*;
use crate::pod::{
    fixture::{at, observed, pod},
    memory::{Condemned, Probed},
};

/// The decision in words.
fn words(decision: &Decision) -> String {
    let Decision::Continue { steps, wake_at } = decision else {
        let Decision::Terminate { failure } = decision else { unreachable!() };
        return failure.as_ref().map_or_else(|| "terminate".to_owned(), |failure| format!("terminate {}", failure.reason));
    };
    let mut text: Vec<String> = steps
        .iter()
        .map(|step| match step {
            Step::StopSandbox { id } => format!("stop-sandbox {id}"),
            Step::RunSandbox { attempt } => format!("sandbox {attempt}"),
            Step::Start { name, attempt, .. } => format!("start {name} {attempt}"),
            Step::Hold { name, delay } => format!("hold {name} {}s", delay.as_secs()),
            Step::Kill { id, .. } => format!("kill {id}"),
            Step::Remove { id } => format!("remove {id}"),
            Step::RemoveSandbox { id } => format!("remove-sandbox {id}"),
        })
        .collect();
    text.extend(wake_at.map(|at| format!("wake {}", at.as_second())));
    text.join(", ")
}

fn decided(spec: Value, state: &str, memory: &PodMemory, now: i64) -> String {
    let (pod, observed) = (pod(spec), observed(state));
    words(&decide(View { pod: &pod, observed: &observed, memory, now: at(now) }))
}

/// Cases of `state => expected`, for one spec and an empty memory.
fn check(spec: Value, cases: &[(&str, &str)]) {
    let mut wrong = String::new();
    for (state, expected) in cases {
        let found = decided(spec.clone(), state, &PodMemory::default(), 100);
        if found != *expected {
            writeln!(wrong, "{state:?}: {found}, not {expected}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_plain_pod() {
    check(
        json!({ "containers": [{ "name": "a" }, { "name": "b" }] }),
        &[
            ("", "sandbox 0"),
            ("sandbox 0 ready", "start a 0, start b 0"),
            ("sandbox 0 ready\n a 0 0 running", "start b 0"),
            ("sandbox 0 ready\n a 0 0 running\n b 0 0 running", ""),
            ("sandbox 0 ready\n a 0 0 running\n b 0 0 exited 0", "start b 1"),
            ("sandbox 0 ready\n a 0 0 running\n b 0 0 created", "remove b-0, start b 1"),
            // The sandbox died: what is left of it ends, and everything begins again.
            ("sandbox 0 dead\n a 0 0 running\n b 0 0 exited 0", "stop-sandbox s0, sandbox 1"),
            ("sandbox 0 dead\n sandbox 1 ready\n a 0 0 exited 137\n b 0 0 exited 137", "start a 1, start b 1"),
            // It died with everything in it (the machine was rebooted): its address and its host ports are freed all the same.
            ("sandbox 0 dead\n a 0 0 exited 255\n b 0 0 exited 255", "stop-sandbox s0, sandbox 1"),
            ("sandbox 0 dead", "stop-sandbox s0, sandbox 1"),
            // A dead sandbox goes with the last of its containers.
            ("sandbox 0 dead\n sandbox 1 ready\n a 1 1 running\n b 1 1 running", "remove-sandbox s0"),
            ("sandbox 0 dead\n sandbox 1 ready\n a 0 0 exited 1\n a 1 1 running\n b 1 1 running", ""),
            // An agent that was killed while it started a container has left two.
            ("sandbox 0 ready\n a 0 0 running\n a 1 0 running\n b 0 0 running", "kill a-0"),
        ],
    );
}

#[test]
fn restart_policies() {
    let containers = json!([{ "name": "a" }, { "name": "b" }]);
    check(
        json!({ "restartPolicy": "OnFailure", "containers": containers }),
        &[
            ("sandbox 0 ready\n a 0 0 exited 0\n b 0 0 running", ""),
            ("sandbox 0 ready\n a 0 0 exited 1\n b 0 0 running", "start a 1"),
            ("sandbox 0 ready\n a 0 0 exited 0\n b 0 0 exited 0", "terminate"),
            ("sandbox 0 dead\n sandbox 1 ready\n a 0 0 exited 0\n b 0 0 exited 137", "start b 1"),
        ],
    );
    check(
        json!({ "restartPolicy": "Never", "containers": containers }),
        &[
            ("sandbox 0 ready\n a 0 0 exited 1\n b 0 0 running", ""),
            ("sandbox 0 ready\n a 0 0 exited 1\n b 0 0 exited 0", "terminate"),
            ("sandbox 0 dead\n a 0 0 running", "stop-sandbox s0"),
            ("sandbox 0 dead\n a 0 0 exited 1", ""),
        ],
    );
}

#[test]
fn init_containers_run_in_order() {
    let spec = json!({ "initContainers": [{ "name": "i" }, { "name": "j" }], "containers": [{ "name": "a" }] });
    check(
        spec.clone(),
        &[
            ("sandbox 0 ready", "start i 0"),
            ("sandbox 0 ready\n i 0 0 running", ""),
            ("sandbox 0 ready\n i 0 0 exited 1", "start i 1"),
            ("sandbox 0 ready\n i 0 0 exited 0", "start j 0"),
            ("sandbox 0 ready\n i 0 0 exited 0\n j 0 0 exited 0", "start a 0"),
            ("sandbox 0 ready\n i 0 0 exited 0\n j 0 0 exited 0\n a 0 0 exited 1", "start a 1"),
            // In a new sandbox they run again.
            ("sandbox 0 dead\n sandbox 1 ready\n i 0 0 exited 0\n j 0 0 exited 0\n a 0 0 exited 137", "start i 1"),
        ],
    );
    let mut never = spec;
    never["restartPolicy"] = json!("Never");
    check(never, &[("sandbox 0 ready\n i 0 0 exited 1", "terminate"), ("sandbox 0 ready\n i 0 0 exited 0", "start j 0")]);
}

#[test]
fn sidecars_run_beside_the_others() {
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{ "name": "s", "restartPolicy": "Always" }, { "name": "i" }],
        "containers": [{ "name": "a" }],
    });
    check(
        spec,
        &[
            ("sandbox 0 ready", "start s 0"),
            ("sandbox 0 ready\n s 0 0 running", "start i 0"),
            ("sandbox 0 ready\n s 0 0 running\n i 0 0 exited 0", "start a 0"),
            ("sandbox 0 ready\n s 0 0 exited 0\n i 0 0 exited 0\n a 0 0 running", "start s 1"),
            ("sandbox 0 ready\n s 0 0 running\n i 0 0 exited 0\n a 0 0 exited 0", "terminate"),
        ],
    );
}

#[test]
fn a_sidecar_with_a_startup_probe_holds_back_the_next_until_it_has_started() {
    let spec = json!({
        "initContainers": [{ "name": "s", "restartPolicy": "Always", "startupProbe": { "exec": {} } }],
        "containers": [{ "name": "a" }],
    });
    let state = "sandbox 0 ready\n s 0 0 running";
    assert_eq!(decided(spec.clone(), state, &PodMemory::default(), 1), "");
    let mut memory = PodMemory::default();
    memory.probed.insert("s-0".to_owned(), Probed { started: Some(true), ..Probed::default() });
    assert_eq!(decided(spec, state, &memory, 1), "start a 0");
}

#[test]
fn restarts_back_off() {
    let spec = json!({ "containers": [{ "name": "a" }] });
    let state = "sandbox 0 ready\n a 0 0 exited 1\n a 1 0 exited 1";
    let mut memory = PodMemory::default();
    memory.container("a").restarts.advance(at(5), at(6));
    // The second instance ended at 15; the delay is 10 s.
    assert_eq!(decided(spec.clone(), state, &memory, 16), "hold a 10s, wake 25");
    assert_eq!(decided(spec, state, &memory, 25), "start a 2");
}

#[test]
fn the_condemned_are_killed() {
    let spec = json!({ "containers": [{ "name": "a" }] });
    let state = "sandbox 0 ready\n a 0 0 running";
    let mut memory = PodMemory::default();
    let condemned =
        Condemned { message: "Container a failed liveness probe, will be restarted".to_owned(), grace_seconds: Some(3) };
    memory.probed.insert("a-0".to_owned(), Probed { condemned: Some(condemned), ..Probed::default() });
    assert_eq!(decided(spec.clone(), state, &memory, 1), "kill a-0");
    let mut memory = PodMemory::default();
    memory.container("a").images.insert("a-0".to_owned(), "older".to_owned());
    assert_eq!(decided(spec.clone(), state, &memory, 1), "kill a-0", "the image in the spec was changed");
    let (pod, mut observed) = (pod(spec), observed(state));
    observed.containers[0].image = "older".to_owned();
    let decision = decide(View { pod: &pod, observed: &observed, memory: &PodMemory::default(), now: at(1) });
    assert_eq!(words(&decision), "kill a-0", "it was changed while no agent ran");
}

#[test]
fn deadlines_end_pods() {
    let spec = json!({ "activeDeadlineSeconds": 50, "containers": [{ "name": "a" }] });
    let memory = PodMemory { start_time: Some(at(100)), ..PodMemory::default() };
    let state = "sandbox 0 ready\n a 0 0 running";
    assert_eq!(decided(spec.clone(), state, &memory, 149), "wake 150");
    assert_eq!(decided(spec, state, &memory, 150), "terminate DeadlineExceeded");
}

#[test]
fn only_the_newest_two_instances_are_kept() {
    let spec = json!({ "containers": [{ "name": "a" }] });
    let state = "sandbox 0 ready\n a 0 0 exited 1\n a 1 0 exited 1\n a 2 0 exited 1\n a 3 0 running";
    assert_eq!(decided(spec, state, &PodMemory::default(), 1), "remove a-1, remove a-0");
}

#[test]
fn restarts_go_on_counting_when_the_runtime_has_lost_the_containers() {
    let mut pod = pod(json!({ "containers": [{ "name": "a" }] }));
    let status = json!({ "containerStatuses": [{ "name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 4,
        "containerID": "trireme://x", "state": { "running": {} } }] });
    pod.status = Some(serde_json::from_value(status).unwrap());
    let observed = observed("sandbox 0 ready");
    let memory = PodMemory::default();
    assert_eq!(words(&decide(View { pod: &pod, observed: &observed, memory: &memory, now: at(1) })), "start a 5");
}

#[test]
fn a_finished_pod_stays_finished() {
    for (phase, outcome_expected) in [("Succeeded", Outcome::Succeeded), ("Failed", Outcome::Failed)] {
        let mut pod = pod(json!({ "containers": [{ "name": "a" }] }));
        pod.status = Some(serde_json::from_value(json!({ "phase": phase })).unwrap());
        let (observed, memory) = (observed(""), PodMemory::default());
        let view = View { pod: &pod, observed: &observed, memory: &memory, now: at(1) };
        assert_eq!(outcome(view), Some(outcome_expected));
        assert_eq!(words(&decide(view)), "terminate");
    }
}
