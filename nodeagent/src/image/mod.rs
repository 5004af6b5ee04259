//! Images on this machine: references, the store of unpacked layers, archives, and registries.

mod archive;
pub mod build;
mod bytes;
mod pull;
mod reference;
mod store;
mod unpack;

pub(crate) use bytes::write_atomically;
pub use pull::RegistryOptions;
pub use reference::{ImageReference, ReferenceError};
pub use store::{ImageConfiguration, ImageRecord, ImageStore, ProcessDefaults};
pub use unpack::UnpackError;

use std::{io, path::Path};

use crate::runtime::RuntimeError;

/// What can go wrong with images.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("{context}: {source}")]
    Io { context: String, source: io::Error },
    /// The archive or registry gave something that is no image, or not the one its digest promises.
    #[error("{0}")]
    Invalid(String),
    #[error("layer {layer}: {source}")]
    Layer { layer: String, source: UnpackError },
    /// The registry does not have it or does not let us have it.
    #[error("{0}")]
    Refused(String),
    /// The registry could not be reached or is broken.
    #[error("{0}")]
    Unreachable(String),
    /// The store was written by a newer version.
    #[error("the image store at {path} has format {found}; this version knows {known}")]
    Format { path: String, found: u32, known: u32 },
}

impl ImageError {
    fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> ImageError {
        let context = context.into();
        move |source| ImageError::Io { context, source }
    }

    fn at(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
        ImageError::io(format!("{doing} {}", path.display()))
    }
}

impl From<ImageError> for RuntimeError {
    fn from(error: ImageError) -> RuntimeError {
        let reason = match &error {
            ImageError::Reference(_) => "InvalidImageName",
            ImageError::Unreachable(_) => "RegistryUnavailable",
            ImageError::Io { .. }
            | ImageError::Invalid(_)
            | ImageError::Layer { .. }
            | ImageError::Refused(_)
            | ImageError::Format { .. } => "ErrImagePull",
        };
        RuntimeError::Image { reason, message: error.to_string() }
    }
}
