//! What clients do while something breaks, and the record of it.

pub mod pairs;
