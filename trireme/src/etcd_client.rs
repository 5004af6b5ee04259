//! Masters' etcd API, for the commands that use the store.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use rustls::ClientConfig;
use tokio::time::timeout;
use tonic::{Status, transport::Channel};
use trireme_etcd::proto::etcdserverpb::{
    RangeRequest, StatusRequest, kv_client::KvClient, maintenance_client::MaintenanceClient,
};

use crate::{
    dial,
    endpoints::{MastersArgs, NamedEndpoint},
    tls,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer that is no stream may take so long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Streamed pieces, and ranges, may be larger than tonic's default.
const MESSAGE_BYTES: usize = 64 << 20;

/// The masters that were named, and the keys to ask them with.
pub struct Masters {
    pub endpoints: Vec<NamedEndpoint>,
    tls: Arc<ClientConfig>,
}

impl Masters {
    /// Those that the arguments mean.
    pub fn find(args: &MastersArgs) -> Result<Self> {
        let named = args.find()?;
        Ok(Self { endpoints: named.endpoints, tls: dial::speaking("h2", tls::client(&named.keys)?) })
    }

    /// Connects to one of them.
    pub async fn connect(&self, endpoint: &NamedEndpoint) -> Result<Master> {
        let channel = timeout(CONNECT_TIMEOUT, dial::channel(&endpoint.address, &self.tls))
            .await
            .with_context(|| format!("{} does not answer", endpoint.name))?
            .with_context(|| format!("cannot connect to {}", endpoint.name))?;
        Ok(Master { name: endpoint.name.clone(), channel })
    }

    /// Connects to the first that can answer for the whole group: it has a leader, and everything that was acknowledged anywhere.
    pub async fn connect_to_any(&self) -> Result<Master> {
        let mut reasons = Vec::new();
        for endpoint in &self.endpoints {
            let tried = async {
                let master = self.connect(endpoint).await?;
                master.catch_up().await?;
                Ok::<_, anyhow::Error>(master)
            };
            match tried.await {
                Ok(master) => return Ok(master),
                Err(error) => reasons.push(format!("{error:#}")),
            }
        }
        bail!("no master answers: {}", reasons.join("; "))
    }
}

/// One master's etcd API.
#[derive(Clone)]
pub struct Master {
    pub name: String,
    channel: Channel,
}

impl Master {
    pub fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    pub fn key_values(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// Waits until the master has everything that was acknowledged anywhere before. Returns its revision then.
    pub async fn catch_up(&self) -> Result<i64> {
        let nothing = RangeRequest { key: b"\0".to_vec().into(), count_only: true, ..RangeRequest::default() };
        let mut client = self.key_values();
        let answer = self.within(client.range(nothing)).await?;
        Ok(answer.header.map_or(0, |header| header.revision))
    }

    /// The newest revision that the master has.
    pub async fn revision(&self) -> Result<i64> {
        let mut client = self.maintenance();
        let answer = self.within(client.status(StatusRequest::default())).await?;
        Ok(answer.header.map_or(0, |header| header.revision))
    }

    /// Waits for an answer, and says who gave it when it is a refusal.
    pub async fn within<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T> {
        self.within_limit(ANSWER_TIMEOUT, call).await
    }

    /// As [`Master::within`], for what takes longer.
    pub async fn within_limit<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T> {
        let answered = timeout(limit, call).await.with_context(|| format!("{} gave no answer within {limit:?}", self.name))?;
        answered.map(tonic::Response::into_inner).map_err(|status| refusal(&self.name, &status))
    }
}

/// What a master's refusal is told as.
pub fn refusal(name: &str, status: &Status) -> anyhow::Error {
    anyhow::anyhow!("{name}: {}", status.message())
}
