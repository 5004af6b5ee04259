//! Every fail point kills a real master once in each role that reaches it.
//!
//! `TRIREME_CRASH_POINTS` restricts the test to the points whose names contain one of these words, separated by commas.

use std::collections::BTreeSet;

use trireme_jepsen::{
    crash::{Crashes, Report, crash_at_the_beginning},
    nemeses::fail_points::{CASES, Case, Trigger},
};

/// A run that reached fewer points than this proves too little.
const POINTS: usize = 25;

fn is_wanted(case: &Case) -> bool {
    let words = std::env::var("TRIREME_CRASH_POINTS").unwrap_or_default();
    words.is_empty() || words.split(',').any(|word| case.point.contains(word))
}

fn told(report: Report) -> Report {
    println!("{report}");
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_dies_anywhere_comes_back_and_nothing_acknowledged_is_lost() {
    let beginning: Vec<Case> = CASES.iter().filter(|case| case.trigger == Trigger::Bootstrap).copied().collect();
    let (initializing, gathering): (Vec<Case>, Vec<Case>) =
        beginning.into_iter().partition(|case| case.point.starts_with("bootstrap/initialize/"));
    let mut reports = Vec::new();

    // Two members die as they begin the group; a group whose members die before that goes on to the other points.
    let victims: Vec<(usize, &[Case])> = initializing.chunks(1).enumerate().collect();
    reports.extend(crash_at_the_beginning(&victims).await.1.into_iter().map(told));
    let (mut crashes, gathered) = crash_at_the_beginning(&[(1, &gathering)]).await;
    reports.extend(gathered.into_iter().map(told));
    reports.extend(every_other_point(&mut crashes).await);
    crashes.check_all().await;

    let points: BTreeSet<&str> = reports.iter().map(|report| report.point).collect();
    println!("{} deaths at {} fail points", reports.len(), points.len());
    if std::env::var_os("TRIREME_CRASH_POINTS").is_none() {
        assert_eq!(points.len(), CASES.len(), "a point was left out");
        assert!(points.len() >= POINTS, "only {} points were reached", points.len());
    }
}

async fn every_other_point(crashes: &mut Crashes) -> Vec<Report> {
    let mut reports = Vec::new();
    for case in CASES.iter().filter(|case| case.trigger != Trigger::Bootstrap && is_wanted(case)) {
        for role in case.reached.roles() {
            reports.push(told(crashes.crash(case, *role).await));
        }
    }
    reports
}
