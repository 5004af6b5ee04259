//! What a master is started with.

use std::{sync::Arc, time::Duration};

use tokio::net::TcpListener;
use trireme_storage::engine::Engine;

use crate::{
    transport::{Dialer, PeerTls},
    types::{Member, NodeId},
};

/// Gives the time of day as Unix milliseconds.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Everything one master needs to take part in the group.
pub struct MasterConfig {
    /// This data folder's id. Random, made together with the folder, and never used for another one.
    pub node_id: NodeId,
    /// A random number; the data folder is known by it if it is new.
    pub new_folder_id: u64,
    pub name: String,
    pub zone: String,
    /// Names the cluster: a DNS label (lower case letters, digits, hyphens). Stored with the data; peers of another cluster are turned away.
    pub cluster_id: String,
    /// Where the other members connect to; already bound.
    pub listener: TcpListener,
    /// `host:port` that the other members are told to connect to.
    pub advertise: String,
    /// URLs at which clients reach this member; told to whoever asks it for its status.
    pub client_urls: Vec<String>,
    /// The wall clock, Unix milliseconds: the leases' deadlines are set by it. What ends a lease is the time that passes on its leader.
    pub now_ms: WallClock,
    pub tls: PeerTls,
    /// How connections to other members are made; [`crate::TcpDialer`] outside tests.
    pub dialer: Arc<dyn Dialer>,
    /// The members that a new cluster begins with, this one among them. It begins when all of them run. Empty for a member that waits to be added to a
    /// running cluster. Ignored once the data folder knows its group.
    pub members: Vec<(NodeId, Member)>,
    /// Where a member that is to be added to a running cluster finds members of it (`host:port`).
    pub join: Vec<String>,
    /// Holds the Raft log and the vote. Nothing else may write to it.
    pub log_engine: Arc<dyn Engine>,
    /// Holds the state machine. Nothing else may write to it.
    pub state_engine: Arc<dyn Engine>,
    pub timing: Timing,
    pub limits: Limits,
}

/// How long things may take. The defaults fit zones 1–5 ms apart on machines that may be busy.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How often a leader tells its followers that it lives.
    pub heartbeat: Duration,
    /// A follower that has heard nothing starts an election after `election_timeout_max` (the leader's lease) plus a
    /// random time between `election_timeout_min` and `election_timeout_max`; the first part falls away when the leader's
    /// machine says that nobody listens there any more.
    pub election_timeout_min: Duration,
    pub election_timeout_max: Duration,
    /// How long a TCP and TLS connection to a peer may take.
    pub connect_timeout: Duration,
    /// How often an idle connection to a peer is probed, and how long the answer may take until it is given up.
    pub keep_alive_interval: Duration,
    pub keep_alive_timeout: Duration,
    /// How long a request waits for a leader, or for a quorum, until it fails with `Unavailable`.
    pub request_timeout: Duration,
    /// How long an entry in the log may take to commit until its proposer is told that the outcome is unknown.
    pub commit_timeout: Duration,
    /// How much history is kept for watches and reads of older revisions.
    pub history_retention: Duration,
    /// How often the leader looks whether there is history to compact.
    pub compaction_interval: Duration,
    /// How often a member compares its hashes with the others'.
    pub hash_check_interval: Duration,
    /// How long after its start, and how often from then on, a member adds up everything that it has on its disk.
    pub first_content_check: Duration,
    pub content_check_interval: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(75),
            election_timeout_min: Duration::from_millis(250),
            election_timeout_max: Duration::from_millis(450),
            connect_timeout: Duration::from_millis(1000),
            keep_alive_interval: Duration::from_millis(500),
            keep_alive_timeout: Duration::from_millis(1500),
            request_timeout: Duration::from_secs(5),
            commit_timeout: Duration::from_secs(10),
            history_retention: Duration::from_secs(300),
            compaction_interval: Duration::from_secs(30),
            hash_check_interval: Duration::from_secs(10),
            first_content_check: Duration::from_secs(10),
            content_check_interval: Duration::from_secs(3600),
        }
    }
}

/// How much may pile up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// An entry takes in waiting commands up to this many bytes; a single command may be larger.
    pub entry_bytes: usize,
    /// An entry takes in at most so many commands.
    pub entry_commands: usize,
    /// How many entries this member may have proposed that are not applied yet.
    pub entries_in_flight: usize,
    /// How long a small entry waits for the end of one that is under way, to take in more commands meanwhile.
    pub linger: Duration,
    /// A command larger than this is refused.
    pub command_bytes: usize,
    /// The log is snapshotted and purged each time it has grown by so many entries, or so many bytes.
    pub snapshot_entries: u64,
    pub snapshot_bytes: u64,
    /// How many entries at most stay in the log behind a snapshot, for followers that are a little behind, and how many bytes of them.
    pub kept_entries: u64,
    pub kept_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entry_bytes: 1 << 20,
            entry_commands: 4096,
            entries_in_flight: 8,
            linger: Duration::from_millis(1),
            command_bytes: 16 << 20,
            snapshot_entries: 20_000,
            snapshot_bytes: 64 << 20,
            kept_entries: 10_000,
            kept_bytes: 64 << 20,
        }
    }
}
