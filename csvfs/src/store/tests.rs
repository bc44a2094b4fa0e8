use redb::Database;
use redb::backends::InMemoryBackend;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::cookie::HashKey;
use super::record::{
    ClientRecord, EntryRecord, ExtentRecord, HeldRecord, InodeRecord, SharedRecord, SlotRecord, Why,
};
use super::*;
use crate::types::{Extent, ExtentState, FileBlock, Ino, Kind, LunBlock, Run, Timestamp};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn records_are_these_bytes() {
    let mut inode = InodeRecord::new(Kind::CharDevice, 0o4755, 1000, 100, Timestamp(0x1122_3344_5566_7788));
    inode.rdev = U32::new(0x0105);
    inode.size = U64::new(10);
    inode.blocks = U64::new(3);
    inode.version = U64::new(7);
    inode.parent = U64::new(9);
    inode.flags = U32::new(record::XATTRS);
    let time = "8877665544332211";
    assert_eq!(
        hex(inode.as_bytes()),
        format!(
            "0600ed0901000000e80300006400000005010000040000000a000000000000000300000000000000{time}{time}{time}{time}\
             070000000000000009000000000000000000000000000000"
        )
    );
    // A seal that a later program does not see is no seal.
    inode.set(record::SEALED, true);
    assert_eq!(hex(&inode.as_bytes()[20..24]), "14000000", "sealed, with extended attributes");
    inode.set(record::SEALED, false);
    assert_eq!(hex(&inode.as_bytes()[20..24]), "04000000");
    assert_eq!(hex(&EntryRecord::value(Ino(258), Kind::File, b"ab")), "0201000000000000016162");
    let extent =
        Extent { file: FileBlock(1), lun: LunBlock(2), len: 3, state: ExtentState::Written, shared: true };
    let record = ExtentRecord::of(&extent);
    assert_eq!(hex(record.as_bytes()), "020000000000000003000000000000000300000000000000");
    assert_eq!(record.at(FileBlock(1)), extent);
    let shared = SharedRecord { len: U64::new(5), count: U64::new(2) };
    assert_eq!(hex(shared.as_bytes()), "05000000000000000200000000000000");
    assert_eq!(
        hex(HeldRecord::new(5, Why::Ghost, 6).as_bytes()),
        "050000000000000006000000000000000300000000000000"
    );
    let client = ClientRecord { session: U64::new(4), flags: U32::new(1), zero: U32::ZERO };
    assert_eq!(hex(client.as_bytes()), "04000000000000000100000000000000");
    assert_eq!(hex(&SlotRecord::value(3, b"x")), "030000000000000078");
    assert_eq!(size_of::<Counters>(), 96);
}

#[test]
fn cookies_are_positive_reserved_ones_are_left_out_and_the_key_matters() {
    let key = HashKey([7; 16]);
    let cookies = key.cookies(b"name");
    assert_eq!(*cookies.end() - *cookies.start(), 255);
    assert!(*cookies.start() > 2 && *cookies.end() <= i64::MAX as u64);
    assert_eq!(*cookies.start(), HashKey([7; 16]).cookies(b"name").start().to_owned());
    assert_ne!(cookies, HashKey([8; 16]).cookies(b"name"));
}

#[test]
fn pairs_order_by_their_halves() {
    assert!(pair(1, u64::MAX) < pair(2, 0));
    assert_eq!((high(pair(3, 4)), low(pair(3, 4))), (3, 4));
}

#[test]
fn a_new_store_has_a_root_and_its_blocks() {
    let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    let free = [Run { start: LunBlock(10), len: 90 }, Run { start: LunBlock(200), len: 10 }];
    initialise(&database, &free, Timestamp(5)).unwrap();
    let snapshot = Snapshot::take(&database).unwrap();
    assert_eq!(snapshot.counters.free.get(), 100);
    let value = snapshot.inodes.get(1).unwrap().unwrap();
    let (root, tail) = InodeRecord::parse(Ino::ROOT, value.value()).unwrap();
    assert_eq!((root.kind(), root.nlink.get(), root.permissions()), (Kind::Directory, 2, 0o755));
    assert!(tail.is_empty());
    assert_eq!(dump(&database).unwrap().len(), 4);
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_or_read_without_a_panic(bytes: Vec<u8>) {
        let _ = InodeRecord::parse(Ino(2), &bytes);
        let _ = EntryRecord::parse(&bytes);
        let _ = SlotRecord::parse(&bytes);
    }
}

