//! Image references as users write them (`nginx`, `registry:5000/team/app:1.2@sha256:…`), made canonical as docker does.

use std::fmt;

/// A canonical reference: always with a registry and a repository, and with a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageReference {
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    /// `sha256:<64 hex digits>`.
    pub digest: Option<String>,
}

/// Why a text is no image reference; the message is for the pod's status with reason `InvalidImageName`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {text:?}: {problem}")]
pub struct ReferenceError {
    pub text: String,
    pub problem: &'static str,
}

const DEFAULT_REGISTRY: &str = "docker.io";

impl ImageReference {
    /// Parses and normalises: no registry means `docker.io`, one component there means `library/`, no tag and no digest
    /// means `latest` (the rules of distribution/reference).
    pub fn parse(text: &str) -> Result<ImageReference, ReferenceError> {
        let fail = |problem| Err(ReferenceError { text: text.to_owned(), problem });
        if text.is_empty() {
            return fail("the name is empty");
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if let Some(digest) = digest
            && !is_sha256(digest)
        {
            return fail("the digest must be sha256 with 64 hexadecimal digits");
        }
        let (name, tag) = match rest.rfind(':') {
            Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(&rest[colon + 1..])),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return fail("the tag must have 1 to 128 letters, digits, '_', '.' or '-' and not start with '.' or '-'");
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DEFAULT_REGISTRY, name),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        if !is_host(registry) {
            return fail("the registry's name is not valid");
        }
        if path.is_empty() || !path.split('/').all(is_path_component) {
            return fail("repository name must be lowercase letters and digits, separated by '.', '_', '__' or '-'");
        }
        let repository =
            if registry == DEFAULT_REGISTRY && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        if registry.len() + 1 + repository.len() > 255 {
            return fail("repository name must not be more than 255 characters");
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(ImageReference { registry: registry.to_owned(), repository, tag, digest: digest.map(str::to_owned) })
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same name, by digest alone: `registry/repository@sha256:…`.
    pub fn by_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether the text is `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_sha256(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)))
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Whether the first component names a registry rather than a part of the repository.
fn is_registry(component: &str) -> bool {
    component.contains(['.', ':']) || component == "localhost" || component.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(registry: &str) -> bool {
    let (host, port) = match registry.rfind(':') {
        Some(colon) if !registry.ends_with(']') => (&registry[..colon], Some(&registry[colon + 1..])),
        _ => (registry, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return false;
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_word(*first) || !is_word(*last) || !bytes.iter().all(|byte| is_word(*byte) || matches!(byte, b'.' | b'_' | b'-')) {
        return false;
    }
    component
        .split(|character: char| character.is_ascii_lowercase() || character.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalised_as_docker_does() {
        let hex = "a".repeat(64);
        let digest = format!("sha256:{hex}");
        for (text, expected) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.25", "docker.io/library/nginx:1.25".to_owned()),
            ("team/app", "docker.io/team/app:latest".to_owned()),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/app:v1", "localhost:5000/app:v1".to_owned()),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9".to_owned()),
            ("[::1]:5000/a/b__c/d--e.f", "[::1]:5000/a/b__c/d--e.f:latest".to_owned()),
            (&format!("app@{digest}"), format!("docker.io/library/app@{digest}")),
            (&format!("app:v2@{digest}"), format!("docker.io/library/app:v2@{digest}")),
        ] {
            assert_eq!(ImageReference::parse(text).map(|reference| reference.to_string()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_canonical_reference_parses_to_itself() {
        for text in ["nginx", "a.b:1/x/y:t", "localhost/app"] {
            let once = ImageReference::parse(text).unwrap();
            assert_eq!(ImageReference::parse(&once.to_string()).unwrap(), once);
        }
    }

    #[test]
    fn bad_references_are_refused() {
        for text in [
            "",
            "UPPER/case:bad tag",
            "nginx:",
            "Nginx",
            "app@sha256:abc",
            "a//b",
            "/a",
            "a/",
            "app:-x",
            "bad_.name",
            "host:port/app",
            "-a.b/app",
            "../etc/passwd",
            "a___b",
            "registry.example.com",
        ] {
            if text == "registry.example.com" {
                // A name with dots and no slash is a repository of docker.io.
                assert!(ImageReference::parse(text).is_ok());
                continue;
            }
            assert!(ImageReference::parse(text).is_err(), "{text:?}");
        }
    }
}
