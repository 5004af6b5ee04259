//! A container's environment (`kubelet_pods.go: makeEnvironmentVariables`): pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVarSource};

use crate::pod::{
    bundle::{Bundle, Content},
    expansion::expand,
    fields::Downward,
};

/// The variables, in the order they are set; a later one may refer to an earlier one. Those of `services` may be referred to
/// by all, and give way to the container's own.
///
/// # Errors
/// The message of `CreateContainerConfigError`.
pub fn environment(
    container: &Container,
    downward: Downward<'_>,
    bundle: &Bundle,
    services: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>, String> {
    let mut variables = Variables::default();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (found, optional, kind, name) = if let Some(reference) = &source.config_map_ref {
            (bundle.config_maps.get(&reference.name), reference.optional, "configmap", &reference.name)
        } else if let Some(reference) = &source.secret_ref {
            (bundle.secrets.get(&reference.name), reference.optional, "secret", &reference.name)
        } else {
            continue;
        };
        match found.and_then(Option::as_ref) {
            Some(content) => {
                for (key, value) in content.iter().filter(|(key, _)| !key.is_empty() && !key.contains('=')) {
                    variables.set(format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
                }
            }
            None if optional == Some(true) => {}
            None => return Err(format!("{kind} {name:?} not found")),
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                let text = variable.value.as_deref().unwrap_or_default();
                Some(expand(text, |name| variables.values.get(name).or_else(|| services.get(name)).map(String::as_str)))
            }
            Some(from) => from_source(from, container, downward, bundle)?,
        };
        if let Some(value) = value {
            variables.set(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        if !variables.values.contains_key(name) {
            variables.set(name.clone(), value.clone());
        }
    }
    Ok(variables.into_list())
}

fn from_source(
    from: &EnvVarSource,
    container: &Container,
    downward: Downward<'_>,
    bundle: &Bundle,
) -> Result<Option<String>, String> {
    let namespace = downward.pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(field) = &from.field_ref {
        return downward.field(&field.field_path).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        return downward.resource(resource, Some(container)).map(Some);
    }
    if let Some(reference) = &from.config_map_key_ref {
        let optional = reference.optional == Some(true);
        return key(&bundle.config_maps, &reference.name, &reference.key, optional, ("configmap", "ConfigMap"), namespace);
    }
    if let Some(reference) = &from.secret_key_ref {
        let optional = reference.optional == Some(true);
        return key(&bundle.secrets, &reference.name, &reference.key, optional, ("secret", "Secret"), namespace);
    }
    Err("the variable's source is not supported".to_owned())
}

fn key(
    objects: &BTreeMap<String, Option<Content>>,
    name: &str,
    key: &str,
    optional: bool,
    (lower, kind): (&str, &str),
    namespace: &str,
) -> Result<Option<String>, String> {
    match objects.get(name).and_then(Option::as_ref) {
        None if optional => Ok(None),
        None => Err(format!("{lower} {name:?} not found")),
        Some(content) => match content.get(key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {key} in {kind} {namespace}/{name}")),
        },
    }
}

/// Variables in the order of their first setting.
#[derive(Default)]
struct Variables {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Variables {
    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn into_list(mut self) -> Vec<(String, String)> {
        let order = std::mem::take(&mut self.order);
        order.into_iter().filter_map(|name| self.values.remove(&name).map(|value| (name, value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Capacity;

    fn resolve(container: Value) -> Result<Vec<(String, String)>, String> {
        resolve_with(container, &[])
    }

    fn resolve_with(container: Value, services: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        let mut container = container;
        container["name"] = json!("c");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns" }, "spec": { "containers": [container] },
        }))
        .unwrap();
        let content = |pairs: &[(&str, &str)]| -> Option<Content> {
            Some(pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect())
        };
        let mut bundle = Bundle::default();
        bundle.config_maps.insert("cm".to_owned(), content(&[("a", "1"), ("b", "2")]));
        bundle.config_maps.insert("gone".to_owned(), None);
        bundle.secrets.insert("s".to_owned(), content(&[("password", "x")]));
        let capacity = Capacity { cpu_millis: 1000, memory_bytes: 1, ephemeral_storage_bytes: 1 };
        let ips = ["10.0.0.7".to_owned()];
        let downward = Downward { pod: &pod, capacity, host_ip: "192.0.2.1", pod_ips: &ips };
        let services = services.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        environment(&pod.spec.as_ref().unwrap().containers[0], downward, &bundle, &services)
    }

    fn pairs(list: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        Ok(list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn values_refer_to_earlier_ones() {
        let env = json!([{ "name": "A", "value": "1" }, { "name": "B", "value": "$(A)$(C)" }, { "name": "C", "value": "3" }]);
        assert_eq!(resolve(json!({ "env": env })), pairs(&[("A", "1"), ("B", "1$(C)"), ("C", "3")]));
    }

    #[test]
    fn services_can_be_referred_to_and_overridden() {
        let services = [("A_SERVICE_HOST", "10.96.0.1"), ("B_SERVICE_HOST", "10.96.0.2")];
        let env = json!([{ "name": "URL", "value": "http://$(A_SERVICE_HOST)" }, { "name": "B_SERVICE_HOST", "value": "own" }]);
        assert_eq!(
            resolve_with(json!({ "env": env }), &services),
            pairs(&[("URL", "http://10.96.0.1"), ("B_SERVICE_HOST", "own"), ("A_SERVICE_HOST", "10.96.0.1")])
        );
    }

    #[test]
    fn sources_are_resolved() {
        let env = json!([
            { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            { "name": "A", "valueFrom": { "configMapKeyRef": { "name": "cm", "key": "a" } } },
            { "name": "P", "valueFrom": { "secretKeyRef": { "name": "s", "key": "password" } } },
            { "name": "O", "valueFrom": { "secretKeyRef": { "name": "s", "key": "none", "optional": true } } },
        ]);
        assert_eq!(resolve(json!({ "env": env })), pairs(&[("NAME", "web"), ("IP", "10.0.0.7"), ("A", "1"), ("P", "x")]));
    }

    #[test]
    fn whole_objects_come_with_a_prefix_and_are_overridden() {
        let container = json!({
            "envFrom": [{ "prefix": "P_", "configMapRef": { "name": "cm" } }, { "configMapRef": { "name": "gone", "optional": true } }],
            "env": [{ "name": "P_a", "value": "own" }],
        });
        assert_eq!(resolve(container), pairs(&[("P_a", "own"), ("P_b", "2")]));
    }

    #[test]
    fn what_is_missing_is_named_as_the_kubelet_names_it() {
        let from = |source: Value| resolve(json!({ "env": [{ "name": "X", "valueFrom": source }] })).unwrap_err();
        assert_eq!(from(json!({ "configMapKeyRef": { "name": "gone", "key": "k" } })), "configmap \"gone\" not found");
        assert_eq!(from(json!({ "secretKeyRef": { "name": "none", "key": "k" } })), "secret \"none\" not found");
        assert_eq!(from(json!({ "configMapKeyRef": { "name": "cm", "key": "k" } })), "couldn't find key k in ConfigMap ns/cm");
        assert_eq!(from(json!({ "secretKeyRef": { "name": "s", "key": "k" } })), "couldn't find key k in Secret ns/s");
        let whole = resolve(json!({ "envFrom": [{ "secretRef": { "name": "none" } }] }));
        assert_eq!(whole.unwrap_err(), "secret \"none\" not found");
    }
}
