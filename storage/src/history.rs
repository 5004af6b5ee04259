//! Reading the past: the state at a revision, and the events since one.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::ControlFlow,
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    engine::{EngineError, Keyspace, Span, View},
    layout::{self, UndoRow},
    model::{Event, EventBatch, EventKind, KeyRange, KeyValue, RangeContent, RangeRequest, RangeResult, Revision},
};

/// Keys whose value differs from the stored current one; `None` where the key does not exist.
pub(crate) type Overrides = BTreeMap<Bytes, Option<KeyValue>>;

/// Where a change stands in history: its revision, and its number within that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    at: Revision,
    number: u32,
}

/// The first changes after a revision of the keys in one part of a range.
pub(crate) struct Window {
    /// In key order.
    pub changes: Vec<(Bytes, Change)>,
    /// The key before which the part ends, if that is not the end of the range.
    pub end: Option<Bytes>,
}

/// What the keys of `range` that changed after `revision` were at `revision`.
pub(crate) fn overrides_since(view: &dyn View, range: &KeyRange, revision: Revision) -> Result<Overrides, EngineError> {
    let (start, end) = match range {
        KeyRange::One(key) => (layout::version_key(key, revision.next()), layout::version_key(key, Revision(u64::MAX))),
        KeyRange::Span { start, end } => (layout::version_bound(start), layout::version_bound(end)),
    };
    let window = first_changes(view, Span { start: &start, end: &end }, revision, usize::MAX)?;
    let undone = window.changes.into_iter().map(|(_, change)| {
        let undo = undo_row(view, change)?;
        Ok((undo.key, undo.previous))
    });
    undone.collect()
}

/// The first changes after `revision` of the keys of `span`, up to a key at which so many rows have been looked at.
pub(crate) fn changes_since(view: &dyn View, span: Span<'_>, revision: Revision, rows: usize) -> Result<Window, EngineError> {
    if span.is_empty() {
        return Ok(Window { changes: Vec::new(), end: None });
    }
    let (start, end) = (layout::version_bound(span.start), layout::version_bound(span.end));
    first_changes(view, Span { start: &start, end: &end }, revision, rows)
}

/// As [`changes_since`], for a span of version rows.
fn first_changes(view: &dyn View, span: Span<'_>, revision: Revision, rows: usize) -> Result<Window, EngineError> {
    let mut window = Window { changes: Vec::new(), end: None };
    let (mut last_seen, mut last_changed): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
    let mut looked_at = 0_usize;
    let mut failure = None;
    let mut look = |row: &[u8], number: &[u8]| -> Result<ControlFlow<()>, EngineError> {
        let (key, at) = layout::split_version_key(row)?;
        if looked_at >= rows && last_seen != key {
            window.end = Some(layout::unescape_version_key(key)?);
            return Ok(ControlFlow::Break(()));
        }
        looked_at += 1;
        if last_seen != key {
            last_seen.clear();
            last_seen.extend_from_slice(key);
        }
        if at > revision && last_changed != key {
            last_changed.clear();
            last_changed.extend_from_slice(key);
            let change = Change { at, number: layout::decode_number(number)? };
            window.changes.push((layout::unescape_version_key(key)?, change));
        }
        Ok(ControlFlow::Continue(()))
    };
    view.scan(Keyspace::Versions, span, &mut |row, number| {
        look(row, number).unwrap_or_else(|error| {
            failure = Some(error);
            ControlFlow::Break(())
        })
    })?;
    failure.map_or(Ok(window), Err)
}

pub(crate) fn undo_row(view: &dyn View, Change { at, number }: Change) -> Result<UndoRow, EngineError> {
    let row = view
        .get(Keyspace::History, &layout::history_key(at, number))?
        .ok_or_else(|| EngineError::Corruption(format!("change {number} of revision {at} is missing")))?;
    UndoRow::decode(row)
}

/// Reads one current value.
pub(crate) fn current(view: &dyn View, key: &Bytes) -> Result<Option<KeyValue>, EngineError> {
    view.get(Keyspace::Current, key)?.map(|row| layout::decode_current(key.clone(), row)).transpose()
}

