//! What a verb answers, before it is put into the form that the client accepts.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use trireme_api::registry::Resource;
use trireme_storage::model::Revision;

use crate::{body::ResponseBody, cache::CachedObject};

/// What a verb gives back.
pub enum Answer {
    /// An object of a resource, as JSON with its resourceVersion. It may become a Table or metadata alone.
    Object { code: u16, resource: Arc<Resource>, json: Bytes },
    /// A list of a resource's objects.
    List(ListAnswer),
    /// An object that has only one form: a Scale, a Status, a discovery document.
    Value { code: u16, value: Value },
    /// A body that is sent as it is: a watch, a log.
    Stream { content_type: &'static str, body: ResponseBody },
    /// A whole response.
    Response(http::Response<ResponseBody>),
}

/// A page of objects.
pub struct ListAnswer {
    pub resource: Arc<Resource>,
    pub objects: Vec<Arc<CachedObject>>,
    pub revision: Revision,
    /// The token for the next page.
    pub continue_token: Option<String>,
    /// How many objects come after this page, where that is known.
    pub remaining: Option<u64>,
}

impl Answer {
    pub fn object(code: u16, resource: &Arc<Resource>, json: Bytes) -> Self {
        Self::Object { code, resource: resource.clone(), json }
    }
}

/// A `v1.Status` that says yes.
pub fn success(code: u16, details: Option<Value>) -> Answer {
    let mut value = serde_json::json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
    if code == 201 {
        value["code"] = serde_json::json!(201);
    }
    if let Some(details) = details {
        value["details"] = details;
    }
    Answer::Value { code, value }
}
