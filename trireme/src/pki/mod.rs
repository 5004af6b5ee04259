//! The cluster's certificates: one authority, and a certificate for each master, peer, node and the administrator.
//!
//! Keys are P-256. Every file that holds a key is readable by its owner alone.

mod certificate;
pub mod certs;
pub mod commands;
mod files;
mod lifetime;
pub mod renew;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};

pub use certificate::Certificate;
pub use files::{Ensured, KeyFolder, certified, create_private_folder, partial, read_identity, write_private};
pub use lifetime::{Lifetime, LifetimeArgs};

/// How long the authority's own certificate is valid.
const AUTHORITY_LIFETIME: Lifetime = Lifetime::days(3650);

/// The names under which every master answers, whatever its address: what pods and node agents ask for.
pub const API_NAMES: [&str; 5] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"];

/// Who a certificate is for. The common name is the user and the organizations are the groups, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

impl Subject {
    /// The administrator: member of `system:masters`, who may do everything.
    pub fn admin() -> Self {
        Self::client("kubernetes-admin", "system:masters")
    }

    /// How an API server introduces itself to node agents.
    pub fn node_client() -> Self {
        Self::client("kube-apiserver-kubelet-client", "system:masters")
    }

    /// A node agent: client of the API and server of its own.
    pub fn node(name: &str, addresses: Vec<IpAddr>) -> Self {
        Self { dns_names: vec![name.to_owned()], addresses, ..Self::client(&format!("system:node:{name}"), "system:nodes") }
    }

    /// A master's API.
    pub fn api(name: &str, addresses: Vec<IpAddr>, extra_names: &[String]) -> Self {
        let dns_names = API_NAMES.iter().map(|name| (*name).to_owned()).chain(extra_names.iter().cloned());
        Self {
            common_name: "kube-apiserver".to_owned(),
            organizations: vec!["system:masters".to_owned()],
            dns_names: dns_names.chain([name.to_owned()]).collect(),
            addresses,
        }
    }

    /// A member of the Raft group, server and client alike. Every member of a cluster answers to one name.
    pub fn peer(name: &str, cluster_id: &str, addresses: Vec<IpAddr>) -> Self {
        Self {
            common_name: format!("trireme:master:{name}"),
            organizations: vec!["trireme:masters".to_owned()],
            dns_names: vec![trireme_consensus::peer_dns_name(cluster_id), name.to_owned()],
            addresses,
        }
    }

    fn client(common_name: &str, organization: &str) -> Self {
        Self { common_name: common_name.to_owned(), organizations: vec![organization.to_owned()], ..Self::default() }
    }
}

/// A certificate with its key, both in PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// The cluster's certificate authority.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Loads the authority in `folder` (`ca.crt`, `ca.key`), or makes what is missing: both, or a certificate for the key that a
    /// start which was broken off has left.
    pub fn open(folder: &Path, now: Timestamp) -> Result<Self> {
        let files = KeyFolder::new(folder);
        if !files.certificate("ca").exists() {
            let key = if files.key("ca").exists() { Self::load_key(folder)? } else { KeyPair::generate()? };
            files.write("ca", &Identity { certificate: Self::certify(&key, now)?, key: key.serialize_pem() })?;
        }
        Self::load(folder)
    }

    /// Loads the authority in `folder`.
    pub fn load(folder: &Path) -> Result<Self> {
        let identity = KeyFolder::new(folder).read("ca")?;
        let key = Self::load_key(folder)?;
        let issuer = Issuer::from_ca_cert_pem(&identity.certificate, key)
            .with_context(|| format!("{} holds no usable certificate", folder.join("ca.crt").display()))?;
        Ok(Self { certificate: identity.certificate, issuer })
    }

    fn load_key(folder: &Path) -> Result<KeyPair> {
        let path = KeyFolder::new(folder).key("ca");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        KeyPair::from_pem(&text).with_context(|| format!("{} holds no usable key", path.display()))
    }

    /// The authority's own certificate, signed by itself.
    fn certify(key: &KeyPair, now: Timestamp) -> Result<String> {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, "trireme-ca");
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, now, AUTHORITY_LIFETIME, None)?;
        Ok(params.self_signed(key)?.pem())
    }

    /// The authority's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Makes a key and signs a certificate for `subject`, good for serving and for calling. It does not outlive the authority.
    pub fn issue(&self, subject: &Subject, lifetime: Lifetime, now: Timestamp) -> Result<Identity> {
        let mut params = CertificateParams::new(subject.dns_names.clone())?;
        params.subject_alt_names.extend(subject.addresses.iter().copied().map(SanType::IpAddress));
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, subject.common_name.as_str());
        for organization in &subject.organizations {
            name.push(DnType::OrganizationName, organization.as_str());
        }
        params.distinguished_name = name;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, lifetime, Some(Certificate::parse(&self.certificate)?.not_after))?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, lifetime: Lifetime, latest: Option<Timestamp>) -> Result<()> {
    let not_before = now.checked_sub(lifetime.skew())?;
    let not_after = now.checked_add(lifetime.as_duration())?;
    let not_after = latest.map_or(not_after, |latest| not_after.min(latest));
    params.not_before = time::OffsetDateTime::from_unix_timestamp(not_before.as_second())?;
    params.not_after = time::OffsetDateTime::from_unix_timestamp(not_after.as_second())?;
    params.serial_number = Some(SerialNumber::from_slice(uuid::Uuid::new_v4().as_bytes()));
    Ok(())
}

