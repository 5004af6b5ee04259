//! Network configuration lists: which file of a folder counts, and what a plugin of a list is given. Pure, but for reading
//! the folder.
//!
//! Rules: the CNI specification 1.0, sections 1 ("Network configuration format") and 4 ("Plugin delegation", "Deriving
//! execution configuration from plugin configuration").

use std::{fs, io, path::Path};

use serde_json::{Map, Value};

use crate::network::{NetworkError, PortMapping};

/// The first version of the protocol that knows CHECK, and tells DEL what ADD answered.
const FIRST_WITH_CHECK: (u32, u32, u32) = (0, 4, 0);

/// A network: the plugins that connect a pod, one after the other.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct NetworkList {
    name: String,
    /// `cniVersion`, as the plugins are told it.
    version: String,
    checks: Checks,
    plugins: Vec<Plugin>,
    document: Value,
}

/// Whether the network's administrator wants CHECK to be used (`disableCheck`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checks {
    Allowed,
    Disabled,
}

/// One plugin of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    /// The name of its executable.
    pub kind: String,
    configuration: Map<String, Value>,
}

impl NetworkList {
    /// Reads a list, or the configuration of a single plugin, which is a list of one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<NetworkList, String> {
        let document: Value = serde_json::from_slice(bytes).map_err(|error| format!("it is no JSON: {error}"))?;
        NetworkList::try_from(document)
    }

    pub fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// Whether CHECK may be used.
    pub fn can_check(&self) -> bool {
        self.checks == Checks::Allowed && self.has_previous_result_for_all()
    }

    /// Whether CHECK and DEL are told what ADD answered.
    pub fn has_previous_result_for_all(&self) -> bool {
        version_number(&self.version) >= FIRST_WITH_CHECK
    }

    /// What the plugin reads on its standard input: its configuration, with the network's name and version, what it can do
    /// of what the pod wants, and the result so far.
    pub fn execution(&self, plugin: &Plugin, wishes: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut configuration = plugin.configuration.clone();
        configuration.insert("cniVersion".to_owned(), Value::String(self.version.clone()));
        configuration.insert("name".to_owned(), Value::String(self.name.clone()));
        let capabilities = configuration.remove("capabilities");
        let can = |wish: &str| capabilities.as_ref().and_then(|known| known.get(wish)) == Some(&Value::Bool(true));
        let granted: Map<String, Value> =
            wishes.iter().filter(|(wish, _)| can(wish)).map(|(wish, value)| (wish.clone(), value.clone())).collect();
        configuration.remove("runtimeConfig");
        if !granted.is_empty() {
            configuration.insert("runtimeConfig".to_owned(), Value::Object(granted));
        }
        configuration.remove("prevResult");
        if let Some(previous) = previous {
            configuration.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(configuration)
    }
}

impl TryFrom<Value> for NetworkList {
    type Error = String;

    fn try_from(document: Value) -> Result<NetworkList, String> {
        let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let plugins = match document.get("plugins") {
            Some(Value::Array(plugins)) if plugins.is_empty() => return Err("it names no plugins".to_owned()),
            Some(Value::Array(plugins)) => plugins.iter().map(plugin).collect::<Result<_, _>>()?,
            Some(_) => return Err("\"plugins\" is no list".to_owned()),
            None => vec![plugin(&document)?],
        };
        let name = text("name");
        if name.is_empty() {
            return Err("it has no name".to_owned());
        }
        let version = Some(text("cniVersion")).filter(|version| !version.is_empty()).unwrap_or_else(|| "0.1.0".to_owned());
        let disabled = document.get("disableCheck") == Some(&Value::Bool(true));
        let checks = if disabled { Checks::Disabled } else { Checks::Allowed };
        Ok(NetworkList { name, version, checks, plugins, document })
    }
}

impl From<NetworkList> for Value {
    fn from(list: NetworkList) -> Value {
        list.document
    }
}

fn plugin(value: &Value) -> Result<Plugin, String> {
    let configuration = value.as_object().cloned().ok_or_else(|| "a plugin's configuration is no object".to_owned())?;
    let kind = configuration.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    match kind.as_str() {
        "" => Err("a plugin has no type".to_owned()),
        "." | ".." => Err(format!("{kind:?} is no plugin's name")),
        other if other.contains('/') => Err(format!("{kind:?} is no plugin's name")),
        _ => Ok(Plugin { kind, configuration }),
    }
}

