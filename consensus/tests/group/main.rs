//! Whole groups in one process: real sockets, real mutual TLS, in-memory or RocksDB engines.

mod cluster;
mod certificates;
mod failures;
mod membership;
mod network;
mod normal;
mod restart;
