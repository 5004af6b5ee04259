//! Who may import whom. Each crate stands on a floor and imports only from floors below it; two dependencies are one crate's own.

use std::collections::BTreeSet;

use serde_json::Value;

/// The floor of every crate of the workspace. A crate may import from lower floors alone.
const FLOORS: &[(&str, u8)] = &[
    ("trireme-api", 1),
    ("trireme-storage", 1),
    ("trireme-consensus", 2),
    ("trireme-apiserver", 3),
    ("trireme-controllers", 3),
    ("trireme-etcd", 3),
    ("trireme-nodeagent", 3),
    ("trireme-scheduler", 3),
    ("trireme-jepsen", 4),
    ("trireme", 5),
    ("trireme-tests", 5),
    // Chores stand outside the house: nobody imports them, and they import nobody.
    ("xtask", 0),
];

/// Outside crates (with everything named after them) that one crate of ours alone may name, so that it can be replaced.
const CONFINED: &[(&str, &str)] =
    &[("openraft", "trireme-consensus"), ("rocksdb", "trireme-storage"), ("librocksdb-sys", "trireme-storage")];

/// Crates that talk to the cluster through the Kubernetes API and nothing else: they may not import what stores objects.
const API_CLIENTS: &[&str] = &["trireme-controllers", "trireme-nodeagent", "trireme-scheduler"];

/// What may switch the fail points of `storage` on: what `make dist` leaves out, and tests.
const FAIL_POINTS: (&str, &str) = ("trireme-jepsen", "fail-points");

/// The dependencies by which others would bring the fail points into the released binary.
fn leaks(metadata: &Value) -> Vec<String> {
    let (owner, feature) = FAIL_POINTS;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut leaks = Vec::new();
    for package in list(&metadata["packages"]).iter().filter(|package| package["name"] != owner) {
        let switches_on = |dependency: &&Value| list(&dependency["features"]).iter().any(|one| one == feature);
        let linked = |dependency: &&Value| dependency["kind"] != "dev";
        let found = list(&package["dependencies"]);
        leaks.extend(
            found
                .iter()
                .filter(switches_on)
                .filter(linked)
                .map(|dependency| format!("{} switches on the fail points of {}", package["name"], dependency["name"])),
        );
    }
    leaks
}

/// The crates that link the one that switches the fail points on, itself included: what `make dist` must leave out.
fn carriers(metadata: &Value) -> BTreeSet<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut carriers = BTreeSet::from([FAIL_POINTS.0.to_owned()]);
    loop {
        let links = |dependency: &Value| {
            dependency["kind"] != "dev" && dependency["name"].as_str().is_some_and(|name| carriers.contains(name))
        };
        let packages = list(&metadata["packages"]);
        let linking = packages.iter().filter(|package| list(&package["dependencies"]).iter().any(links));
        let more: BTreeSet<String> = linking.filter_map(|package| package["name"].as_str().map(str::to_owned)).collect();
        let before = carriers.len();
        carriers.extend(more);
        if carriers.len() == before {
            return carriers;
        }
    }
}

/// One crate of the workspace and what it imports, for any purpose: itself, its tests, its build script.
struct Crate {
    name: String,
    imports: Vec<String>,
}

/// The workspace's crates in the output of `cargo metadata --no-deps`.
fn crates(metadata: &Value) -> Vec<Crate> {
    let names = |values: &Value| -> Vec<String> {
        let values = values.as_array().map(Vec::as_slice).unwrap_or_default();
        values.iter().filter_map(|value| value["name"].as_str()).map(str::to_owned).collect()
    };
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named =
        packages.iter().filter_map(|package| Some((package["name"].as_str()?.to_owned(), names(&package["dependencies"]))));
    named.map(|(name, imports)| Crate { name, imports }).collect()
}

fn floor(name: &str) -> Option<u8> {
    FLOORS.iter().find(|(known, _)| *known == name).map(|(_, floor)| *floor)
}

