//! What large ranges added up to when they were last read. Whoever asks for one of them again, as clients do that list anew, is spared
//! the look at all of it: only what has changed since is added and taken away.

use std::collections::VecDeque;

use parking_lot::Mutex;
use trireme_storage::{
    model::{Event, EventKind, KeyRange, Revision},
    rows::Row,
    store::Store,
};

use super::encode::{self, Part};

/// So many ranges are known, those last asked for.
const RANGES: usize = 64;
/// With more changes than this, a look at the whole range is as good.
const REVISIONS: u64 = 1000;

/// What the rows of a range are in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub rows: u64,
    /// Of the rows in an answer.
    pub bytes: u64,
}

impl Sum {
    /// Takes in a change of a key of the range; `None` when it does not fit the sum.
    fn after(self, event: &Event, part: Part) -> Option<Self> {
        let mut sum = self;
        if let Some(previous) = &event.previous {
            sum.rows = sum.rows.checked_sub(1)?;
            sum.bytes = sum.bytes.checked_sub(encode::row_bytes(&Row::from(previous), part) as u64)?;
        }
        if event.kind == EventKind::Put {
            sum.rows += 1;
            sum.bytes += encode::row_bytes(&Row::from(&event.key_value), part) as u64;
        }
        Some(sum)
    }
}

/// A sum as of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub revision: Revision,
    pub sum: Sum,
}

struct Entry {
    range: KeyRange,
    part: Part,
    known: Known,
}

/// The sums of the ranges last asked for.
#[derive(Default)]
pub struct Sizes {
    /// The one last asked for comes first.
    entries: Mutex<VecDeque<Entry>>,
}

impl Sizes {
    /// Notes what a range adds up to.
    pub fn note(&self, range: &KeyRange, part: Part, known: Known) {
        let mut entries = self.entries.lock();
        let before = position(&entries, range, part).and_then(|position| entries.remove(position));
        let entry = before.filter(|entry| entry.known.revision > known.revision);
        entries.push_front(entry.unwrap_or_else(|| Entry { range: range.clone(), part, known }));
        entries.truncate(RANGES);
    }

    /// Forgets a range whose sum proved wrong.
    pub fn forget(&self, range: &KeyRange, part: Part) {
        let mut entries = self.entries.lock();
        if let Some(position) = position(&entries, range, part) {
            entries.remove(position);
        }
    }

    /// What a range adds up to at the newest revision of `store`, if that can be told from what it was and a few changes.
    pub async fn now(&self, store: &dyn Store, range: &KeyRange, part: Part) -> Option<Known> {
        let noted = {
            let entries = self.entries.lock();
            entries[position(&entries, range, part)?].known
        };
        let newest = store.revision();
        // Nobody asks for what is older than what was noted, but by a race with another request.
        let behind = newest.0.checked_sub(noted.revision.0).filter(|behind| *behind <= REVISIONS)?;
        let mut known = noted;
        if behind > 0 {
            let mut changes = store.watch(noted.revision.next()).await.ok()?;
            while known.revision < newest {
                let batch = changes.next().await.ok()?;
                for event in batch.events.iter().filter(|event| range.contains(&event.key_value.key)) {
                    known.sum = known.sum.after(event, part)?;
                }
                known.revision = batch.revision;
            }
            self.note(range, part, known);
        }
        Some(known)
    }
}

fn position(entries: &VecDeque<Entry>, range: &KeyRange, part: Part) -> Option<usize> {
    entries.iter().position(|entry| entry.range == *range && entry.part == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(revision: u64, rows: u64) -> Known {
        Known { revision: Revision(revision), sum: Sum { rows, bytes: 0 } }
    }

    #[test]
    fn the_newest_sums_of_the_ranges_last_asked_for_are_kept() {
        let sizes = Sizes::default();
        let range = |number: usize| KeyRange::prefix(format!("{number}/"));
        let noted = |number: usize, part| {
            let entries = sizes.entries.lock();
            position(&entries, &range(number), part).map(|position| entries[position].known)
        };
        for number in 0..RANGES + 3 {
            sizes.note(&range(number), Part::Whole, known(5, number as u64));
            sizes.note(&range(0), Part::Whole, known(6, 0));
        }
        assert_eq!((noted(1, Part::Whole), noted(4, Part::Whole)), (None, Some(known(5, 4))));
        assert_eq!((noted(0, Part::Whole), noted(0, Part::AllButValue)), (Some(known(6, 0)), None));
        sizes.note(&range(0), Part::Whole, known(4, 9));
        assert_eq!(noted(0, Part::Whole), Some(known(6, 0)), "an older sum does not take the place of a newer one");
        sizes.forget(&range(0), Part::Whole);
        assert_eq!(noted(0, Part::Whole), None);
    }
}
