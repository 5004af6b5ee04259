//! Under construction.

#![deny(unsafe_code)]

pub mod cri;
pub mod embedded;
pub mod image;
pub mod network;
pub mod runtime;
