//! What breaks.

pub mod fail_points;
