//! `PUT` of an object, and what every change of an object has in common.

use async_trait::async_trait;
use serde_json::Value;
use trireme_api::{
    metadata::validate_update,
    registry::{Part, Resource},
    status::Status,
};

use super::create::{Creation, check_namespace, refusal};
use crate::{
    ApiServer, admission,
    answer::Answer,
    decode_body, metadata,
    request::ApiRequest,
    write::{Change, Companions, Current, Modification, Outcome, Plan, Target},
};

/// The kinds of which a `PUT` may create an object (`AllowCreateOnUpdate` of their strategies).
const CREATED_BY_UPDATE: &[(&str, &str)] =
    &[("", "endpoints"), ("", "events"), ("", "services"), ("events.k8s.io", "events"), ("coordination.k8s.io", "leases")];
/// The kinds whose updates must name a resourceVersion (`AllowUnconditionalUpdate` of their strategies).
const CONDITIONAL_ONLY: &[(&str, &str)] = &[("coordination.k8s.io", "leases")];

/// Puts the object in the body in the place of the one that is there.
///
/// # Errors
/// 400, 403, 404, 409 (it has changed), 415, 422, and what the store says.
pub async fn update(server: &ApiServer, request: &mut ApiRequest, part: Part) -> Result<Answer, Status> {
    let persistence = request.persistence()?;
    let mut object = decode_body::object(server, request)?;
    check_namespace(&mut object, request.namespace.as_deref())?;
    let name = request.object_name()?.to_owned();
    check_name(&object, &name)?;
    let target = Target { resource: request.resource.clone(), namespace: request.namespace.clone(), name };
    let mut replacement = Replacement { object, part };
    let outcome = server.modify(&request.context, &target, persistence, &mut replacement).await?;
    let code = if matches!(outcome, Outcome::Created(_)) { 201 } else { 200 };
    let json = server.converted(&request.resource, outcome.json().clone());
    Ok(Answer::object(code, &request.resource, json))
}

fn check_name(object: &Value, name: &str) -> Result<(), Status> {
    match metadata::name(object) {
        "" => Err(Status::bad_request("name must be provided")),
        given if given == name => Ok(()),
        given => {
            Err(Status::bad_request(format!("the name of the object ({given}) does not match the name on the URL ({name})")))
        }
    }
}

struct Replacement {
    object: Value,
    part: Part,
}

#[async_trait]
impl Modification for Replacement {
    async fn plan(&mut self, server: &ApiServer, target: &Target, current: Option<&Current>) -> Result<Plan, Status> {
        let resource = &target.resource;
        let Some(current) = current else {
            let may_create = self.part == Part::Main && is_in(CREATED_BY_UPDATE, resource);
            if !may_create || !metadata::text(&self.object, "uid").is_empty() {
                return Err(Status::not_found(resource, &target.name));
            }
            let mut creation = Creation { object: self.object.clone(), warnings: Vec::new() };
            return creation.plan(server, target, None).await;
        };
        if metadata::text(&self.object, "resourceVersion").is_empty() && is_in(CONDITIONAL_ONLY, resource) {
            let why = "must be specified for an update";
            let error = trireme_api::field::FieldError::invalid("metadata.resourceVersion", 0, why);
            return Err(Status::invalid(resource, &target.name, &[error]));
        }
        changed(server, target, self.object.clone(), current, self.part).await
    }
}

fn is_in(table: &[(&str, &str)], resource: &Resource) -> bool {
    table.contains(&(resource.group.as_ref(), resource.plural.as_ref()))
}

/// The plan to put `new` in the place of `current`: preconditions, the kind's rules, metadata, admission, and the end of a
/// deletion when the last finalizer goes.
///
/// # Errors
/// 400, 409 or 422.
pub async fn changed(server: &ApiServer, target: &Target, mut new: Value, current: &Current, part: Part) -> Result<Plan, Status> {
    let resource = &target.resource;
    let old = &current.value;
    check_preconditions(target, &new, current)?;
    metadata::carry_over(&mut new, old);
    if part == Part::Main {
        admission::before_update(server, target, &mut new, old)?;
    }
    let metadata_errors = validate_update(resource, &new, old);
    let mut updated = match resource.behaviour.update(new, old, part) {
        Ok(updated) => match refusal(resource, &target.name, metadata_errors, None) {
            Some(status) => return Err(status),
            None => updated,
        },
        Err(error) => {
            let status = refusal(resource, &target.name, metadata_errors, Some(error));
            return Err(status.unwrap_or_else(|| Status::internal("an object was refused without a reason")));
        }
    };
    if ends_deletion(resource, &updated) {
        // What is given back is what it holds, not what the update says that it holds.
        let companions = admission::release(target, old);
        return Ok(Plan { change: Change::Remove(updated), companions });
    }
    let companions = match part {
        Part::Main => admission::complete(server, target, &mut updated, Some(old)).await?,
        Part::Status => Companions::default(),
    };
    Ok(Plan { change: Change::Put(updated), companions })
}

/// The resourceVersion and the uid that the client gave are the object's.
fn check_preconditions(target: &Target, new: &Value, current: &Current) -> Result<(), Status> {
    let given = metadata::text(new, "resourceVersion");
    if !given.is_empty() {
        let is_number = given.parse::<u64>().is_ok();
        if !is_number {
            return Err(Status::bad_request(format!("invalid resource version \"{given}\": it is not a number")));
        }
        // "0" means "whatever it is", as in Kubernetes.
        if given != "0" && given != current.revision.to_string() {
            return Err(Status::stale(&target.resource, &target.name));
        }
    }
    let (given, actual) = (metadata::text(new, "uid"), metadata::text(&current.value, "uid"));
    if !given.is_empty() && given != actual {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {actual}");
        return Err(Status::conflict(&target.resource, &target.name, &why));
    }
    Ok(())
}

/// Whether nothing holds an object any more whose deletion has begun.
pub fn ends_deletion(resource: &Resource, object: &Value) -> bool {
    metadata::is_being_deleted(object)
        && metadata::finalizers(object).is_empty()
        && metadata::deletion_grace_seconds(object).unwrap_or(0) == 0
        && !resource.behaviour.is_held(object)
}
