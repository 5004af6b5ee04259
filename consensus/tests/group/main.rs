//! Whole groups in one process: real sockets, real mutual TLS, in-memory or RocksDB engines.

mod certificates;
mod cluster;
mod failures;
mod full_disk;
mod leases;
mod membership;
mod network;
mod normal;
mod restart;
