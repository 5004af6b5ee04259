//! Faults against real `trireme` processes, and what must hold all the same.
//!
//! This crate owns clusters of masters that it may break ([`cluster`], [`master`]), what breaks them ([`nemeses`]), what clients do
//! meanwhile ([`workloads`]), and whether what they were told came true ([`checkers`]). It knows the inside of no other crate: it
//! drives the binary by its command line, its signals and its etcd API; of the fail points it knows the names. Start at [`crash`].
//! [`watch`] has the checkers of the nine properties of watches, over recorded histories.

#![forbid(unsafe_code)]

pub mod checkers;
pub mod client;
pub mod cluster;
pub mod crash;
pub mod history;
pub mod master;
pub mod nemeses;
pub mod wait;
pub mod watch;
pub mod workloads;
