//! The pod's `/etc/hosts` (`kubelet_pods.go: managedHostsFileContent`): pure.

use std::fmt::Write;

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use crate::pod::model::{host_network, spec};

/// The pod's host name.
pub fn hostname(pod: &Pod) -> String {
    let spec = spec(pod);
    let name = spec.hostname_override.clone().or_else(|| spec.hostname.clone()).filter(|name| !name.is_empty());
    let mut name = name.unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default());
    // A host name has at most 63 letters, and does not end in a dash or dot.
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// The file's text. `node_hosts` is the node's own file, which pods on the node's network see.
pub fn content(pod: &Pod, addresses: &[String], cluster_domain: &str, node_hosts: &str) -> String {
    let spec = spec(pod);
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    if host_network(pod) {
        return format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}{}", alias_lines(aliases));
    }
    let mut text = "# Kubernetes-managed hosts file.\n\
        127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\n\
        fe00::0\tip6-mcastprefix\n\
        fe00::1\tip6-allnodes\n\
        fe00::2\tip6-allrouters\n"
        .to_owned();
    let name = hostname(pod);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let names = match spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty()) {
        Some(subdomain) => format!("{name}.{subdomain}.{namespace}.svc.{cluster_domain}\t{name}"),
        None => name,
    };
    for address in addresses {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{address}\t{names}");
    }
    text + &alias_lines(aliases)
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let line = |alias: &HostAlias| format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
    format!("\n# Entries added by HostAliases.\n{}", aliases.iter().map(line).collect::<String>())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": spec })).unwrap()
    }

    #[test]
    fn the_pod_finds_itself_and_its_aliases() {
        let aliases = json!([{ "ip": "192.0.2.9", "hostnames": ["foo", "bar"] }]);
        let text =
            content(&pod(json!({ "subdomain": "sub", "hostAliases": aliases })), &["10.0.0.7".to_owned()], "cluster.local", "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("\n10.0.0.7\tweb.sub.ns.svc.cluster.local\tweb\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n192.0.2.9\tfoo\tbar\n"));
        assert!(content(&pod(json!({})), &["10.0.0.7".to_owned()], "c", "").ends_with("10.0.0.7\tweb\n"));
    }

    #[test]
    fn a_pod_on_the_nodes_network_sees_the_nodes_file() {
        let text = content(&pod(json!({ "hostNetwork": true })), &[], "c", "127.0.0.1 localhost\n");
        assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n");
    }

    #[test]
    fn host_names_are_cut() {
        assert_eq!(hostname(&pod(json!({ "hostname": "other" }))), "other");
        let long = format!("{}-rest", "a".repeat(62));
        assert_eq!(hostname(&pod(json!({ "hostname": long }))), "a".repeat(62));
    }
}
