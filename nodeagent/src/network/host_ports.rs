//! Ports of the node that lead to pods (`containers[].ports[].hostPort`), by nftables.
//!
//! What leads where is on disk, one file for each sandbox; the rules are always made from all of it, in one transaction. So
//! they are the same after a restart, and a rule never outlives its pod.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use trireme_api::cidr::Ipv4Cidr;

use super::{NetworkError, nft};
use crate::{image::write_atomically, runtime::PortMapping};

const TABLE: &str = "trireme-host-ports";

/// Where the pods are.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub bridge: &'a str,
    pub range: Ipv4Cidr,
}

/// One port of the node and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Lead {
    protocol: Protocol,
    /// One address of the node, or `None` for all.
    host: Option<Ipv4Addr>,
    host_port: u16,
    pod: Ipv4Addr,
    pod_port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As nftables names it.
    fn word(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// The leads of all sandboxes.
#[derive(Debug)]
pub struct HostPorts {
    folder: PathBuf,
    leads: BTreeMap<String, Vec<Lead>>,
}

impl HostPorts {
    pub fn open(folder: PathBuf) -> Result<HostPorts, NetworkError> {
        let mut leads = BTreeMap::new();
        let mut read = || -> io::Result<()> {
            fs::create_dir_all(&folder)?;
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                // A leading dot is a file that was never finished.
                if !name.starts_with('.') {
                    leads.insert(name, serde_json::from_slice(&fs::read(entry.path())?)?);
                }
            }
            Ok(())
        };
        read().map_err(NetworkError::io(format!("cannot read {}", folder.display())))?;
        Ok(HostPorts { folder, leads })
    }

    /// Puts the rules in force as they are to be. Without any ports a missing `nft` is no error.
    pub async fn apply(&self, place: Place<'_>) -> Result<(), NetworkError> {
        let outcome = nft::run(&rules(place, self.leads.values().flatten())).await?;
        if self.leads.is_empty() {
            return Ok(());
        }
        if outcome == nft::Outcome::NoNft {
            return Err(NetworkError::Invalid("hostPort needs nftables: nft is not installed on the node".to_owned()));
        }
        // What comes from the node's loopback address is sent on to the bridge; the rules keep others' such packets out.
        let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", place.bridge);
        fs::write(&path, "1").map_err(NetworkError::io(format!("cannot write {path}")))
    }

    /// Makes the ports lead to the pod.
    ///
    /// # Errors
    /// When one leads to another pod already, or the rules cannot be set. Call [`HostPorts::withdraw`] then.
    pub async fn publish(
        &mut self,
        place: Place<'_>,
        sandbox_id: &str,
        pod: Ipv4Addr,
        mappings: &[PortMapping],
    ) -> Result<(), NetworkError> {
        if mappings.is_empty() {
            return Ok(());
        }
        let leads = mappings.iter().map(|mapping| lead(mapping, pod)).collect::<Result<Vec<_>, _>>()?;
        let others = self.leads.iter().filter(|(id, _)| *id != sandbox_id).flat_map(|(_, leads)| leads);
        for other in others {
            if let Some(lead) = leads.iter().find(|lead| clash(lead, other)) {
                let (port, protocol) = (lead.host_port, lead.protocol.word());
                return Err(NetworkError::Invalid(format!("host port {port}/{protocol} leads to another pod already")));
            }
        }
        let path = self.folder.join(sandbox_id);
        let bytes = serde_json::to_vec(&leads).map_err(io::Error::from);
        let written = bytes.and_then(|bytes| write_atomically(&path, &bytes));
        written.map_err(NetworkError::io(format!("cannot write {}", path.display())))?;
        self.leads.insert(sandbox_id.to_owned(), leads);
        self.apply(place).await
    }

    /// Takes away the ports of those sandboxes. Without a place (the network is not in use yet) the rules are left for
    /// [`HostPorts::apply`].
    pub async fn withdraw(&mut self, place: Option<Place<'_>>, is_gone: impl Fn(&str) -> bool) -> Result<(), NetworkError> {
        let gone: Vec<String> = self.leads.keys().filter(|id| is_gone(id)).cloned().collect();
        if gone.is_empty() {
            return Ok(());
        }
        if let Some(place) = place {
            let kept = self.leads.iter().filter(|(id, _)| !gone.contains(id)).flat_map(|(_, leads)| leads);
            if nft::run(&rules(place, kept)).await? == nft::Outcome::NoNft {
                tracing::debug!("nft is not installed: there are no rules to take away");
            }
        }
        for id in gone {
            let path = self.folder.join(&id);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(NetworkError::io(format!("cannot remove {}", path.display()))(error));
                }
                _ => drop(self.leads.remove(&id)),
            }
        }
        Ok(())
    }
}

