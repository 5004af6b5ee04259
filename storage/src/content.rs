//! What the store holds at its newest revision, as one number: the sum of the hashes of all current key-values.
//!
//! It is kept up to date by every change, from what the change finds and what it leaves. So it need not agree with the rows on the
//! disk by itself: rows that were changed in any other way than by applying the log are found by adding them all up again.

use bytes::{BufMut, BytesMut};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::rows::Row;

/// How many keys there are, and the sum of their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub keys: u64,
    pub sum: u64,
}

impl Content {
    /// Takes in a key-value of this hash.
    pub(crate) fn add(&mut self, hash: u64) {
        self.keys = self.keys.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash);
    }

    /// Takes out a key-value of this hash.
    pub(crate) fn remove(&mut self, hash: u64) {
        self.keys = self.keys.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash);
    }
}

/// The hash of everything that is known of a key.
pub(crate) fn hash_of<'r>(key_value: impl Into<Row<'r>>) -> u64 {
    let key_value = key_value.into();
    let mut numbers = BytesMut::with_capacity(32);
    numbers.put_u64(key_value.create_revision.0);
    numbers.put_u64(key_value.mod_revision.0);
    numbers.put_u64(key_value.version);
    numbers.put_i64(key_value.lease.0);
    xxh3_64_with_seed(key_value.value, xxh3_64_with_seed(key_value.key, xxh3_64(&numbers)))
}

/// What came of adding up the rows on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentCheck {
    /// The rows are those that applying the log has made.
    Sound(Content),
    /// They are not.
    Differs { found: Content, expected: Content },
    /// It was told to stop before the end.
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{KeyValue, LeaseId, Revision};

    #[test]
    fn every_part_of_a_key_value_counts() {
        let original = KeyValue {
            key: "key".into(),
            value: "value".into(),
            create_revision: Revision(1),
            mod_revision: Revision(2),
            version: 3,
            lease: LeaseId(4),
        };
        let others = [
            KeyValue { key: "keyv".into(), value: "alue".into(), ..original.clone() },
            KeyValue { value: "valuE".into(), ..original.clone() },
            KeyValue { create_revision: Revision(2), ..original.clone() },
            KeyValue { mod_revision: Revision(3), ..original.clone() },
            KeyValue { version: 4, ..original.clone() },
            KeyValue { lease: LeaseId(5), ..original.clone() },
        ];
        for other in others {
            assert_ne!(hash_of(&other), hash_of(&original), "{other:?}");
        }
    }

    #[test]
    fn what_is_taken_in_and_out_again_leaves_no_trace() {
        let mut content = Content::default();
        content.add(u64::MAX);
        content.add(7);
        content.remove(u64::MAX);
        assert_eq!(content, Content { keys: 1, sum: 7 });
    }
}
