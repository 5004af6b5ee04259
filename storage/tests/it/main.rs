//! The tests of the storage crate, over both engines.

mod codec;
mod discard;
mod disk;
mod engines;
mod log;
mod model;
mod snapshot;
mod state;
mod verify;
mod watch;
