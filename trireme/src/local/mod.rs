//! A whole cluster on this machine: what `up`, `down`, `status` and the process commands work on.
//!
//! [`spec`] says what the cluster consists of and is kept in its folder; [`layout`] says where things lie there;
//! [`supervisor`] keeps the processes, serves the [`balancer`] and answers the commands over the [`control`] socket; `change` has
//! what it does when masters come and go;
//! [`network`] makes the nodes' network namespaces; [`up`] puts it together.

pub mod balancer;
pub mod certificates;
mod change;
pub mod control;
pub mod down;
pub mod image;
pub mod kubeconfig;
pub mod layout;
pub mod network;
pub mod power;
pub mod process;
pub mod progress;
pub mod spec;
pub mod status;
pub mod supervisor;
pub mod up;
