//! How many bytes the records of the log have, by index. Pure.

use std::collections::VecDeque;

/// The sizes of the records of a log: a stretch of indexes without a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogSizes {
    /// The index of the first record.
    first: u64,
    sizes: VecDeque<u32>,
}

impl LogSizes {
    /// Takes note of the next record; the first one may have any index.
    pub(crate) fn push(&mut self, index: u64, bytes: usize) {
        if self.sizes.is_empty() {
            self.first = index;
        }
        assert_eq!(index, self.first + self.sizes.len() as u64, "the log has no holes");
        self.sizes.push_back(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Forgets the records from `index` on.
    pub(crate) fn truncate_from(&mut self, index: u64) {
        self.sizes.truncate(self.position(index));
    }

    /// Forgets the records up to and with `index`.
    pub(crate) fn drop_through(&mut self, index: u64) {
        let gone = self.position(index.saturating_add(1));
        self.sizes.drain(..gone);
        self.first += gone as u64;
    }

    /// How many bytes the records after `index` have together; all of them for `None`.
    pub fn bytes_after(&self, index: Option<u64>) -> u64 {
        let skipped = index.map_or(0, |index| self.position(index.saturating_add(1)));
        self.sizes.range(skipped..).map(|size| u64::from(*size)).sum()
    }

    /// The newest record that can go so that those after it have at least `bytes` together; `None` when all are needed for that.
    pub fn last_beyond(&self, bytes: u64) -> Option<u64> {
        let mut kept = 0;
        for (position, size) in self.sizes.iter().enumerate().rev() {
            if kept >= bytes {
                return Some(self.first + position as u64);
            }
            kept += u64::from(*size);
        }
        None
    }

    /// How many records come before `index`.
    fn position(&self, index: u64) -> usize {
        let position = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
        position.min(self.sizes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records 5 to 9, of 10 to 50 bytes.
    fn sizes() -> LogSizes {
        let mut sizes = LogSizes::default();
        (5..10).for_each(|index| sizes.push(index, 10 * (index as usize - 4)));
        sizes
    }

    #[test]
    fn bytes_are_counted_from_an_index_on() {
        let counted = [None, Some(0), Some(4), Some(5), Some(8), Some(9), Some(u64::MAX)].map(|index| sizes().bytes_after(index));
        assert_eq!(counted, [150, 150, 150, 140, 50, 0, 0]);
    }

    #[test]
    fn what_is_beyond_a_number_of_bytes_may_go() {
        let beyond = [0, 1, 50, 51, 140, 141, 1000].map(|bytes| sizes().last_beyond(bytes));
        assert_eq!(beyond, [Some(9), Some(8), Some(8), Some(7), Some(5), None, None]);
        assert_eq!(LogSizes::default().last_beyond(0), None);
    }

    #[test]
    fn both_ends_can_be_cut() {
        let mut cut = sizes();
        cut.truncate_from(8);
        cut.drop_through(5);
        assert_eq!((cut.bytes_after(None), cut.last_beyond(30)), (50, Some(6)));
        cut.push(8, 7);
        assert_eq!(cut.bytes_after(Some(7)), 7);
        cut.drop_through(100);
        assert_eq!(cut.bytes_after(None), 0);
        cut.push(101, 3);
        assert_eq!((cut.bytes_after(Some(100)), cut.bytes_after(Some(101))), (3, 0));
        cut.truncate_from(0);
        assert_eq!(cut.bytes_after(None), 0);
    }
}
