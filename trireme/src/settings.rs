//! What a master and a node agent are told: by flags, by `TRIREME_*` variables, or by one YAML file of the same names.

use std::{collections::BTreeMap, ffi::OsString, net::IpAddr, net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Command, ValueEnum};
use serde::Serialize;
use trireme_nodeagent::node::eviction::EvictionThresholds;

use crate::cli::MOST_SECONDS;

/// What `trireme master` runs with.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MasterSettings {
    /// This master's name, unique in the cluster.
    #[arg(long, env = "TRIREME_NAME", value_name = "NAME")]
    pub name: String,
    /// The availability zone that this master is in.
    #[arg(long, env = "TRIREME_ZONE", value_name = "ZONE")]
    pub zone: String,
    /// Where the Raft log, the state and the process's own files lie.
    #[arg(long, env = "TRIREME_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The cluster's id: lower case letters, digits and hyphens, the same on every master. A data folder of another cluster is
    /// refused.
    #[arg(long, env = "TRIREME_CLUSTER_ID", value_name = "ID", value_parser = cluster_id)]
    pub cluster_id: String,
    /// Every master the cluster begins with, this one too: `name=host:port` of its peer address, separated by commas.
    #[arg(long, env = "TRIREME_INITIAL_MEMBERS", value_name = "MEMBERS", value_delimiter = ',', required = true)]
    pub initial_members: Vec<InitialMember>,
    /// The folder with `ca.crt`, `api.crt`, `peer.crt` and `node-client.crt`, and their keys.
    #[arg(long, env = "TRIREME_PKI_DIR", value_name = "DIR")]
    pub pki_dir: PathBuf,
    /// The folder with the authority's key, where that is on this machine: then this master renews its own certificates.
    #[arg(long, env = "TRIREME_AUTHORITY_DIR", value_name = "DIR")]
    pub authority_dir: Option<PathBuf>,
    /// Where to serve the Kubernetes API. May be given more than once, or as a list.
    #[arg(long, env = "TRIREME_LISTEN_API", value_name = "ADDRESS", value_delimiter = ',', default_value = "0.0.0.0:6443")]
    pub listen_api: Vec<SocketAddr>,
    /// The API address that others are told.
    #[arg(long, env = "TRIREME_ADVERTISE_API", value_name = "HOST:PORT")]
    pub advertise_api: SocketAddr,
    /// Where to listen for the other masters.
    #[arg(long, env = "TRIREME_LISTEN_PEER", value_name = "ADDRESS", default_value = "0.0.0.0:2380")]
    pub listen_peer: SocketAddr,
    /// Where to serve the etcd v3 API. Clients are told the host of `--advertise-api` with this port.
    #[arg(long, env = "TRIREME_LISTEN_CLIENT", value_name = "ADDRESS", default_value = "0.0.0.0:2379")]
    pub listen_client: SocketAddr,
    /// The id, in hexadecimal, that `member add` gave this master. Only for one that joins a running cluster.
    #[arg(long, env = "TRIREME_MEMBER_ID", value_name = "ID")]
    pub member_id: Option<MemberId>,
    /// The addresses that Services get.
    #[arg(long, env = "TRIREME_SERVICE_CIDR", value_name = "CIDR", default_value = "10.96.0.0/12")]
    pub service_cidr: String,
    /// The addresses that pods get; each node is given a part of it.
    #[arg(long, env = "TRIREME_POD_CIDR", value_name = "CIDR", default_value = "10.244.0.0/16")]
    pub pod_cidr: String,
    /// How long a revision can still be read, and watched from, after the next one was written, in seconds.
    #[arg(long, env = "TRIREME_HISTORY_SECONDS", value_name = "SECONDS", default_value_t = 300,
          value_parser = clap::value_parser!(u64).range(..=MOST_SECONDS))]
    pub history_seconds: u64,
    /// How long a node may be silent before it counts as not ready, in seconds.
    #[arg(long, env = "TRIREME_NODE_GRACE_SECONDS", value_name = "SECONDS", default_value_t = 40,
          value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    pub node_grace_seconds: u64,
    /// After how many entries of the log a snapshot is taken and the log before it purged. For tests.
    #[arg(long, env = "TRIREME_SNAPSHOT_ENTRIES", value_name = "COUNT", hide = true,
          value_parser = clap::value_parser!(u64).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_entries: Option<u64>,
    /// How many entries of the log stay behind a snapshot. For tests.
    #[arg(long, env = "TRIREME_KEPT_ENTRIES", value_name = "COUNT", hide = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_entries: Option<u64>,
}