#[test]
fn a_bulk_of_files_is_a_sound_store() {
    let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    let region = [Run { start: LunBlock(10), len: 5000 }];
    initialise(&database, &region, Timestamp(5)).unwrap();
    let key = HashKey([7; 16]);
    bulk::load(&database, &key, 2500, Timestamp(6)).unwrap();
    let findings = check::check(&database, &key, &region, &mut |_, _, _| {}).unwrap();
    assert!(findings.is_clean(), "{findings}");
    assert!(bulk::load(&database, &key, 2501, Timestamp(6)).is_err());
}

/// Prints figures: `cargo test --release -p csvfs figures -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
fn figures_of_a_check_of_a_million_files() {
    let place = tempfile::tempdir().unwrap();
    let database = Database::builder().set_cache_size(64 << 20).create(place.path().join("store")).unwrap();
    let region = [Run { start: LunBlock(10), len: 1 << 21 }];
    initialise(&database, &region, Timestamp(5)).unwrap();
    let key = HashKey([7; 16]);
    let start = std::time::Instant::now();
    bulk::load(&database, &key, 1_000_000, Timestamp(6)).unwrap();
    println!("loaded in {:.1?}", start.elapsed());
    let start = std::time::Instant::now();
    let findings = check::check(&database, &key, &region, &mut |_, _, _| {}).unwrap();
    println!("checked in {:.1?}", start.elapsed());
    assert!(findings.is_clean());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap());
}

#[test]
fn a_record_of_the_journal_does_again_what_was_done() {
    let make = || {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        initialise(&database, &[Run { start: LunBlock(100), len: 50 }], Timestamp(1)).unwrap();
        database
    };
    let (first, second) = (make(), make());
    let transaction = first.begin_write().unwrap();
    let mut tables = Tables::logged(&transaction);
    tables.free_mut().unwrap().insert(110, 3).unwrap();
    tables.free_mut().unwrap().insert(120, 4).unwrap();
    tables.free_mut().unwrap().remove(110).unwrap();
    tables.xattrs_mut().unwrap().insert(xattr_key(1, b"user.a").as_slice(), &b"b"[..]).unwrap();
    tables.slots_mut().unwrap().insert(pair(1, 2), &[][..]).unwrap();
    let log = tables.take_log();
    drop(tables);
    transaction.commit().unwrap();
    // Also twice: rows are put as a whole.
    for _ in 0..2 {
        let transaction = second.begin_write().unwrap();
        redo::apply(&mut Tables::of(&transaction), log.bytes()).unwrap();
        transaction.commit().unwrap();
        assert!(dump(&first).unwrap() == dump(&second).unwrap());
    }
    // Its bytes are for good.
    let mut golden = redo::Log::default();
    golden.put(4, &[1, 2], &[3]);
    golden.remove(6, &[7]);
    assert_eq!(hex(golden.bytes()), "0401020001000000010203060001000000000007");
    for name in ["inodes", "entries", "extents", "free", "shared", "xattrs", "orphans", "reserves", "pending"]
    {
        assert!(Tables::number(name).is_some(), "{name}");
    }
    assert_eq!((Tables::number("free"), Tables::number("counters")), (Some(4), Some(14)));
}

#[test]
fn arbitrary_bytes_are_no_record() {
    let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    initialise(&database, &[Run { start: LunBlock(100), len: 50 }], Timestamp(1)).unwrap();
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut refused = 0;
    for _ in 0..2000 {
        let mut log = redo::Log::default();
        let (key, value) = (next().to_le_bytes(), next().to_le_bytes());
        let len = usize::try_from(next() % 9).unwrap();
        log.put(u8::try_from(next() % 17).unwrap(), &key[..len], &value);
        let mut bytes = log.bytes().to_vec();
        match next() % 3 {
            0 => bytes.truncate(usize::try_from(next() % 20).unwrap()),
            1 => {
                let place = usize::try_from(next()).unwrap_or(0) % bytes.len();
                bytes[place] = u8::try_from(next() % 256).unwrap();
            }
            _ => {}
        }
        let transaction = database.begin_write().unwrap();
        refused += u32::from(redo::apply(&mut Tables::of(&transaction), &bytes).is_err());
        transaction.abort().unwrap();
    }
    assert!((1000..2000).contains(&refused), "{refused}");
}
