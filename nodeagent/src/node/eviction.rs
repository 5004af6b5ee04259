//! When a node counts as short of something: the kubelet's hard eviction signals.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};
use trireme_api::quantity::{Format, Quantity};

/// Something that a node can run out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    MemoryAvailable,
    NodefsAvailable,
    NodefsInodesFree,
    PidAvailable,
}

const SIGNALS: [Signal; 4] = [Signal::MemoryAvailable, Signal::NodefsAvailable, Signal::NodefsInodesFree, Signal::PidAvailable];

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }
}

/// How little of something is too little.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Least {
    /// More than nothing.
    Amount(Quantity),
    /// Of all there is; more than 0 and less than 100.
    Percent(f64),
}

/// How much there is of something that can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supply {
    pub available: u64,
    pub total: u64,
}

/// At most one threshold for each signal, in the notation of the kubelet's `--eviction-hard`:
/// `nodefs.available<10%,memory.available<100Mi`. A signal that is not named has none, nor has one with 0% or 100%. The default is
/// a kubelet's, but for `imagefs`, which is not watched; and processes are short when fewer than 5% of the most are left.
#[derive(Clone, Debug, PartialEq)]
pub struct EvictionThresholds(Vec<(Signal, Least)>);

impl Default for EvictionThresholds {
    fn default() -> Self {
        let percent = |signal, percent| (signal, Least::Percent(percent));
        Self(vec![
            (Signal::MemoryAvailable, Least::Amount(Quantity::from_units(100 << 20, Format::BinarySi))),
            percent(Signal::NodefsAvailable, 10.0),
            percent(Signal::NodefsInodesFree, 5.0),
            percent(Signal::PidAvailable, 5.0),
        ])
    }
}

impl EvictionThresholds {
    /// Whether less than its threshold is left.
    pub fn is_short(&self, signal: Signal, supply: Supply) -> bool {
        let threshold = self.0.iter().find(|(of, _)| *of == signal);
        // Some file systems have no number of inodes.
        supply.total > 0
            && threshold.is_some_and(|(_, least)| match least {
                Least::Amount(amount) => i128::from(supply.available) < i128::from(amount.value()),
                Least::Percent(percent) => (supply.available as f64) * 100.0 < percent * (supply.total as f64),
            })
    }
}

impl FromStr for EvictionThresholds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut thresholds: Vec<(Signal, Least)> = Vec::new();
        for statement in text.split(',').map(str::trim).filter(|statement| !statement.is_empty()) {
            let (name, least) =
                statement.split_once('<').ok_or_else(|| format!("`{statement}` is not of the form signal<quantity"))?;
            let known = SIGNALS.into_iter().find(|known| known.name() == name.trim());
            let signal = known.ok_or_else(|| {
                let names = SIGNALS.map(Signal::name).join(", ");
                format!("there is no signal `{}`; there are {names}", name.trim())
            })?;
            if thresholds.iter().any(|(other, _)| *other == signal) {
                return Err(format!("{} has two thresholds", signal.name()));
            }
            thresholds.extend(parse_least(least.trim())?.map(|least| (signal, least)));
        }
        Ok(Self(thresholds))
    }
}

/// `None` for 0% and 100%, which a kubelet takes for no threshold.
fn parse_least(text: &str) -> Result<Option<Least>, String> {
    if let Some(number) = text.strip_suffix('%') {
        let percent = number.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent));
        let percent = percent.ok_or_else(|| format!("`{text}` is not a percentage from 0% to 100%"))?;
        return Ok((percent > 0.0 && percent < 100.0).then_some(Least::Percent(percent)));
    }
    let quantity = Quantity::parse(text).map_err(|error| format!("`{text}`: {error}"))?;
    if quantity.sign() > 0 { Ok(Some(Least::Amount(quantity))) } else { Err(format!("`{text}` is not more than nothing")) }
}

impl fmt::Display for EvictionThresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (signal, least)) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "," };
            match least {
                Least::Amount(amount) => write!(f, "{separator}{}<{amount}", signal.name())?,
                Least::Percent(percent) => write!(f, "{separator}{}<{percent}%", signal.name())?,
            }
        }
        Ok(())
    }
}

impl Serialize for EvictionThresholds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_what_its_text_says() {
        let text = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,pid.available<5%";
        assert_eq!(text.parse(), Ok(EvictionThresholds::default()));
        assert_eq!(EvictionThresholds::default().to_string(), text);
    }

    #[test]
    fn a_signal_is_short_below_its_threshold() {
        let thresholds: EvictionThresholds = "nodefs.available<1Ki, nodefs.inodesFree<12.5%".parse().unwrap();
        let is_short = |signal, available| thresholds.is_short(signal, Supply { available, total: 1000 });
        assert!(is_short(Signal::NodefsAvailable, 1023) && !is_short(Signal::NodefsAvailable, 1024));
        assert!(is_short(Signal::NodefsInodesFree, 124) && !is_short(Signal::NodefsInodesFree, 125));
        assert!(!is_short(Signal::MemoryAvailable, 0), "what is not named has no threshold");
        for off in ["nodefs.available<0%", "nodefs.available<100%", ""] {
            let off: EvictionThresholds = off.parse().unwrap();
            assert!(!off.is_short(Signal::NodefsAvailable, Supply { available: 0, total: 1000 }));
        }
        let inodes: EvictionThresholds = "nodefs.inodesFree<10k".parse().unwrap();
        assert!(!inodes.is_short(Signal::NodefsInodesFree, Supply { available: 0, total: 0 }), "there are none to count");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, reason) in [
            ("nodefs.available", "is not of the form signal<quantity"),
            ("nodefs.available>5%", "is not of the form signal<quantity"),
            ("imagefs.available<5%", "there is no signal `imagefs.available`; there are memory.available, "),
            ("nodefs.available<5%,nodefs.available<1Gi", "nodefs.available has two thresholds"),
            ("nodefs.available<101%", "is not a percentage from 0% to 100%"),
            ("nodefs.available<NaN%", "is not a percentage from 0% to 100%"),
            ("nodefs.available<much", "`much`: "),
            ("nodefs.available<-1Gi", "`-1Gi` is not more than nothing"),
            ("nodefs.available<0", "`0` is not more than nothing"),
        ] {
            let refused = text.parse::<EvictionThresholds>().expect_err(text);
            assert!(refused.contains(reason), "{refused}");
        }
    }
}