impl MasterSettings {
    /// The address that clients of the etcd API are told: where it is served or, when that is on every address, the API's host.
    /// `port` is the one that was bound.
    pub fn advertised_client(&self, port: u16) -> SocketAddr {
        let own = self.listen_client.ip();
        SocketAddr::new(if own.is_unspecified() { self.advertise_api.ip() } else { own }, port)
    }
}

/// A cluster's id, which is a part of its masters' DNS names.
pub fn cluster_id(text: &str) -> Result<String, String> {
    let wrong = trireme_api::names::is_dns1123_label(text);
    if wrong.is_empty() { Ok(text.to_owned()) } else { Err(wrong.join("; ")) }
}

/// The id of a member of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberId(pub u64);

impl std::str::FromStr for MemberId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        u64::from_str_radix(text, 16).map(Self).map_err(|_| format!("`{text}` is not a hexadecimal number of up to 16 digits"))
    }
}

impl std::fmt::Display for MemberId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl Serialize for MemberId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for MemberId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One master of a new cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMember {
    pub name: String,
    /// `host:port`.
    pub peer_address: String,
}

impl std::str::FromStr for InitialMember {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("`{text}` is not of the form name=host:port");
        let (name, peer_address) = text.split_once('=').ok_or_else(wanted)?;
        let (host, port) = peer_address.rsplit_once(':').ok_or_else(wanted)?;
        if name.is_empty() || host.is_empty() || port.parse::<u16>().is_err() {
            return Err(wanted());
        }
        Ok(Self { name: name.to_owned(), peer_address: peer_address.to_owned() })
    }
}

impl std::fmt::Display for InitialMember {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name, self.peer_address)
    }
}

impl Serialize for InitialMember {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What runs containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeChoice {
    /// `cri` if a runtime's socket answers, else `embedded` when root, else `hollow`.
    Auto,
    /// Real containers by Trireme itself; needs root.
    Embedded,
    /// containerd or CRI-O over its socket.
    Cri,
    /// Simulated pods.
    Hollow,
}

/// What `trireme node` runs with.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeSettings {
    /// This node's name, unique in the cluster.
    #[arg(long, env = "TRIREME_NAME", value_name = "NAME")]
    pub name: String,
    /// The availability zone that this node is in.
    #[arg(long, env = "TRIREME_ZONE", value_name = "ZONE")]
    pub zone: String,
    /// Where pods' volumes, logs and containers lie.
    #[arg(long, env = "TRIREME_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The masters' API addresses, `host:port`, separated by commas; the first that answers is used.
    #[arg(long, env = "TRIREME_MASTERS", value_name = "ADDRESSES", value_delimiter = ',', required = true)]
    pub masters: Vec<String>,
    /// The folder with `ca.crt`, `node.crt` and `node.key`.
    #[arg(long, env = "TRIREME_PKI_DIR", value_name = "DIR")]
    pub pki_dir: PathBuf,
    /// The folder with the authority's key, where that is on this machine: then this node renews its own certificate.
    #[arg(long, env = "TRIREME_AUTHORITY_DIR", value_name = "DIR")]
    pub authority_dir: Option<PathBuf>,
    /// The address under which masters and other nodes reach this node.
    #[arg(long, env = "TRIREME_ADDRESS", value_name = "IP")]
    pub address: IpAddr,
    /// The port of the agent's own API (logs).
    #[arg(long, env = "TRIREME_PORT", value_name = "PORT", default_value_t = 10250)]
    pub port: u16,
    /// What runs containers.
    #[arg(long, env = "TRIREME_RUNTIME", value_enum, default_value_t = RuntimeChoice::Auto)]
    pub runtime: RuntimeChoice,
    /// The socket of containerd or CRI-O.
    #[arg(long, env = "TRIREME_CRI_SOCKET", value_name = "SOCKET", default_value = "/run/containerd/containerd.sock")]
    pub cri_socket: PathBuf,
    /// The image store of the embedded runtime; nodes of one machine may share it [default: `images` in the data folder].
    #[arg(long, env = "TRIREME_IMAGE_DIR", value_name = "DIR")]
    pub image_dir: Option<PathBuf>,
    /// A folder of CNI configurations; without it the built-in bridge network is used.
    #[arg(long, env = "TRIREME_CNI_CONF_DIR", value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Labels for the Node, `key=value`, separated by commas.
    #[arg(long, env = "TRIREME_LABELS", value_name = "LABELS", value_delimiter = ',')]
    pub labels: Vec<NodeLabel>,
    /// How many pods the node takes.
    #[arg(long, env = "TRIREME_MAX_PODS", value_name = "COUNT", default_value_t = 110)]
    pub max_pods: u32,
    /// How little memory, space and so on may be left before the node counts as short of it and takes no more pods. A signal that is
    /// not named has no threshold.
    #[arg(long, env = "TRIREME_EVICTION_HARD", value_name = "SIGNAL<QUANTITY,...", default_value_t)]
    pub eviction_hard: EvictionThresholds,
    /// How often the node renews its Lease, in seconds.
    #[arg(long, env = "TRIREME_HEARTBEAT_SECONDS", value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    pub heartbeat_seconds: u64,
}

