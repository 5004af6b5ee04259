//! Logs: `tracing`, as text or JSON, to standard error or to a file.

use std::{fs::OpenOptions, path::PathBuf, sync::Mutex};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tracing_subscriber::{EnvFilter, fmt::writer::BoxMakeWriter};

/// What goes wrong inside the Raft library, and of everything else what people act on; its own `info` has a line for each vote.
const DEFAULT_FILTER: &str = "info,openraft=warn";

#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LogArgs {
    /// `human` or `json` lines.
    #[arg(long, env = "TRIREME_LOG_FORMAT", value_enum, default_value_t = LogFormat::Human)]
    pub log_format: LogFormat,
    /// What to log: a level (`info`, `debug`) or a filter such as `info,trireme_consensus=debug`.
    #[arg(long, env = "TRIREME_LOG_LEVEL", value_name = "FILTER", default_value = DEFAULT_FILTER)]
    pub log_level: String,
    /// Append to this file instead of standard error.
    #[arg(long, env = "TRIREME_LOG_FILE", value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    Human,
    Json,
}

/// Starts logging for the whole process.
pub fn start(args: &LogArgs) -> Result<()> {
    let filter = EnvFilter::try_new(&args.log_level).with_context(|| format!("`{}` is not a log filter", args.log_level))?;
    let writer = match &args.log_file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("cannot open the log file {}", path.display()))?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    // A line that cannot be written, on a full disk, is lost; to complain of it on standard error, which may be on that disk, would
    // end the thread.
    let subscriber = subscriber.log_internal_errors(false);
    match args.log_format {
        LogFormat::Human => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

impl LogArgs {
    /// Text lines into `path`.
    pub fn to_file(path: PathBuf) -> Self {
        Self { log_file: Some(path), ..Self::to_stderr() }
    }

    /// Text lines to standard error.
    pub fn to_stderr() -> Self {
        Self { log_format: LogFormat::Human, log_level: DEFAULT_FILTER.to_owned(), log_file: None }
    }
}
