//! The state as a batch of commands sees it: the engine's view, and over it what the batch has changed so far.
//!
//! [`Overlay`] gathers what commands changed for good; [`Draft`] what the one running command changed, to be
//! accepted or thrown away as a whole.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::{
    content,
    engine::{EngineError, Keyspace, View, WriteBatch},
    history::{self, Overrides},
    layout::{self, Head, UndoRow},
    lease::Leases,
    model::{Event, EventBatch, EventKind, KeyRange, KeyValue, LeaseId, RangeContent, RangeRequest, RangeResult, Revision},
    store::StoreError,
};

/// What a batch of commands has changed so far.
pub(crate) struct Overlay<'v> {
    view: &'v dyn View,
    /// Where the view stands.
    base: Head,
    pub head: Head,
    pub leases: Leases,
    /// The values of the keys that the batch changed.
    changed: Overrides,
    /// Keys that were read from the view, so that a compare and the put after it read once.
    clean: RefCell<HashMap<Bytes, Option<KeyValue>>>,
    pub batches: Vec<EventBatch>,
    /// The hash after each of `batches`.
    pub hashes: Vec<(Revision, u64)>,
    rows: WriteBatch,
}

impl<'v> Overlay<'v> {
    pub fn new(view: &'v dyn View, head: Head, leases: Leases) -> Self {
        Self {
            view,
            base: head,
            head,
            leases,
            changed: Overrides::new(),
            clean: RefCell::default(),
            batches: Vec::new(),
            hashes: Vec::new(),
            rows: WriteBatch::new(),
        }
    }

    fn get(&self, key: &Bytes) -> Result<Option<KeyValue>, EngineError> {
        if let Some(found) = self.changed.get(key) {
            return Ok(found.clone());
        }
        if let Some(found) = self.clean.borrow().get(key) {
            return Ok(found.clone());
        }
        let found = history::current(self.view, key)?;
        self.clean.borrow_mut().insert(key.clone(), found.clone());
        Ok(found)
    }

    /// Makes a command's changes part of the batch, at the next revision if keys changed.
    pub fn accept(&mut self, changes: DraftChanges) {
        self.leases = changes.leases;
        self.rows.append(changes.lease_rows);
        if changes.events.is_empty() {
            return;
        }
        self.head.revision = self.head.revision.next();
        let revision = self.head.revision;
        for (number, event) in changes.events.iter().enumerate() {
            assert_eq!(event.key_value.mod_revision, revision, "an event belongs to the revision that it is made at");
            let number = number as u32;
            self.rows.put(Keyspace::History, layout::history_key(revision, number), undo_row(event).encode());
            self.rows.put(Keyspace::Versions, layout::version_key(&event.key_value.key, revision), layout::encode_number(number));
        }
        self.roll(&changes.events);
        self.hashes.push((revision, self.head.hash));
        self.batches.push(EventBatch { revision, events: changes.events.into() });
        self.changed.extend(changes.changed);
    }

    /// Brings the content, and the hash of the state's whole past, to the head's revision, at which `events` happened.
    fn roll(&mut self, events: &[Event]) {
        let mut hasher = Xxh3::with_seed(self.head.hash);
        hasher.update(&self.head.revision.0.to_be_bytes());
        for event in events {
            if let Some(previous) = &event.previous {
                self.head.content.remove(content::hash_of(previous));
            }
            let hash = content::hash_of(&event.key_value);
            if event.kind == EventKind::Put {
                self.head.content.add(hash);
            }
            hasher.update(&[match event.kind {
                EventKind::Put => b'p',
                EventKind::Delete => b'd',
            }]);
            hasher.update(&hash.to_be_bytes());
        }
        hasher.update(&self.head.content.keys.to_be_bytes());
        hasher.update(&self.head.content.sum.to_be_bytes());
        self.head.hash = hasher.digest();
    }