/// A label that a node is registered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLabel {
    pub key: String,
    pub value: String,
}

impl std::str::FromStr for NodeLabel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not of the form key=value"))?;
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

impl std::fmt::Display for NodeLabel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

impl Serialize for NodeLabel {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The command line with the settings of its `--config` file added, but for those that a flag or the environment gives: they win.
///
/// `command` is the clap command of the sub-command, which says what settings there are.
pub fn with_config_file(arguments: Vec<OsString>, command: &Command, depth: usize) -> Result<Vec<OsString>> {
    let Some(path) = config_path(&arguments) else { return Ok(arguments) };
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read the settings file {}", path.display()))?;
    let settings: BTreeMap<String, serde_json::Value> =
        serde_saphyr::from_str(&text).with_context(|| format!("{} is not a YAML file of settings", path.display()))?;
    let mut from_file = Vec::new();
    for (name, value) in settings {
        let known = command.get_arguments().find(|argument| argument.get_long() == Some(name.as_str()) && name != "config");
        let Some(argument) = known else { bail!("{} has an unknown setting `{name}`", path.display()) };
        // A list would be added to, not replaced.
        let (flag, prefix) = (format!("--{name}"), format!("--{name}="));
        let is_given = arguments.iter().any(|given| given == flag.as_str() || given.to_string_lossy().starts_with(&prefix));
        if is_given || argument.get_env().is_some_and(|variable| std::env::var_os(variable).is_some()) || value.is_null() {
            continue;
        }
        let text = flag_value(&value)
            .with_context(|| format!("{}: the setting `{name}` has a value of a wrong type", path.display()))?;
        from_file.push(OsString::from(format!("--{name}={text}")));
    }
    let (head, tail) = arguments.split_at(depth.min(arguments.len()));
    Ok(head.iter().cloned().chain(from_file).chain(tail.iter().cloned()).collect())
}

fn config_path(arguments: &[OsString]) -> Option<PathBuf> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if text == "--config" {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
    }
    std::env::var_os("TRIREME_CONFIG").map(PathBuf::from)
}

fn flag_value(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        serde_json::Value::Bool(flag) => Some(flag.to_string()),
        serde_json::Value::Array(items) => items.iter().map(flag_value).collect::<Option<Vec<_>>>().map(|items| items.join(",")),
        serde_json::Value::Object(entries) => {
            let pairs = entries.iter().map(|(key, value)| flag_value(value).map(|value| format!("{key}={value}")));
            pairs.collect::<Option<Vec<_>>>().map(|pairs| pairs.join(","))
        }
        serde_json::Value::Null => None,
    }
}

