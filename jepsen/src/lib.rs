//! Whether a cluster keeps its promises, judged from outside: from what its clients asked and were answered.
//!
//! It drives no code of the other crates and imports none of them. [`watch`] has the checkers of the nine properties of watches, over
//! recorded histories.

#![forbid(unsafe_code)]

pub mod watch;
