//! Which paths, methods, parameters and bodies there are: the same for both versions of the documents.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{META, group_path, gvk, list_schema_name, schema_of_kind};
use crate::{
    registry::{Registry, Resource, Scope, Subresource},
    schema::Schemas,
};

pub(super) const JSON_PATCH: &str = "application/json-patch+json";
pub(super) const MERGE_PATCH: &str = "application/merge-patch+json";
pub(super) const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";

const LIST_PARAMETERS: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const WRITE_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const PATCH_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
const DELETE_PARAMETERS: &[&str] = &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"];
const DELETE_COLLECTION_PARAMETERS: &[&str] = &[
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "labelSelector",
    "limit",
    "orphanDependents",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
];
const LOG_PARAMETERS: &[&str] =
    &["container", "follow", "insecureSkipTLSVerifyBackend", "limitBytes", "previous", "sinceSeconds", "tailLines", "timestamps"];

/// Name, type and description of a query parameter.
const PARAMETERS: &[(&str, &str, &str)] = &[
    ("allowWatchBookmarks", "boolean", "Whether a watch also sends events of type BOOKMARK."),
    (
        "container",
        "string",
        "The container for which to stream logs. Defaults to the only container if there is one container in the pod.",
    ),
    ("continue", "string", "Where to go on with a list that was cut by a limit, as the server gave it."),
    ("dryRun", "string", "When present, nothing is persisted. The only valid value is All."),
    ("fieldManager", "string", "The name of the actor or entity that makes these changes: at most 128 printable characters."),
    ("fieldSelector", "string", "Restricts the objects by their fields. Defaults to everything."),
    ("fieldValidation", "string", "What to do with unknown or duplicate fields: Ignore, Warn or Strict."),
    ("follow", "boolean", "Follow the log stream of the pod."),
    ("force", "boolean", "Whether an apply takes over fields that others own."),
    ("gracePeriodSeconds", "integer", "The duration in seconds before the object should be deleted. Zero means at once."),
    ("insecureSkipTLSVerifyBackend", "boolean", "Whether the certificate of the node is not verified."),
    ("labelSelector", "string", "Restricts the objects by their labels. Defaults to everything."),
    ("limit", "integer", "The most items that a list call answers with."),
    ("limitBytes", "integer", "The most bytes of the log to answer with."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy. Whether dependents are left alone."),
    ("pretty", "string", "If 'true', then the output is pretty printed."),
    ("previous", "boolean", "Return the logs of the previous, terminated container."),
    ("propagationPolicy", "string", "Whether and how dependents are collected: Orphan, Background or Foreground."),
    ("resourceVersion", "string", "How fresh or how old the answer has to be."),
    ("resourceVersionMatch", "string", "How resourceVersion is applied to a list: NotOlderThan or Exact."),
    ("sendInitialEvents", "boolean", "Whether a watch begins with the objects there are."),
    ("sinceSeconds", "integer", "Only logs newer than this many seconds."),
    ("tailLines", "integer", "How many lines from the end of the logs to show."),
    ("timeoutSeconds", "integer", "The timeout of the call in seconds, however active it is."),
    ("timestamps", "boolean", "Whether each line begins with its time."),
    ("watch", "boolean", "Watch for changes and answer with a stream of them."),
];

/// One method of one path.
pub(super) struct Operation {
    pub method: &'static str,
    pub id: String,
    pub description: String,
    pub action: &'static str,
    /// Names of [`query_parameter`]s.
    pub query: &'static [&'static str],
    /// The content types of the body and the name of its schema.
    pub body: Option<Body>,
    /// Codes and the name of the schema; none for plain text.
    pub responses: Vec<(u16, Option<String>)>,
    pub gvk: Value,
}

pub(super) struct Body {
    pub schema: String,
    pub content_types: &'static [&'static str],
    pub required: bool,
}

/// The parameters of one path, and its operations.
pub(super) struct Path {
    pub in_path: Vec<&'static str>,
    pub operations: Vec<Operation>,
}

/// Type and description of a query parameter.
pub(super) fn query_parameter(name: &str) -> (&'static str, &'static str) {
    PARAMETERS.iter().find(|(known, _, _)| *known == name).map_or(("string", ""), |(_, kind, text)| (*kind, *text))
}

/// What a parameter in the path means.
pub(super) fn path_parameter(name: &str, kind: &str) -> String {
    if name == "namespace" {
        "object name and auth scope, such as for teams and projects".to_owned()
    } else {
        format!("name of the {kind}")
    }
}

