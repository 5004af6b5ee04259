//! Label selectors: their meaning, and their form in objects (`matchLabels`, `matchExpressions`).

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

use super::{SelectorError, parse};
use crate::{field::FieldError, names};

/// Anything that maps label keys to values.
pub trait Labels {
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for Map<String, Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

/// The value of an object's `metadata.labels`; anything but a JSON object has no labels.
impl Labels for Value {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

impl<T: Labels> Labels for Option<T> {
    fn label(&self, key: &str) -> Option<&str> {
        self.as_ref().and_then(|labels| labels.label(key))
    }
}

impl<T: Labels + ?Sized> Labels for &T {
    fn label(&self, key: &str) -> Option<&str> {
        (**self).label(key)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equals,
    DoubleEquals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without repetition.
    pub values: Vec<String>,
}

impl Requirement {
    /// Checks the key, and the values against the operator and the rules for label values.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        let mut errors: Vec<FieldError> = Vec::new();
        let key_errors = names::is_qualified_name(key);
        if !key_errors.is_empty() {
            errors.push(FieldError::invalid("key", key, key_errors.join("; ")));
        }
        values.sort_unstable();
        values.dedup();
        let listed = || Value::from(values.clone());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                errors.push(FieldError::invalid("values", listed(), "for 'in', 'notin' operators, values set can't be empty"));
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                errors.push(FieldError::invalid("values", listed(), "exact-match compatibility requires one single value"));
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                let why = "values set must be empty for exists and does not exist";
                errors.push(FieldError::invalid("values", listed(), why));
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    let why = "for 'Gt', 'Lt' operators, exactly one value is required";
                    errors.push(FieldError::invalid("values", listed(), why));
                }
                for (at, value) in values.iter().enumerate().filter(|(_, value)| value.parse::<i64>().is_err()) {
                    let why = "for 'Gt', 'Lt' operators, the value must be an integer";
                    errors.push(FieldError::invalid(format!("values[{at}]"), value.as_str(), why));
                }
            }
            _ => {}
        }
        for (at, value) in values.iter().enumerate() {
            let value_errors = names::is_label_value(value);
            if !value_errors.is_empty() {
                errors.push(FieldError::invalid(format!("values[{at}][{key}]"), value.as_str(), value_errors.join("; ")));
            }
        }
        match errors.as_slice() {
            [] => Ok(Self { key: key.to_owned(), operator, values }),
            [error] => Err(SelectorError(error.to_string())),
            several => {
                let texts: Vec<String> = several.iter().map(ToString::to_string).collect();
                Err(SelectorError(format!("[{}]", texts.join(", "))))
            }
        }
    }

    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let label = labels.label(&self.key);
        let listed = |value: &str| self.values.iter().any(|listed| listed == value);
        match self.operator {
            Operator::Equals | Operator::DoubleEquals | Operator::In => label.is_some_and(listed),
            Operator::NotEquals | Operator::NotIn => !label.is_some_and(listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let number = label.and_then(|label| label.parse::<i64>().ok());
                let bound = self.values.first().and_then(|value| value.parse::<i64>().ok());
                let (Some(number), Some(bound)) = (number, bound) else { return false };
                if self.operator == Operator::GreaterThan { number > bound } else { number < bound }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// Conditions that must all hold, or a selector that selects nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector {
    /// None selects nothing; an empty list everything.
    requirements: Option<Vec<Requirement>>,
}

impl LabelSelector {
    pub fn everything() -> Self {
        Self { requirements: Some(Vec::new()) }
    }

    pub fn nothing() -> Self {
        Self { requirements: None }
    }

    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Self { requirements: Some(requirements) }
    }

    /// Exactly these labels; none select everything. The labels are not validated.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let equal = |(key, value): (&str, &str)| Requirement {
            key: key.to_owned(),
            operator: Operator::Equals,
            values: vec![value.to_owned()],
        };
        Self::new(labels.into_iter().map(equal).collect())
    }

    /// Parses the `labelSelector` parameter: `a=b,c in (d,e),!f`.
    pub fn parse(selector: &str) -> Result<Self, SelectorError> {
        Ok(Self::new(parse::requirements(selector)?))
    }

    /// A `metav1.LabelSelector`. Null selects nothing, an empty object everything.
    pub fn from_json(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::In, vec![value])?);
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(SelectorError(format!("\"{other}\" is not a valid label selector operator"))),
            };
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement::new(text("key"), operator, values)?);
        }
        Ok(Self::new(requirements))
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    pub fn is_nothing(&self) -> bool {
        self.requirements.is_none()
    }

    /// The conditions; none for both a selector of everything and one of nothing.
    pub fn requirements(&self) -> &[Requirement] {
        self.requirements.as_deref().unwrap_or_default()
    }

    /// Whether an object with these labels is meant.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        self.requirements.as_ref().is_some_and(|all| all.iter().all(|requirement| requirement.matches(labels)))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.requirements().iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_form_in_objects() {
        let selector = LabelSelector::from_json(&json!({
            "matchLabels": { "app": "web" },
            "matchExpressions": [
                { "key": "tier", "operator": "NotIn", "values": ["db", "cache"] },
                { "key": "old", "operator": "DoesNotExist" },
            ],
        }))
        .unwrap();
        assert_eq!(selector.to_string(), "app in (web),!old,tier notin (cache,db)");
        assert!(selector.matches(&json!({ "app": "web" })));
        assert!(!selector.matches(&json!({ "app": "web", "tier": "db" })));
        assert!(!selector.matches(&json!({ "app": "web", "old": "" })));
        assert!(!selector.matches(&Value::Null));
        assert!(LabelSelector::from_json(&json!({})).unwrap().matches(&Value::Null));
        assert!(!LabelSelector::from_json(&Value::Null).unwrap().matches(&json!({ "app": "web" })));
        let error = LabelSelector::from_json(&json!({ "matchExpressions": [{ "key": "a", "operator": "Like" }] })).unwrap_err();
        assert_eq!(error.to_string(), "\"Like\" is not a valid label selector operator");
        let error = LabelSelector::from_json(&json!({ "matchExpressions": [{ "key": "a", "operator": "In" }] })).unwrap_err();
        assert_eq!(error.to_string(), "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty");
    }

    /// What each operator means, said once more in the plainest way.
    fn naive(requirement: &Requirement, labels: &BTreeMap<String, String>) -> bool {
        let values = &requirement.values;
        match (requirement.operator, labels.get(&requirement.key)) {
            (Operator::Equals | Operator::DoubleEquals, Some(label)) => *label == values[0],
            (Operator::In, Some(label)) => values.contains(label),
            (Operator::Equals | Operator::DoubleEquals | Operator::In, None) => false,
            (Operator::NotEquals, Some(label)) => *label != values[0],
            (Operator::NotIn, Some(label)) => !values.contains(label),
            (Operator::NotEquals | Operator::NotIn, None) => true,
            (Operator::Exists, label) => label.is_some(),
            (Operator::DoesNotExist, label) => label.is_none(),
            (Operator::GreaterThan, Some(label)) => label.parse::<i64>().is_ok_and(|number| number > values[0].parse().unwrap()),
            (Operator::LessThan, Some(label)) => label.parse::<i64>().is_ok_and(|number| number < values[0].parse().unwrap()),
            (Operator::GreaterThan | Operator::LessThan, None) => false,
        }
    }

    fn requirement() -> impl Strategy<Value = Requirement> {
        let values = proptest::collection::vec("[ab1-3]", 1..3);
        (prop_oneof!["[xyz]", Just("in".to_owned()), Just("notin".to_owned())], 0..9_u8, values).prop_map(
            |(key, operator, values)| {
                let one = vec![values[0].clone()];
                let number = vec!["2".to_owned()];
                let (operator, values) = match operator {
                    0 => (Operator::Equals, one),
                    1 => (Operator::DoubleEquals, one),
                    2 => (Operator::NotEquals, one),
                    3 => (Operator::In, values),
                    4 => (Operator::NotIn, values),
                    5 => (Operator::Exists, Vec::new()),
                    6 => (Operator::DoesNotExist, Vec::new()),
                    7 => (Operator::GreaterThan, number),
                    _ => (Operator::LessThan, number),
                };
                Requirement::new(&key, operator, values).unwrap()
            },
        )
    }

    proptest! {
        #[test]
        fn a_selector_means_what_its_words_say(
            requirements in proptest::collection::vec(requirement(), 0..4),
            labels in proptest::collection::btree_map("[xyz]|in", "[ab1-3]", 0..4),
        ) {
            let selector = LabelSelector::new(requirements);
            let expected = selector.requirements().iter().all(|requirement| naive(requirement, &labels));
            prop_assert_eq!(selector.matches(&labels), expected);
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn no_text_panics(text in "[a!=(),<> in\u{e9}]{0,20}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
            }
        }
    }
}
