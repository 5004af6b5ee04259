//! Who a container's process runs as: the pod's security settings and the image's `User`, looked up in the image's
//! `/etc/passwd` and `/etc/group`.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::Path,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};

use crate::runtime::ContainerSecurity;

/// The credentials of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    pub user: u32,
    pub group: u32,
    pub additional_groups: BTreeSet<u32>,
}

/// The text of the files that name users and groups; empty where the image has none.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    pub passwd: String,
    pub group: String,
}

/// Larger files are cut: they come from the image and are not trusted.
const MAX_FILE_BYTES: u64 = 4 << 20;

impl Accounts {
    /// Reads them from a root file system, never following a link out of it.
    pub fn read(root: &Path) -> io::Result<Accounts> {
        Ok(Accounts { passwd: read_inside(root, "etc/passwd")?, group: read_inside(root, "etc/group")? })
    }

    /// Resolves as the CRI runtimes do: the pod's numbers go before the image's names; the image's group counts only with
    /// the image's user.
    pub fn resolve(&self, security: &ContainerSecurity, image_user: &str) -> Result<Credentials, String> {
        let (user_text, group_text) = match security.run_as_user {
            Some(user) => (user.to_string(), None),
            None => match image_user.split_once(':') {
                Some((user, group)) => (user.to_owned(), Some(group.to_owned()).filter(|group| !group.is_empty())),
                None => (image_user.to_owned(), None),
            },
        };
        let account = self.user(&user_text)?;
        let group = match (security.run_as_group, group_text) {
            (Some(group), _) => id(group)?,
            (None, Some(group)) => self.group(&group)?,
            (None, None) => account.group,
        };
        if security.run_as_non_root && account.number == 0 {
            return Err("container has runAsNonRoot and image will run as root".to_owned());
        }
        let mut additional_groups = self.groups_of(account.name.as_deref());
        for supplemental in &security.supplemental_groups {
            additional_groups.insert(id(*supplemental)?);
        }
        additional_groups.insert(group);
        Ok(Credentials { user: account.number, group, additional_groups })
    }

    fn user(&self, text: &str) -> Result<Account, String> {
        let number = if text.is_empty() { Some(0) } else { text.parse::<u32>().ok() };
        for line in self.passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, user, group, ..] = fields.as_slice() else { continue };
            let (Ok(user), Ok(group)) = (user.parse::<u32>(), group.parse::<u32>()) else { continue };
            if *name == text || number == Some(user) {
                return Ok(Account { number: user, group, name: Some((*name).to_owned()) });
            }
        }
        match number {
            Some(number) => Ok(Account { number, group: 0, name: None }),
            None => Err(format!("unable to find user {text}: no matching entries in passwd file")),
        }
    }

    fn group(&self, text: &str) -> Result<u32, String> {
        for line in self.group.lines() {
            let mut fields = line.split(':');
            if fields.next() == Some(text)
                && let Some(number) = fields.nth(1).and_then(|number| number.parse().ok())
            {
                return Ok(number);
            }
        }
        text.parse().map_err(|_| format!("unable to find group {text}: no matching entries in group file"))
    }

    fn groups_of(&self, user: Option<&str>) -> BTreeSet<u32> {
        let Some(user) = user else { return BTreeSet::new() };
        let member = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let [_, _, number, members] = fields.as_slice() else { return None };
            members.split(',').any(|member| member == user).then(|| number.parse().ok()).flatten()
        };
        self.group.lines().filter_map(member).collect()
    }
}

struct Account {
    number: u32,
    group: u32,
    name: Option<String>,
}

fn id(number: i64) -> Result<u32, String> {
    u32::try_from(number).map_err(|_| format!("{number} is not a user or group number"))
}

fn read_inside(root: &Path, name: &str) -> io::Result<String> {
    let root = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = match openat2(&root, name, how) {
        Ok(file) => File::from(file),
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1001::/:\nbroken\n".to_owned(),
            group: "root:x:0:\nextra:x:2000:worker,root\nlast:x:3000:\n".to_owned(),
        }
    }

    #[test]
    fn users_are_resolved_as_the_cri_does() {
        let pod = |user, group| ContainerSecurity { run_as_user: user, run_as_group: group, ..ContainerSecurity::default() };
        for (security, image_user, expected) in [
            (pod(None, None), "", (0, 0, vec![0, 2000])),
            (pod(None, None), "worker", (1000, 1001, vec![1001, 2000])),
            (pod(None, None), "worker:last", (1000, 3000, vec![2000, 3000])),
            (pod(None, None), "1000:77", (1000, 77, vec![77, 2000])),
            (pod(None, None), "555", (555, 0, vec![0])),
            (pod(Some(555), None), "worker:last", (555, 0, vec![0])),
            (pod(Some(1000), Some(42)), "root", (1000, 42, vec![42, 2000])),
        ] {
            let found = accounts().resolve(&security, image_user).unwrap();
            let expected =
                Credentials { user: expected.0, group: expected.1, additional_groups: expected.2.into_iter().collect() };
            assert_eq!(found, expected, "{security:?} {image_user}");
        }
    }

    #[test]
    fn unknown_names_and_root_where_forbidden_are_refused() {
        let open = ContainerSecurity::default();
        assert!(accounts().resolve(&open, "nobody").unwrap_err().contains("no matching entries in passwd file"));
        assert!(accounts().resolve(&open, "worker:nogroup").unwrap_err().contains("no matching entries in group file"));
        let non_root = ContainerSecurity { run_as_non_root: true, ..ContainerSecurity::default() };
        assert!(accounts().resolve(&non_root, "").is_err());
        assert!(accounts().resolve(&non_root, "worker").is_ok());
    }
}
