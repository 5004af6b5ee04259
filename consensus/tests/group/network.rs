//! A network whose links can be cut: connections go through relays that stop passing bytes.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::TcpStream,
    sync::watch,
};
use trireme_consensus::{Dialer, NodeId, PeerStream};

/// The links between members.
#[derive(Clone)]
pub struct Links {
    /// Pairs (from, to) over which no byte passes.
    cut: Arc<watch::Sender<HashSet<(NodeId, NodeId)>>>,
    /// Every relay that runs; held so that a test can see that the network was used.
    dialled: Arc<Mutex<usize>>,
    /// How often somebody has tried to connect to a member.
    attempts: Arc<Mutex<HashMap<NodeId, usize>>>,
}

impl Links {
    pub fn new() -> Self {
        Self { cut: Arc::new(watch::Sender::new(HashSet::new())), dialled: Arc::default(), attempts: Arc::default() }
    }

    /// Cuts `member` off from all of `others`, both ways. Nothing is closed: bytes just do not arrive.
    pub fn isolate(&self, member: NodeId, others: &[NodeId]) {
        self.cut.send_modify(|cut| {
            for other in others.iter().filter(|other| **other != member) {
                cut.insert((member, *other));
                cut.insert((*other, member));
            }
        });
    }

    pub fn heal(&self) {
        self.cut.send_replace(HashSet::new());
    }

    pub fn dialled(&self) -> usize {
        *self.dialled.lock().unwrap()
    }

    /// How often somebody has tried to connect to `target`.
    pub fn attempts(&self, target: NodeId) -> usize {
        self.attempts.lock().unwrap().get(&target).copied().unwrap_or_default()
    }

    pub fn dialer(&self, from: NodeId) -> Arc<dyn Dialer> {
        Arc::new(LinkDialer { from, links: self.clone() })
    }
}

struct LinkDialer {
    from: NodeId,
    links: Links,
}

#[async_trait]
impl Dialer for LinkDialer {
    async fn dial(&self, target: NodeId, address: &str) -> io::Result<Box<dyn PeerStream>> {
        *self.links.attempts.lock().unwrap().entry(target).or_default() += 1;
        let mut cut = self.links.cut.subscribe();
        // A dial over a cut link hangs, as a SYN without an answer does.
        wait_open(&mut cut, (self.from, target)).await;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        *self.links.dialled.lock().unwrap() += 1;
        let (near, far) = tokio::io::duplex(1 << 20);
        let (far_read, far_write) = tokio::io::split(far);
        let (read, write) = stream.into_split();
        let out = relay(far_read, write, cut.clone(), (self.from, target));
        let back = relay(read, far_write, cut, (target, self.from));
        tokio::spawn(async move {
            // Whichever side ends, both do: a reset is a reset.
            tokio::select! {
                () = out => {}
                () = back => {}
            }
        });
        let near: DuplexStream = near;
        Ok(Box::new(near))
    }
}

async fn wait_open(cut: &mut watch::Receiver<HashSet<(NodeId, NodeId)>>, link: (NodeId, NodeId)) {
    // The sender lives as long as the links.
    let _ = cut.wait_for(|cut| !cut.contains(&link)).await;
}

async fn relay(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut cut: watch::Receiver<HashSet<(NodeId, NodeId)>>,
    link: (NodeId, NodeId),
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        wait_open(&mut cut, link).await;
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}
