//! `postStart` and `preStop`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Probe};

use crate::{
    probe::{
        counter::Outcome,
        handler::{Found, Target},
    },
    runtime::{Fidelity, Runtime},
};

/// Runs a hook to its end.
///
/// # Errors
/// Why it failed, for `FailedPostStartHook` and `FailedPreStopHook`.
pub async fn run(
    runtime: &dyn Runtime,
    container: &Container,
    container_id: &str,
    address: &str,
    handler: &LifecycleHandler,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0)).min(timeout)).await;
        return Ok(());
    }
    if runtime.fidelity() == Fidelity::Simulated {
        return Ok(());
    }
    // The same actions as a probe's; a TCP handler is no hook any more and does nothing, as in Kubernetes.
    let action = Probe { exec: handler.exec.clone(), http_get: handler.http_get.clone(), ..Probe::default() };
    if action.exec.is_none() && action.http_get.is_none() {
        return Ok(());
    }
    let target = Target { runtime, container, container_id, address };
    match target.probe(&action, timeout).await {
        Found::Result(Outcome::Success, _) => Ok(()),
        Found::Result(Outcome::Failure, text) | Found::Unknown(text) => Err(text),
    }
}
