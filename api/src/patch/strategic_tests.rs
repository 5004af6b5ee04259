use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{decode::parse_yaml, testing};

const POD: &str = "io.k8s.api.core.v1.Pod";

/// Cases of `name`, object, patch and result (or `error: …`), in YAML, divided by `---`.
const CASES: &str = include_str!("strategic_cases.txt");

fn yaml(text: &str) -> Value {
    parse_yaml(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}")).value
}

#[test]
fn cases() {
    let schemas = Schemas::build(&testing::registry());
    let mut count = 0;
    for case in CASES.split("\n====\n").skip(1) {
        let parts: Vec<&str> = case.split("\n---\n").collect();
        let [title, object, patch, expected] = parts.as_slice() else { panic!("not four parts: {case}") };
        let (title, schema) = title.trim().rsplit_once(" @").unwrap_or((title.trim(), POD));
        let result = strategic_merge_patch(&schemas, schema, &yaml(object), &yaml(patch));
        match (result, expected.trim().strip_prefix("error: ")) {
            (Ok(value), None) => assert_eq!(value, yaml(expected), "{title}"),
            (Err(error), Some(message)) => assert_eq!(error.to_string().trim().replace('\n', " "), message, "{title}"),
            (result, _) => panic!("{title}: {result:?}"),
        }
        count += 1;
    }
    assert!(count >= 20, "only {count} cases were read");
}

fn containers() -> impl Strategy<Value = Value> {
    proptest::collection::btree_map("[a-e]", "[x-z]", 0..5).prop_map(|map| {
        let list: Vec<Value> = map.into_iter().map(|(name, image)| json!({ "name": name, "image": image })).collect();
        json!({ "spec": { "containers": list } })
    })
}

proptest! {
    #[test]
    fn a_patch_is_idempotent_and_leaves_each_key_once(current in containers(), patch in containers()) {
        let schemas = Schemas::build(&crate::registry::Registry::new([testing::pod()]));
        let once = strategic_merge_patch(&schemas, POD, &current, &patch).unwrap();
        prop_assert_eq!(&strategic_merge_patch(&schemas, POD, &once, &patch).unwrap(), &once);
        let list = once["spec"]["containers"].as_array().unwrap();
        for object in [&current, &patch] {
            for item in object["spec"]["containers"].as_array().unwrap() {
                prop_assert_eq!(list.iter().filter(|merged| merged["name"] == item["name"]).count(), 1);
            }
        }
        for item in patch["spec"]["containers"].as_array().unwrap() {
            prop_assert!(list.contains(item));
        }
    }
}
