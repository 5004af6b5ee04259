//! Moves a Deployment's pods from one template to the next by scaling ReplicaSets, keeps their history, and reports progress.
//!
//! Watches Deployments, ReplicaSets and (for the Recreate strategy) pods. Owns the ReplicaSets with its controller reference that
//! its selector matches, and its own status. One pass is one pure decision, `plan::plan`, and then the writes it asks for.

mod annotations;
mod conditions;
mod engine;
mod plan;
mod progress;
mod proportion;
mod rolling;
mod sets;
mod strategy;
mod template;

#[cfg(test)]
mod simulation;

pub use engine::{LOOP, start};
#[cfg(test)]
pub(crate) use template::template_hash;
