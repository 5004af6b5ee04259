//! `DELETE` of one object.

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};
use trireme_api::{
    field::FieldError,
    registry::{Deletion, Resource},
    status::Status,
};

use crate::{
    ApiServer, admission,
    answer::{Answer, success},
    context::RequestContext,
    decode_body, metadata,
    request::{ApiRequest, Persistence, invalid_options, persistence},
    write::{Change, Companions, Current, Deed, Modification, Outcome, Plan, Target},
};

const KIND: &str = "DeleteOptions";
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What happens to the objects that an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// `meta.k8s.io/v1` DeleteOptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub persistence: Persistence,
}

impl DeleteOptions {
    /// Reads the options from the body, or, when there is none, from the query.
    ///
    /// # Errors
    /// 400 or 422 for options that cannot be read or do not go together.
    pub fn parse(request: &ApiRequest) -> Result<Self, Status> {
        let from_query = request.persistence()?;
        if request.body.is_empty() {
            let query = &request.query;
            let propagation = propagation(query.optional_flag("orphanDependents"), query.non_empty("propagationPolicy"))?;
            return Ok(Self {
                grace_period_seconds: grace(query.integer("gracePeriodSeconds")?)?,
                uid: None,
                resource_version: None,
                propagation,
                persistence: from_query,
            });
        }
        let body = decode_body::parse(request.content_type.as_deref(), &request.body)?.value;
        let mut options = Self::from_value(&body)?;
        if from_query == Persistence::DryRun {
            options.persistence = from_query;
        }
        Ok(options)
    }

    /// Reads the options from an object.
    ///
    /// # Errors
    /// As [`DeleteOptions::parse`].
    pub fn from_value(body: &Value) -> Result<Self, Status> {
        let malformed = |what: &str| Status::bad_request(format!("DeleteOptions: {what} has the wrong type"));
        if !body.is_object() {
            return Err(Status::bad_request("DeleteOptions: the body is not an object"));
        }
        if body.get("kind").and_then(Value::as_str).is_some_and(|kind| !kind.is_empty() && kind != "DeleteOptions") {
            return Err(Status::bad_request(format!("expected DeleteOptions, got {}", body["kind"])));
        }
        let text = |value: Option<&Value>, what: &str| match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(malformed(what)),
        };
        let grace_period_seconds = match body.get("gracePeriodSeconds") {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.as_i64().ok_or_else(|| malformed("gracePeriodSeconds"))?),
        };
        let orphan_dependents = match body.get("orphanDependents") {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.as_bool().ok_or_else(|| malformed("orphanDependents"))?),
        };
        let policy = text(body.get("propagationPolicy"), "propagationPolicy")?;
        let dry_run = body.get("dryRun").and_then(Value::as_array);
        Ok(Self {
            grace_period_seconds: grace(grace_period_seconds)?,
            uid: text(body.pointer("/preconditions/uid"), "preconditions.uid")?,
            resource_version: text(body.pointer("/preconditions/resourceVersion"), "preconditions.resourceVersion")?,
            propagation: propagation(orphan_dependents, policy.as_deref())?,
            persistence: persistence(KIND, dry_run.into_iter().flatten().filter_map(Value::as_str))?,
        })
    }
}

fn grace(seconds: Option<i64>) -> Result<Option<i64>, Status> {
    // Kubernetes takes a negative period as the smallest one.
    Ok(seconds.map(|seconds| if seconds < 0 { 1 } else { seconds }))
}

fn propagation(orphan_dependents: Option<bool>, policy: Option<&str>) -> Result<Option<Propagation>, Status> {
    let refused = |error| invalid_options(KIND, &[error]);
    match (orphan_dependents, policy) {
        (Some(_), Some(policy)) => {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            Err(refused(FieldError::invalid("propagationPolicy", policy, why)))
        }
        (Some(true), None) => Ok(Some(Propagation::Orphan)),
        (Some(false), None) => Ok(Some(Propagation::Background)),
        (None, None) => Ok(None),
        (None, Some("Orphan")) => Ok(Some(Propagation::Orphan)),
        (None, Some("Background")) => Ok(Some(Propagation::Background)),
        (None, Some("Foreground")) => Ok(Some(Propagation::Foreground)),
        (None, Some(other)) => {
            let supported = &["Foreground", "Background", "Orphan", "nil"];
            Err(refused(FieldError::not_supported("propagationPolicy", other, supported)))
        }
    }
}

/// Deletes an object, or begins its deletion.
///
/// # Errors
/// 400, 404, 409 (a precondition does not hold), and what the store says.
pub async fn delete(server: &ApiServer, request: &ApiRequest) -> Result<Answer, Status> {
    let options = DeleteOptions::parse(request)?;
    let target = Target {
        resource: request.resource.clone(),
        namespace: request.namespace.clone(),
        name: request.object_name()?.to_owned(),
    };
    let outcome = delete_object(server, &request.context, &target, options).await?;
    let json = server.converted(&request.resource, outcome.json().clone());
    if matches!(outcome, Outcome::Removed(_)) && !returns_object(&request.resource) {
        let object: Value = serde_json::from_slice(&json).unwrap_or_default();
        let mut details = json!({ "name": target.name, "kind": request.resource.plural, "uid": metadata::text(&object, "uid") });
        if !request.resource.group.is_empty() {
            details["group"] = json!(request.resource.group);
        }
        return Ok(success(200, Some(details)));
    }
    Ok(Answer::object(200, &request.resource, json))
}