    /// Drops the history below `revision`.
    pub fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        check_readable(&self.head, revision)?;
        if revision == self.head.compacted {
            return Err(StoreError::Compacted { requested: revision, compacted: self.head.compacted });
        }
        let (start, end) = (layout::history_key(self.head.compacted, 0), layout::history_key(revision, 0));
        self.rows.delete_range(Keyspace::History, start, end);
        self.head.compacted = revision;
        Ok(())
    }

    /// The rows that make the batch's changes, but for the head and the applied record.
    pub fn into_rows(self) -> WriteBatch {
        let mut rows = self.rows;
        for (key, value) in self.changed {
            match value {
                Some(key_value) => {
                    let row = layout::encode_current(&key_value);
                    rows.put(Keyspace::Current, key, row);
                }
                None => rows.delete(Keyspace::Current, key),
            }
        }
        rows
    }
}

fn undo_row(event: &Event) -> UndoRow {
    let now = &event.key_value;
    UndoRow {
        kind: event.kind,
        key: now.key.clone(),
        create_revision: now.create_revision,
        version: now.version,
        lease: now.lease,
        previous: event.previous.clone(),
    }
}

/// Whether the state at `revision` can be read when the state stands at `head`.
pub(crate) fn check_readable(head: &Head, revision: Revision) -> Result<(), StoreError> {
    if revision > head.revision {
        Err(StoreError::FutureRevision { requested: revision, current: head.revision })
    } else if revision < head.compacted {
        Err(StoreError::Compacted { requested: revision, compacted: head.compacted })
    } else {
        Ok(())
    }
}

/// What one command has changed so far, over an [`Overlay`].
pub(crate) struct Draft<'o, 'v> {
    overlay: &'o Overlay<'v>,
    changes: DraftChanges,
}

/// The changes of one command.
pub(crate) struct DraftChanges {
    changed: BTreeMap<Bytes, Option<KeyValue>>,
    events: Vec<Event>,
    leases: Leases,
    lease_rows: WriteBatch,
}

impl DraftChanges {
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.lease_rows.is_empty()
    }
}

impl<'o, 'v> Draft<'o, 'v> {
    pub fn new(overlay: &'o Overlay<'v>) -> Self {
        let changes = DraftChanges {
            changed: BTreeMap::new(),
            events: Vec::new(),
            leases: overlay.leases.clone(),
            lease_rows: WriteBatch::new(),
        };
        Self { overlay, changes }
    }

    /// Ends the draft; [`Overlay::accept`] takes its changes.
    pub fn into_changes(self) -> DraftChanges {
        self.changes
    }

    /// The store's revision as this command sees it: the next one as soon as it has changed something.
    pub fn revision(&self) -> Revision {
        if self.changes.events.is_empty() { self.overlay.head.revision } else { self.overlay.head.revision.next() }
    }

    pub fn get(&self, key: &Bytes) -> Result<Option<KeyValue>, EngineError> {
        match self.changes.changed.get(key) {
            Some(found) => Ok(found.clone()),
            None => self.overlay.get(key),
        }
    }

    pub fn put(&mut self, key: &Bytes, value: Bytes, lease: LeaseId) -> Result<Option<KeyValue>, StoreError> {
        let previous = self.get(key)?;
        let held = previous.as_ref().map_or(LeaseId(0), |previous| previous.lease);
        self.changes.leases.move_key(key, held, lease, &mut self.changes.lease_rows)?;
        let revision = self.overlay.head.revision.next();
        let key_value = KeyValue {
            key: key.clone(),
            value,
            create_revision: previous.as_ref().map_or(revision, |previous| previous.create_revision),
            mod_revision: revision,
            version: previous.as_ref().map_or(1, |previous| previous.version + 1),
            lease,
        };
        self.record(EventKind::Put, key_value, previous.clone());
        Ok(previous)
    }

