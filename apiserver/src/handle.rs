//! The way of a request: route, authorize, read the body, carry out the verb, answer.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Method, Request, Response, header, request::Parts};
use tower::ServiceExt;
use trireme_api::{
    registry::{Part, Resource, Scope},
    status::Status,
};

use crate::{
    ApiServer,
    answer::Answer,
    authorize::{self, Attributes},
    body::{self, BodyError, RequestBody, ResponseBody},
    context::{ANONYMOUS, RequestContext},
    discovery, health, impersonation,
    metrics::RequestLabels,
    negotiate::{Accepted, negotiate},
    request::ApiRequest,
    respond::{self, Wanted, respond},
    router::{self, Query, Route, path::ResourcePath},
    store_error, subresource,
    table::IncludeObject,
    verbs,
};

/// How long a request may take that is neither a watch nor a log, whatever `timeout` says in its query.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What is to be done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Get,
    List,
    Watch,
    Create,
    Update(Part),
    Patch(Part),
    Delete,
    DeleteCollection,
    GetScale,
    UpdateScale,
    PatchScale,
    Bind,
    Evict,
    Log,
    Finalize,
}

impl Action {
    /// The verb as authorization and metrics name it.
    fn verb(self) -> &'static str {
        match self {
            Self::Get | Self::GetScale | Self::Log => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create | Self::Bind | Self::Evict => "create",
            Self::Update(_) | Self::UpdateScale | Self::Finalize => "update",
            Self::Patch(_) | Self::PatchScale => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// What Kubernetes calls the options that come with it.
    fn options_kind(self) -> &'static str {
        match self {
            Self::Get | Self::GetScale | Self::Log => "GetOptions",
            Self::List | Self::Watch => "ListOptions",
            Self::Create | Self::Bind | Self::Evict => "CreateOptions",
            Self::Update(_) | Self::UpdateScale | Self::Finalize => "UpdateOptions",
            Self::Patch(_) | Self::PatchScale => "PatchOptions",
            Self::Delete | Self::DeleteCollection => "DeleteOptions",
        }
    }

    fn is_long_running(self) -> bool {
        matches!(self, Self::Watch | Self::Log)
    }
}

impl ApiServer {
    /// Answers one request of a caller who is known already.
    pub(crate) async fn handle(
        self: Arc<Self>,
        context: RequestContext,
        request: Request<RequestBody>,
    ) -> Response<ResponseBody> {
        let accept_encoding =
            request.headers().get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let started = tokio::time::Instant::now();
        let is_head = request.method() == Method::HEAD;
        let server = self.clone();
        let mut labels = RequestLabels::default();
        let answered = AssertUnwindSafe(server.route(context, request, &mut labels)).catch_unwind().await;
        let response = answered.unwrap_or_else(|_| {
            tracing::error!("a handler panicked");
            respond::refuse(&Status::internal("This request caused the server to fail; see the server's log."))
        });
        self.metrics.observe(&labels, response.status().as_u16(), started.elapsed());
        if is_head {
            // HTTP/2 counts a body in the answer to a HEAD as a protocol error.
            return response.map(|_| body::full(""));
        }
        respond::compress(response, accept_encoding.as_deref()).await
    }

    async fn route(
        self: Arc<Self>,
        context: RequestContext,
        request: Request<RequestBody>,
        labels: &mut RequestLabels,
    ) -> Response<ResponseBody> {
        let context = match identified(context, request.headers()) {
            Ok(context) => context,
            Err(status) => return respond::refuse(&status),
        };
        let route = router::parse(request.uri().path());
        let query = Query::parse(request.uri().query());
        if let Route::Resource(path) = route {
            // Not even what is cached may be handed out.
            if let Err(error) = self.store.check_serving() {
                return respond::refuse(&store_error::status_of(&error));
            }
            return self.resource(context, path, query, request, labels).await;
        }
        let (parts, request_body) = request.into_parts();
        if let Err(status) = authorize::path(&context, &parts.method, parts.uri.path()) {
            return respond::refuse(&status);
        }
        if parts.method != Method::GET && parts.method != Method::HEAD && route != Route::Other {
            return respond::refuse(&Status::method_not_allowed(
                "the server does not allow this method on the requested resource",
            ));
        }
        let route = match route {
            Route::Health(health_route) => return health::answer(&self, health_route, query).await,
            Route::Other => return self.elsewhere(Request::from_parts(parts, request_body)).await,
            route => route,
        };
        match discovery::answer(&self, &route, &parts, &query) {
            Ok(answer) => {
                let accepted = if route == Route::Version { Accepted::JSON.pretty() } else { Accepted::JSON };
                respond(answer, &self.wanted(accepted, IncludeObject::default()))
            }
            Err(status) => respond::refuse(&status),
        }
    }

