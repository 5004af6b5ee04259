//! The list of fail points is the code's.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use trireme_storage::fail_point::NAMES;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names in the statements of a text that mark a fail point.
fn marked(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.trim().strip_prefix("fail_point!(\"")?.strip_suffix("\");"))
}

#[test]
fn every_fail_point_in_the_code_is_listed_and_every_listed_one_is_in_the_code() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&own.join("src"), &mut files);
    sources(&own.join("../storage/src"), &mut files);
    assert!(files.len() > 50, "only {} files were looked at", files.len());
    let texts: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let in_code: BTreeSet<&str> = texts.iter().flat_map(|text| marked(text)).collect();
    let listed: BTreeSet<&str> = NAMES.iter().copied().collect();
    assert_eq!(listed.len(), NAMES.len(), "a name is listed twice");
    assert_eq!(in_code, listed);
}
