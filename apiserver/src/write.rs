//! The ways into the store: create an object, or read it, decide, and write it if it is still the same.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use trireme_api::{registry::Resource, status::Status};
use trireme_storage::{
    model::KeyRange,
    model::{Compare, KeyValue, Operation, OperationResult, RangeRequest, Revision, Transaction},
};

use crate::{
    ApiServer,
    cache::{CachedObject, with_revision},
    context::RequestContext,
    keys, node_restriction,
    request::Persistence,
    store_error::status_of,
};

/// How often a write is tried again when others change what it depends on.
const ATTEMPTS: usize = 32;

/// The object that a write is about.
#[derive(Clone)]
pub struct Target {
    pub resource: Arc<Resource>,
    pub namespace: Option<String>,
    pub name: String,
}

impl Target {
    pub fn key(&self) -> String {
        keys::object_key(&self.resource, self.namespace.as_deref(), &self.name)
    }
}

/// An object as the store has it.
#[derive(Clone, Debug)]
pub struct Current {
    /// The object with its resourceVersion.
    pub value: Value,
    pub revision: Revision,
    stored: Bytes,
}

/// What is to happen to the object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Store this.
    Put(Value),
    /// Remove the object. What is given is what the caller is told of it.
    Remove(Value),
}

/// Other keys that the write depends on or changes with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Companions {
    pub compares: Vec<Compare>,
    pub operations: Vec<Operation>,
}

impl Companions {
    pub fn extend(&mut self, other: Self) {
        self.compares.extend(other.compares);
        self.operations.extend(other.operations);
    }
}

/// What a [`Modification`] decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub change: Change,
    pub companions: Companions,
}

impl Plan {
    pub fn put(value: Value) -> Self {
        Self { change: Change::Put(value), companions: Companions::default() }
    }
}

/// Of what sort a [`Modification`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The object is made or changed.
    Change,
    /// The object is deleted, or its deletion begins.
    Removal,
}

/// A decision about an object, made again whenever the object turns out to have changed in between.
#[async_trait]
pub trait Modification: Send {
    /// Decides on the object as it is now; `None` when there is none.
    ///
    /// # Errors
    /// The refusal that the client gets. It is asked again when what it saw may have been out of date.
    async fn plan(&mut self, server: &ApiServer, target: &Target, current: Option<&Current>) -> Result<Plan, Status>;

    fn deed(&self) -> Deed {
        Deed::Change
    }
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Created(Bytes),
    Stored(Bytes),
    /// The object was removed; what it was.
    Removed(Bytes),
}

impl Outcome {
    pub fn json(&self) -> &Bytes {
        match self {
            Self::Created(json) | Self::Stored(json) | Self::Removed(json) => json,
        }
    }
}

impl ApiServer {
    /// Reads, decides and writes, until the decision is made on what the store really holds.
    pub(crate) async fn modify(
        &self,
        context: &RequestContext,
        target: &Target,
        persistence: Persistence,
        modification: &mut dyn Modification,
    ) -> Result<Outcome, Status> {
        let key = target.key();
        // This member's own state may be behind. The store finds that out when it writes; a refusal, or a dry run, which nothing
        // checks any more, must not come of it.
        let mut is_fresh = persistence == Persistence::DryRun;
        let mut current = if is_fresh { self.read_newest(target).await? } else { self.read_local(target).await? };
        for _ in 0..ATTEMPTS {
            let plan = match self.decide(context, target, current.as_ref(), modification).await {
                Ok(plan) => plan,
                Err(_) if !is_fresh => {
                    current = self.read_newest(target).await?;
                    is_fresh = true;
                    continue;
                }
                Err(status) => return Err(status),
            };
            let (operation, stored) = match &plan.change {
                Change::Put(value) => {
                    let bytes = to_stored(&target.resource, value)?;
                    (Operation::put(key.clone(), bytes.clone()), bytes)
                }
                Change::Remove(value) => (Operation::delete(key.clone()), to_stored(&target.resource, value)?),
            };
            let is_unchanged = current.as_ref().is_some_and(|current| current.stored == stored)
                && plan.companions.operations.is_empty()
                && !matches!(plan.change, Change::Remove(_));
            if is_unchanged && !is_fresh {
                current = self.read_newest(target).await?;
                is_fresh = true;
                continue;
            }
            let seen = current.as_ref().map_or(Revision::default(), |current| current.revision);
            if is_unchanged || persistence == Persistence::DryRun {
                return Ok(outcome(&plan.change, current.is_some(), &stored, seen));
            }
            let mut compares = vec![Compare::mod_revision(key.clone(), seen)];
            compares.extend(plan.companions.compares);
            let mut success = vec![operation];
            success.extend(plan.companions.operations);
            let transaction = Transaction { compares, success, failure: vec![Operation::get(key.clone())], fence: context.fence };
            let result = self.store.transact(transaction).await.map_err(|error| status_of(&error))?;
            if result.succeeded {
                return Ok(outcome(&plan.change, current.is_some(), &stored, result.revision));
            }
            current = match result.responses.into_iter().next() {
                Some(OperationResult::Range(range)) => {
                    range.key_values.into_iter().next().map(|key_value| to_current(&target.resource, key_value)).transpose()?
                }
                _ => self.read_newest(target).await?,
            };
            is_fresh = true;
            // The caches must know what made the compare fail before the decision is made again.
            let _ = self.caches.reach(result.revision).await;
        }
        Err(Status::conflict(&target.resource, &target.name, "too many others are changing it; please try again"))
    }

