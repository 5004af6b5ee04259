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

use proptest::prelude::ProptestConfig;

/// As many cases as `PROPTEST_CASES` says, or else so few that the tests stay short.
pub fn cases(few: u32) -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(few),
    }
}
