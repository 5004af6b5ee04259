//! Canonical quantities. Kubernetes parses quantities while it decodes, so a bad one is a decoding error.

use serde_json::Value;

use crate::quantity::Quantity;

/// Fields whose values are maps from resource names to quantities.
const QUANTITY_MAPS: &[&str] = &["allocatable", "allocatedResources", "capacity", "limits", "overhead", "requests"];
/// Maps whose keys are anybody's, so that none of them is a field.
const FOREIGN_MAPS: &[&str] = &["matchLabels", "metadata", "nodeSelector", "options", "selector", "volumeAttributes"];
/// Fields that are quantities.
const QUANTITY_FIELDS: &[&str] = &["divisor", "sizeLimit"];

/// Brings every quantity of an object into canonical form (`0.5` becomes `500m`, `1024Mi` becomes `1Gi`).
///
/// # Errors
/// The message for the first quantity that cannot be parsed.
pub fn canonicalize(value: &mut Value) -> Result<(), String> {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match field {
                    Value::Object(entries) if QUANTITY_MAPS.contains(&name.as_str()) => {
                        entries.values_mut().try_for_each(canonicalize_one)?;
                    }
                    Value::String(_) | Value::Number(_) if QUANTITY_FIELDS.contains(&name.as_str()) => canonicalize_one(field)?,
                    Value::Object(_) if FOREIGN_MAPS.contains(&name.as_str()) => {}
                    other => canonicalize(other)?,
                }
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(canonicalize),
        _ => Ok(()),
    }
}

fn canonicalize_one(value: &mut Value) -> Result<(), String> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_owned(),
        Value::Null => "0".to_owned(),
        _ => return Ok(()),
    };
    *value = Value::String(Quantity::canonical_text(&text).map_err(|error| error.to_string())?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_only_looks_like_a_quantity_stays() {
        let mut pod = json!({
            "metadata": { "labels": { "divisor": "x" } },
            "spec": {
                "nodeSelector": { "sizeLimit": "1024Mi", "divisor": "none" },
                "selector": { "matchLabels": { "divisor": "x" }, "divisor": "1024Mi" },
                "containers": [{ "resources": { "limits": { "memory": "1024Mi" } } }],
                "volumes": [{ "emptyDir": { "sizeLimit": "1024Mi" } }, { "csi": { "volumeAttributes": { "sizeLimit": "big" } } }],
            },
        });
        canonicalize(&mut pod).unwrap();
        assert_eq!(pod["spec"]["nodeSelector"], json!({ "sizeLimit": "1024Mi", "divisor": "none" }));
        assert_eq!(pod["spec"]["selector"], json!({ "matchLabels": { "divisor": "x" }, "divisor": "1024Mi" }));
        assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"]["memory"], "1Gi");
        assert_eq!(pod["spec"]["volumes"][0]["emptyDir"]["sizeLimit"], "1Gi");
        assert!(canonicalize(&mut json!({ "spec": { "limits": { "cpu": "much" } } })).is_err());
    }
}
