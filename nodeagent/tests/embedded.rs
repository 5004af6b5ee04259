//! Real containers by the embedded runtime. These tests need root and the package busybox-static.

mod real;

use std::time::Duration;

use real::{Bench, IMAGE, cgroup_file, container, exited, log_of, start, status, words};
use trireme_nodeagent::runtime::{ContainerState, PodResources, Runtime, RuntimeError, SandboxState};

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

#[tokio::test]
async fn commands_run_inside_and_slow_ones_are_killed() {
    let bench = Bench::new();
    let runtime = bench.open_with_image().await;
    let config = bench.sandbox("exec");
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    let mut asked = container("main", "trap 'exit 0' TERM; echo ready > /tmp/here; while true; do sleep 0.1; done");
    asked.environment = vec![("GREETING".to_owned(), "hi there".to_owned())];
    asked.working_directory = Some("/made/for/this".to_owned());
    let id = start(&runtime, &sandbox, &config, &asked).await;

    let command = words(&["sh", "-c", "echo $GREETING; pwd; echo no >&2; exit 3"]);
    let output = runtime.exec(&id, &command, Duration::from_secs(10)).await.unwrap();
    assert_eq!(output.exit_code, 3);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hi there\n/made/for/this\n");
    assert_eq!(output.stderr, b"no\n");
    let missing = runtime.exec(&id, &words(&["no-such-command"]), Duration::from_secs(10)).await;
    let Err(RuntimeError::Container(message)) = missing else { panic!("{missing:?}") };
    assert!(message.contains("\"no-such-command\": executable file not found in $PATH"), "{message}");

    let slow = runtime.exec(&id, &words(&["sh", "-c", "sleep 1000 & sleep 1000"]), Duration::from_millis(300)).await;
    assert!(matches!(slow, Err(RuntimeError::Timeout(..))), "{slow:?}");
    let count = runtime.exec(&id, &words(&["sh", "-c", "ps | grep -c 'sleep 100[0]'"]), Duration::from_secs(10)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&count.stdout), "0\n", "the whole group of the slow command is gone");

    let before = std::time::Duration::from_secs(8);
    tokio::time::timeout(before, runtime.stop_container(&id, Duration::from_secs(30)))
        .await
        .expect("it ends at SIGTERM")
        .unwrap();
    let ended = status(&runtime, &id).await;
    assert_eq!((ended.state, ended.exit_code), (ContainerState::Exited, 0));
    assert!(runtime.exec(&id, &words(&["true"]), Duration::from_secs(5)).await.is_err());
    runtime.remove_container(&id).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_container_that_ignores_the_stop_signal_is_killed_with_its_children() {
    let bench = Bench::new();
    let runtime = bench.open_with_image().await;
    let config = bench.sandbox("stubborn");
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    let id =
        start(&runtime, &sandbox, &config, &container("main", "trap '' TERM; sleep 1000 & while true; do sleep 1; done")).await;
    runtime.stop_container(&id, Duration::from_millis(300)).await.unwrap();
    let ended = status(&runtime, &id).await;
    assert_eq!((ended.exit_code, ended.signal, ended.reason.as_str()), (137, 9, "Error"));
    runtime.stop_sandbox(&sandbox).await.unwrap();
    runtime.stop_sandbox(&sandbox).await.unwrap();
    assert_eq!(runtime.list_sandboxes().await.unwrap()[0].state, SandboxState::NotReady);
    assert_eq!(bench.leftovers(), Vec::<String>::new());
    runtime.remove_sandbox(&sandbox).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert!(runtime.list_sandboxes().await.unwrap().is_empty());
}

