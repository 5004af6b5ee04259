//! How each fail point is reached, and by whom.

use trireme_storage::fail_point;

/// What the victim is to its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
}

/// Which victims reach a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    ByLeader,
    ByFollower,
    ByBoth,
}

impl Reached {
    pub fn roles(self) -> &'static [Role] {
        match self {
            Self::ByLeader => &[Role::Leader],
            Self::ByFollower => &[Role::Follower],
            Self::ByBoth => &[Role::Leader, Role::Follower],
        }
    }
}

/// What makes the victim reach a point, besides writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Nothing.
    Load,
    /// The leadership moves: to the victim (which is to be leader), or past it.
    Election,
    /// The leader, the victim, is told to hand the leadership over; or a follower, the victim, to take it.
    Transfer,
    /// History is compacted.
    Compaction,
    /// A lease ends.
    Lease,
    /// A learner is added.
    Membership,
    /// A follower that was away needs a snapshot: the leader, which sends it, is the victim; or the follower, which receives it.
    Snapshot,
    /// The victim led, and its last entries were never committed: another leader has them cut off.
    Overruled,
    /// The group begins.
    Bootstrap,
}

/// One fail point and the way to it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub point: &'static str,
    pub reached: Reached,
    pub trigger: Trigger,
}

/// Every fail point.
pub const CASES: &[Case] = {
    use Reached::{ByBoth, ByFollower, ByLeader};
    const fn case(point: &'static str, reached: Reached, trigger: Trigger) -> Case {
        Case { point, reached, trigger }
    }
    &[
        case("engine/sync/before", ByBoth, Trigger::Load),
        case("log/append/before", ByBoth, Trigger::Load),
        case("log/append/after", ByBoth, Trigger::Load),
        case("log/truncate/before", ByFollower, Trigger::Overruled),
        case("log/truncate/after", ByFollower, Trigger::Overruled),
        case("log/purge/before", ByBoth, Trigger::Load),
        case("log/purge/after", ByBoth, Trigger::Load),
        case("vote/save/before", ByBoth, Trigger::Election),
        case("vote/save/after", ByBoth, Trigger::Election),
        case("proposal/append/before", ByLeader, Trigger::Load),
        case("proposal/answer/before", ByLeader, Trigger::Load),
        case("forward/send/before", ByFollower, Trigger::Load),
        case("forward/receive/after", ByLeader, Trigger::Load),
        case("forward/answer/before", ByLeader, Trigger::Load),
        case("forward/answer/after", ByFollower, Trigger::Load),
        case("apply/evaluate/before", ByBoth, Trigger::Load),
        case("apply/write/before", ByBoth, Trigger::Load),
        case("apply/write/after", ByBoth, Trigger::Load),
        case("apply/publish/after", ByBoth, Trigger::Load),
        case("apply/answer/before", ByBoth, Trigger::Load),
        case("apply/membership/before", ByBoth, Trigger::Membership),
        case("compaction/evaluate/before", ByBoth, Trigger::Compaction),
        case("compaction/publish/after", ByBoth, Trigger::Compaction),
        case("compaction/discard/before", ByBoth, Trigger::Compaction),
        case("compaction/discard/after", ByBoth, Trigger::Compaction),
        case("snapshot/flush/before", ByBoth, Trigger::Load),
        case("snapshot/flush/after", ByBoth, Trigger::Load),
        case("snapshot/begin/before", ByLeader, Trigger::Snapshot),
        case("snapshot/checkpoint/after", ByLeader, Trigger::Snapshot),
        case("snapshot/file/after", ByLeader, Trigger::Snapshot),
        case("snapshot/manifest/after", ByLeader, Trigger::Snapshot),
        case("snapshot/send/before", ByLeader, Trigger::Snapshot),
        case("snapshot/send/piece", ByLeader, Trigger::Snapshot),
        case("snapshot/send/install", ByLeader, Trigger::Snapshot),
        case("snapshot/receive/begin", ByFollower, Trigger::Snapshot),
        case("snapshot/receive/piece", ByFollower, Trigger::Snapshot),
        case("snapshot/receive/finish", ByFollower, Trigger::Snapshot),
        case("snapshot/install/before", ByFollower, Trigger::Snapshot),
        case("snapshot/install/rename-before", ByFollower, Trigger::Snapshot),
        case("snapshot/install/rename-after", ByFollower, Trigger::Snapshot),
        case("snapshot/install/pointer-before", ByFollower, Trigger::Snapshot),
        case("snapshot/install/pointer-after", ByFollower, Trigger::Snapshot),
        case("snapshot/install/remove-before", ByFollower, Trigger::Snapshot),
        case("snapshot/install/after", ByFollower, Trigger::Snapshot),
        case("lease/expire/before", ByLeader, Trigger::Lease),
        case("lease/expire/after", ByLeader, Trigger::Lease),
        case("bootstrap/own-id/before", ByFollower, Trigger::Bootstrap),
        case("bootstrap/own-id/after", ByFollower, Trigger::Bootstrap),
        case("bootstrap/known-id/before", ByFollower, Trigger::Bootstrap),
        case("bootstrap/known-id/after", ByFollower, Trigger::Bootstrap),
        case("bootstrap/admit/before", ByFollower, Trigger::Bootstrap),
        case("bootstrap/admit/after", ByFollower, Trigger::Bootstrap),
        case("bootstrap/initialize/before", ByFollower, Trigger::Bootstrap),
        case("bootstrap/initialize/after", ByFollower, Trigger::Bootstrap),
        case("membership/change/before", ByLeader, Trigger::Membership),
        case("membership/change/after", ByLeader, Trigger::Membership),
        case("leadership/transfer/before", ByLeader, Trigger::Transfer),
        case("leadership/transfer/after", ByLeader, Trigger::Transfer),
        case("leadership/transfer/received", ByFollower, Trigger::Transfer),
    ]
};

/// The fail points of the store that no case reaches, and the cases whose point does not exist.
pub fn unmatched() -> Vec<&'static str> {
    let cases = || CASES.iter().map(|case| case.point);
    let unreached = fail_point::NAMES.iter().copied().filter(|name| cases().all(|point| point != *name));
    unreached.chain(cases().filter(|point| !fail_point::NAMES.contains(point))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fail_point_has_a_case_of_its_own() {
        assert_eq!(unmatched(), Vec::<&str>::new());
        let mut points: Vec<&str> = CASES.iter().map(|case| case.point).collect();
        points.sort_unstable();
        points.dedup();
        assert_eq!(points.len(), CASES.len(), "a point has two cases");
    }
}
