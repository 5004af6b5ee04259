//! What is remembered of each attachment, on disk: enough to undo it after a restart, even if the configuration has changed
//! since (the CNI specification 1.0, section 3: the runtime keeps the result of ADD for DEL).

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::configuration::NetworkList;
use crate::{image::write_atomically, network::NetworkError};

/// One attachment.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    pub network: NetworkList,
    pub interface: String,
    /// `CNI_ARGS`.
    pub arguments: String,
    pub namespace: PathBuf,
    /// What the pod wanted of plugins.
    pub wishes: Map<String, Value>,
    /// What ADD answered; `None` as long as it has not.
    pub result: Option<Value>,
}

/// The records, one file each, named after the sandbox.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    pub fn open(folder: PathBuf) -> Result<Records, NetworkError> {
        fs::create_dir_all(&folder).map_err(NetworkError::io(format!("cannot create {}", folder.display())))?;
        Ok(Records { folder })
    }

    pub fn load(&self, sandbox_id: &str) -> Result<Option<Record>, NetworkError> {
        let path = self.path(sandbox_id)?;
        match fs::read(&path) {
            Ok(bytes) => {
                let record = serde_json::from_slice(&bytes);
                record.map(Some).map_err(|error| NetworkError::Invalid(format!("{} cannot be read: {error}", path.display())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NetworkError::io(format!("cannot read {}", path.display()))(error)),
        }
    }

    pub fn save(&self, sandbox_id: &str, record: &Record) -> Result<(), NetworkError> {
        let path = self.path(sandbox_id)?;
        let context = || format!("cannot write {}", path.display());
        let bytes = serde_json::to_vec(record).map_err(|error| NetworkError::io(context())(error.into()))?;
        write_atomically(&path, &bytes).map_err(NetworkError::io(context()))
    }

    pub fn remove(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        let path = self.path(sandbox_id)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::io(format!("cannot remove {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Every sandbox that there is a record of.
    pub fn sandbox_ids(&self) -> Result<Vec<String>, NetworkError> {
        let list = || -> io::Result<Vec<String>> {
            let mut ids = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                let path = entry?.path();
                let is_record = path.extension().is_some_and(|ending| ending == ENDING);
                ids.extend(path.file_stem().filter(|_| is_record).and_then(|id| id.to_str()).map(str::to_owned));
            }
            Ok(ids)
        };
        list().map_err(NetworkError::io(format!("cannot list {}", self.folder.display())))
    }

    /// The protocol allows these characters alone in a container's id, and they make a safe file name.
    fn path(&self, sandbox_id: &str) -> Result<PathBuf, NetworkError> {
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
        if !sandbox_id.starts_with(|first: char| first.is_ascii_alphanumeric()) || !sandbox_id.chars().all(allowed) {
            return Err(NetworkError::Invalid(format!("{sandbox_id:?} is no container id")));
        }
        Ok(Path::new(&self.folder).join(format!("{sandbox_id}.{ENDING}")))
    }
}

const ENDING: &str = "json";

/// The pod's addresses in a result: `ips` since version 0.3.0, `ip4` and `ip6` before.
///
/// # Errors
/// When there is none, or one is no address.
pub fn addresses(result: &Value) -> Result<Vec<IpAddr>, NetworkError> {
    let listed = result.get("ips").and_then(Value::as_array).into_iter().flatten().map(|entry| entry.get("address"));
    let early = ["ip4", "ip6"].into_iter().filter_map(|family| result.get(family)).map(|entry| entry.get("ip"));
    let mut found = Vec::new();
    for text in listed.chain(early) {
        let text = text.and_then(Value::as_str).unwrap_or_default();
        let address = text.split('/').next().unwrap_or_default().parse();
        let address = address.map_err(|_| NetworkError::Plugin(format!("{text:?} in the plugins' result is no address")))?;
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        return Err(NetworkError::Plugin("the plugins gave the pod no address".to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_found_in_results_of_every_version() {
        for (result, expected) in [
            (
                json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.1.0.5/24" }, { "address": "fd00::5/64" }] }),
                vec!["10.1.0.5", "fd00::5"],
            ),
            (json!({ "cniVersion": "0.2.0", "ip4": { "ip": "10.1.0.5/24" } }), vec!["10.1.0.5"]),
        ] {
            let found: Vec<String> = addresses(&result).unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(found, expected);
        }
        assert!(addresses(&json!({ "ips": [] })).is_err());
        assert!(addresses(&json!({ "ips": [{ "address": "ten" }] })).is_err());
        assert!(addresses(&Value::Null).is_err());
    }

    #[test]
    fn records_are_kept_by_ids_that_are_safe_names() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path().join("results")).unwrap();
        let network = NetworkList::parse(br#"{ "name": "n", "type": "ptp" }"#).unwrap();
        let record = Record {
            network,
            interface: "eth0".to_owned(),
            arguments: "A=1".to_owned(),
            namespace: "/proc/1/ns/net".into(),
            wishes: Map::new(),
            result: None,
        };
        assert_eq!(records.load("abc").unwrap(), None);
        records.save("abc", &record).unwrap();
        assert_eq!(records.load("abc").unwrap(), Some(record.clone()));
        assert_eq!(records.sandbox_ids().unwrap(), ["abc"]);
        records.remove("abc").unwrap();
        records.remove("abc").unwrap();
        assert!(records.sandbox_ids().unwrap().is_empty());
        for id in ["", "../abc", "a/b", ".hidden"] {
            assert!(records.save(id, &record).is_err(), "{id:?}");
        }
    }
}
