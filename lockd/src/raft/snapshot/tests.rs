use proptest::prelude::*;

use super::*;
use crate::ids::NodeId;
use crate::raft::disk::faulty::{Crash, FaultyDisk};
use crate::raft::types::LogId;

fn meta(index: u64) -> SnapshotMeta {
    let last = LogId::new(openraft::CommittedLeaderId::new(1, NodeId(2)), index);
    SnapshotMeta { last_log_id: Some(last), snapshot_id: format!("1-2-{index}"), ..SnapshotMeta::default() }
}

#[test]
fn the_newest_comes_back_whole_after_a_crash_at_any_point() {
    for fuel in 0..16 {
        for seed in 0..4 {
            let disk = FaultyDisk::default();
            write(&disk, &meta(5), b"old").unwrap();
            disk.crash_after(fuel);
            let outcome = write(&disk, &meta(9), &[1; 5000]);
            let crash = if seed == 0 { Crash::Killed } else { Crash::Power(seed) };
            let (found, contents) = read_newest(&disk.reboot(crash)).unwrap().unwrap();
            let new = found == meta(9);
            assert_eq!(contents, if new { vec![1; 5000] } else { b"old".to_vec() });
            assert!(new || outcome.is_err());
        }
    }
}

#[test]
fn a_flipped_bit_is_found() {
    let disk = FaultyDisk::default();
    write(&disk, &meta(5), b"contents").unwrap();
    let name = disk.names(PREFIX).remove(0);
    for offset in 0..disk.read(&name).unwrap().len() {
        let flipped = disk.reboot(Crash::Killed);
        flipped.flip(&name, offset);
        let error = read_newest(&flipped).unwrap_err();
        assert!(matches!(error, StartError::Damaged { .. } | StartError::Version { .. }), "{error}");
    }
}

#[test]
fn golden_bytes() {
    let bytes = encode(&meta(5), b"x");
    assert_eq!(&bytes[..12], b"CSVSNAPS\x01\0\0\0");
    assert_eq!(bytes.len(), 16 + 25 + 1 + 2 + 4 + 5 + 4 + 1);
    assert_eq!(crc32fast::hash(&bytes), 0xe907_e764);
    let contents = Contents { time_ns: 1, number: 2, machine: vec![3] };
    assert_eq!(Contents::decode(&contents.encode()).unwrap(), contents);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&VERSION.to_le_bytes());
        file.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        file.extend_from_slice(&bytes);
        let _ = decode(&file);
        let _ = decode(&bytes);
        let _ = Contents::decode(&bytes);
    }
}
