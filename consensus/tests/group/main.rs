//! Whole groups in one process: real sockets, real mutual TLS, in-memory or RocksDB engines.

mod certificates;
mod cluster;
mod divergence;
mod failures;
mod leases;
mod membership;
mod network;
mod normal;
mod restart;
mod restore;
