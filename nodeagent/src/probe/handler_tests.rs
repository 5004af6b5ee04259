use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use trireme_api::clock::SystemClock;

use super::*;
use crate::runtime::hollow::{HollowConfig, HollowRuntime};

async fn server(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..count]).to_lowercase();
            let answer = if request.contains("x-wanted: yes") { "HTTP/1.1 204 No Content\r\n\r\n" } else { answer };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    port
}

async fn probe(probe: Value) -> Found {
    let container: Container =
        serde_json::from_value(json!({ "name": "c", "ports": [{ "name": "web", "containerPort": 1 }] })).unwrap();
    let runtime = HollowRuntime::new(HollowConfig::default(), Arc::new(SystemClock));
    runtime.update_pod_cidrs(&["10.88.0.0/16".to_owned()]).await.unwrap();
    let target = Target { runtime: &runtime, container: &container, container_id: "none", address: "127.0.0.1" };
    target.probe(&serde_json::from_value(probe).unwrap(), Duration::from_secs(1)).await
}

#[tokio::test]
async fn http_answers_of_200_to_399_are_success() {
    let good = server("HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(
        probe(json!({ "httpGet": { "port": good, "path": "x" } })).await,
        Found::Result(Outcome::Success, "ok".to_owned())
    );
    let bad = server("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await;
    let message = "HTTP probe failed with statuscode: 500".to_owned();
    assert_eq!(probe(json!({ "httpGet": { "port": bad } })).await, Found::Result(Outcome::Failure, message));
    let headers = json!([{ "name": "X-Wanted", "value": "yes" }]);
    let found = probe(json!({ "httpGet": { "port": bad, "httpHeaders": headers } })).await;
    assert_eq!(found, Found::Result(Outcome::Success, String::new()));
}

#[tokio::test]
async fn tcp_is_success_when_it_connects() {
    let port = server("").await;
    assert_eq!(probe(json!({ "tcpSocket": { "port": port } })).await, Found::Result(Outcome::Success, String::new()));
    let closed = probe(json!({ "tcpSocket": { "port": "web" } })).await;
    assert!(matches!(closed, Found::Result(Outcome::Failure, _)), "{closed:?}");
}

#[tokio::test]
async fn what_cannot_be_probed_is_unknown() {
    for unknown in [
        json!({}),
        json!({ "grpc": { "port": 1 } }),
        json!({ "tcpSocket": { "port": "none" } }),
        json!({ "exec": { "command": ["true"] } }),
    ] {
        assert!(matches!(probe(unknown.clone()).await, Found::Unknown(_)), "{unknown}");
    }
}
