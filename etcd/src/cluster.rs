//! The Cluster service: the members of the group, and changes of them.

use tonic::{Request, Response, Status};

use crate::{
    caller::Caller,
    error::{EtcdError, refuse, refuse_change},
    group::{MemberInfo, NewMember},
    proto::etcdserverpb::{
        Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
        MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
        cluster_server::Cluster,
    },
    server::EtcdServer,
};

/// The `host:port` of the one peer URL that a member has. Members speak TLS only.
fn peer_address(urls: &[String]) -> Result<String, EtcdError> {
    let [url] = urls else { return Err(EtcdError::BadMemberUrls) };
    let address = url.strip_prefix("https://").ok_or(EtcdError::BadMemberUrls)?;
    let (host, port) = address.rsplit_once(':').ok_or(EtcdError::BadMemberUrls)?;
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let host_is_good = !host.is_empty() && host.bytes().all(is_host);
    if host_is_good && port.parse::<u16>().is_ok_and(|port| port > 0) {
        Ok(address.to_owned())
    } else {
        Err(EtcdError::BadMemberUrls)
    }
}

fn member(info: MemberInfo) -> Member {
    let MemberInfo { id, name, peer_urls, client_urls, zone, is_learner } = info;
    Member { id, name, peer_ur_ls: peer_urls, client_ur_ls: client_urls, is_learner, zone }
}

impl EtcdServer {
    async fn members(&self) -> Vec<Member> {
        self.inner.group.members().await.into_iter().map(member).collect()
    }

    /// A member begins without a vote in any case; one that is not to stay a learner is promoted when it has caught up, so that a
    /// member that never comes costs no quorum.
    async fn add(&self, request: MemberAddRequest, caller: Caller) -> Result<MemberAddResponse, Status> {
        caller.check_administrator().map_err(refuse)?;
        let address = peer_address(&request.peer_ur_ls).map_err(refuse)?;
        let MemberAddRequest { name, zone, .. } = request;
        let new = NewMember { address, name: name.clone(), zone: zone.clone() };
        let id = self.inner.group.add_learner(new).await.map_err(refuse_change)?;
        if !request.is_learner {
            self.inner.group.promote_later(id).await;
        }
        let added =
            MemberInfo { id, name, peer_urls: request.peer_ur_ls, client_urls: Vec::new(), zone, is_learner: request.is_learner };
        Ok(MemberAddResponse {
            header: self.header(),
            member: Some(member(added)),
            members: self.members().await,
            cluster: self.inner.group.cluster(),
        })
    }
}

#[tonic::async_trait]
impl Cluster for EtcdServer {
    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        let caller = Caller::from_request(&request);
        self.add(request.into_inner(), caller).await.map(Response::new)
    }

    async fn member_remove(&self, request: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        Caller::from_request(&request).check_administrator().map_err(refuse)?;
        self.inner.group.remove(request.into_inner().id).await.map_err(refuse_change)?;
        Ok(Response::new(MemberRemoveResponse { header: self.header(), members: self.members().await }))
    }

    async fn member_update(&self, request: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        Caller::from_request(&request).check_administrator().map_err(refuse)?;
        let MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        let address = peer_address(&peer_ur_ls).map_err(refuse)?;
        self.inner.group.update(id, address).await.map_err(refuse_change)?;
        Ok(Response::new(MemberUpdateResponse { header: self.header(), members: self.members().await }))
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.inner.store.read_barrier().await.map_err(refuse)?;
        }
        Ok(Response::new(MemberListResponse { header: self.header(), members: self.members().await }))
    }

    async fn member_promote(&self, request: Request<MemberPromoteRequest>) -> Result<Response<MemberPromoteResponse>, Status> {
        Caller::from_request(&request).check_administrator().map_err(refuse)?;
        self.inner.group.promote(request.into_inner().id).await.map_err(refuse_change)?;
        Ok(Response::new(MemberPromoteResponse { header: self.header(), members: self.members().await }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_one_peer_url() {
        let one = |url: &str| peer_address(&[url.to_owned()]);
        assert_eq!(one("https://10.0.0.4:2380"), Ok("10.0.0.4:2380".to_owned()));
        assert_eq!(one("https://master-4.example:2380"), Ok("master-4.example:2380".to_owned()));
        assert_eq!(one("https://[::1]:2380"), Ok("[::1]:2380".to_owned()));
        for bad in [
            "http://10.0.0.4:2380",
            "10.0.0.4:2380",
            "https://",
            "https://a",
            "https://:1",
            "https://a:0",
            "https://a:b/c",
            "https://a/b:1",
        ] {
            assert_eq!(one(bad), Err(EtcdError::BadMemberUrls), "{bad}");
        }
        assert_eq!(peer_address(&[]), Err(EtcdError::BadMemberUrls));
        assert_eq!(peer_address(&["https://a:1".to_owned(), "https://b:1".to_owned()]), Err(EtcdError::BadMemberUrls));
    }
}