fn lead(mapping: &PortMapping, pod: Ipv4Addr) -> Result<Lead, NetworkError> {
    let protocol = match mapping.protocol.as_str() {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        other => return Err(NetworkError::Invalid(format!("{other:?} is no protocol of a port"))),
    };
    let host = match mapping.host_ip {
        None => None,
        Some(address) if address.is_unspecified() => None,
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(address)) => {
            return Err(NetworkError::Invalid(format!("hostIP {address}: pods of this node have IPv4 addresses alone")));
        }
    };
    Ok(Lead { protocol, host, host_port: mapping.host_port, pod, pod_port: mapping.container_port })
}

/// Whether one packet could be meant by both.
fn clash(one: &Lead, other: &Lead) -> bool {
    let same_host = one.host.is_none() || other.host.is_none() || one.host == other.host;
    one.protocol == other.protocol && one.host_port == other.host_port && same_host
}

fn rules<'a>(place: Place<'_>, leads: impl Iterator<Item = &'a Lead>) -> String {
    let Place { bridge, range } = place;
    let dispatch: Vec<String> = leads
        .map(|lead| {
            let Lead { host_port, pod, pod_port, .. } = lead;
            let host = lead.host.map(|address| format!("ip daddr {address} ")).unwrap_or_default();
            format!("\t\t{host}{} dport {host_port} dnat to {pod}:{pod_port}\n", lead.protocol.word())
        })
        .collect();
    if dispatch.is_empty() {
        return format!("add table ip {TABLE}\ndelete table ip {TABLE}\n");
    }
    let dispatch = dispatch.concat();
    // A pod of this node would answer another, or itself, past the node that has changed the address; hence the first
    // masquerade. The second gives what comes from the loopback address one that can be answered. The input rule keeps pods
    // from the node's loopback services, which `route_localnet` alone would open to them (CVE-2020-8558).
    format!(
        "add table ip {TABLE}\n\
         delete table ip {TABLE}\n\
         table ip {TABLE} {{\n\
         \tchain dispatch {{\n\
         {dispatch}\
         \t}}\n\
         \tchain prerouting {{\n\
         \t\ttype nat hook prerouting priority dstnat; policy accept;\n\
         \t\tfib daddr type local jump dispatch\n\
         \t}}\n\
         \tchain output {{\n\
         \t\ttype nat hook output priority -100; policy accept;\n\
         \t\tfib daddr type local jump dispatch\n\
         \t}}\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tip saddr {range} oifname \"{bridge}\" ct status dnat masquerade\n\
         \t\tip saddr 127.0.0.0/8 oifname \"{bridge}\" ct status dnat masquerade\n\
         \t}}\n\
         \tchain input {{\n\
         \t\ttype filter hook input priority filter; policy accept;\n\
         \t\tiifname \"{bridge}\" ip daddr 127.0.0.0/8 ct state != {{ established, related }} drop\n\
         \t}}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(protocol: &str, host_ip: Option<&str>, host_port: u16) -> PortMapping {
        let host_ip = host_ip.map(|address| address.parse().unwrap());
        PortMapping { protocol: protocol.to_owned(), container_port: 80, host_port, host_ip }
    }

    fn lead_of(protocol: &str, host_ip: Option<&str>, host_port: u16) -> Lead {
        lead(&mapping(protocol, host_ip, host_port), Ipv4Addr::new(10, 244, 1, 5)).unwrap()
    }

    #[test]
    fn each_port_has_its_rule() {
        let place = Place { bridge: "trireme0", range: "10.244.1.0/24".parse().unwrap() };
        let leads = [lead_of("TCP", None, 8080), lead_of("UDP", Some("192.0.2.7"), 53)];
        let text = rules(place, leads.iter());
        assert!(text.contains("\t\ttcp dport 8080 dnat to 10.244.1.5:80\n"), "{text}");
        assert!(text.contains("\t\tip daddr 192.0.2.7 udp dport 53 dnat to 10.244.1.5:80\n"), "{text}");
        assert!(!rules(place, [].iter()).contains("chain"), "no ports, no chains");
    }

    #[test]
    fn ports_clash_as_the_scheduler_sees_it() {
        for (one, other, expected) in [
            (lead_of("TCP", None, 80), lead_of("TCP", None, 80), true),
            (lead_of("TCP", None, 80), lead_of("UDP", None, 80), false),
            (lead_of("TCP", None, 80), lead_of("TCP", None, 81), false),
            (lead_of("TCP", Some("10.0.0.1"), 80), lead_of("TCP", Some("10.0.0.2"), 80), false),
            (lead_of("TCP", Some("0.0.0.0"), 80), lead_of("TCP", Some("10.0.0.2"), 80), true),
        ] {
            assert_eq!(clash(&one, &other), expected, "{one:?} and {other:?}");
        }
    }

    #[test]
    fn what_no_rule_can_say_is_refused() {
        let pod = Ipv4Addr::new(10, 244, 1, 5);
        assert!(lead(&mapping("QUIC", None, 1), pod).is_err());
        assert!(lead(&mapping("TCP", Some("2001:db8::1"), 1), pod).is_err());
    }
}
