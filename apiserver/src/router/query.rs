//! The query of a request.

use trireme_api::status::Status;

use super::path::percent_decode;

/// Names and values, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Takes `a=b&c=d` apart; what cannot be decoded is left as it is.
    pub fn parse(query: Option<&str>) -> Self {
        let decode = |text: &str| {
            let spaced = text.replace('+', " ");
            percent_decode(&spaced).unwrap_or(spaced)
        };
        let pairs = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(name), decode(value))
            })
            .collect();
        Self { pairs }
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first value of `name`, unless it is empty.
    pub fn non_empty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A flag; present without a value counts as set, as in Kubernetes.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value, "false" | "0" | "False" | "FALSE" | "f" | "F"))
    }

    /// Whether the flag was given at all, and if so its value.
    pub fn optional_flag(&self, name: &str) -> Option<bool> {
        self.get(name).map(|_| self.flag(name))
    }

    /// An integer.
    ///
    /// # Errors
    /// 400 when there is a value that is not one.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, Status> {
        self.non_empty(name)
            .map(|value| {
                value.parse::<i64>().map_err(|_| {
                    Status::bad_request(format!("unable to decode query parameter \"{name}\": \"{value}\" is not an integer"))
                })
            })
            .transpose()
    }

    /// `name=value&…` of the given names, for passing on; the values are encoded again.
    pub fn select(&self, names: &[&str]) -> String {
        let chosen = self.pairs.iter().filter(|(name, value)| names.contains(&name.as_str()) && !value.is_empty());
        chosen.map(|(name, value)| format!("{name}={}", percent_encode(value))).collect::<Vec<_>>().join("&")
    }
}

/// Encodes everything but unreserved characters.
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_taken_apart() {
        let query = Query::parse(Some("labelSelector=app%3Dweb%2Ctier+in+%28a%29&watch=true&limit=5&follow&bad=%zz"));
        assert_eq!(query.get("labelSelector"), Some("app=web,tier in (a)"));
        assert!(query.flag("watch"));
        assert!(query.flag("follow"));
        assert!(!query.flag("absent"));
        assert_eq!(query.integer("limit"), Ok(Some(5)));
        assert_eq!(query.get("bad"), Some("%zz"));
        assert!(query.integer("watch").is_err());
        assert_eq!(query.select(&["labelSelector"]), "labelSelector=app%3Dweb%2Ctier%20in%20%28a%29");
    }
}
