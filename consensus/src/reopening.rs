//! How a stream that breaks is opened again: ever later as long as it keeps breaking, and with few words about it.

use std::time::Duration;

use tokio::time::Instant;

/// The pause before a stream is opened again that has broken once; it doubles from time to time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause. A stream that lasted longer was no failure to open it.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// That it breaks is told no more often.
const TELLING_PERIOD: Duration = Duration::from_secs(10);

/// What to do about a stream that broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaction {
    /// How long to wait before it is opened again.
    pub pause: Duration,
    /// How often it has broken since that was last told, if it is to be told now.
    pub told: Option<u32>,
}

/// The breaks of the stream to one target so far.
#[derive(Debug, Default)]
pub struct Reopening {
    /// How often it broke soon after it was opened, one time after the other.
    in_a_row: u32,
    untold: u32,
    last_told: Option<Instant>,
}

impl Reopening {
    /// The stream that was begun at `began` broke at `now`.
    pub fn broke(&mut self, began: Instant, now: Instant) -> Reaction {
        let lasted = now.saturating_duration_since(began);
        self.in_a_row = if lasted > LONGEST_PAUSE { 1 } else { self.in_a_row.saturating_add(1) };
        let doublings = 2_u32.saturating_pow(self.in_a_row - 1);
        let pause = SHORTEST_PAUSE.saturating_mul(doublings).min(LONGEST_PAUSE);
        self.untold = self.untold.saturating_add(1);
        let is_told = self.last_told.is_none_or(|last| now.saturating_duration_since(last) >= TELLING_PERIOD);
        if is_told {
            self.last_told = Some(now);
        }
        Reaction { pause, told: is_told.then(|| std::mem::take(&mut self.untold)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_keeps_breaking_is_opened_less_often_and_told_of_rarely() {
        let start = Instant::now();
        let (mut now, mut reopening) = (start, Reopening::default());
        let (mut pauses, mut told) = (Vec::new(), Vec::new());
        while now < start + Duration::from_secs(25) {
            let reaction = reopening.broke(now, now);
            pauses.push(reaction.pause.as_millis());
            told.extend(reaction.told.map(|times| ((now - start).as_secs(), times)));
            now += reaction.pause;
        }
        assert_eq!(pauses[..7], [20, 40, 80, 160, 320, 500, 500]);
        assert_eq!(told, [(0, 1), (10, 24), (20, 20)]);
    }

    #[test]
    fn one_that_has_lasted_is_opened_again_at_once() {
        let (start, mut reopening) = (Instant::now(), Reopening::default());
        for _ in 0..100 {
            reopening.broke(start, start);
        }
        let began = start + LONGEST_PAUSE;
        let after = |lasted| began + Duration::from_secs(lasted);
        assert_eq!(reopening.broke(began, after(0)).pause, LONGEST_PAUSE);
        assert_eq!(reopening.broke(began, after(5)), Reaction { pause: SHORTEST_PAUSE, told: None });
        assert_eq!(reopening.broke(began, after(60)), Reaction { pause: SHORTEST_PAUSE, told: Some(102) });
    }
}
