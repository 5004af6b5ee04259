//! One store under load: its members, the connections to them, and what they say of themselves.

use std::sync::Arc;

use anyhow::{Context, Result};
use http::Uri;
use rustls::ClientConfig;
use trireme_etcd::proto::etcdserverpb::{
    StatusRequest, kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    watch_client::WatchClient,
};

use super::{
    connection::{self, Connection},
    metrics::Usage,
};

/// No answer is too long to be read: a range may be.
const MESSAGE_BYTES: usize = usize::MAX;

/// A member of a store, and the connections to it.
struct Member {
    url: Uri,
    connections: Vec<Connection>,
    leads: bool,
}

/// A store.
pub struct Target {
    pub name: String,
    tls: Arc<ClientConfig>,
    members: Vec<Member>,
}

/// Through which members requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    All,
    Followers,
}

impl Target {
    /// Opens `connections` to each of `endpoints`.
    pub async fn open(name: &str, endpoints: &[Uri], tls: ClientConfig, connections: usize) -> Result<Self> {
        let tls = Arc::new(tls);
        let mut members = Vec::new();
        for url in endpoints {
            let mut opened = Vec::new();
            for _ in 0..connections {
                opened.push(Connection::open(url, &tls).await?);
            }
            let first = opened.first().context("at least one connection is needed")?.clone();
            let status = MaintenanceClient::with_origin(first, url.clone()).status(StatusRequest {}).await;
            let status = status.with_context(|| format!("{url} does not tell its status"))?.into_inner();
            let leads = status.header.is_some_and(|header| header.member_id == status.leader);
            members.push(Member { url: url.clone(), connections: opened, leads });
        }
        Ok(Self { name: name.to_owned(), tls, members })
    }

    /// The connection of the client with this number: clients are dealt round the members, then round their connections.
    fn connection(&self, through: Through, client: usize) -> (Connection, Uri) {
        let wanted = |member: &&Member| through == Through::All || !member.leads || self.members.len() == 1;
        let members: Vec<&Member> = self.members.iter().filter(wanted).collect();
        let member = members[client % members.len()];
        let connection = &member.connections[(client / members.len()) % member.connections.len()];
        (connection.clone(), member.url.clone())
    }

    pub fn key_value(&self, through: Through, client: usize) -> KvClient<Connection> {
        let (connection, origin) = self.connection(through, client);
        KvClient::with_origin(connection, origin).max_decoding_message_size(MESSAGE_BYTES)
    }

    pub fn lease(&self, client: usize) -> LeaseClient<Connection> {
        let (connection, origin) = self.connection(Through::All, client);
        LeaseClient::with_origin(connection, origin)
    }

    pub fn maintenance(&self, client: usize) -> MaintenanceClient<Connection> {
        let (connection, origin) = self.connection(Through::All, client);
        MaintenanceClient::with_origin(connection, origin).max_decoding_message_size(MESSAGE_BYTES)
    }

    pub fn watch(&self, client: usize) -> WatchClient<Connection> {
        let (connection, origin) = self.connection(Through::All, client);
        WatchClient::with_origin(connection, origin).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// What all members together have used so far.
    pub async fn usage(&self) -> Result<Usage> {
        let mut total = Usage::default();
        for member in &self.members {
            total = total.add(Usage::parse(&connection::page(&member.url, "/metrics", &self.tls).await?));
        }
        Ok(total)
    }
}
