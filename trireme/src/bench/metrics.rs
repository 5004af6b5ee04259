//! What servers say of their own cost.

/// What a server has used so far, or a group of servers all together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub fsyncs: f64,
    pub resident_bytes: f64,
    pub disk_bytes: f64,
}

impl Usage {
    /// Reads a server's metrics page. The names are those that etcd gives them.
    pub fn parse(page: &str) -> Self {
        let value = |name: &str| {
            let lines = page.lines().filter_map(|line| line.split_once(' '));
            lines.filter(|(found, _)| *found == name).find_map(|(_, value)| value.trim().parse().ok()).unwrap_or(0.0)
        };
        Self {
            cpu_seconds: value("process_cpu_seconds_total"),
            fsyncs: value("etcd_disk_wal_fsync_duration_seconds_count"),
            resident_bytes: value("process_resident_memory_bytes"),
            disk_bytes: value("etcd_mvcc_db_total_size_in_bytes"),
        }
    }

    pub fn add(self, other: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            fsyncs: self.fsyncs + other.fsyncs,
            resident_bytes: self.resident_bytes + other.resident_bytes,
            disk_bytes: self.disk_bytes + other.disk_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metrics_page_is_read() {
        let page = "# HELP process_cpu_seconds_total Seconds.\nprocess_cpu_seconds_total 12.5\n\
            etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"} 3\netcd_disk_wal_fsync_duration_seconds_count 7\n\
            process_resident_memory_bytes 1.048576e+06\n";
        let usage = Usage::parse(page);
        assert_eq!(usage, Usage { cpu_seconds: 12.5, fsyncs: 7.0, resident_bytes: 1_048_576.0, disk_bytes: 0.0 });
        assert_eq!(usage.add(usage).fsyncs, 14.0);
    }
}
