//! `trireme certs`: what certificates there are, how long they last, and new ones in their place.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    Authority, Certificate, KeyFolder, Lifetime, LifetimeArgs, read_identity,
    renew::{Renewal, Renewed, Which},
    write_private,
};
use crate::{
    cli::{DataDirArgs, OutputFormat},
    local::{certificates, kubeconfig, layout::Layout, spec::ClusterSpec},
};

const DAY_SECONDS: i64 = 24 * 3600;
/// The end of an authority is told so long before: it cannot be renewed without new certificates for everybody.
const AUTHORITY_WARNING_DAYS: i64 = 365;

#[derive(Debug, Args)]
pub struct CertsArgs {
    #[command(subcommand)]
    pub command: CertsCommand,
}

#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Show every certificate: of the local cluster, or of a folder.
    Status(StatusArgs),
    /// Make new certificates in place of those that are there, with the same names and addresses. Running processes take them over.
    Renew(RenewArgs),
}

/// Which certificates are meant.
#[derive(Debug, Args)]
pub struct WhereArgs {
    #[command(flatten)]
    pub local: DataDirArgs,
    /// A folder of certificates, and of folders of them, on real machines; instead of a local cluster.
    #[arg(long, value_name = "DIR", conflicts_with = "data_dir")]
    pub pki_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub place: WhereArgs,
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

#[derive(Debug, Args)]
pub struct RenewArgs {
    /// Whose certificates: masters, nodes, `admin` [default: everybody's].
    pub names: Vec<String>,
    #[command(flatten)]
    pub place: WhereArgs,
    /// The folder with the authority's key, for `--pki-dir` [default: that folder].
    #[arg(long, value_name = "DIR", requires = "pki_dir")]
    pub authority_dir: Option<PathBuf>,
    /// Only those with less than a third of their time left.
    #[arg(long)]
    pub due: bool,
    /// A kubeconfig of the administrator that gets the new certificate, for `--pki-dir`; a local cluster's own always does.
    #[arg(long, value_name = "FILE", requires = "pki_dir")]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub lifetime: LifetimeArgs,
}

/// What is to be said of one certificate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    file: PathBuf,
    subject: String,
    /// DNS names and addresses that it is valid for.
    names: Vec<String>,
    not_before: String,
    not_after: String,
    /// Whole days; negative when its time is over.
    days_left: i64,
    seconds_left: i64,
    authority: String,
    key: KeyState,
    /// What is wrong with it, or soon will be.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum KeyState {
    Fits,
    /// There is none of that name: as it should be for a copy of the authority's certificate.
    Absent,
    DoesNotFit,
}

pub fn run(args: &CertsArgs, now: Timestamp) -> Result<()> {
    match &args.command {
        CertsCommand::Status(args) => status(args, now),
        CertsCommand::Renew(args) => renew(args, now),
    }
}

fn local(args: &DataDirArgs) -> Result<(Layout, ClusterSpec)> {
    let layout = Layout::find(args.data_dir.as_deref())?;
    let spec = ClusterSpec::load_existing(&layout)?;
    Ok((layout, spec))
}

/// Whose certificates are meant, and where they lie.
fn folders(args: &WhereArgs) -> Result<Vec<(String, PathBuf)>> {
    let Some(root) = &args.pki_dir else {
        let (layout, spec) = local(&args.local)?;
        return Ok(certificates::folders(&layout, &spec));
    };
    let mut folders = vec![("admin".to_owned(), root.clone())];
    for entry in std::fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", root.display()))?.path();
        if path.is_dir() && path.join("ca.crt").exists() {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            folders.push((name, path));
        }
    }
    folders.sort_by(|left, right| left.1.cmp(&right.1));
    Ok(folders)
}

fn status(args: &StatusArgs, now: Timestamp) -> Result<()> {
    let mut rows = Vec::new();
    for (_, folder) in folders(&args.place)? {
        let files = KeyFolder::new(&folder);
        let ca = files.certificate("ca");
        let authority = std::fs::read_to_string(&ca).with_context(|| format!("cannot read {}", ca.display()))?;
        let authority = Certificate::parse(&authority).with_context(|| format!("{} is no certificate", ca.display()))?;
        let names = std::iter::once("ca".to_owned()).chain(files.names()?);
        for name in names {
            rows.push(row(&files, &name, &authority, now)?);
        }
    }
    match args.output {
        OutputFormat::Json => say!("{}", serde_json::to_string_pretty(&rows)?),
        OutputFormat::Table => print(&rows),
    }
    Ok(())
}

