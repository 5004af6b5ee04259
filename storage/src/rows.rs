//! Reading a range row by row, as it is or as it was, without collecting it: memory does not grow with the range.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::{
    engine::{EngineError, Span, View},
    history::{self, Found},
    layout,
    model::{KeyRange, KeyValue, LeaseId, Revision},
};

/// So many rows of the versions are looked at before the current values beside them are visited. What is kept of a row is a key and
/// two numbers.
pub(crate) const WINDOW_ROWS: usize = 4096;

/// A key-value where the engine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'r> {
    pub key: &'r [u8],
    pub value: &'r [u8],
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub version: u64,
    pub lease: LeaseId,
}

impl<'r> From<&'r KeyValue> for Row<'r> {
    fn from(key_value: &'r KeyValue) -> Self {
        let KeyValue { key, value, create_revision, mod_revision, version, lease } = key_value;
        Self { key, value, create_revision: *create_revision, mod_revision: *mod_revision, version: *version, lease: *lease }
    }
}

/// What is called for each key-value, in key order, until it breaks.
pub type RowVisitor<'v> = dyn FnMut(Row<'_>) -> ControlFlow<()> + 'v;

/// Visits the keys of `range` as they are or, with `past`, as they were at that revision. For the past, windows of about
/// `window_rows` rows of the versions are looked at, one after another.
pub(crate) fn visit(
    view: &dyn View,
    range: &KeyRange,
    past: Option<Revision>,
    window_rows: usize,
    visitor: &mut RowVisitor<'_>,
) -> Result<(), EngineError> {
    match (range, past) {
        (KeyRange::One(key), None) => {
            let _ = visit_one(history::current(view, key)?.as_ref(), visitor);
            Ok(())
        }
        (KeyRange::One(key), Some(revision)) => {
            let overrides = history::overrides_since(view, range, revision)?;
            let found = match overrides.get(key) {
                Some(overridden) => overridden.clone(),
                None => history::current(view, key)?,
            };
            let _ = visit_one(found.as_ref(), visitor);
            Ok(())
        }
        (KeyRange::Span { start, end }, None) => visit_span(view, Span { start, end }, &[], visitor).map(|_| ()),
        (KeyRange::Span { start, end }, Some(revision)) => {
            let mut start = start.clone();
            loop {
                let window = history::changes_since(view, Span { start: &start, end }, revision, window_rows)?;
                let span = Span { start: &start, end: window.end.as_ref().unwrap_or(end) };
                let visited = visit_span(view, span, &window.changes, visitor)?;
                match window.end {
                    Some(next) if visited.is_continue() => start = next,
                    _ => return Ok(()),
                }
            }
        }
    }
}

fn visit_one(found: Option<&KeyValue>, visitor: &mut RowVisitor<'_>) -> ControlFlow<()> {
    found.map_or(ControlFlow::Continue(()), |found| visitor(Row::from(found)))
}

/// Visits the current values of a span, but for those that have changed.
fn visit_span(
    view: &dyn View,
    span: Span<'_>,
    changes: &[(Bytes, history::Change)],
    visitor: &mut RowVisitor<'_>,
) -> Result<ControlFlow<()>, EngineError> {
    let changed = changes.iter().map(|(key, change)| (key, *change));
    history::merge(view, span, changed, |found| match found {
        Found::Stored { key, row } => Ok(visitor(layout::decode_row(key, row)?)),
        // One at a time: what was replaced may be large.
        Found::Overridden(change) => {
            let previous = history::undo_row(view, change)?.previous;
            Ok(visit_one(previous.as_ref(), visitor))
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        command::Command,
        engine,
        local::LocalStore,
        model::{Operation, RangeRequest, Transaction},
    };

    /// Some that try the escaping.
    const KEYS: [&[u8]; 6] = [b"a", b"a\0", b"a\0\xff", b"b", b"c\0\0", b"\xff"];

    /// Puts (with a value) and deletes of one key each.
    fn changes() -> impl Strategy<Value = Vec<(usize, Option<u8>)>> {
        prop::collection::vec((0..KEYS.len(), any::<Option<u8>>()), 0..40)
    }

    fn ranges() -> impl Strategy<Value = KeyRange> {
        let key = || prop::sample::select(KEYS.as_slice()).prop_map(Bytes::from_static);
        prop_oneof![
            Just(KeyRange::all()),
            key().prop_map(KeyRange::One),
            (key(), key()).prop_map(|(start, end)| KeyRange::Span { start, end }),
        ]
    }

    proptest! {
        /// However small the windows, and wherever the visitor breaks it off, what is visited is what a read that collects finds.
        #[test]
        fn what_is_visited_is_what_is_collected(changes in changes(), range in ranges(), window in 1..6_usize, wanted in 1..8_usize) {
            let store = LocalStore::in_memory().unwrap();
            for (key, value) in changes {
                let operation = match value {
                    Some(value) => Operation::put(KEYS[key], vec![value]),
                    None => Operation::delete(KEYS[key]),
                };
                store.apply(Command::Transact(Transaction { success: vec![operation], ..Transaction::default() })).unwrap();
            }
            let machine = store.state_machine();
            for revision in (0..=machine.revision().0).map(Revision) {
                let request = RangeRequest::new(range.clone()).at(revision);
                let expected: Vec<KeyValue> = machine.range(&request).unwrap().key_values.into_iter().take(wanted).collect();
                let mut found = Vec::new();
                let mut visitor = |row: Row<'_>| {
                    found.push(key_value(row));
                    if found.len() == wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                let past = (revision < machine.revision()).then_some(revision);
                engine::read(machine.engine(), |view| visit(view, &range, past, window, &mut visitor)).unwrap();
                prop_assert_eq!(found, expected);
            }
        }
    }

    fn key_value(row: Row<'_>) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(row.key),
            value: Bytes::copy_from_slice(row.value),
            create_revision: row.create_revision,
            mod_revision: row.mod_revision,
            version: row.version,
            lease: row.lease,
        }
    }

    /// A page of a long range must not cost the versions of all of it.
    #[test]
    fn a_visit_that_is_broken_off_looks_at_few_versions() {
        let store = LocalStore::in_memory().unwrap();
        for _ in 0..2 {
            for number in 0..1000 {
                let operation = Operation::put(format!("k{number:04}"), "v");
                store.apply(Command::Transact(Transaction { success: vec![operation], ..Transaction::default() })).unwrap();
            }
        }
        let machine = store.state_machine();
        engine::read(machine.engine(), |view| {
            let span = Span { start: b"k0100", end: &[] };
            let window = history::changes_since(view, span, Revision(1000), 64)?;
            assert_eq!((window.changes.len(), window.end), (32, Some(Bytes::from_static(b"k0132"))));
            Ok::<_, EngineError>(())
        })
        .unwrap();
    }
}
