//! What names, label keys and label values may be, with the messages that Kubernetes gives
//! (`k8s.io/apimachinery/pkg/util/validation`). Each function returns the reasons why a value is not allowed; none means it is.

const LABEL_MAX_BYTES: usize = 63;
const SUBDOMAIN_MAX_BYTES: usize = 253;

const DNS1123_LABEL: Rule = Rule {
    message: "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with \
              an alphanumeric character",
    pattern: "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
    examples: &["my-name", "123-abc"],
};
const DNS1123_SUBDOMAIN: Rule = Rule {
    message: "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and \
              end with an alphanumeric character",
    pattern: r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    examples: &["example.com"],
};
const DNS1035_LABEL: Rule = Rule {
    message: "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, \
              and end with an alphanumeric character",
    pattern: "[a-z]([-a-z0-9]*[a-z0-9])?",
    examples: &["my-name", "abc-123"],
};
const QUALIFIED_NAME: Rule = Rule {
    message: "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    pattern: "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
    examples: &["MyName", "my.name", "123-abc"],
};
const LABEL_VALUE: Rule = Rule {
    message: "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and \
              end with an alphanumeric character",
    pattern: "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
    examples: &["MyValue", "my_value", "12345"],
};
const CONFIG_MAP_KEY: Rule = Rule {
    message: "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
    pattern: "[-._a-zA-Z0-9]+",
    examples: &["key.name", "KEY_NAME", "key-name"],
};
const WILDCARD_SUBDOMAIN: Rule = Rule {
    message: "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower \
              case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
    pattern: r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    examples: &["*.example.com"],
};
const C_IDENTIFIER: Rule = Rule {
    message: "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters \
              or '_'",
    pattern: "[A-Za-z_][A-Za-z0-9_]*",
    examples: &["my_name", "MY_NAME", "MyName"],
};

/// A pattern as messages show it. The matching itself is written out below; the pattern is only text.
struct Rule {
    message: &'static str,
    pattern: &'static str,
    examples: &'static [&'static str],
}

impl Rule {
    fn error(&self) -> String {
        // The two spaces that this leaves before "or" are Kubernetes' own.
        let examples: Vec<String> = self.examples.iter().map(|example| format!("'{example}', ")).collect();
        format!("{} (e.g. {}regex used for validation is '{}')", self.message, examples.join(" or "), self.pattern)
    }
}

fn too_long(limit_bytes: usize) -> String {
    format!("must be no more than {limit_bytes} bytes")
}

fn length_error(value: &str, limit_bytes: usize) -> Option<String> {
    (value.len() > limit_bytes).then(|| too_long(limit_bytes))
}

fn is_lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn matches_label(value: &str) -> bool {
    let bytes = value.as_bytes();
    let ends = bytes.first().is_some_and(|&byte| is_lower_alphanumeric(byte))
        && bytes.last().is_some_and(|&byte| is_lower_alphanumeric(byte));
    ends && bytes.iter().all(|&byte| is_lower_alphanumeric(byte) || byte == b'-')
}

fn matches_subdomain(value: &str) -> bool {
    value.split('.').all(matches_label)
}

fn matches_qualified_name_part(value: &str) -> bool {
    let bytes = value.as_bytes();
    let ends = bytes.first().is_some_and(u8::is_ascii_alphanumeric) && bytes.last().is_some_and(u8::is_ascii_alphanumeric);
    ends && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// The name of a namespace, a container, a volume: at most 63 bytes, no dots.
pub fn is_dns1123_label(value: &str) -> Vec<String> {
    let mut errors: Vec<String> = length_error(value, LABEL_MAX_BYTES).into_iter().collect();
    if !matches_label(value) {
        errors.push(if matches_subdomain(value) { "must not contain dots".to_owned() } else { DNS1123_LABEL.error() });
    }
    errors
}

/// The name of most objects: at most 253 bytes.
pub fn is_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors: Vec<String> = length_error(value, SUBDOMAIN_MAX_BYTES).into_iter().collect();
    if !matches_subdomain(value) {
        errors.push(DNS1123_SUBDOMAIN.error());
    }
    errors
}

/// The name of a Service: at most 63 bytes, starting with a letter.
pub fn is_dns1035_label(value: &str) -> Vec<String> {
    let mut errors: Vec<String> = length_error(value, LABEL_MAX_BYTES).into_iter().collect();
    if !matches_label(value) || !value.starts_with(|first: char| first.is_ascii_lowercase()) {
        errors.push(DNS1035_LABEL.error());
    }
    errors
}

/// A host name of an Ingress rule that begins with `*.`.
pub fn is_wildcard_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors: Vec<String> = length_error(value, SUBDOMAIN_MAX_BYTES).into_iter().collect();
    if !value.strip_prefix("*.").is_some_and(matches_subdomain) {
        errors.push(WILDCARD_SUBDOMAIN.error());
    }
    errors
}

