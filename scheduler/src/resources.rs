//! Amounts of resources as plain integers, so that filters and scores do no parsing.

use std::{collections::BTreeMap, sync::Arc};

use trireme_api::{kinds::pod_resources::Amounts, quantity::Quantity};

/// A single amount is capped here, so that sums over a node's pods stay inside `i64`.
const LARGEST: i64 = 1 << 53;

/// What is asked for, in use, or there to be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_bytes: i64,
    /// Everything else (devices, huge pages), in whole units, by the resource's name.
    pub extended: BTreeMap<Arc<str>, i64>,
}

impl Resources {
    /// A pod's requests. Amounts are rounded up.
    pub fn requested(amounts: &Amounts) -> Self {
        Self::capped(amounts, LARGEST)
    }

    /// What a node offers, without its number of pods. An amount beyond all reason never satisfies a request beyond all reason.
    pub fn allocatable(amounts: &Amounts) -> Self {
        Self::capped(amounts, LARGEST - 1)
    }

    fn capped(amounts: &Amounts, cap: i64) -> Self {
        let mut resources = Self::default();
        for (name, amount) in amounts {
            let value = amount.value().clamp(0, cap);
            match name.as_str() {
                "cpu" => resources.cpu_milli = amount.millis().clamp(0, cap),
                "memory" => resources.memory_bytes = value,
                "ephemeral-storage" => resources.ephemeral_bytes = value,
                "pods" => {}
                other => {
                    resources.extended.insert(other.into(), value);
                }
            }
        }
        resources
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, 1);
    }

    /// Takes away what was added before.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, -1);
    }

    fn combine(&mut self, other: &Self, sign: i64) {
        self.cpu_milli += sign * other.cpu_milli;
        self.memory_bytes += sign * other.memory_bytes;
        self.ephemeral_bytes += sign * other.ephemeral_bytes;
        for (name, amount) in &other.extended {
            let sum = self.extended.entry(Arc::clone(name)).or_default();
            *sum += sign * amount;
            if *sum == 0 {
                self.extended.remove(name);
            }
        }
    }

    /// Whether nothing at all is asked for.
    pub fn is_zero(&self) -> bool {
        self.cpu_milli == 0
            && self.memory_bytes == 0
            && self.ephemeral_bytes == 0
            && self.extended.values().all(|amount| *amount == 0)
    }

    /// Whether some amount is smaller than in `other`.
    pub fn any_below(&self, other: &Self) -> bool {
        self.cpu_milli < other.cpu_milli
            || self.memory_bytes < other.memory_bytes
            || self.ephemeral_bytes < other.ephemeral_bytes
            || other.extended.iter().any(|(name, amount)| self.extended.get(name).copied().unwrap_or(0) < *amount)
    }
}

/// Parses a node's amounts; one that cannot be parsed counts as nothing.
pub fn parse_amounts<'a>(texts: impl IntoIterator<Item = (&'a String, &'a str)>) -> Amounts {
    texts.into_iter().filter_map(|(name, text)| Some((name.clone(), Quantity::parse(text).ok()?))).collect()
}
