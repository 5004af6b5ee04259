//! End-to-end tests: real `trireme` processes, stock clients, and real containers where a test asks for them.
//!
//! This crate owns the harness that starts and breaks clusters; the tests, one file for each subject, are in `tests/tests/`. It
//! never looks inside the product: it drives the binary, and reads what any user could. Start at [`cluster::Cluster`].

#![forbid(unsafe_code)]

pub mod cluster;
pub mod config_maps;
pub mod connection;
pub mod etcd;
pub mod etcdctl;
pub mod image;
pub mod kubectl;
pub mod pods;
pub mod shown;
pub mod wait;
pub mod watch_recorder;
pub mod watch_writers;
