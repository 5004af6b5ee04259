//! `GET` of a collection.

use std::sync::Arc;

use trireme_api::status::Status;
use trireme_storage::{
    model::{KeyRange, RangeRequest, Revision},
    store::StoreError,
};

use super::list_options::{ContinueToken, ListOptions, RevisionMatch};
use crate::{
    ApiServer,
    answer::{Answer, ListAnswer},
    cache::{CachedObject, Snapshot},
    filter::Filter,
    keys,
    request::ApiRequest,
    store_error::{status_of, too_large_resource_version},
    write::to_cached,
};

/// How many keys are read from the store at a time, for a list at a past revision.
const STORE_PAGE: u64 = 500;
/// What comes with a token that goes on with the list as it is now (`k8s.io/apiserver/pkg/storage/etcd3`).
const INCONSISTENT_CONTINUE: &str = "The provided continue parameter is too old to display a consistent list result. You can \
     start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of \
     the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
     deleted between the time the first chunk was returned and now may show up in the list.";

/// Answers with the objects that the query selects.
///
/// # Errors
/// 400 for bad parameters, 410 for a revision that history no longer holds, what the store says otherwise.
pub async fn list(server: &ApiServer, request: &ApiRequest) -> Result<Answer, Status> {
    let options = ListOptions::parse(&request.query, false)?;
    let filter = Filter::parse(&request.resource, request.namespace.as_deref(), None, &request.query)?;
    collect(server, request, &options, &filter).await.map(Answer::List)
}

