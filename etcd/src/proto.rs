//! Generated from the files in `proto/`: etcd 3.5's messages and services, servers and clients.

/// Services of etcd itself.
#[allow(clippy::all, missing_docs, clippy::doc_markdown)]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// Key-values and events.
#[allow(clippy::all, missing_docs)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Permissions of etcd's users and roles.
#[allow(clippy::all, missing_docs)]
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// The lock service.
#[allow(clippy::all, missing_docs)]
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// The election service.
#[allow(clippy::all, missing_docs)]
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
