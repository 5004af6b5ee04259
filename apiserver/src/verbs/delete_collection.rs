//! `DELETE` of a collection.

use std::sync::Arc;

use futures::{FutureExt, future};
use trireme_api::status::Status;

use super::{
    delete::{DeleteOptions, delete_object},
    list,
    list_options::ListOptions,
};
use crate::{
    ApiServer,
    answer::{Answer, ListAnswer},
    filter::Filter,
    request::ApiRequest,
    write::Target,
};

/// How many objects are deleted at a time.
const CONCURRENCY: usize = 16;

/// Deletes every object that the query selects; answers with the objects.
///
/// # Errors
/// As list and delete; the first refusal of an object ends it. Objects that went away meanwhile do not count.
pub async fn delete_collection(server: &ApiServer, request: &ApiRequest) -> Result<Answer, Status> {
    let options = DeleteOptions::parse(request)?;
    let list_options = ListOptions::parse(&request.query, false)?;
    let filter = Filter::parse(&request.resource, request.namespace.as_deref(), None, &request.query)?;
    let selected: ListAnswer = list::collect(server, request, &list_options, &filter).await?;
    let targets: Vec<Target> = selected
        .objects
        .iter()
        .map(|object| Target {
            resource: Arc::clone(&request.resource),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
        })
        .collect();
    for some in targets.chunks(CONCURRENCY) {
        let deletions: Vec<_> =
            some.iter().map(|target| delete_object(server, &request.context, target, options.clone()).boxed()).collect();
        for outcome in future::join_all(deletions).await {
            match outcome {
                Ok(_) => {}
                Err(status) if status.reason == "NotFound" => {}
                Err(status) => return Err(status),
            }
        }
    }
    Ok(Answer::List(selected))
}
