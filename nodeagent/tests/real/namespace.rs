//! Network namespaces of a test, each the network of one machine.

use std::{path::PathBuf, process::Command, thread, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::require_root;

/// A named network namespace, with its loopback interface set up.
pub struct Namespace {
    pub name: String,
}

/// Runs `ip`.
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().expect("this test needs iproute2");
    assert!(status.success(), "ip {arguments}");
}

impl Namespace {
    pub fn new() -> Namespace {
        require_root();
        let name = format!("trireme-test-{}", uuid::Uuid::new_v4().simple());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Namespace { name }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name))
    }

    /// Lays a cable to another namespace, with an address at each end.
    pub fn join(&self, address: &str, other: &Namespace, other_address: &str) {
        ip(&format!("-n {} link add wire type veth peer name wire netns {}", self.name, other.name));
        for (name, address) in [(&self.name, address), (&other.name, other_address)] {
            ip(&format!("-n {name} addr add {address} dev wire"));
            ip(&format!("-n {name} link set wire up"));
        }
    }

    /// Runs work on a thread inside the namespace, to its end.
    pub fn run<T: Send + 'static>(&self, work: impl AsyncFnOnce() -> T + Send + 'static) -> T {
        let path = self.path();
        let inside = thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work())
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A script that serves, on port 8080, the address that the client has there.
pub const WHO_SERVER: &str = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo $REMOTE_ADDR' > /www/cgi-bin/who; \
                              chmod +x /www/cgi-bin/who; exec httpd -f -p 8080 -h /www";

/// Asks [`WHO_SERVER`] from the namespace that this thread is in; `None` when nobody answers.
pub async fn who(address: &str) -> Option<String> {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        stream.write_all(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(plain(answer.rsplit("\n\n").next()?.rsplit("\r\n\r\n").next()?).to_owned())
    };
    tokio::time::timeout(Duration::from_secs(3), ask).await.ok().flatten()
}

/// The same, until somebody answers.
pub async fn who_at_last(address: &str) -> String {
    for _ in 0..50 {
        if let Some(answer) = who(address).await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nobody answers at {address}")
}

/// The address as busybox's httpd tells it, without its mapping into IPv6.
pub fn plain(answer: &str) -> &str {
    answer.trim().trim_start_matches("[::ffff:").trim_end_matches(']')
}
