//! From single results to a verdict (`pkg/kubelet/prober/worker.go`): it changes after as many equal results in a row as
//! the threshold says.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;

/// One result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
}

/// A probe's numbers, with Kubernetes' defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

impl Timing {
    pub fn of(probe: &Probe) -> Self {
        let number = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(u64::from(number(value, default)));
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: number(probe.success_threshold, 1),
            failure_threshold: number(probe.failure_threshold, 3),
        }
    }
}

/// Counts equal results in a row.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<(Outcome, u32)>,
}

impl Counter {
    pub fn new(timing: Timing) -> Self {
        Self { success_threshold: timing.success_threshold, failure_threshold: timing.failure_threshold, last: None }
    }

    /// Takes a result; gives the verdict, once there were enough equal ones.
    pub fn take(&mut self, outcome: Outcome) -> Option<Outcome> {
        let count = match self.last {
            Some((last, count)) if last == outcome => count.saturating_add(1),
            _ => 1,
        };
        self.last = Some((outcome, count));
        let threshold = match outcome {
            Outcome::Success => self.success_threshold,
            Outcome::Failure => self.failure_threshold,
        };
        (count >= threshold).then_some(outcome)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdicts(success_threshold: i32, failure_threshold: i32, results: &str) -> String {
        let probe =
            Probe { success_threshold: Some(success_threshold), failure_threshold: Some(failure_threshold), ..Probe::default() };
        let mut counter = Counter::new(Timing::of(&probe));
        let one = |result| match counter.take(if result == 's' { Outcome::Success } else { Outcome::Failure }) {
            Some(Outcome::Success) => 'S',
            Some(Outcome::Failure) => 'F',
            None => '.',
        };
        results.chars().map(one).collect()
    }

    #[test]
    fn a_verdict_takes_its_threshold() {
        assert_eq!(verdicts(1, 3, "sffsfffs"), "S..S..FS");
        assert_eq!(verdicts(2, 1, "ssfss"), ".SF.S");
        assert_eq!(verdicts(1, 1, "fs"), "FS");
    }

    #[test]
    fn defaults_are_kubernetes() {
        let timing = Timing::of(&Probe::default());
        assert_eq!((timing.period.as_secs(), timing.timeout.as_secs()), (10, 1));
        assert_eq!((timing.success_threshold, timing.failure_threshold), (1, 3));
    }

    proptest! {
        /// A verdict of failure means that the last `threshold` results were failures, and the other way round.
        #[test]
        fn the_verdict_is_the_tail(results in "[sf]{0,40}", threshold in 1..6_i32) {
            let verdicts = verdicts(1, threshold, &results);
            let threshold = usize::try_from(threshold).unwrap();
            for (index, verdict) in verdicts.chars().enumerate() {
                let tail = &results[(index + 1).saturating_sub(threshold)..=index];
                let failing = tail.len() == threshold && tail.chars().all(|result| result == 'f');
                prop_assert_eq!(verdict == 'F', failing);
            }
        }
    }
}
