//! PriorityClass: names for how much a pod matters (`scheduling.k8s.io/v1`).

use jiff::Timestamp;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};

use super::{
    table,
    typed::{Change, Kind},
    validate,
};
use crate::{
    field::FieldError,
    registry::{Column, Scope},
};

pub struct PriorityClassKind;

/// Names with this prefix are Kubernetes' own.
const SYSTEM_PREFIX: &str = "system-";
/// The highest value that users may give.
const HIGHEST_USER_VALUE: i32 = 1_000_000_000;
/// The classes that a cluster starts with.
const SYSTEM_CLASSES: &[(&str, i32)] = &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

impl Kind for PriorityClassKind {
    type Object = PriorityClass;

    const SHORT_NAMES: &'static [&'static str] = &["pc"];
    const SCOPE: Scope = Scope::Cluster;

    fn columns() -> Vec<Column> {
        vec![
            table::name_column(),
            table::column("Value", "integer", "Priority that pods of the class have."),
            table::column("Global-Default", "boolean", "Whether pods that name no class are of this one."),
            table::age_column(),
            table::column("PreemptionPolicy", "string", "Whether pods of the class may drive out pods of lower priority."),
        ]
    }

    fn default(object: &mut PriorityClass) {
        object.value.get_or_insert(0);
        if object.preemption_policy.as_deref().is_none_or(str::is_empty) {
            object.preemption_policy = Some("PreemptLowerPriority".to_owned());
        }
    }

    fn validate(object: &PriorityClass) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let name = table::name(&object.metadata);
        let value = object.value.unwrap_or(0);
        let known = SYSTEM_CLASSES.contains(&(name.as_str(), value));
        if name.starts_with(SYSTEM_PREFIX) && !known {
            let why = format!(
                "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {name} is not a known \
                 system priority class"
            );
            errors.push(FieldError::forbidden("metadata.name", why));
        } else if !name.starts_with(SYSTEM_PREFIX) && value > HIGHEST_USER_VALUE {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_VALUE}");
            errors.push(FieldError::forbidden("value", why));
        }
        let policies = &["Never", "PreemptLowerPriority"];
        errors.extend(validate::one_of("preemptionPolicy", object.preemption_policy.as_deref(), policies));
        errors
    }

    fn validate_update(change: &Change<PriorityClass>) -> Vec<FieldError> {
        let (new, old) = (change.new, change.old);
        let mut errors = Vec::new();
        if new.value != old.value {
            errors.push(FieldError::forbidden("value", "may not be changed in an update."));
        }
        let policy = new.preemption_policy.clone();
        errors.extend(validate::unchanged(&new.preemption_policy, &old.preemption_policy, "preemptionPolicy", policy));
        errors
    }

    fn row(object: &PriorityClass, now: Timestamp) -> Vec<Value> {
        vec![
            json!(table::name(&object.metadata)),
            json!(object.value.unwrap_or(0)),
            json!(object.global_default.unwrap_or(false)),
            json!(table::age(&object.metadata, now)),
            json!(object.preemption_policy.clone().unwrap_or_default()),
        ]
    }
}