    /// A path that is not the API's own.
    async fn elsewhere(&self, request: Request<RequestBody>) -> Response<ResponseBody> {
        let request = request.map(axum::body::Body::new);
        match self.extra.clone().oneshot(request).await {
            Ok(response) if response.status() == http::StatusCode::NOT_FOUND => respond::refuse(&Status::unknown_path()),
            Ok(response) => response.map(|body| {
                use http_body_util::BodyExt;
                body.map_err(BodyError::new).boxed_unsync()
            }),
            Err(never) => match never {},
        }
    }

    fn wanted(&self, accepted: Accepted, include: IncludeObject) -> Wanted {
        Wanted { accepted, include, now: self.clock.now() }
    }

    async fn resource(
        self: Arc<Self>,
        context: RequestContext,
        path: ResourcePath,
        query: Query,
        request: Request<RequestBody>,
        labels: &mut RequestLabels,
    ) -> Response<ResponseBody> {
        let (parts, request_body) = request.into_parts();
        let planned = self.plan(&context, &path, &query, &parts).and_then(|planned| Ok((planned, time_limit(&query)?)));
        let ((resource, action, accepted, include), time_limit) = match planned {
            Ok(planned) => planned,
            Err(status) => return respond::refuse(&status),
        };
        *labels = RequestLabels::new(action.verb(), &path);
        let _in_flight = self.metrics.begin(action.verb());
        let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        drop(parts);
        let mut api_request = ApiRequest {
            context,
            resource,
            namespace: path.namespace.clone(),
            name: path.name.clone(),
            query,
            options_kind: action.options_kind(),
            accepted,
            content_type,
            body: bytes::Bytes::new(),
            warnings: Vec::new(),
        };
        let carried_out = self.read_and_carry_out(action, request_body, &mut api_request);
        let outcome = tokio::time::timeout(time_limit, carried_out).await;
        let outcome =
            outcome.unwrap_or_else(|_| Err(Status::timeout("Timeout: request did not complete within the allotted timeout")));
        let mut response = match outcome {
            Ok(answer) => respond(answer, &self.wanted(accepted, include)),
            Err(status) => respond::refuse(&status),
        };
        warn(&mut response, &api_request.warnings);
        response
    }

    /// What is asked, after it is clear that it may be asked.
    fn plan(
        &self,
        context: &RequestContext,
        path: &ResourcePath,
        query: &Query,
        parts: &Parts,
    ) -> Result<(Arc<Resource>, Action, Accepted, IncludeObject), Status> {
        let registered = self.registry.get(&path.group, &path.version, &path.plural);
        let action = registered.map(|resource| action(resource, path, query, &parts.method));
        let verb = match &action {
            Some(Ok(action)) => action.verb(),
            _ => "get",
        };
        authorize::resource(context, &Attributes { verb, path })?;
        let resource = registered.ok_or_else(Status::unknown_path)?.clone();
        let action = action.unwrap_or_else(|| Err(Status::unknown_path()))?;
        let accept = parts.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        let accepted = match action {
            // A log is text, whatever the client accepts.
            Action::Log => Accepted::JSON,
            _ => negotiate(accept)?,
        };
        let accepted = if query.flag("pretty") { accepted.pretty() } else { accepted };
        let include = IncludeObject::parse(query.get("includeObject"))?;
        Ok((resource, action, accepted, include))
    }

    async fn read_and_carry_out(
        self: &Arc<Self>,
        action: Action,
        body: RequestBody,
        request: &mut ApiRequest,
    ) -> Result<Answer, Status> {
        if !action.is_long_running() {
            request.body = body::read(body).await?;
        }
        self.carry_out(action, request).await
    }

    /// Boxed, because the futures of all verbs together are large and are rarely all needed.
    fn carry_out<'a>(self: &'a Arc<Self>, action: Action, request: &'a mut ApiRequest) -> BoxFuture<'a, Result<Answer, Status>> {
        match action {
            Action::Get => verbs::get::get(self, request).boxed(),
            Action::List => verbs::list::list(self, request).boxed(),
            Action::Watch => verbs::watch::watch(self, request).boxed(),
            Action::Create => verbs::create::create(self, request).boxed(),
            Action::Update(part) => verbs::update::update(self, request, part).boxed(),
            Action::Patch(part) => verbs::patch::patch(self, request, part).boxed(),
            Action::Delete => verbs::delete::delete(self, request).boxed(),
            Action::DeleteCollection => verbs::delete_collection::delete_collection(self, request).boxed(),
            Action::GetScale => subresource::scale::get(self, request).boxed(),
            Action::UpdateScale => subresource::scale::update(self, request).boxed(),
            Action::PatchScale => subresource::scale::patch(self, request).boxed(),
            Action::Bind => subresource::binding::bind(self, request).boxed(),
            Action::Evict => subresource::eviction::evict(self, request).boxed(),
            Action::Log => subresource::log::log(self, request).boxed(),
            Action::Finalize => subresource::finalize::finalize(self, request).boxed(),
        }
    }
}

