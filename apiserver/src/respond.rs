//! From an answer to an HTTP response, in the form that the client accepts.

use std::io::Write;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::Value;
use trireme_api::{registry::Resource, status::Status};

use crate::{
    answer::{Answer, ListAnswer},
    body::{self, ResponseBody},
    negotiate::{Accepted, Encoding, Form},
    table::{self, IncludeObject},
};

/// Answers smaller than this are not worth compressing (`k8s.io/apiserver` has the same limit).
const GZIP_MINIMUM_BYTES: usize = 128 * 1024;

/// How the client wants its answer.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub accepted: Accepted,
    pub include: IncludeObject,
    pub now: Timestamp,
}

/// Puts an answer into the form that is wanted.
pub fn respond(answer: Answer, wanted: &Wanted) -> Response<ResponseBody> {
    match answer {
        Answer::Object { code, resource, json } => document(code, object(&resource, json, wanted), wanted.accepted.encoding),
        Answer::List(list) => document(200, list_document(&list, wanted), wanted.accepted.encoding),
        Answer::Value { code, value } => document(code, value.to_string().into(), wanted.accepted.encoding),
        Answer::Stream { content_type, body } => {
            let mut response = Response::new(body);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            response
        }
        Answer::Response(response) => response,
    }
}

/// The response of a refusal.
pub fn refuse(status: &Status) -> Response<ResponseBody> {
    let mut response = document(status.code, status.to_json().to_string().into(), Encoding::Json);
    let retry = status.details.as_ref().and_then(|details| details.retry_after_seconds);
    if let Some(value) = retry.and_then(|seconds| HeaderValue::from_str(&seconds.to_string()).ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

fn object(resource: &Resource, json: Bytes, wanted: &Wanted) -> Bytes {
    if wanted.accepted.form == Form::Whole {
        return json;
    }
    // What the server itself made is valid JSON.
    let value: Value = serde_json::from_slice(&json).unwrap_or_default();
    match wanted.accepted.form {
        Form::Whole => json,
        Form::Metadata { version } => table::partial_metadata(&value, version).to_string().into(),
        Form::Table { version } => {
            let revision = value.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
            let rows = vec![table::row(resource, &value, wanted.include, wanted.now, version)];
            table::table(resource, rows, revision, None, None, version).to_string().into()
        }
    }
}

fn list_document(list: &ListAnswer, wanted: &Wanted) -> Bytes {
    let resource = &list.resource;
    let revision = list.revision.to_string();
    match wanted.accepted.form {
        Form::Whole => {
            let items = list.objects.iter().map(|object| object.json.as_ref());
            list_bytes(&format!("{}List", resource.kind), &resource.api_version(), list, items)
        }
        Form::Metadata { version } => {
            let items: Vec<Vec<u8>> = list
                .objects
                .iter()
                .map(|object| table::partial_metadata(&object.value(), version).to_string().into_bytes())
                .collect();
            let api_version = format!("meta.k8s.io/{version}");
            list_bytes("PartialObjectMetadataList", &api_version, list, items.iter().map(Vec::as_slice))
        }
        Form::Table { version } => {
            let rows = list
                .objects
                .iter()
                .map(|object| table::row(resource, &object.value(), wanted.include, wanted.now, version))
                .collect();
            table::table(resource, rows, &revision, list.continue_token.as_deref(), list.remaining, version).to_string().into()
        }
    }
}

/// A list of objects whose JSON is there already.
fn list_bytes<'a>(kind: &str, api_version: &str, list: &ListAnswer, items: impl Iterator<Item = &'a [u8]>) -> Bytes {
    let metadata = table::list_metadata(&list.revision.to_string(), list.continue_token.as_deref(), list.remaining);
    let mut bytes =
        format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[").into_bytes();
    for (position, item) in items.enumerate() {
        if position > 0 {
            bytes.push(b',');
        }
        bytes.extend_from_slice(item);
    }
    bytes.extend_from_slice(b"]}\n");
    bytes.into()
}

fn document(code: u16, json: Bytes, encoding: Encoding) -> Response<ResponseBody> {
    let (content_type, bytes) = match encoding {
        Encoding::Json => ("application/json", json),
        Encoding::PrettyJson => ("application/json", to_pretty_json(&json).map_or(json, Bytes::from)),
        Encoding::Yaml => match to_yaml(&json) {
            Some(yaml) => ("application/yaml", yaml.into()),
            None => ("application/json", json),
        },
    };
    let mut response = self::bytes(bytes, content_type);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A response of bytes that may be compressed.
pub fn bytes(bytes: Bytes, content_type: &'static str) -> Response<ResponseBody> {
    let length = bytes.len();
    let mut response = Response::new(body::full(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.extensions_mut().insert(DocumentLength(length));
    response
}

fn to_pretty_json(json: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(json).ok()?;
    serde_json::to_string_pretty(&value).ok()
}

fn to_yaml(json: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(json).ok()?;
    serde_saphyr::to_string(&value).ok()
}

/// How long the body is; only such responses are compressed, never streams.
#[derive(Clone, Copy, Debug)]
struct DocumentLength(usize);

/// Compresses a large document, when the client takes gzip.
pub async fn compress(response: Response<ResponseBody>, accept_encoding: Option<&str>) -> Response<ResponseBody> {
    let takes_gzip = accept_encoding.is_some_and(|accepted| accepted.split(',').any(|name| name.trim().starts_with("gzip")));
    let is_large = response.extensions().get::<DocumentLength>().is_some_and(|length| length.0 >= GZIP_MINIMUM_BYTES);
    if !takes_gzip || !is_large {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let bytes = match http_body_util::BodyExt::collect(body).await {
        Ok(collected) => collected.to_bytes(),
        // A document is one piece that is there already; reading it cannot fail.
        Err(error) => {
            tracing::error!(%error, "a response could not be read for compression");
            return refuse(&Status::internal("the response could not be compressed"));
        }
    };
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
        Ok(compressed) => {
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts.headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
            Response::from_parts(parts, body::full(compressed))
        }
        Err(_) => Response::from_parts(parts, body::full(bytes)),
    }
}
