//! The crash test: a master dies at a fail point, the others go on, it comes back, and nothing acknowledged is lost.

use std::{fmt, time::Duration};

use tokio::time::Instant;
use tonic::Status;

use crate::{
    checkers::pairs::violations,
    cluster::Cluster,
    history::{Outcome, Write},
    master::Master,
    nemeses::fail_points::{Case, Role, Trigger},
    wait::until,
    workloads::pairs::Writers,
};

/// So many writers are connected to each master.
const WRITERS_EACH: usize = 2;
/// So many writes must be acknowledged before the fault, while the victim is dead, and after it is back.
const ACKNOWLEDGED: usize = 15;
/// How often it is tried to reach a point, and how long each time.
const ATTEMPTS: usize = 3;
const REACH_TIMEOUT: Duration = Duration::from_secs(25);
/// The pause between two requests that are to kill the victim.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What one death came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub point: &'static str,
    pub role: Role,
    pub victim: String,
    pub acknowledged: usize,
    pub failed: usize,
    pub unknown: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { point, role, victim, acknowledged, failed, unknown } = self;
        write!(f, "{point:34} {role:8?} {victim}: {acknowledged} writes acknowledged, {failed} failed, {unknown} unknown")
    }
}

/// A cluster whose members are killed one after another.
pub struct Crashes {
    cluster: Cluster,
    /// Counts deaths, so that each has keys of its own and followers take turns.
    run: usize,
    /// Every write so far, by the keys' beginning.
    histories: Vec<(String, Vec<Write>)>,
}

