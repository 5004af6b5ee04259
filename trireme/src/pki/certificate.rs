//! What a certificate says.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::{Lifetime, Subject};

/// A certificate, read.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub subject: Subject,
    /// The subject as a line of text.
    pub subject_text: String,
    pub issuer_text: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    der: CertificateDer<'static>,
}

impl Certificate {
    /// Reads the first certificate of a PEM text.
    pub fn parse(pem: &str) -> Result<Self> {
        let Some(der) = CertificateDer::pem_slice_iter(pem.as_bytes()).next() else { bail!("it holds no certificate") };
        let der = der.context("it is not PEM")?;
        let (_, parsed) = X509Certificate::from_der(&der).context("it is not an X.509 certificate")?;
        let seconds =
            |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).context("its dates are out of range");
        Ok(Self {
            subject: subject(&parsed),
            subject_text: parsed.subject().to_string(),
            issuer_text: parsed.issuer().to_string(),
            not_before: seconds(parsed.validity().not_before)?,
            not_after: seconds(parsed.validity().not_after)?,
            der: der.clone(),
        })
    }

    /// For how many seconds more it is valid; negative when it is not any more.
    pub fn left_seconds(&self, now: Timestamp) -> i64 {
        self.not_after.as_second() - now.as_second()
    }

    /// How long it was made to be valid.
    pub fn lifetime(&self) -> Lifetime {
        Lifetime::of_span(u64::try_from(self.not_after.as_second() - self.not_before.as_second()).unwrap_or(0))
    }

    /// Whether it should be renewed now.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.lifetime().is_due(self.left_seconds(now))
    }

    /// Whether `authority` has signed it, whatever the time is.
    pub fn is_signed_by(&self, authority: &Certificate) -> bool {
        let mut roots = RootCertStore::empty();
        if roots.add(authority.der.clone()).is_err() {
            return false;
        }
        let Ok(verifier) = WebPkiClientVerifier::builder(roots.into()).build() else { return false };
        // Its own first moment: one that is over is its authority's all the same.
        let begin = u64::try_from(self.not_before.as_second()).unwrap_or(0);
        let moment = UnixTime::since_unix_epoch(std::time::Duration::from_secs(begin));
        verifier.verify_client_cert(&self.der, &[], moment).is_ok()
    }
}

fn subject(certificate: &X509Certificate<'_>) -> Subject {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let dns_names = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let addresses = names.iter().filter_map(|name| match name {
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
        },
        _ => None,
    });
    let text = |name: &x509_parser::x509::AttributeTypeAndValue<'_>| name.as_str().ok().map(str::to_owned);
    Subject {
        common_name: certificate.subject().iter_common_name().next().and_then(text).unwrap_or_default(),
        organizations: certificate.subject().iter_organization().filter_map(text).collect(),
        dns_names: dns_names.collect(),
        addresses: addresses.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Authority;

    #[test]
    fn what_was_asked_for_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let authority = Authority::open(folder.path(), now).unwrap();
        let subject =
            Subject::api("m1", vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()], &["lb.example".to_owned()]);
        let identity = authority.issue(&subject, Lifetime::days(90), now).unwrap();
        let read = Certificate::parse(&identity.certificate).unwrap();
        assert_eq!(read.subject, subject);
        assert_eq!(read.lifetime(), Lifetime::days(90));
        assert_eq!(read.left_seconds(now), 90 * 24 * 3600);
        assert!(!read.is_due(now));
        assert!(read.is_due("2026-03-03T00:00:00Z".parse().unwrap()));

        let own = Certificate::parse(authority.certificate()).unwrap();
        assert!(read.is_signed_by(&own));
        let other = tempfile::tempdir().unwrap();
        let other = Authority::open(other.path(), now).unwrap();
        assert!(!read.is_signed_by(&Certificate::parse(other.certificate()).unwrap()), "an authority of the same name");
        assert!(Certificate::parse("nothing").is_err());
    }

    #[test]
    fn none_outlives_its_authority() {
        let folder = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let authority = Authority::open(folder.path(), now).unwrap();
        let end = Certificate::parse(authority.certificate()).unwrap().not_after;
        let late: Timestamp = "2035-06-01T00:00:00Z".parse().unwrap();
        let identity = authority.issue(&Subject::admin(), Lifetime::days(365), late).unwrap();
        assert_eq!(Certificate::parse(&identity.certificate).unwrap().not_after, end);
    }
}