/// Collects the answer to a range request, key by key.
struct Collector<'a> {
    request: &'a RangeRequest,
    result: RangeResult,
}

impl Collector<'_> {
    /// Counts a key; whether it is wanted in the answer.
    fn count(&mut self) -> bool {
        self.result.count += 1;
        if self.request.content == RangeContent::CountOnly {
            return false;
        }
        let wanted = self.request.limit.is_none_or(|limit| (self.result.key_values.len() as u64) < limit);
        self.result.more |= !wanted;
        wanted
    }

    fn take(&mut self, key_value: &KeyValue) {
        if self.count() {
            let mut key_value = key_value.clone();
            if self.request.content == RangeContent::KeysOnly {
                key_value.value = Bytes::new();
            }
            self.result.key_values.push(key_value);
        }
    }

    fn take_stored(&mut self, key: &[u8], row: &[u8]) -> Result<(), EngineError> {
        if self.count() {
            self.result.key_values.push(match self.request.content {
                RangeContent::Values => layout::decode_current(Bytes::copy_from_slice(key), Bytes::copy_from_slice(row))?,
                RangeContent::KeysOnly | RangeContent::CountOnly => layout::decode_current_header(key, row)?,
            });
        }
        Ok(())
    }
}

/// What [`merge`] finds: a current value as it stands in the engine, or what stands in its place.
pub(crate) enum Found<'r, T> {
    Stored { key: &'r [u8], row: &'r [u8] },
    Overridden(T),
}

