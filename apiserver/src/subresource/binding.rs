//! `pods/binding`: a scheduler gives a pod its node.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Binding as TypedBinding;
use serde_json::Value;
use trireme_api::{
    kinds::{
        decode,
        pod::binding::{BindError, bind as bind_pod},
    },
    metadata::validate_update,
    status::Status,
};

use crate::{
    ApiServer,
    answer::{Answer, success},
    decode_body, metadata,
    request::ApiRequest,
    verbs::create::refusal,
    write::{Current, Modification, Plan, Target},
};

/// Binds a pod to the node that the body names.
///
/// # Errors
/// 400, 404, 409 when the pod has a node already or is being deleted, 422, and what the store says.
pub async fn bind(server: &ApiServer, request: &ApiRequest) -> Result<Answer, Status> {
    let persistence = request.persistence()?;
    let name = request.object_name()?.to_owned();
    let target = Target { resource: request.resource.clone(), namespace: request.namespace.clone(), name };
    let body = decode_body::parse(request.content_type.as_deref(), &request.body)?.value;
    let binding = typed(&body, &target)?;
    let given = metadata::name(&binding);
    if !given.is_empty() && given != target.name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    server.modify(&request.context, &target, persistence, &mut Binding { binding }).await?;
    Ok(success(201, None))
}

/// The body as the Binding that it must be: its labels and annotations become the pod's, and a pod with other than texts among
/// them could never be read again.
fn typed(body: &Value, target: &Target) -> Result<Value, Status> {
    let binding = decode::decode::<TypedBinding>(body).and_then(|binding| decode::encode(&binding));
    binding.map_err(|error| {
        refusal(&target.resource, &target.name, Vec::new(), Some(error))
            .unwrap_or_else(|| Status::internal("a binding was refused without a reason"))
    })
}

struct Binding {
    binding: Value,
}

#[async_trait]
impl Modification for Binding {
    async fn plan(&mut self, server: &ApiServer, target: &Target, current: Option<&Current>) -> Result<Plan, Status> {
        let resource = &target.resource;
        let current = current.ok_or_else(|| Status::not_found(resource, &target.name))?;
        let uid = metadata::text(&self.binding, "uid");
        let actual = metadata::text(&current.value, "uid");
        if !uid.is_empty() && uid != actual {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}");
            return Err(Status::conflict(resource, &target.name, &why));
        }
        let mut pod = current.value.clone();
        bind_pod(&mut pod, &self.binding, server.clock.now()).map_err(|error| match error {
            BindError::Conflict(why) => Status::conflict(resource, &target.name, &why),
            BindError::Invalid(errors) => Status::invalid_kind("", "Binding", &target.name, &errors),
        })?;
        match refusal(resource, &target.name, validate_update(resource, &pod, &current.value), None) {
            Some(status) => Err(status),
            None => Ok(Plan::put(pod)),
        }
    }
}