#[tokio::test]
async fn too_much_memory_is_told_as_oom_killed() {
    let bench = Bench::new();
    let runtime = bench.open_with_image().await;
    let config = bench.sandbox("hungry");
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    let mut asked = container("main", "x=x; while true; do x=$x$x$x$x; done");
    asked.resources.memory_limit_bytes = Some(24 << 20);
    asked.resources.cpu_shares = Some(512);
    asked.resources.cpu_quota_us = Some(50_000);
    asked.resources.pids_limit = Some(64);
    let id = start(&runtime, &sandbox, &config, &asked).await;
    let ended = exited(&runtime, &id).await;
    assert_eq!((ended.reason.as_str(), ended.exit_code), ("OOMKilled", 137));
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_restarted_runtime_adopts_what_runs_and_sees_what_ended() {
    let bench = Bench::new();
    let config = bench.sandbox("kept");
    let runtime = bench.open_with_image().await;
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    let kept =
        start(&runtime, &sandbox, &config, &container("kept", "echo one; while ! test -e /tmp/go; do sleep 0.1; done; echo two"))
            .await;
    let short = start(&runtime, &sandbox, &config, &container("short", "sleep 0.3; exit 5")).await;
    drop(runtime);
    tokio::time::sleep(Duration::from_secs(1)).await;

    let runtime = bench.open().await;
    let sandboxes = runtime.list_sandboxes().await.unwrap();
    assert_eq!(sandboxes.len(), 1);
    assert_eq!((sandboxes[0].state, &sandboxes[0].pod), (SandboxState::Ready, &config.pod));
    assert_eq!(status(&runtime, &kept).await.state, ContainerState::Running);
    let ended = status(&runtime, &short).await;
    assert_eq!((ended.state, ended.exit_code), (ContainerState::Exited, 5));

    let log = status(&runtime, &kept).await.log_path;
    std::fs::rename(&log, log.with_extension("rotated")).unwrap();
    runtime.reopen_log(&kept).await.unwrap();
    runtime.exec(&kept, &words(&["touch", "/tmp/go"]), Duration::from_secs(10)).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(20), runtime.next_event()).await.expect("its end is told");
    assert_eq!(event.pod, config.pod);
    assert_eq!(log_of(&exited(&runtime, &kept).await), "two\n");
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_sandbox_whose_process_was_killed_is_not_ready_and_leaves_nothing() {
    let bench = Bench::new();
    let config = bench.sandbox("orphan");
    let runtime = bench.open_with_image().await;
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    let id = start(&runtime, &sandbox, &config, &container("main", "sleep 1000")).await;
    let shim = std::fs::read_to_string(bench.folder.path().join(format!("runtime/sandboxes/{sandbox}/shim.json"))).unwrap();
    let process = serde_json::from_str::<serde_json::Value>(&shim).unwrap()["process"].as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.try_into().unwrap()), nix::sys::signal::Signal::SIGKILL).unwrap();
    let ended = exited(&runtime, &id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (255, "Unknown"));
    assert_eq!(runtime.list_sandboxes().await.unwrap()[0].state, SandboxState::NotReady);
    assert!(matches!(runtime.start_container(&id).await, Err(RuntimeError::Unavailable(_))));
    runtime.stop_container(&id, Duration::from_secs(1)).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn containers_of_a_pod_share_what_the_pod_says() {
    let bench = Bench::new();
    let runtime = bench.open_with_image().await;
    let mut config = bench.sandbox("shared");
    config.share_process_namespace = true;
    config.sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned());
    config.dns = Some(trireme_nodeagent::runtime::DnsConfig {
        servers: vec!["10.96.0.10".to_owned()],
        searches: vec!["default.svc".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    let one = start(&runtime, &sandbox, &config, &container("one", "echo shared > /dev/shm/note; sleep 1000")).await;
    let script = "cat /dev/shm/note /etc/resolv.conf /etc/hostname /proc/sys/net/ipv4/ip_unprivileged_port_start; ps | grep -c 'sleep 100[0]'; ls /proc/1/root/ 2>&1 | grep -c etc";
    let two = start(&runtime, &sandbox, &config, &container("two", script)).await;
    let log = log_of(&exited(&runtime, &two).await);
    assert_eq!(log, "shared\nsearch default.svc\nnameserver 10.96.0.10\noptions ndots:5\nshared\n80\n1\n0\n");
    assert_eq!(status(&runtime, &one).await.state, ContainerState::Running);
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn users_capabilities_and_mounts_are_as_asked() {
    let bench = Bench::new();
    let runtime = bench.open_with_image().await;
    let config = bench.sandbox("secure");
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    let host = bench.folder.path().join("volume");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "from the node\n").unwrap();

    let mut worker = container(
        "worker",
        "id -u; id -g; id -G; grep CapBnd /proc/self/status; echo $HOME; touch /x 2>&1; cat /v/file; touch /v/new 2>&1; cat /proc/kcore 2>/dev/null | wc -c; grep NoNewPrivs /proc/self/status",
    );
    worker.security.run_as_user = Some(1000);
    worker.security.supplemental_groups = vec![4242];
    worker.security.drop_capabilities = words(&["ALL"]);
    worker.security.add_capabilities = words(&["NET_BIND_SERVICE"]);
    worker.security.read_only_root_filesystem = true;
    worker.security.no_new_privileges = true;
    worker.mounts = vec![trireme_nodeagent::runtime::Mount {
        host_path: host.clone(),
        container_path: "/v".into(),
        read_only: true,
        propagation: trireme_nodeagent::runtime::MountPropagation::Private,
    }];
    let id = start(&runtime, &sandbox, &config, &worker).await;
    let log = log_of(&exited(&runtime, &id).await);
    let expected = "1000\n1000\n1000 2000 4242\nCapBnd:\t0000000000000400\n/tmp\ntouch: /x: Read-only file system\nfrom the node\ntouch: /v/new: Read-only file system\n0\nNoNewPrivs:\t1\n";
    assert_eq!(log, expected);

    let mut privileged = container("privileged", "grep CapEff /proc/self/status; mount -t tmpfs none /tmp && echo mounted");
    privileged.security.privileged = true;
    let id = start(&runtime, &sandbox, &config, &privileged).await;
    let log = log_of(&exited(&runtime, &id).await);
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap();
    assert_eq!(log, format!("CapEff:{own}\nmounted\n"));

    let mut root = container("root", "true");
    root.security.run_as_non_root = true;
    let id = runtime.create_container(&sandbox, &config, &root).await.unwrap();
    let refused = runtime.start_container(&id).await.unwrap_err().to_string();
    assert!(refused.contains("runAsNonRoot"), "{refused}");
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let bench = Bench::new();
    let runtime = bench.open_with_image().await;
    let config = bench.sandbox("broken");
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    for (command, expected) in [
        (words(&["no-such-command"]), "exec: \"no-such-command\": executable file not found in $PATH"),
        (words(&["/etc/passwd"]), "exec: \"/etc/passwd\": permission denied"),
        (words(&["/not/there"]), "exec: \"/not/there\": stat /not/there: no such file or directory"),
    ] {
        let mut asked = container("main", "");
        asked.command = command;
        let id = runtime.create_container(&sandbox, &config, &asked).await.unwrap();
        let message = runtime.start_container(&id).await.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        let ended = status(&runtime, &id).await;
        assert_eq!((ended.state, ended.exit_code, ended.reason.as_str()), (ContainerState::Exited, 128, "StartError"));
        runtime.remove_container(&id).await.unwrap();
    }
    let mut unknown = container("main", "true");
    unknown.image = "localhost/nothing".to_owned();
    assert!(matches!(
        runtime.create_container(&sandbox, &config, &unknown).await,
        Err(RuntimeError::NotFound { what: "image", .. })
    ));
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_half_made_sandbox_is_cleared_away_at_the_start() {
    let bench = Bench::new();
    let config = bench.sandbox("half");
    let runtime = bench.open_with_image().await;
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    start(&runtime, &sandbox, &config, &container("main", "sleep 1000")).await;
    drop(runtime);
    let record = bench.folder.path().join(format!("runtime/sandboxes/{sandbox}/sandbox.json"));
    let text = std::fs::read_to_string(&record).unwrap();
    assert!(text.contains("\"complete\":true"));
    std::fs::write(&record, text.replace("\"complete\":true", "\"complete\":false")).unwrap();
    std::fs::create_dir(bench.folder.path().join("runtime/sandboxes/empty")).unwrap();

    let runtime = bench.open().await;
    assert!(runtime.list_sandboxes().await.unwrap().is_empty());
    assert!(runtime.list_containers().await.unwrap().is_empty());
    assert_eq!(bench.leftovers(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(bench.folder.path().join("runtime/sandboxes")).unwrap().count(), 0);
    runtime.remove_image(IMAGE).await.unwrap();
    assert_eq!(std::fs::read_dir(bench.folder.path().join("images/layers")).unwrap().count(), 0, "nothing holds the layers");
}

#[tokio::test]
async fn one_data_folder_serves_one_process() {
    let bench = Bench::new();
    let _runtime = bench.open().await;
    let second = tokio::task::spawn_blocking({
        let place = bench.folder.path().join("runtime/lock");
        move || std::fs::File::options().write(true).open(place).unwrap().try_lock()
    });
    assert!(second.await.unwrap().is_err());
}

#[tokio::test]
async fn an_end_that_could_not_be_written_is_told_later() {
    let bench = Bench::new();
    let config = bench.sandbox("full");
    let runtime = bench.open_with_image().await;
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    let script = "while ! test -e /tmp/go; do sleep 0.1; done; exit 5";
    let id = start(&runtime, &sandbox, &config, &container("main", script)).await;
    // A folder in the file's place refuses the write as a full disk does.
    let outcome = bench.folder.path().join(format!("runtime/sandboxes/{sandbox}/containers/{id}/status.json"));
    std::fs::remove_file(&outcome).unwrap();
    std::fs::create_dir_all(outcome.join("in-the-way")).unwrap();
    runtime.exec(&id, &words(&["touch", "/tmp/go"]), Duration::from_secs(10)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    std::fs::remove_dir_all(&outcome).unwrap();
    let ended = exited(&runtime, &id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (5, "Error"));
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_read_does_not_keep_the_others_waiting() {
    let bench = Bench::new();
    let config = bench.sandbox("good");
    let runtime = bench.open_with_image().await;
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    let id = start(&runtime, &sandbox, &config, &container("main", "sleep 1000")).await;
    drop(runtime);
    let broken = bench.folder.path().join("runtime/sandboxes/broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("sandbox.json"), "{").unwrap();

    let runtime = bench.open().await;
    assert_eq!(status(&runtime, &id).await.state, ContainerState::Running);
    assert_eq!(runtime.list_sandboxes().await.unwrap().len(), 1);
    runtime.tidy().await;
    assert!(broken.exists(), "what is not known is not removed");
    std::fs::remove_file(broken.join("sandbox.json")).unwrap();
    runtime.tidy().await;
    assert!(!broken.exists(), "but as soon as it can be");
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn what_pods_ask_for_counts_between_them() {
    let bench = Bench::new();
    let runtime = bench.open_with_image().await;
    let mut sandboxes = Vec::new();
    for (name, class, shares) in [("one", "burstable/podone", 512), ("two", "burstable/podtwo", 256), ("three", "podthree", 2048)]
    {
        let mut config = bench.sandbox(name);
        config.cgroup_parent = class.to_owned();
        config.resources =
            PodResources { cpu_shares: Some(shares), cpu_quota_us: Some(50_000), memory_limit_bytes: Some(64 << 20) };
        sandboxes.push((runtime.run_sandbox(&config).await.unwrap(), config));
    }
    // On cgroup v1, as it counts there; on v2 the same as weights.
    let unified =
        cgroup_file(std::path::Path::new("/"), "cgroup.controllers").is_some_and(|controllers| controllers.contains("cpu"));
    let shares = |place: &str| cgroup_file(&bench.cgroup.join(place), if unified { "cpu.weight" } else { "cpu.shares" }).unwrap();
    let found = ["burstable/podone", "burstable/podtwo", "podthree", "burstable", "besteffort"].map(shares);
    assert_eq!(found, if unified { ["20", "10", "79", "30", "1"] } else { ["512", "256", "2048", "768", "2"] });
    if !unified {
        assert_eq!(cgroup_file(&bench.cgroup.join("podthree"), "cpu.cfs_quota_us").unwrap(), "50000");
        assert_eq!(cgroup_file(&bench.cgroup.join("podthree"), "memory.limit_in_bytes").unwrap(), (128 << 20).to_string());
    }
    // A container with all of its pod's processor starts.
    let mut asked = container("main", "true");
    asked.resources.cpu_quota_us = Some(50_000);
    asked.resources.cpu_period_us = Some(100_000);
    let (sandbox, config) = &sandboxes[2];
    let id = start(&runtime, sandbox, config, &asked).await;
    assert_eq!(exited(&runtime, &id).await.exit_code, 0);
    runtime.remove_sandbox(&sandboxes[0].0).await.unwrap();
    assert_eq!(shares("burstable"), if unified { "10" } else { "256" });
    for (sandbox, _) in &sandboxes[1..] {
        runtime.remove_sandbox(sandbox).await.unwrap();
    }
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}
