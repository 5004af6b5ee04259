//! Validation of volumes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, ProjectedVolumeSource, Volume};

use super::environment::{FILE_FIELDS, validate_field_reference, validate_resource_reference};
use crate::{field::FieldError, kinds::validate, names};

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

pub fn validate_volumes(path: &str, volumes: &[Volume]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut names_seen = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let name_errors = validate::required_name(&format!("{path}.name"), &volume.name, names::is_dns1123_label);
        let named = name_errors.is_empty();
        errors.extend(name_errors);
        if named && !names_seen.insert(&volume.name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), volume.name.clone()));
        }
        errors.extend(validate_source(&path, volume));
    }
    errors
}

fn validate_source(path: &str, volume: &Volume) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let sources = source_names(volume);
    for extra in sources.iter().skip(1) {
        errors.push(FieldError::forbidden(format!("{path}.{extra}"), "may not specify more than 1 volume type"));
    }
    if sources.is_empty() {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
    if let Some(source) = &volume.secret {
        let path = format!("{path}.secret");
        errors.extend(validate::required(&format!("{path}.secretName"), source.secret_name.as_deref().unwrap_or_default()));
        errors.extend(mode(&format!("{path}.defaultMode"), source.default_mode));
        errors.extend(items(&path, source.items.as_deref()));
    }
    if let Some(source) = &volume.config_map {
        let path = format!("{path}.configMap");
        errors.extend(validate::required(&format!("{path}.name"), &source.name));
        errors.extend(mode(&format!("{path}.defaultMode"), source.default_mode));
        errors.extend(items(&path, source.items.as_deref()));
    }
    if let Some(source) = &volume.downward_api {
        let path = format!("{path}.downwardAPI");
        errors.extend(mode(&format!("{path}.defaultMode"), source.default_mode));
        errors.extend(source.items.iter().flatten().flat_map(|file| downward_file(&path, file)));
    }
    if let Some(source) = &volume.projected {
        errors.extend(projected(&format!("{path}.projected"), source));
    }
    if let Some(source) = &volume.host_path {
        errors.extend(host_path(&format!("{path}.hostPath"), source));
    }
    if let Some(source) = &volume.persistent_volume_claim {
        errors.extend(validate::required(&format!("{path}.persistentVolumeClaim.claimName"), &source.claim_name));
    }
    if let Some(source) = &volume.nfs {
        errors.extend(validate::required(&format!("{path}.nfs.server"), &source.server));
        errors.extend(validate::required(&format!("{path}.nfs.path"), &source.path));
        if !source.path.is_empty() && !source.path.starts_with('/') {
            errors.push(FieldError::invalid(format!("{path}.nfs.path"), source.path.clone(), "must be an absolute path"));
        }
    }
    if let Some(limit) = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref())
        && limit.0.starts_with('-')
    {
        let why = "SizeLimit field must be a valid resource quantity";
        errors.push(FieldError::forbidden(format!("{path}.emptyDir.sizeLimit"), why));
    }
    if let Some(source) = &volume.csi {
        errors.extend(validate::required(&format!("{path}.csi.driver"), &source.driver));
    }
    if let Some(source) = &volume.ephemeral
        && source.volume_claim_template.is_none()
    {
        errors.push(FieldError::required(format!("{path}.ephemeral.volumeClaimTemplate"), ""));
    }
    errors
}

/// The JSON names of the sources that a volume has.
fn source_names(volume: &Volume) -> Vec<String> {
    match serde_json::to_value(volume) {
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().map(|(name, _)| name).filter(|name| name != "name").collect(),
        _ => Vec::new(),
    }
}

fn mode(path: &str, mode: Option<i32>) -> Option<FieldError> {
    let mode = mode.filter(|mode| !(0..=0o777).contains(mode))?;
    Some(FieldError::invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive"))
}

fn items(path: &str, items: Option<&[KeyToPath]>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, item) in items.into_iter().flatten().enumerate() {
        let path = format!("{path}.items[{index}]");
        errors.extend(validate::required(&format!("{path}.key"), &item.key));
        errors.extend(validate::required(&format!("{path}.path"), &item.path));
        if !item.path.is_empty() {
            errors.extend(local_path(&format!("{path}.path"), &item.path));
        }
        errors.extend(mode(&format!("{path}.mode"), item.mode));
    }
    errors
}

