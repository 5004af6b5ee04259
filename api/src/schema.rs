//! The schemas of all registered kinds: which fields there are, and how they merge.
//!
//! They come from the `schemars` output of the typed objects; [`merge_keys`] adds what that does not hold.

mod merge_keys;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::registry::Registry;

/// How references begin.
pub(crate) const REFERENCE_PREFIX: &str = "#/components/schemas/";

/// All schemas by name, in the form of OpenAPI v3 components.
#[derive(Clone, Debug, Default)]
pub struct Schemas {
    definitions: BTreeMap<String, Value>,
}

/// A place in a schema: a field with what is said about the field itself, and the schema that it refers to.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    schemas: &'a Schemas,
    /// The field's own schema, which carries the merge extensions.
    own: &'a Value,
    /// The schema with the properties.
    resolved: &'a Value,
}

impl Schemas {
    /// Collects the schemas of all kinds, and those of what requests and answers hold beside them.
    pub fn build(registry: &Registry) -> Self {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1;
        let settings = schemars::generate::SchemaSettings::draft07();
        let mut generator = settings.with(|settings| settings.definitions_path = "/components/schemas".into()).into_generator();
        for resource in registry.iter() {
            (resource.schema)(&mut generator);
        }
        generator.subschema_for::<v1::DeleteOptions>();
        generator.subschema_for::<v1::Status>();
        generator.subschema_for::<v1::Patch>();
        generator.subschema_for::<v1::ListMeta>();
        generator.subschema_for::<v1::ObjectMeta>();
        generator.subschema_for::<v1::WatchEvent<k8s_openapi::apimachinery::pkg::runtime::RawExtension>>();
        generator.subschema_for::<v1::APIResourceList>();
        generator.subschema_for::<v1::APIGroup>();
        generator.subschema_for::<v1::APIVersions>();
        generator.subschema_for::<k8s_openapi::api::authentication::v1::TokenRequest>();
        generator.subschema_for::<k8s_openapi::api::autoscaling::v1::Scale>();
        generator.subschema_for::<k8s_openapi::api::core::v1::Binding>();
        generator.subschema_for::<k8s_openapi::api::policy::v1::Eviction>();
        let mut schemas = Self::default();
        for (name, schema) in generator.take_definitions(false) {
            schemas.insert(&name, schema);
        }
        schemas
    }

    /// Adds one schema, normalised and with its merge extensions: also for kinds that come at run time.
    pub fn insert(&mut self, name: &str, mut schema: Value) {
        normalise(&mut schema);
        annotate(name, &mut schema);
        self.definitions.insert(name.to_owned(), schema);
    }

    /// The schema with this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.definitions.get(name)
    }

    /// All schemas, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.definitions.iter().map(|(name, schema)| (name.as_str(), schema))
    }

    /// The place where an object of this schema begins.
    pub fn root(&self, name: &str) -> Option<Place<'_>> {
        self.definitions.get(name).map(|schema| self.place(schema))
    }

    fn place<'a>(&'a self, own: &'a Value) -> Place<'a> {
        let reference = own.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix(REFERENCE_PREFIX));
        let resolved = reference.and_then(|name| self.definitions.get(name)).unwrap_or(own);
        Place { schemas: self, own, resolved }
    }

    /// The paths of fields that the schema does not have (`spec.containers[0].foo`), in order. Of a schema that is not known,
    /// everything is allowed.
    pub fn unknown_fields(&self, schema_name: &str, object: &Value) -> Vec<String> {
        let mut unknown = Vec::new();
        if let Some(root) = self.root(schema_name) {
            root.walk(object, &mut String::new(), &mut unknown);
        }
        unknown
    }
}

impl Schemas {
    /// Puts an empty text wherever a map of texts has a null, as Go does when it decodes one (`data: {key: null}`).
    pub fn fill_null_texts(&self, schema_name: &str, object: &mut Value) {
        if let Some(root) = self.root(schema_name) {
            root.fill_null_texts(object);
        }
    }
}

