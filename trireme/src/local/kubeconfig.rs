//! The administrator's kubeconfig.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::spec::ClusterSpec;
use crate::pki::Identity;

/// One context's name and its server.
pub struct Server {
    pub context: String,
    pub url: String,
}

/// The servers of a local cluster: the balancer first, then each master by itself.
pub fn servers(spec: &ClusterSpec) -> Vec<Server> {
    let masters =
        spec.masters.iter().map(|master| Server { context: master.name.clone(), url: format!("https://{}", master.api) });
    std::iter::once(Server { context: "trireme".to_owned(), url: format!("https://{}", spec.balancer()) })
        .chain(masters)
        .collect()
}

/// A kubeconfig as YAML, whose current context is the first of `servers`.
pub fn render(servers: &[Server], authority: &str, admin: &Identity) -> anyhow::Result<String> {
    let authority = STANDARD.encode(authority);
    let clusters: Vec<Value> = servers
        .iter()
        .map(|server| json!({ "name": server.context, "cluster": { "server": server.url, "certificate-authority-data": authority } }))
        .collect();
    let contexts: Vec<Value> = servers
        .iter()
        .map(|server| json!({ "name": server.context, "context": { "cluster": server.context, "user": "admin" } }))
        .collect();
    let document = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": clusters,
        "contexts": contexts,
        "current-context": servers.first().map(|server| server.context.as_str()),
        "users": [{
            "name": "admin",
            "user": {
                "client-certificate-data": STANDARD.encode(&admin.certificate),
                "client-key-data": STANDARD.encode(&admin.key),
            },
        }],
    });
    Ok(serde_saphyr::to_string(&document)?)
}
