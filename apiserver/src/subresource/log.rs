//! `pods/log`: the API server fetches a container's log from the agent of the pod's node.

use std::{net::SocketAddr, sync::Arc};

use http_body_util::BodyExt;
use serde_json::Value;
use trireme_api::status::Status;

use crate::{
    ApiServer,
    answer::Answer,
    body::{self, BodyError},
    cache::CachedObject,
    request::ApiRequest,
    router::query::percent_encode,
    store_error::status_of,
};

/// The port of an agent that says none.
const DEFAULT_AGENT_PORT: u16 = 10250;
/// How much of an agent's refusal is read.
const REFUSAL_LIMIT_BYTES: usize = 64 * 1024;
/// The parameters that the agent understands.
const PASSED_ON: &[&str] =
    &["follow", "previous", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "limitBytes", "stream"];

/// Streams the log of one container.
///
/// # Errors
/// 400 for a bad container or parameter and for a container that has not started, 404 for an unknown pod, 500 when
/// the agent cannot be reached.
pub async fn log(server: &ApiServer, request: &ApiRequest) -> Result<Answer, Status> {
    let name = request.object_name()?;
    let namespace = request.namespace.as_deref().unwrap_or_default();
    server.caches.barrier(server.store.as_ref()).await.map_err(|error| status_of(&error))?;
    let path = format!("{namespace}/{name}");
    let pod = server.cache(&request.resource)?.object(&path).ok_or_else(|| Status::not_found(&request.resource, name))?;
    let pod = pod.value();
    for count in ["tailLines", "sinceSeconds", "limitBytes"] {
        check_count(request, name, count)?;
    }
    let container = choose_container(&pod, name, request.query.non_empty("container"))?;
    let node_name = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if node_name.is_empty() {
        // A pod without a node has written nothing.
        return Ok(Answer::Stream { content_type: "text/plain", body: body::full("") });
    }
    let node = server.cached("", "v1", "nodes", node_name);
    let address = node
        .as_ref()
        .and_then(agent_address)
        .ok_or_else(|| Status::internal(format!("Internal error occurred: the address of node \"{node_name}\" is not known")))?;
    let client = server
        .node_client
        .as_ref()
        .ok_or_else(|| Status::internal("Internal error occurred: this server has no certificate for node agents"))?;
    let query = request.query.select(PASSED_ON);
    let path =
        format!("/containerLogs/{}/{}/{}?{query}", percent_encode(namespace), percent_encode(name), percent_encode(&container));
    let response = client
        .get(address, &path)
        .await
        .map_err(|error| Status::internal(format!("Get \"https://{address}{path}\": {error}")))?;
    if response.status().is_success() {
        let body = response.into_body().map_err(BodyError::new).boxed_unsync();
        return Ok(Answer::Stream { content_type: "text/plain", body });
    }
    let code = response.status().as_u16();
    let text = beginning(response.into_body()).await;
    Err(agent_refusal(&pod, name, &container, code, String::from_utf8_lossy(&text).trim()))
}

/// What a body begins with, as far as it goes into a message: the agent may be anybody's program.
async fn beginning<B>(mut body: B) -> Vec<u8>
where
    B: http_body::Body<Data = bytes::Bytes> + Unpin,
{
    let mut text = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else { continue };
        let room = REFUSAL_LIMIT_BYTES - text.len();
        text.extend_from_slice(&data[..data.len().min(room)]);
        if text.len() == REFUSAL_LIMIT_BYTES {
            break;
        }
    }
    text
}

fn check_count(request: &ApiRequest, pod: &str, field: &str) -> Result<(), Status> {
    match request.query.integer(field)? {
        Some(count) if count < 0 => Err(Status::new(
            422,
            "Invalid",
            format!("PodLogOptions \"{pod}\" is invalid: {field}: Invalid value: {count}: must be greater than or equal to 0"),
        )),
        _ => Ok(()),
    }
}

