//! `trireme status`: every master and node of the local cluster.

use std::{collections::BTreeMap, io::IsTerminal, path::Path, sync::Arc, time::Duration};

use anyhow::Result;
use comfy_table::{Table, presets};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};
use rustls::ClientConfig;
use serde::Serialize;
use serde_json::Value;

use super::{
    control::{self, Process, Request},
    layout::Layout,
    process::{ProcessId, ProcessState},
    spec::{ClusterSpec, MasterSpec},
};
use crate::{
    cli::{OutputFormat, StatusArgs},
    client, https, output,
    pki::{self, TlsPaths},
    tls,
};

/// How long a master, or the API, may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Status {
    masters: Vec<MasterStatus>,
    nodes: Vec<NodeStatus>,
}

#[derive(Serialize)]
struct MasterStatus {
    name: String,
    zone: String,
    state: ProcessState,
    pid: Option<i32>,
    api: String,
    /// What the master says of itself; absent when it does not answer.
    #[serde(flatten)]
    member: Option<Member>,
}

/// The part of a master's own status that is shown.
#[derive(Serialize)]
struct Member {
    id: String,
    role: String,
    term: u64,
    last_log: Option<u64>,
    committed: Option<u64>,
    applied: Option<u64>,
    revision: Option<u64>,
    /// Why its data are not, or may not be, those of the other masters.
    #[serde(skip_serializing_if = "Option::is_none")]
    corrupt: Option<String>,
    /// Whether it does not serve for that reason.
    diverged: bool,
}

#[derive(Serialize)]
struct NodeStatus {
    name: String,
    zone: String,
    state: ProcessState,
    pid: Option<i32>,
    /// The Node's Ready condition: `True`, `False`, `Unknown`; absent when the API does not answer.
    ready: Option<String>,
}

pub async fn run(args: StatusArgs) -> Result<()> {
    let layout = Layout::find(args.folder.data_dir.as_deref())?;
    let spec = ClusterSpec::load_existing(&layout)?;
    if args.etcdctl_env {
        output::result(format_args!("{}", etcdctl_env(&spec, &pki::admin_paths(&layout.pki()))));
        return Ok(());
    }
    let status = collect(&layout, &spec).await?;
    match args.output {
        OutputFormat::Json => say!("{}", serde_json::to_string_pretty(&status)?),
        OutputFormat::Table => print(&status),
    }
    Ok(())
}

/// Shell commands that set what etcdctl needs.
fn etcdctl_env(spec: &ClusterSpec, admin: &TlsPaths) -> String {
    let endpoints: Vec<String> = spec.masters.iter().map(|master| format!("https://{}", spec.etcd_address(master))).collect();
    let path = |path: &Path| path.display().to_string();
    let variables = [
        ("API", "3".to_owned()),
        ("ENDPOINTS", endpoints.join(",")),
        ("CACERT", path(&admin.ca)),
        ("CERT", path(&admin.certificate)),
        ("KEY", path(&admin.key)),
    ];
    let lines = variables.iter().map(|(name, value)| format!("export ETCDCTL_{name}={}\n", quoted(value)));
    lines.collect()
}

