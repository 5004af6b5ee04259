//! Taking over what an earlier process left, and taking sandboxes away.

use std::{collections::BTreeSet, fs, io, path::PathBuf, sync::Arc};

use super::{
    EmbeddedRuntime, at, context,
    sandbox::{self, Sandbox, blocking, remove_folder},
    state::{self, SandboxFolder, SandboxRecord},
};
use crate::{network::Attachment, runtime::RuntimeError};

impl EmbeddedRuntime {
    /// Adopts complete sandboxes and removes the others, with everything that is theirs. One that cannot be read or removed is
    /// left for [`EmbeddedRuntime::settle`]: the other pods of the machine do not wait for it.
    pub(super) async fn reconcile(&self) -> Result<(), RuntimeError> {
        for folder in self.sandbox_folders()? {
            if let Err(error) = self.take_over(&folder).await {
                tracing::warn!(folder = %folder.0.display(), %error, "a sandbox cannot be taken over or removed; trying again later");
                self.unsettled.lock().insert(folder.0);
            }
        }
        let mut held = BTreeSet::new();
        for folder in self.sandbox_folders()? {
            match sandbox::container_names(&folder) {
                Ok(names) => held.extend(names),
                // What its containers run from is not known, so that nothing may be let go of.
                Err(error) => {
                    tracing::warn!(folder = %folder.0.display(), %error, "the containers of a sandbox cannot be listed");
                    return Ok(());
                }
            }
        }
        self.images.retain_holds(&held)?;
        let mut connected: BTreeSet<String> = {
            let sandboxes = self.sandboxes.lock();
            sandboxes.values().filter(|sandbox| !sandbox.record.stopped).map(|sandbox| sandbox.record.id.clone()).collect()
        };
        // A sandbox's folder bears its id.
        let unsettled = self.unsettled.lock().clone();
        connected.extend(unsettled.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())));
        Ok(self.config.network.retain(&connected).await?)
    }

    /// Tries again to take over or remove what could not be when this process began.
    pub(super) async fn settle(&self) {
        let unsettled = self.unsettled.lock().clone();
        for path in unsettled {
            match self.take_over(&SandboxFolder(path.clone())).await {
                Ok(()) => drop(self.unsettled.lock().remove(&path)),
                Err(error) => {
                    tracing::debug!(folder = %path.display(), %error, "a sandbox still cannot be taken over or removed")
                }
            }
        }
    }

    fn sandbox_folders(&self) -> Result<Vec<SandboxFolder>, RuntimeError> {
        let folder = self.config.data_dir.join("sandboxes");
        let list = || fs::read_dir(&folder)?.map(|entry| Ok(SandboxFolder(entry?.path()))).collect::<io::Result<Vec<_>>>();
        list().map_err(at("cannot list", &folder))
    }

    async fn take_over(&self, folder: &SandboxFolder) -> Result<(), RuntimeError> {
        let record: Option<SandboxRecord> = state::load(&folder.record()).map_err(at("cannot read", &folder.record()))?;
        let Some(record) = record else {
            return remove_folder(&folder.0).map_err(at("cannot remove", &folder.0));
        };
        if !record.complete {
            tracing::info!(sandbox = record.id, "removing a sandbox that was never finished");
            return self.destroy(folder, &record).await;
        }
        let records = sandbox::container_records(folder).map_err(at("cannot read", &folder.0))?;
        // A container without a record was never promised to anyone.
        for name in sandbox::container_names(folder).map_err(at("cannot list", &folder.0))? {
            if !records.iter().any(|record| record.id == name) {
                remove_folder(&folder.container(&name).0).map_err(at("cannot remove", &folder.0))?;
            }
        }
        let sandbox = Arc::new(self.adopt(folder.clone(), record).await);
        self.containers.lock().extend(records.into_iter().map(|record| (record.id, sandbox.clone())));
        self.sandboxes.lock().insert(sandbox.record.id.clone(), sandbox);
        Ok(())
    }

    pub(super) async fn adopt(&self, folder: SandboxFolder, record: SandboxRecord) -> Sandbox {
        Sandbox::adopt(folder, record, self.events.clone(), self.config.clock.clone()).await
    }

    /// Ends and removes everything of a sandbox that nobody knows of.
    pub(super) async fn destroy(&self, folder: &SandboxFolder, record: &SandboxRecord) -> Result<(), RuntimeError> {
        sandbox::end_processes(folder, record).await.map_err(context("cannot end the sandbox"))?;
        self.disconnect(record).await?;
        for name in sandbox::container_names(folder).map_err(at("cannot list", &folder.0))? {
            self.images.release(&name)?;
        }
        let path = folder.0.clone();
        blocking(move || remove_folder(&path)).await.map_err(at("cannot remove", &folder.0))
    }

    pub(super) async fn disconnect(&self, record: &SandboxRecord) -> Result<(), RuntimeError> {
        if record.config.host_network {
            return Ok(());
        }
        Ok(self.config.network.detach(&attachment(record, None)).await?)
    }
}

/// `namespace` is only known for sure right after the shim started: later its process number may be another's.
pub(super) fn attachment(record: &SandboxRecord, namespace: Option<PathBuf>) -> Attachment {
    Attachment {
        sandbox_id: record.id.clone(),
        pod: record.config.pod.clone(),
        namespace,
        port_mappings: record.config.port_mappings.clone(),
    }
}
