//! The data folder as a whole, and the files that a sandbox brings into its containers.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use super::at;
use crate::runtime::{DnsConfig, RuntimeError};

const FORMAT: &str = "1";

/// The text of a pod's `/etc/resolv.conf`.
pub fn resolver_file(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// Lets nobody but root list the folder.
pub fn restrict(folder: &Path) -> Result<(), RuntimeError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).map_err(at("cannot restrict", folder))
}

/// Keeps other processes from using the folder, as long as the file is held.
pub fn lock_folder(folder: &Path) -> Result<File, RuntimeError> {
    let path = folder.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(at("cannot open", &path))?;
    lock.try_lock().map_err(|_| RuntimeError::Unavailable(format!("{} is in use by another process", folder.display())))?;
    Ok(lock)
}

/// Refuses a folder that another version has written.
pub fn check_format(folder: &Path) -> Result<(), RuntimeError> {
    let path = folder.join("format");
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == FORMAT => Ok(()),
        Ok(found) => Err(RuntimeError::Unavailable(format!(
            "{} has format {}; this version knows {FORMAT}",
            folder.display(),
            found.trim()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(&path, FORMAT).map_err(at("cannot write", &path)),
        Err(error) => Err(at("cannot read", &path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_file_has_the_order_of_the_cri_runtimes() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.10".to_owned()],
            searches: vec!["a.svc".to_owned(), "svc".to_owned()],
            options: vec!["ndots:5".to_owned()],
        };
        assert_eq!(resolver_file(&dns), "search a.svc svc\nnameserver 10.0.0.10\noptions ndots:5\n");
    }
}
