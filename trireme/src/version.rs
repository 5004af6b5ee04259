//! `trireme version`.

use anyhow::Result;

use crate::cli::OutputFormat;

/// The minor version of Kubernetes 1 whose API is served.
pub const KUBERNETES_MINOR: u32 = 36;

pub fn run(output: OutputFormat) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    match output {
        OutputFormat::Table => say!("trireme {version} (Kubernetes API 1.{KUBERNETES_MINOR})"),
        OutputFormat::Json => {
            say!("{}", serde_json::json!({ "trireme": version, "kubernetes": format!("1.{KUBERNETES_MINOR}") }));
        }
    }
    Ok(())
}
