//! Empties namespaces that are being deleted and then lets them go.
//!
//! Watches Namespaces. Owns the finalizer `kubernetes` in `spec.finalizers` and the deletion conditions of the status.

mod content;
mod report;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tracing::{debug, info};

use crate::LoopContext;
use crate::shared::discovery::discover;
use crate::shared::error::{Doing, is_not_found};
use crate::shared::meta::{is_deleting, name};
use crate::shared::{ControllerError, Next, ObjectKey, WorkQueue, run_workers};
use content::delete_all;
use report::{Report, conditions};

/// The loop's name.
pub const LOOP: &str = "namespace-controller";

/// The finalizer by which this loop holds a namespace.
const FINALIZER: &str = "kubernetes";
/// How soon to look again whether the content is gone. Pods take up to their grace period, but most go sooner.
const POLL: Duration = Duration::from_secs(1);
const POLL_WHILE_PODS_STOP: Duration = Duration::from_secs(2);

struct Controller {
    client: Client,
    namespaces: Arc<crate::shared::Informer<Namespace>>,
    clock: Arc<dyn trireme_api::clock::Clock>,
}

/// Starts the loop.
pub fn start(context: LoopContext) -> BoxFuture<'static, ()> {
    let queue = WorkQueue::new(LOOP, context.seed);
    let controller = Arc::new(Controller { client: context.client, namespaces: context.informers.get(), clock: context.clock });
    let added = queue.clone();
    controller.namespaces.on_change(move |change| {
        if is_deleting(&change.object().metadata) {
            added.add(ObjectKey::of(&**change.object()));
        }
    });
    let (workers, shutdown) = (context.config.workers, context.shutdown);
    Box::pin(async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = controller.namespaces.synced() => {}
        }
        run_workers(queue, workers, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.pass(&key).await }
        })
        .await;
    })
}

fn holds(namespace: &Namespace) -> bool {
    namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten()).any(|finalizer| finalizer == FINALIZER)
}

impl Controller {
    async fn pass(&self, key: &ObjectKey) -> Result<Next, ControllerError> {
        if self.namespaces.get(key).is_none_or(|namespace| !is_deleting(&namespace.metadata)) {
            return Ok(Next::Done);
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        // Deleting is final: the decision is made on the namespace as it is now.
        let Some(namespace) = api.get_opt(&key.name).await.doing(|| format!("reading namespace {key}"))? else {
            return Ok(Next::Done);
        };
        if !is_deleting(&namespace.metadata) || !holds(&namespace) {
            return Ok(Next::Done);
        }
        let namespace = self.write_report(&api, namespace, None).await?;
        let report = match discover(&self.client).await {
            Ok(discovery) => delete_all(&self.client, &key.name, &discovery).await,
            Err(failure) => Report { discovery_failures: vec![failure.to_string()], ..Report::default() },
        };
        let namespace = self.write_report(&api, namespace, Some(&report)).await?;
        if !report.failures.is_empty() || !report.discovery_failures.is_empty() {
            let failures: Vec<&str> = report.failures.iter().chain(&report.discovery_failures).map(String::as_str).collect();
            return Err(ControllerError::NotReady(format!("namespace {key} is not empty: {}", failures.join("; "))));
        }
        if !report.remaining.is_empty() {
            debug!(namespace = key.name, remaining = ?report.remaining, "content remains");
            return Ok(Next::After(if report.pods_are_stopping() { POLL_WHILE_PODS_STOP } else { POLL }));
        }
        self.finalize(&api, namespace).await?;
        info!(namespace = key.name, "the namespace is empty and let go");
        Ok(Next::Done)
    }

    /// Writes the phase, and the conditions where there is a report, if they differ.
    async fn write_report(
        &self,
        api: &Api<Namespace>,
        namespace: Namespace,
        report: Option<&Report>,
    ) -> Result<Namespace, ControllerError> {
        let mut status = namespace.status.clone().unwrap_or_default();
        status.phase = Some("Terminating".into());
        if let Some(report) = report {
            status = NamespaceStatus { conditions: Some(conditions(&status, report, self.clock.now())), ..status };
        }
        if namespace.status.as_ref() == Some(&status) {
            return Ok(namespace);
        }
        let namespace_name = name(&namespace.metadata).to_owned();
        let changed = Namespace { status: Some(status), ..namespace };
        let written = api.replace_status(&namespace_name, &PostParams::default(), &changed).await;
        written.doing(|| format!("writing the status of namespace {namespace_name}"))
    }

    async fn finalize(&self, api: &Api<Namespace>, mut namespace: Namespace) -> Result<(), ControllerError> {
        let namespace_name = name(&namespace.metadata).to_owned();
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        match api.replace_subresource("finalize", &namespace_name, &PostParams::default(), &namespace).await {
            Err(failure) if is_not_found(&failure) => Ok(()),
            outcome => outcome.map(drop).doing(|| format!("finalizing namespace {namespace_name}")),
        }
    }
}