fn row(files: &KeyFolder, name: &str, authority: &Certificate, now: Timestamp) -> Result<Row> {
    let (file, key_file) = (files.certificate(name), files.key(name));
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let certificate = Certificate::parse(&text).with_context(|| format!("{} is no certificate", file.display()))?;
    let key = match read_identity(&file, &key_file) {
        Ok(_) => KeyState::Fits,
        Err(_) if !key_file.exists() => KeyState::Absent,
        Err(_) => KeyState::DoesNotFit,
    };
    let is_authority = name == "ca";
    let seconds_left = certificate.left_seconds(now);
    let is_signed = is_authority || certificate.is_signed_by(authority);
    let warning = if !is_signed {
        Some("the ca.crt beside it has not signed it".to_owned())
    } else if key == KeyState::DoesNotFit || (key == KeyState::Absent && !is_authority) {
        Some("its key is missing or another certificate's".to_owned())
    } else if seconds_left <= 0 {
        Some("its time is over".to_owned())
    } else if is_authority && seconds_left < AUTHORITY_WARNING_DAYS * DAY_SECONDS {
        Some("the authority ends soon, and every certificate with it: make a new authority and new certificates".to_owned())
    } else if !is_authority && certificate.is_due(now) {
        Some("it is due to be renewed".to_owned())
    } else {
        None
    };
    let addresses = certificate.subject.addresses.iter().map(ToString::to_string);
    Ok(Row {
        subject: certificate.subject_text.clone(),
        names: certificate.subject.dns_names.iter().cloned().chain(addresses).collect(),
        not_before: certificate.not_before.to_string(),
        not_after: certificate.not_after.to_string(),
        days_left: seconds_left.div_euclid(DAY_SECONDS),
        seconds_left,
        authority: certificate.issuer_text.clone(),
        key,
        warning,
        file,
    })
}

fn print(rows: &[Row]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["FILE", "SUBJECT", "NOT AFTER", "DAYS LEFT", "AUTHORITY", "KEY", "NAMES AND ADDRESSES"]);
    if !std::io::stdout().is_terminal() {
        table.set_width(u16::MAX);
    }
    for row in rows {
        let key = match row.key {
            KeyState::Fits => "fits",
            KeyState::Absent => "-",
            KeyState::DoesNotFit => "does not fit",
        };
        table.add_row([
            row.file.display().to_string(),
            row.subject.clone(),
            row.not_after.clone(),
            row.days_left.to_string(),
            row.authority.clone(),
            key.to_owned(),
            row.names.join(","),
        ]);
    }
    say!("{table}");
    for row in rows {
        if let Some(warning) = &row.warning {
            remark!("{}: {warning}", row.file.display());
        }
    }
}

fn renew(args: &RenewArgs, now: Timestamp) -> Result<()> {
    let known = folders(&args.place)?;
    if let Some(stranger) = args.names.iter().find(|name| known.iter().all(|(owner, _)| owner != *name)) {
        let owners: Vec<&str> = known.iter().map(|(owner, _)| owner.as_str()).collect();
        bail!("there are no certificates of `{stranger}`; there are those of {}", owners.join(", "));
    }
    let which = if args.due { Which::Due } else { Which::All };
    let lifetime = args.lifetime.lifetime();
    let renewed = match &args.place.pki_dir {
        None => {
            let (layout, spec) = local(&args.place.local)?;
            certificates::renew(&layout, &spec, &args.names, which, lifetime, now)?
        }
        Some(root) => renew_in(args, root, &known, which, lifetime, now)?,
    };
    for path in &renewed.files {
        say!("renewed {}", path.display());
    }
    if renewed.files.is_empty() && renewed.failures.is_empty() {
        say!("nothing is due");
    }
    if !renewed.failures.is_empty() {
        bail!("{}", renewed.failures.join("\n"));
    }
    Ok(())
}

fn renew_in(
    args: &RenewArgs,
    root: &Path,
    known: &[(String, PathBuf)],
    which: Which,
    lifetime: Option<Lifetime>,
    now: Timestamp,
) -> Result<Renewed> {
    let authority_dir = args.authority_dir.as_deref().unwrap_or(root);
    let authority = Authority::load(authority_dir)
        .context("certificates are renewed where the authority's key is; name its folder with --authority-dir")?;
    let _lock = KeyFolder::new(authority_dir).lock()?;
    let admin = KeyFolder::new(root);
    let before = admin.read("admin").ok();
    let renewal = Renewal { authority: &authority, which, lifetime, now };
    let mut renewed = Renewed::default();
    for (owner, folder) in known {
        if args.names.is_empty() || args.names.contains(owner) {
            renewal.folder(folder, &KeyFolder::new(folder).names()?, &mut renewed);
        }
    }
    if let Some(path) = &args.kubeconfig {
        let before = before.with_context(|| {
            format!("{} is not there: the administrator's certificate is not kept here", admin.certificate("admin").display())
        })?;
        let existing = kubeconfig::read(path)?;
        match kubeconfig::renew(&existing, kubeconfig::Ours::With(&before.certificate), &admin.read("admin")?)? {
            Some(text) => write_private(path, text.as_bytes())?,
            None => renewed.failures.push(format!("{} does not hold the administrator's certificate of before", path.display())),
        }
    }
    Ok(renewed)
}
