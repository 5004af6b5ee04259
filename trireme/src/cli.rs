//! The command line: what each sub-command takes. What it does is in the module of its name.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    bench::BenchArgs,
    local::up::UpArgs,
    logging::LogArgs,
    members::{LeaderArgs, MemberArgs},
    pki::{LifetimeArgs, certs::CertsArgs},
    settings::{MasterSettings, NodeSettings},
    snapshot::SnapshotArgs,
    store::StoreArgs,
};

/// The longest time that a flag may name, in seconds: a year. Clocks cannot be asked for the end of a much longer one.
pub const MOST_SECONDS: u64 = 365 * 24 * 3600;

/// A highly available, multi-zone, Kubernetes-compatible cluster in one binary.
#[derive(Debug, Parser)]
#[command(name = "trireme", disable_version_flag = true, args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a whole cluster on this machine, or resume one.
    Up(UpArgs),
    /// Stop the local cluster.
    Down(DownArgs),
    /// Show every master and node of the local cluster.
    Status(StatusArgs),
    /// Stop one process of the local cluster, or every process of one zone, in good order (SIGTERM).
    Stop(ProcessArgs),
    /// Start a process of the local cluster, or every process of one zone, that is not running.
    Start(ProcessArgs),
    /// Kill one process of the local cluster (SIGKILL), or a whole zone, containers too, as if its power was cut.
    Kill(ProcessArgs),
    /// Freeze one process of the local cluster, or every process of one zone (SIGSTOP).
    Pause(ProcessArgs),
    /// Let a frozen process, or every frozen process of one zone, go on (SIGCONT).
    Resume(ProcessArgs),
    /// Show and change the group of masters.
    Member(MemberArgs),
    /// Which master leads.
    Leader(LeaderArgs),
    /// Container images of the local nodes.
    Image(ImageArgs),
    /// The whole store as one file: save it, look at it, begin a new cluster with it.
    Snapshot(SnapshotArgs),
    /// What the masters hold: compare it, check it on the disk, compact its history.
    Store(StoreArgs),
    /// Run one master: a member of the Raft group that serves the Kubernetes API.
    #[command(args_override_self = true)]
    Master(MasterArgs),
    /// Run one node agent: the pods of one machine.
    #[command(args_override_self = true)]
    Node(NodeArgs),
    /// End the containers that an agent left running (what `down` does for each node).
    #[command(hide = true)]
    StopPods(NodeArgs),
    /// Print the settings that a master or a node would run with, as YAML.
    Config(ConfigArgs),
    /// Make the keys and certificates of a cluster on real machines.
    Pki(PkiArgs),
    /// Show certificates, or renew them.
    Certs(CertsArgs),
    /// Measure a running cluster.
    Bench(BenchArgs),
    /// Print the version.
    Version(VersionArgs),
    /// Keep the processes of a local cluster (what `up --detach` leaves behind).
    #[command(hide = true)]
    Supervise(DataDirArgs),
}

/// Which local cluster a command is about.
#[derive(Clone, Debug, Args)]
pub struct DataDirArgs {
    /// The cluster's folder [default: /var/lib/trireme for root, else ~/.local/share/trireme].
    #[arg(long, env = "TRIREME_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DownArgs {
    #[command(flatten)]
    pub folder: DataDirArgs,
    /// Delete the cluster's folder, with all its data.
    #[arg(long)]
    pub purge: bool,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub folder: DataDirArgs,
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
    /// Print the variables that let etcdctl use this cluster's store, as shell commands: `eval "$(trireme status --etcdctl-env)"`.
    #[arg(long, conflicts_with = "output")]
    pub etcdctl_env: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// A master (`master-1`), a node (`node-1`) or a zone (`zone-a`).
    pub name: String,
    #[command(flatten)]
    pub folder: DataDirArgs,
}

#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Put an image on every local node: a docker or OCI archive, or an OCI layout folder.
    Load(ImageLoadArgs),
}

#[derive(Debug, Args)]
pub struct ImageLoadArgs {
    /// The archive or folder.
    pub file: PathBuf,
    /// The reference that pods will name the image by.
    #[arg(long, value_name = "REF")]
    pub name: String,
    #[command(flatten)]
    pub folder: DataDirArgs,
}

