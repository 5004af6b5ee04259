//! The verbs, each written once over the registry's `Resource`.

pub mod create;
pub mod delete;
pub mod delete_collection;
pub mod get;
pub mod list;
pub mod list_options;
pub mod patch;
pub mod update;
pub mod watch;