    /// Deletes a key that exists, given its current value.
    pub fn delete(&mut self, previous: KeyValue) -> Result<(), StoreError> {
        let key = previous.key.clone();
        self.changes.leases.move_key(&key, previous.lease, LeaseId(0), &mut self.changes.lease_rows)?;
        let key_value = KeyValue {
            key,
            value: Bytes::new(),
            create_revision: Revision(0),
            mod_revision: self.overlay.head.revision.next(),
            version: 0,
            lease: LeaseId(0),
        };
        self.record(EventKind::Delete, key_value, Some(previous));
        Ok(())
    }

    fn record(&mut self, kind: EventKind, key_value: KeyValue, previous: Option<KeyValue>) {
        let value = (kind == EventKind::Put).then(|| key_value.clone());
        let earlier = self.changes.changed.insert(key_value.key.clone(), value);
        assert!(earlier.is_none(), "a key changes at most once at a revision");
        self.changes.events.push(Event { kind, key_value, previous });
    }

    /// Leases as this command sees them, and the rows that its changes of them make.
    pub fn leases_mut(&mut self) -> (&mut Leases, &mut WriteBatch) {
        (&mut self.changes.leases, &mut self.changes.lease_rows)
    }

    pub fn leases(&self) -> &Leases {
        &self.changes.leases
    }

    /// Every key-value of `range`, as this command sees it.
    pub fn all(&self, range: &KeyRange) -> Result<Vec<KeyValue>, StoreError> {
        if let KeyRange::One(key) = range {
            return Ok(self.get(key)?.into_iter().collect());
        }
        let request = RangeRequest { range: range.clone(), revision: None, limit: None, content: RangeContent::Values };
        Ok(self.range(&request)?.key_values)
    }

    pub fn range(&self, request: &RangeRequest) -> Result<RangeResult, StoreError> {
        let head = &self.overlay.head;
        let now = self.revision();
        let overrides = match request.revision {
            None => self.overrides_now(&request.range),
            Some(at) => {
                check_readable(head, at)?;
                self.overrides_at(&request.range, at)?
            }
        };
        Ok(history::range(self.overlay.view, request, &overrides, now)?)
    }

    fn overrides_now(&self, range: &KeyRange) -> Overrides {
        let mut overrides = within(&self.overlay.changed, range);
        overrides.extend(within(&self.changes.changed, range));
        overrides
    }

    /// Undoes what came after `at`: first what the engine holds, then what is in this batch only.
    fn overrides_at(&self, range: &KeyRange, at: Revision) -> Result<Overrides, EngineError> {
        let mut overrides = Overrides::new();
        if at < self.overlay.base.revision {
            overrides = history::overrides_since(self.overlay.view, range, at)?;
        }
        let later = self.overlay.batches.iter().filter(|batch| batch.revision > at).flat_map(|batch| batch.events.iter());
        let pending = later.chain(&self.changes.events).filter(|event| range.contains(&event.key_value.key));
        for event in pending {
            overrides.entry(event.key_value.key.clone()).or_insert_with(|| event.previous.clone());
        }
        // What this batch changed up to `at` is not in the engine yet.
        let earlier =
            self.overlay.batches.iter().filter(|batch| batch.revision <= at).rev().flat_map(|batch| batch.events.iter());
        for event in earlier.filter(|event| range.contains(&event.key_value.key)) {
            let value = (event.kind == EventKind::Put).then(|| event.key_value.clone());
            overrides.entry(event.key_value.key.clone()).or_insert(value);
        }
        Ok(overrides)
    }
}

fn within(changed: &Overrides, range: &KeyRange) -> Overrides {
    let clone = |(key, value): (&Bytes, &Option<KeyValue>)| (key.clone(), value.clone());
    match range {
        KeyRange::One(key) => changed.get_key_value(key).map(clone).into_iter().collect(),
        KeyRange::Span { start, .. } => {
            changed.range::<Bytes, _>(start..).take_while(|(key, _)| range.contains(key)).map(clone).collect()
        }
    }
}
