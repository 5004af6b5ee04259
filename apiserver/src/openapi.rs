//! The OpenAPI documents, made when they are first asked for and then served from memory.

use std::{collections::BTreeMap, sync::OnceLock};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use serde_json::Value;
use trireme_api::{openapi, registry::Registry, schema::Schemas, status::Status};

use crate::{
    ApiServer,
    answer::Answer,
    body::{self, ResponseBody},
    respond,
    router::Query,
};

const JSON: &str = "application/json";
/// The type of the answer. Old clients ask for `…spec.v2@v1.0+protobuf`, which is no valid media type (RFC 9110 has no `@` in a
/// token), and kubectl 1.20 fails to parse it; so whichever of the two is asked for, this one is named, as Kubernetes does.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// A year: a document that is asked for by its hash never changes.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// A document and the hash of its content.
struct Document {
    bytes: Bytes,
    hash: String,
    content_type: &'static str,
}

impl Document {
    fn new(bytes: Vec<u8>, content_type: &'static str) -> Self {
        Self { hash: openapi::document_hash(&bytes), bytes: bytes.into(), content_type }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes(), JSON)
    }
}

/// The documents of one server.
#[derive(Default)]
pub struct OpenApi {
    v2_json: OnceLock<Document>,
    v2_protobuf: OnceLock<Document>,
    /// The index, and the documents by their path below `/openapi/v3/`.
    v3: OnceLock<(Document, BTreeMap<String, Document>)>,
}

impl OpenApi {
    fn v3(&self, registry: &Registry, schemas: &Schemas) -> &(Document, BTreeMap<String, Document>) {
        self.v3.get_or_init(|| {
            let mut documents = BTreeMap::new();
            for resource in registry.iter() {
                let path = if resource.group.is_empty() {
                    format!("api/{}", resource.version)
                } else {
                    format!("apis/{}/{}", resource.group, resource.version)
                };
                if documents.contains_key(&path) {
                    continue;
                }
                if let Some(document) = openapi::v3_group(registry, schemas, &resource.group, &resource.version) {
                    documents.insert(path, Document::json(&document));
                }
            }
            (Document::json(&openapi::v3_index(registry, schemas)), documents)
        })
    }
}

/// `/openapi/v2`, as JSON or, for clients that ask for it, as protobuf.
pub fn v2(server: &ApiServer, parts: &Parts) -> Answer {
    let accept = parts.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let json = || openapi::v2(&server.registry, &server.schemas);
    let document = if accept.contains("proto-openapi.spec.v2") {
        let make = || Document::new(openapi::v2_protobuf(&json()), V2_PROTOBUF);
        server.openapi.v2_protobuf.get_or_init(make)
    } else {
        server.openapi.v2_json.get_or_init(|| Document::json(&json()))
    };
    Answer::Response(serve(document, parts, None))
}

/// `/openapi/v3`
pub fn v3_index(server: &ApiServer, parts: &Parts) -> Answer {
    let (index, _) = server.openapi.v3(&server.registry, &server.schemas);
    Answer::Response(serve(index, parts, None))
}

/// `/openapi/v3/apis/<group>/<version>`; with the right `?hash=` the client may keep it for ever.
///
/// # Errors
/// 404 for a version that is not there.
pub fn v3(server: &ApiServer, path: &str, parts: &Parts, query: &Query) -> Result<Answer, Status> {
    let (_, documents) = server.openapi.v3(&server.registry, &server.schemas);
    let document = documents.get(path).ok_or_else(Status::unknown_path)?;
    let hash = query.non_empty("hash");
    if hash.is_some_and(|hash| hash != document.hash) {
        let mut response = Response::new(body::full(""));
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        if let Ok(location) = HeaderValue::from_str(&format!("/openapi/v3/{path}?hash={}", document.hash)) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        return Ok(Answer::Response(response));
    }
    Ok(Answer::Response(serve(document, parts, hash)))
}

fn serve(document: &Document, parts: &Parts, hash: Option<&str>) -> Response<ResponseBody> {
    let tag = format!("\"{}\"", document.hash);
    let has_it = parts.headers.get_all(header::IF_NONE_MATCH).iter().any(|value| value.as_bytes() == tag.as_bytes());
    let mut response = if has_it {
        let mut response = Response::new(body::full(""));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        respond::bytes(document.bytes.clone(), document.content_type)
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, value);
    }
    let caching = if hash.is_some() { IMMUTABLE } else { "no-cache, private" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}