    /// What the modification decides, as far as the caller may do it.
    async fn decide(
        &self,
        context: &RequestContext,
        target: &Target,
        current: Option<&Current>,
        modification: &mut dyn Modification,
    ) -> Result<Plan, Status> {
        node_restriction::check(context, target, current, modification.deed())?;
        let plan = modification.plan(self, target, current).await?;
        node_restriction::check_plan(context, target, current, &plan)?;
        Ok(plan)
    }

    /// This member's own state of an object.
    async fn read_local(&self, target: &Target) -> Result<Option<Current>, Status> {
        let request = RangeRequest::new(KeyRange::One(target.key().into()));
        let result = self.store.range(request).await.map_err(|error| status_of(&error))?;
        result.key_values.into_iter().next().map(|key_value| to_current(&target.resource, key_value)).transpose()
    }

    /// The object as of now, wherever it was written.
    pub(crate) async fn read_newest(&self, target: &Target) -> Result<Option<Current>, Status> {
        let revision = self.store.read_barrier().await.map_err(|error| status_of(&error))?;
        let _ = self.caches.reach(revision).await;
        self.read_local(target).await
    }
}

fn outcome(change: &Change, existed: bool, stored: &[u8], revision: Revision) -> Outcome {
    let json = if revision == Revision::default() {
        // Only a dry run of a creation has no revision.
        Bytes::copy_from_slice(stored)
    } else {
        with_revision(stored, revision)
    };
    match change {
        Change::Remove(_) => Outcome::Removed(json),
        Change::Put(_) if !existed => Outcome::Created(json),
        Change::Put(_) => Outcome::Stored(json),
    }
}

/// The bytes of an object as the store keeps them.
fn to_stored(resource: &Resource, value: &Value) -> Result<Bytes, Status> {
    let mut value = match resource.behaviour.stored_as() {
        Some(stored) => (stored.to_stored)(value.clone()),
        None => value.clone(),
    };
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    serde_json::to_vec(&value)
        .map(Bytes::from)
        .map_err(|error| Status::internal(format!("the object cannot be encoded: {error}")))
}

fn to_current(resource: &Resource, key_value: KeyValue) -> Result<Current, Status> {
    let mut value: Value = serde_json::from_slice(&key_value.value)
        .map_err(|error| Status::internal(format!("the stored object cannot be decoded: {error}")))?;
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), key_value.mod_revision.to_string().into());
    }
    if let Some(stored) = resource.behaviour.stored_as() {
        value = (stored.from_stored)(value);
    }
    Ok(Current { value, revision: key_value.mod_revision, stored: key_value.value })
}

/// An object read from the store at some revision, as the caches would hold it.
///
/// # Errors
/// 500 when the stored bytes are malformed.
pub fn to_cached(resource: &Resource, key_value: &KeyValue) -> Result<Arc<CachedObject>, Status> {
    let (_, path) = keys::split(&key_value.key).ok_or_else(|| Status::internal("a stored key is malformed"))?;
    CachedObject::from_stored(resource, path, &key_value.value, key_value.mod_revision)
        .map(Arc::new)
        .map_err(|error| Status::internal(error.to_string()))
}
