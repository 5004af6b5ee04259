//! The encoding of records: what it is, byte for byte, and what it refuses.

use bytes::Bytes;
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use trireme_storage::{
    codec::{self, CodecError},
    command::{Command, CommandReply, CommandResult, Lease},
    model::{
        Compare, CompareOrder, CompareTarget, KeyRange, KeyValue, LeaseId, Operation, OperationResult, PutLease, PutValue,
        RangeRequest, RangeResult, Revision, Term, Transaction, TransactionResult,
    },
    snapshot::{SnapshotFile, SnapshotManifest},
    store::StoreError,
};

use crate::model;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn every_kind_of_command() -> Vec<Command> {
    let range = KeyRange::Span { start: Bytes::from_static(b"a"), end: Bytes::from_static(b"b") };
    let compare = |target, order| Compare { range: KeyRange::One(Bytes::from_static(b"k")), target, order };
    let transaction = Transaction {
        compares: vec![
            compare(CompareTarget::Version(1), CompareOrder::Equal),
            compare(CompareTarget::CreateRevision(Revision(2)), CompareOrder::NotEqual),
            compare(CompareTarget::ModRevision(Revision(3)), CompareOrder::Greater),
            compare(CompareTarget::Value(Bytes::from_static(b"v")), CompareOrder::Less),
            compare(CompareTarget::Lease(LeaseId(-4)), CompareOrder::Equal),
        ],
        success: vec![
            Operation::put("k", "v"),
            Operation::Put { key: "j".into(), value: PutValue::Keep, lease: PutLease::Keep, return_previous: true },
            Operation::Delete { range: range.clone(), return_previous: true },
        ],
        failure: vec![
            Operation::Range(RangeRequest::new(range).at(Revision(7)).limit(300)),
            Operation::Transaction(Box::default()),
        ],
        fence: Some(Term(9)),
    };
    vec![
        Command::Transact(transaction),
        Command::Compact(Revision(70_000)),
        Command::LeaseGrant { id: LeaseId(1), ttl_seconds: 15, now_ms: 1_700_000_000_000 },
        Command::LeaseRevoke { id: LeaseId(2) },
        Command::LeaseKeepAlive { id: LeaseId(3), now_ms: 5 },
        Command::LeaseExpire { ids: vec![LeaseId(4), LeaseId(5)], now_ms: 6 },
    ]
}

fn every_kind_of_result() -> Vec<CommandResult> {
    let key_value = KeyValue {
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v"),
        create_revision: Revision(1),
        mod_revision: Revision(2),
        version: 2,
        lease: LeaseId(3),
    };
    let range = RangeResult { key_values: vec![key_value.clone()], count: 2, more: true, revision: Revision(2) };
    let lease = Lease { id: LeaseId(1), ttl_seconds: 2, deadline_ms: 3 };
    vec![
        Ok(CommandReply::Transaction(TransactionResult {
            succeeded: true,
            revision: Revision(2),
            responses: vec![
                OperationResult::Put { previous: Some(key_value.clone()) },
                OperationResult::Delete { deleted: 1, previous: vec![key_value] },
                OperationResult::Range(range),
                OperationResult::Transaction(TransactionResult {
                    succeeded: false,
                    revision: Revision(2),
                    responses: Vec::new(),
                }),
            ],
        })),
        Ok(CommandReply::Compacted),
        Ok(CommandReply::LeaseGranted(lease)),
        Ok(CommandReply::LeaseRevoked { revision: Revision(4) }),
        Ok(CommandReply::LeaseKeptAlive(lease)),
        Ok(CommandReply::LeasesExpired { ids: vec![LeaseId(1)], revision: Revision(5) }),
        Err(StoreError::Compacted { requested: Revision(1), compacted: Revision(2) }),
        Err(StoreError::FutureRevision { requested: Revision(2), current: Revision(1) }),
        Err(StoreError::Fenced { stamped: Term(1), current: Term(2) }),
        Err(StoreError::InvalidTransaction("i".into())),
        Err(StoreError::Unavailable("u".into())),
        Err(StoreError::Unknown("n".into())),
        Err(StoreError::NoSpace),
        Err(StoreError::Failed("f".into())),
        Err(StoreError::LeaseNotFound(LeaseId(1))),
        Err(StoreError::LeaseExists(LeaseId(1))),
        Err(StoreError::KeyNotFound),
        Err(StoreError::DuplicateKey),
    ]
}

/// Whoever changes these bytes changes the format on disk.
#[test]
fn golden_bytes() {
    let commands: Vec<String> = every_kind_of_command().iter().map(|command| hex(&codec::encode(command).unwrap())).collect();
    let results: Vec<String> = every_kind_of_result().iter().map(|result| hex(&codec::encode(result).unwrap())).collect();
    insta::assert_snapshot!("commands", commands.join("\n"));
    insta::assert_snapshot!("results", results.join("\n"));
}

#[test]
fn every_kind_comes_back() {
    for command in every_kind_of_command() {
        assert_eq!(codec::decode::<Command>(&codec::encode(&command).unwrap()).unwrap(), command);
    }
    for result in every_kind_of_result() {
        assert_eq!(codec::decode::<CommandResult>(&codec::encode(&result).unwrap()).unwrap(), result);
    }
}

