//! Three masters on this machine, each a process of its own that may die.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use tonic::Status;

use crate::{client::Client, master::Master, wait::until};

const MASTERS: usize = 3;
const CLUSTER_ID: &str = "jepsen";
/// Where the search for free ports begins. Below the range from which the system takes the ports of outgoing connections, so that the port of a
/// dead master stays free.
const PORTS: std::ops::Range<u16> = 12_000..20_000;
/// The log is snapshotted and purged after few entries, so that the points of that are reached soon.
const SNAPSHOT_ENTRIES: u64 = 40;
const KEPT_ENTRIES: u64 = 10;
/// A member that is this many entries behind can be brought back by a snapshot alone.
const OUT_OF_REACH: u64 = 4 * SNAPSHOT_ENTRIES;

/// A cluster in a folder of its own, which is deleted with it.
pub struct Cluster {
    pub masters: Vec<Master>,
    clients: Vec<Client>,
    _folder: TempDir,
}

impl Cluster {
    /// Describes three masters and makes their certificates; none runs yet.
    ///
    /// # Panics
    /// When the binary or the machine does not let it.
    pub fn new() -> Self {
        // Whoever was first has done the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let binary = binary();
        let folder = tempfile::Builder::new().prefix("trireme-jepsen-").tempdir().expect("a temporary folder can be made");
        let pki = folder.path().join("pki");
        let ports = free_ports(MASTERS * 3);
        let names: Vec<String> = (1..=MASTERS).map(|number| format!("master-{number}")).collect();
        let authority = path_text(&pki);
        for name in &names {
            let flags = ["--authority-dir", &authority, "--cluster-id", CLUSTER_ID, "--address", "127.0.0.1"];
            run(&binary, &[&["pki", "master", name], flags.as_slice()].concat());
        }
        let kubeconfig = path_text(&folder.path().join("kubeconfig"));
        let server = format!("https://127.0.0.1:{}", ports[0]);
        run(&binary, &["pki", "admin", "--authority-dir", &authority, "--server", &server, "--output", &kubeconfig]);
        let members = names.iter().zip(ports.chunks(3)).map(|(name, ports)| format!("{name}=127.0.0.1:{}", ports[1]));
        let members = members.collect::<Vec<_>>().join(",");
        let masters: Vec<Master> = names
            .into_iter()
            .zip(ports.chunks(3))
            .map(|(name, ports)| {
                let address = |port: u16| format!("127.0.0.1:{port}");
                let settings = [
                    ("--name", name.clone()),
                    ("--zone", format!("zone-of-{name}")),
                    ("--data-dir", path_text(&folder.path().join(&name))),
                    ("--cluster-id", CLUSTER_ID.to_owned()),
                    ("--initial-members", members.clone()),
                    ("--pki-dir", path_text(&pki.join(&name))),
                    ("--listen-api", address(ports[0])),
                    ("--advertise-api", address(ports[0])),
                    ("--listen-peer", address(ports[1])),
                    ("--listen-client", address(ports[2])),
                    ("--snapshot-entries", SNAPSHOT_ENTRIES.to_string()),
                    ("--kept-entries", KEPT_ENTRIES.to_string()),
                ];
                let arguments = settings.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
                let log = folder.path().join(format!("{name}.log"));
                Master::new(name, binary.clone(), arguments, log, ports[2], ports[1])
            })
            .collect();
        let clients = masters.iter().map(|master| Client::new(master.client_port, &pki)).collect();
        Self { masters, clients, _folder: folder }
    }

    /// Starts all masters and waits until one leads.
    pub async fn start(&mut self) {
        for master in &mut self.masters {
            master.start(None);
        }
        self.leader().await;
    }

    pub fn all(&self) -> std::ops::Range<usize> {
        0..self.masters.len()
    }

    /// The masters other than `one`.
    pub fn others(&self, one: usize) -> Vec<usize> {
        self.all().filter(|other| *other != one).collect()
    }

