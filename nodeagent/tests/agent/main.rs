//! Whole agents in this process, over a fake API and simulated runtimes.

mod containers;
mod lifecycle;
mod nodes;
mod support;
