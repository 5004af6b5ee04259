//! A small registry for this crate's own tests.

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, core::v1};
use serde_json::Value;

use crate::registry::{AdmissionError, Behaviour, Part, Registry, Resource, Scope, Subresource};

struct Any;

impl Behaviour for Any {
    fn create(&self, object: Value) -> Result<Value, AdmissionError> {
        Ok(object)
    }

    fn update(&self, new: Value, _old: &Value, _part: Part) -> Result<Value, AdmissionError> {
        Ok(new)
    }

    fn row(&self, _object: &Value, _now: Timestamp) -> Vec<Value> {
        Vec::new()
    }
}

/// A kind with the schema of a ConfigMap.
pub fn resource(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str, scope: Scope) -> Resource {
    Resource {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: kind.to_lowercase().into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        scope,
        subresources: Vec::new(),
        columns: Vec::new(),
        behaviour: Box::new(Any),
        schema_name: "io.k8s.api.core.v1.ConfigMap".into(),
        schema: |generator| generator.subschema_for::<v1::ConfigMap>(),
    }
}

fn status(group: &'static str, kind: &'static str) -> Subresource {
    Subresource {
        name: "status".into(),
        group: group.into(),
        version: "v1".into(),
        kind: kind.into(),
        verbs: vec!["get".into(), "patch".into(), "update".into()],
    }
}

pub fn pod() -> Resource {
    let binding = Subresource {
        name: "binding".into(),
        group: "".into(),
        version: "v1".into(),
        kind: "Binding".into(),
        verbs: vec!["create".into()],
    };
    Resource {
        schema_name: "io.k8s.api.core.v1.Pod".into(),
        schema: |generator| generator.subschema_for::<v1::Pod>(),
        subresources: vec![status("", "Pod"), binding],
        ..resource("", "v1", "Pod", "pods", Scope::Namespaced)
    }
}

/// Pod, ConfigMap, Node, Service and Deployment.
pub fn registry() -> Registry {
    let scale = Subresource {
        name: "scale".into(),
        group: "autoscaling".into(),
        version: "v1".into(),
        kind: "Scale".into(),
        verbs: vec!["get".into(), "patch".into(), "update".into()],
    };
    Registry::new([
        pod(),
        resource("", "v1", "ConfigMap", "configmaps", Scope::Namespaced),
        Resource {
            schema_name: "io.k8s.api.core.v1.Node".into(),
            schema: |generator| generator.subschema_for::<v1::Node>(),
            subresources: vec![status("", "Node")],
            ..resource("", "v1", "Node", "nodes", Scope::Cluster)
        },
        Resource {
            schema_name: "io.k8s.api.core.v1.Service".into(),
            schema: |generator| generator.subschema_for::<v1::Service>(),
            subresources: vec![status("", "Service")],
            ..resource("", "v1", "Service", "services", Scope::Namespaced)
        },
        Resource {
            schema_name: "io.k8s.api.apps.v1.Deployment".into(),
            schema: |generator| generator.subschema_for::<Deployment>(),
            subresources: vec![status("apps", "Deployment"), scale],
            ..resource("apps", "v1", "Deployment", "deployments", Scope::Namespaced)
        },
    ])
}
