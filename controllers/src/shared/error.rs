//! The one error of the control loops, and how API errors are told apart.

/// Why one pass over one object failed. The pass is repeated with back-off.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// A request to the API server failed.
    #[error("{action}: {source}")]
    Api {
        /// What was being done, with the object's name.
        action: String,
        #[source]
        source: kube::Error,
    },
    /// An object could not be encoded or decoded.
    #[error("{action}: {source}")]
    Encoding {
        action: String,
        #[source]
        source: serde_json::Error,
    },
    /// Something that has to be there is not (yet).
    #[error("{0}")]
    NotReady(String),
}

/// Gives API errors the name of what was being done.
pub trait Doing<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, ControllerError>;
}

impl<T> Doing<T> for Result<T, kube::Error> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, ControllerError> {
        self.map_err(|source| ControllerError::Api { action: action(), source })
    }
}

impl<T> Doing<T> for Result<T, serde_json::Error> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, ControllerError> {
        self.map_err(|source| ControllerError::Encoding { action: action(), source })
    }
}

/// The object is not there (404).
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// The name is taken (409 `AlreadyExists`).
pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

/// The object changed since it was read, or a precondition did not hold (409 `Conflict`).
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if !status.is_already_exists() && status.is_conflict())
}

/// The object was refused by validation (422).
pub fn is_invalid(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_invalid() || status.code == 422)
}

/// The verb is not supported (405).
pub fn is_method_not_allowed(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 405)
}

/// The namespace is being deleted and takes no new content (403 with the cause `NamespaceTerminating`).
pub fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    status.is_forbidden()
        && status
            .details
            .as_ref()
            .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
}

/// The text of an error as Kubernetes' events and conditions show it: the API server's own message where there is one.
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