#[derive(Debug, Args)]
pub struct MasterArgs {
    /// Read settings from a YAML file whose keys are the names of the flags. Flags and the environment win over it.
    #[arg(long, env = "TRIREME_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub settings: MasterSettings,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Read settings from a YAML file whose keys are the names of the flags. Flags and the environment win over it.
    #[arg(long, env = "TRIREME_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub settings: NodeSettings,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// The effective settings of `trireme master` with these flags.
    #[command(args_override_self = true)]
    Master(MasterArgs),
    /// The effective settings of `trireme node` with these flags.
    #[command(args_override_self = true)]
    Node(NodeArgs),
}

#[derive(Debug, Args)]
pub struct PkiArgs {
    #[command(subcommand)]
    pub command: PkiCommand,
}

#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make the certificates of one master, and the cluster's authority if the folder has none yet.
    Master(PkiMasterArgs),
    /// Make the certificate of one node.
    Node(PkiNodeArgs),
    /// Make the administrator's kubeconfig.
    Admin(PkiAdminArgs),
}

#[derive(Debug, Args)]
pub struct PkiMasterArgs {
    /// The master's name.
    pub name: String,
    /// The folder that holds the authority (`ca.crt`, `ca.key`); the new certificates go to a folder of that name in it.
    #[arg(long, value_name = "DIR")]
    pub authority_dir: PathBuf,
    /// The cluster's id, as `trireme master` will be given it.
    #[arg(long, value_name = "ID", value_parser = crate::settings::cluster_id)]
    pub cluster_id: String,
    /// An IP address under which others reach it. May be given more than once.
    #[arg(long = "address", required = true, value_name = "IP")]
    pub addresses: Vec<IpAddr>,
    /// A DNS name under which others reach it. May be given more than once.
    #[arg(long = "dns-name", value_name = "NAME")]
    pub dns_names: Vec<String>,
    #[command(flatten)]
    pub lifetime: LifetimeArgs,
}

#[derive(Debug, Args)]
pub struct PkiNodeArgs {
    /// The node's name.
    pub name: String,
    /// The folder that holds the authority; the new certificate goes to a folder of that name in it.
    #[arg(long, value_name = "DIR")]
    pub authority_dir: PathBuf,
    /// An IP address under which others reach it. May be given more than once.
    #[arg(long = "address", required = true, value_name = "IP")]
    pub addresses: Vec<IpAddr>,
    #[command(flatten)]
    pub lifetime: LifetimeArgs,
}

#[derive(Debug, Args)]
pub struct PkiAdminArgs {
    /// The folder that holds the authority.
    #[arg(long, value_name = "DIR")]
    pub authority_dir: PathBuf,
    /// The API's URL, `https://host:port`.
    #[arg(long, value_name = "URL")]
    pub server: String,
    /// Where to write the kubeconfig. What a file that is there holds besides stays.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub lifetime: LifetimeArgs,
}

#[derive(Debug, Args)]
pub struct VersionArgs {
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_no_clock_can_count_are_refused() {
        let master = "master --name m --zone z --data-dir d --pki-dir p --cluster-id c --initial-members m=a:1 --advertise-api 127.0.0.1:1";
        let node = "node --name n --zone z --data-dir d --pki-dir p --masters m:1 --address 127.0.0.1";
        let bench = "bench store --endpoints https://m:1 --cacert c --cert c --key k";
        for (command, flag) in [
            ("member add", "--timeout-seconds"),
            ("member replace m", "--timeout-seconds"),
            ("up", "--node-grace-seconds"),
            ("up", "--certificate-seconds"),
            ("snapshot restore f --data-dir d", "--node-grace-seconds"),
            (master, "--node-grace-seconds"),
            (master, "--history-seconds"),
            (node, "--heartbeat-seconds"),
            (bench, "--seconds"),
        ] {
            let parse = |seconds: u64| {
                let line = format!("trireme {command} {flag} {seconds}");
                Cli::try_parse_from(line.split(' ')).map(drop).map_err(|error| error.to_string())
            };
            assert_eq!(parse(60), Ok(()), "{command} {flag}");
            let refused = parse(u64::MAX).expect_err(flag);
            assert!(refused.contains("is not in") && refused.contains(flag), "{refused}");
        }
    }
}
