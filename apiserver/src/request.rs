//! One request for a resource, taken apart.

use std::sync::Arc;

use bytes::Bytes;
use trireme_api::{registry::Resource, status::Status};

use crate::{context::RequestContext, negotiate::Accepted, router::Query};

/// What a verb is told.
pub struct ApiRequest {
    pub context: RequestContext,
    pub resource: Arc<Resource>,
    pub namespace: Option<String>,
    /// Set for every verb but list, watch, create and deletecollection.
    pub name: Option<String>,
    pub query: Query,
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
    /// 400 for a value other than `All`.
    pub fn persistence(&self) -> Result<Persistence, Status> {
        persistence(self.query.all("dryRun"))
    }
}

/// What the values of `dryRun` mean.
///
/// # Errors
/// 400 for a value other than `All`.
pub fn persistence<'a>(values: impl Iterator<Item = &'a str>) -> Result<Persistence, Status> {
    let mut persistence = Persistence::Kept;
    for value in values {
        match value {
            "" => {}
            "All" => persistence = Persistence::DryRun,
            other => {
                return Err(Status::bad_request(format!("dryRun: Unsupported value: \"{other}\": supported values: \"All\"")));
            }
        }
    }
    Ok(persistence)
}
