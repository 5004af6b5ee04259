//! The files of configMap, secret, downwardAPI and projected volumes: pure.

use std::{collections::BTreeMap, path::PathBuf};

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, SecretVolumeSource, Volume, VolumeProjection,
};

use crate::pod::{
    bundle::{Bundle, Content, TokenKey},
    fields::Downward,
};

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// The files of a volume by their path in it.
pub type Payload = BTreeMap<PathBuf, File>;

const DEFAULT_MODE: i32 = 0o644;

/// The folder name and the files of a volume whose content comes from the API; `None` for other kinds.
///
/// # Errors
/// Why the volume cannot be set up, as `FailedMount` tells it.
pub fn of_volume(volume: &Volume, downward: Downward<'_>, bundle: &Bundle) -> Option<Result<Payload, String>> {
    if let Some(source) = &volume.config_map {
        Some(config_map(source, bundle, source.default_mode))
    } else if let Some(source) = &volume.secret {
        Some(secret(source, bundle))
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode;
        Some(downward_files(source.items.as_deref().unwrap_or_default(), mode, downward))
    } else {
        volume.projected.as_ref().map(|source| projected(source, downward, bundle))
    }
}

fn config_map(source: &ConfigMapVolumeSource, bundle: &Bundle, mode: Option<i32>) -> Result<Payload, String> {
    let wanted = Wanted { kind: "configmap", name: &source.name, optional: source.optional == Some(true) };
    select(wanted, bundle.config_maps.get(&source.name), source.items.as_deref(), mode)
}

fn secret(source: &SecretVolumeSource, bundle: &Bundle) -> Result<Payload, String> {
    let name = source.secret_name.as_deref().unwrap_or_default();
    let wanted = Wanted { kind: "secret", name, optional: source.optional == Some(true) };
    select(wanted, bundle.secrets.get(name), source.items.as_deref(), source.default_mode)
}

#[derive(Clone, Copy)]
struct Wanted<'a> {
    kind: &'static str,
    name: &'a str,
    optional: bool,
}

fn select(
    wanted: Wanted<'_>,
    found: Option<&Option<Content>>,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
) -> Result<Payload, String> {
    let empty = Content::new();
    let content = match found.and_then(Option::as_ref) {
        Some(content) => content,
        None if wanted.optional => &empty,
        None => return Err(format!("{} {:?} not found", wanted.kind, wanted.name)),
    };
    let default = bits(mode.unwrap_or(DEFAULT_MODE));
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let file = |(key, data): (&String, &Vec<u8>)| (PathBuf::from(key), File { data: data.clone(), mode: default });
        return Ok(content.iter().map(file).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match content.get(&item.key) {
            Some(data) => {
                let mode = item.mode.map_or(default, bits);
                payload.insert(PathBuf::from(&item.path), File { data: data.clone(), mode });
            }
            None if wanted.optional => {}
            None if wanted.kind == "configmap" => {
                return Err(format!("configmap references non-existent config key: {}", item.key));
            }
            None => return Err(format!("references non-existent secret key: {}", item.key)),
        }
    }
    Ok(payload)
}

fn downward_files(items: &[DownwardAPIVolumeFile], mode: Option<i32>, downward: Downward<'_>) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward.field(&field.field_path)?,
            (None, Some(resource)) => downward.resource(resource, None)?,
            (None, None) => return Err(format!("downward API item {:?} has no source", item.path)),
        };
        let mode = bits(item.mode.or(mode).unwrap_or(DEFAULT_MODE));
        payload.insert(PathBuf::from(&item.path), File { data: text.into_bytes(), mode });
    }
    Ok(payload)
}

fn projected(source: &ProjectedVolumeSource, downward: Downward<'_>, bundle: &Bundle) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for projection in source.sources.iter().flatten() {
        payload.extend(projection_files(projection, source.default_mode, downward, bundle)?);
    }
    Ok(payload)
}

fn projection_files(
    projection: &VolumeProjection,
    mode: Option<i32>,
    downward: Downward<'_>,
    bundle: &Bundle,
) -> Result<Payload, String> {
    if let Some(source) = &projection.config_map {
        let wanted = Wanted { kind: "configmap", name: &source.name, optional: source.optional == Some(true) };
        return select(wanted, bundle.config_maps.get(&source.name), source.items.as_deref(), mode);
    }
    if let Some(source) = &projection.secret {
        let wanted = Wanted { kind: "secret", name: &source.name, optional: source.optional == Some(true) };
        return select(wanted, bundle.secrets.get(&source.name), source.items.as_deref(), mode);
    }
    if let Some(source) = &projection.downward_api {
        return downward_files(source.items.as_deref().unwrap_or_default(), mode, downward);
    }
    if let Some(source) = &projection.service_account_token {
        let key = TokenKey {
            audience: source.audience.clone().filter(|audience| !audience.is_empty()),
            seconds: source.expiration_seconds.unwrap_or(3600),
        };
        let token = bundle.tokens.get(&key).ok_or("the service account token was not issued")?;
        let file = File { data: token.text.clone().into_bytes(), mode: bits(mode.unwrap_or(DEFAULT_MODE)) };
        return Ok([(PathBuf::from(&source.path), file)].into());
    }
    Err("projected volume source is not supported".to_owned())
}

