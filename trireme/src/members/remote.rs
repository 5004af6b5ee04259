//! Masters on real machines: the group is changed, and the operator is told what to run where.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use trireme_etcd::group::NewMember;

use super::{AddArgs, NewMasterArgs, ReplaceArgs, masters::Masters, promote_when_ready, remove_from_group, view::View};
use crate::{
    output,
    settings::{InitialMember, MemberId},
};

pub async fn add(masters: &Masters, args: &AddArgs) -> Result<()> {
    let view = masters.view().await?;
    begin(masters, &view, args.name.as_deref(), &args.new, None, args.learner).await?;
    say!(
        "\n{}",
        if args.learner {
            "It has no vote until `trireme member promote`."
        } else {
            "It gets its vote by itself if it has caught up within ten minutes; later, with `trireme member promote`."
        }
    );
    Ok(())
}

pub async fn remove(masters: &Masters, named: &str) -> Result<()> {
    let view = masters.view().await?;
    let member = view.find(named)?;
    remove_from_group(masters, &view, member.id.0, &member.name).await?;
    say!("{} is removed. Its process ends by itself; its data folder is of no more use.", member.name);
    Ok(())
}

pub async fn replace(masters: &Masters, args: ReplaceArgs) -> Result<()> {
    let view = masters.view().await?;
    let old = view.find(&args.old)?;
    let zone = Some(old.zone.as_str()).filter(|zone| !zone.is_empty());
    let new = begin(masters, &view, args.new_name.as_deref(), &args.new, zone, true).await?;
    say!("\nWaiting until it has caught up; {} is removed then.", old.name);
    let limit = Duration::from_secs(args.new.timeout_seconds);
    promote_when_ready(masters, new.0, limit, || async { Ok(()) }).await.with_context(|| {
        format!(
            "member {new} has no vote yet, and {} was not removed; when it runs: `trireme member promote {new}`, then \
             `trireme member remove {}`",
            old.name, old.id
        )
    })?;
    remove_from_group(masters, &view, old.id.0, &old.name).await?;
    say!("{} is removed. Its process ends by itself; its data folder is of no more use.", old.name);
    Ok(())
}

/// Adds a member without a vote, or with one to come, and says what to run. Returns its id.
async fn begin(
    masters: &Masters,
    view: &View,
    name: Option<&str>,
    new: &NewMasterArgs,
    zone: Option<&str>,
    is_learner: bool,
) -> Result<MemberId> {
    let name = name.context("name the new master")?;
    let address = new.peer_address.as_deref().context("say where the other masters will reach it, with --peer-address")?;
    let wrong = trireme_api::names::is_dns1123_label(name);
    ensure!(wrong.is_empty(), "`{name}` is not a master's name: {}", wrong.join("; "));
    ensure!(!view.members.iter().any(|member| member.name == name), "a member of the cluster is called {name} already");
    let own: InitialMember = format!("{name}={address}")
        .parse()
        .map_err(|_| anyhow::anyhow!("`{address}` is not a peer address; it must be of the form host:2380"))?;
    let zone = new.zone.as_deref().or(zone);
    let member =
        NewMember { address: own.peer_address.clone(), name: name.to_owned(), zone: zone.unwrap_or_default().to_owned() };
    let added = masters.add(&member, is_learner).await.with_context(|| format!("{name} cannot be added"))?;
    let id = MemberId(added.member.context("the answer names no member")?.id);
    output::result(format_args!("{}", instructions(view, &own, id, &added.cluster, zone)));
    Ok(id)
}

/// What is to be run for a new master.
fn instructions(view: &View, own: &InitialMember, id: MemberId, cluster: &str, zone: Option<&str>) -> String {
    let host = own.peer_address.rsplit_once(':').map_or(own.peer_address.as_str(), |(host, _)| host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let (address, dns_name) = match bare.parse::<IpAddr>() {
        Ok(_) => (bare.to_owned(), String::new()),
        Err(_) => ("<its IP address>".to_owned(), format!(" --dns-name {host}")),
    };
    let api = format!("{}:6443", if dns_name.is_empty() { host } else { &address });
    let others = view.members.iter().filter(|member| !member.name.is_empty());
    let members: Vec<String> =
        others.map(|member| format!("{}={}", member.name, member.peer_address)).chain([own.to_string()]).collect();
    let name = &own.name;
    let zone = zone.unwrap_or("<its zone>");
    let port = own.peer_address.rsplit_once(':').map_or("2380", |(_, port)| port);
    format!(
        "{name} is member {id}.\n\n\
         Where the cluster's authority is kept:\n\n  \
         trireme pki master {name} --authority-dir pki --cluster-id {cluster} --address {address}{dns_name}\n\n\
         Copy pki/{name} to /etc/trireme/pki of the new machine, and run there, with an empty data folder:\n\n  \
         trireme master --name {name} --zone {zone} --data-dir /var/lib/trireme --pki-dir /etc/trireme/pki --cluster-id {cluster} \
         --member-id {id} --initial-members {} --advertise-api {api} --listen-peer 0.0.0.0:{port}\n",
        members.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::view::Described;

    fn view() -> View {
        let m1 = Described {
            id: MemberId(1),
            name: "m1".to_owned(),
            zone: "zone-a".to_owned(),
            peer_address: "10.0.1.10:2380".to_owned(),
            client_url: "https://10.0.1.10:2379".to_owned(),
            voter: true,
            leader: true,
            behind: Some(0),
        };
        View { members: vec![m1] }
    }

    #[test]
    fn the_operator_is_told_what_to_run() {
        let own = "m4=10.0.4.10:2380".parse().unwrap();
        let text = instructions(&view(), &own, MemberId(0x5a), "prod", Some("zone-d"));
        assert!(text.contains("trireme pki master m4 --authority-dir pki --cluster-id prod --address 10.0.4.10\n"), "{text}");
        let master = "trireme master --name m4 --zone zone-d --data-dir /var/lib/trireme --pki-dir /etc/trireme/pki --cluster-id prod \
                      --member-id 5a --initial-members m1=10.0.1.10:2380,m4=10.0.4.10:2380 --advertise-api 10.0.4.10:6443 \
                      --listen-peer 0.0.0.0:2380\n";
        assert!(text.contains(master), "{text}");
        let by_name = instructions(&view(), &"m4=m4.example:2380".parse().unwrap(), MemberId(0x5a), "prod", None);
        assert!(by_name.contains("--address <its IP address> --dns-name m4.example\n"), "{by_name}");
        assert!(by_name.contains("--zone <its zone>") && by_name.contains("--advertise-api <its IP address>:6443"), "{by_name}");
        let by_six = instructions(&view(), &"m4=[fd00::4]:2380".parse().unwrap(), MemberId(0x5a), "prod", None);
        assert!(by_six.contains("--address fd00::4\n") && by_six.contains("--advertise-api [fd00::4]:6443"), "{by_six}");
    }
}
