//! The encoding of records: what it is, byte for byte, and what it refuses.

use bytes::Bytes;
use proptest::prelude::*;
use trireme_storage::{
    codec::{self, CodecError},
    command::{Command, CommandReply, CommandResult, Lease},
    model::{
        Compare, CompareOrder, CompareTarget, KeyRange, KeyValue, LeaseId, Operation, OperationResult, PutLease, PutValue,
        RangeRequest, RangeResult, Revision, Term, Transaction, TransactionResult,
    },
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

proptest! {
    #[test]
    fn commands_come_back(command in model::command()) {
        prop_assert_eq!(codec::decode::<Command>(&codec::encode(&command).unwrap()).unwrap(), command);
    }

    #[test]
    fn damage_is_refused(command in model::command(), position in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<prop::sample::Index>()) {
        let record = codec::encode(&command).unwrap();
        let mut flipped = record.clone();
        flipped[position.index(record.len())] ^= 1 << bit;
        prop_assert!(codec::decode::<Command>(&flipped).is_err());
        prop_assert!(codec::decode::<Command>(&record[..cut.index(record.len())]).is_err());
        let mut longer = record;
        longer.push(0);
        prop_assert!(codec::decode::<Command>(&longer).is_err());
    }

    #[test]
    fn noise_is_refused_without_harm(mut noise in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(version) = noise.first_mut() {
            *version = codec::VERSION;
        }
        prop_assert!(codec::decode::<Command>(&noise).is_err());
    }
}
