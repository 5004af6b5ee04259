//! The built-in kinds, one file (or folder) each: how an object of the kind is defaulted, validated, updated and shown.
//!
//! Every kind implements [`typed::Kind`]; [`typed::Typed`] turns that into the registry's [`crate::registry::Behaviour`].
//! To add a kind, write its file and name it in [`registry`].

mod config_map;
pub mod decode;
pub mod namespace;
pub mod pod;
pub mod pod_resources;
mod pod_template;
mod quantities;
mod table;
mod typed;
mod validate;

use crate::registry::Registry;

/// All built-in kinds.
pub fn registry() -> Registry {
    Registry::new([
        typed::resource::<config_map::ConfigMapKind>(),
        typed::resource::<namespace::NamespaceKind>(),
        typed::resource::<pod::PodKind>(),
    ])
}

#[cfg(test)]
mod tests;
