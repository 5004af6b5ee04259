//! The rows of the state machine: what stands in which key space, byte by byte. Pure functions.
//!
//! | key space | key | value |
//! | --- | --- | --- |
//! | meta | `state/head` | revision, compacted revision, hash, number of keys, sum of the key-values' hashes |
//! | meta | `state/applied` | consensus's record |
//! | current | the key | create revision, mod revision, version, lease, value |
//! | history | revision, number within the revision | how the key looked before ([`UndoRow`]) |
//! | versions | the key, escaped so that order is kept, and the revision | number within the revision |
//!
//! Numbers are big-endian. A value is stored twice: as the current one, and, once it is overwritten, in the history row
//! of the change that replaced it. So a read at revision R undoes what came after R, history rows up to R are
//! never needed for it, and compaction is one range delete.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    content::Content,
    engine::EngineError,
    model::{EventKind, KeyValue, LeaseId, Revision},
    rows::Row,
};

pub(crate) const HEAD_KEY: &[u8] = b"state/head";
pub(crate) const APPLIED_KEY: &[u8] = b"state/applied";

const HEADER_BYTES: usize = 32;

fn corrupt(what: &str) -> EngineError {
    EngineError::Corruption(format!("{what} cannot be read"))
}

/// Where the state stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The newest revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub compacted: Revision,
    /// The rolling hash of all events up to `revision`, and of the content at each of them.
    pub hash: u64,
    /// What the current values add up to.
    pub content: Content,
}

const HEAD_BYTES: usize = 40;

impl Head {
    pub fn encode(&self) -> Bytes {
        let mut row = BytesMut::with_capacity(HEAD_BYTES);
        row.put_u64(self.revision.0);
        row.put_u64(self.compacted.0);
        row.put_u64(self.hash);
        row.put_u64(self.content.keys);
        row.put_u64(self.content.sum);
        row.freeze()
    }

    pub fn decode(mut row: &[u8]) -> Result<Self, EngineError> {
        if row.len() != HEAD_BYTES {
            return Err(corrupt("the head of the state"));
        }
        let (revision, compacted, hash) = (Revision(row.get_u64()), Revision(row.get_u64()), row.get_u64());
        let head = Self { revision, compacted, hash, content: Content { keys: row.get_u64(), sum: row.get_u64() } };
        if head.compacted > head.revision {
            return Err(corrupt("the head of the state"));
        }
        Ok(head)
    }
}

fn put_key_value(row: &mut BytesMut, key_value: &KeyValue) {
    row.put_u64(key_value.create_revision.0);
    row.put_u64(key_value.mod_revision.0);
    row.put_u64(key_value.version);
    row.put_i64(key_value.lease.0);
    row.put_slice(&key_value.value);
}

/// The row of a current value.
pub(crate) fn encode_current(key_value: &KeyValue) -> Bytes {
    let mut row = BytesMut::with_capacity(HEADER_BYTES + key_value.value.len());
    put_key_value(&mut row, key_value);
    row.freeze()
}

/// Reads the row of a current value, without a copy of the value.
pub(crate) fn decode_current(key: Bytes, mut row: Bytes) -> Result<KeyValue, EngineError> {
    if row.len() < HEADER_BYTES {
        return Err(corrupt("a current value"));
    }
    Ok(KeyValue {
        key,
        create_revision: Revision(row.get_u64()),
        mod_revision: Revision(row.get_u64()),
        version: row.get_u64(),
        lease: LeaseId(row.get_i64()),
        value: row,
    })
}

/// As [`decode_current`], of a row where the engine has it.
pub(crate) fn decode_row<'r>(key: &'r [u8], row: &'r [u8]) -> Result<Row<'r>, EngineError> {
    let (header, value) = row.split_first_chunk::<HEADER_BYTES>().ok_or_else(|| corrupt("a current value"))?;
    let mut header = header.as_slice();
    Ok(Row {
        key,
        value,
        create_revision: Revision(header.get_u64()),
        mod_revision: Revision(header.get_u64()),
        version: header.get_u64(),
        lease: LeaseId(header.get_i64()),
    })
}

/// As [`decode_current`], without the value.
pub(crate) fn decode_current_header(key: &[u8], row: &[u8]) -> Result<KeyValue, EngineError> {
    let header = row.get(..HEADER_BYTES).ok_or_else(|| corrupt("a current value"))?;
    decode_current(Bytes::copy_from_slice(key), Bytes::copy_from_slice(header))
}

/// The key of a history row.
pub(crate) fn history_key(revision: Revision, number: u32) -> Bytes {
    let mut key = BytesMut::with_capacity(12);
    key.put_u64(revision.0);
    key.put_u32(number);
    key.freeze()
}