/// A label key, annotation key, finalizer, taint key or extended resource: `name` or `prefix/name`.
pub fn is_qualified_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(is_dns1123_subdomain(prefix).into_iter().map(|message| format!("prefix part {message}")));
            }
            *name
        }
        _ => {
            let rule = QUALIFIED_NAME.error();
            return vec![format!(
                "a qualified name {rule} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if let Some(error) = length_error(name, LABEL_MAX_BYTES) {
        errors.push(format!("name part {error}"));
    }
    if !matches_qualified_name_part(name) {
        errors.push(format!("name part {}", QUALIFIED_NAME.error()));
    }
    errors
}

/// The value of a label: empty, or at most 63 bytes.
pub fn is_label_value(value: &str) -> Vec<String> {
    let mut errors: Vec<String> = length_error(value, LABEL_MAX_BYTES).into_iter().collect();
    if !value.is_empty() && !matches_qualified_name_part(value) {
        errors.push(LABEL_VALUE.error());
    }
    errors
}

/// A key of a ConfigMap's or a Secret's data.
pub fn is_config_map_key(value: &str) -> Vec<String> {
    let mut errors: Vec<String> = length_error(value, SUBDOMAIN_MAX_BYTES).into_iter().collect();
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        errors.push(CONFIG_MAP_KEY.error());
    }
    match value {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if value.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// The name of an environment variable: printable ASCII without `=` (the relaxed rule, the default since Kubernetes 1.34).
pub fn is_environment_variable_name(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    if value.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// A C identifier (`ALPHA_1`).
pub fn is_c_identifier(value: &str) -> Vec<String> {
    let first = value.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    if first && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Vec::new();
    }
    vec![C_IDENTIFIER.error()]
}

/// The name of a port (RFC 6335): at most 15 bytes of lower case letters, digits and single hyphens, with a letter.
pub fn is_port_name(value: &str) -> Vec<String> {
    let mut errors: Vec<String> = length_error(value, 15).into_iter().collect();
    if value.is_empty() || !value.bytes().all(|byte| is_lower_alphanumeric(byte) || byte == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|byte| byte.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// A port number.
pub fn is_port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec!["must be between 1 and 65535, inclusive".to_owned()] }
}

/// An IPv4 or IPv6 address.
pub fn is_ip_address(value: &str) -> Vec<String> {
    if value.parse::<std::net::IpAddr>().is_ok() {
        return Vec::new();
    }
    vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
}

/// What a name that is a segment of a URL must not be: the only rule for the names of RBAC objects.
pub fn is_path_segment_name(value: &str) -> Vec<String> {
    match value {
        "." => return vec!["may not be '.'".to_owned()],
        ".." => return vec!["may not be '..'".to_owned()],
        _ => {}
    }
    ['/', '%']
        .into_iter()
        .filter(|illegal| value.contains(*illegal))
        .map(|illegal| format!("may not contain '{illegal}'"))
        .collect()
}

/// A `generateName` prefix stands for names that end in random letters: a dash at its end is no fault.
pub fn mask_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        for good in ["a", "0", "my-name", "123-abc", &"a".repeat(63)] {
            assert_eq!(is_dns1123_label(good), Vec::<String>::new(), "{good}");
        }
        for good in ["a", "example.com", "0.a-b.c", &"a".repeat(253)] {
            assert_eq!(is_dns1123_subdomain(good), Vec::<String>::new(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a_b", "a b", "é"] {
            assert_eq!(is_dns1123_label(bad).len(), 1, "{bad}");
            assert_eq!(is_dns1123_subdomain(bad).len(), 1, "{bad}");
        }
        for bad in [".", "a.", ".a", "a..b", "a.-b"] {
            assert_eq!(is_dns1123_subdomain(bad).len(), 1, "{bad}");
        }
        assert_eq!(is_dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(is_dns1123_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        assert_eq!(
            is_dns1123_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with \
                 an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(
            is_dns1123_subdomain("Bad_Name"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and \
                 end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert!(is_dns1035_label("a1").is_empty());
        assert_eq!(is_dns1035_label("1a").len(), 1);
        assert!(is_wildcard_dns1123_subdomain("*.example.com").is_empty());
        assert_eq!(is_wildcard_dns1123_subdomain("example.com").len(), 1);
    }

    #[test]
    fn qualified_names_and_label_values() {
        for good in ["a", "A_b.c-D", "example.com/Name", "k8s.io/a.b"] {
            assert_eq!(is_qualified_name(good), Vec::<String>::new(), "{good}");
        }
        let part = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character \
                    (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
        assert_eq!(is_qualified_name("a b"), [format!("name part {part}")]);
        assert_eq!(is_qualified_name(""), ["name part must be non-empty".to_owned(), format!("name part {part}")]);
        assert_eq!(is_qualified_name("/a"), ["prefix part must be non-empty"]);
        assert_eq!(
            is_qualified_name("a/b/c"),
            [format!("a qualified name {part} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")]
        );
        assert!(is_qualified_name("X.com/a")[0].starts_with("prefix part a lowercase RFC 1123 subdomain"));
        assert_eq!(is_qualified_name(&"a".repeat(64)), ["name part must be no more than 63 bytes"]);
        for good in ["", "a", "1.0", "A_b"] {
            assert_eq!(is_label_value(good), Vec::<String>::new(), "{good}");
        }
        for bad in ["-a", "a b", "a/b", "a."] {
            assert_eq!(is_label_value(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn keys_ports_and_paths() {
        assert!(is_config_map_key("..data").contains(&"must not start with '..'".to_owned()));
        assert_eq!(is_config_map_key("."), ["must not be '.'"]);
        assert!(is_config_map_key("key.name").is_empty());
        assert_eq!(is_config_map_key("a/b").len(), 1);
        assert!(is_environment_variable_name("a b-c.1").is_empty());
        assert_eq!(is_environment_variable_name("a=b").len(), 1);
        assert!(is_port_name("http-1").is_empty());
        assert_eq!(is_port_name("8080"), ["must contain at least one letter (a-z)"]);
        assert_eq!(is_port_number(0), ["must be between 1 and 65535, inclusive"]);
        assert!(is_path_segment_name("system:node").is_empty());
        assert_eq!(is_path_segment_name("a/b%"), ["may not contain '/'", "may not contain '%'"]);
        assert!(is_ip_address("::1").is_empty());
        assert_eq!(is_ip_address("1.2.3").len(), 1);
        assert_eq!(is_c_identifier("1a").len(), 1);
        assert_eq!(mask_trailing_dash("web-"), "weba");
        assert_eq!(mask_trailing_dash("-"), "-");
    }
}