impl Crashes {
    /// On a cluster that runs.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, run: 0, histories: Vec::new() }
    }

    /// Kills a master at the point of `case`, brings it back, and checks what is there.
    ///
    /// # Panics
    /// When the victim does not die where it should, something does not come back, or a write is not as its client was told.
    pub async fn crash(&mut self, case: &Case, role: Role) -> Report {
        for _ in 0..ATTEMPTS {
            if let Some(report) = self.attempt(case, role).await {
                return report;
            }
        }
        panic!("as {role:?} nobody died at {} in {ATTEMPTS} attempts", case.point);
    }

    /// `None` when the victim did not reach the point: on a busy machine it may lose the leadership first. Then it dies elsewhere.
    async fn attempt(&mut self, case: &Case, role: Role) -> Option<Report> {
        self.run += 1;
        let keys = format!("crash/{}", self.run);
        let leader = self.cluster.leader().await;
        let writers = Writers::start(&keys, self.cluster.clients(WRITERS_EACH));
        writers.acknowledge(ACKNOWLEDGED).await;
        let (victim, aftermath) = self.strike(case, role, leader, &writers).await;
        let is_reached = self.bring_to_an_end(case, role, victim).await;
        writers.resume();
        writers.acknowledge(ACKNOWLEDGED).await;
        self.cluster.masters[victim].start(None);
        let revision = self.cluster.revision(self.cluster.others(victim)[0]).await;
        self.cluster.wait_revision(victim, revision).await;
        writers.acknowledge(ACKNOWLEDGED).await;
        self.clear_up(aftermath).await;
        let history = writers.stop().await;
        let report = report(case.point, role, &self.cluster.masters[victim].name, &history);
        self.take_in(keys, history).await;
        is_reached.then_some(report)
    }

    /// Waits for the victim's death, or kills it. Whether it died at its point.
    async fn bring_to_an_end(&mut self, case: &Case, role: Role, victim: usize) -> bool {
        let master = &mut self.cluster.masters[victim];
        let deadline = Instant::now() + REACH_TIMEOUT;
        while !master.has_ended() {
            if Instant::now() >= deadline {
                println!("{} did not reach {} as {role:?}; it is killed elsewhere", master.name, case.point);
                master.kill();
                return false;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        let death = master.death().await;
        assert!(death.is_at(case.point), "{} as {role:?} should die at {}: {death:?}", master.name, case.point);
        true
    }

    /// Checks the writes of one run and keeps them for the check at the end.
    async fn take_in(&mut self, keys: String, history: Vec<Write>) {
        let run = [(keys, history)];
        self.check(&run).await;
        self.histories.extend(run);
    }

    /// Checks everything that was ever written.
    ///
    /// # Panics
    /// When something is not as its client was told.
    pub async fn check_all(&self) {
        self.check(&self.histories).await;
    }

    /// Arms the victim and does what makes it reach its point. Gives its position and what is to be cleared up once it is back.
    async fn strike(&mut self, case: &Case, role: Role, leader: usize, writers: &Writers) -> (usize, Aftermath) {
        let followers = self.cluster.others(leader);
        let (one, other) = (followers[self.run % 2], followers[(self.run + 1) % 2]);
        let by_role = match role {
            Role::Leader => leader,
            Role::Follower => one,
        };
        let cluster = &mut self.cluster;
        let mut aftermath = Aftermath::Nothing;
        let victim = match case.trigger {
            Trigger::Load => {
                cluster.masters[by_role].arm(case.point, 1).await;
                by_role
            }
            Trigger::Election => {
                // Whoever is to lead votes for itself; the other follower votes for it.
                let target = if role == Role::Leader { one } else { other };
                let id = cluster.member_id(target).await;
                let client = cluster.client(leader).clone();
                cluster.masters[one].arm(case.point, 1).await;
                insist(&mut cluster.masters[one], || client.move_leader(id)).await;
                one
            }
            Trigger::Transfer => {
                let id = cluster.member_id(one).await;
                let client = cluster.client(leader).clone();
                cluster.masters[by_role].arm(case.point, 1).await;
                insist(&mut cluster.masters[by_role], || client.move_leader(id)).await;
                by_role
            }
            Trigger::Compaction => {
                let revision = cluster.revision(leader).await;
                let client = cluster.client(leader).clone();
                cluster.masters[by_role].arm(case.point, 1).await;
                insist(&mut cluster.masters[by_role], || client.compact(revision)).await;
                by_role
            }
            Trigger::Lease => {
                let key = format!("leased/{}", self.run);
                let lease = until("a lease is granted", || cluster.client(one).grant_lease(1)).await;
                cluster.masters[leader].arm(case.point, 1).await;
                // The lease may be over already.
                let _ = cluster.client(one).put_leased(&key, lease).await;
                aftermath = Aftermath::LeasedKey(key);
                leader
            }
            Trigger::Membership => {
                // Nobody listens there: a learner that never comes costs no quorum.
                let url = format!("https://127.0.0.1:{}", 20_000 + self.run);
                let client = cluster.client(other).clone();
                cluster.masters[by_role].arm(case.point, 1).await;
                insist(&mut cluster.masters[by_role], || client.add_learner(&url)).await;
                aftermath = Aftermath::Learner(url);
                by_role
            }
            Trigger::Snapshot => {
                cluster.masters[one].kill();
                cluster.grow_out_of_reach(leader).await;
                if role == Role::Leader {
                    cluster.masters[leader].arm(case.point, 1).await;
                    cluster.masters[one].start(None);
                } else {
                    cluster.masters[one].start(Some(case.point));
                }
                by_role
            }
            Trigger::Overruled => {
                cluster.masters[one].kill();
                cluster.masters[other].kill();
                // The writers may all wait for a majority by now: one more write, which nobody will acknowledge.
                cluster.masters[leader].arm("log/append/after", 1).await;
                let lonely = cluster.client(leader).clone();
                let key = format!("overruled/{}", self.run);
                let write = tokio::spawn(async move { lonely.put_all(vec![(key, String::new())]).await });
                let death = cluster.masters[leader].death().await;
                assert!(death.is_at("log/append/after"), "{death:?}");
                let answer = write.await.expect("the client itself does not fail");
                assert!(answer.is_err(), "one of three members has acknowledged a write");
                // So few entries are written while it is away that the log still holds them all: it needs no snapshot.
                writers.pause();
                cluster.masters[one].start(None);
                cluster.masters[other].start(None);
                cluster.leader().await;
                cluster.masters[leader].start(Some(case.point));
                leader
            }
            Trigger::Bootstrap => panic!("a group begins once; see crash_at_the_beginning"),
        };
        (victim, aftermath)
    }

    async fn clear_up(&self, aftermath: Aftermath) {
        let leader = self.cluster.leader().await;
        let client = self.cluster.client(leader);
        match aftermath {
            Aftermath::Nothing => {}
            Aftermath::LeasedKey(key) => {
                until("a lease ends and takes its key along", || async {
                    match client.has(&key).await {
                        Ok(false) => Ok(()),
                        other => Err(other),
                    }
                })
                .await;
            }
            Aftermath::Learner(url) => {
                until("the learner is removed", || async {
                    let members = client.members().await?;
                    match members.iter().find(|member| member.peer_ur_ls.contains(&url)) {
                        Some(learner) => client.remove_member(learner.id).await,
                        None => Ok(()),
                    }
                })
                .await;
            }
        }
    }

    /// Checks at one revision that all members hold the same, and that it is what clients were told in these histories, each with
    /// the beginning of its keys.
    async fn check(&self, histories: &[(String, Vec<Write>)]) {
        let cluster = &self.cluster;
        let revision = cluster.revision(cluster.leader().await).await;
        let mut first = None;
        for master in cluster.all() {
            cluster.wait_revision(master, revision).await;
            let name = &cluster.masters[master].name;
            let hash = until("a hash", || cluster.client(master).hash(revision)).await;
            let expected = *first.get_or_insert(hash);
            assert_eq!(hash, expected, "{name} differs from {} at revision {revision}", cluster.masters[0].name);
            for (keys, history) in histories {
                let prefix = format!("{keys}/");
                let stored = until("a read", || cluster.client(master).stored(&prefix, revision)).await;
                let found = violations(keys, history, &stored);
                assert!(found.is_empty(), "{name} at revision {revision}:\n{}", found.join("\n"));
            }
        }
    }
}

/// Asks again and again, whatever the answer (which may never come), until the victim is dead or it takes too long.
async fn insist<T, F: Future<Output = Result<T, Status>>>(victim: &mut Master, ask: impl Fn() -> F) {
    let deadline = Instant::now() + REACH_TIMEOUT;
    while !victim.has_ended() && Instant::now() < deadline {
        // A refusal may be a matter of moments, an error the victim's death.
        let _ = ask().await;
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// What is left to be done once the victim is back.
enum Aftermath {
    Nothing,
    /// This key goes with its lease.
    LeasedKey(String),
    /// A learner with this URL may have been added.
    Learner(String),
}

/// Kills members of a new group at the points of its beginning, `victims` at once, each at its own points one after another; then the group begins.
///
/// # Panics
/// When a victim does not die where it should, or the group does not begin.
pub async fn crash_at_the_beginning(victims: &[(usize, &[Case])]) -> (Crashes, Vec<Report>) {
    let mut cluster = Cluster::new();
    let mut reports = Vec::new();
    let bystanders = cluster.all().filter(|one| victims.iter().all(|(victim, _)| victim != one));
    for bystander in bystanders.collect::<Vec<_>>() {
        cluster.masters[bystander].start(None);
    }
    for (victim, cases) in victims {
        cluster.masters[*victim].start(Some(cases[0].point));
    }
    // Each comes back as soon as it has died: another one may still have to meet it.
    let deaths = cluster.masters.iter_mut().enumerate().filter_map(|(position, master)| {
        let (_, cases) = victims.iter().find(|(victim, _)| *victim == position)?;
        Some(die_in_turn(master, cases))
    });
    reports.extend(futures::future::join_all(deaths).await.into_iter().flatten());
    cluster.leader().await;
    let mut crashes = Crashes::new(cluster);
    let keys = "beginning".to_owned();
    let writers = Writers::start(&keys, crashes.cluster.clients(WRITERS_EACH));
    writers.acknowledge(ACKNOWLEDGED).await;
    crashes.take_in(keys, writers.stop().await).await;
    (crashes, reports)
}

/// Lets a master that was started for the first of `cases` die at each of them, and comes back to stay.
async fn die_in_turn(master: &mut Master, cases: &[Case]) -> Vec<Report> {
    let mut reports = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let death = master.death().await;
        assert!(death.is_at(case.point), "{} should die at {}: {death:?}", master.name, case.point);
        reports.push(report(case.point, Role::Follower, &master.name, &[]));
        master.start(cases.get(number + 1).map(|next| next.point));
    }
    reports
}

fn report(point: &'static str, role: Role, victim: &str, history: &[Write]) -> Report {
    let count = |is: fn(&Outcome) -> bool| history.iter().filter(|write| is(&write.outcome)).count();
    Report {
        point,
        role,
        victim: victim.to_owned(),
        acknowledged: count(|outcome| matches!(outcome, Outcome::Acknowledged(_))),
        failed: count(|outcome| *outcome == Outcome::Failed),
        unknown: count(|outcome| *outcome == Outcome::Unknown),
    }
}
