//! `PATCH` of an object: JSON patch, merge patch, strategic merge patch.

use async_trait::async_trait;
use serde_json::{Value, json};
use trireme_api::{
    decode,
    field::FieldError,
    patch::{self, PatchError},
    registry::Part,
    schema::Schemas,
    status::{Cause, Details, Status},
};

use super::update::changed;
use crate::{
    ApiServer,
    answer::Answer,
    decode_body::{self, FieldValidation},
    metadata,
    negotiate::MediaType,
    request::ApiRequest,
    write::{Current, Modification, Plan, Target},
};

/// The kinds of patches that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    StrategicMerge,
}

impl PatchType {
    /// Reads the content type of a patch.
    ///
    /// # Errors
    /// 415 for anything else, server-side apply among it.
    pub fn parse(content_type: Option<&str>) -> Result<Self, Status> {
        match MediaType::parse(content_type.unwrap_or_default()).essence.as_str() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::StrategicMerge),
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Err(Status::unsupported_media_type(
                "server-side apply (application/apply-patch+yaml) is not supported by this server; accepted media types \
                 include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
            )),
            _ => Err(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
            )),
        }
    }

    /// Applies a patch to a value.
    ///
    /// # Errors
    /// 400 for a malformed patch, 422 for one that does not fit.
    pub fn apply(self, schemas: &Schemas, schema_name: &str, current: &Value, patch: &Value) -> Result<Value, Status> {
        match self {
            Self::Json => patch::json_patch(current, patch),
            Self::Merge => patch::merge_patch(current, patch),
            Self::StrategicMerge => patch::strategic_merge_patch(schemas, schema_name, current, patch),
        }
        .map_err(|error| refused(&error))
    }
}

/// Parses the patch in a body, with the duplicate fields in it.
///
/// # Errors
/// 400 when it is not JSON.
pub fn parse_body(request: &ApiRequest) -> Result<decode::Parsed, Status> {
    decode::parse_json(&request.body).map_err(|error| Status::bad_request(error.to_string()))
}

fn refused(error: &PatchError) -> Status {
    match error {
        PatchError::Decode(_) => Status::bad_request(error.to_string()),
        PatchError::TooManyOperations(_) => Status::too_large(error.to_string()),
        PatchError::Apply(_) => {
            let message = "the server rejected our request due to an error in our request";
            let mut status = Status::new(422, "Invalid", message);
            // kubectl prints the message only when there are details, and no causes among them.
            status.details = Some(Details::default());
            status
        }
    }
}

/// The refusal of a patch whose result is no object of the kind, in the words of Kubernetes, which name no kind.
fn invalid_patch(patched: &Value, why: String) -> Status {
    let error = FieldError::invalid("patch", patched.to_string(), why);
    let mut status = Status::new(422, "Invalid", format!(" \"\" is invalid: {error}"));
    let cause = Cause { reason: error.kind.reason().to_owned(), message: error.message(), field: error.path };
    status.details = Some(Details { causes: vec![cause], ..Details::default() });
    status
}

/// Changes an object by the patch in the body.
///
/// # Errors
/// 400, 403, 404, 409, 415, 422, and what the store says.
pub async fn patch(server: &ApiServer, request: &mut ApiRequest, part: Part) -> Result<Answer, Status> {
    let persistence = request.persistence()?;
    let patch_type = PatchType::parse(request.content_type.as_deref())?;
    let validation = request.field_validation()?;
    let parsed = parse_body(request)?;
    let target = Target {
        resource: request.resource.clone(),
        namespace: request.namespace.clone(),
        name: request.object_name()?.to_owned(),
    };
    let mut patching =
        Patching { patch_type, patch: parsed.value, duplicates: parsed.duplicates, validation, part, warnings: Vec::new() };
    let outcome = server.modify(&request.context, &target, persistence, &mut patching).await?;
    request.warnings.extend(patching.warnings);
    let json = server.converted(&request.resource, outcome.json().clone());
    Ok(Answer::object(200, &request.resource, json))
}

struct Patching {
    patch_type: PatchType,
    patch: Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
    part: Part,
    warnings: Vec<String>,
}

#[async_trait]
impl Modification for Patching {
    async fn plan(&mut self, server: &ApiServer, target: &Target, current: Option<&Current>) -> Result<Plan, Status> {
        let resource = &target.resource;
        let current = current.ok_or_else(|| Status::not_found(resource, &target.name))?;
        let mut patched = self.patch_type.apply(&server.schemas, &resource.schema_name, &current.value, &self.patch)?;
        server.schemas.fill_null_texts(&resource.schema_name, &mut patched);
        if !patched.is_object() {
            return Err(Status::bad_request(format!(
                "{}: the patched object is not an object",
                decode_body::cannot_be_handled(resource)
            )));
        }
        if patched["kind"] != current.value["kind"] || patched["apiVersion"] != current.value["apiVersion"] {
            patched["kind"] = json!(resource.kind);
            patched["apiVersion"] = json!(resource.api_version());
        }
        if metadata::name(&patched) != target.name {
            let why = format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                metadata::name(&patched),
                target.name
            );
            return Err(Status::bad_request(why));
        }
        let complaints = decode_body::complaints(server, resource, &patched, &self.duplicates, self.validation);
        self.warnings.clear();
        decode_body::judge(complaints, self.validation, &mut self.warnings).map_err(|why| invalid_patch(&patched, why))?;
        // Kept for the refusal of a patch that leaves a field with a value of another type.
        let result = patched.clone();
        changed(server, target, patched, current, self.part).await.map_err(|status| {
            let why = status.message.strip_prefix(&format!("{}: ", decode_body::cannot_be_handled(resource)));
            match why.filter(|_| status.code == 400) {
                Some(why) => invalid_patch(&result, why.to_owned()),
                None => status,
            }
        })
    }
}
