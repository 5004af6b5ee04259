//! Under construction.

#![deny(unsafe_code)]

pub mod image;
pub mod runtime;