/// The settings as a YAML file that `--config` takes.
pub fn to_yaml(settings: &impl Serialize, log: &impl Serialize) -> Result<String> {
    let mut all = serde_json::to_value(settings)?;
    if let (Some(all), serde_json::Value::Object(log)) = (all.as_object_mut(), serde_json::to_value(log)?) {
        all.extend(log);
    }
    Ok(serde_saphyr::to_string(&all)?)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;

    /// A command line of the master's settings alone.
    #[derive(Debug, Parser)]
    struct Probe {
        #[arg(long)]
        config: Option<PathBuf>,
        #[command(flatten)]
        settings: MasterSettings,
    }

    const FILE: &str = "name: a\nzone: from-file\ndata-dir: /d\ncluster-id: c\npki-dir: /p\nadvertise-api: 10.0.0.1:6443\n\
                        initial-members: [a=10.0.0.1:2380, b=10.0.0.2:2380]\nhistory-seconds: 60\n";

    fn parse(file: &str, flags: &[&str]) -> Result<MasterSettings> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("master.yaml");
        std::fs::write(&path, file)?;
        let mut arguments: Vec<OsString> = vec!["probe".into(), "--config".into(), path.into()];
        arguments.extend(flags.iter().map(OsString::from));
        let command = Probe::command().args_override_self(true);
        let arguments = with_config_file(arguments, &command, 1)?;
        Ok(Probe::from_arg_matches(&command.try_get_matches_from(arguments)?)?.settings)
    }

    #[test]
    fn a_file_gives_settings_and_flags_win_over_it() {
        let settings = parse(FILE, &["--zone", "from-flag"]).unwrap();
        assert_eq!(settings.zone, "from-flag");
        assert_eq!(settings.history_seconds, 60);
        assert_eq!(settings.initial_members.len(), 2);
        assert_eq!(settings.initial_members[1].peer_address, "10.0.0.2:2380");
        assert_eq!(settings.service_cidr, "10.96.0.0/12");
    }

    #[test]
    fn clients_are_told_where_the_etcd_api_is_served() {
        let everywhere = parse(FILE, &[]).unwrap();
        assert_eq!(everywhere.advertised_client(2379), "10.0.0.1:2379".parse().unwrap());
        let loopback = parse(FILE, &["--listen-client", "127.0.0.1:6744"]).unwrap();
        assert_eq!(loopback.advertised_client(6744), "127.0.0.1:6744".parse().unwrap());
    }

    #[test]
    fn a_list_that_a_flag_gives_replaces_the_files() {
        let file = format!("{FILE}listen-api: [0.0.0.0:6443]\n");
        for flag in [&["--listen-api", "10.0.1.10:6443"][..], &["--listen-api=10.0.1.10:6443"]] {
            let settings = parse(&file, flag).unwrap();
            assert_eq!(settings.listen_api, ["10.0.1.10:6443".parse().unwrap()]);
        }
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let settings = parse(FILE, &[]).unwrap();
        let printed = to_yaml(&settings, &serde_json::json!({})).unwrap();
        let again = parse(&printed, &[]).unwrap();
        assert_eq!(to_yaml(&again, &serde_json::json!({})).unwrap(), printed);
    }

    #[test]
    fn mistakes_in_a_file_are_named() {
        let cases = [
            ("zoen: x\n", "unknown setting `zoen`"),
            ("zone: {a: {b: [null]}}\n", "`zone` has a value of a wrong type"),
            ("- a\n", "not a YAML file of settings"),
        ];
        for (line, expected) in cases {
            let error = parse(line, &[]).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{line}: {error:#}");
        }
        let error = parse(&FILE.replace("b=10.0.0.2:2380", "b"), &[]).unwrap_err();
        assert!(error.to_string().contains("not of the form name=host:port"), "{error}");
    }
}