/// Visits the current values of `span` in key order, with each of `overrides`, which must be of this span and in key order, in the
/// place of its key. Says whether the visitor broke it off.
pub(crate) fn merge<'o, T>(
    view: &dyn View,
    span: Span<'_>,
    overrides: impl Iterator<Item = (&'o Bytes, T)>,
    mut visit: impl FnMut(Found<'_, T>) -> Result<ControlFlow<()>, EngineError>,
) -> Result<ControlFlow<()>, EngineError> {
    if span.is_empty() {
        return Ok(ControlFlow::Continue(()));
    }
    let mut ahead = overrides.peekable();
    let mut step = |key: &[u8], row: &[u8]| {
        let mut hidden = false;
        // Those below a stored key come first; one for the key itself hides it.
        while let Some((overridden, change)) = ahead.next_if(|(overridden, _)| overridden.as_ref() <= key) {
            hidden |= overridden.as_ref() == key;
            if visit(Found::Overridden(change))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        if hidden { Ok(ControlFlow::Continue(())) } else { visit(Found::Stored { key, row }) }
    };
    let mut visited = Ok(ControlFlow::Continue(()));
    view.scan(Keyspace::Current, span, &mut |key, row| {
        visited = step(key, row);
        if matches!(visited, Ok(ControlFlow::Continue(()))) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    while matches!(visited, Ok(ControlFlow::Continue(())))
        && let Some((_, change)) = ahead.next()
    {
        visited = visit(Found::Overridden(change));
    }
    visited
}

/// Answers a range request from the current values, as changed by `overrides`. The request's revision plays no part.
pub(crate) fn range(
    view: &dyn View,
    request: &RangeRequest,
    overrides: &Overrides,
    revision: Revision,
) -> Result<RangeResult, EngineError> {
    let mut collector = Collector { request, result: RangeResult { revision, ..RangeResult::default() } };
    match &request.range {
        KeyRange::One(key) => match overrides.get(key) {
            Some(overridden) => overridden.iter().for_each(|key_value| collector.take(key_value)),
            None => current(view, key)?.iter().for_each(|key_value| collector.take(key_value)),
        },
        KeyRange::Span { start, end } => {
            let ahead = overrides.range::<Bytes, _>(start..).take_while(|(key, _)| end.is_empty() || *key < end);
            let found = |found: Found<'_, &Option<KeyValue>>| {
                match found {
                    Found::Stored { key, row } => collector.take_stored(key, row)?,
                    Found::Overridden(key_value) => key_value.iter().for_each(|key_value| collector.take(key_value)),
                }
                Ok(ControlFlow::Continue(()))
            };
            // Nothing breaks it off.
            let _ = merge(view, Span { start, end }, ahead, found)?;
        }
    }
    Ok(collector.result)
}

/// How much history one read may bring into memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HistoryLimits {
    pub revisions: u64,
    /// Reached at the end of the revision that goes beyond it.
    pub bytes: usize,
}

/// The events of the revisions from `from` on, whole revisions, oldest first. `from` must not be compacted nor in the future of the view.
pub(crate) fn events_from(view: &dyn View, from: Revision, limits: HistoryLimits) -> Result<Vec<EventBatch>, EngineError> {
    let mut rows: BTreeMap<Revision, Vec<UndoRow>> = BTreeMap::new();
    let mut bytes = 0;
    let mut failure = None;
    let start = layout::history_key(from, 0);
    let end = layout::history_key(Revision(from.0.saturating_add(limits.revisions)), 0);
    view.scan(Keyspace::History, Span { start: &start, end: &end }, &mut |key, row| {
        let parsed = layout::decode_history_key(key).and_then(|(at, _)| Ok((at, UndoRow::decode(Bytes::copy_from_slice(row))?)));
        let (at, undo) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                failure = Some(error);
                return ControlFlow::Break(());
            }
        };
        bytes += row.len();
        match rows.entry(at) {
            Entry::Vacant(_) if bytes > limits.bytes && at != from => return ControlFlow::Break(()),
            Entry::Vacant(entry) => {
                entry.insert(vec![undo]);
            }
            Entry::Occupied(mut entry) => entry.get_mut().push(undo),
        }
        ControlFlow::Continue(())
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let mut expected = from;
    let mut batches = Vec::with_capacity(rows.len());
    let mut loaded = 0;
    for (revision, undo_rows) in rows {
        if loaded > limits.bytes {
            break;
        }
        if revision != expected {
            return Err(EngineError::Corruption(format!("the changes of revision {expected} are missing")));
        }
        expected = expected.next();
        let events: Arc<[Event]> = undo_rows.into_iter().map(|undo| redo(view, revision, undo)).collect::<Result<_, _>>()?;
        loaded += events.iter().map(|event| event.key_value.value.len()).sum::<usize>();
        batches.push(EventBatch { revision, events });
    }
    Ok(batches)
}

/// Makes the event again from the row that undoes it.
fn redo(view: &dyn View, revision: Revision, undo: UndoRow) -> Result<Event, EngineError> {
    let value = match undo.kind {
        EventKind::Delete => Bytes::new(),
        EventKind::Put => value_since(view, &undo.key, revision)?,
    };
    let key_value = KeyValue {
        key: undo.key,
        value,
        create_revision: undo.create_revision,
        mod_revision: revision,
        version: undo.version,
        lease: undo.lease,
    };
    Ok(Event { kind: undo.kind, key_value, previous: undo.previous })
}

/// The value that `key` was given at `revision`: it is the current one, or stands where it was replaced.
fn value_since(view: &dyn View, key: &Bytes, revision: Revision) -> Result<Bytes, EngineError> {
    // Most keys of a store change seldom, and this is one lookup.
    let newest = current(view, key)?.filter(|key_value| key_value.mod_revision == revision);
    let key_value = match newest {
        Some(newest) => Some(newest),
        None => match first_change_after(view, key, revision)? {
            Some(change) => undo_row(view, change)?.previous,
            None => None,
        },
    };
    key_value
        .filter(|key_value| key_value.mod_revision == revision)
        .map(|key_value| key_value.value)
        .ok_or_else(|| EngineError::Corruption(format!("the value of a key at revision {revision} is missing")))
}

/// The first change of `key` after `revision`.
fn first_change_after(view: &dyn View, key: &Bytes, revision: Revision) -> Result<Option<Change>, EngineError> {
    let (start, end) = (layout::version_key(key, revision.next()), layout::version_key(key, Revision(u64::MAX)));
    let mut found = None;
    view.scan(Keyspace::Versions, Span { start: &start, end: &end }, &mut |row, number| {
        let change = |(_, at)| Ok(Change { at, number: layout::decode_number(number)? });
        found = Some(layout::split_version_key(row).and_then(change));
        ControlFlow::Break(())
    })?;
    found.transpose()
}
