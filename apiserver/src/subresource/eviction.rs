//! `pods/eviction`: a deletion that may be refused to protect an application.

use serde_json::Value;
use trireme_api::status::Status;

use crate::{
    ApiServer,
    answer::{Answer, success},
    decode_body, metadata,
    request::{ApiRequest, Persistence},
    verbs::delete::{DeleteOptions, delete_object},
    write::Target,
};

/// Evicts a pod: deletes it with the options in the body. There are no disruption budgets yet that could forbid it.
///
/// # Errors
/// 400, 404, 409, and what the store says.
pub async fn evict(server: &ApiServer, request: &ApiRequest) -> Result<Answer, Status> {
    let from_query = request.persistence()?;
    let eviction = decode_body::parse(request.content_type.as_deref(), &request.body)?.value;
    let name = request.object_name()?.to_owned();
    let given = metadata::name(&eviction);
    if !given.is_empty() && given != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let empty = Value::Object(serde_json::Map::new());
    let delete_options = eviction.get("deleteOptions").filter(|options| !options.is_null()).unwrap_or(&empty);
    let mut options = DeleteOptions::from_value(delete_options)?;
    if from_query == Persistence::DryRun {
        options.persistence = from_query;
    }
    let target = Target { resource: request.resource.clone(), namespace: request.namespace.clone(), name };
    delete_object(server, &request.context, &target, options).await?;
    Ok(success(201, None))
}
