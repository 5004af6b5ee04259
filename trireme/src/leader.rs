//! What only the leader runs: the first objects of a cluster, the scheduler and the controllers.
//!
//! Everything here starts when leadership is announced and is stopped before anything else when it is lost. Each write
//! carries the term under which its loop was started, so that one that comes too late is refused by the store.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use trireme_api::{cidr::Ipv4Cidr, clock::Clock};
use trireme_apiserver::{ApiServer, RequestContext};
use trireme_consensus::Leadership;
use trireme_controllers::ControllersConfig;
use trireme_scheduler::SchedulerConfig;
use trireme_storage::model::Term;

const RETRY: Duration = Duration::from_millis(200);
/// How often the cluster's first objects are looked after, as Kubernetes does with its system namespaces.
const UPKEEP: Duration = Duration::from_secs(60);

/// What the loops are made from.
pub struct Leader {
    pub api_server: Arc<ApiServer>,
    /// This master's API address, an endpoint of the `kubernetes` Service.
    pub advertise: SocketAddr,
    /// PEM; published in every namespace.
    pub root_ca: String,
    /// What the nodes' pod ranges are cut from.
    pub pod_cidr: Ipv4Cidr,
    pub node_grace: Duration,
    pub clock: Arc<dyn Clock>,
}

/// Runs the loops whenever this master leads, until `shutdown`.
pub async fn follow(leader: Leader, mut leadership: watch::Receiver<Leadership>, shutdown: CancellationToken) {
    loop {
        let leading = leadership.borrow_and_update().leading();
        let Some(term) = leading else {
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                () = shutdown.cancelled() => return,
            }
            continue;
        };
        info!(%term, "leading: starting the control loops");
        let stop = shutdown.child_token();
        let mut loops = leader.start(term, &stop);
        let failed = tokio::select! {
            _ = leadership.wait_for(|now| now.leading() != Some(term)) => None,
            () = shutdown.cancelled() => None,
            Some(ended) = loops.join_next() => Some(ended),
        };
        if let Some(ended) = failed {
            // A cluster without its scheduler looks healthy and is not: all loops are begun anew, from a list.
            error!(?ended, "a control loop ended by itself; starting all of them again");
            sleep(RETRY).await;
        }
        stop.cancel();
        while let Some(ended) = loops.join_next().await {
            if let Err(failure) = ended {
                error!(error = %failure, "a control loop failed");
            }
        }
        info!(%term, "the control loops have stopped");
        if shutdown.is_cancelled() {
            return;
        }
    }
}

impl Leader {
    /// Starts everything that only the leader runs. None of it ends before `stop`.
    fn start(&self, term: Term, stop: &CancellationToken) -> JoinSet<()> {
        let client = |user: &str| {
            let context = RequestContext::master(user).fenced(term);
            kube::Client::new(self.api_server.service(context), "default")
        };
        let controllers = ControllersConfig {
            seed: term.0,
            pod_cidr: self.pod_cidr,
            node_grace: self.node_grace,
            root_ca: Some(self.root_ca.clone()),
            ..ControllersConfig::default()
        };
        let scheduler = SchedulerConfig { seed: term.0, ..SchedulerConfig::default() };
        let controlling =
            trireme_controllers::run(client("system:kube-controller-manager"), controllers, self.clock.clone(), stop.clone());
        let scheduling = trireme_scheduler::run(client("system:kube-scheduler"), scheduler, self.clock.clone(), stop.clone());
        let mut loops = JoinSet::new();
        loops.spawn(bootstrap(self.api_server.clone(), term, self.advertise, stop.clone()));
        loops.spawn(controlling);
        loops.spawn(scheduling);
        loops
    }
}

/// Makes the cluster's first objects, and again those that somebody deleted: without `kube-node-lease` no node could report.
async fn bootstrap(api_server: Arc<ApiServer>, term: Term, advertise: SocketAddr, stop: CancellationToken) {
    let context = RequestContext::master("system:trireme").fenced(term);
    loop {
        let Some(done) = stop.run_until_cancelled(api_server.bootstrap(&context, &[advertise])).await else { return };
        let pause = match done {
            Ok(()) => UPKEEP,
            Err(error) => {
                warn!(%error, "the cluster's first objects are not complete; trying again");
                RETRY
            }
        };
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
    }
}
