//! `trireme pki`: certificates for clusters on real machines.

use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::{Authority, Done, Ensured, Issuing, KeyFolder, LifetimeArgs, write_private};
use crate::{
    cli::{PkiAdminArgs, PkiMasterArgs, PkiNodeArgs},
    local::kubeconfig::{self, Server},
};

fn issuing<'a>(authority: &'a Authority, lifetime: LifetimeArgs, now: Timestamp) -> Issuing<'a> {
    Issuing { authority, lifetime: lifetime.lifetime().unwrap_or_default(), now }
}

pub fn master(args: &PkiMasterArgs, now: Timestamp) -> Result<()> {
    let authority = Authority::open(&args.authority_dir, now)?;
    let _lock = KeyFolder::new(&args.authority_dir).lock()?;
    let folder = args.authority_dir.join(&args.name);
    let issuing = issuing(&authority, args.lifetime, now);
    tell(&issuing.master(&folder, &args.name, &args.cluster_id, &args.addresses, &args.dns_names)?);
    say_where(&folder, &args.name);
    Ok(())
}

pub fn node(args: &PkiNodeArgs, now: Timestamp) -> Result<()> {
    let authority = Authority::load(&args.authority_dir)?;
    let _lock = KeyFolder::new(&args.authority_dir).lock()?;
    let folder = args.authority_dir.join(&args.name);
    tell(&issuing(&authority, args.lifetime, now).node(&folder, &args.name, &args.addresses)?);
    say_where(&folder, &args.name);
    Ok(())
}

pub fn admin(args: &PkiAdminArgs, now: Timestamp) -> Result<()> {
    let authority = Authority::load(&args.authority_dir)?;
    let files = KeyFolder::new(&args.authority_dir);
    let _lock = files.lock()?;
    tell(&[issuing(&authority, args.lifetime, now).admin(&args.authority_dir)?]);
    let servers = [Server { context: "trireme".to_owned(), url: args.server.clone() }];
    let text = kubeconfig::merge(&kubeconfig::read(&args.output)?, &servers, authority.certificate(), &files.read("admin")?);
    let text = text.with_context(|| format!("{} is not a kubeconfig", args.output.display()))?;
    write_private(&args.output, text.as_bytes())?;
    say!("{} is the administrator's kubeconfig", args.output.display());
    Ok(())
}

/// Says which certificates took the place of others, and why.
fn tell(done: &[Done]) {
    for (path, outcome) in done {
        if let Ensured::MadeAnew(reason) = outcome {
            say!("{} was made anew: {reason}", path.display());
        }
    }
}

fn say_where(folder: &Path, name: &str) {
    say!("{} holds what {name} needs; copy it there and name it with --pki-dir", folder.display());
}