/// What the agent's refusal is to the client; a container that waits is named as such.
fn agent_refusal(pod: &Value, name: &str, container: &str, code: u16, text: &str) -> Status {
    if let Some(reason) = waiting_reason(pod, container) {
        return Status::bad_request(format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"));
    }
    if let Ok(status) = serde_json::from_str::<Value>(text)
        && let Some(message) = status["message"].as_str()
    {
        return Status::bad_request(message);
    }
    match code {
        400 | 404 => Status::bad_request(text),
        _ => Status::internal(format!("an error on the server (\"{text}\") has prevented the request from succeeding")),
    }
}

fn waiting_reason<'a>(pod: &'a Value, container: &str) -> Option<&'a str> {
    let statuses = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let status = statuses
        .iter()
        .filter_map(|list| pod["status"][*list].as_array())
        .flatten()
        .find(|status| status["name"] == container)?;
    status.pointer("/state/waiting/reason").and_then(Value::as_str)
}

/// The container that is meant: the one that is named, or the only one.
fn choose_container(pod: &Value, pod_name: &str, named: Option<&str>) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array();
        containers.into_iter().flatten().filter_map(|container| container["name"].as_str().map(str::to_owned)).collect()
    };
    let (containers, inits, ephemerals) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if let Some(named) = named {
        let is_known = [&containers, &inits, &ephemerals].into_iter().flatten().any(|name| name == named);
        return if is_known {
            Ok(named.to_owned())
        } else {
            Err(Status::bad_request(format!("container {named} is not valid for pod {pod_name}")))
        };
    }
    if let [only] = containers.as_slice() {
        return Ok(only.clone());
    }
    let mut message = format!("a container name must be specified for pod {pod_name}, choose one of: [{}]", containers.join(" "));
    if !inits.is_empty() {
        message.push_str(&format!(" or one of the init containers: [{}]", inits.join(" ")));
    }
    if !ephemerals.is_empty() {
        message.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemerals.join(" ")));
    }
    Err(Status::bad_request(message))
}

/// The address that a node registered for its agent.
fn agent_address(node: &Arc<CachedObject>) -> Option<SocketAddr> {
    let node = node.value();
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    let of_type = |wanted: &str| {
        addresses
            .iter()
            .filter(move |address| address["type"] == *wanted)
            .find_map(|address| address["address"].as_str()?.parse().ok())
    };
    let address = of_type("InternalIP").or_else(|| of_type("ExternalIP"))?;
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).unwrap_or(DEFAULT_AGENT_PORT);
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_is_chosen_as_kubernetes_does() {
        let one = json!({ "spec": { "containers": [{ "name": "a" }] } });
        let two = json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b" }], "initContainers": [{ "name": "i" }] } });
        let choose = |pod: &Value, named| choose_container(pod, "x", named).map_err(|status| status.message);
        assert_eq!(choose(&one, None), Ok("a".to_owned()));
        assert_eq!(choose(&two, Some("i")), Ok("i".to_owned()));
        assert_eq!(choose(&two, Some("z")), Err("container z is not valid for pod x".to_owned()));
        assert_eq!(
            choose(&two, None),
            Err("a container name must be specified for pod x, choose one of: [a b] or one of the init containers: [i]"
                .to_owned())
        );
    }

    #[tokio::test]
    async fn a_long_refusal_is_cut() {
        let frames = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(http_body::Frame::data(vec![b'x'; 1000].into())));
        assert_eq!(beginning(http_body_util::StreamBody::new(frames)).await.len(), REFUSAL_LIMIT_BYTES);
        assert_eq!(beginning(http_body_util::Full::new(bytes::Bytes::from_static(b"no"))).await, b"no");
    }

    #[test]
    fn a_waiting_container_is_named() {
        let pod = json!({ "status": { "containerStatuses": [{ "name": "a", "state": { "waiting": { "reason": "ContainerCreating" } } }] } });
        let status = agent_refusal(&pod, "x", "a", 404, "no log");
        assert_eq!(
            (status.code, status.message.as_str()),
            (400, "container \"a\" in pod \"x\" is waiting to start: ContainerCreating")
        );
        assert_eq!(agent_refusal(&json!({}), "x", "a", 404, "previous terminated container not found").code, 400);
        assert_eq!(agent_refusal(&json!({}), "x", "a", 500, "boom").code, 500);
    }
}