/// `core_v1`.
pub(super) fn tag(group: &str, version: &str) -> String {
    format!("{}_{version}", if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) })
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().collect::<String>() + letters.as_str()).unwrap_or_default()
}

struct Writer<'a> {
    registry: &'a Registry,
    schemas: &'a Schemas,
    resource: &'a Resource,
}

/// The paths of one resource.
pub(super) fn paths(registry: &Registry, schemas: &Schemas, resource: &Resource) -> BTreeMap<String, Path> {
    Writer { registry, schemas, resource }.paths()
}

impl Writer<'_> {
    fn paths(&self) -> BTreeMap<String, Path> {
        let resource = self.resource;
        let base = group_path(&resource.group, &resource.version);
        let mut paths = BTreeMap::new();
        let (collection, in_collection) = match resource.scope {
            Scope::Namespaced => (format!("{base}/namespaces/{{namespace}}/{}", resource.plural), vec!["namespace"]),
            Scope::Cluster => (format!("{base}/{}", resource.plural), Vec::new()),
        };
        let mut in_item = vec!["name"];
        in_item.extend(&in_collection);
        paths.insert(collection.clone(), Path { in_path: in_collection, operations: self.collection() });
        paths.insert(format!("{collection}/{{name}}"), Path { in_path: in_item.clone(), operations: self.item() });
        for subresource in &resource.subresources {
            let operations = self.subresource(subresource);
            if !operations.is_empty() {
                let path = format!("{collection}/{{name}}/{}", subresource.name);
                paths.insert(path, Path { in_path: in_item.clone(), operations });
            }
        }
        if resource.scope == Scope::Namespaced {
            let id = format!("list{}{}ForAllNamespaces", self.prefix(), resource.kind);
            let operations = vec![self.list(id)];
            paths.insert(format!("{base}/{}", resource.plural), Path { in_path: Vec::new(), operations });
        }
        paths
    }

    /// `CoreV1`, `AppsV1`.
    fn prefix(&self) -> String {
        let group = if self.resource.group.is_empty() { "core" } else { &self.resource.group };
        let first = group.split('.').next().unwrap_or(group);
        format!("{}{}", capitalised(first), capitalised(&self.resource.version))
    }

    fn id(&self, verb: &str, suffix: &str) -> String {
        let scope = if self.resource.scope == Scope::Namespaced { "Namespaced" } else { "" };
        format!("{verb}{}{scope}{}{suffix}", self.prefix(), self.resource.kind)
    }

    fn gvk(&self) -> Value {
        gvk(&self.resource.group, &self.resource.version, &self.resource.kind)
    }

    fn list(&self, id: String) -> Operation {
        Operation {
            method: "get",
            id,
            description: format!("list or watch objects of kind {}", self.resource.kind),
            action: "list",
            query: LIST_PARAMETERS,
            body: None,
            responses: vec![(200, Some(list_schema_name(self.resource)))],
            gvk: self.gvk(),
        }
    }

    fn collection(&self) -> Vec<Operation> {
        let kind = &self.resource.kind;
        let scope = if self.resource.scope == Scope::Namespaced { "CollectionNamespaced" } else { "Collection" };
        let delete_options = Body { schema: format!("{META}.DeleteOptions"), content_types: &["*/*"], required: false };
        vec![
            self.list(self.id("list", "")),
            self.write("post", "create", "post", format!("create a {kind}"), &[200, 201, 202], ""),
            Operation {
                method: "delete",
                id: format!("delete{}{scope}{kind}", self.prefix()),
                description: format!("delete collection of {kind}"),
                action: "deletecollection",
                query: DELETE_COLLECTION_PARAMETERS,
                body: Some(delete_options),
                responses: vec![(200, Some(format!("{META}.Status")))],
                gvk: self.gvk(),
            },
        ]
    }

    /// A create or replace of the resource's own kind.
    fn write(
        &self,
        method: &'static str,
        verb: &str,
        action: &'static str,
        description: String,
        codes: &[u16],
        suffix: &str,
    ) -> Operation {
        let schema = self.resource.schema_name.to_string();
        Operation {
            method,
            id: self.id(verb, suffix),
            description,
            action,
            query: WRITE_PARAMETERS,
            responses: codes.iter().map(|code| (*code, Some(schema.clone()))).collect(),
            body: Some(Body { schema, content_types: &["*/*"], required: true }),
            gvk: self.gvk(),
        }
    }

    fn item(&self) -> Vec<Operation> {
        let kind = &self.resource.kind;
        let schema = self.resource.schema_name.to_string();
        let deleted = if kind == "Pod" { schema.clone() } else { format!("{META}.Status") };
        vec![
            self.read(self.id("read", ""), format!("read the specified {kind}"), schema.clone(), self.gvk()),
            self.write("put", "replace", "put", format!("replace the specified {kind}"), &[200, 201], ""),
            Operation {
                method: "delete",
                id: self.id("delete", ""),
                description: format!("delete a {kind}"),
                action: "delete",
                query: DELETE_PARAMETERS,
                body: Some(Body { schema: format!("{META}.DeleteOptions"), content_types: &["*/*"], required: false }),
                responses: vec![(200, Some(deleted.clone())), (202, Some(deleted))],
                gvk: self.gvk(),
            },
            self.patch(self.id("patch", ""), format!("partially update the specified {kind}"), schema, self.gvk()),
        ]
    }

    fn read(&self, id: String, description: String, schema: String, gvk: Value) -> Operation {
        let responses = vec![(200, Some(schema))];
        Operation { method: "get", id, description, action: "get", query: &[], body: None, responses, gvk }
    }

    fn patch(&self, id: String, description: String, schema: String, gvk: Value) -> Operation {
        // Built-in kinds know strategic merge; kinds that come at run time do not.
        let content_types: &[&str] = if self.resource.schema_name.starts_with("io.k8s.") {
            &[JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH]
        } else {
            &[JSON_PATCH, MERGE_PATCH]
        };
        Operation {
            method: "patch",
            id,
            description,
            action: "patch",
            query: PATCH_PARAMETERS,
            body: Some(Body { schema: format!("{META}.Patch"), content_types, required: true }),
            responses: vec![(200, Some(schema.clone())), (201, Some(schema))],
            gvk,
        }
    }

    fn subresource(&self, subresource: &Subresource) -> Vec<Operation> {
        let (kind, name) = (&self.resource.kind, &subresource.name);
        let suffix = capitalised(name);
        let gvk = gvk(&subresource.group, &subresource.version, &subresource.kind);
        if name == "log" {
            return vec![Operation {
                method: "get",
                id: self.id("read", &suffix),
                description: format!("read log of the specified {kind}"),
                action: "get",
                query: LOG_PARAMETERS,
                body: None,
                responses: vec![(200, None)],
                gvk: self.gvk(),
            }];
        }
        let found = schema_of_kind(self.registry, self.schemas, &subresource.group, &subresource.version, &subresource.kind);
        let Some(schema) = found else { return Vec::new() };
        let body = || Some(Body { schema: schema.clone(), content_types: &["*/*"], required: true });
        let answers = |codes: &[u16]| codes.iter().map(|code| (*code, Some(schema.clone()))).collect();
        let verbs = subresource.verbs.iter().filter_map(|verb| match verb.as_ref() {
            "get" => {
                let description = format!("read {name} of the specified {kind}");
                Some(self.read(self.id("read", &suffix), description, schema.clone(), gvk.clone()))
            }
            "update" => Some(Operation {
                method: "put",
                id: self.id("replace", &suffix),
                description: format!("replace {name} of the specified {kind}"),
                action: "put",
                query: WRITE_PARAMETERS,
                body: body(),
                responses: answers(&[200, 201]),
                gvk: gvk.clone(),
            }),
            "patch" => {
                let description = format!("partially update {name} of the specified {kind}");
                Some(self.patch(self.id("patch", &suffix), description, schema.clone(), gvk.clone()))
            }
            "create" => Some(Operation {
                method: "post",
                id: self.id("create", &suffix),
                description: format!("create {name} of a {kind}"),
                action: "post",
                query: WRITE_PARAMETERS,
                body: body(),
                responses: answers(&[200, 201, 202]),
                gvk: gvk.clone(),
            }),
            _ => None,
        });
        verbs.collect()
    }
}

/// The extensions and names that an operation has in both versions.
pub(super) fn common(operation: &Operation, resource: &Resource) -> serde_json::Map<String, Value> {
    let fields = json!({
        "description": operation.description,
        "operationId": operation.id,
        "tags": [tag(&resource.group, &resource.version)],
        "x-kubernetes-action": operation.action,
        super::GVK: operation.gvk,
    });
    fields.as_object().cloned().unwrap_or_default()
}

/// What an HTTP code means here.
pub(super) fn code_text(code: u16) -> &'static str {
    match code {
        201 => "Created",
        202 => "Accepted",
        _ => "OK",
    }
}