fn bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o777
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Capacity;
    use crate::pod::bundle::Token;

    fn files(volume: Value) -> Result<Vec<(String, String, u32)>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns", "labels": { "a": "b" } },
            "spec": { "containers": [{ "name": "c", "resources": { "limits": { "memory": "2Mi" } } }] },
        }))
        .unwrap();
        let mut bundle = Bundle::default();
        let content: Content = [("a.conf".to_owned(), b"1".to_vec()), ("b.conf".to_owned(), b"2".to_vec())].into();
        bundle.config_maps.insert("cm".to_owned(), Some(content.clone()));
        bundle.secrets.insert("s".to_owned(), Some(content));
        bundle
            .tokens
            .insert(TokenKey { audience: None, seconds: 3600 }, Token { text: "jwt".to_owned(), renew_at: jiff::Timestamp::MAX });
        let capacity = Capacity { cpu_millis: 1000, memory_bytes: 1, ephemeral_storage_bytes: 1 };
        let downward = Downward { pod: &pod, capacity, host_ip: "192.0.2.1", pod_ips: &[] };
        let mut volume = volume;
        volume["name"] = json!("v");
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let payload = of_volume(&volume, downward, &bundle).unwrap()?;
        let text = |file: &File| String::from_utf8(file.data.clone()).unwrap();
        Ok(payload.iter().map(|(path, file)| (path.display().to_string(), text(file), file.mode)).collect())
    }

    fn list(files: &[(&str, &str, u32)]) -> Result<Vec<(String, String, u32)>, String> {
        Ok(files.iter().map(|(path, data, mode)| ((*path).to_owned(), (*data).to_owned(), *mode)).collect())
    }

    #[test]
    fn whole_objects_and_chosen_keys() {
        let whole = json!({ "configMap": { "name": "cm" } });
        assert_eq!(files(whole), list(&[("a.conf", "1", 0o644), ("b.conf", "2", 0o644)]));
        let items = json!([{ "key": "a.conf", "path": "etc/a", "mode": 0o400 }, { "key": "b.conf", "path": "b" }]);
        let chosen = json!({ "secret": { "secretName": "s", "defaultMode": 0o440, "items": items } });
        assert_eq!(files(chosen), list(&[("b", "2", 0o440), ("etc/a", "1", 0o400)]));
    }

    #[test]
    fn missing_things_fail_unless_optional() {
        for (volume, message) in [
            (json!({ "configMap": { "name": "no" } }), "configmap \"no\" not found"),
            (json!({ "secret": { "secretName": "no" } }), "secret \"no\" not found"),
            (
                json!({ "configMap": { "name": "cm", "items": [{ "key": "z", "path": "z" }] } }),
                "configmap references non-existent config key: z",
            ),
            (
                json!({ "secret": { "secretName": "s", "items": [{ "key": "z", "path": "z" }] } }),
                "references non-existent secret key: z",
            ),
        ] {
            assert_eq!(files(volume), Err(message.to_owned()));
        }
        assert_eq!(files(json!({ "configMap": { "name": "no", "optional": true } })), list(&[]));
        let some = json!({ "configMap": { "name": "cm", "optional": true, "items": [{ "key": "z", "path": "z" }] } });
        assert_eq!(files(some), list(&[]));
    }

    #[test]
    fn projections_come_together_in_one_folder() {
        let sources = json!([
            { "configMap": { "name": "cm", "items": [{ "key": "a.conf", "path": "a" }] } },
            { "downwardAPI": { "items": [
                { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                { "path": "memory", "resourceFieldRef": { "containerName": "c", "resource": "limits.memory", "divisor": "1Mi" } }] } },
            { "serviceAccountToken": { "path": "token" } },
        ]);
        assert_eq!(
            files(json!({ "projected": { "sources": sources, "defaultMode": 0o400 } })),
            list(&[("a", "1", 0o400), ("labels", "a=\"b\"", 0o400), ("memory", "2", 0o400), ("token", "jwt", 0o400)])
        );
    }
}
