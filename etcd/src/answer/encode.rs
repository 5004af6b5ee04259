//! A `RangeResponse` as bytes, row by row, straight from where the engine has the rows; byte for byte what `prost` makes of it.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{encode_varint, encoded_len_varint},
};
use trireme_storage::rows::Row;

use crate::{
    convert::signed,
    proto::etcdserverpb::{RangeResponse, ResponseHeader},
};

/// A DATA frame of so many bytes and its header fill one TLS record.
pub const FRAME_BYTES: usize = (16 << 10) - 9;
/// Memory is asked for in pieces of several frames.
const SLAB_BYTES: usize = 8 * FRAME_BYTES;
/// What stands before the first row is known last: gRPC's prefix (5 bytes) and the header (at most 46).
const FRONT_BYTES: usize = 64;

/// Which part of each key-value is in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    AllButValue,
}

impl Part {
    fn value<'r>(self, row: &Row<'r>) -> &'r [u8] {
        match self {
            Self::Whole => row.value,
            Self::AllButValue => &[],
        }
    }
}

// Fields of `mvccpb.KeyValue`, and `kvs` of `RangeResponse`: number and wire type.
const KVS: u8 = 2 << 3 | 2;
const KEY: u8 = 1 << 3 | 2;
const CREATE_REVISION: u8 = 2 << 3;
const MOD_REVISION: u8 = 3 << 3;
const VERSION: u8 = 4 << 3;
const VALUE: u8 = 5 << 3 | 2;
const LEASE: u8 = 6 << 3;

fn number_bytes(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + encoded_len_varint(number) }
}

fn piece_bytes(piece: &[u8]) -> usize {
    if piece.is_empty() { 0 } else { 1 + encoded_len_varint(piece.len() as u64) + piece.len() }
}

fn put_number(head: &mut impl BufMut, field: u8, number: u64) {
    if number != 0 {
        head.put_u8(field);
        encode_varint(number, head);
    }
}

/// A lease's id as it is encoded: negative numbers take ten bytes.
fn lease(row: &Row<'_>) -> u64 {
    row.lease.0.cast_unsigned()
}

/// How many bytes a row takes, without its field and length.
fn message_bytes(row: &Row<'_>, part: Part) -> usize {
    piece_bytes(row.key)
        + number_bytes(row.create_revision.0)
        + number_bytes(row.mod_revision.0)
        + number_bytes(row.version)
        + piece_bytes(part.value(row))
        + number_bytes(lease(row))
}

/// How many bytes a row takes in the answer.
pub fn row_bytes(row: &Row<'_>, part: Part) -> usize {
    let message = message_bytes(row, part);
    1 + encoded_len_varint(message as u64) + message
}

/// A part of a message, in as many frames as it takes.
#[derive(Debug, Default)]
pub struct Frames {
    full: Vec<BytesMut>,
    current: BytesMut,
    bytes: usize,
}

impl Frames {
    /// The beginning of an answer, with room for what is put before it by [`Frames::into_first`].
    pub fn first() -> Self {
        let mut current = BytesMut::with_capacity(1024);
        current.put_bytes(0, FRONT_BYTES);
        Self { full: Vec::new(), current, bytes: 0 }
    }

    /// A part that follows another one, and that will be long.
    pub fn further() -> Self {
        Self { full: Vec::new(), current: BytesMut::with_capacity(SLAB_BYTES), bytes: 0 }
    }