/// A path inside a volume whose first part may not begin with two dots, which the node keeps for itself.
fn local_path(path: &str, target: &str) -> Vec<FieldError> {
    let mut errors = relative_path(path, target);
    if target.starts_with("..") && !target.starts_with("../") {
        errors.push(FieldError::invalid(path, target, "must not start with '..'"));
    }
    errors
}

/// A path inside a volume.
pub fn relative_path(path: &str, target: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if target.starts_with('/') {
        errors.push(FieldError::invalid(path, target, "must be a relative path"));
    }
    errors.extend(no_parent(path, target));
    errors
}

fn no_parent(path: &str, target: &str) -> Option<FieldError> {
    target.split('/').any(|part| part == "..").then(|| FieldError::invalid(path, target, "must not contain '..'"))
}

fn downward_file(path: &str, file: &DownwardAPIVolumeFile) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = validate::required(&format!("{path}.path"), &file.path).into_iter().collect();
    if !file.path.is_empty() {
        errors.extend(local_path(&format!("{path}.path"), &file.path));
    }
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), None) => errors.extend(validate_field_reference(&format!("{path}.fieldRef"), field, FILE_FIELDS)),
        (None, Some(resource)) => {
            let path = format!("{path}.resourceFieldRef");
            errors.extend(validate::required(&format!("{path}.containerName"), resource.container_name.as_deref().unwrap_or("")));
            errors.extend(validate_resource_reference(&path, resource));
        }
        (Some(_), Some(_)) => {
            errors.push(FieldError::invalid(
                path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            ));
        }
        (None, None) => errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required")),
    }
    errors.extend(mode(&format!("{path}.mode"), file.mode));
    errors
}

fn projected(path: &str, source: &ProjectedVolumeSource) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = mode(&format!("{path}.defaultMode"), source.default_mode).into_iter().collect();
    for (index, projection) in source.sources.iter().flatten().enumerate() {
        let path = format!("{path}.sources[{index}]");
        let mut kinds = 0;
        if let Some(secret) = &projection.secret {
            kinds += 1;
            errors.extend(validate::required(&format!("{path}.secret.name"), &secret.name));
            errors.extend(items(&format!("{path}.secret"), secret.items.as_deref()));
        }
        if let Some(config_map) = &projection.config_map {
            kinds += 1;
            errors.extend(validate::required(&format!("{path}.configMap.name"), &config_map.name));
            errors.extend(items(&format!("{path}.configMap"), config_map.items.as_deref()));
        }
        if let Some(downward) = &projection.downward_api {
            kinds += 1;
            let path = format!("{path}.downwardAPI");
            errors.extend(downward.items.iter().flatten().flat_map(|file| downward_file(&path, file)));
        }
        if let Some(token) = &projection.service_account_token {
            kinds += 1;
            let path = format!("{path}.serviceAccountToken");
            if token.expiration_seconds.is_some_and(|seconds| seconds < 600) {
                let why = "may not specify a duration less than 10 minutes";
                errors.push(FieldError::invalid(format!("{path}.expirationSeconds"), token.expiration_seconds, why));
            }
            errors.extend(validate::required(&format!("{path}.path"), &token.path));
        }
        kinds += usize::from(projection.cluster_trust_bundle.is_some()) + usize::from(projection.pod_certificate.is_some());
        if kinds > 1 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type per source"));
        } else if kinds == 0 {
            errors.push(FieldError::required(path, "no supported volume source was specified"));
        }
    }
    errors
}

fn host_path(path: &str, source: &HostPathVolumeSource) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if source.path.is_empty() {
        errors.push(FieldError::required(format!("{path}.path"), ""));
        return errors;
    }
    errors.extend(no_parent(&format!("{path}.path"), &source.path));
    errors.extend(validate::one_of_given(&format!("{path}.type"), source.type_.as_deref(), HOST_PATH_TYPES));
    errors
}
