//! The registry of kinds: what the generic verbs need to know of each kind, as data and a few functions.
//!
//! A built-in kind is one [`Resource`] made in one file under `kinds/`. Every verb of the API server is written once
//! over `Resource`; nothing there names a kind.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;

use crate::field::FieldError;

type Text = Cow<'static, str>;

/// One kind at one version.
pub struct Resource {
    /// Empty for the core group.
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    /// The name in URLs: `pods`.
    pub plural: Text,
    pub singular: Text,
    pub short_names: Vec<Text>,
    pub categories: Vec<Text>,
    pub scope: Scope,
    /// Subresources beside the main resource (`status`, `scale`, `binding`, …).
    pub subresources: Vec<Subresource>,
    /// The columns of `kubectl get`; [`Behaviour::row`] gives the cells in the same order.
    pub columns: Vec<Column>,
    pub behaviour: Box<dyn Behaviour>,
    /// The name of the kind's schema in OpenAPI documents: `io.k8s.api.core.v1.Pod`.
    pub schema_name: Text,
    /// Adds the schema of the kind, and those that it refers to, to a generator; returns a reference to it.
    pub schema: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// A subresource as discovery lists it. What it does is the API server's, by `name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, `binding`, `eviction`, `log`.
    pub name: Text,
    /// Group, version and kind of what it takes and gives: (`autoscaling`, `v1`, `Scale`).
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    /// The verbs that discovery names: `get`, `patch`, `update`, `create`.
    pub verbs: Vec<Text>,
}

/// A column definition of a `meta.k8s.io/v1` Table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: Text,
    /// `string`, `integer`, `date`, …
    pub column_type: Text,
    /// `name` for the name column, else mostly empty.
    pub format: Text,
    pub description: Text,
    /// 0 is always shown; higher only with `-o wide`.
    pub priority: i32,
}

/// Which part of an object an update may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The main resource: `status` stays as it was stored.
    Main,
    /// The `status` subresource: everything but `status` (and the metadata that status writers may set) stays as it was stored.
    Status,
}

/// Why an object was not admitted.
#[derive(Clone, Debug, PartialEq)]
pub enum AdmissionError {
    /// It is not of this kind's shape (400 BadRequest); the message as Kubernetes words it.
    Decode(String),
    /// It is, but its values are not allowed (422 Invalid).
    Invalid(Vec<FieldError>),
}

/// What a delete does to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Gone at once, unless finalizers hold it.
    Now,
    /// Marked with a deletion timestamp; whoever runs it removes it (a pod on a node).
    Graceful { seconds: i64 },
}

/// The rules of one kind. Functions over values: no clock, no storage, no I/O.
pub trait Behaviour: Send + Sync + 'static {
    /// Takes an object that a client sent for creation: decodes it (unknown fields fall away), fills in defaults, resets what
    /// clients may not set (`status`, `metadata.generation` = 1 for kinds with a spec), validates all of it but
    /// the generic metadata, and returns what is to be stored.
    fn create(&self, object: Value) -> Result<Value, AdmissionError>;

    /// The same for an update of `old` by `new`, of which only `part` is taken. Raises `metadata.generation` when
    /// the spec changes, for kinds that have one.
    fn update(&self, new: Value, old: &Value, part: Part) -> Result<Value, AdmissionError>;

    /// The fields that field selectors may name, beside `metadata.name` and `metadata.namespace`, with their values.
    fn selectable_fields(&self, _object: &Value) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// The cells of the object's row in a table, in the order of the columns.
    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value>;

    /// What a delete with this `gracePeriodSeconds` (if the client gave one) does to the object.
    fn deletion(&self, _object: &Value, _requested_seconds: Option<i64>) -> Deletion {
        Deletion::Now
    }

    /// Changes the object when its deletion begins but is not finished (a Namespace becomes `Terminating`).
    fn begin_deletion(&self, _object: &mut Value) {}

    /// Whether something beside `metadata.finalizers` holds an object that is being deleted (a Namespace's `spec.finalizers`).
    fn is_held(&self, _object: &Value) -> bool {
        false
    }

    /// Whether an update (PUT) of an object that does not exist creates it (Lease, Event, Endpoints, Service).
    fn is_created_by_update(&self) -> bool {
        false
    }

    /// The kind under which objects of this kind are stored, when that is another one (`events.k8s.io` Events are stored
    /// as core Events). All other methods take and give objects in the form of this kind.
    fn stored_as(&self) -> Option<StoredAs> {
        None
    }
}

/// A kind that is a view of another kind's objects: same storage keys, same resource versions, other fields.
#[derive(Clone, Copy, Debug)]
pub struct StoredAs {
    /// Group, version and plural of the stored kind, which is in the registry too. An empty group is the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    /// From the form of this kind to the stored form.
    pub to_stored: fn(Value) -> Value,
    /// From the stored form to the form of this kind.
    pub from_stored: fn(Value) -> Value,
    /// Fields that selectors may name, in this form and in the stored one, where the names differ.
    pub selectable: &'static [(&'static str, &'static str)],
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `deployments.apps`: the name in error messages.
    pub fn qualified_plural(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }
}

/// All kinds, by group, version and plural.
#[derive(Clone, Default)]
pub struct Registry {
    resources: BTreeMap<(String, String, String), Arc<Resource>>,
}

impl Registry {
    pub fn new(resources: impl IntoIterator<Item = Resource>) -> Self {
        let mut registry = Self::default();
        for resource in resources {
            let key = (resource.group.to_string(), resource.version.to_string(), resource.plural.to_string());
            let before = registry.resources.insert(key, Arc::new(resource));
            assert!(before.is_none(), "a kind is registered twice");
        }
        registry
    }

    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.iter().find(|resource| resource.group == group && resource.version == version && resource.kind == kind)
    }

    /// In order of group, version and plural.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }
}
