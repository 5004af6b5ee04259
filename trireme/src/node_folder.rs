//! Whose a node's data folder is, and what runs the containers that it keeps: written at the first start, compared at every other.
//! An agent takes what lies in its folder and does not belong to a pod of its cluster for left-overs, so it must not begin in a
//! folder of another one.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{pki::write_private, settings::RuntimeChoice};

/// The version of `node.json` that this binary writes and the newest that it reads.
const FORMAT: u32 = 1;
const FILE: &str = "node.json";

/// What a node's data folder says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeFolder {
    format: u32,
    /// A digest of the certificate of the cluster's authority.
    cluster: String,
    node: String,
    /// What runs the containers; never [`RuntimeChoice::Auto`].
    pub runtime: RuntimeChoice,
}

/// Checks that the folder is this node's, or nobody's yet (`None`).
///
/// # Errors
/// When it is another cluster's, another node's, or of a newer format. Nothing is changed.
pub fn check(folder: &Path, cluster: &str, node: &str) -> Result<Option<NodeFolder>> {
    let Some(found) = read(folder)? else { return Ok(None) };
    if found.cluster != cluster {
        bail!("the data folder {} belongs to a node of another cluster; nothing was changed", folder.display());
    }
    if found.node != node {
        bail!("the data folder {} belongs to the node {}, not to {node}; nothing was changed", folder.display(), found.node);
    }
    Ok(Some(found))
}

/// What the folder says of itself; `None` when it is nobody's yet.
pub fn read(folder: &Path) -> Result<Option<NodeFolder>> {
    let path = folder.join(FILE);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    let damaged = || format!("{} does not describe a node's folder", path.display());
    let Versioned { format } = serde_json::from_slice(&text).with_context(damaged)?;
    if format > FORMAT {
        bail!(
            "{} was written by a newer trireme (format {format}; this one reads up to {FORMAT}); use that version",
            path.display()
        );
    }
    Ok(Some(serde_json::from_slice(&text).with_context(damaged)?))
}

/// What is to run the containers: what ran them before, so that none is started twice by two runtimes.
///
/// # Errors
/// When the settings name another one than the folder's.
pub fn runtime(folder: &Path, found: Option<&NodeFolder>, wanted: RuntimeChoice) -> Result<RuntimeChoice> {
    match found {
        None => Ok(wanted),
        Some(found) if wanted == RuntimeChoice::Auto || wanted == found.runtime => Ok(found.runtime),
        Some(found) => bail!(
            "the pods in {} are run by the runtime {}, not by {}; keep it, or choose another data folder",
            folder.display(),
            name(found.runtime),
            name(wanted)
        ),
    }
}

/// Makes the folder this node's.
pub fn claim(folder: &Path, cluster: &str, node: &str, runtime: RuntimeChoice) -> Result<()> {
    let own = NodeFolder { format: FORMAT, cluster: cluster.to_owned(), node: node.to_owned(), runtime };
    write_private(&folder.join(FILE), &serde_json::to_vec_pretty(&own)?)
}

fn name(runtime: RuntimeChoice) -> String {
    use clap::ValueEnum;
    runtime.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_cluster_its_node_and_its_runtime() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(check(path, "one", "node-1").unwrap(), None);
        assert_eq!(runtime(path, None, RuntimeChoice::Auto).unwrap(), RuntimeChoice::Auto);
        claim(path, "one", "node-1", RuntimeChoice::Embedded).unwrap();
        let found = check(path, "one", "node-1").unwrap();
        for wanted in [RuntimeChoice::Auto, RuntimeChoice::Embedded] {
            assert_eq!(runtime(path, found.as_ref(), wanted).unwrap(), RuntimeChoice::Embedded);
        }
        let refused = runtime(path, found.as_ref(), RuntimeChoice::Cri).unwrap_err().to_string();
        assert!(refused.contains("are run by the runtime embedded, not by cri"), "{refused}");
        assert!(check(path, "two", "node-1").unwrap_err().to_string().contains("another cluster"));
        assert!(check(path, "one", "node-2").unwrap_err().to_string().contains("belongs to the node node-1"));
        std::fs::write(path.join(FILE), r#"{"format": 2, "future": true}"#).unwrap();
        assert!(check(path, "one", "node-1").unwrap_err().to_string().contains("a newer trireme (format 2"));
    }
}
