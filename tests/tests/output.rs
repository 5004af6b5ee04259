//! Commands whose output nobody reads, or nobody can keep.

use std::{
    fs::OpenOptions,
    path::Path,
    process::{Command, Output, Stdio},
};

use trireme_tests::cluster::{Cluster, Pods, binary};

/// A pipe whose reader has gone away.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let config = "config node --name n --zone z --data-dir d --pki-dir p --masters m:6443 --address 127.0.0.1";
    for arguments in ["version", "version -o json", "--help", config] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output = Command::new(binary()).args(&arguments).stdout(closed_pipe()).output().expect("the binary runs");
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()), "{arguments:?}");
    }
}

#[test]
fn output_that_cannot_be_kept_makes_the_command_fail() {
    let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full is there");
    let output = Command::new(binary()).arg("version").stdout(full).output().expect("the binary runs");
    let expected = "trireme: cannot write to the standard output: No space left on device (os error 28)\n";
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(1), expected));
}

#[test]
fn a_refusal_that_nobody_reads_is_still_one() {
    let status = Command::new(binary())
        .args(["status", "--data-dir"])
        .arg(Path::new("/nowhere/at/all"))
        .stdout(closed_pipe())
        .stderr(closed_pipe())
        .status()
        .expect("the binary runs");
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_change_goes_on_when_nobody_reads_what_is_said_of_it() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    for arguments in [&["status"][..], &["member", "list"], &["member", "add", "--learner"]] {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--data-dir").arg(cluster.folder());
        let output = command.stdout(closed_pipe()).output().expect("the binary runs");
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()), "{arguments:?}");
    }
    assert_eq!(cluster.status()["masters"].as_array().map(Vec::len), Some(4));
}
