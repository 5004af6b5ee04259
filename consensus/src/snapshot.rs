//! Snapshots on their way: what a leader sends from, and what a member collects until it is whole.
