//! What a controller has asked for and not yet seen in its cache. Until every creation and deletion it asked for has been
//! observed, it does not act again, so a slow cache never leads to doubles.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// After this long, expectations are given up: a watch event may have been lost for good (Kubernetes' `ExpectationsTimeout`).
const EXPIRY: Duration = Duration::from_secs(5 * 60);

#[derive(Debug)]
struct Expected {
    /// Creations asked for and not yet observed.
    creations: i64,
    /// UIDs whose deletion was asked for and not yet observed.
    deletions: HashSet<String>,
    since: Instant,
}

/// Expectations of all objects of one controller, by the object's UID.
#[derive(Debug, Default)]
pub struct Expectations {
    by_owner: Mutex<HashMap<String, Expected>>,
}

impl Expectations {
    /// From now on `count` creations for `owner` are expected; replaces what was expected before.
    pub fn expect_creations(&self, owner: &str, count: usize) {
        let creations = i64::try_from(count).unwrap_or(i64::MAX);
        self.by_owner.lock().insert(owner.to_owned(), Expected { creations, deletions: HashSet::new(), since: Instant::now() });
    }

    /// From now on the deletion of these UIDs is expected for `owner`; replaces what was expected before.
    pub fn expect_deletions(&self, owner: &str, uids: impl IntoIterator<Item = String>) {
        let deletions = uids.into_iter().collect();
        self.by_owner.lock().insert(owner.to_owned(), Expected { creations: 0, deletions, since: Instant::now() });
    }

    /// One creation for `owner` was observed, or turned out not to happen.
    pub fn creation_observed(&self, owner: &str) {
        if let Some(expected) = self.by_owner.lock().get_mut(owner) {
            expected.creations -= 1;
        }
    }

    /// The deletion of `uid` was observed, or turned out not to happen. Seeing it twice counts once.
    pub fn deletion_observed(&self, owner: &str, uid: &str) {
        if let Some(expected) = self.by_owner.lock().get_mut(owner) {
            expected.deletions.remove(uid);
        }
    }

    /// Whether `owner` may act: nothing is outstanding, or it has been for so long that it never will be seen.
    pub fn satisfied(&self, owner: &str) -> bool {
        match self.by_owner.lock().get(owner) {
            None => true,
            Some(expected) => (expected.creations <= 0 && expected.deletions.is_empty()) || expected.since.elapsed() > EXPIRY,
        }
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, owner: &str) {
        self.by_owner.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_owner_waits_until_all_it_asked_for_was_seen_or_time_ran_out() {
        let expectations = Expectations::default();
        assert!(expectations.satisfied("a"));

        expectations.expect_creations("a", 2);
        expectations.creation_observed("a");
        assert!(!expectations.satisfied("a"));
        expectations.creation_observed("a");
        assert!(expectations.satisfied("a"));

        expectations.expect_deletions("a", ["x".to_owned(), "y".to_owned()]);
        expectations.deletion_observed("a", "x");
        expectations.deletion_observed("a", "x");
        assert!(!expectations.satisfied("a"), "one deletion seen twice is one deletion");
        expectations.deletion_observed("a", "y");
        assert!(expectations.satisfied("a"));

        expectations.expect_creations("a", 1);
        tokio::time::advance(EXPIRY + Duration::from_secs(1)).await;
        assert!(expectations.satisfied("a"));

        expectations.expect_creations("a", 1);
        expectations.forget("a");
        assert!(expectations.satisfied("a"));
    }
}