/// Every breach of the rules, one line each.
fn breaches(crates: &[Crate]) -> Vec<String> {
    let mut breaches = Vec::new();
    for Crate { name, imports } in crates {
        let Some(own) = floor(name) else {
            breaches.push(format!("{name} has no floor: give it one in xtask/src/floors.rs"));
            continue;
        };
        for import in imports {
            match floor(import) {
                Some(other) if other >= own || other == 0 => {
                    breaches.push(format!("{name} (floor {own}) imports {import} (floor {other})"));
                }
                None if crates.iter().any(|member| member.name == *import) => {
                    breaches.push(format!("{name} imports {import}, which has no floor"))
                }
                _ => {}
            }
            if API_CLIENTS.contains(&name.as_str()) && ["trireme-storage", "trireme-consensus"].contains(&import.as_str()) {
                breaches.push(format!("{name} imports {import}: it may use the Kubernetes API alone"));
            }
            let confined = CONFINED.iter().find(|(outside, _)| import == outside || import.starts_with(&format!("{outside}-")));
            if let Some((outside, owner)) = confined
                && owner != name
            {
                breaches.push(format!("{name} imports {import}: {outside} belongs to {owner} alone"));
            }
        }
    }
    breaches
}

mod tests {
    use serde_json::json;

    use super::*;
    use crate::workspace;

    #[test]
    fn no_crate_of_the_workspace_imports_from_a_floor_above() {
        let crates = crates(&workspace::metadata(&["--no-deps"]).unwrap());
        assert_eq!(breaches(&crates), Vec::<String>::new());
        for (name, _) in FLOORS {
            assert!(crates.iter().any(|member| member.name == *name), "{name} has a floor but is no crate of the workspace");
        }
        for (outside, owner) in [("openraft", "trireme-consensus"), ("rocksdb", "trireme-storage")] {
            let owner = crates.iter().find(|member| member.name == owner).unwrap();
            assert!(owner.imports.iter().any(|import| import == outside), "{} no longer imports {outside}", owner.name);
        }
    }

    #[test]
    fn the_released_binary_has_no_fail_points() {
        let metadata = workspace::metadata(&["--no-deps"]).unwrap();
        assert_eq!(leaks(&metadata), Vec::<String>::new());
        let makefile = std::fs::read_to_string(workspace::root().join("Makefile")).unwrap();
        let dist = makefile.lines().find(|line| line.contains("--profile dist")).unwrap();
        for carrier in carriers(&metadata) {
            assert!(carrier != "trireme" && dist.contains(&format!("--exclude {carrier} ")), "{carrier} is in: {dist}");
        }

        let switching = |kind: Value| {
            json!({"packages": [{"name": "trireme", "dependencies": [
                {"name": "trireme-storage", "kind": kind, "features": ["fail-points"]}
            ]}]})
        };
        assert_eq!(leaks(&switching(json!(null))).len(), 1);
        assert_eq!(leaks(&switching(json!("dev"))), Vec::<String>::new());
    }

    #[test]
    fn each_breach_is_found() {
        let cases: &[(&str, &str, &str)] = &[
            ("trireme-api", "trireme-apiserver", "trireme-api (floor 1) imports trireme-apiserver (floor 3)"),
            ("trireme-scheduler", "trireme-controllers", "trireme-scheduler (floor 3) imports trireme-controllers (floor 3)"),
            (
                "trireme-scheduler",
                "trireme-storage",
                "trireme-scheduler imports trireme-storage: it may use the Kubernetes API alone",
            ),
            ("trireme-apiserver", "rocksdb", "trireme-apiserver imports rocksdb: rocksdb belongs to trireme-storage alone"),
            ("trireme", "openraft-rt", "trireme imports openraft-rt: openraft belongs to trireme-consensus alone"),
            ("trireme", "xtask", "trireme (floor 5) imports xtask (floor 0)"),
            ("xtask", "trireme-api", "xtask (floor 0) imports trireme-api (floor 1)"),
            ("trireme-web", "serde", "trireme-web has no floor: give it one in xtask/src/floors.rs"),
        ];
        for (name, import, expected) in cases {
            for kind in [json!(null), json!("dev"), json!("build")] {
                let metadata = json!({"packages": [{"name": name, "dependencies": [{"name": import, "kind": kind}]}]});
                assert_eq!(breaches(&crates(&metadata)), [*expected]);
            }
        }
        let allowed = json!({"packages": [{"name": "trireme-apiserver", "dependencies": [{"name": "trireme-storage"}, {"name": "serde"}]}]});
        assert_eq!(breaches(&crates(&allowed)), Vec::<String>::new());
    }
}
