//! Who asks.

use trireme_storage::model::Term;

/// Everyone who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Everyone who did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user that a request without a client certificate comes from.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group that may do everything.
pub const MASTERS: &str = "system:masters";

/// The identity behind a request, and the leadership that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestContext {
    pub user: String,
    pub groups: Vec<String>,
    /// The Raft term under which the caller was started; its writes are refused when they commit under another.
    pub fence: Option<Term>,
}

impl RequestContext {
    /// A caller that may do everything: the binary's own tasks.
    pub fn master(user: impl Into<String>) -> Self {
        Self { user: user.into(), groups: vec![MASTERS.to_owned(), AUTHENTICATED.to_owned()], fence: None }
    }

    /// A caller without a client certificate.
    pub fn anonymous() -> Self {
        Self { user: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], fence: None }
    }

    /// A caller who proved to be `user` in `groups`.
    pub fn authenticated(user: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        groups.push(AUTHENTICATED.to_owned());
        Self { user: user.into(), groups, fence: None }
    }

    /// The same caller, acting for the leadership of `term`.
    pub fn fenced(mut self, term: Term) -> Self {
        self.fence = Some(term);
        self
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|name| name == group)
    }
}
