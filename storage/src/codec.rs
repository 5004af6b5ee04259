//! The one binary encoding of records: a version byte, the bincode of the value, a checksum.
//!
//! ```text
//! version (1 byte) | bincode, standard configuration | low 32 bits of XXH3 of everything before (4 bytes, big-endian)
//! ```
//!
//! bincode is not self-describing: a struct's fields and an enum's variants are known by their order alone. Whoever changes
//! an encoded type raises [`VERSION`] (the golden bytes in the tests show the change).

use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::xxh3_64;

/// The version that this code writes, and the newest that it reads.
pub const VERSION: u8 = 1;
/// No record may be longer, encoded.
pub const LIMIT_BYTES: usize = 64 << 20;

const CHECKSUM_BYTES: usize = 4;

/// bincode counts what it reads against a limit, so that a malformed length cannot make it allocate without end; it counts a number in
/// full, however few bytes the number takes. So a record may count for so many times its length.
const COUNTED: usize = 8;
/// Records up to these lengths have limits of their own: a short one has no business with much memory.
const SHORT_BYTES: usize = 64 << 10;
const MEDIUM_BYTES: usize = 4 << 20;

/// Why a value could not be encoded or decoded.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    #[error("the record is empty or cut off")]
    Truncated,
    #[error("the record was written by a newer version of trireme: its version is {found}, this version knows up to {supported}")]
    NewerVersion { found: u8, supported: u8 },
    #[error("the record's checksum is wrong")]
    Checksum,
    #[error("the record is longer than {LIMIT_BYTES} bytes")]
    TooLong,
    #[error("the record is malformed: {0}")]
    Malformed(String),
}

/// Decodes a value whose parts count for at most `LIMIT` bytes, and says how many bytes of the payload it took.
fn decode_within<T: DeserializeOwned, const LIMIT: usize>(payload: &[u8]) -> Result<(T, usize), CodecError> {
    bincode::serde::decode_from_slice(payload, bincode::config::standard().with_limit::<LIMIT>())
        .map_err(|error| CodecError::Malformed(error.to_string()))
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    (xxh3_64(bytes) as u32).to_be_bytes()
}

/// Encodes a value.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut record = vec![VERSION];
    bincode::serde::encode_into_std_write(value, &mut record, bincode::config::standard())
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    if record.len() + CHECKSUM_BYTES > LIMIT_BYTES {
        return Err(CodecError::TooLong);
    }
    let sum = checksum(&record);
    record.extend_from_slice(&sum);
    Ok(record)
}

/// Checks the version and the checksum of a record, whatever it holds.
pub fn check(record: &[u8]) -> Result<(), CodecError> {
    payload(record).map(drop)
}

/// What stands between the version and the checksum of a record, both of which are right.
fn payload(record: &[u8]) -> Result<&[u8], CodecError> {
    let &version = record.first().ok_or(CodecError::Truncated)?;
    if version > VERSION {
        return Err(CodecError::NewerVersion { found: version, supported: VERSION });
    }
    if version != VERSION {
        return Err(CodecError::Malformed(format!("there is no version {version}")));
    }
    if record.len() > LIMIT_BYTES {
        return Err(CodecError::TooLong);
    }
    let (covered, sum) = record.split_last_chunk::<CHECKSUM_BYTES>().ok_or(CodecError::Truncated)?;
    if covered.is_empty() {
        return Err(CodecError::Truncated);
    }
    if checksum(covered) != *sum {
        return Err(CodecError::Checksum);
    }
    Ok(&covered[1..])
}

/// Decodes a value; all of `record` must belong to it.
pub fn decode<T: DeserializeOwned>(record: &[u8]) -> Result<T, CodecError> {
    let payload = payload(record)?;
    let (value, used) = if payload.len() <= SHORT_BYTES {
        decode_within::<T, { COUNTED * SHORT_BYTES }>(payload)?
    } else if payload.len() <= MEDIUM_BYTES {
        decode_within::<T, { COUNTED * MEDIUM_BYTES }>(payload)?
    } else {
        decode_within::<T, { COUNTED * LIMIT_BYTES }>(payload)?
    };
    if used != payload.len() {
        return Err(CodecError::Malformed(format!("{} bytes are left over", payload.len() - used)));
    }
    Ok(value)
}