impl<'a> Place<'a> {
    fn fill_null_texts(self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                let is_map_of_texts =
                    self.resolved.get("additionalProperties").and_then(|entry| entry.get("type")) == Some(&json!("string"));
                for (name, field) in fields.iter_mut() {
                    match self.field(name) {
                        Some(_) if is_map_of_texts && field.is_null() => *field = json!(""),
                        Some(place) => place.fill_null_texts(field),
                        None => {}
                    }
                }
            }
            Value::Array(list) => {
                let Some(items) = self.items() else { return };
                list.iter_mut().for_each(|item| items.fill_null_texts(item));
            }
            _ => {}
        }
    }

    /// The place of a field: a property, or any key of a map.
    pub fn field(self, name: &str) -> Option<Self> {
        let property = self.resolved.get("properties").and_then(|properties| properties.get(name));
        let schema = property.or_else(|| self.resolved.get("additionalProperties").filter(|schema| schema.is_object()))?;
        Some(self.schemas.place(schema))
    }

    /// The place of a list's items.
    pub fn items(self) -> Option<Self> {
        self.resolved.get("items").map(|schema| self.schemas.place(schema))
    }

    fn extension(self, name: &str) -> &'a str {
        self.own.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether a strategic merge patch merges this list instead of replacing it.
    pub fn merges(self) -> bool {
        self.extension("x-kubernetes-patch-strategy").split(',').any(|strategy| strategy == "merge")
    }

    /// Whether a strategic merge patch replaces this map instead of merging it.
    pub fn replaces(self) -> bool {
        self.extension("x-kubernetes-patch-strategy").split(',').any(|strategy| strategy == "replace")
    }

    /// The field by which items of this list are told apart in a strategic merge patch.
    pub fn merge_key(self) -> Option<&'a str> {
        Some(self.extension("x-kubernetes-patch-merge-key")).filter(|key| !key.is_empty())
    }

    /// `atomic`, `set` or `map`: how server-side apply treats the list.
    pub fn list_type(self) -> &'a str {
        Some(self.extension("x-kubernetes-list-type")).filter(|kind| !kind.is_empty()).unwrap_or("atomic")
    }

    /// The keys of a list whose type is `map`.
    pub fn list_map_keys(self) -> Vec<&'a str> {
        let keys = self.own.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
        keys.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Whether server-side apply replaces this object as a whole.
    pub fn is_atomic_map(self) -> bool {
        [self.own, self.resolved]
            .iter()
            .any(|schema| schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic"))
    }

    fn preserves_unknown(self) -> bool {
        let flag = "x-kubernetes-preserve-unknown-fields";
        [self.own, self.resolved].iter().any(|schema| schema.get(flag).and_then(Value::as_bool) == Some(true))
    }

    fn walk(self, value: &Value, path: &mut String, unknown: &mut Vec<String>) {
        let length = path.len();
        match value {
            Value::Object(object) => {
                let closed = self.resolved.get("properties").is_some()
                    && self.resolved.get("additionalProperties").is_none_or(|more| *more == Value::Bool(false))
                    && !self.preserves_unknown();
                for (key, value) in object {
                    if length > 0 {
                        path.push('.');
                    }
                    path.push_str(key);
                    match self.field(key) {
                        Some(place) => place.walk(value, path, unknown),
                        None if closed => unknown.push(path.clone()),
                        None => {}
                    }
                    path.truncate(length);
                }
            }
            Value::Array(list) => {
                let Some(items) = self.items() else { return };
                for (at, item) in list.iter().enumerate() {
                    path.push_str(&format!("[{at}]"));
                    items.walk(item, path, unknown);
                    path.truncate(length);
                }
            }
            _ => {}
        }
    }
}

/// Brings what `schemars` writes into the form that Kubernetes publishes.
fn normalise(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.get("type").and_then(Value::as_array).is_some() {
        // `["string", "null"]` is a nullable string: OpenAPI has one type only, and null is allowed everywhere anyway.
        let first = object["type"].as_array().into_iter().flatten().find(|kind| kind.as_str() != Some("null")).cloned();
        object.insert("type".to_owned(), first.unwrap_or_else(|| json!("object")));
    }
    if object.get("additionalProperties") == Some(&Value::Bool(true)) {
        object.insert("additionalProperties".to_owned(), json!({}));
    }
    for group in ["properties", "patternProperties"] {
        for (_, inner) in object.get_mut(group).and_then(Value::as_object_mut).into_iter().flatten() {
            normalise(inner);
        }
    }
    for one in ["items", "additionalProperties", "not"] {
        if let Some(inner) = object.get_mut(one) {
            normalise(inner);
        }
    }
    for many in ["allOf", "anyOf", "oneOf"] {
        for inner in object.get_mut(many).and_then(Value::as_array_mut).into_iter().flatten() {
            normalise(inner);
        }
    }
}

/// `io.k8s.api.core.v1.PodSpec` is `v1.PodSpec` in the tables.
fn short_name(name: &str) -> &str {
    let dots: Vec<usize> = name.match_indices('.').map(|(at, _)| at).collect();
    if dots.len() < 2 { name } else { &name[dots[dots.len() - 2] + 1..] }
}

/// Adds the merge extensions of a built-in type.
fn annotate(name: &str, schema: &mut Value) {
    let short = short_name(name);
    let Some(object) = schema.as_object_mut() else { return };
    if name == "io.k8s.apimachinery.pkg.util.intstr.IntOrString" {
        object.insert("type".to_owned(), json!("string"));
        object.insert("format".to_owned(), json!("int-or-string"));
    }
    if name == "io.k8s.apimachinery.pkg.api.resource.Quantity" {
        object.insert("type".to_owned(), json!("string"));
    }
    if !name.starts_with("io.k8s.") {
        return;
    }
    if merge_keys::ATOMIC_SCHEMAS.contains(&short) {
        object.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
    }
    let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (field, property) in properties.iter_mut() {
        let Some(property) = property.as_object_mut() else { continue };
        if merge_keys::ATOMIC_MAPS.contains(&(short, field.as_str())) {
            property.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
        }
        let is_list = property.get("type").and_then(Value::as_str) == Some("array");
        match merge_keys::RULES.iter().find(|rule| rule.schema == short && rule.field == field) {
            Some(rule) => extend(property, rule),
            None if is_list => {
                property.insert("x-kubernetes-list-type".to_owned(), json!("atomic"));
            }
            None => {}
        }
    }
}