/// How long the client gives the request (`timeout=10s`), at most [`REQUEST_TIMEOUT`].
fn time_limit(query: &Query) -> Result<Duration, Status> {
    let Some(text) = query.non_empty("timeout") else { return Ok(REQUEST_TIMEOUT) };
    // `0` is a duration in Go even without a unit.
    let given = if text == "0" { Some(Duration::ZERO) } else { parse_duration(text) };
    match given {
        None => {
            Err(Status::bad_request(format!("invalid timeout specified in the request URL - time: invalid duration \"{text}\"")))
        }
        Some(Duration::ZERO) => Ok(REQUEST_TIMEOUT),
        Some(given) => Ok(given.min(REQUEST_TIMEOUT)),
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    text.parse::<jiff::SignedDuration>().ok().and_then(|given| Duration::try_from(given).ok())
}

/// Who the request counts as, after its headers.
fn identified(context: RequestContext, headers: &http::HeaderMap) -> Result<RequestContext, Status> {
    // Certificates are the only proof there is. Who brings a token instead must learn that it is not known, not that an
    // anonymous user may do little.
    if context.user == ANONYMOUS && headers.get(header::AUTHORIZATION).is_some_and(is_token) {
        return Err(Status::unauthorized());
    }
    impersonation::acting_as(context, headers)
}

fn is_token(authorization: &HeaderValue) -> bool {
    let text = authorization.to_str().unwrap_or_default().trim();
    text.split_once(' ').is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty())
}

/// Which action a method on a path is.
fn action(resource: &Resource, path: &ResourcePath, query: &Query, method: &Method) -> Result<Action, Status> {
    let not_allowed = || Status::method_not_allowed("the server does not allow this method on the requested resource");
    let is_namespaced = resource.scope == Scope::Namespaced;
    if path.namespace.is_some() != is_namespaced && (path.namespace.is_some() || path.name.is_some()) {
        return Err(Status::unknown_path());
    }
    if let Some(subresource) = &path.subresource {
        return subresource_action(resource, subresource, method);
    }
    // `watch` in the query makes a watch of a list, never of one object.
    let is_watch = path.watch || path.name.is_none() && query.flag("watch");
    match (method, path.name.is_some()) {
        (&Method::GET | &Method::HEAD, _) if is_watch => Ok(Action::Watch),
        (&Method::GET | &Method::HEAD, true) => Ok(Action::Get),
        (&Method::GET | &Method::HEAD, false) => Ok(Action::List),
        (&Method::POST, false) if path.namespace.is_some() == is_namespaced => Ok(Action::Create),
        (&Method::PUT, true) => Ok(Action::Update(Part::Main)),
        (&Method::PATCH, true) => Ok(Action::Patch(Part::Main)),
        (&Method::DELETE, true) => Ok(Action::Delete),
        // Namespaces are deleted one by one.
        (&Method::DELETE, false) if resource.group.is_empty() && resource.plural == "namespaces" => Err(not_allowed()),
        (&Method::DELETE, false) if path.namespace.is_some() == is_namespaced => Ok(Action::DeleteCollection),
        _ => Err(not_allowed()),
    }
}

fn subresource_action(resource: &Resource, name: &str, method: &Method) -> Result<Action, Status> {
    let is_namespace = resource.group.is_empty() && resource.plural == "namespaces";
    if resource.subresource(name).is_none() && !(is_namespace && name == "finalize") {
        return Err(Status::unknown_path());
    }
    let action = match (name, method) {
        ("status", &Method::GET) => Action::Get,
        ("status", &Method::PUT) => Action::Update(Part::Status),
        ("status", &Method::PATCH) => Action::Patch(Part::Status),
        ("scale", &Method::GET) => Action::GetScale,
        ("scale", &Method::PUT) => Action::UpdateScale,
        ("scale", &Method::PATCH) => Action::PatchScale,
        ("binding", &Method::POST) => Action::Bind,
        ("eviction", &Method::POST) => Action::Evict,
        ("log", &Method::GET) => Action::Log,
        ("finalize", &Method::PUT) => Action::Finalize,
        _ => return Err(Status::method_not_allowed("the server does not allow this method on the requested resource")),
    };
    Ok(action)
}

/// Adds `Warning` headers (RFC 7234, code 299).
fn warn(response: &mut Response<ResponseBody>, warnings: &[String]) {
    for warning in warnings {
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_shorten_the_time_of_its_request() {
        let limit = |query: &str| time_limit(&Query::parse(Some(query))).map_err(|status| status.code);
        for (query, seconds) in
            [("", 60.0), ("timeout=10s", 10.0), ("timeout=1m30s", 60.0), ("timeout=500ms", 0.5), ("timeout=0s", 60.0)]
        {
            assert_eq!(limit(query), Ok(Duration::from_secs_f64(seconds)), "{query}");
        }
        for query in ["timeout=soon", "timeout=10", "timeout=-5s"] {
            assert_eq!(limit(query), Err(400), "{query}");
        }
    }
}
