//! Where objects are kept in the store: `/registry/<group or "core">/<plural>/[<namespace>/]<name>`.

use trireme_api::registry::Resource;

/// Everything that the API server stores begins with this.
pub const ROOT: &str = "/registry/";

/// The first two segments after the root, which tell the resource: `core/pods`, `apps/deployments`. A kind that is a
/// view of another one's objects has that one's.
pub fn resource_segment(resource: &Resource) -> String {
    let (group, plural) = match resource.behaviour.stored_as() {
        Some(stored) => (stored.group, stored.plural),
        None => (resource.group.as_ref(), resource.plural.as_ref()),
    };
    let group = if group.is_empty() { "core" } else { group };
    format!("{group}/{plural}")
}

/// The prefix of all objects of a resource, with the slash at its end.
pub fn resource_prefix(resource: &Resource) -> String {
    format!("{ROOT}{}/", resource_segment(resource))
}

/// What comes after the resource's prefix: `default/web` or `node-1`.
pub fn object_path(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// The whole key of one object.
pub fn object_key(resource: &Resource, namespace: Option<&str>, name: &str) -> String {
    format!("{}{}", resource_prefix(resource), object_path(namespace, name))
}

/// Takes a key apart into the resource's segment (`core/pods`) and the object's path (`default/web`).
pub fn split(key: &[u8]) -> Option<(&str, &str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?;
    let group_end = rest.find('/')?;
    let plural_end = group_end + 1 + rest[group_end + 1..].find('/')?;
    let (segment, path) = (&rest[..plural_end], &rest[plural_end + 1..]);
    (!path.is_empty()).then_some((segment, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_apart() {
        assert_eq!(split(b"/registry/core/pods/default/web"), Some(("core/pods", "default/web")));
        assert_eq!(split(b"/registry/core/nodes/n1"), Some(("core/nodes", "n1")));
        assert_eq!(split(b"/registry/apps/deployments/a/b"), Some(("apps/deployments", "a/b")));
        assert_eq!(split(b"/registry/core/nodes/"), None);
        assert_eq!(split(b"/registry/core"), None);
        assert_eq!(split(b"/elsewhere/core/nodes/n1"), None);
    }
}
