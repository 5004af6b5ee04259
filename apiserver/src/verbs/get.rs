//! `GET` of one object.

use trireme_api::status::Status;

use super::list_options::parse_revision;
use crate::{
    ApiServer,
    answer::Answer,
    keys,
    request::ApiRequest,
    store_error::{status_of, too_large_resource_version},
};

/// Answers with the object: as of now, or as this server has it when the client says `resourceVersion=0`.
///
/// # Errors
/// 404 when there is none, 400 for a bad resourceVersion, what the store says otherwise.
pub async fn get(server: &ApiServer, request: &ApiRequest) -> Result<Answer, Status> {
    let name = request.object_name()?;
    let cache = server.cache(&request.resource)?;
    match parse_revision(request.query.get("resourceVersion"))? {
        None => {
            server.caches.barrier(server.store.as_ref()).await.map_err(|error| status_of(&error))?;
        }
        Some(revision) => {
            server.caches.reach(revision).await.map_err(|behind| too_large_resource_version(behind.requested, behind.current))?
        }
    }
    match cache.object(&keys::object_path(request.namespace.as_deref(), name)) {
        Some(object) => Ok(Answer::object(200, &request.resource, server.served(&request.resource, &object))),
        None => Err(Status::not_found(&request.resource, name)),
    }
}
