//! What the server offers: versions, groups, resources, in the legacy and in the aggregated form.

use std::collections::BTreeMap;

use http::{HeaderValue, header, request::Parts};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use trireme_api::{
    registry::{Registry, Resource, Scope, Subresource},
    status::Status,
};

use crate::{
    ApiServer,
    answer::Answer,
    body,
    negotiate::MediaType,
    openapi,
    router::{Query, Route},
};

/// Answers for a path that is neither a resource nor a health check.
///
/// # Errors
/// 404 for a group or version that is not there.
pub fn answer(server: &ApiServer, route: &Route, parts: &Parts, query: &Query) -> Result<Answer, Status> {
    let registry = &server.registry;
    let value = match route {
        Route::Root => json!({ "paths": paths(registry) }),
        Route::Version => version(server),
        Route::Metrics => return Ok(metrics(server)),
        Route::OpenApiV2 => return Ok(openapi::v2(server, parts)),
        Route::OpenApiV3Index => return Ok(openapi::v3_index(server, parts)),
        Route::OpenApiV3(path) => return openapi::v3(server, path, parts, query),
        Route::CoreVersions | Route::Groups => match aggregated_version(parts) {
            Some(version) => return Ok(aggregated(registry, matches!(route, Route::CoreVersions), version)),
            None if *route == Route::CoreVersions => core_versions(parts),
            None => groups(registry),
        },
        Route::Group(group) => group_document(registry, group).ok_or_else(Status::unknown_path)?,
        Route::GroupVersion { group, version } => resources(registry, group, version).ok_or_else(Status::unknown_path)?,
        Route::Health(_) | Route::Resource(_) | Route::Other => return Err(Status::unknown_path()),
    };
    Ok(Answer::Value { code: 200, value })
}

fn version(server: &ApiServer) -> Value {
    json!({
        "major": "1",
        "minor": server.version.minor.to_string(),
        "gitVersion": server.version.git_version(),
        "gitCommit": server.version.git_commit,
        "gitTreeState": "clean",
        "buildDate": server.version.build_date,
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

fn metrics(server: &ApiServer) -> Answer {
    let text = server.metrics_text();
    let mut response = http::Response::new(body::full(text));
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Answer::Response(response)
}

/// The versions of each group, newest first; the core group has the empty name.
fn versions(registry: &Registry) -> BTreeMap<String, Vec<String>> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for resource in registry.iter() {
        let versions = groups.entry(resource.group.to_string()).or_default();
        if !versions.iter().any(|version| *version == resource.version) {
            versions.push(resource.version.to_string());
        }
    }
    if takes_evictions(registry) {
        // By this group, which has no resource of its own yet, old clients know that pods can be evicted.
        groups.entry("policy".to_owned()).or_insert_with(|| vec!["v1".to_owned()]);
    }
    for versions in groups.values_mut() {
        versions.sort_by_key(|version| stability(version));
    }
    groups
}

fn takes_evictions(registry: &Registry) -> bool {
    registry.get("", "v1", "pods").is_some_and(|pods| pods.subresource("eviction").is_some())
}

/// Stable versions first, then beta, then alpha; the newer first among equals.
fn stability(version: &str) -> (u8, std::cmp::Reverse<String>) {
    let rank = match version {
        version if version.contains("alpha") => 2,
        version if version.contains("beta") => 1,
        _ => 0,
    };
    (rank, std::cmp::Reverse(version.to_owned()))
}

fn paths(registry: &Registry) -> Vec<String> {
    let mut paths: Vec<String> =
        ["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
            .map(str::to_owned)
            .to_vec();
    for (group, versions) in versions(registry) {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
        }
        for version in versions {
            paths.push(if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") });
        }
    }
    paths.sort_unstable();
    paths
}

fn core_versions(parts: &Parts) -> Value {
    let address = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let address = address.or_else(|| parts.uri.authority().map(|authority| authority.as_str())).unwrap_or_default();
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": address }],
    })
}

fn groups(registry: &Registry) -> Value {
    let listed: Vec<Value> = versions(registry)
        .into_iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_value(&group, &versions))
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": listed })
}

fn group_value(group: &str, versions: &[String]) -> Value {
    let listed: Vec<Value> =
        versions.iter().map(|version| json!({ "groupVersion": format!("{group}/{version}"), "version": version })).collect();
    json!({ "name": group, "versions": listed, "preferredVersion": listed.first() })
}