    pub fn client(&self, master: usize) -> &Client {
        &self.clients[master]
    }

    /// Clients of every master, `each` of them for each.
    pub fn clients(&self, each: usize) -> Vec<Client> {
        self.clients.iter().flat_map(|client| std::iter::repeat_n(client.clone(), each)).collect()
    }

    /// Waits until all running masters agree on one of them that leads; gives its position.
    pub async fn leader(&self) -> usize {
        until("the running masters agree on a leader", || async {
            let mut ids = Vec::new();
            let mut leaders = Vec::new();
            for position in self.all().filter(|position| self.masters[*position].is_running()) {
                let status = self.clients[position].status().await?;
                ids.push((position, status.header.map_or(0, |header| header.member_id)));
                leaders.push((status.leader, status.raft_term));
            }
            leaders.dedup();
            let [(leader, _)] = leaders[..] else { return Err(Status::unavailable(format!("{leaders:?}"))) };
            let known = ids.iter().find(|(_, id)| *id == leader);
            known.map(|(position, _)| *position).ok_or_else(|| Status::unavailable("the leader does not run"))
        })
        .await
    }

    /// A master's id in the group.
    pub async fn member_id(&self, master: usize) -> u64 {
        until("a master tells its id", || async {
            let header = self.clients[master].status().await?.header;
            header.map(|header| header.member_id).ok_or_else(|| Status::internal("no header"))
        })
        .await
    }

    /// Waits until a master has applied `revision`.
    pub async fn wait_revision(&self, master: usize, revision: i64) {
        until("a master has caught up", || async {
            match self.clients[master].own_revision().await {
                Ok(own) if own >= revision => Ok(()),
                other => Err(format!("{}: {other:?}, wanted {revision}", self.masters[master].name)),
            }
        })
        .await;
    }

    /// The group's revision, asked through `master`.
    pub async fn revision(&self, master: usize) -> i64 {
        until("a linearizable read", || self.clients[master].revision()).await
    }

    /// How many entries a master knows to be committed.
    async fn committed(&self, master: usize) -> u64 {
        until("a master's status", || async { self.clients[master].status().await.map(|status| status.raft_index) }).await
    }

    /// Waits until the log has grown so far, on `master`, that who is away since the call began needs a snapshot. Something has to write.
    pub async fn grow_out_of_reach(&self, master: usize) {
        let wanted = self.committed(master).await + OUT_OF_REACH;
        until("the log grows", || async {
            let now = self.committed(master).await;
            if now >= wanted { Ok(()) } else { Err(format!("{now} of {wanted}")) }
        })
        .await;
    }

    /// The ends of all logs, for a test that has failed.
    pub fn print_logs(&self) {
        for master in &self.masters {
            eprintln!("--- {}\n{}", master.name, master.last_words());
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}

/// The binary under test: `TRIREME_BIN`, else `bin/trireme` of the workspace.
///
/// # Panics
/// When there is none.
fn binary() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin/trireme");
    let binary = std::env::var_os("TRIREME_BIN").map_or(built, PathBuf::from);
    assert!(binary.is_file(), "{} is not there: build it with `make build`, or name one in TRIREME_BIN", binary.display());
    binary
}

fn run(binary: &Path, arguments: &[&str]) {
    let output = Command::new(binary).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {}: {error}", binary.display()));
    assert!(output.status.success(), "trireme {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
}

fn path_text(path: &Path) -> String {
    path.to_str().expect("the temporary folder's path is UTF-8").to_owned()
}

/// So many ports on which nobody listens.
fn free_ports(count: usize) -> Vec<u16> {
    // Processes that search at the same time begin at different places.
    let skip = usize::from(std::process::id() as u16 % 500) * 16;
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let ports: Vec<u16> = PORTS.cycle().skip(skip).take(PORTS.len()).filter(is_free).take(count).collect();
    assert_eq!(ports.len(), count, "this machine has too few free ports");
    ports
}
