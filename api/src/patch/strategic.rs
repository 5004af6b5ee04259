//! Strategic merge patch (`k8s.io/apimachinery/pkg/util/strategicpatch`): a merge patch that knows by which key the items of a
//! list are told apart.
//!
//! Directives inside a patch: `$patch: replace|delete|merge` in a map or as an item of a list, `$retainKeys` in a map,
//! `$setElementOrder/<list>` and `$deleteFromPrimitiveList/<list>` beside a list.

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Place, Schemas};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

type Result<T> = std::result::Result<T, PatchError>;

/// Applies a strategic merge patch to an object of the named schema. Fields that the schema does not know merge as in a JSON
/// merge patch: lists are replaced.
pub fn strategic_merge_patch(schemas: &Schemas, schema_name: &str, current: &Value, patch: &Value) -> Result<Value> {
    let (Some(current), Some(patch)) = (current.as_object(), patch.as_object()) else {
        return Err(decode_error("error decoding patch: a strategic merge patch must be a JSON object"));
    };
    merge_maps(current.clone(), patch.clone(), schemas.root(schema_name)).map(Value::Object)
}

fn decode_error(message: impl Into<String>) -> PatchError {
    PatchError::Decode(message.into())
}

fn field<'a>(place: Option<Place<'a>>, name: &str) -> Option<Place<'a>> {
    place.and_then(|place| place.field(name))
}

fn merge_maps(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    place: Option<Place<'_>>,
) -> Result<Map<String, Value>> {
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "merge" => {}
            "replace" => return without_directives(patch),
            "delete" => return Ok(Map::new()),
            other => return Err(decode_error(format!("unknown patch type: {other}"))),
        },
        Some(other) => return Err(decode_error(format!("unknown patch type: {other}"))),
    }
    retain_keys(&mut original, &mut patch)?;
    order_lists(&mut original, &mut patch, place)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM_LIST) {
            if let Some(Value::Array(items)) = original.get_mut(list) {
                let removed = expect_list(&value, &key)?;
                items.retain(|item| !removed.contains(item));
            }
            continue;
        }
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match original.remove(&key) {
            None => without_directives_in(value)?,
            Some(before) => merge_values(before, value, field(place, &key), &key)?,
        };
        original.insert(key, merged);
    }
    Ok(original)
}

fn merge_values(original: Value, patch: Value, place: Option<Place<'_>>, key: &str) -> Result<Value> {
    match (original, patch) {
        (Value::Object(original), Value::Object(patch)) => {
            if place.is_some_and(Place::replaces) {
                return without_directives(patch).map(Value::Object);
            }
            merge_maps(original, patch, place).map(Value::Object)
        }
        (Value::Array(original), Value::Array(patch)) => match place {
            Some(place) if place.merges() => {
                let order = patch.clone();
                let merged = merge_lists(original.clone(), patch, place, key)?;
                let named = |item: &Value| order.iter().any(|listed| same_item(listed, item, place.merge_key()));
                Ok(Value::Array(ordered(merged, named, &order, &original, place.merge_key())))
            }
            _ => without_directives_in(Value::Array(patch)),
        },
        (_, patch) => without_directives_in(patch),
    }
}

/// Keeps of the original only the keys that the patch retains: members of a union that are no longer chosen go.
fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<()> {
    let Some(retained) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let retained = expect_list(&retained, RETAIN_KEYS)?;
    let is_retained = |key: &str| retained.iter().any(|name| name.as_str() == Some(key));
    let mut set = patch.iter().filter(|(key, value)| !key.starts_with('$') && !value.is_null());
    if let Some((key, _)) = set.find(|(key, _)| !is_retained(key)) {
        return Err(decode_error(format!("{RETAIN_KEYS} directive: the patch sets \"{key}\", which it does not retain")));
    }
    original.retain(|key, _| is_retained(key));
    Ok(())
}

fn expect_list<'a>(value: &'a Value, key: &str) -> Result<&'a [Value]> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| decode_error(format!("the value of {key} must be a list, not {value}")))
}

/// Merges the lists whose order the patch gives, and takes them out of the patch.
fn order_lists(original: &mut Map<String, Value>, patch: &mut Map<String, Value>, place: Option<Place<'_>>) -> Result<()> {
    let keys: Vec<String> = patch.keys().filter(|key| key.starts_with(ELEMENT_ORDER)).cloned().collect();
    for key in keys {
        let Some(order) = patch.remove(&key) else { continue };
        let order = expect_list(&order, &key)?;
        let name = &key[ELEMENT_ORDER.len()..];
        let deleted = patch.remove(&format!("{DELETE_FROM_LIST}{name}"));
        let place = field(place, name);
        let merge_key = place.and_then(Place::merge_key);
        let before = match original.remove(name) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        let patched = match patch.remove(name) {
            Some(Value::Array(list)) => list,
            Some(Value::Null) => continue,
            Some(other) => return Err(decode_error(format!("the value of {name} must be a list, not {other}"))),
            None => Vec::new(),
        };
        check_order(&patched, order, merge_key, name)?;
        let mut merged = match place {
            Some(place) if place.merges() => merge_lists(before.clone(), patched, place, name)?,
            _ if patched.is_empty() => before.clone(),
            _ => expect_plain_list(patched)?,
        };
        if let Some(deleted) = deleted {
            let deleted = expect_list(&deleted, name)?.to_vec();
            merged.retain(|item| !deleted.contains(item));
        }
        let named = |item: &Value| order.iter().any(|listed| same_item(listed, item, merge_key));
        let list = ordered(merged, named, order, &before, merge_key);
        original.insert(name.to_owned(), Value::Array(list));
    }
    Ok(())
}