/// The objects that a list with these options holds.
///
/// # Errors
/// As [`list`].
pub async fn collect(
    server: &ApiServer,
    request: &ApiRequest,
    options: &ListOptions,
    filter: &Filter,
) -> Result<ListAnswer, Status> {
    let cache = server.cache(&request.resource)?;
    if let Some(token) = &options.continue_token {
        if options.revision.is_some_and(|revision| revision.0 > 0) {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let Some(revision) = token.revision else {
            server.caches.barrier(server.store.as_ref()).await.map_err(|error| status_of(&error))?;
            let snapshot = cache.snapshot(server.caches.applied());
            return Ok(page_of(server, request, options, filter, &snapshot, snapshot.revision, Some(&token.after)));
        };
        return page_at(server, request, options, filter, revision, Some(&token.after)).await;
    }
    match (options.revision, options.revision_match) {
        (None, _) => {
            server.caches.barrier(server.store.as_ref()).await.map_err(|error| status_of(&error))?;
        }
        (Some(revision), Some(RevisionMatch::Exact)) => return page_at(server, request, options, filter, revision, None).await,
        // Without a match, a limit makes it exact, as Kubernetes documents.
        (Some(revision), None) if options.limit.is_some() && revision.0 > 0 => {
            return page_at(server, request, options, filter, revision, None).await;
        }
        (Some(revision), _) => {
            server.caches.reach(revision).await.map_err(|behind| too_large_resource_version(behind.requested, behind.current))?
        }
    }
    let snapshot = cache.snapshot(server.caches.applied());
    Ok(page_of(server, request, options, filter, &snapshot, snapshot.revision, None))
}

/// A page of the objects as they were at `revision`.
async fn page_at(
    server: &ApiServer,
    request: &ApiRequest,
    options: &ListOptions,
    filter: &Filter,
    revision: Revision,
    after: Option<&str>,
) -> Result<ListAnswer, Status> {
    server.caches.reach(revision).await.map_err(|behind| too_large_resource_version(behind.requested, behind.current))?;
    let snapshot = server.cache(&request.resource)?.snapshot(Revision::default());
    // What has not changed since then is in the cache as it was.
    if snapshot.revision <= revision {
        return Ok(page_of(server, request, options, filter, &snapshot, revision, after));
    }
    let limit = options.limit.unwrap_or(usize::MAX);
    let mut objects: Vec<Arc<CachedObject>> = Vec::new();
    let mut range = StoreRange::new(request, filter, after);
    while objects.len() <= limit && range.has_more {
        objects.extend(range.next(server, request, filter, revision).await?);
    }
    let is_cut = objects.len() > limit;
    objects.truncate(limit);
    // The store counts keys, not what a selector leaves of them.
    let remaining = (is_cut && filter.selects_everything())
        .then(|| range.total.saturating_sub(u64::try_from(objects.len()).unwrap_or(u64::MAX)));
    Ok(answer(server, request, objects, revision, is_cut, remaining))
}

/// A running read of a resource's keys at a past revision.
struct StoreRange {
    /// The path behind which the page begins, as the client's token says.
    after: Option<String>,
    start: String,
    end: bytes::Bytes,
    has_more: bool,
    /// How many keys there were from the first start on.
    total: u64,
    is_counted: bool,
}

impl StoreRange {
    fn new(request: &ApiRequest, filter: &Filter, after: Option<&str>) -> Self {
        let prefix = keys::resource_prefix(&request.resource);
        let scope = filter.namespace.as_ref().map_or_else(|| prefix.clone(), |namespace| format!("{prefix}{namespace}/"));
        let end = match KeyRange::prefix(scope.clone()) {
            KeyRange::Span { end, .. } => end,
            KeyRange::One(key) => key,
        };
        let start = after.map_or(scope, |after| format!("{prefix}{after}\0"));
        Self { after: after.map(str::to_owned), start, end, has_more: true, total: 0, is_counted: false }
    }

    /// History no longer holds the revision. A client that was in the middle of a list is told how to go on without it.
    fn expired(&self) -> Status {
        let Some(after) = &self.after else { return Status::expired("The resourceVersion for the provided list is too old.") };
        let mut status = Status::expired(INCONSISTENT_CONTINUE);
        status.continue_token = Some(ContinueToken { revision: None, after: after.clone() }.encode());
        status
    }

    async fn next(
        &mut self,
        server: &ApiServer,
        request: &ApiRequest,
        filter: &Filter,
        revision: Revision,
    ) -> Result<Vec<Arc<CachedObject>>, Status> {
        let span = KeyRange::Span { start: self.start.clone().into(), end: self.end.clone() };
        let read = server.store.range(RangeRequest::new(span).at(revision).limit(STORE_PAGE)).await;
        let result = read.map_err(|error| match error {
            StoreError::Compacted { .. } => self.expired(),
            other => status_of(&other),
        })?;
        if !self.is_counted {
            self.is_counted = true;
            self.total = result.count;
        }
        let mut objects = Vec::new();
        for key_value in &result.key_values {
            let object = to_cached(&request.resource, key_value)?;
            if filter.matches(&object) {
                objects.push(object);
            }
        }
        self.has_more = result.more;
        if let Some(last) = result.key_values.last() {
            self.start = format!("{}\0", String::from_utf8_lossy(&last.key));
        }
        Ok(objects)
    }
}

/// A page of a snapshot.
fn page_of(
    server: &ApiServer,
    request: &ApiRequest,
    options: &ListOptions,
    filter: &Filter,
    snapshot: &Snapshot,
    revision: Revision,
    after: Option<&str>,
) -> ListAnswer {
    if let Some(path) = filter.single_path() {
        let found = snapshot.objects.get(path.as_str()).filter(|object| filter.matches(object));
        let objects = found.filter(|_| after.is_none()).into_iter().cloned().collect();
        return answer(server, request, objects, revision, false, None);
    }
    let mut rest = snapshot.iter(filter.namespace.as_deref(), after);
    let mut matching = rest.by_ref().filter(|object| filter.matches(object));
    let limit = options.limit.unwrap_or(usize::MAX);
    let objects: Vec<Arc<CachedObject>> = matching.by_ref().take(limit).cloned().collect();
    let is_cut = objects.len() == limit && matching.next().is_some();
    drop(matching);
    let remaining =
        (is_cut && filter.selects_everything()).then(|| u64::try_from(rest.count()).unwrap_or(u64::MAX).saturating_add(1));
    answer(server, request, objects, revision, is_cut, remaining)
}

fn answer(
    server: &ApiServer,
    request: &ApiRequest,
    objects: Vec<Arc<CachedObject>>,
    revision: Revision,
    is_cut: bool,
    remaining: Option<u64>,
) -> ListAnswer {
    let continue_token = match objects.last() {
        Some(last) if is_cut => Some(ContinueToken { revision: Some(revision), after: last.path.clone() }.encode()),
        _ => None,
    };
    let objects = objects.into_iter().map(|object| server.served_object(&request.resource, object)).collect();
    ListAnswer { resource: request.resource.clone(), objects, revision, continue_token, remaining }
}
