//! One request for a resource, taken apart.

use std::sync::Arc;

use bytes::Bytes;
use trireme_api::{field::FieldError, registry::Resource, status::Status};

use crate::{context::RequestContext, decode_body::FieldValidation, negotiate::Accepted, router::Query};

/// The group of the options in a query.
const OPTIONS_GROUP: &str = "meta.k8s.io";

/// What a verb is told.
pub struct ApiRequest {
    pub context: RequestContext,
    pub resource: Arc<Resource>,
    pub namespace: Option<String>,
    /// Set for every verb but list, watch, create and deletecollection.
    pub name: Option<String>,
    pub query: Query,
    /// What the options in the query are called: `CreateOptions`.
    pub options_kind: &'static str,
    pub accepted: Accepted,
    pub content_type: Option<String>,
    pub body: Bytes,
    /// What the client is told in `Warning` headers. Filled by the verb.
    pub warnings: Vec<String>,
}

/// Whether the outcome of a write is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    Kept,
    DryRun,
}

impl ApiRequest {
    /// The name of the object that the request is about.
    ///
    /// # Errors
    /// 400 when the path has none.
    pub fn object_name(&self) -> Result<&str, Status> {
        self.name.as_deref().ok_or_else(|| Status::bad_request("name must be provided"))
    }

    /// Reads `dryRun` of the query.
    ///
    /// # Errors
    /// 422 for a value other than `All`.
    pub fn persistence(&self) -> Result<Persistence, Status> {
        persistence(self.options_kind, self.query.all("dryRun"))
    }

    /// Reads `fieldValidation` of the query; Kubernetes warns when none is given.
    ///
    /// # Errors
    /// 422 for a value that is none of the three.
    pub fn field_validation(&self) -> Result<FieldValidation, Status> {
        match self.query.get("fieldValidation") {
            None | Some("" | "Warn") => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some(other) => {
                let error = FieldError::not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]);
                Err(invalid_options(self.options_kind, &[error]))
            }
        }
    }
}

/// The refusal of options: `CreateOptions.meta.k8s.io "" is invalid: …`.
pub fn invalid_options(kind: &str, errors: &[FieldError]) -> Status {
    Status::invalid_kind(OPTIONS_GROUP, kind, "", errors)
}

/// What the values of `dryRun` mean.
///
/// # Errors
/// 422 for a value other than `All`.
pub fn persistence<'a>(options_kind: &str, values: impl Iterator<Item = &'a str>) -> Result<Persistence, Status> {
    let values: Vec<&str> = values.filter(|value| !value.is_empty()).collect();
    match values.iter().find(|value| **value != "All") {
        Some(_) => Err(invalid_options(options_kind, &[FieldError::not_supported("dryRun", values, &["All"])])),
        None if values.is_empty() => Ok(Persistence::Kept),
        None => Ok(Persistence::DryRun),
    }
}
