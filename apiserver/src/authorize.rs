//! Who may do what: a small static table until roles are objects.

use http::Method;
use trireme_api::status::{Details, Status};

use crate::{
    context::{MASTERS, RequestContext},
    node_restriction,
    router::path::ResourcePath,
};

/// What a caller wants to do with a resource.
pub struct Attributes<'a> {
    pub verb: &'a str,
    pub path: &'a ResourcePath,
}

/// Some verbs on some resources. `*` is all of them.
struct Rule {
    groups: &'static [&'static str],
    /// `pods`, `pods/status`, `*`.
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];
const ALL: &[&str] = &["*"];

/// What node agents do: read what pods need, keep their node, their lease and their pods' status, say what happened. Which
/// nodes, leases and pods these are is for [`node_restriction`] to say.
const NODE_RULES: &[Rule] = &[
    Rule {
        groups: &["", "discovery.k8s.io"],
        resources: &["pods", "nodes", "services", "endpoints", "endpointslices", "serviceaccounts", "namespaces"],
        verbs: READ,
    },
    // By name alone, as a pod refers to them: whoever takes a node must not read the whole cluster's.
    Rule { groups: &[""], resources: &["configmaps", "secrets"], verbs: &["get"] },
    Rule { groups: &[""], resources: &["serviceaccounts/token"], verbs: &["create"] },
    Rule { groups: &[""], resources: &["nodes"], verbs: &["create", "update", "patch"] },
    Rule { groups: &[""], resources: &["nodes/status", "pods/status"], verbs: &["get", "update", "patch"] },
    Rule { groups: &[""], resources: &["pods"], verbs: &["delete"] },
    Rule { groups: &["", "events.k8s.io"], resources: &["events"], verbs: &["create", "update", "patch"] },
    Rule { groups: &["coordination.k8s.io"], resources: &["leases"], verbs: &["get", "create", "update", "patch", "delete"] },
];

/// What a scheduler does.
const SCHEDULER_RULES: &[Rule] = &[
    Rule { groups: ALL, resources: ALL, verbs: READ },
    Rule { groups: &[""], resources: &["pods/binding", "bindings"], verbs: &["create"] },
    Rule { groups: &[""], resources: &["pods/status"], verbs: &["update", "patch"] },
    Rule { groups: &[""], resources: &["pods"], verbs: &["delete"] },
    Rule { groups: &["", "events.k8s.io"], resources: &["events"], verbs: &["create", "update", "patch"] },
    Rule { groups: &["coordination.k8s.io"], resources: &["leases"], verbs: ALL },
];

/// What the controllers do: the garbage collector and the namespace controller touch every kind.
const CONTROLLER_RULES: &[Rule] = &[Rule { groups: ALL, resources: ALL, verbs: ALL }];

/// Paths that everyone may read.
const PUBLIC_PATHS: &[&str] = &["/version", "/healthz", "/livez", "/readyz"];
/// Paths that everyone who proved who they are may read.
const DISCOVERY_PATHS: &[&str] = &["/api", "/apis", "/openapi"];

/// Whether the caller may do this to the resource.
///
/// # Errors
/// 403 in Kubernetes' words.
pub fn resource(context: &RequestContext, attributes: &Attributes<'_>) -> Result<(), Status> {
    if context.is_in(MASTERS) {
        return Ok(());
    }
    if !rules(context).iter().any(|rule| rule.allows(attributes)) {
        return Err(forbidden(context, attributes));
    }
    match node_restriction::refusal_of_path(context, attributes.path) {
        None => Ok(()),
        Some(why) => {
            let mut status = forbidden(context, attributes);
            status.message = format!("{}: {why}", status.message);
            Err(status)
        }
    }
}

fn rules(context: &RequestContext) -> &'static [Rule] {
    match context.user.as_str() {
        "system:kube-scheduler" => SCHEDULER_RULES,
        "system:kube-controller-manager" => CONTROLLER_RULES,
        _ if node_restriction::node_name(context).is_some() => NODE_RULES,
        _ => &[],
    }
}

impl Rule {
    fn allows(&self, attributes: &Attributes<'_>) -> bool {
        let path = attributes.path;
        let resource = resource_name(path);
        let holds = |list: &[&str], value: &str| list.iter().any(|entry| *entry == "*" || *entry == value);
        holds(self.groups, &path.group) && holds(self.resources, &resource) && holds(self.verbs, attributes.verb)
    }
}

fn resource_name(path: &ResourcePath) -> String {
    match &path.subresource {
        Some(subresource) => format!("{}/{subresource}", path.plural),
        None => path.plural.clone(),
    }
}

/// The refusal of what a caller wants to do with a resource.
pub fn forbidden(context: &RequestContext, attributes: &Attributes<'_>) -> Status {
    let path = attributes.path;
    let qualified = if path.group.is_empty() { path.plural.clone() } else { format!("{}.{}", path.plural, path.group) };
    let name = path.name.as_deref().map(|name| format!(" \"{name}\"")).unwrap_or_default();
    let place = match &path.namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    let message = format!(
        "{qualified}{name} is forbidden: User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
        context.user,
        attributes.verb,
        resource_name(path),
        path.group
    );
    let mut status = Status::new(403, "Forbidden", message);
    status.details = Some(Details {
        name: path.name.clone().unwrap_or_default(),
        group: path.group.clone(),
        kind: path.plural.clone(),
        ..Details::default()
    });
    status
}

