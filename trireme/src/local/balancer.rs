//! The loopback TCP balancer over the masters that answer: where the kubeconfig's default context goes.
//!
//! It passes bytes through, so TLS and client certificates go from end to end. A master that stops answering `/readyz`
//! gets no new connections, and those it has are closed, so that clients come back and reach another one.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rustls::ClientConfig;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{debug, info};

use crate::https;

const PROBE_INTERVAL: Duration = Duration::from_millis(500);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a connection waits for a master to become live, when none is: at the start, none has been probed yet.
const WAIT_FOR_LIVE: Duration = Duration::from_secs(5);
/// So many probes in a row must fail before a master's connections are closed: a busy machine is no dead master.
const FAILURES_TO_LEAVE: u32 = 2;

/// One master as the balancer sees it.
#[derive(Clone)]
struct Backend {
    target: Target,
    /// Ends its probing when it is no master any more, and with it its connections.
    _probing: Arc<DropGuard>,
}

/// Where a connection may go.
#[derive(Clone)]
struct Target {
    address: SocketAddr,
    /// Its sender is gone when the master is.
    live: watch::Receiver<bool>,
}

/// Serves until `shutdown`. `masters` may change.
pub async fn serve(
    listener: TcpListener,
    mut masters: watch::Receiver<Vec<SocketAddr>>,
    tls: Arc<ClientConfig>,
    shutdown: CancellationToken,
) -> Result<()> {
    let address = listener.local_addr().context("the balancer's listener has no address")?;
    let tasks = TaskTracker::new();
    let mut backends: Vec<Backend> = Vec::new();
    let mut next = 0;
    masters.mark_changed();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Ok(()) = masters.changed() => {
                let addresses = masters.borrow_and_update().clone();
                info!(%address, masters = addresses.len(), "balancer serves");
                backends = follow(backends, &addresses, |address| {
                    let (sender, live) = watch::channel(false);
                    let probing = shutdown.child_token();
                    tasks.spawn(probe(address, tls.clone(), sender, probing.clone()));
                    Backend { target: Target { address, live }, _probing: Arc::new(probing.drop_guard()) }
                });
                continue;
            }
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((client, _)) => {
                next = (next + 1) % backends.len().max(1);
                let targets = backends.iter().map(|backend| backend.target.clone()).collect();
                tasks.spawn(forward(client, targets, next, shutdown.clone()));
            }
            Err(error) => {
                debug!(%error, "accept failed");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// The backends for `addresses`: those that stay are kept, those that are missing are begun.
fn follow(known: Vec<Backend>, addresses: &[SocketAddr], begin: impl Fn(SocketAddr) -> Backend) -> Vec<Backend> {
    let kept = |address: &SocketAddr| known.iter().find(|backend| backend.target.address == *address).cloned();
    addresses.iter().map(|address| kept(address).unwrap_or_else(|| begin(*address))).collect()
}

async fn probe(address: SocketAddr, tls: Arc<ClientConfig>, live: watch::Sender<bool>, shutdown: CancellationToken) {
    let mut failures = 0;
    loop {
        let answer = tokio::select! {
            answer = https::ready(address, &tls, PROBE_TIMEOUT) => answer,
            () = shutdown.cancelled() => return,
        };
        failures = if answer.is_ok() { 0 } else { failures + 1 };
        let now_live = answer.is_ok() || (*live.borrow() && failures < FAILURES_TO_LEAVE);
        let changed = live.send_if_modified(|live| std::mem::replace(live, now_live) != now_live);
        if changed {
            info!(%address, live = now_live, "master");
        }
        tokio::select! {
            () = sleep(PROBE_INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Joins a client with the first master, from `first` on, that is live and takes the connection.
async fn forward(mut client: TcpStream, backends: Vec<Target>, first: usize, shutdown: CancellationToken) {
    if backends.is_empty() {
        return;
    }
    let any_is_live = futures::future::select_all(backends.iter().map(|backend| {
        let mut live = backend.live.clone();
        Box::pin(async move { live.wait_for(|live| *live).await.is_ok() })
    }));
    tokio::select! {
        _ = timeout(WAIT_FOR_LIVE, any_is_live) => {}
        () = shutdown.cancelled() => return,
    }
    let candidates = (0..backends.len()).map(|step| &backends[(first + step) % backends.len()]);
    for backend in candidates.filter(|backend| *backend.live.borrow()) {
        let Ok(Ok(mut master)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(backend.address)).await else { continue };
        for socket in [&client, &master] {
            if let Err(error) = socket.set_nodelay(true) {
                debug!(%error, "TCP_NODELAY");
            }
        }
        let mut live = backend.live.clone();
        tokio::select! {
            ended = copy_bidirectional(&mut client, &mut master) => debug!(?ended, "connection ended"),
            _ = live.wait_for(|live| !live) => debug!(master = %backend.address, "connection closed: the master is gone"),
            () = shutdown.cancelled() => {}
        }
        return;
    }
    debug!("no live master for a connection");
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn echo_server(mark: u8) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    stream.write_all(&[mark]).await.unwrap();
                    let mut rest = Vec::new();
                    let _peer_gone = stream.read_to_end(&mut rest).await;
                });
            }
        });
        address
    }

    fn backend(address: SocketAddr, live: bool) -> (Target, watch::Sender<bool>) {
        let (sender, receiver) = watch::channel(live);
        (Target { address, live: receiver }, sender)
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (near, far)
    }

    #[tokio::test]
    async fn a_connection_goes_past_masters_that_are_not_live_and_closes_when_its_master_leaves() {
        let (dead, _dead_sender) = backend(echo_server(1).await, false);
        let (live, live_sender) = backend(echo_server(2).await, true);
        let (mut near, far) = pair().await;
        let forwarding = tokio::spawn(forward(far, vec![dead, live], 0, CancellationToken::new()));
        assert_eq!(near.read_u8().await.unwrap(), 2);
        live_sender.send(false).unwrap();
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        forwarding.await.unwrap();
    }

    #[tokio::test]
    async fn masters_come_and_go_without_harm_to_those_that_stay() {
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let begun = parking_lot::Mutex::new(Vec::new());
        let begin = |address| {
            let (_, live) = watch::channel(true);
            let probing = CancellationToken::new();
            begun.lock().push((address, probing.clone()));
            Backend { target: Target { address, live }, _probing: Arc::new(probing.drop_guard()) }
        };
        let backends = follow(Vec::new(), &[address(1), address(2)], begin);
        let backends = follow(backends, &[address(2), address(3)], begin);
        let is_ended = |(address, probing): &(SocketAddr, CancellationToken)| (address.port(), probing.is_cancelled());
        assert_eq!(begun.lock().iter().map(is_ended).collect::<Vec<_>>(), [(1, true), (2, false), (3, false)]);
        assert_eq!(backends.iter().map(|backend| backend.target.address.port()).collect::<Vec<_>>(), [2, 3]);
    }
}
