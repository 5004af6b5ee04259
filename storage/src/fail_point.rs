//! Named places in the store and in what is built on it at which a test may end the process, or cut the power of one member of a
//! group that shares a process with others.
//!
//! `fail_point!("name")` marks such a place. It is nothing at all unless the feature `fail-points` is on, which the workspace's
//! tests switch on and the released binary does not have. [`NAMES`] lists every point; a test compares it with the code.

/// Every fail point of `storage` and `consensus`: the subject, what is done, and whether the point lies before or after it.
pub const NAMES: &[&str] = &[
    // What an engine was given is not durable yet.
    "engine/sync/before",
    // The log: records, the vote, the cut of entries that another leader has overruled, the purge behind a snapshot.
    "log/append/before",
    "log/append/after",
    "log/truncate/before",
    "log/truncate/after",
    "log/purge/before",
    "log/purge/after",
    "vote/save/before",
    "vote/save/after",
    // The way of a proposal, and of one that a follower forwards.
    "proposal/append/before",
    "proposal/answer/before",
    "forward/send/before",
    "forward/receive/after",
    "forward/answer/before",
    "forward/answer/after",
    // Committed entries on their way into the state.
    "apply/evaluate/before",
    "apply/write/before",
    "apply/write/after",
    "apply/publish/after",
    "apply/answer/before",
    "apply/membership/before",
    // History that is dropped.
    "compaction/evaluate/before",
    "compaction/publish/after",
    "compaction/discard/before",
    "compaction/discard/after",
    // The state is made durable, so that the log behind it may go.
    "snapshot/flush/before",
    "snapshot/flush/after",
    // A snapshot is taken, sent, received, and takes the place of the state.
    "snapshot/begin/before",
    "snapshot/checkpoint/after",
    "snapshot/file/after",
    "snapshot/manifest/after",
    "snapshot/send/before",
    "snapshot/send/piece",
    "snapshot/send/install",
    "snapshot/receive/begin",
    "snapshot/receive/piece",
    "snapshot/receive/finish",
    "snapshot/install/before",
    "snapshot/install/rename-before",
    "snapshot/install/rename-after",
    "snapshot/install/pointer-before",
    "snapshot/install/pointer-after",
    "snapshot/install/remove-before",
    "snapshot/install/after",
    // Leases that end by themselves.
    "lease/expire/before",
    "lease/expire/after",
    // A new group.
    "bootstrap/own-id/before",
    "bootstrap/own-id/after",
    "bootstrap/known-id/before",
    "bootstrap/known-id/after",
    "bootstrap/admit/before",
    "bootstrap/admit/after",
    "bootstrap/initialize/before",
    "bootstrap/initialize/after",
    // Changes of the group, and of who leads it.
    "membership/change/before",
    "membership/change/after",
    "leadership/transfer/before",
    "leadership/transfer/after",
    "leadership/transfer/received",
];

/// Whether this build has fail points.
pub const ENABLED: bool = cfg!(feature = "fail-points");

/// Why a fail point cannot be armed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArmError {
    #[error("there is no fail point `{0}`")]
    Unknown(String),
    #[error("this build has no fail points")]
    Absent,
}

/// One of several members that share a process: what runs on its threads belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(pub u64);

/// Marks a fail point; the name is one of [`NAMES`].
#[macro_export]
macro_rules! fail_point {
    ($name:literal) => {
        $crate::fail_point::reach($name)
    };
}

#[cfg(feature = "fail-points")]
pub use armed::{arm, disarm, owner, reach, set_owner};

#[cfg(not(feature = "fail-points"))]
pub use absent::{arm, disarm, owner, reach, set_owner};

#[cfg(feature = "fail-points")]
mod armed {
    use std::{
        cell::Cell,
        sync::atomic::{AtomicBool, Ordering},
    };

    use parking_lot::Mutex;

    use super::{ArmError, NAMES, Owner};

    struct Armed {
        point: &'static str,
        owner: Option<Owner>,
        /// The action runs when this has come down to 0.
        left: u64,
        action: Box<dyn FnOnce() + Send>,
    }

    /// Whether [`LIST`] holds anything: all that a point costs that nobody has armed.
    static ANY: AtomicBool = AtomicBool::new(false);
    static LIST: Mutex<Vec<Armed>> = Mutex::new(Vec::new());

    thread_local! {
        static OWNER: Cell<Option<Owner>> = const { Cell::new(None) };
    }

    /// Has `action` run, once, on the thread that is the `nth` to reach `point`; only threads of `owner` count, if one is named.
    ///
    /// # Errors
    /// [`ArmError::Unknown`].
    pub fn arm(point: &str, owner: Option<Owner>, nth: u64, action: impl FnOnce() + Send + 'static) -> Result<(), ArmError> {
        let known = NAMES.iter().find(|name| **name == point).ok_or_else(|| ArmError::Unknown(point.to_owned()))?;
        let mut list = LIST.lock();
        list.push(Armed { point: known, owner, left: nth.max(1), action: Box::new(action) });
        ANY.store(true, Ordering::Release);
        Ok(())
    }

    /// Forgets what was armed for `owner`.
    pub fn disarm(owner: Option<Owner>) {
        let mut list = LIST.lock();
        list.retain(|armed| armed.owner != owner);
        ANY.store(!list.is_empty(), Ordering::Release);
    }

    /// Whom this thread works for.
    pub fn owner() -> Option<Owner> {
        OWNER.get()
    }

    /// Makes this thread work for `owner`.
    pub fn set_owner(owner: Option<Owner>) {
        OWNER.set(owner);
    }

    /// Says that a fail point is reached. See [`crate::fail_point!`].
    pub fn reach(point: &'static str) {
        if ANY.load(Ordering::Acquire)
            && let Some(action) = due(point)
        {
            action();
        }
    }

    fn due(point: &'static str) -> Option<Box<dyn FnOnce() + Send>> {
        assert!(NAMES.contains(&point), "the fail point {point} is not listed");
        let own = owner();
        let mut list = LIST.lock();
        let position = list.iter().position(|armed| armed.point == point && (armed.owner.is_none() || armed.owner == own))?;
        let armed = list.get_mut(position)?;
        armed.left -= 1;
        if armed.left > 0 {
            return None;
        }
        let armed = list.remove(position);
        ANY.store(!list.is_empty(), Ordering::Release);
        Some(armed.action)
    }
}

#[cfg(not(feature = "fail-points"))]
mod absent {
    use super::{ArmError, Owner};

    /// # Errors
    /// [`ArmError::Absent`], always.
    pub fn arm(_: &str, _: Option<Owner>, _: u64, _: impl FnOnce() + Send + 'static) -> Result<(), ArmError> {
        Err(ArmError::Absent)
    }

    #[inline(always)]
    pub fn disarm(_: Option<Owner>) {}

    #[inline(always)]
    pub fn owner() -> Option<Owner> {
        None
    }

    #[inline(always)]
    pub fn set_owner(_: Option<Owner>) {}

    #[inline(always)]
    pub fn reach(_: &'static str) {}
}
