//! The rolling hash at revisions of the past: at each of the newest, and at every 1024th of the somewhat older ones, so that two
//! members which have applied differently far find a revision that both know.

use std::collections::VecDeque;

use crate::model::Revision;

/// Of how many of the newest revisions the hash is kept.
const NEWEST: usize = 4096;
/// Every so many revisions one hash is kept for longer, on every member at the same revisions.
const SPACING: u64 = 1024;
const SAMPLES: usize = 64;

#[derive(Clone, Debug, Default)]
pub(crate) struct Hashes {
    /// Oldest first; revisions rise.
    newest: VecDeque<(Revision, u64)>,
    samples: VecDeque<(Revision, u64)>,
}

impl Hashes {
    /// Begins with the one revision whose hash is known.
    pub fn beginning_with(revision: Revision, hash: u64) -> Self {
        let mut hashes = Self::default();
        hashes.push(revision, hash);
        hashes
    }

    /// Takes note of the next revision's hash.
    pub fn push(&mut self, revision: Revision, hash: u64) {
        self.newest.push_back((revision, hash));
        if self.newest.len() > NEWEST {
            self.newest.pop_front();
        }
        if revision.0.is_multiple_of(SPACING) {
            self.samples.push_back((revision, hash));
            if self.samples.len() > SAMPLES {
                self.samples.pop_front();
            }
        }
    }

    /// The hash at a revision, if it is known.
    pub fn at(&self, revision: Revision) -> Option<u64> {
        [&self.newest, &self.samples].into_iter().find_map(|known| {
            let position = known.binary_search_by_key(&revision, |(revision, _)| *revision).ok()?;
            known.get(position).map(|(_, hash)| *hash)
        })
    }

    /// The revisions at which other members are most likely to know the hash, too.
    pub fn samples(&self) -> Vec<(Revision, u64)> {
        self.samples.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_some_older_hashes_are_known() {
        let mut hashes = Hashes::beginning_with(Revision(7), 70);
        for revision in 8..=100_000 {
            hashes.push(Revision(revision), revision * 10);
        }
        assert_eq!(hashes.at(Revision(100_000)), Some(1_000_000));
        assert_eq!(hashes.at(Revision(100_000 - NEWEST as u64 + 1)), Some((100_000 - NEWEST as u64 + 1) * 10));
        assert_eq!(hashes.at(Revision(100_000 - NEWEST as u64)), None);
        assert_eq!(hashes.at(Revision(100_001)), None);
        let samples = hashes.samples();
        assert_eq!(samples.len(), SAMPLES);
        for (revision, hash) in samples {
            assert_eq!((revision.0 % SPACING, hashes.at(revision)), (0, Some(hash)));
        }
    }
}
