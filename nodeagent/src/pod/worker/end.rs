//! The end of a pod: stopping it, and taking everything of it away.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::{sync::watch, time::Instant};

use super::{Desired, Finished, Worker};
use crate::{
    log,
    pod::{
        deadline,
        memory::{Ended, Observed},
        model,
        publish::Removal,
        stop,
    },
    volume,
};

impl Worker {
    /// Stops every container of the pod, then its sandbox, and publishes the final status.
    pub(super) async fn terminate(&mut self, pod: &Pod) -> Result<(), Finished> {
        self.memory.ended = Some(Ended::Stopping);
        self.stop_everything(pod).await?;
        self.memory.ended = Some(Ended::Stopped);
        if let Ok(observed) = self.observe(pod).await {
            self.publish(pod, &observed);
        }
        Ok(())
    }

    /// Returns when nothing of the pod runs. A shorter grace period that comes meanwhile counts from then on. What could not be
    /// stopped is tried again within the grace period; when that is over, the sandbox is ended with all that is in it.
    pub(super) async fn stop_everything(&mut self, pod: &Pod) -> Result<(), Finished> {
        self.probes.stop();
        let told = stop::Told::default();
        let mut grace = deadline::grace(&self.desired.borrow().pod);
        let mut began = Instant::now();
        loop {
            let Some(observed) = self.observe_or_pause(pod).await? else { continue };
            self.publish(pod, &observed);
            let shutdown = self.shutdown.clone();
            let left = grace.saturating_sub(began.elapsed());
            tokio::select! {
                () = shutdown.cancelled() => return Err(Finished),
                () = stop::everything(&self.agent, pod, &observed, left, &told) => {}
                () = shorter_grace(self.desired.clone(), grace) => {
                    (grace, began) = (deadline::grace(&self.desired.borrow().pod), Instant::now());
                    continue;
                }
            }
            let Some(observed) = self.observe_or_pause(pod).await? else { continue };
            if observed.running().next().is_some() && began.elapsed() < grace {
                self.pause().await?;
                continue;
            }
            for sandbox in &observed.sandboxes {
                self.done(self.agent.runtime.stop_sandbox(&sandbox.id).await);
            }
            match self.observe(pod).await {
                Ok(observed) if observed.running().next().is_none() => return Ok(()),
                _ => self.pause().await?,
            }
        }
    }

    /// The pod's state, or `None` after a pause when the runtime does not tell it.
    async fn observe_or_pause(&mut self, pod: &Pod) -> Result<Option<Observed>, Finished> {
        match self.observe(pod).await {
            Ok(observed) => Ok(Some(observed)),
            Err(error) => {
                tracing::warn!(pod = model::display(&self.identity), %error, "the runtime does not tell the pod's state");
                self.pause().await?;
                Ok(None)
            }
        }
    }

    pub(super) async fn pause(&self) -> Result<(), Finished> {
        tokio::select! {
            () = self.shutdown.cancelled() => Err(Finished),
            () = tokio::time::sleep(Duration::from_secs(1)) => Ok(()),
        }
    }

    /// Takes the pod's volumes away, and lets the publisher delete it from the API.
    pub(super) async fn allow_removal(&mut self) {
        if self.tear_down_volumes().await {
            self.publications.send_if_modified(|publication| {
                let due = publication.removal != Removal::Due;
                publication.removal = Removal::Due;
                due
            });
        }
    }

    pub(super) async fn tear_down_volumes(&mut self) -> bool {
        let Some(data_dir) = self.agent.config.data_dir.clone() else { return true };
        let uid = self.identity.uid.clone();
        let work = tokio::task::spawn_blocking(move || volume::setup::tear_down(&data_dir, &uid));
        match work.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(pod = model::display(&self.identity), %error, "the pod's volumes could not be taken away");
                false
            }
            Err(_) => false,
        }
    }

    /// The pod is gone from the API: nothing of it stays.
    pub(super) async fn clean_up(&mut self, pod: &Pod) -> Result<(), Finished> {
        if self.memory.ended != Some(Ended::Stopped) {
            self.memory.ended = Some(Ended::Stopping);
            self.stop_everything(pod).await?;
            self.memory.ended = Some(Ended::Stopped);
        }
        if let Ok(observed) = self.observe(pod).await {
            for sandbox in &observed.sandboxes {
                self.done(self.agent.runtime.remove_sandbox(&sandbox.id).await);
            }
        }
        self.tear_down_volumes().await;
        if let Some(data_dir) = &self.agent.config.data_dir {
            let logs = log::pod_directory(data_dir, &self.identity);
            match std::fs::remove_dir_all(&logs) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(folder = %logs.display(), %error, "the pod's logs could not be removed");
                }
                _ => {}
            }
        }
        Err(Finished)
    }
}

/// Ends when the pod's grace period has become shorter than `grace`.
async fn shorter_grace(mut desired: watch::Receiver<Desired>, grace: Duration) {
    if desired.wait_for(|desired| deadline::grace(&desired.pod) < grace).await.is_err() {
        std::future::pending::<()>().await;
    }
}
