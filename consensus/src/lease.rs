//! The end of leases. The leader watches the time that passes on its own clock since it saw a lease granted or kept alive; no wall
//! clock decides, so that leases outlive jumps of clocks and changes of the leader. A new leader gives every lease its whole time
//! anew, as etcd's does.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use tokio::time::{Instant, MissedTickBehavior};
use trireme_storage::{
    command::{Command, CommandReply, Lease},
    fail_point,
    model::{LeaseId, Term},
};

use crate::core::Core;

/// How often the leader looks for leases that are over.
const PERIOD: Duration = Duration::from_millis(500);
/// So many leases are ended at once.
const AT_ONCE: usize = 512;

/// When this leader saw which deadline of each lease for the first time.
#[derive(Default)]
struct Seen {
    leases: HashMap<LeaseId, (u64, Instant)>,
}

impl Seen {
    /// Takes note of the leases as they are at `now`; returns those whose time has passed since their deadline last moved.
    fn observe(&mut self, now: Instant, leases: &[Lease]) -> Vec<Lease> {
        let mut seen = HashMap::with_capacity(leases.len());
        let mut over = Vec::new();
        for lease in leases {
            let known = self.leases.get(&lease.id).filter(|(deadline, _)| *deadline == lease.deadline_ms);
            let since = known.map_or(now, |(_, since)| *since);
            if now.duration_since(since) >= Duration::from_secs(lease.ttl_seconds) {
                over.push(*lease);
            }
            seen.insert(lease.id, (lease.deadline_ms, since));
        }
        self.leases = seen;
        over
    }
}

/// Ends leases while this member leads, until shutdown.
pub async fn expire(core: Arc<Core>) {
    let mut seen = Seen::default();
    let mut led: Option<Term> = None;
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let leads = core.leadership.borrow().leading();
        if leads != led {
            seen = Seen::default();
            led = leads;
        }
        if leads.is_none() {
            continue;
        }
        let over = seen.observe(Instant::now(), &core.machine.leases());
        let ends =
            stream::iter(over).map(|lease| end(&core, lease)).buffer_unordered(AT_ONCE).for_each(|()| std::future::ready(()));
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            () = ends => {}
        }
    }
}

/// Proposes the end of a lease, unless it is kept alive before that commits: its deadline has moved then.
async fn end(core: &Core, lease: Lease) {
    let command = Command::LeaseExpire { ids: vec![lease.id], now_ms: lease.deadline_ms };
    fail_point!("lease/expire/before");
    let ended = core.propose(&command).await;
    fail_point!("lease/expire/after");
    match ended {
        Ok(CommandReply::LeasesExpired { ids, revision }) if !ids.is_empty() => {
            tracing::info!(lease = format!("{:x}", lease.id.0), revision = revision.0, "a lease is over");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, lease = format!("{:x}", lease.id.0), "a lease could not be ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: i64, ttl_seconds: u64, deadline_ms: u64) -> Lease {
        Lease { id: LeaseId(id), ttl_seconds, deadline_ms }
    }

    #[test]
    fn a_lease_is_over_when_its_time_has_passed_since_its_deadline_last_moved() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut seen = Seen::default();
        // Whatever the deadline says, the time counts from when this leader first sees the lease.
        assert_eq!(seen.observe(at(0), &[lease(1, 5, 0), lease(2, 20, 0)]), []);
        assert_eq!(seen.observe(at(4), &[lease(1, 5, 0), lease(2, 20, 0)]), []);
        assert_eq!(seen.observe(at(5), &[lease(1, 5, 0), lease(2, 20, 0)]), [lease(1, 5, 0)]);
        // It was kept alive before it ended.
        assert_eq!(seen.observe(at(6), &[lease(1, 5, 1), lease(2, 20, 0)]), []);
        assert_eq!(seen.observe(at(10), &[lease(1, 5, 1), lease(2, 20, 0)]), []);
        assert_eq!(seen.observe(at(11), &[lease(1, 5, 1), lease(2, 20, 0)]), [lease(1, 5, 1)]);
        // A lease that is gone is forgotten; the same id begins anew.
        assert_eq!(seen.observe(at(12), &[lease(2, 20, 0)]), []);
        assert_eq!(seen.observe(at(19), &[lease(1, 5, 1), lease(2, 20, 0)]), []);
        assert_eq!(seen.observe(at(20), &[lease(1, 5, 1), lease(2, 20, 0)]), [lease(2, 20, 0)]);
    }
}
