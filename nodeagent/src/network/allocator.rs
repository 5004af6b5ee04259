//! Gives pods addresses from the node's range, and remembers them on disk: one file for each address, named after it, with
//! the sandbox's id in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Write,
    net::Ipv4Addr,
    path::PathBuf,
};

use trireme_api::cidr::Ipv4Cidr;

use super::NetworkError;

/// The allocator; its folder is its own.
#[derive(Debug)]
pub struct AddressAllocator {
    folder: PathBuf,
    owners: BTreeMap<Ipv4Addr, String>,
    last: Option<Ipv4Addr>,
}

/// The network's own address, and the bridge's.
const RESERVED: u64 = 2;

impl AddressAllocator {
    pub fn open(folder: PathBuf) -> Result<AddressAllocator, NetworkError> {
        let mut owners = BTreeMap::new();
        let mut read = || -> io::Result<()> {
            fs::create_dir_all(&folder)?;
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
                owners.insert(address, fs::read_to_string(entry.path())?);
            }
            Ok(())
        };
        read().map_err(NetworkError::io(format!("cannot read {}", folder.display())))?;
        Ok(AddressAllocator { folder, owners, last: None })
    }

    /// The sandbox's address: the one that it has, or the next free one of the range. Addresses are handed out in a circle,
    /// so that one that was freed is not used again at once.
    pub fn allocate(&mut self, range: Ipv4Cidr, sandbox_id: &str) -> Result<Ipv4Addr, NetworkError> {
        let owned = self.owners.iter().find(|(address, owner)| *owner == sandbox_id && range.contains(**address));
        if let Some((address, _)) = owned {
            return Ok(*address);
        }
        let end = range.size().saturating_sub(1);
        let start = match self.last.filter(|last| range.contains(*last)) {
            Some(last) => u64::from(u32::from(last) - u32::from(range.first())) + 1,
            None => RESERVED,
        };
        let candidates = (start.max(RESERVED)..end).chain(RESERVED..start.clamp(RESERVED, end.max(RESERVED)));
        for address in candidates.filter_map(|index| range.nth(index)) {
            if self.owners.contains_key(&address) {
                continue;
            }
            let path = self.folder.join(address.to_string());
            let write = || {
                let mut file = fs::File::create_new(&path)?;
                file.write_all(sandbox_id.as_bytes())?;
                file.sync_data()
            };
            write().map_err(NetworkError::io(format!("cannot write {}", path.display())))?;
            self.owners.insert(address, sandbox_id.to_owned());
            self.last = Some(address);
            return Ok(address);
        }
        Err(NetworkError::Exhausted(range.to_string()))
    }

    /// Frees what the sandbox has.
    pub fn free(&mut self, sandbox_id: &str) -> Result<(), NetworkError> {
        self.free_where(|owner| owner == sandbox_id)
    }

    /// Frees what belongs to none of these sandboxes.
    pub fn retain(&mut self, sandbox_ids: &BTreeSet<String>) -> Result<(), NetworkError> {
        self.free_where(|owner| !sandbox_ids.contains(owner))
    }

    fn free_where(&mut self, is_free: impl Fn(&str) -> bool) -> Result<(), NetworkError> {
        let freed: Vec<Ipv4Addr> = self.owners.iter().filter(|(_, owner)| is_free(owner)).map(|(address, _)| *address).collect();
        for address in freed {
            let path = self.folder.join(address.to_string());
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(NetworkError::io(format!("cannot remove {}", path.display()))(error));
                }
                _ => {}
            }
            self.owners.remove(&address);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_go_round_and_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let range: Ipv4Cidr = "10.0.0.0/29".parse().unwrap();
        let mut allocator = AddressAllocator::open(folder.path().to_owned()).unwrap();
        assert_eq!(allocator.allocate(range, "a").unwrap(), address("10.0.0.2"));
        assert_eq!(allocator.allocate(range, "b").unwrap(), address("10.0.0.3"));
        assert_eq!(allocator.allocate(range, "a").unwrap(), address("10.0.0.2"), "asking again gives the same");
        allocator.free("a").unwrap();
        assert_eq!(allocator.allocate(range, "c").unwrap(), address("10.0.0.4"), "not the one just freed");

        let mut allocator = AddressAllocator::open(folder.path().to_owned()).unwrap();
        assert_eq!(allocator.allocate(range, "b").unwrap(), address("10.0.0.3"));
        for id in ["d", "e", "f"] {
            allocator.allocate(range, id).unwrap();
        }
        assert!(matches!(allocator.allocate(range, "g"), Err(NetworkError::Exhausted(_))));
        allocator.retain(&BTreeSet::from(["b".to_owned(), "c".to_owned()])).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        allocator.allocate(range, "g").unwrap();
    }

    #[test]
    fn the_networks_own_the_bridges_and_the_broadcast_address_are_never_given() {
        let folder = tempfile::tempdir().unwrap();
        let range: Ipv4Cidr = "192.168.7.0/28".parse().unwrap();
        let mut allocator = AddressAllocator::open(folder.path().to_owned()).unwrap();
        let mut given = BTreeSet::new();
        while let Ok(address) = allocator.allocate(range, &format!("s{}", given.len())) {
            assert!(given.insert(address), "{address} was given twice");
        }
        assert_eq!(given.len(), 13);
        assert_eq!(given.first(), Some(&address("192.168.7.2")));
        assert_eq!(given.last(), Some(&address("192.168.7.14")));
    }
}
