//! The services over a store in memory, called through etcd's own clients, without a socket.

mod group;
mod key_value;
mod lease;
mod lock;
mod maintenance;
mod service;
mod watch;