pub(crate) fn decode_history_key(mut key: &[u8]) -> Result<(Revision, u32), EngineError> {
    if key.len() != 12 {
        return Err(corrupt("the key of a history row"));
    }
    Ok((Revision(key.get_u64()), key.get_u32()))
}

/// One change of one key, as history keeps it: all of the event but the new value, which stands in the next change's
/// row or, if there is none, in the current value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UndoRow {
    pub kind: EventKind,
    pub key: Bytes,
    /// Of the new value; 0 for a delete.
    pub create_revision: Revision,
    /// Of the new value; 0 for a delete.
    pub version: u64,
    /// Of the new value; 0 for a delete.
    pub lease: LeaseId,
    /// What the key was before.
    pub previous: Option<KeyValue>,
}

impl UndoRow {
    pub fn encode(&self) -> Bytes {
        let previous_bytes = self.previous.as_ref().map_or(0, |previous| HEADER_BYTES + previous.value.len());
        let mut row = BytesMut::with_capacity(30 + self.key.len() + previous_bytes);
        row.put_u8(match self.kind {
            EventKind::Put => b'p',
            EventKind::Delete => b'd',
        });
        row.put_u64(self.create_revision.0);
        row.put_u64(self.version);
        row.put_i64(self.lease.0);
        row.put_u32(self.key.len() as u32);
        row.put_slice(&self.key);
        match &self.previous {
            None => row.put_u8(0),
            Some(previous) => {
                row.put_u8(1);
                put_key_value(&mut row, previous);
            }
        }
        row.freeze()
    }

    pub fn decode(mut row: Bytes) -> Result<Self, EngineError> {
        let malformed = || corrupt("a history row");
        if row.len() < 30 {
            return Err(malformed());
        }
        let kind = match row.get_u8() {
            b'p' => EventKind::Put,
            b'd' => EventKind::Delete,
            _ => return Err(malformed()),
        };
        let (create_revision, version, lease) = (Revision(row.get_u64()), row.get_u64(), LeaseId(row.get_i64()));
        let key_bytes = row.get_u32() as usize;
        if row.len() <= key_bytes {
            return Err(malformed());
        }
        let key = row.split_to(key_bytes);
        let previous = match (row.get_u8(), row.is_empty()) {
            (0, true) => None,
            (1, false) => Some(decode_current(key.clone(), row)?),
            _ => return Err(malformed()),
        };
        Ok(Self { kind, key, create_revision, version, lease, previous })
    }
}

/// Escapes a key so that keys with a revision behind them keep the order of the keys: 0 becomes 0, 255.
fn escape(key: &[u8], row: &mut BytesMut) {
    let mut rest = key;
    while let Some(position) = rest.iter().position(|byte| *byte == 0) {
        row.put_slice(&rest[..position]);
        row.put_slice(&[0, u8::MAX]);
        rest = &rest[position + 1..];
    }
    row.put_slice(rest);
}

/// The key of the version row that says that `revision` changed `key`.
pub(crate) fn version_key(key: &[u8], revision: Revision) -> Bytes {
    let mut row = BytesMut::with_capacity(key.len() + 10);
    escape(key, &mut row);
    row.put_slice(&[0, 0]);
    row.put_u64(revision.0);
    row.freeze()
}

/// The least version row of a key that is not below `key`; empty for an empty key.
pub(crate) fn version_bound(key: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(key.len());
    escape(key, &mut row);
    row.freeze()
}

/// Splits the key of a version row into the escaped key, which stands for the key, and the revision.
pub(crate) fn split_version_key(row: &[u8]) -> Result<(&[u8], Revision), EngineError> {
    let (escaped, revision) = row.split_last_chunk::<8>().ok_or_else(|| corrupt("the key of a version row"))?;
    Ok((escaped, Revision(u64::from_be_bytes(*revision))))
}

/// The key that [`split_version_key`] found in its escaped form.
pub(crate) fn unescape_version_key(escaped: &[u8]) -> Result<Bytes, EngineError> {
    let malformed = || corrupt("the key of a version row");
    let mut rest = escaped.strip_suffix(&[0, 0]).ok_or_else(malformed)?;
    let mut key = BytesMut::with_capacity(rest.len());
    while let Some(position) = rest.iter().position(|byte| *byte == 0) {
        key.put_slice(&rest[..=position]);
        rest = rest[position + 1..].strip_prefix(&[u8::MAX]).ok_or_else(malformed)?;
    }
    key.put_slice(rest);
    Ok(key.freeze())
}

