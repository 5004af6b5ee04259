//! `namespaces/finalize`: the namespace controller takes its finalizer away when the namespace is empty.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};
use trireme_api::{
    kinds::{decode, namespace},
    status::Status,
};

use crate::{
    ApiServer, admission,
    answer::Answer,
    decode_body, metadata,
    request::ApiRequest,
    verbs::{create::refusal, update::ends_deletion},
    write::{Change, Current, Modification, Plan, Target},
};

/// Takes `spec.finalizers` of the namespace in the body; removes the namespace when nothing holds it any more.
///
/// # Errors
/// 400, 404, 409, and what the store says.
pub async fn finalize(server: &ApiServer, request: &mut ApiRequest) -> Result<Answer, Status> {
    let persistence = request.persistence()?;
    let object = decode_body::object(server, request)?;
    let target = Target {
        resource: request.resource.clone(),
        namespace: request.namespace.clone(),
        name: request.object_name()?.to_owned(),
    };
    let finalizers = finalizers(&object, &target)?;
    let outcome = server.modify(&request.context, &target, persistence, &mut Finalizing { object, finalizers }).await?;
    Ok(Answer::object(200, &request.resource, outcome.json().clone()))
}

/// The finalizers of the namespace in the body, which must be names of finalizers.
fn finalizers(object: &Value, target: &Target) -> Result<Vec<String>, Status> {
    let refused = |errors, error| {
        let status = refusal(&target.resource, &target.name, errors, error);
        status.unwrap_or_else(|| Status::internal("a namespace was refused without a reason"))
    };
    let typed = decode::decode::<Namespace>(object).map_err(|error| refused(Vec::new(), Some(error)))?;
    let finalizers = typed.spec.and_then(|spec| spec.finalizers).unwrap_or_default();
    let errors = namespace::finalizer_errors(&finalizers);
    if errors.is_empty() { Ok(finalizers) } else { Err(refused(errors, None)) }
}

struct Finalizing {
    object: Value,
    finalizers: Vec<String>,
}

#[async_trait]
impl Modification for Finalizing {
    async fn plan(&mut self, _server: &ApiServer, target: &Target, current: Option<&Current>) -> Result<Plan, Status> {
        let resource = &target.resource;
        let current = current.ok_or_else(|| Status::not_found(resource, &target.name))?;
        let given = metadata::text(&self.object, "resourceVersion");
        if !given.is_empty() && given != current.revision.to_string() {
            return Err(Status::stale(resource, &target.name));
        }
        let mut namespace = current.value.clone();
        namespace["spec"] = if self.finalizers.is_empty() { json!({}) } else { json!({ "finalizers": self.finalizers }) };
        if ends_deletion(resource, &namespace) {
            let companions = admission::release(target, &namespace);
            return Ok(Plan { change: Change::Remove(namespace), companions });
        }
        Ok(Plan::put(namespace))
    }
}
