//! Which form of an answer a client accepts: plain JSON or YAML, a Table, or metadata only.

use trireme_api::status::Status;

/// The form of an answer's object or list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object as it is.
    Whole,
    /// A `meta.k8s.io` Table of this version.
    Table { version: &'static str },
    /// `PartialObjectMetadata` or its list, of this version of `meta.k8s.io`.
    Metadata { version: &'static str },
}

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    /// Indented, for a person (`?pretty=true`).
    PrettyJson,
    Yaml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub form: Form,
    pub encoding: Encoding,
}

impl Accepted {
    pub const JSON: Self = Self { form: Form::Whole, encoding: Encoding::Json };

    /// The same for a person to read.
    pub fn pretty(self) -> Self {
        match self.encoding {
            Encoding::Json => Self { encoding: Encoding::PrettyJson, ..self },
            Encoding::PrettyJson | Encoding::Yaml => self,
        }
    }
}

/// One entry of an `Accept` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaType<'a> {
    /// `application/json`, in lower case.
    pub essence: String,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> MediaType<'a> {
    /// Takes `application/json;as=Table;v=v1;g=meta.k8s.io` apart.
    pub fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters = parts
            .filter_map(|part| part.split_once('='))
            .map(|(name, value)| (name.trim(), value.trim().trim_matches('"')))
            .collect();
        Self { essence, parameters }
    }

    pub fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

/// Chooses the first form in the `Accept` header that can be given. Clients that put protobuf first name JSON after it.
///
/// # Errors
/// 406 when nothing that is named can be given.
pub fn negotiate(accept: Option<&str>) -> Result<Accepted, Status> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
        return Ok(Accepted::JSON);
    };
    accept
        .split(',')
        .map(MediaType::parse)
        .find_map(|media| acceptable(&media))
        .ok_or_else(|| Status::not_acceptable("only the following media types are accepted: application/json, application/yaml"))
}

fn acceptable(media: &MediaType<'_>) -> Option<Accepted> {
    let encoding = match media.essence.as_str() {
        "application/json" | "*/*" | "application/*" => Encoding::Json,
        "application/yaml" | "application/x-yaml" => Encoding::Yaml,
        _ => return None,
    };
    let version = match media.parameter("v") {
        Some("v1") | None => Some("v1"),
        Some("v1beta1") => Some("v1beta1"),
        Some(_) => None,
    };
    let form = match (media.parameter("as"), media.parameter("g")) {
        (None, _) => Form::Whole,
        (Some("Table"), Some("meta.k8s.io")) => Form::Table { version: version? },
        (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("meta.k8s.io")) => {
            Form::Metadata { version: version? }
        }
        _ => return None,
    };
    Some(Accepted { form, encoding })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str) -> Result<Form, u16> {
        negotiate(Some(accept)).map(|accepted| accepted.form).map_err(|status| status.code)
    }

    #[test]
    fn forms() {
        let kubectl =
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form(kubectl), Ok(Form::Table { version: "v1" }));
        assert_eq!(form("application/json;as=Table;v=v1beta1;g=meta.k8s.io"), Ok(Form::Table { version: "v1beta1" }));
        assert_eq!(form("application/vnd.kubernetes.protobuf, application/json"), Ok(Form::Whole));
        assert_eq!(form("application/json;as=Table;v=v9;g=meta.k8s.io,application/json"), Ok(Form::Whole));
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(form(metadata), Ok(Form::Metadata { version: "v1" }));
        assert_eq!(form("*/*"), Ok(Form::Whole));
        assert_eq!(form("text/html, */*;q=0.8"), Ok(Form::Whole));
        assert_eq!(form("application/vnd.kubernetes.protobuf"), Err(406));
        assert_eq!(negotiate(None), Ok(Accepted::JSON));
        assert_eq!(negotiate(Some("application/yaml")).map(|accepted| accepted.encoding), Ok(Encoding::Yaml));
    }
}