fn group_document(registry: &Registry, group: &str) -> Option<Value> {
    let versions = versions(registry).remove(group).filter(|_| !group.is_empty())?;
    let mut document = group_value(group, &versions);
    document["kind"] = json!("APIGroup");
    document["apiVersion"] = json!("v1");
    Some(document)
}

fn verbs(resource: &Resource) -> Vec<&'static str> {
    let mut verbs = vec!["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    if resource.group.is_empty() && resource.plural == "namespaces" {
        // Namespaces go one by one.
        verbs.retain(|verb| *verb != "deletecollection");
    }
    verbs
}

fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut listed = Vec::new();
    for resource in registry.iter().filter(|resource| resource.group == group && resource.version == version) {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.scope == Scope::Namespaced,
            "kind": resource.kind,
            "verbs": verbs(resource),
            "storageVersionHash": storage_version_hash(resource),
        });
        add_names(&mut entry, "shortNames", &resource.short_names);
        add_names(&mut entry, "categories", &resource.categories);
        listed.push(entry);
        listed.extend(resource.subresources.iter().map(|subresource| subresource_entry(resource, subresource)));
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let is_served = versions(registry).get(group).is_some_and(|versions| versions.iter().any(|served| served == version));
    is_served
        .then(|| json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed }))
}

fn subresource_entry(resource: &Resource, subresource: &Subresource) -> Value {
    let mut entry = json!({
        "name": format!("{}/{}", resource.plural, subresource.name),
        "singularName": "",
        "namespaced": resource.scope == Scope::Namespaced,
        "kind": subresource.kind,
        "verbs": subresource.verbs,
    });
    if subresource.group != resource.group || subresource.version != resource.version {
        entry["group"] = json!(subresource.group);
        entry["version"] = json!(subresource.version);
    }
    entry
}

fn add_names(entry: &mut Value, field: &str, names: &[std::borrow::Cow<'static, str>]) {
    if !names.is_empty() {
        entry[field] = json!(names);
    }
}

fn storage_version_hash(resource: &Resource) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let digest = Sha256::digest(format!("{}/{}/{}", resource.group, resource.version, resource.kind));
    STANDARD.encode(&digest[..8])
}

/// The version of aggregated discovery that the client prefers, if it takes it (KEP-3352).
fn aggregated_version(parts: &Parts) -> Option<&'static str> {
    let accept = parts.headers.get(header::ACCEPT)?.to_str().ok()?;
    let is_aggregated = |media: &MediaType<'_>| {
        media.essence == "application/json"
            && media.parameter("as") == Some("APIGroupDiscoveryList")
            && media.parameter("g") == Some("apidiscovery.k8s.io")
    };
    accept.split(',').map(MediaType::parse).filter(is_aggregated).find_map(|media| match media.parameter("v") {
        Some("v2") => Some("v2"),
        Some("v2beta1") => Some("v2beta1"),
        _ => None,
    })
}

fn aggregated(registry: &Registry, is_core: bool, version: &'static str) -> Answer {
    let groups = versions(registry).into_iter().filter(|(group, _)| group.is_empty() == is_core);
    let items: Vec<Value> = groups
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    json!({ "version": version, "resources": aggregated_resources(registry, &group, version), "freshness": "Current" })
                })
                .collect();
            let mut metadata = Map::new();
            metadata.insert("creationTimestamp".to_owned(), Value::Null);
            if !group.is_empty() {
                metadata.insert("name".to_owned(), json!(group));
            }
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    let document = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let content_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    Answer::Stream { content_type, body: body::full(document.to_string()) }
}

fn aggregated_resources(registry: &Registry, group: &str, version: &str) -> Vec<Value> {
    let in_version = registry.iter().filter(|resource| resource.group == group && resource.version == version);
    in_version
        .map(|resource| {
            let kind = json!({ "group": resource.group, "version": resource.version, "kind": resource.kind });
            let mut entry = json!({
                "resource": resource.plural,
                "responseKind": kind,
                "scope": if resource.scope == Scope::Namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": resource.singular,
                "verbs": verbs(resource),
            });
            add_names(&mut entry, "shortNames", &resource.short_names);
            add_names(&mut entry, "categories", &resource.categories);
            if !resource.subresources.is_empty() {
                entry["subresources"] = resource
                    .subresources
                    .iter()
                    .map(|subresource| {
                        json!({
                            "subresource": subresource.name,
                            "responseKind": { "group": subresource.group, "version": subresource.version, "kind": subresource.kind },
                            "verbs": subresource.verbs,
                        })
                    })
                    .collect();
            }
            entry
        })
        .collect()
}
