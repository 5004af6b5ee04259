//! The figures, as a table.

use std::{fmt, time::Duration};

use super::cluster::Memory;

/// Everything that was measured.
pub struct Report {
    /// From the start of `trireme up` until it returned.
    pub ready: Duration,
    pub memory: Vec<Memory>,
    /// For each kill, how long no write was acknowledged.
    pub gaps: Vec<Duration>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<52} {:>10}", "MEASURE", "VALUE")?;
        writeln!(f, "{:<52} {:>8.1} s", "from `trireme up` to ready", self.ready.as_secs_f64())?;
        for process in &self.memory {
            writeln!(f, "{:<52} {:>6} MiB", format!("memory of {} at rest", process.name), process.resident_kib / 1024)?;
        }
        let kills = self.gaps.len();
        if let (Some(median), Some(worst)) = (median(&self.gaps), self.gaps.iter().max()) {
            writeln!(f, "{:<52} {:>7} ms", format!("leader killed to next write, median of {kills}"), median.as_millis())?;
            writeln!(f, "{:<52} {:>7} ms", format!("leader killed to next write, worst of {kills}"), worst.as_millis())?;
        }
        Ok(())
    }
}

/// The middle value, or the mean of the two in the middle.
fn median(values: &[Duration]) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 { Some(upper) } else { Some((sorted[sorted.len() / 2 - 1] + upper) / 2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(values: &[u64]) -> Vec<Duration> {
        values.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&milliseconds(&[5])), Some(Duration::from_millis(5)));
        assert_eq!(median(&milliseconds(&[9, 1, 5])), Some(Duration::from_millis(5)));
        assert_eq!(median(&milliseconds(&[9, 1, 5, 7])), Some(Duration::from_millis(6)));
    }

    #[test]
    fn the_table_shows_every_figure() {
        let report = Report {
            ready: Duration::from_millis(2345),
            memory: vec![Memory { name: "master-1".into(), resident_kib: 51_200 }],
            gaps: milliseconds(&[300, 800, 500]),
        };
        let expected = "\
MEASURE                                                   VALUE
from `trireme up` to ready                                2.3 s
memory of master-1 at rest                               50 MiB
leader killed to next write, median of 3                 500 ms
leader killed to next write, worst of 3                  800 ms
";
        assert_eq!(report.to_string(), expected);
    }
}
