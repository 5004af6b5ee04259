//! Where keys and certificates lie on disk.
//!
//! A certificate and its key are two files, and no two files can be replaced at once. So while a certificate is being replaced, its
//! key's file holds both keys, the old one and the new; a reader takes the one that fits the certificate. **Invariant**: at every
//! moment, and after a crash at any, the key's file holds the key of the certificate that is there.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{Authority, Certificate, Identity, Lifetime, Subject};

/// How often a pair that does not fit is read again, and after which pause.
const READ_ATTEMPTS: u32 = 3;
const READ_PAUSE: Duration = Duration::from_millis(20);

/// A folder of `<name>.crt` and `<name>.key` files.
pub struct KeyFolder {
    folder: PathBuf,
}

/// What was done so that a certificate is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// The one that is there is good.
    Kept,
    Made,
    /// There was one that is no good any more, for this reason.
    MadeAnew(&'static str),
}

impl KeyFolder {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub fn certificate(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.crt"))
    }

    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    /// Writes both files, or replaces them.
    pub fn write(&self, name: &str, identity: &Identity) -> Result<()> {
        create_private_folder(&self.folder)?;
        // With nothing there that fits, nothing is worth keeping.
        let before = self.read(name).map(|before| before.key).unwrap_or_default();
        write_private(&self.key(name), [before, identity.key.clone()].concat().as_bytes())?;
        // Other programs take the first key of the file, which is the old one up to here. What they read is no pair between the two
        // renames alone.
        let (certificate, key) = (self.certificate(name), self.key(name));
        replace(&[(&certificate, identity.certificate.as_bytes()), (&key, identity.key.as_bytes())])
    }

    /// The certificate and the key that fits it.
    pub fn read(&self, name: &str) -> Result<Identity> {
        read_identity(&self.certificate(name), &self.key(name))
    }

    /// The names of the certificates in the folder, but for the authority's.
    pub fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.folder).with_context(|| format!("cannot read {}", self.folder.display()))?;
        let mut names = Vec::new();
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", self.folder.display()))?.path();
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            if path.extension().is_some_and(|extension| extension == "crt")
                && let Some(name) = stem.filter(|name| name != "ca")
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Makes a certificate for `subject` and writes it there, unless the folder holds a good one.
    pub fn ensure(
        &self,
        name: &str,
        authority: &Authority,
        subject: &Subject,
        lifetime: Lifetime,
        now: Timestamp,
    ) -> Result<Ensured> {
        let reason = if self.certificate(name).exists() { self.fault(name, authority, subject, now) } else { None };
        if reason.is_none() && self.certificate(name).exists() {
            return Ok(Ensured::Kept);
        }
        self.write(name, &authority.issue(subject, lifetime, now)?)?;
        Ok(reason.map_or(Ensured::Made, Ensured::MadeAnew))
    }

    /// Why the certificate that is there cannot be kept.
    fn fault(&self, name: &str, authority: &Authority, subject: &Subject, now: Timestamp) -> Option<&'static str> {
        let Ok(identity) = self.read(name) else { return Some("it could not be read, or its key did not fit") };
        let Ok(certificate) = Certificate::parse(&identity.certificate) else { return Some("it could not be read") };
        let Ok(own) = Certificate::parse(authority.certificate()) else { return Some("it could not be read") };
        if !certificate.is_signed_by(&own) {
            Some("it was of another authority")
        } else if certificate.subject != *subject {
            Some("its names or addresses were others")
        } else if certificate.is_due(now) {
            Some("its time is nearly over, or over")
        } else {
            None
        }
    }

    /// The right to change the folder's files: two that renew at once would spoil each other's work. Blocks.
    pub fn lock(&self) -> Result<Flock<File>> {
        let path = self.folder.join(".lock");
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("cannot lock {}", path.display()))
    }
}

/// Reads a certificate and, of the keys in the other file, the one that fits it. Blocks.
pub fn read_identity(certificate_path: &Path, key_path: &Path) -> Result<Identity> {
    let mut attempts = READ_ATTEMPTS;
    loop {
        if let Some(identity) = read_fitting(certificate_path, key_path)? {
            return Ok(identity);
        }
        attempts -= 1;
        if attempts == 0 {
            bail!("{} and {} do not belong together", certificate_path.display(), key_path.display());
        }
        // They may have been replaced between the reading of the one and of the other.
        std::thread::sleep(READ_PAUSE);
    }
}

fn read_fitting(certificate_path: &Path, key_path: &Path) -> Result<Option<Identity>> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let certificate = read(certificate_path)?;
    let keys = key_blocks(&read(key_path)?);
    if keys.is_empty() {
        bail!("cannot read a key from {}", key_path.display());
    }
    for key in keys {
        let identity = Identity { certificate: certificate.clone(), key };
        let pair = certified(&identity)
            .with_context(|| format!("cannot use {} and {}", certificate_path.display(), key_path.display()))?;
        if pair.is_some() {
            return Ok(Some(identity));
        }
    }
    Ok(None)
}

