//! From a request's method, path and query to what is asked of which resource.

pub mod path;
pub mod query;

pub use path::{Route, parse};
pub use query::Query;
