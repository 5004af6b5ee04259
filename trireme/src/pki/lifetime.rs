//! How long certificates are valid, and when one is due to be renewed.

use std::time::Duration;

use clap::Args;

use crate::cli::MOST_SECONDS;

const DAY_SECONDS: u64 = 24 * 3600;
/// How long a certificate is valid if nothing else is said.
const DEFAULT_DAYS: u64 = 365;
/// Clocks of machines that just joined may be behind by so much, or by a tenth of the lifetime.
const MOST_SKEW_SECONDS: u64 = 600;

/// How long a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Lifetime {
    seconds: u64,
}

impl Default for Lifetime {
    fn default() -> Self {
        Self::days(DEFAULT_DAYS)
    }
}

impl Lifetime {
    pub const fn days(days: u64) -> Self {
        Self { seconds: days * DAY_SECONDS }
    }

    pub const fn seconds(seconds: u64) -> Self {
        Self { seconds }
    }

    /// How long before the moment of its making a certificate begins to be valid.
    pub fn skew(self) -> Duration {
        Duration::from_secs((self.seconds / 10).min(MOST_SKEW_SECONDS))
    }

    pub fn as_duration(self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// The lifetime that a certificate was made with, by the time that its dates span.
    pub fn of_span(seconds: u64) -> Self {
        // The span is the lifetime and its skew: eleven tenths, or the longest skew more.
        Self { seconds: (seconds - seconds / 11).max(seconds.saturating_sub(MOST_SKEW_SECONDS)) }
    }

    /// Whether a certificate of this lifetime is due when it is valid for so many seconds more: a third of its time is left.
    pub fn is_due(self, left_seconds: i64) -> bool {
        u64::try_from(left_seconds).map_or(true, |left| left < self.seconds / 3)
    }

    /// How many seconds pass until it is due.
    pub fn until_due(self, left_seconds: i64) -> u64 {
        u64::try_from(left_seconds).map_or(0, |left| left.saturating_sub(self.seconds / 3))
    }
}

/// How long the certificates that a command makes are valid.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct LifetimeArgs {
    /// How long the certificates are valid, in days [default: 365].
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub certificate_days: Option<u64>,
    /// The same in seconds: for tests of renewal.
    #[arg(long, value_name = "SECONDS", hide = true, conflicts_with = "certificate_days",
          value_parser = clap::value_parser!(u64).range(10..=MOST_SECONDS))]
    pub certificate_seconds: Option<u64>,
}

impl LifetimeArgs {
    /// The lifetime that was asked for, if any was.
    pub fn lifetime(self) -> Option<Lifetime> {
        self.certificate_days.map(Lifetime::days).or(self.certificate_seconds.map(Lifetime::seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_told_from_the_span_of_its_dates() {
        for lifetime in [Lifetime::seconds(20), Lifetime::seconds(3600), Lifetime::days(1), Lifetime::days(365)] {
            let span = lifetime.seconds + lifetime.skew().as_secs();
            let told = Lifetime::of_span(span);
            assert!(told.seconds.abs_diff(lifetime.seconds) <= 1, "{lifetime:?} {told:?}");
        }
    }

    #[test]
    fn a_certificate_is_due_when_a_third_of_its_time_is_left() {
        let lifetime = Lifetime::seconds(30);
        for (left, due, until) in [(30, false, 20), (10, false, 0), (9, true, 0), (0, true, 0), (-5, true, 0)] {
            assert_eq!((lifetime.is_due(left), lifetime.until_due(left)), (due, until), "{left} s left");
        }
    }
}
