//! The parameters of lists and watches (`meta.k8s.io/v1` ListOptions).

use serde_json::{Value, json};
use trireme_api::{field::FieldError, status::Status};
use trireme_storage::model::Revision;

use crate::{request::invalid_options, router::Query};

/// What `resourceVersionMatch` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevisionMatch {
    NotOlderThan,
    Exact,
}

/// The parameters beside the selectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListOptions {
    /// `None` when it was not given.
    pub revision: Option<Revision>,
    pub revision_match: Option<RevisionMatch>,
    pub limit: Option<usize>,
    pub continue_token: Option<ContinueToken>,
    pub timeout_seconds: Option<u64>,
    pub bookmarks: Bookmarks,
    /// `sendInitialEvents`; `None` when it was not given.
    pub initial_events: Option<InitialEvents>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bookmarks {
    Never,
    Allowed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialEvents {
    /// The state first, closed by a bookmark (KEP-3157).
    Sent,
    Skipped,
}

/// Where a page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContinueToken {
    /// The revision of the first page, at which all pages are read; `None` for whatever there is when the token is used.
    pub revision: Option<Revision>,
    /// The path of the last object of the page before.
    pub after: String,
}

impl ListOptions {
    /// Reads and checks the parameters of a list or a watch.
    ///
    /// # Errors
    /// 400 for what cannot be read, 422 for what does not go together, in Kubernetes' words.
    pub fn parse(query: &Query, is_watch: bool) -> Result<Self, Status> {
        let revision = parse_revision(query.get("resourceVersion"))?;
        let limit = query.integer("limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
        let timeout_seconds = query.integer("timeoutSeconds")?.and_then(|seconds| u64::try_from(seconds).ok());
        let continue_token = query.non_empty("continue").map(ContinueToken::decode).transpose()?;
        let mut errors = Vec::new();
        let revision_match = match query.non_empty("resourceVersionMatch") {
            None => None,
            Some("NotOlderThan") => Some(RevisionMatch::NotOlderThan),
            Some("Exact") => Some(RevisionMatch::Exact),
            Some(other) => {
                errors.push(FieldError::not_supported("resourceVersionMatch", other, &["Exact", "NotOlderThan", ""]));
                None
            }
        };
        let bookmarks = if query.flag("allowWatchBookmarks") { Bookmarks::Allowed } else { Bookmarks::Never };
        let initial_events =
            query.optional_flag("sendInitialEvents").map(|sent| if sent { InitialEvents::Sent } else { InitialEvents::Skipped });
        let options = Self { revision, revision_match, limit, continue_token, timeout_seconds, bookmarks, initial_events };
        errors.extend(if is_watch { options.watch_errors() } else { options.list_errors() });
        if errors.is_empty() { Ok(options) } else { Err(invalid_options("ListOptions", &errors)) }
    }

    fn watch_errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        match (self.initial_events, self.revision_match) {
            (None, None) | (Some(_), Some(RevisionMatch::NotOlderThan)) => {}
            (None, Some(_)) => errors.push(FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )),
            (Some(_), _) => errors.push(FieldError::forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )),
        }
        errors
    }

    fn list_errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut forbid = |field: &str, why: &str| errors.push(FieldError::forbidden(field, why));
        if self.initial_events.is_some() {
            forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        if self.revision_match.is_some() {
            if self.revision.is_none() {
                forbid("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            if self.continue_token.is_some() {
                forbid("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided");
            }
            if self.revision == Some(Revision(0)) && self.revision_match == Some(RevisionMatch::Exact) {
                forbid("resourceVersionMatch", "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
            }
        }
        errors
    }
}

/// Reads a resourceVersion. An empty one counts as not given.
///
/// # Errors
/// 400 when it is not a number.
pub fn parse_revision(text: Option<&str>) -> Result<Option<Revision>, Status> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(|number| Some(Revision(number))).map_err(|_| {
            Status::bad_request(format!(
                "resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
            ))
        }),
    }
}

impl ContinueToken {
    /// The token as a client carries it.
    pub fn encode(&self) -> String {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        // -1 stands for "the newest" in Kubernetes' tokens too.
        let revision = self.revision.map_or(json!(-1), |revision| json!(revision.0));
        URL_SAFE_NO_PAD.encode(json!({ "v": "meta.k8s.io/v1", "rv": revision, "start": self.after }).to_string())
    }

    /// # Errors
    /// 400 when it is not a token that this server made.
    pub fn decode(text: &str) -> Result<Self, Status> {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let broken = || Status::bad_request("continue key is not valid: it was not made by this server");
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| broken())?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| broken())?;
        let revision = match &value["rv"] {
            newest if newest.as_i64() == Some(-1) => None,
            revision => Some(Revision(revision.as_u64().filter(|revision| *revision > 0).ok_or_else(broken)?)),
        };
        match (value["v"].as_str(), value["start"].as_str()) {
            (Some("meta.k8s.io/v1"), Some(after)) => Ok(Self { revision, after: after.to_owned() }),
            _ => Err(broken()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(query: &str, is_watch: bool) -> Result<ListOptions, String> {
        ListOptions::parse(&Query::parse(Some(query)), is_watch).map_err(|status| status.message)
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let list = |query| parse(query, false).map(|_| ());
        let watch = |query| parse(query, true).map(|_| ());
        assert_eq!(list("resourceVersion=5&resourceVersionMatch=Exact"), Ok(()));
        assert!(list("resourceVersionMatch=Exact").unwrap_err().contains("forbidden unless resourceVersion is provided"));
        assert!(list("resourceVersion=0&resourceVersionMatch=Exact").unwrap_err().contains("for resourceVersion \"0\""));
        assert!(list("resourceVersion=x").unwrap_err().contains("Invalid value"));
        assert!(list("continue=nonsense").unwrap_err().contains("continue key is not valid"));
        assert!(list("sendInitialEvents=true").unwrap_err().contains("forbidden for list"));
        assert!(list("resourceVersion=1&resourceVersionMatch=Older").unwrap_err().contains("Unsupported value"));
        assert_eq!(watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion="), Ok(()));
        assert!(watch("sendInitialEvents=true").unwrap_err().contains("requires setting resourceVersionMatch"));
        assert!(watch("resourceVersionMatch=Exact").unwrap_err().contains("unless sendInitialEvents"));
    }

    proptest! {
        #[test]
        fn tokens_come_back(revision in proptest::option::of(1..u64::MAX), after in "[a-z0-9./-]{1,60}") {
            let token = ContinueToken { revision: revision.map(Revision), after };
            prop_assert_eq!(ContinueToken::decode(&token.encode()), Ok(token));
        }
    }
}
