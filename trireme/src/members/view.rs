//! The group as its members describe it.

use std::io::IsTerminal;

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use futures::future::join_all;
use serde::Serialize;
use trireme_etcd::proto::etcdserverpb::{Member, StatusResponse};

use super::masters::Masters;
use crate::{endpoints, settings::MemberId};

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Described {
    pub id: MemberId,
    pub name: String,
    pub zone: String,
    /// `host:port` at which the other masters reach it.
    pub peer_address: String,
    /// Where it serves the etcd API; empty as long as nobody has heard of it.
    pub client_url: String,
    pub voter: bool,
    pub leader: bool,
    /// How many entries of the log it has not applied yet; absent when it does not answer.
    pub behind: Option<u64>,
}

impl Described {
    /// Where it serves the etcd API, `host:port`.
    pub fn client_address(&self) -> Result<String> {
        if self.client_url.is_empty() {
            bail!("nobody knows where {} serves clients", self.name);
        }
        endpoints::address(&self.client_url)
    }
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub members: Vec<Described>,
}

impl View {
    /// Asks for the members, and each of them how far it is.
    pub async fn take(masters: &Masters) -> Result<Self> {
        let listed = match masters.list(true).await {
            Ok(listed) => listed,
            // Without a quorum the members are still known.
            Err(reason) => match masters.list(false).await {
                Ok(listed) => {
                    remark!("trireme: there is no quorum; this is what one master knows: {reason:#}");
                    listed
                }
                Err(_) => return Err(reason),
            },
        };
        let urls = listed.members.iter().filter_map(|member| endpoints::address(member.client_ur_ls.first()?).ok());
        let mut addresses: Vec<String> = urls.chain(masters.addresses().iter().cloned()).collect();
        addresses.sort();
        addresses.dedup();
        let answers = join_all(addresses.iter().map(|address| masters.status(address))).await;
        Ok(Self::of(listed.members, &answers.into_iter().flatten().collect::<Vec<_>>()))
    }

    fn of(members: Vec<Member>, answers: &[StatusResponse]) -> Self {
        let id_of = |status: &StatusResponse| status.header.as_ref().map_or(0, |header| header.member_id);
        let newest = answers.iter().filter(|status| status.leader != 0).max_by_key(|status| status.raft_term);
        let leader = newest.map_or(0, |status| status.leader);
        let end = answers.iter().map(|status| status.raft_index).max().unwrap_or(0);
        let described = members.into_iter().map(|member| {
            let answer = answers.iter().find(|status| id_of(status) == member.id);
            let peer_url = member.peer_ur_ls.first().map_or("", String::as_str);
            Described {
                id: MemberId(member.id),
                name: member.name,
                zone: member.zone,
                peer_address: peer_url.strip_prefix("https://").unwrap_or(peer_url).to_owned(),
                client_url: member.client_ur_ls.into_iter().next().unwrap_or_default(),
                voter: !member.is_learner,
                leader: member.id == leader,
                behind: answer.map(|status| end.saturating_sub(status.raft_applied_index)),
            }
        });
        let mut members: Vec<Described> = described.collect();
        members.sort_by(|one, other| (&one.name, one.id.0).cmp(&(&other.name, other.id.0)));
        Self { members }
    }

    /// The member of this name or, in hexadecimal, this id.
    pub fn find(&self, named: &str) -> Result<&Described> {
        let by_name: Vec<&Described> = self.members.iter().filter(|member| member.name == named).collect();
        match by_name[..] {
            [member] => return Ok(member),
            [] => {}
            _ => bail!("several members are called `{named}`; name one by its id (`trireme member list`)"),
        }
        let id = named.parse::<MemberId>().ok();
        let by_id = self.members.iter().find(|member| Some(member.id) == id);
        by_id.with_context(|| format!("there is no member `{named}`; the members are {}", self.names()))
    }