    /// How many bytes were put.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn put(&mut self, mut piece: &[u8]) {
        self.bytes += piece.len();
        loop {
            let room = SLAB_BYTES - self.current.len();
            if piece.len() <= room {
                self.current.extend_from_slice(piece);
                return;
            }
            let (now, later) = piece.split_at(room);
            self.current.extend_from_slice(now);
            self.full.push(std::mem::replace(&mut self.current, BytesMut::with_capacity(SLAB_BYTES)));
            piece = later;
        }
    }

    /// Puts one row, field and length included.
    pub fn put_row(&mut self, row: &Row<'_>, part: Part) {
        let mut scratch = [0; 64];
        let mut head = scratch.as_mut_slice();
        head.put_u8(KVS);
        encode_varint(message_bytes(row, part) as u64, &mut head);
        if !row.key.is_empty() {
            head.put_u8(KEY);
            encode_varint(row.key.len() as u64, &mut head);
        }
        let left = head.len();
        self.put(&scratch[..scratch.len() - left]);
        self.put(row.key);

        let mut head = scratch.as_mut_slice();
        put_number(&mut head, CREATE_REVISION, row.create_revision.0);
        put_number(&mut head, MOD_REVISION, row.mod_revision.0);
        put_number(&mut head, VERSION, row.version);
        let value = part.value(row);
        if !value.is_empty() {
            head.put_u8(VALUE);
            encode_varint(value.len() as u64, &mut head);
        }
        let left = head.len();
        self.put(&scratch[..scratch.len() - left]);
        self.put(value);
        if row.lease.0 != 0 {
            let mut head = scratch.as_mut_slice();
            put_number(&mut head, LEASE, lease(row));
            let left = head.len();
            self.put(&scratch[..scratch.len() - left]);
        }
    }

    /// Puts what follows the last row.
    pub fn put_end(&mut self, end: &[u8]) {
        self.put(end);
    }

    /// The frames of the beginning of a message of `message_bytes` bytes in all, which begins with `beginning`.
    pub fn into_first(mut self, beginning: &[u8], message_bytes: u32) -> VecDeque<Bytes> {
        let mut front = Vec::with_capacity(FRONT_BYTES);
        // Not compressed.
        front.put_u8(0);
        front.put_u32(message_bytes);
        front.put_slice(beginning);
        let begin = FRONT_BYTES - front.len();
        let slab = self.full.first_mut().unwrap_or(&mut self.current);
        slab[begin..FRONT_BYTES].copy_from_slice(&front);
        self.cut(begin)
    }

    /// The frames of a part that follows another one.
    pub fn into_further(self) -> VecDeque<Bytes> {
        self.cut(0)
    }

    fn cut(self, begin: usize) -> VecDeque<Bytes> {
        let mut frames = VecDeque::with_capacity((begin + self.bytes) / FRAME_BYTES + 2);
        let mut skipped = begin;
        for slab in self.full.into_iter().chain([self.current]) {
            let mut slab = slab.freeze().split_off(std::mem::take(&mut skipped));
            while !slab.is_empty() {
                frames.push_back(slab.split_to(slab.len().min(FRAME_BYTES)));
            }
        }
        frames
    }
}

/// How the message begins.
pub fn beginning(header: Option<ResponseHeader>) -> Vec<u8> {
    RangeResponse { header, ..RangeResponse::default() }.encode_to_vec()
}

/// What follows the last row.
pub fn end(more: bool, count: u64) -> Vec<u8> {
    RangeResponse { more, count: signed(count), ..RangeResponse::default() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use trireme_storage::model::{KeyValue, LeaseId, Revision};

    use super::*;
    use crate::convert;

    fn key_values() -> impl Strategy<Value = Vec<KeyValue>> {
        let bytes = |longest: usize| {
            (any::<u8>(), prop_oneof![0..200_usize, 0..longest]).prop_map(|(byte, length)| Bytes::from(vec![byte; length]))
        };
        let number = || prop_oneof![Just(0), 0..1000_u64, any::<u64>().prop_map(|number| number >> 1)];
        let lease = prop_oneof![Just(0), any::<i64>()];
        let key_value = (bytes(400), bytes(150_000), number(), number(), number(), lease).prop_map(
            |(key, value, create, modified, version, lease)| KeyValue {
                key,
                value,
                create_revision: Revision(create),
                mod_revision: Revision(modified),
                version,
                lease: LeaseId(lease),
            },
        );
        prop::collection::vec(key_value, 0..12)
    }

    fn joined(frames: VecDeque<Bytes>) -> Vec<u8> {
        assert!(frames.iter().all(|frame| !frame.is_empty() && frame.len() <= FRAME_BYTES));
        frames.into_iter().flatten().collect()
    }

    proptest! {
        /// The front, the rows in two parts and the end are the message that prost makes, and sizes are told before.
        #[test]
        fn the_bytes_are_those_of_prost(key_values in key_values(), split in any::<prop::sample::Index>(), values in any::<bool>(), more in any::<bool>(), count in 0..9_u64) {
            let part = if values { Part::Whole } else { Part::AllButValue };
            let header = ResponseHeader { cluster_id: u64::MAX, member_id: 2, revision: 300, raft_term: 0 };
            let kvs = key_values.iter().cloned().map(|mut key_value| {
                if part == Part::AllButValue {
                    key_value.value.clear();
                }
                convert::key_value(key_value)
            });
            let expected = RangeResponse { header: Some(header), kvs: kvs.collect(), more, count: count as i64 }.encode_to_vec();

            let (first, second) = key_values.split_at(split.index(key_values.len() + 1));
            let mut frames = Frames::first();
            first.iter().for_each(|key_value| frames.put_row(&Row::from(key_value), part));
            let mut further = Frames::further();
            second.iter().for_each(|key_value| further.put_row(&Row::from(key_value), part));
            further.put_end(&end(more, count));
            let rows: usize = key_values.iter().map(|key_value| row_bytes(&Row::from(key_value), part)).sum();
            prop_assert_eq!(frames.bytes() + further.bytes(), rows + end(more, count).len());
            prop_assert_eq!(beginning(Some(header)).len() + rows + end(more, count).len(), expected.len());

            let mut sent = joined(frames.into_first(&beginning(Some(header)), expected.len() as u32));
            sent.extend(joined(further.into_further()));
            let mut framed = vec![0];
            framed.put_u32(expected.len() as u32);
            framed.extend(expected);
            prop_assert!(sent == framed);
        }
    }
}
