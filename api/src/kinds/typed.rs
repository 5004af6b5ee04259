//! One behaviour for all built-in kinds: decode, default, validate and encode, over what each kind says of itself.

use std::marker::PhantomData;

use jiff::Timestamp;
use k8s_openapi::{Metadata, Resource as TypedResource, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{decode, quantities};
use crate::{
    field::FieldError,
    registry::{AdmissionError, Behaviour, Column, Deletion, Part, Resource, Scope, StoredAs, Subresource},
};

/// What raises `metadata.generation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Nothing: the kind has none.
    Untracked,
    /// A change of `spec`.
    Spec,
    /// A change of `spec` or of the annotations (Deployment).
    SpecAndAnnotations,
    /// A change of anything but the metadata (EndpointSlice).
    Content,
}

/// Whether objects of a kind hold quantities, which Kubernetes stores in canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantities {
    Absent,
    Present,
}

/// What an update compares: the object as it would be stored, and as it is stored.
pub struct Change<'a, T> {
    pub new: &'a T,
    pub old: &'a T,
    pub part: Part,
}

/// What one built-in kind says of itself. The type parameter of [`Typed`].
pub trait Kind: Send + Sync + 'static {
    type Object: TypedResource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + JsonSchema + Clone + PartialEq;

    const SHORT_NAMES: &'static [&'static str] = &[];
    const CATEGORIES: &'static [&'static str] = &[];
    const SCOPE: Scope = Scope::Namespaced;
    const GENERATION: Generation = Generation::Untracked;
    const QUANTITIES: Quantities = Quantities::Absent;
    /// Whether an update of an object that does not exist creates it.
    const CREATED_BY_UPDATE: bool = false;

    fn subresources() -> Vec<Subresource> {
        Vec::new()
    }

    fn columns() -> Vec<Column>;

    /// Fills in what a client left out. Applied to every object that comes in.
    fn default(_object: &mut Self::Object) {}

    /// Resets what a client may not set when it creates an object.
    fn prepare_create(_object: &mut Self::Object) {}

    /// Restores what a client may not change in an update. `status` (or all but it) is restored already.
    fn prepare_update(_new: &mut Self::Object, _old: &Self::Object, _part: Part) {}

    /// All rules for a new object, its generic metadata excepted.
    fn validate(object: &Self::Object) -> Vec<FieldError>;

    /// All rules for a changed object, its generic metadata excepted.
    fn validate_update(change: &Change<Self::Object>) -> Vec<FieldError> {
        match change.part {
            Part::Main => Self::validate(change.new),
            Part::Status => Vec::new(),
        }
    }

    fn selectable_fields(_object: &Self::Object) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn row(object: &Self::Object, now: Timestamp) -> Vec<Value>;

    fn deletion(_object: &Self::Object, _requested_seconds: Option<i64>) -> Deletion {
        Deletion::Now
    }

    fn begin_deletion(_object: &mut Value) {}

    fn is_held(_object: &Self::Object) -> bool {
        false
    }

    fn stored_as() -> Option<StoredAs> {
        None
    }
}

/// The behaviour of a built-in kind.
struct Typed<K>(PhantomData<fn() -> K>);

/// The registry's entry for a kind.
pub fn resource<K: Kind>() -> Resource {
    Resource {
        group: K::Object::GROUP.into(),
        version: K::Object::VERSION.into(),
        kind: K::Object::KIND.into(),
        plural: K::Object::URL_PATH_SEGMENT.into(),
        singular: K::Object::KIND.to_lowercase().into(),
        short_names: K::SHORT_NAMES.iter().map(|name| (*name).into()).collect(),
        categories: K::CATEGORIES.iter().map(|name| (*name).into()).collect(),
        scope: K::SCOPE,
        subresources: K::subresources(),
        columns: K::columns(),
        behaviour: Box::new(Typed::<K>(PhantomData)),
        schema_name: K::Object::schema_name(),
        schema: |generator| generator.subschema_for::<K::Object>(),
    }
}

/// The `status` subresource of a kind.
pub fn status_subresource<T: TypedResource>() -> Subresource {
    Subresource {
        name: "status".into(),
        group: T::GROUP.into(),
        version: T::VERSION.into(),
        kind: T::KIND.into(),
        verbs: vec!["get".into(), "patch".into(), "update".into()],
    }
}

/// The `scale` subresource, an `autoscaling/v1` Scale.
pub fn scale_subresource() -> Subresource {
    Subresource {
        name: "scale".into(),
        group: "autoscaling".into(),
        version: "v1".into(),
        kind: "Scale".into(),
        verbs: vec!["get".into(), "patch".into(), "update".into()],
    }
}

impl<K: Kind> Typed<K> {
    fn decode(mut object: Value) -> Result<K::Object, AdmissionError> {
        if let Some(fields) = object.as_object_mut() {
            fields.insert("apiVersion".to_owned(), json!(K::Object::API_VERSION));
            fields.insert("kind".to_owned(), json!(K::Object::KIND));
        }
        if K::QUANTITIES == Quantities::Present {
            quantities::canonicalize(&mut object)
                .map_err(|why| AdmissionError::Decode(decode::cannot_be_handled::<K::Object>(&why)))?;
        }
        decode::decode(&object)
    }

