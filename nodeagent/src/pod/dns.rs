//! A pod's resolver settings (`pkg/kubelet/network/dns`): pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use crate::{
    pod::model::{host_network, spec},
    runtime::DnsConfig,
};

/// The kernel's resolver reads at most three servers.
const MOST_SERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;

/// The settings by the pod's `dnsPolicy` and `dnsConfig`. `node` is the node's own `/etc/resolv.conf`, parsed.
pub fn resolver(pod: &Pod, cluster_dns: &[IpAddr], cluster_domain: &str, node: &DnsConfig) -> DnsConfig {
    let spec = spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network(pod),
        _ => false,
    };
    let mut dns = if policy == "None" {
        DnsConfig::default()
    } else if cluster && !cluster_dns.is_empty() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut searches =
            vec![format!("{namespace}.svc.{cluster_domain}"), format!("svc.{cluster_domain}"), cluster_domain.to_owned()];
        add_new(&mut searches, &node.searches);
        DnsConfig {
            servers: cluster_dns.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        node.clone()
    };
    if let Some(own) = &spec.dns_config {
        add_new(&mut dns.servers, own.nameservers.as_deref().unwrap_or_default());
        add_new(&mut dns.searches, own.searches.as_deref().unwrap_or_default());
        for option in own.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else { continue };
            dns.options.retain(|known| known.split(':').next() != Some(name));
            dns.options.push(option.value.as_deref().map_or_else(|| name.to_owned(), |value| format!("{name}:{value}")));
        }
    }
    dns.servers.truncate(MOST_SERVERS);
    dns.searches.truncate(MOST_SEARCHES);
    dns
}

fn add_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// Reads a resolv.conf(5).
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(String::from)),
            // The last line counts.
            Some("search" | "domain") => dns.searches = words.map(String::from).filter(|search| search != ".").collect(),
            Some("options") => dns.options = words.map(String::from).collect(),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resolve(spec: Value) -> (Vec<String>, Vec<String>, Vec<String>) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let pod: Pod = serde_json::from_value(json!({ "metadata": { "namespace": "ns" }, "spec": spec })).unwrap();
        let node = parse_resolv_conf("# made by hand\nnameserver 192.0.2.53\nsearch example.com\noptions edns0\n");
        let dns = resolver(&pod, &["10.96.0.10".parse().unwrap()], "cluster.local", &node);
        (dns.servers, dns.searches, dns.options)
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn policies() {
        let cluster = (
            words(&["10.96.0.10"]),
            words(&["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.com"]),
            words(&["ndots:5"]),
        );
        let node = (words(&["192.0.2.53"]), words(&["example.com"]), words(&["edns0"]));
        assert_eq!(resolve(json!({})), cluster);
        assert_eq!(resolve(json!({ "hostNetwork": true })), node);
        assert_eq!(resolve(json!({ "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet" })), cluster);
        assert_eq!(resolve(json!({ "dnsPolicy": "Default" })), node);
        let own = json!({ "dnsPolicy": "None", "dnsConfig": { "nameservers": ["1.1.1.1"], "searches": ["a"],
            "options": [{ "name": "ndots", "value": "2" }, { "name": "edns0" }] } });
        assert_eq!(resolve(own), (words(&["1.1.1.1"]), words(&["a"]), words(&["ndots:2", "edns0"])));
        let override_one = json!({ "dnsConfig": { "options": [{ "name": "ndots", "value": "1" }] } });
        assert_eq!(resolve(override_one).2, words(&["ndots:1"]));
    }
}
