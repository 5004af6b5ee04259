//! Whose data an engine holds, and in which format: checked before anything is changed.

use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, CodecError},
    engine::{Durability, Engine, EngineError, Keyspace, View, WriteBatch},
};

/// The format of the rows that this version of Trireme writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

const FORMAT_KEY: &[u8] = b"format";
const IDENTITY_KEY: &[u8] = b"identity";

/// What an engine is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    Log,
    State,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Log => "a Raft log",
            Self::State => "a state machine",
        }
    }
}

/// The format number stands first, outside the codec's versions: it must stay readable for ever.
fn encode_format(purpose: Purpose) -> Vec<u8> {
    let mut record = FORMAT.to_be_bytes().to_vec();
    record.push(match purpose {
        Purpose::Log => b'l',
        Purpose::State => b's',
    });
    record
}

/// Checks that a view holds data of this purpose in a format that this version knows. `Ok(false)`: the view is empty.
pub(crate) fn check(view: &dyn View, purpose: Purpose) -> Result<bool, EngineError> {
    let Some(record) = view.get(Keyspace::Meta, FORMAT_KEY)? else {
        return Ok(false);
    };
    let (number, rest) =
        record.split_first_chunk::<4>().ok_or_else(|| EngineError::Corruption("the format record is cut off".into()))?;
    let found = u32::from_be_bytes(*number);
    if found > FORMAT {
        return Err(EngineError::NewerFormat { found, supported: FORMAT });
    }
    let found = match rest {
        b"l" => Purpose::Log,
        b"s" => Purpose::State,
        _ => return Err(EngineError::Corruption("the format record names no known purpose".into())),
    };
    if found != purpose {
        return Err(EngineError::Foreign { found: found.name().into(), expected: purpose.name().into() });
    }
    Ok(true)
}

/// Checks the engine's format, or writes it where the engine is new.
pub(crate) fn check_or_initialize(engine: &dyn Engine, purpose: Purpose) -> Result<(), EngineError> {
    if crate::engine::read(engine, |view| check(view, purpose))? {
        return Ok(());
    }
    let mut batch = WriteBatch::new();
    batch.put(Keyspace::Meta, FORMAT_KEY, encode_format(purpose));
    engine.write(&batch, Durability::Sync)
}

/// Whose data an engine holds: what [`claim`] was given; `None` for nobody's.
pub fn identity(engine: &dyn Engine) -> Result<Option<String>, EngineError> {
    Ok(engine.get(Keyspace::Meta, IDENTITY_KEY)?.map(|found| String::from_utf8_lossy(&found).into_owned()))
}

/// Binds an engine to another store, whatever it was bound to before. Part of a batch that makes its data that store's.
pub(crate) fn put_identity(batch: &mut WriteBatch, identity: &str) {
    batch.put(Keyspace::Meta, IDENTITY_KEY, identity.as_bytes().to_vec());
}

/// Binds an engine to one store (a cluster's id, say): the first call writes `identity`, later ones check it.
///
/// # Errors
/// [`EngineError::Foreign`] when the engine belongs to another; nothing is changed then.
pub fn claim(engine: &dyn Engine, identity: &str) -> Result<(), EngineError> {
    match engine.get(Keyspace::Meta, IDENTITY_KEY)? {
        None => {
            let mut batch = WriteBatch::new();
            batch.put(Keyspace::Meta, IDENTITY_KEY, identity.as_bytes().to_vec());
            engine.write(&batch, Durability::Sync)
        }
        Some(found) if found == identity.as_bytes() => Ok(()),
        Some(found) => {
            Err(EngineError::Foreign { found: String::from_utf8_lossy(&found).into_owned(), expected: identity.to_owned() })
        }
    }
}

/// A record that cannot be decoded is corruption, unless a newer version wrote it.
pub(crate) fn decode_stored<T: serde::de::DeserializeOwned>(record: &[u8], what: &str) -> Result<T, EngineError> {
    codec::decode(record).map_err(|error| match error {
        CodecError::NewerVersion { found, supported } => {
            EngineError::NewerFormat { found: found.into(), supported: supported.into() }
        }
        other => EngineError::Corruption(format!("{what}: {other}")),
    })
}

/// Encodes a record of our own making.
pub(crate) fn encode_stored<T: Serialize>(value: &T, what: &str) -> Result<Vec<u8>, EngineError> {
    codec::encode(value).map_err(|error| EngineError::Corruption(format!("{what}: {error}")))
}
