//! `$(NAME)` in commands, arguments and variables (`k8s.io/kubernetes/third_party/forked/golang/expansion`): a known name
//! is replaced, an unknown one stays as written, `$$` is a dollar.

/// Expands references in `text`.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let (before, after) = rest.split_at(dollar);
        expanded.push_str(before);
        let after = &after[1..];
        if let Some(escaped) = after.strip_prefix('$') {
            expanded.push('$');
            rest = escaped;
        } else if let Some((name, behind)) = after.strip_prefix('(').and_then(|reference| reference.split_once(')')) {
            match lookup(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.extend(["$(", name, ")"]),
            }
            rest = behind;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_expand_as_in_kubernetes() {
        let lookup = |name: &str| match name {
            "A" => Some("a"),
            "EMPTY" => Some(""),
            "NESTED" => Some("$(A)"),
            _ => None,
        };
        for (text, expected) in [
            ("", ""),
            ("$(A)", "a"),
            ("x$(A)y$(A)", "xaya"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$(EMPTY)|", "|"),
            ("$(NESTED)", "$(A)"),
            ("$(A", "$(A"),
            ("$A ${A}", "$A ${A}"),
            ("100$", "100$"),
            ("$()", "$()"),
            ("é$(A)é", "éaé"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }
}
