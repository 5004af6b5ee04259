//! Under construction.

#![forbid(unsafe_code)]
#[derive(Default)]
pub struct SchedulerConfig { pub seed: u64 }
pub async fn run(_c: kube::Client, _s: SchedulerConfig, _k: std::sync::Arc<dyn trireme_api::clock::Clock>, s: tokio_util::sync::CancellationToken) { s.cancelled().await }
