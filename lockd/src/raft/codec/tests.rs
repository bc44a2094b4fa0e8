use openraft::EntryPayload;
use proptest::prelude::*;

use super::*;

pub(in crate::raft) fn membership() -> Membership {
    let nodes = ["n1", "n2", "n3"].map(|name| name.parse::<NodeName>().unwrap());
    let configs =
        vec![nodes.iter().map(NodeName::id).collect(), nodes[..2].iter().map(NodeName::id).collect()];
    let voters = nodes.map(|name| (name.id(), Voter { name, storage: StorageId([9; 16]) }));
    Membership::new(configs, BTreeMap::from(voters))
}

fn log_id(index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(3, NodeId(0x0102)), index)
}

fn entries() -> Vec<Entry> {
    let batch = Batch {
        stamp: Stamp { base_ns: 4, time_ns: 5 },
        commands: Arc::new(vec![b"one".to_vec(), Vec::new()]),
    };
    let payloads = [EntryPayload::Blank, EntryPayload::Normal(batch), EntryPayload::Membership(membership())];
    (4..).zip(payloads).map(|(index, payload)| Entry { log_id: log_id(index), payload }).collect()
}

#[test]
fn entries_come_back() {
    for entry in entries() {
        let mut encoder = Encoder::default();
        encoder.entry(&entry);
        let mut decoder = Decoder(&encoder.0);
        assert_eq!(decoder.entry().unwrap(), entry);
        decoder.end("entry").unwrap();
        for length in 0..encoder.0.len() {
            assert!(Decoder(&encoder.0[..length]).entry().is_err(), "a part of an entry is none");
        }
    }
}

#[test]
fn golden_bytes() {
    let mut encoder = Encoder::default();
    encoder.entry(&entries()[1]);
    encoder.vote(&Vote::new_committed(1, NodeId(2)));
    encoder.name(&"n1".parse().unwrap());
    #[rustfmt::skip]
    let expected = [
        3, 0, 0, 0, 0, 0, 0, 0,  2, 1, 0, 0, 0, 0, 0, 0,  5, 0, 0, 0, 0, 0, 0, 0,
        1,  4, 0, 0, 0, 0, 0, 0, 0,  5, 0, 0, 0, 0, 0, 0, 0,  2, 0, 0, 0,
        3, 0, 0, 0, b'o', b'n', b'e',  0, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0,  2, 0, 0, 0, 0, 0, 0, 0,  1,
        2, b'n', b'1',
    ];
    assert_eq!(encoder.0, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3_u8) {
        let mut framed = vec![0; 24];
        framed.push(kind);
        framed.extend_from_slice(&bytes);
        let _ = Decoder(&framed).entry();
        let _ = Decoder(&bytes).stored_membership();
        let _ = Decoder(&bytes).vote();
    }
}
