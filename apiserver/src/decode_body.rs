//! From the body of a request to a value, with what field validation says of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use trireme_api::{
    decode::{self, Parsed},
    registry::Resource,
    status::Status,
};

use crate::{
    ApiServer,
    negotiate::MediaType,
    protobuf::{self, ProtobufError},
    request::ApiRequest,
};

/// The `fieldValidation` parameter (KEP-2885).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// Parses a JSON or YAML body.
///
/// # Errors
/// 400 for a malformed one, 415 for another media type.
pub fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Parsed, Status> {
    let media = MediaType::parse(content_type.unwrap_or_default());
    let parsed = match media.essence.as_str() {
        // A client that names no type sends JSON, or YAML, which holds JSON.
        "" | "application/json" => decode::parse_json(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => decode::parse_yaml(body),
        "application/vnd.kubernetes.protobuf" => {
            return match protobuf::parse(body) {
                Ok(value) => Ok(Parsed { value, duplicates: Vec::new() }),
                Err(error @ ProtobufError::Unsupported { .. }) => Err(Status::unsupported_media_type(error.to_string())),
                Err(error) => Err(Status::bad_request(error.to_string())),
            };
        }
        _ => {
            return Err(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: application/json, \
                 application/yaml, application/vnd.kubernetes.protobuf",
            ));
        }
    };
    parsed.map_err(|error| Status::bad_request(error.to_string()))
}

/// Parses the object of a create or an update: its kind fits the resource, and its unknown and duplicate fields are
/// refused, warned of or ignored.
///
/// # Errors
/// 400 or 415.
pub fn object(server: &ApiServer, request: &mut ApiRequest) -> Result<Value, Status> {
    let validation = request.field_validation()?;
    let parsed = parse(request.content_type.as_deref(), &request.body)?;
    let resource = request.resource.clone();
    let mut value = parsed.value;
    check_kind(&mut value, &resource)?;
    server.schemas.fill_null_texts(&resource.schema_name, &mut value);
    check_metadata(&value, &resource)?;
    let complaints = complaints(server, &resource, &value, &parsed.duplicates, validation);
    judge(complaints, validation, &mut request.warnings)
        .map_err(|errors| Status::bad_request(format!("{}: {errors}", cannot_be_handled(&resource))))?;
    Ok(value)
}

/// What is wrong with the fields: `unknown field "spec.foo"`, `duplicate field "x"`.
pub fn complaints(
    server: &ApiServer,
    resource: &Resource,
    value: &Value,
    duplicates: &[String],
    validation: FieldValidation,
) -> Vec<String> {
    if validation == FieldValidation::Ignore {
        return Vec::new();
    }
    let unknown = server.schemas.unknown_fields(&resource.schema_name, value);
    let unknown = unknown.into_iter().map(|path| format!("unknown field \"{path}\""));
    unknown.chain(duplicates.iter().map(|path| format!("duplicate field \"{path}\""))).collect()
}

/// Turns complaints into warnings, or into the text of a refusal.
pub fn judge(complaints: Vec<String>, validation: FieldValidation, warnings: &mut Vec<String>) -> Result<(), String> {
    match validation {
        _ if complaints.is_empty() => Ok(()),
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            warnings.extend(complaints);
            Ok(())
        }
        FieldValidation::Strict => Err(format!("strict decoding error: {}", complaints.join(", "))),
    }
}

/// `Pod in version "v1" cannot be handled as a Pod`.
pub fn cannot_be_handled(resource: &Resource) -> String {
    format!("{} in version \"{}\" cannot be handled as a {}", resource.kind, resource.version, resource.kind)
}

/// The metadata have the types of an ObjectMeta. Everything after this reads them as such, so a name that is no text must not
/// pass for one that is missing.
fn check_metadata(value: &Value, resource: &Resource) -> Result<(), Status> {
    match value.get("metadata") {
        None | Some(Value::Null) => Ok(()),
        Some(metadata) => serde_path_to_error::deserialize::<_, ObjectMeta>(metadata).map(drop).map_err(|error| {
            let (field, reason) = (error.path(), error.inner());
            Status::bad_request(format!("{}: metadata.{field}: {reason}", cannot_be_handled(resource)))
        }),
    }
}

/// The body is an object of the resource's kind; a missing kind or version is filled in.
fn check_kind(value: &mut Value, resource: &Resource) -> Result<(), Status> {
    let Some(object) = value.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "{}: json: cannot unmarshal into Go value of type {}.{}",
            cannot_be_handled(resource),
            resource.version,
            resource.kind
        )));
    };
    let expected = resource.api_version();
    let given = |object: &serde_json::Map<String, Value>, field: &str| {
        object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (version, kind) = (given(object, "apiVersion"), given(object, "kind"));
    if !version.is_empty() && version != expected {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({expected})"
        )));
    }
    if !kind.is_empty() && kind != resource.kind {
        return Err(Status::bad_request(format!(
            "{kind} in version \"{}\" cannot be handled as a {}: converting ({}.{kind}) to ({}): unknown conversion",
            resource.version, resource.kind, resource.version, resource.kind
        )));
    }
    object.insert("apiVersion".to_owned(), json!(expected));
    object.insert("kind".to_owned(), json!(resource.kind));
    Ok(())
}
