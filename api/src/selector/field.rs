//! Field selectors (`k8s.io/apimachinery/pkg/fields`): `status.phase=Running,spec.nodeName!=a`.

use std::fmt;

use super::SelectorError;

/// One condition on one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    pub field: String,
    pub value: String,
    /// Whether the field must differ from `value` instead of being equal.
    pub negated: bool,
}

/// Conditions that must all hold. Without any it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

/// Splits at commas that no backslash escapes; escapes stay in the parts.
fn split_terms(selector: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, letter) in selector.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&selector[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&selector[start..]);
    terms
}

/// The first operator of the term, and what is on either side of it.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (at, _) in term.char_indices() {
        let rest = &term[at..];
        for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&term[..at], negated, value));
            }
        }
    }
    None
}

/// Undoes `\\`, `\,` and `\=`; anything else after a backslash, or a bare `,` or `=`, is an error.
fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut text = String::with_capacity(value.len());
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => text.push(escaped),
                Some(other) => return Err(SelectorError(format!("invalid field selector: invalid escape sequence: \\{other}"))),
                None => return Err(SelectorError("invalid field selector: invalid escape sequence: \\".to_owned())),
            },
            ',' | '=' => return Err(SelectorError(format!("invalid field selector: unescaped character in value: {letter}"))),
            _ => text.push(letter),
        }
    }
    Ok(text)
}

impl FieldSelector {
    /// Parses the `fieldSelector` parameter. Empty terms are passed over.
    pub fn parse(selector: &str) -> Result<Self, SelectorError> {
        let mut terms = split_terms(selector);
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms.into_iter().filter(|term| !term.is_empty()) {
            let Some((field, negated, value)) = split_term(term) else {
                return Err(SelectorError(format!("invalid selector: '{selector}'; can't understand '{term}'")));
            };
            requirements.push(FieldRequirement { field: field.to_owned(), value: unescape(value)?, negated });
        }
        Ok(Self { requirements })
    }

    /// The same selector of objects whose fields have other names.
    pub fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        for requirement in &mut self.requirements {
            if let Some((_, name)) = names.iter().find(|(name, _)| *name == requirement.field) {
                requirement.field = (*name).to_owned();
            }
        }
        self
    }

    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that `field` must equal, if the selector names one: what an index can use.
    pub fn required_value(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|requirement| !requirement.negated && requirement.field == field)
            .map(|requirement| requirement.value.as_str())
    }

    /// Whether an object whose field `name` has the value `lookup(name)` is meant. A field that it lacks is empty.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements
            .iter()
            .all(|requirement| (lookup(&requirement.field).unwrap_or_default() == requirement.value) != requirement.negated)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, requirement) in self.requirements.iter().enumerate() {
            let separator = if at == 0 { "" } else { "," };
            let operator = if requirement.negated { "!=" } else { "=" };
            let value = requirement.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{separator}{}{operator}{value}", requirement.field)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_matches() {
        let selector = FieldSelector::parse("status.phase!=Running,spec.nodeName==a,").unwrap();
        assert_eq!(selector.to_string(), "spec.nodeName=a,status.phase!=Running");
        assert_eq!(selector.required_value("spec.nodeName"), Some("a"));
        assert_eq!(selector.required_value("status.phase"), None);
        let object = |phase: &'static str| move |name: &str| if name == "spec.nodeName" { Some("a") } else { Some(phase) };
        assert!(selector.matches(object("Pending")));
        assert!(!selector.matches(object("Running")));
        assert!(FieldSelector::parse("spec.nodeName=").unwrap().matches(|_| None));
        assert!(FieldSelector::parse("").unwrap().is_everything());
        assert_eq!(FieldSelector::parse(r"a=b\,c\=\\").unwrap().requirements()[0].value, r"b,c=\");
    }

    #[test]
    fn errors() {
        let message = |text: &str| FieldSelector::parse(text).unwrap_err().to_string();
        assert_eq!(message("a=b,c"), "invalid selector: 'a=b,c'; can't understand 'c'");
        assert_eq!(message("a=b=c"), "invalid field selector: unescaped character in value: =");
        assert_eq!(message(r"a=\b"), r"invalid field selector: invalid escape sequence: \b");
    }
}
