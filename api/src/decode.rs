//! From the bytes of a request to a JSON value: JSON and YAML, with limits, noting fields that stand twice.
//!
//! YAML is read as `sigs.k8s.io/yaml` reads it: `yes`, `on` and the like are booleans, `0644` is octal, and keys that are
//! not strings become strings.

use std::{cell::RefCell, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The largest body that a request may have, in bytes (3 MiB, as in kube-apiserver).
pub const SIZE_LIMIT_BYTES: usize = 3 * 1024 * 1024;
/// How deep lists and maps may be nested.
pub const DEPTH_LIMIT: usize = 100;

/// A value, and what was written twice on the way to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub value: Value,
    /// The paths of fields that stand more than once (`spec.foo`); the last one counts.
    pub duplicates: Vec<String>,
}

/// Why bytes are not a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("Request entity too large: limit is {SIZE_LIMIT_BYTES}")]
    TooLarge,
    #[error("{0}")]
    Json(String),
    #[error("error converting YAML to JSON: {0}")]
    Yaml(String),
}

/// Parses one JSON value with nothing after it.
pub fn parse_json(bytes: &[u8]) -> Result<Parsed, DecodeError> {
    if bytes.len() > SIZE_LIMIT_BYTES {
        return Err(DecodeError::TooLarge);
    }
    let notes = Notes::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = ValueSeed { notes: &notes, depth: 0 };
    let value = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    let value = value.map_err(|error| DecodeError::Json(error.to_string()))?;
    Ok(Parsed { value, duplicates: notes.duplicates.into_inner() })
}

/// Parses one YAML document. An empty one is null.
pub fn parse_yaml(bytes: &[u8]) -> Result<Parsed, DecodeError> {
    if bytes.len() > SIZE_LIMIT_BYTES {
        return Err(DecodeError::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|error| DecodeError::Yaml(error.to_string()))?;
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let notes = Notes::default();
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        ValueSeed { notes: &notes, depth: 0 }.deserialize(deserializer)
    });
    let value = value.map_err(|error| DecodeError::Yaml(error.to_string()))?;
    Ok(Parsed { value, duplicates: notes.duplicates.into_inner() })
}

/// Where the parser is, and what it has met.
#[derive(Default)]
struct Notes {
    path: RefCell<Vec<String>>,
    duplicates: RefCell<Vec<String>>,
}

impl Notes {
    fn enter(&self, step: String) {
        self.path.borrow_mut().push(step);
    }

    fn leave(&self) {
        self.path.borrow_mut().pop();
    }

    fn duplicate(&self, key: &str) {
        let mut path = self.path.borrow().concat();
        path.push('.');
        path.push_str(key);
        let path = path.trim_start_matches('.').to_owned();
        let mut duplicates = self.duplicates.borrow_mut();
        if !duplicates.contains(&path) {
            duplicates.push(path);
        }
    }
}

#[derive(Clone, Copy)]
struct ValueSeed<'a> {
    notes: &'a Notes,
    depth: usize,
}

