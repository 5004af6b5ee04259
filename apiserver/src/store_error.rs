//! The one place where what the store says becomes a `Status`.

use trireme_api::status::{Cause, Details, Status};
use trireme_storage::{model::Revision, store::StoreError};

/// What a client is told of an error of the store.
pub fn status_of(error: &StoreError) -> Status {
    match error {
        StoreError::Compacted { requested, compacted } => {
            Status::expired(format!("The resourceVersion for the provided request is too old: {requested} ({compacted})."))
        }
        StoreError::FutureRevision { requested, current } => too_large_resource_version(*requested, *current),
        StoreError::Unavailable(_) => retryable(Status::unavailable(error.to_string())),
        // Another master has the right data.
        StoreError::Diverged(_) => retryable(Status::unavailable(error.to_string())),
        // The loop that sent it is about to be stopped; nobody else is fenced.
        StoreError::Fenced { .. } => Status::unavailable(error.to_string()),
        StoreError::Unknown(_) => retryable(Status::timeout(format!(
            "The request did not complete in time; it may or may not have been carried out: {error}"
        ))),
        StoreError::NoSpace => Status::no_space(error.to_string()),
        StoreError::InvalidTransaction(_)
        | StoreError::LeaseNotFound(_)
        | StoreError::LeaseExists(_)
        | StoreError::KeyNotFound
        | StoreError::DuplicateKey
        | StoreError::Failed(_) => Status::internal(format!("Internal error occurred: {error}")),
    }
}

/// A resourceVersion that this server has not reached (`k8s.io/apiserver/pkg/storage.NewTooLargeResourceVersionError`).
pub fn too_large_resource_version(requested: Revision, current: Revision) -> Status {
    let mut status = retryable(Status::timeout(format!("Timeout: Too large resource version: {requested}, current: {current}")));
    if let Some(details) = &mut status.details {
        details.causes.push(Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        });
    }
    status
}

fn retryable(mut status: Status) -> Status {
    status.details = Some(Details { retry_after_seconds: Some(1), ..Details::default() });
    status
}
