//! Exponential back-off of restarts and image pulls: 10 s, doubled up to 5 min, forgotten after 10 quiet minutes
//! (the kubelet's `MaxContainerBackOff` and `flowcontrol.Backoff`).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

const FIRST: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(300);
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// The back-off of one subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    last: Option<(Duration, Timestamp)>,
}

impl Backoff {
    /// Until when to wait after `event` (the end of a container, the failure of a pull), and the whole delay; `None` when
    /// it is over.
    pub fn waiting(&self, event: Timestamp, now: Timestamp) -> Option<(Timestamp, Duration)> {
        let (delay, updated) = self.last?;
        if elapsed(updated, event) > FORGOTTEN_AFTER {
            return None;
        }
        let until = event.saturating_add(SignedDuration::try_from(delay).ok()?).ok()?;
        (now < until).then_some((until, delay))
    }

    /// Like [`Backoff::waiting`], counted from the last failure.
    pub fn waiting_since_update(&self, now: Timestamp) -> Option<(Timestamp, Duration)> {
        self.waiting(self.last?.1, now)
    }

    /// Another failure, or another try: doubles the delay of the next.
    pub fn advance(&mut self, event: Timestamp, now: Timestamp) {
        let delay = match self.last {
            Some((delay, updated)) if elapsed(updated, event) <= FORGOTTEN_AFTER => (delay * 2).min(MOST),
            _ => FIRST,
        };
        self.last = Some((delay, now));
    }

    /// Forgets everything, as after a success.
    pub fn reset(&mut self) {
        self.last = None;
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

/// A duration as Go prints it: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds % 3600 / 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_first_restart_is_at_once_and_the_next_wait_longer() {
        let mut backoff = Backoff::default();
        let mut now = 1000;
        let mut delays = Vec::new();
        for _ in 0..8 {
            if let Some((until, delay)) = backoff.waiting(at(now), at(now)) {
                assert_eq!(until, at(now + i64::try_from(delay.as_secs()).unwrap()));
                delays.push(go_duration(delay));
                let ended = now;
                now = until.as_second();
                assert_eq!(backoff.waiting(at(ended), at(now)), None, "over at its end");
            }
            backoff.advance(at(now), at(now));
        }
        assert_eq!(delays, ["10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"]);
    }

    #[test]
    fn ten_quiet_minutes_forget() {
        let mut backoff = Backoff::default();
        for second in [0, 10, 30] {
            backoff.advance(at(second), at(second));
        }
        assert!(backoff.waiting(at(630), at(630)).is_some());
        assert_eq!(backoff.waiting(at(631), at(631)), None);
        backoff.advance(at(631), at(631));
        assert_eq!(backoff.waiting(at(631), at(631)).unwrap().1, FIRST);
    }
}
