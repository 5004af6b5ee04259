//! Whether what lies on the disk of a stopped member is whole: every checksum, every row, and that values, history, versions and
//! leases agree with one another. Nothing is changed.

use std::{collections::BTreeSet, fmt, ops::ControlFlow, path::Path};

use bytes::Bytes;

use crate::{
    codec,
    content::{self, Content},
    engine::{
        EngineError, Keyspace, Span, View,
        rocks::{
            RocksOptions,
            reader::{self, RocksReader},
        },
    },
    format::{self, Purpose},
    layout::{self, HEAD_KEY, Head, UndoRow},
    lease::Leases,
    model::{EventKind, KeyValue, LeaseId, Revision},
};

/// So many findings are told in words; more are only counted.
const TOLD: usize = 50;

/// What a look at an engine has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong, the first of them in words.
    pub findings: Vec<String>,
    /// How many things are wrong.
    pub wrong: u64,
    /// What is worth knowing and wrong with nothing that cannot be made good again.
    pub remarks: Vec<String>,
    pub size_bytes: u64,
    pub contents: Contents,
}

/// What there is, as far as it could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Contents {
    #[default]
    Nothing,
    State(StateContents),
    Log(LogContents),
}

/// What a state holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateContents {
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub compacted: Revision,
    pub hash: u64,
    pub keys: u64,
    /// Changes of keys in the history.
    pub changes: u64,
    pub leases: u64,
}

/// What a Raft log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogContents {
    pub records: u64,
    pub first: Option<u64>,
    pub last: Option<u64>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.wrong == 0
    }

    fn wrong(&mut self, what: impl fmt::Display) {
        self.wrong += 1;
        if self.findings.len() < TOLD {
            self.findings.push(what.to_string());
        }
    }
}

/// Looks at the state in the folder of an engine.
///
/// # Errors
/// When there is no engine, or its database cannot be opened at all.
pub fn state(folder: &Path) -> Result<Report, EngineError> {
    open(folder, RocksOptions::for_state(), Purpose::State, |view, report| {
        let contents = state_view(view, report)?;
        Ok(Contents::State(contents))
    })
}

/// Looks at the Raft log in the folder of an engine.
///
/// # Errors
/// As [`state`].
pub fn log(folder: &Path) -> Result<Report, EngineError> {
    open(folder, RocksOptions::for_log(), Purpose::Log, |view, report| log_view(view, report).map(Contents::Log))
}

fn open(
    folder: &Path,
    options: RocksOptions,
    purpose: Purpose,
    look: impl FnOnce(&dyn View, &mut Report) -> Result<Contents, EngineError>,
) -> Result<Report, EngineError> {
    let reader = RocksReader::open(folder, options)?;
    let mut report = Report { size_bytes: reader::size_bytes(folder)?, ..Report::default() };
    if let Some(damage) = reader.damaged_log() {
        match purpose {
            Purpose::State => {
                report.remarks.push(format!("the newest writes are not whole, and come back from the Raft log: {damage}"))
            }
            Purpose::Log => report.wrong(format!("the newest records are not whole: {damage}")),
        }
    }
    let damaged = reader.damaged_files()?;
    for damage in &damaged {
        report.wrong(format!("{}: {}", damage.file, damage.what));
    }
    let view = reader.view();
    let looked = format::check(&view, purpose).and_then(|is_begun| match is_begun {
        true => look(&view, &mut report),
        false => Ok(Contents::Nothing),
    });
    match looked {
        Ok(contents) => report.contents = contents,
        // What the damaged blocks hold cannot be looked at, and was told already.
        Err(_) if !damaged.is_empty() => {}
        Err(error @ (EngineError::NewerFormat { .. } | EngineError::Foreign { .. })) => return Err(error),
        Err(error) => report.wrong(error),
    }
    Ok(report)
}

/// Checks the rows of a log: that they follow each other, and the checksum of each.
fn log_view(view: &dyn View, report: &mut Report) -> Result<LogContents, EngineError> {
    let mut contents = LogContents::default();
    view.scan(Keyspace::Log, Span::ALL, &mut |key, row| {
        let Ok(index) = <[u8; 8]>::try_from(key).map(u64::from_be_bytes) else {
            report.wrong("the key of a log record cannot be read");
            return ControlFlow::Continue(());
        };
        if let Some(last) = contents.last.filter(|last| last + 1 != index) {
            report.wrong(format!("log records {} to {} are missing", last + 1, index - 1));
        }
        if let Err(error) = codec::check(row) {
            report.wrong(format!("log record {index}: {error}"));
        }
        contents.first.get_or_insert(index);
        contents.last = Some(index);
        contents.records += 1;
        ControlFlow::Continue(())
    })?;
    Ok(contents)
}

