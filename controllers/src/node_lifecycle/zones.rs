//! How many nodes of each zone are not ready, and how fast a zone's nodes may be given up for that.

use std::collections::{BTreeMap, VecDeque};

use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

/// From how large a share of nodes not ready a zone is disrupted (`--unhealthy-zone-threshold`).
const UNHEALTHY_SHARE: f64 = 0.55;
/// A disrupted zone of at most this many nodes evicts nothing (`--large-cluster-size-threshold`).
const LARGE_ZONE: usize = 50;

/// Region and zone of a node; both empty where it has no such labels.
pub type ZoneKey = (String, String);

/// The zone of a node by its well-known labels.
pub fn zone_of(node: &Node) -> ZoneKey {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned().unwrap_or_default();
    (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// Evictions of nodes a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// `--node-eviction-rate`.
    pub primary: f64,
    /// `--secondary-node-eviction-rate`.
    pub secondary: f64,
}

/// How a zone fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneState {
    Normal,
    PartialDisruption,
    FullDisruption,
}

/// Nodes of a zone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Census {
    pub ready: usize,
    pub not_ready: usize,
}

impl Census {
    /// How a zone with these nodes fares. Up to two nodes not ready are never a partial disruption.
    pub fn state(self) -> ZoneState {
        let all = self.ready + self.not_ready;
        if self.ready == 0 && self.not_ready > 0 {
            ZoneState::FullDisruption
        } else if self.not_ready > 2 && self.not_ready as f64 / all as f64 >= UNHEALTHY_SHARE {
            ZoneState::PartialDisruption
        } else {
            ZoneState::Normal
        }
    }

    fn rate(self, rates: Rates) -> f64 {
        match self.state() {
            ZoneState::Normal | ZoneState::FullDisruption => rates.primary,
            ZoneState::PartialDisruption if self.ready + self.not_ready > LARGE_ZONE => rates.secondary,
            ZoneState::PartialDisruption => 0.0,
        }
    }
}

/// A token bucket that holds one token.
#[derive(Debug)]
struct Limiter {
    rate: f64,
    tokens: f64,
    filled: Instant,
}

impl Limiter {
    fn set_rate(&mut self, rate: f64, now: Instant) {
        self.fill(now);
        self.rate = rate;
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate).min(1.0);
        self.filled = now;
    }

    fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        // A full bucket gives nothing either while the rate is zero. The margin is for rounding.
        let granted = self.rate > 0.0 && self.tokens >= 1.0 - 1e-9;
        if granted {
            self.tokens = 0.0;
        }
        granted
    }
}

#[derive(Debug)]
struct Zone {
    census: Census,
    limiter: Limiter,
    /// Nodes that wait to be given up, in the order in which they failed.
    waiting: VecDeque<String>,
}

/// The zones of the cluster.
#[derive(Debug)]
pub struct Zones {
    zones: BTreeMap<ZoneKey, Zone>,
    rates: Rates,
}

/// What became of the cluster as a whole with a new census.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// Some zone is ready, and was before.
    Usual,
    /// No zone is ready: more likely the masters are cut off than that all nodes died.
    Dark,
    /// Some zone is ready again.
    Dawn,
}

impl Zones {
    pub fn new(rates: Rates) -> Self {
        Zones { zones: BTreeMap::new(), rates }
    }

    /// Whether there are nodes and no zone has one that is ready.
    pub fn all_dark(&self) -> bool {
        let states: Vec<ZoneState> = self.populated().map(Census::state).collect();
        !states.is_empty() && states.iter().all(|state| *state == ZoneState::FullDisruption)
    }

    fn populated(&self) -> impl Iterator<Item = Census> {
        self.zones.values().map(|zone| zone.census).filter(|census| census.ready + census.not_ready > 0)
    }

