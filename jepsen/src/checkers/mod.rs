//! Whether a recorded history and what the members hold fit together. Pure: values in, violations out.

pub mod pairs;