impl ValueSeed<'_> {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.depth >= DEPTH_LIMIT {
            return Err(E::custom("exceeded max depth"));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that JSON cannot hold"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut list = Vec::new();
        loop {
            self.notes.enter(format!("[{}]", list.len()));
            let item = access.next_element_seed(inner)?;
            self.notes.leave();
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = access.next_key_seed(KeySeed)? {
            if object.contains_key(&key) {
                self.notes.duplicate(&key);
            }
            self.notes.enter(format!(".{key}"));
            let value = access.next_value_seed(inner)?;
            self.notes.leave();
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// A key: any scalar, as text.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bool<E>(self, key: bool) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_i64<E>(self, key: i64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_u64<E>(self, key: u64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_f64<E>(self, key: f64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_str<E>(self, key: &str) -> Result<String, E> {
        Ok(key.to_owned())
    }

    fn visit_string<E>(self, key: String) -> Result<String, E> {
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn yaml(text: &str) -> Value {
        parse_yaml(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}")).value
    }

    #[test]
    fn yaml_is_read_as_kubernetes_reads_it() {
        let cases = [
            ("a: 1", json!({ "a": 1 })),
            ("a: 'y'\nb: y\nc: off\nd: Yes\ne: true", json!({ "a": "y", "b": true, "c": false, "d": true, "e": true })),
            ("a: 0644\nb: 0o644\nc: 0x1F", json!({ "a": 420, "b": 420, "c": 31 })),
            ("a: 1.5\nb: 1e3\nc: \"1\"", json!({ "a": 1.5, "b": 1000.0, "c": "1" })),
            ("a: ~\nb:\nc: null", json!({ "a": null, "b": null, "c": null })),
            ("1: a\ntrue: b", json!({ "1": "a", "true": "b" })),
            ("- a\n- {b: [c]}", json!(["a", { "b": ["c"] }])),
            ("a: |\n  x\n  y\nb: >\n  x\n  y\n", json!({ "a": "x\ny\n", "b": "x y\n" })),
            (
                "a: &x {k: v}\nb: *x\nc: {<<: *x, l: w}",
                json!({ "a": { "k": "v" }, "b": { "k": "v" }, "c": { "k": "v", "l": "w" } }),
            ),
            ("---\na: 2001-01-01\n", json!({ "a": "2001-01-01" })),
            ("image: nginx:1.27", json!({ "image": "nginx:1.27" })),
            ("", Value::Null),
        ];
        for (text, expected) in cases {
            assert_eq!(yaml(text), expected, "{text}");
        }
    }

    #[test]
    fn duplicates_are_named_by_path() {
        let body = br#"{"a":1,"spec":{"list":[{"x":1},{"x":1,"x":2,"x":3}],"b":{},"b":{"c":1}},"a":2}"#;
        let parsed = parse_json(body).unwrap();
        assert_eq!(parsed.duplicates, ["spec.list[1].x", "spec.b", "a"]);
        assert_eq!(parsed.value, json!({ "a": 2, "spec": { "list": [{ "x": 1 }, { "x": 3 }], "b": { "c": 1 } } }));
        let parsed = parse_yaml(b"a: 1\nspec:\n  x: 1\n  x: 2\n").unwrap();
        assert_eq!((parsed.value, parsed.duplicates), (json!({ "a": 1, "spec": { "x": 2 } }), vec!["spec.x".to_owned()]));
    }

    #[test]
    fn errors() {
        for text in ["", "{", "{\"a\":}", "{} x", "nul", "\"\u{1}\"", "{\"a\":1e999}"] {
            assert!(matches!(parse_json(text.as_bytes()), Err(DecodeError::Json(_))), "{text}");
        }
        for text in ["a: b: c", "a: [", "a:\n\tb: c", "a: *missing", "a: .nan"] {
            assert!(matches!(parse_yaml(text.as_bytes()), Err(DecodeError::Yaml(_))), "{text}");
        }
        assert!(matches!(parse_yaml(b"\xff"), Err(DecodeError::Yaml(_))));
        assert_eq!(parse_json(&vec![b' '; SIZE_LIMIT_BYTES + 1]), Err(DecodeError::TooLarge));
    }

    #[test]
    fn depth_is_limited() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_json(nested(DEPTH_LIMIT).as_bytes()).is_ok());
        assert!(parse_json(nested(DEPTH_LIMIT + 1).as_bytes()).is_err());
        // The YAML parser has lower limits of its own.
        assert!(parse_yaml(nested(50).as_bytes()).is_ok());
        let block = |depth: usize| (0..depth).map(|level| format!("{}a:\n", " ".repeat(level))).collect::<String>();
        assert!(parse_yaml(block(50).as_bytes()).is_ok());
        assert!(parse_yaml(block(DEPTH_LIMIT + 1).as_bytes()).is_err());
        for parse in [parse_json, parse_yaml] {
            assert!(parse(nested(100_000).as_bytes()).is_err());
        }
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let before = level - 1;
            text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 9].join(",")));
        }
        assert!(parse_yaml(text.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn json_is_read_as_written(keys in proptest::collection::btree_map("[a-c]{1,2}", any::<i64>(), 0..5), text in ".{0,20}") {
            let value = json!({ "keys": keys, "text": text, "list": [null, true, { "x": 1.25 }] });
            let parsed = parse_json(value.to_string().as_bytes()).unwrap();
            prop_assert_eq!(parsed, Parsed { value, duplicates: Vec::new() });
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let (json, yaml) = (parse_json(&bytes), parse_yaml(&bytes));
            prop_assert!(json.is_err() || json.unwrap().duplicates.len() < 30);
            prop_assert!(yaml.is_err() || yaml.unwrap().duplicates.len() < 30);
        }
    }
}