/// `1.0.0` as three numbers; what is missing is 0.
fn version_number(text: &str) -> (u32, u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

/// The network of a folder: that of the first file, by name, that can be read as one. Others are passed over with a warning.
///
/// # Errors
/// When the folder has none.
pub fn select(folder: &Path) -> Result<NetworkList, NetworkError> {
    let mut files = Vec::new();
    let known =
        |path: &Path| path.extension().is_some_and(|ending| ["conf", "conflist", "json"].iter().any(|known| ending == *known));
    match fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                files.push(entry.map_err(NetworkError::io(format!("cannot list {}", folder.display())))?.path());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(NetworkError::io(format!("cannot list {}", folder.display()))(error)),
    }
    files.retain(|path| known(path));
    files.sort();
    for path in files {
        let list = fs::read(&path).map_err(|error| error.to_string()).and_then(|bytes| NetworkList::parse(&bytes));
        match list {
            Ok(list) => return Ok(list),
            Err(reason) => tracing::warn!(file = %path.display(), reason, "a network configuration cannot be used"),
        }
    }
    Err(NetworkError::Plugin(format!("cni plugin not initialized: no networks found in {}", folder.display())))
}

/// What the pod wants of plugins, by the names of the conventional capabilities (`CONVENTIONS.md` of the CNI).
pub fn wishes(port_mappings: &[PortMapping]) -> Map<String, Value> {
    let mut wishes = Map::new();
    let ports: Vec<Value> = port_mappings
        .iter()
        .map(|port| {
            serde_json::json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.to_ascii_lowercase(),
                "hostIP": port.host_ip.map(|address| address.to_string()).unwrap_or_default(),
            })
        })
        .collect();
    if !ports.is_empty() {
        wishes.insert("portMappings".to_owned(), Value::Array(ports));
    }
    wishes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(document: Value) -> Result<NetworkList, String> {
        NetworkList::parse(document.to_string().as_bytes())
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let single = list(json!({ "cniVersion": "0.3.1", "name": "n", "type": "bridge", "mtu": 9000 })).unwrap();
        assert_eq!(single.plugins().len(), 1);
        let execution = single.execution(&single.plugins()[0], &Map::new(), None);
        assert_eq!(execution, json!({ "cniVersion": "0.3.1", "name": "n", "type": "bridge", "mtu": 9000 }));
        assert!(!single.can_check(), "0.3.1 knows no CHECK");
    }

    #[test]
    fn a_plugin_gets_its_own_part_and_what_it_can_do() {
        let chain = list(json!({
            "cniVersion": "1.0.0", "name": "net", "disableCheck": true,
            "plugins": [
                { "type": "bridge", "ipam": { "type": "host-local" } },
                { "type": "portmap", "capabilities": { "portMappings": true, "bandwidth": false } },
            ],
        }))
        .unwrap();
        let port = PortMapping { protocol: "TCP".to_owned(), container_port: 80, host_port: 8080, host_ip: None };
        let mut wishes = wishes(&[port]);
        wishes.insert("bandwidth".to_owned(), json!({ "ingressRate": 1 }));
        let previous = json!({ "ips": [] });
        assert_eq!(
            chain.execution(&chain.plugins()[0], &wishes, None),
            json!({ "cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": { "type": "host-local" } }),
        );
        assert_eq!(
            chain.execution(&chain.plugins()[1], &wishes, Some(&previous)),
            json!({
                "cniVersion": "1.0.0", "name": "net", "type": "portmap", "prevResult": { "ips": [] },
                "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "" }] },
            }),
        );
        assert!(!chain.can_check() && chain.has_previous_result_for_all());
        let stored: NetworkList = serde_json::from_value(serde_json::to_value(&chain).unwrap()).unwrap();
        assert_eq!(stored, chain);
    }

    #[test]
    fn what_is_no_network_is_told() {
        for (document, expected) in [
            (json!({ "name": "n", "plugins": [] }), "it names no plugins"),
            (json!({ "name": "n" }), "a plugin has no type"),
            (json!({ "type": "bridge" }), "it has no name"),
            (json!({ "name": "n", "type": "../../bin/sh" }), "\"../../bin/sh\" is no plugin's name"),
            (json!({ "name": "n", "plugins": [7] }), "a plugin's configuration is no object"),
        ] {
            assert_eq!(list(document).unwrap_err(), expected);
        }
    }

    #[test]
    fn the_first_usable_file_counts() {
        let folder = tempfile::tempdir().unwrap();
        let missing = select(&folder.path().join("none")).unwrap_err();
        assert!(missing.to_string().starts_with("cni plugin not initialized"), "{missing}");
        let named = |name: &str| json!({ "name": name, "type": "ptp" }).to_string();
        for (file, content) in [
            ("00-notes.txt", named("text")),
            ("05-broken.conflist", "{".to_owned()),
            ("20-second.conf", named("second")),
            ("10-first.json", named("first")),
        ] {
            fs::write(folder.path().join(file), content).unwrap();
        }
        assert_eq!(select(folder.path()).unwrap().name, "first");
    }
}