#[test]
fn a_newer_version_is_named() {
    let mut record = codec::encode(&1_u64).unwrap();
    record[0] = 2;
    assert_eq!(codec::decode::<u64>(&record), Err(CodecError::NewerVersion { found: 2, supported: 1 }));
    assert_eq!(codec::decode::<u64>(&[]), Err(CodecError::Truncated));
    record[0] = 0;
    assert!(matches!(codec::decode::<u64>(&record), Err(CodecError::Malformed(_))));
}

#[test]
fn a_record_that_is_too_long_is_refused() {
    assert_eq!(codec::encode(&vec![0_u8; codec::LIMIT_BYTES]), Err(CodecError::TooLong));
}

/// A record that is encoded can be decoded, however its bytes are counted: many small numbers take few bytes.
#[test]
fn a_long_record_of_small_numbers_comes_back() {
    let numbers = vec![1_u64; 9 << 20];
    let record = codec::encode(&numbers).unwrap();
    assert!(record.len() < 10 << 20);
    assert!(codec::decode::<Vec<u64>>(&record).unwrap() == numbers);
}

/// A record with this payload and a checksum that is right.
fn sealed(payload: &[u8]) -> Vec<u8> {
    let mut record = vec![codec::VERSION];
    record.extend_from_slice(payload);
    let sum = xxhash_rust::xxh3::xxh3_64(&record) as u32;
    record.extend_from_slice(&sum.to_be_bytes());
    record
}

/// A length that the record does not have is refused before memory is taken for it.
#[test]
fn a_short_record_claims_little_memory() {
    for length in [1_u64 << 20, 60 << 20, 1 << 40, u64::MAX] {
        let mut payload = vec![253];
        payload.extend_from_slice(&length.to_le_bytes());
        assert_eq!(codec::decode::<Bytes>(&sealed(&payload)), Err(CodecError::Malformed("LimitExceeded".into())), "{length}");
        assert!(codec::decode::<String>(&sealed(&payload)).is_err(), "{length}");
        assert!(codec::decode::<Vec<u64>>(&sealed(&payload)).is_err(), "{length}");
    }
}

fn manifest() -> impl Strategy<Value = SnapshotManifest> {
    let file = ("[a-z0-9.]{1,20}", any::<u64>(), any::<[u8; 32]>()).prop_map(|(name, size_bytes, sha256)| SnapshotFile {
        name,
        size_bytes,
        sha256,
    });
    let applied = prop::option::of(prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from));
    (prop::collection::vec(file, 0..5), applied, any::<(u64, u64)>())
        .prop_map(|(files, applied, (revision, hash))| SnapshotManifest { files, applied, revision: Revision(revision), hash })
}

/// What is done to a record.
#[derive(Clone, Debug)]
struct Damage {
    position: prop::sample::Index,
    bit: u8,
    cut: prop::sample::Index,
    /// What is written over the payload, with a checksum that is right again.
    overwritten: Vec<(prop::sample::Index, u8)>,
}

fn damage() -> impl Strategy<Value = Damage> {
    let overwritten = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    (any::<prop::sample::Index>(), 0..8_u8, any::<prop::sample::Index>(), overwritten)
        .prop_map(|(position, bit, cut, overwritten)| Damage { position, bit, cut, overwritten })
}

/// A value comes back from its record; from a damaged one it does not, nor anything else; and whatever a checksum that is right covers,
/// decoding it does no harm.
fn check_record<T>(value: &T, damage: &Damage) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let record = codec::encode(value).unwrap();
    prop_assert_eq!(&codec::decode::<T>(&record).unwrap(), value);
    let mut flipped = record.clone();
    flipped[damage.position.index(record.len())] ^= 1 << damage.bit;
    prop_assert!(codec::decode::<T>(&flipped).is_err());
    prop_assert!(codec::decode::<T>(&record[..damage.cut.index(record.len())]).is_err());
    let mut longer = record.clone();
    longer.push(0);
    prop_assert!(codec::decode::<T>(&longer).is_err());
    let mut payload = record[1..record.len() - 4].to_vec();
    for (position, byte) in &damage.overwritten {
        let position = position.index(payload.len());
        payload[position] = *byte;
    }
    if let Ok(other) = codec::decode::<T>(&sealed(&payload)) {
        prop_assert_eq!(codec::decode::<T>(&codec::encode(&other).unwrap()).unwrap(), other);
    }
    Ok(())
}

proptest! {
    #[test]
    fn commands_come_back(command in model::command(), damage in damage()) {
        check_record(&command, &damage)?;
    }

    #[test]
    fn manifests_come_back(manifest in manifest(), damage in damage()) {
        check_record(&manifest, &damage)?;
    }

    #[test]
    fn noise_is_refused_without_harm(mut noise in prop::collection::vec(any::<u8>(), 0..200)) {
        // With a checksum that is right it may be something; it does no harm.
        let _taken = codec::decode::<Command>(&sealed(&noise));
        let _taken = codec::decode::<CommandResult>(&sealed(&noise));
        let _taken = codec::decode::<SnapshotManifest>(&sealed(&noise));
        if let Some(version) = noise.first_mut() {
            *version = codec::VERSION;
        }
        prop_assert!(codec::decode::<Command>(&noise).is_err());
    }
}

proptest! {
    #![proptest_config(crate::cases(64))]

    #[test]
    fn results_come_back(batches in model::batches(), damage in damage()) {
        let mut model = model::Model::new();
        for command in batches.iter().flatten() {
            check_record(&model.apply(Term(1), command), &damage)?;
        }
    }
}