/// Whether the caller may ask for a path that is no resource.
///
/// # Errors
/// 403 in Kubernetes' words.
pub fn path(context: &RequestContext, method: &Method, path: &str) -> Result<(), Status> {
    let is_below = |roots: &[&str]| {
        roots.iter().any(|root| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let is_known = context.is_in(crate::context::AUTHENTICATED);
    if context.is_in(MASTERS) || is_read && (is_below(PUBLIC_PATHS) || is_known && (is_below(DISCOVERY_PATHS) || path == "/")) {
        return Ok(());
    }
    let message = format!("forbidden: User \"{}\" cannot {} path \"{path}\"", context.user, method.as_str().to_lowercase());
    let mut status = Status::new(403, "Forbidden", message);
    status.details = Some(Details::default());
    Err(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(namespace: Option<&str>, name: Option<&str>, subresource: Option<&str>) -> ResourcePath {
        ResourcePath {
            version: "v1".into(),
            plural: "pods".into(),
            namespace: namespace.map(Into::into),
            name: name.map(Into::into),
            subresource: subresource.map(Into::into),
            ..ResourcePath::default()
        }
    }

    #[test]
    fn refusals_are_worded_as_kubernetes_words_them() {
        let anonymous = RequestContext::anonymous();
        let message = |verb, path: ResourcePath| {
            resource(&anonymous, &Attributes { verb, path: &path }).map_err(|status| status.message).unwrap_err()
        };
        assert_eq!(
            message("list", pods(Some("default"), None, None)),
            "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
        assert_eq!(
            message("get", pods(Some("a"), Some("p"), Some("log"))),
            "pods \"p\" is forbidden: User \"system:anonymous\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"a\""
        );
        assert_eq!(
            path(&anonymous, &Method::GET, "/apis").map_err(|status| status.message),
            Err("forbidden: User \"system:anonymous\" cannot get path \"/apis\"".to_owned())
        );
    }

    #[test]
    fn identities_have_their_rules() {
        let node = RequestContext::authenticated("system:node:n1", ["system:nodes".to_owned()]);
        let scheduler = RequestContext::authenticated("system:kube-scheduler", []);
        let admin = RequestContext::master("admin");
        let may = |who: &RequestContext, verb, path: &ResourcePath| resource(who, &Attributes { verb, path }).is_ok();
        let status = pods(Some("a"), Some("p"), Some("status"));
        let binding = pods(Some("a"), Some("p"), Some("binding"));
        assert!(may(&node, "patch", &status));
        assert!(!may(&node, "create", &binding));
        let of = |group: &str, plural: &str, namespace: Option<&str>, name: Option<&str>| ResourcePath {
            group: group.to_owned(),
            plural: plural.to_owned(),
            ..pods(namespace, name, None)
        };
        for plural in ["secrets", "configmaps"] {
            assert!(may(&node, "get", &of("", plural, Some("a"), Some("s"))), "{plural}");
            assert!(!may(&node, "list", &of("", plural, None, None)), "{plural}");
            assert!(!may(&node, "watch", &of("", plural, Some("a"), None)), "{plural}");
        }
        assert!(!may(&node, "create", &pods(Some("a"), None, None)));
        assert!(!may(&node, "create", &pods(Some("a"), Some("p"), Some("eviction"))));
        assert!(!may(&node, "deletecollection", &pods(Some("a"), None, None)));
        assert!(!may(&node, "delete", &of("", "nodes", None, Some("n1"))));
        assert!(may(&node, "list", &of("discovery.k8s.io", "endpointslices", None, None)));
        let lease = |namespace, name| of("coordination.k8s.io", "leases", Some(namespace), Some(name));
        assert!(may(&node, "patch", &lease("kube-node-lease", "n1")));
        assert!(!may(&node, "patch", &lease("kube-node-lease", "n2")));
        assert!(!may(&node, "list", &of("coordination.k8s.io", "leases", None, None)));
        assert_eq!(
            resource(&node, &Attributes { verb: "get", path: &lease("kube-system", "n1") }).map_err(|status| status.message),
            Err("leases.coordination.k8s.io \"n1\" is forbidden: User \"system:node:n1\" cannot get resource \"leases\" in API group \
                 \"coordination.k8s.io\" in the namespace \"kube-system\": can only access leases in the \"kube-node-lease\" system \
                 namespace"
                .to_owned())
        );
        let nobody = RequestContext::authenticated("somebody", ["system:nodes".to_owned()]);
        assert!(!may(&nobody, "get", &pods(Some("a"), Some("p"), None)), "a node has a name");
        assert!(may(&scheduler, "create", &binding));
        assert!(!may(&scheduler, "create", &pods(Some("a"), None, None)));
        assert!(may(&admin, "deletecollection", &pods(Some("a"), None, None)));
        assert!(path(&node, &Method::GET, "/openapi/v3/api/v1").is_ok());
        assert!(path(&RequestContext::anonymous(), &Method::GET, "/readyz").is_ok());
        assert!(path(&node, &Method::GET, "/metrics").is_err());
    }
}
