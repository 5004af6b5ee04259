//! Who calls, as the client certificate says, and what of the key space and of the cluster is not everyone's.
//!
//! The store is shared with Kubernetes. Its objects, under [`REGISTRY`], may be read by every client, but written only by members
//! of the group `system:masters`; the same goes for what touches everyone's data: the members, compaction, alarms. Node agents are
//! turned away: what they may read of Kubernetes' objects, Secrets above all, is for the API server to say.

use rustls::pki_types::CertificateDer;
use tonic::Request;
use trireme_storage::model::KeyRange;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::EtcdError;

/// Where the API server keeps its objects.
const REGISTRY: &[u8] = b"/registry/";
/// Kubernetes' group of those who may do everything.
const MASTERS: &str = "system:masters";
/// Kubernetes' group of the node agents.
const NODES: &str = "system:nodes";

/// The client at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Belongs to `system:masters`.
    Administrator,
    /// Has any other certificate of the cluster.
    Ordinary,
}

impl Caller {
    /// Who a verified certificate stands for: its organisations are the groups, as in Kubernetes. `None` for those who are not
    /// let in.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let is_in = |group| parsed.subject().iter_organization().any(|name| name.as_str() == Ok(group));
        match (is_in(MASTERS), is_in(NODES)) {
            (true, _) => Some(Self::Administrator),
            (false, true) => None,
            (false, false) => Some(Self::Ordinary),
        }
    }

    /// Who sent a request; an ordinary client when the connection did not say.
    pub fn from_request<T>(request: &Request<T>) -> Self {
        request.extensions().get::<Self>().copied().unwrap_or(Self::Ordinary)
    }

    /// Whether the caller may change keys of `range`.
    pub fn check_write(self, range: &KeyRange) -> Result<(), EtcdError> {
        if self == Self::Ordinary && touches_registry(range) { Err(EtcdError::PermissionDenied) } else { Ok(()) }
    }

    /// Whether the caller may do what concerns everyone.
    pub fn check_administrator(self) -> Result<(), EtcdError> {
        if self == Self::Ordinary { Err(EtcdError::PermissionDenied) } else { Ok(()) }
    }
}

/// Whether a range holds, or could hold, a key of Kubernetes.
fn touches_registry(range: &KeyRange) -> bool {
    let KeyRange::Span { start: first, end: past } = KeyRange::prefix(REGISTRY) else { return true };
    match range {
        KeyRange::One(key) => first <= *key && *key < past,
        KeyRange::Span { start, end } => *start < past && (end.is_empty() || first < *end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange::Span { start: start.into(), end: end.into() }
    }

    #[test]
    fn an_ordinary_client_may_not_write_where_kubernetes_does() {
        let refused = [
            KeyRange::One("/registry/core/pods/a/b".into()),
            KeyRange::prefix("/registry/"),
            KeyRange::prefix("/registry/x"),
            KeyRange::prefix("/reg"),
            KeyRange::all(),
            span("/registry/z", "/registryz"),
            span("/a", ""),
        ];
        let allowed = [
            KeyRange::One("/registry".into()),
            KeyRange::One("registry/x".into()),
            KeyRange::One("/registry0".into()),
            KeyRange::prefix("my/"),
            span("/registry0", ""),
            span("/a", "/registry/"),
            span("a", ""),
        ];
        for range in &refused {
            assert_eq!(Caller::Ordinary.check_write(range), Err(EtcdError::PermissionDenied), "{range:?}");
            assert_eq!(Caller::Administrator.check_write(range), Ok(()));
        }
        for range in &allowed {
            assert_eq!(Caller::Ordinary.check_write(range), Ok(()), "{range:?}");
        }
    }
}