/// The kinds whose deletion answers with the object rather than with a Status (`ReturnDeletedObject` of their stores).
fn returns_object(resource: &Resource) -> bool {
    resource.group.is_empty() && matches!(resource.plural.as_ref(), "pods" | "namespaces" | "services" | "serviceaccounts")
}

/// Deletes one object with these options.
///
/// # Errors
/// As [`delete`].
pub async fn delete_object(
    server: &ApiServer,
    context: &RequestContext,
    target: &Target,
    options: DeleteOptions,
) -> Result<Outcome, Status> {
    let persistence = options.persistence;
    server.modify(context, target, persistence, &mut Removal { options }).await
}

struct Removal {
    options: DeleteOptions,
}

#[async_trait]
impl Modification for Removal {
    async fn plan(&mut self, server: &ApiServer, target: &Target, current: Option<&Current>) -> Result<Plan, Status> {
        let resource = &target.resource;
        let current = current.ok_or_else(|| Status::not_found(resource, &target.name))?;
        check_preconditions(&self.options, target, current)?;
        admission::before_delete(server, target)?;
        let change = decide(resource, &current.value, &self.options, server.clock.now());
        let companions = match &change {
            Change::Remove(object) => admission::release(target, object),
            Change::Put(_) => Companions::default(),
        };
        Ok(Plan { change, companions })
    }

    fn deed(&self) -> Deed {
        Deed::Removal
    }
}

fn check_preconditions(options: &DeleteOptions, target: &Target, current: &Current) -> Result<(), Status> {
    let actual = metadata::text(&current.value, "uid");
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != actual) {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({actual}). The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(&target.resource, &target.name, &why));
    }
    let actual = current.revision.to_string();
    if let Some(revision) = options.resource_version.as_deref().filter(|revision| **revision != *actual) {
        let why = format!(
            "the ResourceVersion in the precondition ({revision}) does not match the ResourceVersion in record ({actual}). The object might have been modified"
        );
        return Err(Status::conflict(&target.resource, &target.name, &why));
    }
    Ok(())
}

/// What a delete does to an object: a pure decision.
fn decide(resource: &Resource, object: &Value, options: &DeleteOptions, now: Timestamp) -> Change {
    let finalizers = finalizers_for(resource, object, options.propagation);
    let mut object = object.clone();
    metadata::set_finalizers(&mut object, finalizers.clone());
    let running = metadata::deletion_grace_seconds(&object).unwrap_or(0);
    if metadata::is_being_deleted(&object) && running > 0 && options.grace_period_seconds.is_none() {
        // Whoever deletes it again without a wish of his own leaves the first deletion its time.
        return Change::Put(object);
    }
    let seconds = match resource.behaviour.deletion(&object, options.grace_period_seconds) {
        Deletion::Now => 0,
        Deletion::Graceful { seconds } => seconds.max(0),
    };
    let is_held = !finalizers.is_empty() || resource.behaviour.is_held(&object);
    if seconds == 0 && !is_held {
        return Change::Remove(object);
    }
    if metadata::is_being_deleted(&object) {
        // A deletion that runs can only be shortened.
        if seconds < running && options.grace_period_seconds.is_some() {
            shorten(&mut object, running, seconds, now);
        }
        return Change::Put(object);
    }
    metadata::mark_deleted(&mut object, now, seconds);
    resource.behaviour.begin_deletion(&mut object);
    Change::Put(object)
}

/// Moves the end of a running deletion to where it would be with the shorter period.
fn shorten(object: &mut Value, running: i64, seconds: i64, now: Timestamp) {
    let deadline = metadata::text(object, "deletionTimestamp").parse::<Timestamp>().unwrap_or(now);
    let begun = deadline.checked_sub(jiff::SignedDuration::from_secs(running)).unwrap_or(now);
    metadata::mark_deleted(object, begun, seconds);
}

/// The finalizers by which the garbage collector learns what to do with dependents.
fn finalizers_for(resource: &Resource, object: &Value, propagation: Option<Propagation>) -> Vec<String> {
    let present = metadata::finalizers(object);
    let had = |name: &str| present.contains(&name);
    let (orphan, foreground) = match propagation {
        Some(Propagation::Orphan) => (true, false),
        Some(Propagation::Foreground) => (false, true),
        Some(Propagation::Background) => (false, false),
        None if had(ORPHAN) || had(FOREGROUND) => (had(ORPHAN), had(FOREGROUND)),
        // The old kind keeps its old default.
        None => (resource.group.is_empty() && resource.plural == "replicationcontrollers", false),
    };
    let mut finalizers: Vec<String> =
        present.iter().filter(|name| **name != ORPHAN && **name != FOREGROUND).map(|name| (*name).to_owned()).collect();
    if orphan {
        finalizers.push(ORPHAN.to_owned());
    }
    if foreground {
        finalizers.push(FOREGROUND.to_owned());
    }
    finalizers
}