/// Everything that a patch sets must stand in the order it gives.
fn check_order(patched: &[Value], order: &[Value], merge_key: Option<&str>, name: &str) -> Result<()> {
    let set = patched.iter().filter(|item| item.get(DIRECTIVE).is_none());
    for item in set {
        if !order.iter().any(|listed| same_item(listed, item, merge_key)) {
            let order = Value::from(order.to_vec());
            let list = Value::from(patched.to_vec());
            return Err(decode_error(format!(
                "The order in patch list:\n{list}\n doesn't match {ELEMENT_ORDER}{name} list:\n{order}\n"
            )));
        }
    }
    Ok(())
}

fn expect_plain_list(list: Vec<Value>) -> Result<Vec<Value>> {
    match without_directives_in(Value::Array(list))? {
        Value::Array(list) => Ok(list),
        _ => Ok(Vec::new()),
    }
}

/// Whether two items stand for the same one: by the merge key, or scalars by their value.
fn same_item(left: &Value, right: &Value, merge_key: Option<&str>) -> bool {
    match merge_key {
        Some(key) => match (left.get(key), right.get(key)) {
            (Some(left), Some(right)) => left == right,
            _ => false,
        },
        None => left == right,
    }
}

/// Merges the items of a patch into those of a list, without regard to order.
fn merge_lists(mut original: Vec<Value>, patch: Vec<Value>, place: Place<'_>, name: &str) -> Result<Vec<Value>> {
    let Some(merge_key) = place.merge_key() else {
        for item in patch {
            if item.is_object() || item.is_array() {
                return Err(decode_error(format!("cannot merge lists without merge key for {name}")));
            }
            if !original.contains(&item) {
                original.push(item);
            }
        }
        return Ok(original);
    };
    let (special, plain): (Vec<Value>, Vec<Value>) = patch.into_iter().partition(|item| item.get(DIRECTIVE).is_some());
    for item in special {
        match item.get(DIRECTIVE).and_then(Value::as_str) {
            Some("delete") => {
                let value = required_key(&item, merge_key)?;
                original.retain(|existing| existing.get(merge_key) != Some(value));
            }
            Some("replace") => {
                original = Vec::new();
            }
            Some("merge") => return Err(decode_error("merging lists cannot yet be specified in the patch")),
            _ => return Err(decode_error(format!("unknown patch type: {}", item[DIRECTIVE]))),
        }
    }
    for item in plain {
        let value = required_key(&item, merge_key)?;
        match original.iter().position(|existing| existing.get(merge_key) == Some(value)) {
            Some(at) => {
                let before = std::mem::take(&mut original[at]);
                original[at] = merge_values(before, item, place.items(), name)?;
            }
            None => original.push(without_directives_in(item)?),
        }
    }
    Ok(original)
}

fn required_key<'a>(item: &'a Value, merge_key: &str) -> Result<&'a Value> {
    item.get(merge_key).ok_or_else(|| decode_error(format!("map: {item} does not contain declared merge key: {merge_key}")))
}

/// Puts a merged list in order: the items that `named` holds for in the order of `patch_order`, the others in the order they
/// had, woven in before the first item that stood behind them in `server_order`.
fn ordered(
    merged: Vec<Value>,
    named: impl Fn(&Value) -> bool,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: Option<&str>,
) -> Vec<Value> {
    let index = |order: &[Value], item: &Value| order.iter().position(|listed| same_item(listed, item, merge_key));
    let (mut patched, mut others): (Vec<Value>, Vec<Value>) = merged.into_iter().partition(named);
    patched.sort_by_key(|item| index(patch_order, item).unwrap_or(usize::MAX));
    others.sort_by_key(|item| index(server_order, item).unwrap_or(usize::MAX));
    let mut list = Vec::with_capacity(patched.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in patched {
        let behind = index(server_order, &item);
        while let Some(other) = others.next_if(|other| {
            let before = index(server_order, other);
            matches!((before, behind), (Some(before), Some(behind)) if before < behind)
        }) {
            list.push(other);
        }
        list.push(item);
    }
    list.extend(others);
    list
}

/// What of a patch becomes part of an object that had nothing there: directives and nulls fall away.
fn without_directives_in(value: Value) -> Result<Value> {
    match value {
        Value::Object(map) => without_directives(map).map(Value::Object),
        Value::Array(list) => {
            let kept = list.into_iter().filter(|item| item.get(DIRECTIVE).is_none());
            kept.map(without_directives_in).collect::<Result<Vec<Value>>>().map(Value::Array)
        }
        scalar => Ok(scalar),
    }
}

fn without_directives(map: Map<String, Value>) -> Result<Map<String, Value>> {
    let is_directive =
        |key: &str| key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(DELETE_FROM_LIST) || key.starts_with(ELEMENT_ORDER);
    if let Some(directive) = map.get(DIRECTIVE).and_then(Value::as_str)
        && !["merge", "replace", "delete"].contains(&directive)
    {
        return Err(decode_error(format!("unknown patch type: {directive}")));
    }
    let kept = map.into_iter().filter(|(key, value)| !is_directive(key) && !value.is_null());
    kept.map(|(key, value)| Ok((key, without_directives_in(value)?))).collect()
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
