//! The administrator's kubeconfig.

use std::path::Path;

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::spec::ClusterSpec;
use crate::pki::Identity;

/// The administrator, as a kubeconfig's user.
const USER: &str = "admin";

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

/// What a kubeconfig's file holds; empty when there is none.
pub fn read(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// A kubeconfig as YAML, with a context for each of `servers`. Whatever else `existing` holds stays; the current context is the first
/// of `servers` unless it names another one.
pub fn merge(existing: &str, servers: &[Server], authority: &str, admin: &Identity) -> Result<String> {
    let mut document = parse(existing)?;
    let authority = STANDARD.encode(authority);
    for server in servers {
        let cluster = json!({ "server": server.url, "certificate-authority-data": authority });
        put(&mut document, "clusters", &server.context, "cluster", cluster);
        put(&mut document, "contexts", &server.context, "context", json!({ "cluster": server.context, "user": USER }));
    }
    put(&mut document, "users", USER, "user", credentials(admin));
    let first = servers.first().map(|server| json!(server.context)).unwrap_or_default();
    document.entry("current-context").or_insert(first);
    Ok(serde_saphyr::to_string(&document)?)
}

/// The same kubeconfig without the context of a server that is gone; what went there goes to the first of `servers`. `None` when
/// nothing of it is to change.
pub fn forget(existing: &str, gone: &str, servers: &[Server]) -> Result<Option<String>> {
    let before = parse(existing)?;
    let mut document = before.clone();
    let first = servers.first().map(|server| json!(server.context)).unwrap_or_default();
    for list in ["clusters", "contexts"] {
        if let Some(entries) = document.get_mut(list).and_then(Value::as_array_mut) {
            entries.retain(|entry| entry["name"] != gone);
        }
    }
    for context in document.get_mut("contexts").and_then(Value::as_array_mut).into_iter().flatten() {
        if context["context"]["cluster"] == gone {
            context["context"]["cluster"] = first.clone();
        }
    }
    if document.get("current-context").is_some_and(|current| current == gone) {
        document.insert("current-context".to_owned(), first);
    }
    Ok(if document == before { None } else { Some(serde_saphyr::to_string(&document)?) })
}

/// Which users of a kubeconfig are the administrator.
#[derive(Clone, Copy, Debug)]
pub enum Ours<'a> {
    /// The one that [`merge`] made, by its name.
    Named,
    /// Those that have this certificate, PEM.
    With(&'a str),
}

/// The same kubeconfig with the administrator's new certificate; `None` when nothing of it is to change.
pub fn renew(existing: &str, ours: Ours<'_>, admin: &Identity) -> Result<Option<String>> {
    let mut document = parse(existing)?;
    let (wanted, mut changed) = (credentials(admin), false);
    for entry in document.get_mut("users").and_then(Value::as_array_mut).into_iter().flatten() {
        let is_ours = match ours {
            Ours::Named => entry["name"] == USER,
            Ours::With(certificate) => entry["user"]["client-certificate-data"] == STANDARD.encode(certificate),
        };
        if is_ours && entry["user"] != wanted {
            entry["user"] = wanted.clone();
            changed = true;
        }
    }
    Ok(if changed { Some(serde_saphyr::to_string(&document)?) } else { None })
}

fn credentials(admin: &Identity) -> Value {
    json!({
        "client-certificate-data": STANDARD.encode(&admin.certificate),
        "client-key-data": STANDARD.encode(&admin.key),
    })
}

fn parse(text: &str) -> Result<Map<String, Value>> {
    if text.trim().is_empty() {
        let empty = json!({ "apiVersion": "v1", "kind": "Config" });
        return Ok(empty.as_object().cloned().unwrap_or_default());
    }
    serde_saphyr::from_str(text).context("it is not a YAML document of fields")
}

/// Puts the entry of that name into a list, in place of the one that is there.
fn put(document: &mut Map<String, Value>, list: &str, name: &str, field: &str, value: Value) {
    let entries = document.entry(list).or_insert_with(|| json!([]));
    if !entries.is_array() {
        *entries = json!([]);
    }
    let Some(entries) = entries.as_array_mut() else { return };
    match entries.iter_mut().find(|entry| entry["name"] == name) {
        Some(entry) => entry[field] = value,
        None => entries.push(json!({ "name": name, field: value })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(text: &str) -> Identity {
        Identity { certificate: format!("certificate {text}"), key: format!("key {text}") }
    }

    fn server() -> Server {
        Server { context: "trireme".to_owned(), url: "https://127.0.0.1:6443".to_owned() }
    }

    fn document(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn what_users_have_added_stays() {
        let made = merge("", &[server()], "authority", &identity("1")).unwrap();
        let mut own = document(&made);
        own["contexts"].as_array_mut().unwrap().push(json!({ "name": "mine", "context": { "cluster": "far", "user": "me" } }));
        own["users"].as_array_mut().unwrap().push(json!({ "name": "me", "user": { "token": "t" } }));
        own["current-context"] = json!("mine");
        let text = serde_saphyr::to_string(&own).unwrap();

        let merged = merge(&text, &[server()], "authority", &identity("2")).unwrap();
        let renewed = renew(&text, Ours::With("certificate 1"), &identity("2")).unwrap().unwrap();
        assert_eq!(renewed, renew(&text, Ours::Named, &identity("2")).unwrap().unwrap());
        own["users"][0]["user"] = credentials(&identity("2"));
        assert_eq!(document(&merged), own);
        assert_eq!(document(&renewed), own);
    }

    #[test]
    fn a_server_that_is_gone_is_forgotten_and_nothing_else() {
        let leaving = Server { context: "master-2".to_owned(), url: "https://127.0.0.1:6445".to_owned() };
        let text = merge("", &[server(), leaving], "authority", &identity("1")).unwrap();
        let mut own = document(&text);
        let mine =
            |cluster: &str| json!({ "name": "mine", "context": { "cluster": cluster, "user": "admin", "namespace": "n" } });
        own["contexts"].as_array_mut().unwrap().push(mine("master-2"));
        own["current-context"] = json!("master-2");
        let with_own = serde_saphyr::to_string(&own).unwrap();

        let mut left = document(&merge("", &[server()], "authority", &identity("1")).unwrap());
        assert_eq!(document(&forget(&text, "master-2", &[server()]).unwrap().unwrap()), left);
        left["contexts"].as_array_mut().unwrap().push(mine("trireme"));
        assert_eq!(document(&forget(&with_own, "master-2", &[server()]).unwrap().unwrap()), left);
        assert_eq!(forget(&with_own, "master-3", &[server()]).unwrap(), None);
    }

    #[test]
    fn a_kubeconfig_of_somebody_else_is_left_alone() {
        let text = merge("", &[server()], "authority", &identity("1")).unwrap();
        assert_eq!(renew(&text, Ours::With("certificate 0"), &identity("2")).unwrap(), None);
        assert_eq!(renew(&text, Ours::Named, &identity("1")).unwrap(), None, "it has that certificate already");
        assert!(merge("- a list", &[server()], "authority", &identity("1")).is_err());
    }
}
