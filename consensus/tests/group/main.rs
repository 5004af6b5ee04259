//! Whole groups in one process: real sockets, real mutual TLS, in-memory or RocksDB engines.

mod certificates;
mod cluster;
mod divergence;
mod fail_points;
mod failures;
mod full_disk;
mod joining;
mod leases;
mod membership;
mod network;
mod normal;
mod power_cut;
mod restart;
mod restore;
