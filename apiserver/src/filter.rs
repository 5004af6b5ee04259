//! What a list or a watch selects.

use serde_json::json;
use trireme_api::{
    registry::{Resource, Scope},
    selector::{FieldSelector, LabelSelector},
    status::Status,
};

use crate::{cache::CachedObject, router::Query};

/// A namespace, and selectors of labels and fields.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only objects in this namespace.
    pub namespace: Option<String>,
    /// Only this object: from the path, or from a `metadata.name` field selector.
    name: Option<String>,
    is_namespaced: bool,
    labels: Option<LabelSelector>,
    fields: Option<FieldSelector>,
}

impl Filter {
    /// Reads the selectors of a query.
    ///
    /// # Errors
    /// 400 for a selector that cannot be parsed, or that names a field which the kind does not offer.
    pub fn parse(resource: &Resource, namespace: Option<&str>, name: Option<&str>, query: &Query) -> Result<Self, Status> {
        let labels = query
            .non_empty("labelSelector")
            .map(LabelSelector::parse)
            .transpose()
            .map_err(|error| Status::bad_request(error.to_string()))?;
        let fields = query.non_empty("fieldSelector").map(FieldSelector::parse).transpose();
        let fields = fields.map_err(|error| Status::bad_request(error.to_string()))?;
        if let Some(fields) = &fields {
            check_fields(resource, fields)?;
        }
        // Objects are cached in the form in which they are stored, and selected by the fields of that form.
        let fields = match resource.behaviour.stored_as() {
            Some(stored) => fields.map(|fields| fields.renamed(stored.selectable)),
            None => fields,
        };
        let selected = |field: &str| fields.as_ref().and_then(|fields| fields.required_value(field)).map(str::to_owned);
        let is_namespaced = resource.scope == Scope::Namespaced;
        Ok(Self {
            namespace: namespace
                .map(str::to_owned)
                .or_else(|| selected("metadata.namespace").filter(|namespace| is_namespaced && !namespace.is_empty())),
            name: name.map(str::to_owned).or_else(|| selected("metadata.name")),
            is_namespaced,
            labels: labels.filter(|labels| !labels.is_everything()),
            fields: fields.filter(|fields| !fields.is_everything()),
        })
    }

    pub fn matches(&self, object: &CachedObject) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| object.namespace.as_ref() == Some(namespace))
            && self.name.as_ref().is_none_or(|name| *name == object.name)
            && self.labels.as_ref().is_none_or(|labels| labels.matches(&object.labels))
            && self.fields.as_ref().is_none_or(|fields| fields.matches(|field| object.field(field)))
    }

    /// Whether nothing but a namespace narrows the selection.
    pub fn selects_everything(&self) -> bool {
        self.name.is_none() && self.labels.is_none() && self.fields.is_none()
    }

    /// The one value that a field must have.
    pub fn exact_field(&self, field: &str) -> Option<&str> {
        self.fields.as_ref().and_then(|fields| fields.required_value(field))
    }

    /// The one name that is selected.
    pub fn exact_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The path of the one object that can be selected.
    pub fn single_path(&self) -> Option<String> {
        match (&self.namespace, &self.name, self.is_namespaced) {
            (Some(namespace), Some(name), true) => Some(format!("{namespace}/{name}")),
            (_, Some(name), false) => Some(name.clone()),
            _ => None,
        }
    }
}

/// Field selectors may name only what the kind offers.
fn check_fields(resource: &Resource, fields: &FieldSelector) -> Result<(), Status> {
    let blank = json!({ "apiVersion": resource.api_version(), "kind": resource.kind, "metadata": {} });
    let offered = resource.behaviour.selectable_fields(&blank);
    let is_known = |field: &str| {
        matches!(field, "metadata.name" | "metadata.namespace") || offered.iter().any(|(offered, _)| *offered == field)
    };
    match fields.requirements().iter().find(|requirement| !is_known(&requirement.field)) {
        None => Ok(()),
        // What was asked for is put before this by kubectl.
        Some(requirement) => Err(Status::bad_request(format!("field label not supported: {}", requirement.field))),
    }
}