    fn names(&self) -> String {
        let names = self.members.iter();
        names.map(|one| if one.name.is_empty() { one.id.to_string() } else { one.name.clone() }).collect::<Vec<_>>().join(", ")
    }

    pub fn leader(&self) -> Result<&Described> {
        self.members.iter().find(|member| member.leader).context("no master leads now; try again in a moment")
    }

    /// The voter that would be the best leader in place of the present one.
    pub fn successor(&self) -> Option<&Described> {
        let others = self.members.iter().filter(|member| member.voter && !member.leader && member.behind.is_some());
        others.min_by_key(|member| member.behind)
    }

    /// Where the member serves the etcd API, `host:port`; empty when nobody knows.
    pub fn address_of(&self, id: u64) -> String {
        let member = self.members.iter().find(|member| member.id.0 == id);
        member.and_then(|member| member.client_address().ok()).unwrap_or_default()
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["ID", "NAME", "ZONE", "PEER ADDRESS", "CLIENT URL", "ROLE", "LEADER", "BEHIND"]);
        if !std::io::stdout().is_terminal() {
            table.set_width(u16::MAX);
        }
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        for member in &self.members {
            table.add_row([
                member.id.to_string(),
                or_dash(&member.name),
                or_dash(&member.zone),
                member.peer_address.clone(),
                or_dash(&member.client_url),
                if member.voter { "voter" } else { "learner" }.to_owned(),
                if member.leader { "yes" } else { "no" }.to_owned(),
                member.behind.map_or("does not answer".to_owned(), |behind| behind.to_string()),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use trireme_etcd::proto::etcdserverpb::ResponseHeader;

    use super::*;

    fn member(id: u64, name: &str, is_learner: bool) -> Member {
        Member {
            id,
            name: name.to_owned(),
            peer_ur_ls: vec![format!("https://{name}:2380")],
            client_ur_ls: vec![format!("https://{name}:2379")],
            is_learner,
            zone: "zone-a".to_owned(),
        }
    }

    fn status(id: u64, leader: u64, term: u64, applied: u64) -> StatusResponse {
        StatusResponse {
            header: Some(ResponseHeader { member_id: id, ..ResponseHeader::default() }),
            leader,
            raft_term: term,
            raft_index: 100,
            raft_applied_index: applied,
            ..StatusResponse::default()
        }
    }

    fn view() -> View {
        let members = vec![member(0x1b, "m2", false), member(0xa, "m1", false), member(3, "m4", true), member(0x12, "m3", false)];
        View::of(members, &[status(0xa, 0x12, 4, 90), status(0x1b, 0x1b, 5, 100), status(3, 0x1b, 5, 7)])
    }

    #[test]
    fn the_newest_term_says_who_leads_and_each_member_how_far_it_is() {
        let view = view();
        let seen: Vec<_> = view.members.iter().map(|one| (one.name.as_str(), one.leader, one.voter, one.behind)).collect();
        let expected = [
            ("m1", false, true, Some(10)),
            ("m2", true, true, Some(0)),
            ("m3", false, true, None),
            ("m4", false, false, Some(93)),
        ];
        assert_eq!(seen, expected);
        assert_eq!(view.leader().unwrap().name, "m2");
        assert_eq!(view.successor().unwrap().name, "m1");
        assert_eq!(view.address_of(0x12), "m3:2379");
    }

    #[test]
    fn members_are_named_by_name_or_id() {
        let view = view();
        assert_eq!(view.find("m3").unwrap().id, MemberId(0x12));
        assert_eq!(view.find("1b").unwrap().name, "m2");
        let unknown = view.find("m9").unwrap_err().to_string();
        assert_eq!(unknown, "there is no member `m9`; the members are m1, m2, m3, m4");
        let twins = View::of(vec![member(1, "m1", false), member(2, "m1", false)], &[]);
        assert!(twins.find("m1").unwrap_err().to_string().contains("several members"));
    }
}
