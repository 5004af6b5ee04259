//! The paths of the Kubernetes API. One parser, no table of routes: kinds come from the registry.

/// What a path names. Whether the resource exists is for the caller to find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/`: the list of paths.
    Root,
    Version,
    Health(HealthRoute),
    Metrics,
    OpenApiV2,
    OpenApiV3Index,
    /// `/openapi/v3/apis/apps/v1`, without the leading `/openapi/v3/`.
    OpenApiV3(String),
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group(String),
    /// `/api/<version>` (the group is empty) or `/apis/<group>/<version>`
    GroupVersion {
        group: String,
        version: String,
    },
    Resource(ResourcePath),
    Other,
}

/// `/livez`, `/readyz`, `/healthz`, or one check of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthRoute {
    /// `livez`, `readyz` or `healthz`.
    pub endpoint: &'static str,
    /// The single check asked for: `/readyz/caches`.
    pub check: Option<String>,
}

/// A resource, an object of it, or a subresource of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub namespace: Option<String>,
    pub plural: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// The path is of the old form `/api/v1/watch/…`.
    pub watch: bool,
}

/// Takes a path apart. `path` is percent-encoded, as it came.
pub fn parse(path: &str) -> Route {
    let Some(parts) = path.split('/').filter(|part| !part.is_empty()).map(percent_decode).collect::<Option<Vec<String>>>() else {
        return Route::Other;
    };
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        [] => Route::Root,
        ["version"] => Route::Version,
        ["metrics"] => Route::Metrics,
        ["livez", check @ ..] => health("livez", check),
        ["readyz", check @ ..] => health("readyz", check),
        ["healthz", check @ ..] => health("healthz", check),
        ["openapi", "v2"] => Route::OpenApiV2,
        ["openapi", "v3"] => Route::OpenApiV3Index,
        ["openapi", "v3", rest @ ..] => Route::OpenApiV3(rest.join("/")),
        ["api"] => Route::CoreVersions,
        ["api", version] => Route::GroupVersion { group: String::new(), version: (*version).to_owned() },
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis"] => Route::Groups,
        ["apis", group] => Route::Group((*group).to_owned()),
        ["apis", group, version] => Route::GroupVersion { group: (*group).to_owned(), version: (*version).to_owned() },
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        _ => Route::Other,
    }
}

fn health(endpoint: &'static str, check: &[&str]) -> Route {
    match check {
        [] => Route::Health(HealthRoute { endpoint, check: None }),
        [check] => Route::Health(HealthRoute { endpoint, check: Some((*check).to_owned()) }),
        _ => Route::Other,
    }
}

fn resource(group: &str, version: &str, parts: &[&str]) -> Route {
    let (watch, parts) = match parts {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        _ => (false, parts),
    };
    let (namespace, rest) = match parts {
        // The subresources of a namespace itself look like namespaced resources.
        ["namespaces", _, "status" | "finalize"] | ["namespaces"] | ["namespaces", _] => (None, parts),
        ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
        _ => (None, parts),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (plural, None, None),
        [plural, name] => (plural, Some(name), None),
        [plural, name, subresource] => (plural, Some(name), Some(subresource)),
        _ => return Route::Other,
    };
    Route::Resource(ResourcePath {
        group: group.to_owned(),
        version: version.to_owned(),
        namespace,
        plural: (*plural).to_owned(),
        name: name.map(|name| (*name).to_owned()),
        subresource: subresource.map(|name| (*name).to_owned()),
        watch,
    })
}

/// `None` for a broken escape or bytes that are not UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(group: &str, namespace: Option<&str>, plural: &str, name: Option<&str>, subresource: Option<&str>) -> Route {
        Route::Resource(ResourcePath {
            group: group.into(),
            version: "v1".into(),
            namespace: namespace.map(Into::into),
            plural: plural.into(),
            name: name.map(Into::into),
            subresource: subresource.map(Into::into),
            watch: false,
        })
    }

    #[test]
    fn paths_of_resources() {
        let cases = [
            ("/api/v1/nodes", path("", None, "nodes", None, None)),
            ("/api/v1/nodes/n1/", path("", None, "nodes", Some("n1"), None)),
            ("/api/v1/namespaces", path("", None, "namespaces", None, None)),
            ("/api/v1/namespaces/a", path("", None, "namespaces", Some("a"), None)),
            ("/api/v1/namespaces/a/finalize", path("", None, "namespaces", Some("a"), Some("finalize"))),
            ("/api/v1/namespaces/a/status", path("", None, "namespaces", Some("a"), Some("status"))),
            ("/api/v1/namespaces/a/pods", path("", Some("a"), "pods", None, None)),
            ("/api/v1/namespaces/a/pods/p/log", path("", Some("a"), "pods", Some("p"), Some("log"))),
            ("/apis/apps/v1/deployments", path("apps", None, "deployments", None, None)),
            ("/apis/apps/v1/namespaces/a/deployments/d/scale", path("apps", Some("a"), "deployments", Some("d"), Some("scale"))),
            ("/api/v1/namespaces/a/events/p%2Ex", path("", Some("a"), "events", Some("p.x"), None)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn other_paths() {
        assert_eq!(parse("/"), Route::Root);
        assert_eq!(parse("/apis/apps"), Route::Group("apps".into()));
        assert_eq!(parse("/openapi/v3/apis/apps/v1"), Route::OpenApiV3("apis/apps/v1".into()));
        assert_eq!(parse("/readyz/caches"), Route::Health(HealthRoute { endpoint: "readyz", check: Some("caches".into()) }));
        assert_eq!(parse("/api/v1/pods/%zz"), Route::Other);
        assert_eq!(parse("/nothing/here"), Route::Other);
        let Route::Resource(watched) = parse("/api/v1/watch/namespaces/a/pods") else { panic!("not a resource") };
        assert!(watched.watch);
        assert_eq!(watched.namespace.as_deref(), Some("a"));
    }
}
