//! Acting as somebody else: the `Impersonate-*` headers (`kubectl --as`). Only members of `system:masters` may, and they may be
//! anybody.

use http::HeaderMap;
use trireme_api::status::Status;

use crate::{
    authorize::{self, Attributes},
    context::{ANONYMOUS, AUTHENTICATED, MASTERS, RequestContext, UNAUTHENTICATED},
    router::path::ResourcePath,
};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// Who the request is to count as: the caller, or whom the caller's headers name. UIDs and extra fields are taken and play no
/// part in what a user may do.
///
/// # Errors
/// 403 for a caller who may not impersonate, 500 (as Kubernetes answers) for headers without a user.
pub fn acting_as(caller: RequestContext, headers: &HeaderMap) -> Result<RequestContext, Status> {
    let values = |name: &str| -> Result<Vec<String>, Status> {
        let text = |value: &http::HeaderValue| {
            let unreadable = |_| Status::bad_request(format!("the header {name} is not text"));
            value.to_str().map(str::to_owned).map_err(unreadable)
        };
        headers.get_all(name).iter().map(text).collect()
    };
    let user = values(USER)?.into_iter().next().filter(|user| !user.is_empty());
    let groups = values(GROUP)?;
    let more = headers.keys().map(http::HeaderName::as_str).find(|name| *name == UID || name.starts_with(EXTRA_PREFIX));
    let Some(user) = user else {
        return match more.or((!groups.is_empty()).then_some(GROUP)) {
            None => Ok(caller),
            Some(header) => Err(Status::internal(format!("requested {header} without impersonating a user"))),
        };
    };
    if !caller.is_in(MASTERS) {
        let path = user_path(&user);
        return Err(authorize::forbidden(&caller, &Attributes { verb: "impersonate", path: &path }));
    }
    let groups = if groups.is_empty() { service_account_groups(&user) } else { groups };
    Ok(context(user, groups))
}

/// A service account's namespace and name.
fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?
        .split_once(':')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains(':'))
}

fn service_account_groups(user: &str) -> Vec<String> {
    service_account(user).map_or_else(Vec::new, |(namespace, _)| {
        vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
    })
}

/// The user as the object that one must be allowed to impersonate.
fn user_path(user: &str) -> ResourcePath {
    match service_account(user) {
        Some((namespace, name)) => ResourcePath {
            plural: "serviceaccounts".to_owned(),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ResourcePath::default()
        },
        None => ResourcePath { plural: "users".to_owned(), name: Some(user.to_owned()), ..ResourcePath::default() },
    }
}

fn context(user: String, mut groups: Vec<String>) -> RequestContext {
    if !groups.iter().any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED) {
        groups.push(if user == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED }.to_owned());
    }
    RequestContext { user, groups, fence: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(given: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, http::HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn masters_may_be_anybody() {
        let become_who = |given: &[(&'static str, &'static str)]| {
            let context = acting_as(RequestContext::master("admin"), &headers(given)).expect("a master may");
            (context.user.clone(), context.groups.join(" "))
        };
        let who = |user: &str, groups: &str| (user.to_owned(), groups.to_owned());
        assert_eq!(become_who(&[]), who("admin", "system:masters system:authenticated"));
        assert_eq!(become_who(&[(USER, "jane")]), who("jane", "system:authenticated"));
        assert_eq!(
            become_who(&[(USER, "jane"), (GROUP, "a"), (GROUP, "b"), (UID, "7"), ("impersonate-extra-scopes", "x")]),
            who("jane", "a b system:authenticated")
        );
        assert_eq!(become_who(&[(USER, ANONYMOUS)]), who(ANONYMOUS, UNAUTHENTICATED));
        assert_eq!(
            become_who(&[(USER, "system:serviceaccount:n:a")]),
            who("system:serviceaccount:n:a", "system:serviceaccounts system:serviceaccounts:n system:authenticated")
        );
    }

    #[test]
    fn others_may_not() {
        let refused = |given: &[(&'static str, &'static str)]| {
            let status = acting_as(RequestContext::authenticated("bob", []), &headers(given)).expect_err("it is refused");
            (status.code, status.message)
        };
        let why = "users \"jane\" is forbidden: User \"bob\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope";
        assert_eq!(refused(&[(USER, "jane"), (GROUP, "system:masters")]), (403, why.to_owned()));
        let why = "serviceaccounts \"a\" is forbidden: User \"bob\" cannot impersonate resource \"serviceaccounts\" in API group \"\" in \
                   the namespace \"n\"";
        assert_eq!(refused(&[(USER, "system:serviceaccount:n:a")]), (403, why.to_owned()));
        assert_eq!(refused(&[(GROUP, "system:masters")]).0, 500);
        assert_eq!(refused(&[(UID, "7")]).0, 500);
    }
}