fn extend(property: &mut Map<String, Value>, rule: &merge_keys::Rule) {
    let texts = [
        ("x-kubernetes-patch-strategy", rule.strategy),
        ("x-kubernetes-patch-merge-key", rule.merge_key),
        ("x-kubernetes-list-type", rule.list_type),
    ];
    for (extension, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        property.insert(extension.to_owned(), json!(text));
    }
    if !rule.map_keys.is_empty() {
        property.insert("x-kubernetes-list-map-keys".to_owned(), json!(rule.map_keys));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn unknown_fields_are_found_by_path() {
        let schemas = Schemas::build(&testing::registry());
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "what": 1,
            "metadata": {
                "name": "a", "labels": { "any": "thing" }, "extra": {},
                "managedFields": [{ "manager": "m", "fieldsV1": { "f:spec": { "anything": {} } } }],
            },
            "spec": {
                "nodeSelector": { "x": "y" },
                "containers": [
                    { "name": "a", "ports": [{ "containerPort": 1 }], "resources": { "limits": { "cpu": 1, "x.y/z": "2" } } },
                    { "name": "b", "imagee": "x", "livenessProbe": { "httpGet": { "port": "http", "pot": 1 } } },
                ],
            },
        });
        assert_eq!(
            schemas.unknown_fields("io.k8s.api.core.v1.Pod", &pod),
            ["metadata.extra", "spec.containers[1].imagee", "spec.containers[1].livenessProbe.httpGet.pot", "what"]
        );
        assert_eq!(schemas.unknown_fields("example.com.v1.Unknown", &pod), Vec::<String>::new());
        let eviction = json!({ "kind": "Eviction", "deleteOptions": { "gracePeriodSeconds": 1, "x": 1 } });
        assert_eq!(schemas.unknown_fields("io.k8s.api.policy.v1.Eviction", &eviction), ["deleteOptions.x"]);
    }

    #[test]
    fn nulls_in_maps_of_texts_are_empty_texts() {
        let schemas = Schemas::build(&testing::registry());
        let mut pod = json!({
            "metadata": { "labels": { "a": null, "b": "c" }, "annotations": null, "name": null },
            "spec": { "nodeSelector": { "x": null }, "nodeName": null, "containers": [{
                "name": "c", "command": null, "resources": { "limits": { "cpu": null } },
            }] },
        });
        schemas.fill_null_texts("io.k8s.api.core.v1.Pod", &mut pod);
        assert_eq!(
            pod,
            json!({
                "metadata": { "labels": { "a": "", "b": "c" }, "annotations": null, "name": null },
                "spec": { "nodeSelector": { "x": "" }, "nodeName": null, "containers": [{
                    "name": "c", "command": null, "resources": { "limits": { "cpu": null } },
                }] },
            })
        );
    }

    #[test]
    fn every_rule_names_a_field_that_exists() {
        let schemas = Schemas::build(&testing::registry());
        let known: Vec<&str> = schemas.iter().map(|(name, _)| short_name(name)).collect();
        let mut checked = 0;
        for rule in merge_keys::RULES.iter().filter(|rule| known.contains(&rule.schema)) {
            let found = schemas.iter().filter(|(name, _)| short_name(name) == rule.schema);
            let with_field = found.filter_map(|(_, schema)| schema["properties"].get(rule.field)).next();
            let property = with_field.unwrap_or_else(|| panic!("{rule:?}"));
            assert_eq!(property["type"] == "array", !rule.list_type.is_empty(), "{rule:?}");
            if let (false, Some(items)) = (rule.merge_key.is_empty(), schemas.place(property).items()) {
                assert!(items.field(rule.merge_key).is_some(), "{rule:?}");
                assert!(rule.map_keys.iter().all(|key| items.field(key).is_some()), "{rule:?}");
            }
            checked += 1;
        }
        assert!(checked > 30, "only {checked} rules were checked");
    }

    #[test]
    fn places_say_how_they_merge() {
        let schemas = Schemas::build(&testing::registry());
        let place = |path: &str| {
            let root = schemas.root("io.k8s.api.apps.v1.Deployment").unwrap();
            path.split('.').fold(root, |place, step| if step == "[]" { place.items() } else { place.field(step) }.unwrap())
        };
        let containers = place("spec.template.spec.containers");
        assert!(containers.merges() && containers.merge_key() == Some("name"));
        let ports = place("spec.template.spec.containers.[].ports");
        assert_eq!((ports.merge_key(), ports.list_map_keys()), (Some("containerPort"), vec!["containerPort", "protocol"]));
        assert!(place("metadata.finalizers").merges() && place("metadata.finalizers").merge_key().is_none());
        let tolerations = place("spec.template.spec.tolerations");
        assert!(!tolerations.merges() && tolerations.list_type() == "atomic");
        assert!(place("spec.selector").is_atomic_map() && !place("spec.template").is_atomic_map());
    }
}
