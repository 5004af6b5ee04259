//! What the server adds to objects and refuses for reasons outside of the object: namespaces, service accounts, priorities,
//! the addresses of Services.

mod namespace;
mod pod;
mod priority_class;
mod service;

use serde_json::Value;
use trireme_api::{registry::Resource, status::Status};

use crate::{
    ApiServer,
    write::{Companions, Target},
};

fn is_core(resource: &Resource, plural: &str) -> bool {
    resource.group.is_empty() && resource.plural == plural
}

/// Before a new object is defaulted and validated. What comes back are the conditions under which it may be written.
///
/// # Errors
/// 403 or 404.
pub fn before_create(server: &ApiServer, target: &Target, object: &mut Value) -> Result<Companions, Status> {
    let companions = namespace::before_create(server, target)?;
    if is_core(&target.resource, "pods") {
        pod::before_create(server, target, object)?;
    }
    Ok(companions)
}

/// Before a changed object is defaulted and validated.
///
/// # Errors
/// 403.
pub fn before_update(_server: &ApiServer, target: &Target, new: &mut Value, old: &Value) -> Result<(), Status> {
    if is_core(&target.resource, "pods") {
        pod::before_update(new, old);
    }
    if is_core(&target.resource, "services") {
        service::before_update(new, old);
    }
    Ok(())
}

/// After an object was defaulted and validated: what it takes from ranges that all objects share.
///
/// # Errors
/// 403 or 422 when what it asks for is taken.
pub async fn complete(
    server: &ApiServer,
    target: &Target,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<Companions, Status> {
    if is_core(&target.resource, "services") {
        return service::allocate(server, target, object, old).await;
    }
    priority_class::check_default(server, target, object).await?;
    Ok(Companions::default())
}

/// Before an object is deleted.
///
/// # Errors
/// 403 for what may not go.
pub fn before_delete(_server: &ApiServer, target: &Target) -> Result<(), Status> {
    namespace::before_delete(target)
}

/// What an object that is removed gives back.
pub fn release(target: &Target, object: &Value) -> Companions {
    if is_core(&target.resource, "services") {
        return service::release(object);
    }
    Companions::default()
}
