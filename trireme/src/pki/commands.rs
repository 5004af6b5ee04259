//! `trireme pki`: certificates for clusters on real machines.

use anyhow::Result;
use jiff::Timestamp;

use super::{Authority, KeyFolder, Subject, issue_master, issue_node, write_private};
use crate::{
    cli::{PkiAdminArgs, PkiMasterArgs, PkiNodeArgs},
    local::kubeconfig::{self, Server},
};

pub fn master(args: &PkiMasterArgs, now: Timestamp) -> Result<()> {
    let authority = Authority::open(&args.authority_dir, now)?;
    let folder = args.authority_dir.join(&args.name);
    issue_master(&authority, &folder, &args.name, &args.cluster_id, &args.addresses, &args.dns_names, now)?;
    println!("{} holds what {} needs; copy it there and name it with --pki-dir", folder.display(), args.name);
    Ok(())
}

pub fn node(args: &PkiNodeArgs, now: Timestamp) -> Result<()> {
    let authority = Authority::load(&args.authority_dir)?;
    let folder = args.authority_dir.join(&args.name);
    issue_node(&authority, &folder, &args.name, &args.addresses, now)?;
    println!("{} holds what {} needs; copy it there and name it with --pki-dir", folder.display(), args.name);
    Ok(())
}

pub fn admin(args: &PkiAdminArgs, now: Timestamp) -> Result<()> {
    let authority = Authority::load(&args.authority_dir)?;
    let identity = KeyFolder::new(&args.authority_dir).read_or_issue("admin", &authority, &Subject::admin(), now)?;
    let servers = [Server { context: "trireme".to_owned(), url: args.server.clone() }];
    let text = kubeconfig::render(&servers, authority.certificate(), &identity)?;
    write_private(&args.output, text.as_bytes())?;
    println!("{} is the administrator's kubeconfig", args.output.display());
    Ok(())
}
