//! `POST` of a new object.

use async_trait::async_trait;
use rand::RngExt;
use serde_json::Value;
use trireme_api::{
    field::FieldError,
    metadata::validate_create,
    registry::{AdmissionError, Resource},
    status::Status,
};

use crate::{
    ApiServer, admission,
    answer::Answer,
    decode_body, metadata,
    request::ApiRequest,
    write::{Change, Companions, Current, Modification, Plan, Target},
};

/// How often another name is tried when a generated one is taken.
const NAME_ATTEMPTS: usize = 8;
/// The letters of generated names: no vowels, nothing that looks like another letter (`k8s.io/apimachinery/pkg/util/rand`).
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const NAME_SUFFIX_LENGTH: usize = 5;
/// The longest base of a generated name that fits a DNS label with its suffix.
const NAME_BASE_LIMIT: usize = 63 - NAME_SUFFIX_LENGTH;

/// Creates the object in the body.
///
/// # Errors
/// 400, 403, 404 (no such namespace), 409 (it exists), 415, 422, and what the store says.
pub async fn create(server: &ApiServer, request: &mut ApiRequest) -> Result<Answer, Status> {
    let persistence = request.persistence()?;
    let mut object = decode_body::object(server, request)?;
    check_namespace(&mut object, request.namespace.as_deref())?;
    if !metadata::text(&object, "resourceVersion").is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    metadata::of(&mut object);
    let given = metadata::name(&object).to_owned();
    let base = metadata::text(&object, "generateName").to_owned();
    let mut attempts_left = NAME_ATTEMPTS;
    loop {
        let name = if given.is_empty() && !base.is_empty() { server.generate_name(&base) } else { given.clone() };
        let target = Target { resource: request.resource.clone(), namespace: request.namespace.clone(), name };
        let mut creation = Creation { object: object.clone(), warnings: Vec::new() };
        match server.modify(&request.context, &target, persistence, &mut creation).await {
            Ok(outcome) => {
                request.warnings.extend(creation.warnings);
                let json = server.converted(&request.resource, outcome.json().clone());
                return Ok(Answer::object(201, &request.resource, json));
            }
            Err(status) if status.reason == "AlreadyExists" && given.is_empty() && attempts_left > 1 => attempts_left -= 1,
            Err(status) => return Err(status),
        }
    }
}

/// The namespace in the body, if there is one, is the one in the path. Objects without a namespace are often sent with the
/// default one, which is taken away (`EnsureObjectNamespaceMatchesRequestNamespace`).
pub fn check_namespace(object: &mut Value, namespace: Option<&str>) -> Result<(), Status> {
    let given = metadata::text(object, "namespace");
    if given.is_empty() || given == namespace.unwrap_or_default() {
        return Ok(());
    }
    if given == "default" && namespace.is_none() {
        metadata::of(object).remove("namespace");
        return Ok(());
    }
    Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"))
}

/// What an [`AdmissionError`] is to the client, together with the errors of the generic metadata.
pub fn refusal(
    resource: &Resource,
    name: &str,
    metadata_errors: Vec<FieldError>,
    error: Option<AdmissionError>,
) -> Option<Status> {
    let mut errors = metadata_errors;
    match error {
        Some(AdmissionError::Decode(message)) => return Some(Status::bad_request(message)),
        Some(AdmissionError::Invalid(more)) => errors.extend(more),
        None => {}
    }
    (!errors.is_empty()).then(|| Status::invalid(resource, name, &errors))
}

/// The decision to create an object.
pub struct Creation {
    /// What the client sent.
    pub object: Value,
    pub warnings: Vec<String>,
}

#[async_trait]
impl Modification for Creation {
    async fn plan(&mut self, server: &ApiServer, target: &Target, current: Option<&Current>) -> Result<Plan, Status> {
        let resource = &target.resource;
        if current.is_some() {
            return Err(Status::already_exists(resource, &target.name));
        }
        let mut object = self.object.clone();
        let mut companions: Companions = admission::before_create(server, target, &mut object)?;
        let now = server.clock.now();
        metadata::fill_new(&mut object, target.namespace.as_deref(), &target.name, server.new_uid(), now);
        let metadata_errors = validate_create(resource, &object);
        let created = match resource.behaviour.create(object) {
            Ok(created) => match refusal(resource, &target.name, metadata_errors, None) {
                Some(status) => return Err(status),
                None => created,
            },
            Err(error) => {
                let status = refusal(resource, &target.name, metadata_errors, Some(error));
                return Err(status.unwrap_or_else(|| Status::internal("an object was refused without a reason")));
            }
        };
        let mut created = created;
        companions.extend(admission::complete(server, target, &mut created, None).await?);
        Ok(Plan { change: Change::Put(created), companions })
    }
}

impl ApiServer {
    /// A name that begins with `base` and ends with random letters.
    pub(crate) fn generate_name(&self, base: &str) -> String {
        let mut cut = base.len().min(NAME_BASE_LIMIT);
        while !base.is_char_boundary(cut) {
            cut -= 1;
        }
        let mut name = base[..cut].to_owned();
        let mut random = self.random.lock();
        for _ in 0..NAME_SUFFIX_LENGTH {
            name.push(char::from(NAME_LETTERS[random.random_range(0..NAME_LETTERS.len())]));
        }
        name
    }
}
