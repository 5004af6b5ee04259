//! At most one PriorityClass is for pods that name none (the Priority admission plugin).

use serde_json::Value;
use trireme_api::status::Status;

use crate::{ApiServer, store_error::status_of, write::Target};

/// A class that is to be the default has no other one beside it.
pub async fn check_default(server: &ApiServer, target: &Target, class: &Value) -> Result<(), Status> {
    let resource = &target.resource;
    let is_default = |class: &Value| class.get("globalDefault") == Some(&Value::Bool(true));
    if resource.group != "scheduling.k8s.io" || resource.plural != "priorityclasses" || !is_default(class) {
        return Ok(());
    }
    server.caches.barrier(server.store.as_ref()).await.map_err(|error| status_of(&error))?;
    let snapshot = server.cache(resource)?.snapshot(server.caches.applied());
    let mut others = snapshot.iter(None, None).filter(|object| object.name != target.name);
    match others.find(|object| is_default(&object.value())) {
        None => Ok(()),
        Some(other) => {
            let why = format!("PriorityClass {} is already marked as default. Only one default can exist", other.name);
            Err(Status::forbidden(resource, &target.name, &why))
        }
    }
}
