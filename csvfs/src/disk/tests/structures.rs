//! Structures as bytes: fixed by golden bytes, and never a panic on arbitrary ones.

use std::time::Duration;

use lockd::clock::WallTime;
use lockd::ids::{Epoch, VolumeId};
use proptest::prelude::*;

use super::*;
use crate::disk::claim::{Claim, ClaimState, ClusterMark};
use crate::disk::features::Features;
use crate::disk::frame::{self, Damage};
use crate::disk::layout;
use crate::disk::map::{ChunkMap, ChunkUse};
use crate::disk::superblock::{Side, Superblock};

const VOLUME: VolumeId = VolumeId(*b"0123456789abcdef");

fn label() -> Label {
    Label {
        uuid: VOLUME,
        created: WallTime(0x0102_0304_0506_0708),
        lun_size: 0x4000_0000,
        chunk_size: MIB,
        window: Duration::from_millis(10_000),
        quiesce: Duration::from_millis(9_000),
        features: Features { compatible: 1, ro_compatible: 2, incompatible: 3 },
        hash_key: *b"SipHashKeySipHas",
        name: "vms".to_owned(),
    }
}

fn superblock() -> Superblock {
    Superblock {
        epoch: Epoch(0x1122),
        side: Side::B,
        clean: true,
        features: Features { compatible: 1, ro_compatible: 2, incompatible: 3 },
        size: 0x4000_0000,
        written: WallTime(5),
        client: ClientId(0x77),
    }
}

fn claim() -> Claim {
    Claim {
        client: ClientId(0x77),
        epoch: Epoch(0x1122),
        counter: 3,
        state: ClaimState::Writing,
        pid: 4711,
        started: WallTime(6),
        beaten: WallTime(7),
        window: Duration::from_millis(10_000),
        host: "n1".to_owned(),
        cluster: None,
        is_member: false,
    }
}

fn member() -> Claim {
    let cluster = Some(ClusterMark { id: *b"abcdefghijklmnop", name: "lab".to_owned() });
    Claim { cluster, is_member: true, ..claim() }
}

fn map() -> ChunkMap {
    let mut map = ChunkMap::new(1024, Superblock { clean: false, ..superblock() });
    map.epoch = Epoch(0x1123);
    map.generation = 9;
    map.lens = [0x2000, 0x3000];
    map.assign(1, ChunkUse::Store(Side::A, 0));
    map.assign(2, ChunkUse::Store(Side::B, 0x0102));
    map.assign(3, ChunkUse::Spare);
    map.assign(4, ChunkUse::Reserve);
    map.assign(5, ChunkUse::Spent);
    map
}

/// The bytes that are not zero, as offset and hexadecimal text of each run.
fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut rows: Vec<(usize, String)> = Vec::new();
    for (at, row) in bytes.chunks(16).enumerate() {
        if row.iter().any(|byte| *byte != 0) {
            rows.push((at * 16, row.iter().map(|byte| format!("{byte:02x}")).collect()));
        }
    }
    for (at, row) in rows {
        out.push_str(&format!("{at:04x} {row}\n"));
    }
    out
}

#[test]
fn golden_bytes() {
    assert_eq!(dump(&label().encode()), LABEL);
    assert_eq!(dump(&superblock().encode(VOLUME)), SUPERBLOCK);
    assert_eq!(dump(&claim().encode(VOLUME)), CLAIM);
    assert_eq!(dump(&member().encode(VOLUME)), MEMBER);
    let bytes = map().encode(VOLUME);
    assert_eq!(bytes.len(), 8192);
    assert_eq!(dump(&bytes), MAP);
}

const LABEL: &str = "\
0000 43535646534c424c8840986901000000
0010 30313233343536373839616263646566
0020 08070605040302010000004000000000
0030 00100000000100001027000028230000
0040 01000000000000000200000000000000
0050 0300000000000000536970486173684b
0060 65795369704861730800000008000000
0070 10000000400000005000000041000000
0080 9100000041000000766d730000000000
";
const SUPERBLOCK: &str = "\
0000 4353564653535550a16617ae01000000
0010 30313233343536373839616263646566
0020 22110000000000000101000000000000
0030 01000000000000000200000000000000
0040 03000000000000000000004000000000
0050 05000000000000007700000000000000
";
const CLAIM: &str = "\
0000 4353564653434c4d66a29ce501000000
0010 30313233343536373839616263646566
0020 77000000000000002211000000000000
0030 03000000000000000200000067120000
0040 06000000000000000700000000000000
0050 10270000000000006e31000000000000
";
const MEMBER: &str = "\
0000 4353564653434c4d33c8cf4401000000
0010 30313233343536373839616263646566
0020 77000000000000002211000000000000
0030 03000000000000000201000067120000
0040 06000000000000000700000000000000
0050 10270000000000006e31000000000000
0090 00000000000000006162636465666768
00a0 696a6b6c6d6e6f706c61620000000000
";
const MAP: &str = "\
0000 43535646534d415010fb129d01000000
0010 30313233343536373839616263646566
0020 23110000000000000900000000000000
0030 22110000000000007700000000000000
0040 00000040000000000100000000000000
0050 02000000000000000300000000000000
0060 05000000000000000100000000040000
0070 00200000000000000030000000000000
1000 01000000020000000300020104000000
1010 05000000060000000000000000000000
";

