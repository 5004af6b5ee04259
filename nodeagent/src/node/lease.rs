//! The heartbeat: a Lease in `kube-node-lease`, named after the node (KEP-589).

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::config::NodeAgentConfig;

/// The namespace of node leases.
pub const NAMESPACE: &str = "kube-node-lease";

/// Writes that this node was alive at `now`; makes the Lease if there is none.
pub async fn renew(client: &Client, config: &NodeAgentConfig, node_uid: Option<&str>, now: Timestamp) -> Result<(), kube::Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let wanted = lease(config, node_uid, now);
    let mut patch = json!({ "spec": wanted.spec });
    if let Some(owners) = &wanted.metadata.owner_references {
        // A Node that was deleted and registered anew has another uid, and the old one's Lease would be collected as garbage.
        patch["metadata"] = json!({ "ownerReferences": owners });
    }
    match leases.patch(&config.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => leases.create(&PostParams::default(), &wanted).await.map(|_| ()),
        Err(error) => Err(error),
    }
}

fn seconds(config: &NodeAgentConfig) -> i32 {
    i32::try_from(config.lease_duration.as_secs()).unwrap_or(i32::MAX)
}

fn lease(config: &NodeAgentConfig, node_uid: Option<&str>, now: Timestamp) -> Lease {
    let owner = node_uid.map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: config.name.clone(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    });
    Lease {
        metadata: ObjectMeta {
            name: Some(config.name.clone()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(config.name.clone()),
            lease_duration_seconds: Some(seconds(config)),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_belongs_to_the_node() {
        let config = NodeAgentConfig::new("n1", "10.0.0.1".parse().unwrap());
        let lease = lease(&config, Some("u1"), Timestamp::UNIX_EPOCH);
        let owners = lease.metadata.owner_references.unwrap();
        assert_eq!((owners[0].kind.as_str(), owners[0].uid.as_str()), ("Node", "u1"));
        assert_eq!(lease.spec.unwrap().lease_duration_seconds, Some(40));
    }
}
