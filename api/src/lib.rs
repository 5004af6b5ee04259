//! The object model: the registry of kinds, metadata, selectors, quantities, defaulting, validation, patches.
//!
//! It owns what an object may be and how one becomes another. It knows no storage, no network and no clock. Start at
//! [`registry`], then read any file under `kinds/`.

#![forbid(unsafe_code)]

pub mod cidr;
pub mod clock;
pub mod decode;
pub mod field;
pub mod kinds;
pub mod metadata;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod registry;
pub mod schema;
pub mod selector;
pub mod status;
#[cfg(test)]
mod testing;
