//! What the operating system says of this process, under the names that Prometheus' client libraries give it.

use std::fmt;

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Asks the operating system each time that metrics are read.
#[derive(Debug)]
pub struct ProcessCollector;

fn seconds(time: TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

/// The processor time that this process has used, in seconds; `None` where the system does not tell.
pub fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// The number of pages is the second word (proc(5)).
fn resident_bytes(statm: &str, page_bytes: u64) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(page_bytes)
}

fn own_resident_bytes() -> Option<u64> {
    let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    resident_bytes(&std::fs::read_to_string("/proc/self/statm").ok()?, u64::try_from(page_bytes).ok()?)
}

fn open_files() -> Option<u64> {
    u64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        if let Some(seconds) = cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            let help = "Total user and system CPU time spent in seconds.";
            counter.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, counter.metric_type())?)?;
        }
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory size in bytes.", own_resident_bytes()),
            ("process_open_fds", "Number of open file descriptors.", open_files()),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_memory_is_read() {
        assert_eq!(resident_bytes("1000 250 30 1 0 90 0\n", 4096), Some(1_024_000));
        assert_eq!(resident_bytes("1000", 4096), None);
    }

    #[test]
    fn this_process_has_used_something() {
        assert!(cpu_seconds().unwrap() > 0.0);
        assert!(own_resident_bytes().unwrap() > 1 << 20);
        assert!(open_files().unwrap() >= 3);
    }
}
