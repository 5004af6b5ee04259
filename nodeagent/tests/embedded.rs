//! Real containers by the embedded runtime. These tests need root and the package busybox-static.

mod support;

use std::time::Duration;

use support::{Bench, IMAGE, container, exited, log_of, start, status, words};
use trireme_nodeagent::runtime::{ContainerState, Runtime, RuntimeError, SandboxState};

#[tokio::test]
async fn a_container_runs_logs_and_leaves_its_exit_code() {
    let bench = Bench::new();
    let runtime = bench.open_with_image().await;
    let config = bench.sandbox("web");
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    let id = start(&runtime, &sandbox, &config, &container("main", "echo hello; echo oops >&2; hostname; exit 7")).await;
    let ended = exited(&runtime, &id).await;
    assert_eq!((ended.exit_code, ended.signal, ended.reason.as_str()), (7, 0, "Error"));
    assert!(ended.started_at.unwrap() <= ended.finished_at.unwrap());
    let log = std::fs::read_to_string(&ended.log_path).unwrap();
    assert!(log.contains(" stdout F hello\n") && log.contains(" stderr F oops\n"), "{log}");
    assert!(log.contains(" stdout F web\n"), "the pod's hostname: {log}");

    let ok = start(&runtime, &sandbox, &config, &container("ok", "true")).await;
    assert_eq!(exited(&runtime, &ok).await.reason, "Completed");

    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert!(runtime.list_containers().await.unwrap().is_empty());
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}
