//! One object in the cache: its JSON as clients get it, and what selectors ask of it.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use serde_json::Value;
use trireme_api::registry::Resource;
use trireme_storage::model::Revision;

/// An object at one revision. The JSON is made once and copied by reference into every answer.
#[derive(Clone, Debug)]
pub struct CachedObject {
    /// The object's path below the resource: `default/web` or `node-1`.
    pub path: String,
    pub namespace: Option<String>,
    pub name: String,
    pub revision: Revision,
    /// The object with `metadata.resourceVersion`.
    pub json: Bytes,
    /// Where the digits of the resourceVersion stand in `json`.
    digits: Range<usize>,
    pub labels: BTreeMap<String, String>,
    /// The fields that field selectors may name, `metadata.name` and `metadata.namespace` left out.
    pub fields: Vec<(&'static str, String)>,
}

/// The stored bytes are not an object with metadata.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the stored object {path} is malformed: {why}")]
pub struct MalformedObject {
    pub path: String,
    pub why: String,
}

impl CachedObject {
    /// Makes the object from what is stored: JSON without a resourceVersion.
    ///
    /// # Errors
    /// When the bytes are not such JSON.
    pub fn from_stored(resource: &Resource, path: &str, stored: &[u8], revision: Revision) -> Result<Self, MalformedObject> {
        let malformed = |why: String| MalformedObject { path: path.to_owned(), why };
        let value: Value = serde_json::from_slice(stored).map_err(|error| malformed(error.to_string()))?;
        let (json, digits) =
            splice_revision(stored, revision).ok_or_else(|| malformed("it has no metadata object".to_owned()))?;
        let (namespace, name) = match path.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name.to_owned()),
            None => (None, path.to_owned()),
        };
        let labels = value.pointer("/metadata/labels").and_then(Value::as_object).map_or_else(BTreeMap::new, |labels| {
            labels.iter().filter_map(|(key, label)| Some((key.clone(), label.as_str()?.to_owned()))).collect()
        });
        let fields = resource.behaviour.selectable_fields(&value);
        Ok(Self { path: path.to_owned(), namespace, name, revision, json, digits, labels, fields })
    }

    /// The JSON with another resourceVersion: what a watcher gets of a deleted object.
    pub fn json_at(&self, revision: Revision) -> Bytes {
        if revision == self.revision {
            return self.json.clone();
        }
        let mut json = Vec::with_capacity(self.json.len() + 20);
        json.extend_from_slice(&self.json[..self.digits.start]);
        json.extend_from_slice(revision.to_string().as_bytes());
        json.extend_from_slice(&self.json[self.digits.end..]);
        json.into()
    }

    /// The value of a selectable field; `None` when the kind has no such field.
    pub fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(self.namespace.as_deref().unwrap_or_default()),
            _ => self.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str()),
        }
    }

    /// The same object, shown as other JSON. [`Self::json_at`] is not for what comes back.
    pub fn with_json(&self, json: Bytes) -> Self {
        Self { json, digits: 0..0, ..self.clone() }
    }

    /// The object as a value, with its resourceVersion.
    pub fn value(&self) -> Value {
        // The bytes were parsed once already, in `from_stored`.
        serde_json::from_slice(&self.json).unwrap_or(Value::Null)
    }
}

/// Stored JSON with a resourceVersion. Bytes without metadata, which no write makes, come back as they are.
pub fn with_revision(stored: &[u8], revision: Revision) -> Bytes {
    splice_revision(stored, revision).map_or_else(|| Bytes::copy_from_slice(stored), |(json, _)| json)
}

/// Puts `"resourceVersion":"N"` into the metadata of a JSON object; returns the new bytes and where the digits stand.
fn splice_revision(stored: &[u8], revision: Revision) -> Option<(Bytes, Range<usize>)> {
    let at = metadata_start(stored)?;
    let rest = &stored[at..];
    let is_empty = rest.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
    let digits = revision.to_string();
    let lead = b"\"resourceVersion\":\"";
    let mut json = Vec::with_capacity(stored.len() + lead.len() + digits.len() + 2);
    json.extend_from_slice(&stored[..at]);
    json.extend_from_slice(lead);
    let start = json.len();
    json.extend_from_slice(digits.as_bytes());
    let end = json.len();
    json.extend_from_slice(if is_empty { b"\"" } else { b"\"," });
    json.extend_from_slice(rest);
    Some((json.into(), start..end))
}

/// The offset just behind the brace that opens the top-level `metadata` object. The input is valid JSON.
fn metadata_start(json: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut position = 0;
    while position < json.len() {
        match json[position] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                let end = string_end(json, position)?;
                if depth == 1 && &json[position..end] == b"\"metadata\"" {
                    let opening = skip_space(json, skip_colon(json, end)?);
                    if json.get(opening) == Some(&b'{') {
                        return Some(opening + 1);
                    }
                }
                position = end;
                continue;
            }
            _ => {}
        }
        position += 1;
    }
    None
}

/// The offset behind the closing quote of the string that opens at `start`.
fn string_end(json: &[u8], start: usize) -> Option<usize> {
    let mut position = start + 1;
    loop {
        match json.get(position)? {
            b'\\' => position += 2,
            b'"' => return Some(position + 1),
            _ => position += 1,
        }
    }
}

/// The offset behind the colon that follows a key. `None` when the string was a value.
fn skip_colon(json: &[u8], position: usize) -> Option<usize> {
    let position = skip_space(json, position);
    Some(if json.get(position) == Some(&b':') { position + 1 } else { position })
}

fn skip_space(json: &[u8], mut position: usize) -> usize {
    while json.get(position).is_some_and(u8::is_ascii_whitespace) {
        position += 1;
    }
    position
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_goes_into_the_top_level_metadata() {
        let cases = [
            (r#"{"kind":"A","metadata":{"name":"a"}}"#, r#"{"kind":"A","metadata":{"resourceVersion":"7","name":"a"}}"#),
            (r#"{"metadata":{}}"#, r#"{"metadata":{"resourceVersion":"7"}}"#),
            (
                r#"{"data":{"metadata":{"x":"\"metadata\":{"}},"k":"metadata","metadata" : { "name":"a"}}"#,
                r#"{"data":{"metadata":{"x":"\"metadata\":{"}},"k":"metadata","metadata" : {"resourceVersion":"7", "name":"a"}}"#,
            ),
        ];
        for (stored, expected) in cases {
            let (json, digits) = splice_revision(stored.as_bytes(), Revision(7)).expect("it has metadata");
            assert_eq!(std::str::from_utf8(&json), Ok(expected));
            assert_eq!(&json[digits], b"7");
        }
        assert_eq!(splice_revision(b"{\"spec\":{\"metadata\":{}}}", Revision(7)), None);
        assert_eq!(splice_revision(b"[]", Revision(7)), None);
    }
}