/// Checks the rows of a state, and that they agree with one another.
pub(crate) fn state_view(view: &dyn View, report: &mut Report) -> Result<StateContents, EngineError> {
    let row = view.get(Keyspace::Meta, HEAD_KEY)?;
    let head = row.map(|row| Head::decode(&row)).transpose()?.unwrap_or_default();
    let leases = Leases::load(view).inspect_err(|error| report.wrong(error)).unwrap_or_default();
    let mut check = StateCheck { view, head, leases, report, first: head.compacted.max(Revision(1)) };
    let keys = check.current_values()?;
    let changes = check.history()?;
    check.versions(changes)?;
    let leases = check.leases()?;
    Ok(StateContents { revision: head.revision, compacted: head.compacted, hash: head.hash, keys, changes, leases })
}

struct StateCheck<'a> {
    view: &'a dyn View,
    head: Head,
    leases: Leases,
    report: &'a mut Report,
    /// The oldest revision whose changes are kept.
    first: Revision,
}

/// What a key was left as by a change: enough to be found again in what the next change replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    create_revision: Revision,
    mod_revision: Revision,
    version: u64,
    lease: LeaseId,
}

impl Left {
    fn of(key_value: &KeyValue) -> Self {
        let KeyValue { create_revision, mod_revision, version, lease, .. } = *key_value;
        Self { create_revision, mod_revision, version, lease }
    }
}

fn named(key: &[u8]) -> String {
    format!("key \"{}\"", key.escape_ascii())
}

