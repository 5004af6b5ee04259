//! The services over a store in memory, called through etcd's own clients; without a socket, but for the listener's own test.

mod group;
mod key_value;
mod lease;
mod lock;
mod maintenance;
mod service;
mod transport;
mod watch;