pub(crate) fn encode_number(number: u32) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

pub(crate) fn decode_number(row: &[u8]) -> Result<u32, EngineError> {
    <[u8; 4]>::try_from(row).map(u32::from_be_bytes).map_err(|_| corrupt("a version row"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key_value(key: &[u8], value: &[u8]) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
            create_revision: Revision(1),
            mod_revision: Revision(0x0203),
            version: 4,
            lease: LeaseId(-5),
        }
    }

    fn undo(key: &[u8], previous: Option<KeyValue>) -> UndoRow {
        UndoRow {
            kind: EventKind::Put,
            key: Bytes::copy_from_slice(key),
            create_revision: Revision(6),
            version: 7,
            lease: LeaseId(8),
            previous,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whoever changes these bytes changes the format on disk.
    #[test]
    fn golden_rows() {
        let content = Content { keys: 0x0c, sum: 0x0d };
        let head = Head { revision: Revision(3), compacted: Revision(2), hash: 0x0a0b, content };
        let rows = [
            ("head", head.encode()),
            ("current", encode_current(&key_value(b"k", b"v"))),
            ("history key", history_key(Revision(258), 3)),
            ("first put", undo(b"key", None).encode()),
            ("later put", undo(b"key", Some(key_value(b"key", b"old"))).encode()),
            ("delete", UndoRow { kind: EventKind::Delete, ..undo(b"key", Some(key_value(b"key", b"old"))) }.encode()),
            ("version key", version_key(b"a\0b", Revision(9))),
            ("version", encode_number(3)),
        ];
        let text: Vec<String> = rows.iter().map(|(name, row)| format!("{name}: {}", hex(row))).collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    proptest! {
        #[test]
        fn rows_come_back(key in prop::collection::vec(any::<u8>(), 1..20), value in prop::collection::vec(any::<u8>(), 0..20), cut in any::<prop::sample::Index>()) {
            let stored = key_value(&key, &value);
            let row = encode_current(&stored);
            prop_assert_eq!(decode_row(&stored.key, &row), Ok(Row::from(&stored)));
            prop_assert_eq!(decode_current(stored.key.clone(), row), Ok(stored.clone()));
            for previous in [None, Some(stored)] {
                let undo = undo(&key, previous);
                let row = undo.encode();
                // The value goes to the end of the row, so that a cut within it cannot be told; RocksDB's checksums can.
                let header = row.len() - undo.previous.as_ref().map_or(0, |previous| previous.value.len());
                prop_assert!(UndoRow::decode(row.slice(..cut.index(header))).is_err());
                prop_assert_eq!(UndoRow::decode(row), Ok(undo));
            }
        }

        /// Rows have no checksum of their own; what RocksDB's let through is refused, or read, without harm.
        #[test]
        fn noise_does_no_harm(mut noise in prop::collection::vec(any::<u8>(), 0..80), kind in prop::sample::select(vec![b'p', b'd', 0])) {
            let _read = (Head::decode(&noise), decode_history_key(&noise), split_version_key(&noise).is_ok(), decode_number(&noise));
            let _read = (decode_current(Bytes::new(), noise.clone().into()), decode_current_header(&[], &noise));
            let _read = (decode_row(&[], &noise).is_ok(), unescape_version_key(&noise).is_ok());
            if let Some(first) = noise.first_mut() {
                *first = kind;
            }
            // Short keys, so that what follows them is reached.
            for byte in noise.iter_mut().skip(25).take(3) {
                *byte = 0;
            }
            if let Ok(undo) = UndoRow::decode(noise.clone().into()) {
                prop_assert_eq!(undo.encode(), noise);
            }
        }

        /// Version rows sort by key and then by revision, and bounds fall between keys.
        #[test]
        fn version_rows_keep_the_order(
            left in prop::collection::vec(prop::sample::select(vec![0, 1, 254, 255_u8]), 0..5),
            right in prop::collection::vec(prop::sample::select(vec![0, 1, 254, 255_u8]), 0..5),
            revisions in any::<(u64, u64)>(),
        ) {
            let (at, other) = (Revision(revisions.0), Revision(revisions.1));
            prop_assert_eq!((&left, at).cmp(&(&right, other)), version_key(&left, at).cmp(&version_key(&right, other)));
            prop_assert_eq!(left < right, version_key(&left, at) < version_bound(&right));
            let row = version_key(&left, at);
            let (escaped, revision) = split_version_key(&row).unwrap();
            prop_assert_eq!((unescape_version_key(escaped).unwrap().to_vec(), revision), (left, at));
        }
    }
}