    /// Takes the numbers of all zones as they are now.
    pub fn update(&mut self, census: &BTreeMap<ZoneKey, Census>, now: Instant) -> Outlook {
        let was_dark = self.all_dark();
        self.zones.retain(|key, _| census.contains_key(key));
        for (key, census) in census {
            let zone = self.zones.entry(key.clone()).or_insert_with(|| Zone {
                census: *census,
                limiter: Limiter { rate: 0.0, tokens: 1.0, filled: now },
                waiting: VecDeque::new(),
            });
            zone.census = *census;
            zone.limiter.set_rate(census.rate(self.rates), now);
        }
        match (was_dark, self.all_dark()) {
            (_, true) => {
                self.zones.values_mut().for_each(|zone| zone.waiting.clear());
                Outlook::Dark
            }
            (true, false) => Outlook::Dawn,
            (false, false) => Outlook::Usual,
        }
    }

    /// The node waits to be given up.
    pub fn enqueue(&mut self, zone: &ZoneKey, node: &str) {
        if let Some(zone) = self.zones.get_mut(zone)
            && !zone.waiting.iter().any(|waiting| waiting == node)
        {
            zone.waiting.push_back(node.to_owned());
        }
    }

    /// The node is ready again, or gone.
    pub fn dequeue(&mut self, node: &str) {
        self.zones.values_mut().for_each(|zone| zone.waiting.retain(|waiting| waiting != node));
    }

    /// The nodes whose turn it is to be given up.
    pub fn grant(&mut self, now: Instant) -> Vec<String> {
        if self.all_dark() {
            return Vec::new();
        }
        let mut granted = Vec::new();
        for zone in self.zones.values_mut() {
            if !zone.waiting.is_empty() && zone.limiter.take(now) {
                granted.extend(zone.waiting.pop_front());
            }
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const RATES: Rates = Rates { primary: 0.1, secondary: 0.01 };

    fn census(zones: &[(&str, usize, usize)]) -> BTreeMap<ZoneKey, Census> {
        let row = |(name, ready, not_ready): &(&str, usize, usize)| {
            ((String::new(), (*name).to_owned()), Census { ready: *ready, not_ready: *not_ready })
        };
        zones.iter().map(row).collect()
    }

    #[test]
    fn states_and_rates() {
        use ZoneState::*;
        let cases = [
            ((3, 0), Normal, 0.1),
            ((1, 1), Normal, 0.1),
            ((1, 2), Normal, 0.1),
            ((0, 1), FullDisruption, 0.1),
            ((0, 60), FullDisruption, 0.1),
            ((2, 3), PartialDisruption, 0.0),
            ((45, 55), PartialDisruption, 0.01),
            ((46, 54), Normal, 0.1),
            ((22, 28), PartialDisruption, 0.0),
            ((22, 29), PartialDisruption, 0.01),
            ((0, 0), Normal, 0.1),
        ];
        for ((ready, not_ready), state, rate) in cases {
            let census = Census { ready, not_ready };
            assert_eq!((census.state(), census.rate(RATES)), (state, rate), "{census:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_dead_node_goes_at_once_and_more_at_the_rate() {
        let start = Instant::now();
        let mut zones = Zones::new(RATES);
        let key = (String::new(), "a".to_owned());
        assert_eq!(zones.update(&census(&[("a", 0, 3), ("b", 3, 0)]), start), Outlook::Usual);
        for node in ["a1", "a2", "a3", "a1"] {
            zones.enqueue(&key, node);
        }
        zones.dequeue("a3");
        let mut granted = Vec::new();
        for second in 0..30 {
            let at = start + Duration::from_secs(second);
            granted.extend(zones.grant(at).into_iter().map(|node| (second, node)));
        }
        assert_eq!(granted, [(0, "a1".to_owned()), (10, "a2".to_owned())]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_given_up_while_all_zones_are_dark() {
        let start = Instant::now();
        let mut zones = Zones::new(RATES);
        zones.update(&census(&[("a", 1, 0), ("b", 1, 0)]), start);
        zones.update(&census(&[("a", 0, 1), ("b", 1, 0)]), start);
        zones.enqueue(&(String::new(), "a".to_owned()), "a1");
        assert_eq!(zones.update(&census(&[("a", 0, 1), ("b", 0, 1)]), start), Outlook::Dark);
        assert!(zones.grant(start + Duration::from_secs(100)).is_empty());
        assert_eq!(zones.update(&census(&[("a", 0, 1), ("b", 1, 0)]), start), Outlook::Dawn);
        assert!(zones.grant(start + Duration::from_secs(200)).is_empty(), "the queue was emptied");
    }
}
