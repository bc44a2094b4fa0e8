use proptest::prelude::*;

use super::super::*;
use super::cluster::*;
use crate::ids::{Epoch, Sequence, SlotId};
use crate::rules::Rules;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A state that has something of everything.
fn rich() -> Cluster {
    let mut cluster = Cluster::new();
    let (first, a) = cluster.mounted("n1");
    let (second, b) = cluster.mounted("n2");
    let (third, _) = cluster.mounted("n3");
    let host = cluster.join(first, ClientKind::Vmhost);
    let epoch = cluster.acquire(a, &file(1));
    cluster.acquire(host, &vm("web"));
    cluster.lock(a, 1, 1, 0, 9);
    cluster.wait_for(b, 1, 1, 5, 5);
    let moves = vec![moving(&file(1), epoch, a, b)];
    cluster.ask(a, Operation::Transfer { cookie: Cookie(9), moves, escrow: true, pinned: false });
    cluster.acquire(a, &file(2));
    cluster.end(first);
    let target = BreakTarget::Resource(file(2));
    let (confirmed_node, operator) = ("n1".to_owned(), "root".to_owned());
    cluster.ask(b, Operation::Break { target, confirmed_node, operator, wall_ns: -5 });
    cluster.report(Victim::Session(first), third, Report::Drained);
    cluster.done(Command::Configure(Settings { lease_ns: 9 * SECOND_NS, grace_ns: 1 }));
    let _ = second;
    cluster
}

#[test]
fn the_bytes_of_a_command_stay() {
    let moves = vec![moving(&file(300), Epoch(70_000), crate::ids::ClientId(1), crate::ids::ClientId(2))];
    let operation = Operation::Transfer { cookie: Cookie(5), moves, escrow: true, pinned: false };
    let command = Command::Client {
        client: crate::ids::ClientId(1),
        slot: SlotId(3),
        sequence: Sequence(4),
        operation,
    };
    let golden = "01080103040205010107070707070707070707070707070707fb2c01fc7011010001020100";
    assert_eq!(hex(&encode_command(&command).unwrap()), golden);
    let reply = Reply::Refused(Refusal::NothingToMove);
    assert_eq!(hex(&encode_reply(&reply).unwrap()), "010a0f");
}

#[test]
fn the_bytes_of_a_snapshot_stay() {
    let mut cluster = Cluster::new();
    let (_, a) = cluster.mounted("n1");
    cluster.acquire(a, &file(1));
    cluster.lock(a, 1, 1, 0, 9);
    let golden = "435356535441544501000000830ba5770c01000000000000fc00ca9a3bfd0050d6dc01000000fd00d6117e0300000001\
        010101026e3101010101026e31fc00ca9a3b000101010200070707070707070707070707070707072afc00ca9a3b0001\
        0101000102040107000100020707070707070707070707070707070703766d7301fd00e40b5402000000080808080808\
        08080808080808080808056f7468657201fd00e40b540200000001010707070707070707070707070707070701010100\
        01fc00ca9a3b00fc00000100fb0004000101010707070707070707070707070707070701010100010100090101010000\
        0000030301000401026e310200060101030002010707070707070707070707070707070701010101026e310001fc00ca\
        9a3b0000";
    assert_eq!(hex(&cluster.state.snapshot().unwrap()), golden);
    let rich = rich().state.snapshot().unwrap();
    assert_eq!(
        (rich.len(), crc32fast::hash(&rich)),
        (699, 2_161_132_922),
        "what this release writes the next one reads"
    );
}

#[test]
fn a_snapshot_is_read_back_as_it_was() {
    let cluster = rich();
    let bytes = cluster.state.snapshot().unwrap();
    assert_eq!(State::restore(&bytes), Ok(cluster.state));
    assert_eq!(State::restore(&[]), Err(SnapshotError::NotASnapshot(0)));
    let mut other = bytes.clone();
    other[8] = 9;
    assert_eq!(State::restore(&other), Err(SnapshotError::Version(9)));
    for cut in [24, 100, bytes.len() - 1] {
        assert!(matches!(State::restore(&bytes[..cut]), Err(SnapshotError::Damaged(_))));
    }
}

#[test]
fn encoded_commands_are_applied() {
    let mut state = State::new();
    let command = Command::OpenSession { node: node("n1"), nonce: Nonce(1) };
    let (reply, events) = state.apply_encoded(Rules::all(), 1, &encode_command(&command).unwrap()).unwrap();
    assert!(matches!(decode_reply(&reply), Ok(Reply::Session(_))));
    assert_eq!(events.len(), 1);
    let before = state.clone();
    assert_eq!(state.apply_encoded(Rules::all(), 2, &[9, 1, 2]), Err(CodecError::Version(9)));
    assert!(state.apply_encoded(Rules::all(), 2, &[1, 200]).is_err());
    assert_eq!(state, before);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_command(&bytes);
        let _ = decode_reply(&bytes);
        let _ = State::restore(&bytes);
        let mut versioned = vec![1];
        versioned.extend_from_slice(&bytes);
        if let Ok(command) = decode_command(&versioned) {
            let mut cluster = rich();
            cluster.apply(&command);
        }
    }

    #[test]
    fn a_changed_snapshot_is_refused_or_sound(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = rich().state.snapshot().unwrap();
        let header = 24;
        for (at, value) in changes {
            let at = header + at.index(bytes.len() - header);
            bytes[at] = value;
        }
        let crc = crc32fast::hash(&bytes[header..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        if let Ok(mut state) = State::restore(&bytes) {
            state.check().unwrap();
            // It can be lived with.
            state.apply(Rules::all(), u64::MAX, &Command::Tick);
            state.check().unwrap();
        }
    }
}
