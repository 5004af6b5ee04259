//! The CRI runtime against a containerd of its own. Needs root and the packages containerd and busybox-static.

mod real;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use real::{Bench, IMAGE, busybox, container, require_root, words};
use serde_json::json;
use trireme_nodeagent::{
    cri::{CriRuntime, Owner},
    image::build::busybox_image,
    runtime::{ContainerState, ContainerStatus, Runtime, RuntimeError, SandboxState},
};

const PAUSE_IMAGE: &str = "localhost/pause:test";

/// A containerd on folders of the test.
struct Containerd {
    process: Child,
}

impl Containerd {
    fn start(folder: &Path) -> Containerd {
        require_root();
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n[grpc]\naddress = \"{0}/containerd.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{PAUSE_IMAGE}\"\nrestrict_oom_score_adj = true\n",
            folder.display()
        );
        std::fs::write(folder.join("config.toml"), config).unwrap();
        let log = std::fs::File::create(folder.join("containerd.log")).unwrap();
        let process = Command::new("containerd")
            .arg("--config")
            .arg(folder.join("config.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("this test needs the package containerd (apt-get install containerd)");
        Containerd { process }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn owner(node: &str) -> Owner {
    Owner { cluster: "test".to_owned(), node: node.to_owned() }
}

async fn connect(socket: &Path, node: &str) -> CriRuntime {
    for _ in 0..100 {
        if let Ok(runtime) = CriRuntime::connect(socket, owner(node)).await {
            return runtime;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("containerd does not answer at {}", socket.display())
}

async fn status(runtime: &CriRuntime, id: &str) -> ContainerStatus {
    runtime.list_containers().await.unwrap().into_iter().find(|status| status.id == id).expect("the container is listed")
}

#[tokio::test]
async fn containerd_runs_a_pod() {
    let bench = Bench::new();
    let folder = bench.folder.path();
    let socket = folder.join("containerd.sock");
    assert!(matches!(CriRuntime::connect(&socket, owner("node-1")).await, Err(RuntimeError::Unavailable(_))));
    let _containerd = Containerd::start(folder);
    let runtime = connect(&socket, "node-1").await;
    assert_eq!(runtime.version().await.unwrap().name, "containerd");

    let image = busybox_image(&busybox()).unwrap();
    let pause = image.clone().config("Cmd", json!(["sleep", "100000"]));
    for (image, name) in [(&image, IMAGE), (&pause, PAUSE_IMAGE)] {
        let archive = folder.join("image.tar");
        image.write_docker_archive(&archive, name).unwrap();
        let loaded = runtime.load_image(&archive, name).await.unwrap();
        assert!(loaded.references.iter().any(|reference| reference == name), "{loaded:?}");
    }
    assert!(runtime.image("localhost/nothing:here").await.unwrap().is_none());
    let refused = runtime.pull_image("Not A Name", &[]).await;
    assert!(matches!(refused, Err(RuntimeError::Image { reason: "InvalidImageName", .. })), "{refused:?}");

    let mut config = bench.sandbox("web");
    config.host_network = true;
    config.cgroup_parent = format!("{}/podweb", bench.cgroup.display());
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    let sandboxes = runtime.list_sandboxes().await.unwrap();
    assert_eq!((sandboxes.len(), sandboxes[0].state, &sandboxes[0].pod), (1, SandboxState::Ready, &config.pod));

    let mut asked = container("main", "trap 'exit 7' TERM; echo hello $WHO; while true; do sleep 0.1; done");
    asked.environment = vec![("WHO".to_owned(), "world".to_owned())];
    asked.security.run_as_group = Some(4242);
    let id = runtime.create_container(&sandbox, &config, &asked).await.unwrap();
    assert_eq!(status(&runtime, &id).await.state, ContainerState::Created);
    runtime.start_container(&id).await.unwrap();
    let neighbour = connect(&socket, "node-2").await;
    assert!(neighbour.list_sandboxes().await.unwrap().is_empty(), "another node on the socket does not take the pod for its own");
    assert!(neighbour.list_containers().await.unwrap().is_empty());
    let output = runtime.exec(&id, &words(&["sh", "-c", "echo $WHO; exit 3"]), Duration::from_secs(10)).await.unwrap();
    assert_eq!((output.exit_code, output.stdout.as_slice()), (3, &b"world\n"[..]));
    let groups = runtime.exec(&id, &words(&["id", "-g"]), Duration::from_secs(10)).await.unwrap();
    assert_eq!(groups.stdout, b"4242\n");
    let slow = runtime.exec(&id, &words(&["sleep", "1000"]), Duration::from_secs(1)).await;
    assert!(matches!(slow, Err(RuntimeError::Timeout(..))), "{slow:?}");

    let watched = tokio::time::timeout(Duration::from_secs(30), async {
        tokio::join!(runtime.next_event(), async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            runtime.stop_container(&id, Duration::from_secs(20)).await.unwrap();
        })
    });
    assert_eq!(watched.await.expect("the stop is told").0.pod, config.pod);
    let ended = status(&runtime, &id).await;
    assert_eq!((ended.state, ended.exit_code, &ended.pod), (ContainerState::Exited, 7, &config.pod));
    let log = std::fs::read_to_string(&ended.log_path).unwrap();
    assert!(log.contains(" stdout F hello world\n"), "{log}");

    runtime.remove_container(&id).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert!(runtime.list_sandboxes().await.unwrap().is_empty());
    runtime.remove_image(IMAGE).await.unwrap();
}