    fn stored(object: &Value) -> Option<K::Object> {
        serde::Deserialize::deserialize(object).ok()
    }
}

/// The object that an update asks for: the parts of `new` that it may touch, over `old`.
fn merge_parts(mut new: Value, old: &Value, part: Part) -> Value {
    match part {
        Part::Main => {
            if let Some(fields) = new.as_object_mut() {
                match old.get("status") {
                    Some(status) => fields.insert("status".to_owned(), status.clone()),
                    None => fields.remove("status"),
                };
            }
            new
        }
        Part::Status => {
            let mut merged = old.clone();
            if let Some(fields) = merged.as_object_mut() {
                let metadata = old_owner_references(new.get("metadata").cloned().unwrap_or_default(), old);
                fields.insert("metadata".to_owned(), metadata);
                match new.get_mut("status") {
                    Some(status) => fields.insert("status".to_owned(), status.take()),
                    None => fields.remove("status"),
                };
            }
            merged
        }
    }
}

/// Status writers may not change owners.
fn old_owner_references(mut metadata: Value, old: &Value) -> Value {
    if let Some(fields) = metadata.as_object_mut() {
        match old.pointer("/metadata/ownerReferences") {
            Some(owners) => fields.insert("ownerReferences".to_owned(), owners.clone()),
            None => fields.remove("ownerReferences"),
        };
    }
    metadata
}

fn next_generation(tracked: Generation, new: &Value, old: &Value, part: Part) -> i64 {
    let before = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    let spec_changed = new.get("spec") != old.get("spec");
    let annotations_changed = new.pointer("/metadata/annotations") != old.pointer("/metadata/annotations");
    let raised = match (part, tracked) {
        (Part::Status, _) | (_, Generation::Untracked) => false,
        (Part::Main, Generation::Spec) => spec_changed,
        (Part::Main, Generation::Content) => without_metadata(new) != without_metadata(old),
        (Part::Main, Generation::SpecAndAnnotations) => spec_changed || annotations_changed,
    };
    if raised { before.saturating_add(1) } else { before }
}

fn without_metadata(object: &Value) -> Vec<(&String, &Value)> {
    object.as_object().into_iter().flatten().filter(|(name, _)| *name != "metadata").collect()
}

fn invalid_unless_empty(errors: Vec<FieldError>) -> Result<(), AdmissionError> {
    if errors.is_empty() { Ok(()) } else { Err(AdmissionError::Invalid(errors)) }
}

impl<K: Kind> Behaviour for Typed<K> {
    fn create(&self, object: Value) -> Result<Value, AdmissionError> {
        let mut typed = Self::decode(object)?;
        K::default(&mut typed);
        typed.metadata_mut().generation = (K::GENERATION != Generation::Untracked).then_some(1);
        K::prepare_create(&mut typed);
        invalid_unless_empty(K::validate(&typed))?;
        decode::encode(&typed)
    }

    fn update(&self, new: Value, old: &Value, part: Part) -> Result<Value, AdmissionError> {
        let mut typed = Self::decode(merge_parts(new, old, part))?;
        let old_typed = Self::decode(old.clone())?;
        K::default(&mut typed);
        K::prepare_update(&mut typed, &old_typed, part);
        typed.metadata_mut().generation = old_typed.metadata().generation;
        invalid_unless_empty(K::validate_update(&Change { new: &typed, old: &old_typed, part }))?;
        let mut encoded = decode::encode(&typed)?;
        let generation = next_generation(K::GENERATION, &encoded, old, part);
        if generation > 0 {
            encoded["metadata"]["generation"] = json!(generation);
        }
        Ok(encoded)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        Self::stored(object).map(|typed| K::selectable_fields(&typed)).unwrap_or_default()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match Self::stored(object) {
            Some(typed) => K::row(&typed, now),
            None => {
                let mut cells = vec![object.pointer("/metadata/name").cloned().unwrap_or_default()];
                cells.resize(K::columns().len(), json!(super::table::UNKNOWN));
                cells
            }
        }
    }

    fn deletion(&self, object: &Value, requested_seconds: Option<i64>) -> Deletion {
        Self::stored(object).map_or(Deletion::Now, |typed| K::deletion(&typed, requested_seconds))
    }

    fn begin_deletion(&self, object: &mut Value) {
        if let Some(generation) = object.pointer("/metadata/generation").and_then(Value::as_i64)
            && generation > 0
        {
            object["metadata"]["generation"] = json!(generation.saturating_add(1));
        }
        K::begin_deletion(object);
    }

    fn is_held(&self, object: &Value) -> bool {
        Self::stored(object).is_some_and(|typed| K::is_held(&typed))
    }

    fn is_created_by_update(&self) -> bool {
        K::CREATED_BY_UPDATE
    }

    fn stored_as(&self) -> Option<StoredAs> {
        K::stored_as()
    }
}
