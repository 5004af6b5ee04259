//! The shim alone: what the embedded runtime starts for each pod when it is used without the `trireme` binary, as this
//! crate's tests do.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    trireme_nodeagent::embedded::shim_main(&arguments)
}