#[test]
fn what_was_written_is_read() {
    assert_eq!(Label::decode(&label().encode()), Ok(label()));
    assert_eq!(label().encode()[16..32], VOLUME.0, "the redirector looks here");
    assert_eq!(layout::UUID_AT, 16..32);
    assert_eq!(Superblock::decode(&superblock().encode(VOLUME), VOLUME), Ok(superblock()));
    assert_eq!(Claim::decode(&claim().encode(VOLUME), VOLUME), Ok(claim()));
    assert_eq!(Claim::decode(&member().encode(VOLUME), VOLUME), Ok(member()));
    let mut region = map().encode(VOLUME);
    region.resize(usize::try_from(layout::MAP_BLOCKS).unwrap() * 4096, 0xee);
    assert_eq!(ChunkMap::decode(&region, VOLUME), Ok(map()), "what lies behind the map does not matter");
}

#[test]
fn what_matters_lies_in_one_sector() {
    for bytes in
        [label().encode(), superblock().encode(VOLUME), claim().encode(VOLUME), member().encode(VOLUME)]
    {
        assert!(bytes[512..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn structures_of_others_and_of_later_programs_are_told_apart() {
    let other = VolumeId([9; 16]);
    assert_eq!(Superblock::decode(&superblock().encode(other), VOLUME), Err(Damage::Foreign(other)));
    assert_eq!(Claim::decode(&claim().encode(other), VOLUME), Err(Damage::Foreign(other)));
    assert_eq!(ChunkMap::decode(&map().encode(other), VOLUME), Err(Damage::Foreign(other)));
    let mut later = label().encode();
    later[12] = 2;
    frame::seal(&mut later);
    assert_eq!(Label::decode(&later), Err(Damage::Version(2)));
    assert_eq!(Label::decode(&[0; 4096]), Err(Damage::Blank));
}

#[test]
fn the_largest_lun_of_each_chunk_size_fits_the_map() {
    assert_eq!(layout::chunk_size(layout::LUN_MIN), MIB);
    assert_eq!(layout::chunk_size(16 << 30), MIB);
    assert_eq!(layout::chunk_size((16 << 30) + 1), 2 * MIB);
    assert_eq!(layout::chunk_size(1 << 40), 64 * MIB);
    let most = usize::try_from(layout::CHUNKS_MAX).unwrap();
    assert!(ChunkMap::encoded_len(most) as u64 <= layout::MAP_BLOCKS * 4096);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn decoders_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
        // As it is, and with each structure's frame made right, so that the values behind it are reached.
        for magic in [None, Some(b"CSVFSLBL"), Some(b"CSVFSSUP"), Some(b"CSVFSCLM"), Some(b"CSVFSMAP")] {
            if let Some(magic) = magic && bytes.len() >= 128 {
                bytes[..8].copy_from_slice(magic);
                bytes[12..16].copy_from_slice(&1_u32.to_le_bytes());
                bytes[16..32].copy_from_slice(&VOLUME.0);
                if magic == b"CSVFSMAP" {
                    bytes[104] &= 1;
                    let chunks = u32::try_from(bytes.len().saturating_sub(4096) / 4096 * 1024).unwrap();
                    bytes[108..112].copy_from_slice(&chunks.to_le_bytes());
                    let len = ChunkMap::encoded_len(chunks as usize).min(bytes.len());
                    frame::seal(&mut bytes[..len]);
                } else {
                    frame::seal(&mut bytes);
                }
            }
            let _ = Label::decode(&bytes);
            let _ = Superblock::decode(&bytes, VOLUME);
            let _ = Claim::decode(&bytes, VOLUME);
            let _ = ChunkMap::decode(&bytes, VOLUME);
        }
    }

    #[test]
    fn maps_are_read_as_written(uses in proptest::collection::vec(0_u8..7, 63..3000)) {
        let mut map = ChunkMap::new(uses.len() + 1, superblock());
        map.sealed.clean = false;
        let mut next = [0; 2];
        for (chunk, kind) in (1..).zip(&uses) {
            let usage = match kind {
                2 | 3 => {
                    let side = if *kind == 2 { Side::A } else { Side::B };
                    let index = &mut next[usize::from(kind - 2)];
                    *index += 1 + chunk % 3;
                    ChunkUse::Store(side, *index)
                }
                4 => ChunkUse::Spare,
                5 => ChunkUse::Reserve,
                6 => ChunkUse::Spent,
                _ => ChunkUse::Data,
            };
            map.assign(chunk, usage);
        }
        let read = ChunkMap::decode(&map.encode(VOLUME), VOLUME).unwrap();
        prop_assert_eq!(read.spare(), map.spare());
        prop_assert_eq!(read.area(Side::B).collect::<Vec<_>>(), map.area(Side::B).collect::<Vec<_>>());
        prop_assert_eq!(read.encode(VOLUME), map.encode(VOLUME));
        let size = (uses.len() as u64 + 1) * MIB - 4096;
        let data: u64 = map.data_runs(MIB, size).iter().map(|run| run.len).sum();
        let chunks = (1..=uses.len()).filter(|chunk| map.usage(u32::try_from(*chunk).unwrap()) == Some(ChunkUse::Data));
        let last = u64::from(map.usage(u32::try_from(uses.len()).unwrap()) == Some(ChunkUse::Data));
        prop_assert_eq!(data, chunks.count() as u64 * 256 - last);
    }
}