/// The paths that a process needs to prove who it is: the authority's certificate, its own and its key.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct TlsPaths {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A certificate's file, and what was done about it.
pub type Done = (PathBuf, Ensured);

/// What certificates are made with.
pub struct Issuing<'a> {
    pub authority: &'a Authority,
    pub lifetime: Lifetime,
    pub now: Timestamp,
}

impl Issuing<'_> {
    fn ensure(&self, files: &KeyFolder, name: &str, subject: &Subject) -> Result<Done> {
        Ok((files.certificate(name), files.ensure(name, self.authority, subject, self.lifetime, self.now)?))
    }

    fn authority_copy(&self, files: &KeyFolder) -> Result<()> {
        write_private(&files.certificate("ca"), self.authority.certificate().as_bytes())
    }

    /// Makes what is missing of a master's folder, or no good any more: `api`, `peer` and `node-client`, and a copy of the authority's
    /// certificate.
    pub fn master(
        &self,
        folder: &Path,
        name: &str,
        cluster_id: &str,
        addresses: &[IpAddr],
        dns_names: &[String],
    ) -> Result<Vec<Done>> {
        let files = KeyFolder::new(folder);
        let done = vec![
            self.ensure(&files, "api", &Subject::api(name, addresses.to_vec(), dns_names))?,
            self.ensure(&files, "peer", &Subject::peer(name, cluster_id, addresses.to_vec()))?,
            self.ensure(&files, "node-client", &Subject::node_client())?,
        ];
        self.authority_copy(&files)?;
        Ok(done)
    }

    /// The same of a node's folder: `node`, and a copy of the authority's certificate.
    pub fn node(&self, folder: &Path, name: &str, addresses: &[IpAddr]) -> Result<Vec<Done>> {
        let files = KeyFolder::new(folder);
        let done = vec![self.ensure(&files, "node", &Subject::node(name, addresses.to_vec()))?];
        self.authority_copy(&files)?;
        Ok(done)
    }

    /// The same of the administrator's certificate, which lies beside the authority.
    pub fn admin(&self, folder: &Path) -> Result<Done> {
        self.ensure(&KeyFolder::new(folder), "admin", &Subject::admin())
    }
}

/// Where a local cluster keeps the administrator's certificate.
pub fn admin_paths(folder: &Path) -> TlsPaths {
    TlsPaths::in_folder(folder, "admin")
}

impl TlsPaths {
    /// `<name>.crt` and `<name>.key` beside `ca.crt`.
    pub fn in_folder(folder: &Path, name: &str) -> Self {
        let files = KeyFolder::new(folder);
        Self { ca: files.certificate("ca"), certificate: files.certificate(name), key: files.key(name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_and_its_certificates_verify() {
        let folder = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let authority = Authority::open(folder.path(), now).unwrap();
        let again = Authority::open(folder.path(), now).unwrap();
        assert_eq!(authority.certificate(), again.certificate());

        let subject = Subject::node("node-1", vec!["10.0.0.1".parse().unwrap()]);
        let identity = again.issue(&subject, Lifetime::default(), now).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(identity.certificate.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let (_, ca_pem) = x509_parser::pem::parse_x509_pem(authority.certificate().as_bytes()).unwrap();
        let ca = ca_pem.parse_x509().unwrap();
        assert_eq!(certificate.issuer(), ca.subject());
        assert_eq!(certificate.subject().to_string(), "CN=system:node:node-1, O=system:nodes");
        assert!(certificate.validity().is_valid_at(x509_parser::time::ASN1Time::from_timestamp(now.as_second()).unwrap()));
    }

    #[test]
    fn keys_are_readable_by_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        Authority::open(folder.path(), "2026-01-01T00:00:00Z".parse().unwrap()).unwrap();
        let mode = std::fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_authority_that_was_half_made_is_completed() {
        let folder = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        Authority::open(folder.path(), now).unwrap();
        let key = std::fs::read(folder.path().join("ca.key")).unwrap();
        std::fs::remove_file(folder.path().join("ca.crt")).unwrap();
        Authority::open(folder.path(), now).unwrap().issue(&Subject::admin(), Lifetime::default(), now).unwrap();
        assert_eq!(std::fs::read(folder.path().join("ca.key")).unwrap(), key, "the key is kept");
    }

    #[test]
    fn an_authority_without_its_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        Authority::open(folder.path(), now).unwrap();
        std::fs::remove_file(folder.path().join("ca.key")).unwrap();
        let Err(error) = Authority::open(folder.path(), now) else { panic!("an authority without a key was accepted") };
        assert!(format!("{error:#}").contains("ca.key"), "{error:#}");
    }
}
