//! Networks of others: pods are connected by the plugins that a folder of configurations names (the Container Network
//! Interface, specification 1.0).

mod configuration;
mod plugin;
mod record;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::Value;

use self::{
    plugin::{Operation, Plugins, Subject},
    record::{Record, Records},
};
use super::{Attachment, NetworkError, PodNetwork, links, namespace};

/// How plugins are used.
#[derive(Clone, Debug)]
pub struct CniConfig {
    /// The folder of network configurations; the first usable file, by name, counts. Read anew for each pod.
    pub configuration_dir: PathBuf,
    /// Where plugins are looked for.
    pub plugin_dirs: Vec<PathBuf>,
    /// What must be remembered to disconnect pods; this node's own.
    pub state_dir: PathBuf,
    /// How long one run of one plugin may take.
    pub plugin_timeout: Duration,
}

impl CniConfig {
    /// With the folders that plugins are usually installed in.
    pub fn new(configuration_dir: PathBuf, state_dir: PathBuf) -> CniConfig {
        CniConfig {
            configuration_dir,
            plugin_dirs: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
            state_dir,
            plugin_timeout: Duration::from_secs(120),
        }
    }
}

/// A network made by plugins.
pub struct CniNetwork {
    configuration_dir: PathBuf,
    plugins: Plugins,
    records: Records,
}

impl CniNetwork {
    pub fn open(config: CniConfig) -> Result<CniNetwork, NetworkError> {
        Ok(CniNetwork {
            configuration_dir: config.configuration_dir,
            plugins: Plugins { search_path: config.plugin_dirs, patience: config.plugin_timeout },
            records: Records::open(config.state_dir.join("results"))?,
        })
    }

    /// Asks the plugins whether the pod's connection is as they made it. A network that does not know the question is taken
    /// to be right.
    ///
    /// # Errors
    /// What is wrong; also when the pod is not connected.
    pub async fn check(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        match self.records.load(sandbox_id)? {
            Some(record) => self.check_record(sandbox_id, &record).await,
            None => Err(NetworkError::Invalid(format!("sandbox {sandbox_id} is not connected"))),
        }
    }

    async fn check_record(&self, sandbox_id: &str, record: &Record) -> Result<(), NetworkError> {
        let Some(result) = &record.result else {
            return Err(NetworkError::Invalid(format!("sandbox {sandbox_id} was not connected completely")));
        };
        if !record.network.can_check() {
            return Ok(());
        }
        let subject = subject(sandbox_id, record, &record.namespace);
        for plugin in record.network.plugins() {
            let execution = record.network.execution(plugin, &record.wishes, Some(result));
            self.plugins.run(plugin, Operation::Check, &subject, &execution).await?;
        }
        Ok(())
    }

    /// Runs the chain: each plugin is given the result of the one before it; the last one's counts.
    async fn add(&self, sandbox_id: &str, record: &Record) -> Result<Value, NetworkError> {
        let subject = subject(sandbox_id, record, &record.namespace);
        let mut result = None;
        for plugin in record.network.plugins() {
            let execution = record.network.execution(plugin, &record.wishes, result.as_ref());
            result = Some(self.plugins.run(plugin, Operation::Add, &subject, &execution).await?);
        }
        Ok(result.unwrap_or_default())
    }

    /// Undoes an attachment, in the reverse order. The record goes only when every plugin has succeeded.
    async fn delete(&self, sandbox_id: &str, record: &Record, namespace: Option<&Path>) -> Result<(), NetworkError> {
        let subject = subject(sandbox_id, record, namespace.unwrap_or(Path::new("")));
        let result = record.result.as_ref().filter(|_| record.network.has_previous_result_for_all());
        for plugin in record.network.plugins().iter().rev() {
            let execution = record.network.execution(plugin, &record.wishes, result);
            self.plugins.run(plugin, Operation::Delete, &subject, &execution).await?;
        }
        self.records.remove(sandbox_id)
    }
}

fn subject<'a>(sandbox_id: &'a str, record: &'a Record, namespace: &'a Path) -> Subject<'a> {
    Subject { container_id: sandbox_id, namespace, interface: &record.interface, arguments: &record.arguments }
}

#[async_trait]
impl PodNetwork for CniNetwork {
    async fn ready(&self) -> Result<(), NetworkError> {
        self.plugins.all_there(&configuration::select(&self.configuration_dir)?)
    }

    async fn attach(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, NetworkError> {
        let id = &attachment.sandbox_id;
        let namespace = attachment.namespace.clone();
        let namespace = namespace.ok_or_else(|| NetworkError::Invalid("the pod has no network namespace".to_owned()))?;
        if let Some(earlier) = self.records.load(id)? {
            if earlier.namespace == namespace && self.check_record(id, &earlier).await.is_ok() {
                return earlier.result.as_ref().map_or_else(|| Ok(Vec::new()), record::addresses);
            }
            self.delete(id, &earlier, Some(&namespace)).await?;
        }
        let mut record = Record {
            network: configuration::select(&self.configuration_dir)?,
            interface: links::POD_INTERFACE.to_owned(),
            arguments: arguments(attachment),
            namespace: namespace.clone(),
            wishes: configuration::wishes(&attachment.port_mappings),
            result: None,
        };
        self.plugins.all_there(&record.network)?;
        // Written first: what a crash leaves half done is undone from it.
        self.records.save(id, &record)?;
        let connected = async {
            namespace::inside(namespace.clone(), |handle| async move { links::loopback(&handle).await }).await?;
            let result = self.add(id, &record).await?;
            let addresses = record::addresses(&result)?;
            record.result = Some(result);
            self.records.save(id, &record)?;
            Ok(addresses)
        };
        let connected: Result<Vec<IpAddr>, NetworkError> = connected.await;
        if connected.is_err()
            && let Err(error) = self.delete(id, &record, Some(&namespace)).await
        {
            tracing::warn!(sandbox = id, %error, "what a failed attachment left cannot be taken away yet");
        }
        connected
    }

    async fn detach(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let Some(record) = self.records.load(&attachment.sandbox_id)? else { return Ok(()) };
        let namespace = attachment.namespace.as_deref().filter(|path| path.exists());
        self.delete(&attachment.sandbox_id, &record, namespace).await
    }

    async fn retain(&self, sandbox_ids: &BTreeSet<String>) -> Result<(), NetworkError> {
        for id in self.records.sandbox_ids()?.into_iter().filter(|id| !sandbox_ids.contains(id)) {
            let undone = async {
                match self.records.load(&id)? {
                    Some(record) => self.delete(&id, &record, None).await,
                    None => Ok(()),
                }
            };
            // One broken plugin must not keep the node from starting: what could not be undone is tried again next time.
            if let Err(error) = undone.await {
                tracing::warn!(sandbox = id, %error, "a sandbox that is gone cannot be disconnected");
            }
        }
        Ok(())
    }
}

/// The conventional arguments of Kubernetes' runtimes. `IgnoreUnknown` is for plugins that know none of the others.
fn arguments(attachment: &Attachment) -> String {
    let Attachment { sandbox_id, pod, .. } = attachment;
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={sandbox_id};K8S_POD_UID={}",
        pod.namespace, pod.name, pod.uid
    )
}