/// A word that the shell takes as it is.
fn quoted(word: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_./:,".contains(character);
    if word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

async fn collect(layout: &Layout, spec: &ClusterSpec) -> Result<Status> {
    let processes: BTreeMap<String, Process> =
        processes(layout, spec).await?.into_iter().map(|process| (process.name.clone(), process)).collect();
    let process = |name: &str| processes.get(name).map_or((ProcessState::Stopped, None), |process| (process.state, process.pid));
    let admin = pki::admin_paths(&layout.pki());
    let probing = Arc::new(tls::client(&admin)?);
    let asked = spec.masters.iter().map(|master| ask(master, &probing));
    let answers = futures::future::join_all(asked).await;
    let masters = spec.masters.iter().zip(answers).map(|(master, member)| {
        let (state, pid) = process(&master.name);
        MasterStatus { name: master.name.clone(), zone: master.zone.clone(), state, pid, api: master.api.to_string(), member }
    });
    let ready = readiness(spec, tls::client(&admin)?).await;
    let nodes = spec.nodes.iter().map(|node| {
        let (state, pid) = process(&node.name);
        NodeStatus { name: node.name.clone(), zone: node.zone.clone(), state, pid, ready: ready.get(&node.name).cloned() }
    });
    Ok(Status { masters: masters.collect(), nodes: nodes.collect() })
}

/// From the supervisor, or from the pid files when none runs.
async fn processes(layout: &Layout, spec: &ClusterSpec) -> Result<Vec<Process>> {
    if let Some(processes) = control::ask(layout, &Request::List).await? {
        return Ok(processes);
    }
    let found = spec.process_names().filter_map(|name| {
        let id = ProcessId::load(&layout.process_pid(name))?;
        let state = id.state();
        Some(Process { name: name.to_owned(), state, pid: (state != ProcessState::Stopped).then_some(id.pid()) })
    });
    Ok(found.collect())
}

async fn ask(master: &MasterSpec, tls: &Arc<ClientConfig>) -> Option<Member> {
    let (_, body) = https::get(master.api, tls, "/trireme/v1/status", ANSWER_TIMEOUT).await.ok()?;
    let status: Value = serde_json::from_slice(&body).ok()?;
    let number = |field: &str| status[field].as_u64();
    Some(Member {
        id: format!("{:x}", number("node_id")?),
        role: status["role"].as_str()?.to_owned(),
        term: number("term")?,
        last_log: number("last_log"),
        committed: number("committed"),
        applied: number("applied"),
        revision: number("revision"),
        corrupt: status["corrupt"].as_str().map(str::to_owned),
        diverged: status["diverged"].as_bool().unwrap_or(false),
    })
}

/// Each Node's Ready condition; empty when the API does not answer.
async fn readiness(spec: &ClusterSpec, tls: ClientConfig) -> BTreeMap<String, String> {
    let masters = spec.masters.iter().map(|master| master.api.to_string()).collect();
    let Ok(client) = client::connect(masters, tls) else { return BTreeMap::new() };
    let nodes: Api<Node> = Api::all(client);
    let listed = tokio::time::timeout(ANSWER_TIMEOUT, nodes.list(&ListParams::default())).await;
    let Ok(Ok(listed)) = listed else { return BTreeMap::new() };
    let conditions = listed.into_iter().filter_map(|node| {
        let conditions = node.status?.conditions?;
        let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready")?;
        Some((node.metadata.name?, ready.status))
    });
    conditions.collect()
}

fn print(status: &Status) {
    let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
    let pid = |pid: Option<i32>| pid.map_or("-".to_owned(), |pid| pid.to_string());
    let state = |state: ProcessState| format!("{state:?}").to_lowercase();
    let mut masters = table(["MASTER", "ID", "ZONE", "STATE", "ROLE", "TERM", "LAST LOG", "COMMITTED", "APPLIED", "API", "PID"]);
    for master in &status.masters {
        let member = master.member.as_ref();
        masters.add_row([
            master.name.clone(),
            member.map_or("-".to_owned(), |member| member.id.clone()),
            master.zone.clone(),
            state(master.state),
            member.map_or("-".to_owned(), |member| member.role.clone()),
            number(member.map(|member| member.term)),
            number(member.and_then(|member| member.last_log)),
            number(member.and_then(|member| member.committed)),
            number(member.and_then(|member| member.applied)),
            master.api.clone(),
            pid(master.pid),
        ]);
    }
    let mut nodes = table(["NODE", "ZONE", "STATE", "READY", "PID"]);
    for node in &status.nodes {
        nodes.add_row([
            node.name.clone(),
            node.zone.clone(),
            state(node.state),
            node.ready.clone().unwrap_or_else(|| "-".to_owned()),
            pid(node.pid),
        ]);
    }
    say!("{masters}\n\n{nodes}");
    for (master, member) in status.masters.iter().filter_map(|master| Some((master, master.member.as_ref()?))) {
        if let Some(reason) = &member.corrupt {
            let serves = if member.diverged { " does not serve" } else { "'s data may be wrong" };
            say!("\n{}{serves}: {reason}", master.name);
        }
    }
}

fn table<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    if !std::io::stdout().is_terminal() {
        table.set_width(u16::MAX);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        local::spec::{NetworkMode, Wishes},
        settings::RuntimeChoice,
    };

    #[test]
    fn etcdctl_is_told_every_master_and_the_administrators_certificate() {
        let wishes = Wishes {
            masters: 2,
            nodes: 0,
            zones: vec!["zone-a".into()],
            runtime: RuntimeChoice::Hollow,
            port_base: 6443,
            network: NetworkMode::Shared,
            node_grace_seconds: None,
            certificate_lifetime: None,
        };
        let spec = ClusterSpec::new(&wishes, "0123456789".into(), 0);
        let folder = Path::new("/a folder/it's");
        let expected = concat!(
            "export ETCDCTL_API=3\n",
            "export ETCDCTL_ENDPOINTS=https://127.0.0.1:6744,https://127.0.0.1:6745\n",
            "export ETCDCTL_CACERT='/a folder/it'\\''s/ca.crt'\n",
            "export ETCDCTL_CERT='/a folder/it'\\''s/admin.crt'\n",
            "export ETCDCTL_KEY='/a folder/it'\\''s/admin.key'\n",
        );
        assert_eq!(etcdctl_env(&spec, &pki::admin_paths(folder)), expected);
    }
}
