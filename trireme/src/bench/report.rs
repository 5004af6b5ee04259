//! What was measured, as a table and as JSON: medians over the rounds, and what the second store's figures are of the first's.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// One run of one load against one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    pub operations_per_second: f64,
    pub p50_milliseconds: f64,
    pub p99_milliseconds: f64,
    pub worst_milliseconds: f64,
    /// Of all members together, for each operation.
    pub server_cpu_microseconds: f64,
    /// Of this program, for each operation.
    pub client_cpu_microseconds: f64,
    /// Of all members together, for each operation.
    pub fsyncs: f64,
    /// Of all members together.
    pub resident_mebibytes: f64,
    /// Of all members together.
    pub disk_mebibytes: f64,
}

/// The figures that a table shows: a heading, how to read one, and with how many decimals.
type Column = (&'static str, fn(&Figures) -> f64, usize);

const COLUMNS: [Column; 9] = [
    ("OPS/S", |figures| figures.operations_per_second, 0),
    ("P50 MS", |figures| figures.p50_milliseconds, 2),
    ("P99 MS", |figures| figures.p99_milliseconds, 2),
    ("WORST MS", |figures| figures.worst_milliseconds, 1),
    ("SERVER CPU US/OP", |figures| figures.server_cpu_microseconds, 1),
    ("CLIENT CPU US/OP", |figures| figures.client_cpu_microseconds, 1),
    ("FSYNCS/OP", |figures| figures.fsyncs, 3),
    ("RSS MIB", |figures| figures.resident_mebibytes, 0),
    ("DISK MIB", |figures| figures.disk_mebibytes, 0),
];

/// The medians of one load against one store.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub load: String,
    pub store: String,
    pub rounds: usize,
    #[serde(flatten)]
    pub medians: Figures,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The median of each figure by itself.
pub fn medians(rounds: &[Figures]) -> Figures {
    let of = |read: fn(&Figures) -> f64| median(rounds.iter().map(read).collect());
    Figures {
        operations_per_second: of(|figures| figures.operations_per_second),
        p50_milliseconds: of(|figures| figures.p50_milliseconds),
        p99_milliseconds: of(|figures| figures.p99_milliseconds),
        worst_milliseconds: of(|figures| figures.worst_milliseconds),
        server_cpu_microseconds: of(|figures| figures.server_cpu_microseconds),
        client_cpu_microseconds: of(|figures| figures.client_cpu_microseconds),
        fsyncs: of(|figures| figures.fsyncs),
        resident_mebibytes: of(|figures| figures.resident_mebibytes),
        disk_mebibytes: of(|figures| figures.disk_mebibytes),
    }
}

/// The table; where a load has lines of two stores, a third one gives the first store's figures as multiples of the second's.
pub fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["LOAD", "STORE"].into_iter().chain(COLUMNS.iter().map(|(heading, ..)| *heading)));
    for (number, line) in lines.iter().enumerate() {
        let figures = COLUMNS.iter().map(|(_, read, decimals)| format!("{:.*}", *decimals, read(&line.medians)));
        table.add_row([line.load.clone(), line.store.clone()].into_iter().chain(figures));
        let first = number.checked_sub(1).and_then(|before| lines.get(before)).filter(|before| before.load == line.load);
        if let Some(first) = first {
            let ratios = COLUMNS.iter().map(|(_, read, _)| ratio(read(&first.medians), read(&line.medians)));
            table.add_row([String::new(), format!("{} / {}", first.store, line.store)].into_iter().chain(ratios));
        }
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn ratio(first: f64, second: f64) -> String {
    if second == 0.0 { "-".to_owned() } else { format!("{:.2}x", first / second) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_each_figure() {
        let round =
            |operations_per_second, p99_milliseconds| Figures { operations_per_second, p99_milliseconds, ..Figures::default() };
        let medians = medians(&[round(10.0, 3.0), round(30.0, 1.0), round(20.0, 2.0)]);
        assert_eq!((medians.operations_per_second, medians.p99_milliseconds), (20.0, 2.0));
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
    }

    #[test]
    fn two_stores_are_compared() {
        let line = |store: &str, operations_per_second| Line {
            load: "puts-1".to_owned(),
            store: store.to_owned(),
            rounds: 1,
            medians: Figures { operations_per_second, ..Figures::default() },
        };
        let text = table(&[line("trireme", 300.0), line("etcd", 100.0)]).to_string();
        let last = text.lines().last().unwrap();
        assert!(last.contains("trireme / etcd") && last.contains("3.00x"), "{text}");
    }
}