/// The pair as TLS uses it; `None` when the key is not the certificate's.
pub fn certified(identity: &Identity) -> Result<Option<Arc<CertifiedKey>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .context("it holds no readable certificate")?;
    if chain.is_empty() {
        bail!("it holds no certificate");
    }
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).context("it holds no readable key")?;
    match CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()) {
        Ok(pair) => Ok(Some(Arc::new(pair))),
        Err(rustls::Error::InconsistentKeys(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Each private key of a PEM text by itself.
fn key_blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut current: Option<String> = None;
    for line in text.lines() {
        if line.starts_with("-----BEGIN ") && line.contains("PRIVATE KEY-----") {
            current = Some(String::new());
        }
        if let Some(block) = &mut current {
            block.push_str(line);
            block.push('\n');
        }
        if line.starts_with("-----END ") {
            blocks.extend(current.take());
        }
    }
    blocks
}

/// Makes a folder that its owner alone may enter.
pub fn create_private_folder(folder: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Writes a file that its owner alone may read, durably, and whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    replace(&[(path, content)])
}

/// Where a file's new content lies before it takes the old one's place.
pub fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// As [`write_private`], for several files of one folder: nothing is replaced before all are ready, and then one right after the other
/// in this order, which a file system keeps through a crash.
fn replace(files: &[(&Path, &[u8])]) -> Result<()> {
    let each = |step: &dyn Fn(&Path, &[u8]) -> std::io::Result<()>| {
        let mut files = files.iter();
        files.try_for_each(|(path, content)| step(path, content).with_context(|| format!("cannot write {}", path.display())))
    };
    each(&|path, content| {
        let partial = partial(path);
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()
    })?;
    each(&|path, _| fs::rename(partial(path), path))?;
    each(&|path, _| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn authority(folder: &Path) -> Authority {
        Authority::open(folder, now()).unwrap()
    }

    #[test]
    fn a_good_certificate_is_kept_and_any_other_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (authority, files) = (authority(folder.path()), KeyFolder::new(folder.path()));
        let subject = |address: &str| Subject::node("n1", vec![address.parse().unwrap()]);
        let ensure =
            |subject: &Subject, now: Timestamp| files.ensure("node", &authority, subject, Lifetime::days(30), now).unwrap();
        assert_eq!(ensure(&subject("10.0.0.1"), now()), Ensured::Made);
        let first = files.read("node").unwrap();
        assert_eq!(ensure(&subject("10.0.0.1"), now()), Ensured::Kept);
        assert_eq!(files.read("node").unwrap().certificate, first.certificate);

        let anew = |outcome: Ensured| matches!(outcome, Ensured::MadeAnew(_));
        assert!(anew(ensure(&subject("10.0.0.2"), now())), "another address");
        let late = "2026-01-25T00:00:00Z".parse().unwrap();
        assert!(anew(ensure(&subject("10.0.0.2"), late)), "a few days are left");
        fs::write(files.key("node"), &first.key).unwrap();
        assert!(anew(ensure(&subject("10.0.0.2"), late)), "the key is another certificate's");
        let other = tempfile::tempdir().unwrap();
        let other = Authority::open(other.path(), now()).unwrap();
        assert!(anew(files.ensure("node", &other, &subject("10.0.0.2"), Lifetime::days(30), late).unwrap()), "another authority");
        assert!(files.read("node").is_ok());
    }

    #[test]
    fn a_replacement_that_is_cut_off_leaves_a_pair_that_fits() {
        let folder = tempfile::tempdir().unwrap();
        let (authority, files) = (authority(folder.path()), KeyFolder::new(folder.path()));
        let [old, new] = [(); 2].map(|()| authority.issue(&Subject::admin(), Lifetime::days(30), now()).unwrap());
        files.write("admin", &old).unwrap();
        // The states on the way of a replacement, in order.
        write_private(&files.key("admin"), [old.key.clone(), new.key.clone()].concat().as_bytes()).unwrap();
        assert_eq!(files.read("admin").unwrap().key, old.key);
        write_private(&files.certificate("admin"), new.certificate.as_bytes()).unwrap();
        assert_eq!(files.read("admin").unwrap().key, new.key);
        // The next one finishes it.
        files.write("admin", &new).unwrap();
        assert_eq!(fs::read_to_string(files.key("admin")).unwrap(), new.key);
    }

    #[test]
    fn nothing_is_replaced_before_all_is_ready() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["a.crt", "a.key"].map(|name| folder.path().join(name));
        let texts = || [&one, &other].map(|path| fs::read_to_string(path).unwrap());
        replace(&[(&one, b"1"), (&other, b"1")]).unwrap();
        fs::create_dir(partial(&other)).unwrap();
        let error = format!("{:#}", replace(&[(&one, b"2"), (&other, b"2")]).unwrap_err());
        assert!(error.contains("cannot write") && error.contains("a.key"), "{error}");
        assert_eq!(texts(), ["1", "1"]);
        // What it has left behind is in nobody's way.
        fs::remove_dir(partial(&other)).unwrap();
        replace(&[(&one, b"3"), (&other, b"3")]).unwrap();
        assert_eq!(texts(), ["3", "3"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (authority, files) = (authority(folder.path()), KeyFolder::new(folder.path()));
        files.write("a", &authority.issue(&Subject::admin(), Lifetime::days(30), now()).unwrap()).unwrap();
        files.write("b", &authority.issue(&Subject::admin(), Lifetime::days(30), now()).unwrap()).unwrap();
        let mixed = read_identity(&files.certificate("a"), &files.key("b"));
        assert!(format!("{:#}", mixed.err().unwrap()).contains("do not belong together"));
        fs::write(files.key("b"), "no key").unwrap();
        assert!(format!("{:#}", files.read("b").err().unwrap()).contains("cannot read a key"));
        assert_eq!(files.names().unwrap(), ["a", "b"]);
    }
}