impl StateCheck<'_> {
    /// Every current value by itself, and what all of them add up to. Returns how many there are.
    fn current_values(&mut self) -> Result<u64, EngineError> {
        let mut found = Content::default();
        let Self { view, head, leases, report, first } = self;
        let mut failure = None;
        view.scan(Keyspace::Current, Span::ALL, &mut |key, row| {
            let key_value = match layout::decode_current(Bytes::copy_from_slice(key), Bytes::copy_from_slice(row)) {
                Ok(key_value) => key_value,
                Err(error) => {
                    report.wrong(format!("{}: {error}", named(key)));
                    return ControlFlow::Continue(());
                }
            };
            found.add(content::hash_of(&key_value));
            let KeyValue { create_revision, mod_revision, version, lease, .. } = key_value;
            if create_revision > mod_revision || mod_revision > head.revision || version == 0 || create_revision == Revision(0) {
                report.wrong(format!("{}: its revisions or its version cannot be", named(key)));
            }
            if lease != LeaseId(0) && !leases.has_key(lease, &key_value.key) {
                report.wrong(format!("{}: its lease {:x} does not know it", named(key), lease.0));
            }
            if mod_revision >= *first && mod_revision <= head.revision {
                match view.get(Keyspace::Versions, &layout::version_key(key, mod_revision)) {
                    Ok(Some(_)) => {}
                    Ok(None) => {
                        report.wrong(format!("{}: the change that made it, at revision {mod_revision}, is missing", named(key)))
                    }
                    Err(error) => {
                        failure = Some(error);
                        return ControlFlow::Break(());
                    }
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        if found != head.content {
            let expected = head.content.keys;
            report.wrong(format!(
                "the values were changed by something else than the log: {} keys add up to {:016x}, the log has left {expected} that add up to {:016x}",
                found.keys, found.sum, head.content.sum
            ));
        }
        Ok(found.keys)
    }

    /// Every row of the history by itself, and that no revision is missing. Returns how many rows there are.
    fn history(&mut self) -> Result<u64, EngineError> {
        let mut rows = 0;
        let mut expected = (self.first, 0);
        let start = layout::history_key(self.first, 0);
        let Self { view, head, report, .. } = self;
        view.scan(Keyspace::History, Span { start: &start, end: &[] }, &mut |key, row| {
            rows += 1;
            let parsed = layout::decode_history_key(key).and_then(|at| Ok((at, UndoRow::decode(Bytes::copy_from_slice(row))?)));
            match parsed {
                Err(error) => report.wrong(format!("a row of the history: {error}")),
                Ok(((revision, number), _)) => {
                    let follows = (revision, number) == expected || (revision, number) == (Revision(expected.0.0 + 1), 0);
                    let begins = rows == 1 && (revision, number) == expected;
                    if !(begins || rows > 1 && follows) {
                        report.wrong(format!("the history does not go on at revision {} (change {})", expected.0, expected.1));
                    }
                    expected = (revision, number + 1);
                }
            }
            ControlFlow::Continue(())
        })?;
        let last = if rows == 0 { self.first.0 - 1 } else { expected.0.0 };
        if last != head.revision.0 && head.revision > Revision(0) {
            report.wrong(format!("the history ends at revision {last}, and the state at {}", head.revision));
        }
        Ok(rows)
    }

    /// That the changes of every key follow from one another, down to its current value.
    fn versions(&mut self, changes: u64) -> Result<(), EngineError> {
        let mut found: u64 = 0;
        let mut failure = None;
        // The key whose changes are being followed, and what the last of them has left.
        let mut followed: Option<(Vec<u8>, Bytes, Option<Left>)> = None;
        let (view, first, head) = (self.view, self.first, self.head);
        let report = &mut *self.report;
        let end_of_key = |followed: Option<(Vec<u8>, Bytes, Option<Left>)>, report: &mut Report| -> Result<(), EngineError> {
            let Some((_, key, left)) = followed else { return Ok(()) };
            let current = view.get(Keyspace::Current, &key)?.map(|row| layout::decode_current(key.clone(), row)).transpose();
            match current {
                Ok(current) if current.as_ref().map(Left::of) == left => {}
                Ok(_) => report.wrong(format!("{}: it is not what its last change has left", named(&key))),
                Err(_) => {}
            }
            Ok(())
        };
        view.scan(Keyspace::Versions, Span::ALL, &mut |row, number| {
            let parsed = layout::split_version_key(row).and_then(|(key, at)| Ok((key, at, layout::decode_number(number)?)));
            let (escaped, at, number) = match parsed {
                Ok(parsed) => parsed,
                Err(error) => {
                    report.wrong(error);
                    return ControlFlow::Continue(());
                }
            };
            // Older ones go when the engine comes by.
            if at < first {
                return ControlFlow::Continue(());
            }
            found += 1;
            if at > head.revision {
                report.wrong(format!("a change at revision {at} is later than the state, which is at {}", head.revision));
                return ControlFlow::Continue(());
            }
            let undo = match view.get(Keyspace::History, &layout::history_key(at, number)) {
                Ok(undo) => undo.map(UndoRow::decode),
                Err(error) => {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
            };
            let Some(Ok(undo)) = undo else {
                report.wrong(format!("change {number} of revision {at} is missing in the history"));
                return ControlFlow::Continue(());
            };
            if layout::version_key(&undo.key, at) != row {
                report.wrong(format!("change {number} of revision {at} is another key's in the history"));
                return ControlFlow::Continue(());
            }
            if followed.as_ref().is_none_or(|(key, ..)| key != escaped) {
                if let Err(error) = end_of_key(followed.take(), report) {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
                if undo.previous.as_ref().is_some_and(|previous| previous.mod_revision >= first) {
                    report.wrong(format!("{}: a change before revision {at} is missing", named(&undo.key)));
                }
            } else if let Some((.., left)) = &followed
                && undo.previous.as_ref().map(Left::of) != *left
            {
                report.wrong(format!(
                    "{}: the change at revision {at} replaced something else than what was there",
                    named(&undo.key)
                ));
            }
            let left = (undo.kind == EventKind::Put).then_some(Left {
                create_revision: undo.create_revision,
                mod_revision: at,
                version: undo.version,
                lease: undo.lease,
            });
            followed = Some((escaped.to_vec(), undo.key, left));
            ControlFlow::Continue(())
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        end_of_key(followed.take(), report)?;
        if found != changes {
            report.wrong(format!("the history holds {changes} changes, and the keys know of {found}"));
        }
        Ok(())
    }

    /// That every key that a lease holds is there, and is the lease's. Returns how many leases there are.
    fn leases(&mut self) -> Result<u64, EngineError> {
        let all = self.leases.all();
        for lease in &all {
            let keys: BTreeSet<Bytes> = self.leases.keys(lease.id).unwrap_or_default().into_iter().collect();
            for key in keys {
                let row = self.view.get(Keyspace::Current, &key)?;
                let held = row.map(|row| layout::decode_current(key.clone(), row)).transpose().ok().flatten();
                if held.is_none_or(|held| held.lease != lease.id) {
                    self.report.wrong(format!("{}: lease {:x} holds it, and it is not the lease's", named(&key), lease.id.0));
                }
            }
        }
        Ok(all.len() as u64)
    }
}
