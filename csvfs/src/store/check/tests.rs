//! Damage of each kind, put into a small volume: it is found, explained and mended.

use redb::backends::InMemoryBackend;
use redb::{Database, ReadableTable};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::*;
use crate::store::record::{
    ClientRecord, EntryRecord, ExtentRecord, HeldRecord, InodeRecord, MAYBE_SHARED, SharedRecord, WRITTEN,
    Why,
};
use crate::store::{COUNTERS_ROW, Tables, dump, initialise, low, pair, xattr_key};
use crate::types::{FileBlock, Ino, Kind, LunBlock, Timestamp};

const KEY: HashKey = HashKey([5; 16]);
const REGION: Run = Run { start: LunBlock(1000), len: 1000 };
const NOW: Timestamp = Timestamp(7);

fn entry(tables: &mut Tables<'_>, parent: u64, name: &str, ino: u64, kind: Kind) {
    let cookie = *KEY.cookies(name.as_bytes()).start();
    tables
        .entries_mut()
        .unwrap()
        .insert(pair(parent, cookie), EntryRecord::value(Ino(ino), kind, name.as_bytes()).as_slice())
        .unwrap();
}

fn inode(tables: &mut Tables<'_>, ino: u64, kind: Kind, change: impl FnOnce(&mut InodeRecord)) {
    let mut record = InodeRecord::new(kind, 0o700, 0, 0, NOW);
    if kind == Kind::Directory {
        record.nlink = U32::new(2);
        record.parent = U64::new(1);
    }
    change(&mut record);
    tables.inodes_mut().unwrap().insert(ino, record.as_bytes()).unwrap();
}

fn change(tables: &mut Tables<'_>, ino: u64, change: impl FnOnce(&mut InodeRecord)) {
    let mut record =
        InodeRecord::parse(Ino(ino), tables.inodes().unwrap().get(ino).unwrap().unwrap().value()).unwrap().0;
    change(&mut record);
    tables.inodes_mut().unwrap().insert(ino, record.as_bytes()).unwrap();
}

fn extent(lun: u64, len: u64, flags: u32) -> ExtentRecord {
    ExtentRecord { lun: U64::new(lun), len: U64::new(len), flags: U32::new(flags), zero: U32::ZERO }
}

/// `/d` (2), `/d/e` (3), `/f` (4) with blocks 1000..1010, `/g` (5) shared 1000..1005 and own 1020..1030, an open orphan
/// (6); client 1 with reserve 1100..1110; pending 1200..1210; quarantine 1300..1310; a chunk 1400..1416.
fn sound() -> Database {
    let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    initialise(&database, &[REGION], NOW).unwrap();
    edit(&database, |tables| {
        inode(tables, 2, Kind::Directory, |record| record.nlink = U32::new(3));
        inode(tables, 3, Kind::Directory, |record| record.parent = U64::new(2));
        inode(tables, 4, Kind::File, |record| record.blocks = U64::new(10));
        inode(tables, 5, Kind::File, |record| {
            record.blocks = U64::new(15);
            record.flags = U32::new(crate::store::record::XATTRS);
        });
        inode(tables, 6, Kind::File, |record| record.nlink = U32::ZERO);
        tables.orphans_mut().unwrap().insert(6, 7).unwrap();
        change(tables, 1, |record| record.nlink = U32::new(3));
        entry(tables, 1, "d", 2, Kind::Directory);
        entry(tables, 2, "e", 3, Kind::Directory);
        entry(tables, 1, "f", 4, Kind::File);
        entry(tables, 1, "g", 5, Kind::File);
        tables.extents_mut().unwrap().insert(pair(4, 0), extent(1000, 10, WRITTEN | MAYBE_SHARED)).unwrap();
        tables.extents_mut().unwrap().insert(pair(5, 0), extent(1000, 5, WRITTEN | MAYBE_SHARED)).unwrap();
        tables.extents_mut().unwrap().insert(pair(5, 7), extent(1020, 10, 0)).unwrap();
        tables
            .shared_mut()
            .unwrap()
            .insert(1000, SharedRecord { len: U64::new(5), count: U64::new(2) })
            .unwrap();
        tables.xattrs_mut().unwrap().insert(xattr_key(5, b"user.x").as_slice(), b"v".as_slice()).unwrap();
        tables.reserves_mut().unwrap().insert(pair(1, 1100), 10).unwrap();
        let client = ClientRecord { session: U64::new(1), flags: U32::ZERO, zero: U32::ZERO };
        tables.clients_mut().unwrap().insert(1, client).unwrap();
        tables.pending_mut().unwrap().insert(1200, HeldRecord::new(10, Why::Freed, 0)).unwrap();
        tables.quarantine_mut().unwrap().insert(1300, HeldRecord::new(10, Why::Ghost, 0)).unwrap();
        tables.chunks_mut().unwrap().insert(1400, 16).unwrap();
        tables.free_mut().unwrap().remove(1000).unwrap();
        let mut free = 0;
        for (start, end) in
            [(1010, 1020), (1030, 1100), (1110, 1200), (1210, 1300), (1310, 1400), (1416, 2000)]
        {
            tables.free_mut().unwrap().insert(start, end - start).unwrap();
            free += end - start;
        }
        let mut counters = tables.counters().unwrap().get(COUNTERS_ROW).unwrap().unwrap().value();
        counters.next_ino = U64::new(7);
        counters.inodes = U64::new(6);
        counters.orphans = U64::new(1);
        counters.free = U64::new(free);
        counters.reserved = U64::new(10);
        counters.pending = U64::new(10);
        counters.quarantined = U64::new(10);
        counters.metadata = U64::new(16);
        tables.counters_mut().unwrap().insert(COUNTERS_ROW, counters).unwrap();
    });
    let findings = checked(&database);
    assert!(findings.is_clean(), "{findings}");
    database
}

fn edit(database: &Database, edit: impl FnOnce(&mut Tables<'_>)) {
    let transaction = database.begin_write().unwrap();
    edit(&mut Tables::of(&transaction));
    transaction.commit().unwrap();
}

fn checked(database: &Database) -> Findings {
    check(database, &KEY, &[REGION], &mut |_, _, _| {}).unwrap()
}

/// Damages a sound volume; the damage is found, told in these words among others, and mended.
fn damaged(words: &[&str], damage: impl FnOnce(&mut Tables<'_>)) -> Database {
    let database = sound();
    edit(&database, damage);
    let findings = checked(&database);
    let told = findings.to_string();
    for words in words {
        assert!(told.contains(words), "{words:?} is not in:\n{told}");
    }
    let repair = repair(&database, &KEY, &[REGION], NOW, &mut |_, _, _| {}).unwrap();
    assert!(repair.left.is_clean(), "left after the repair:\n{}", repair.left);
    assert!(!repair.mended.is_clean());
    assert!(checked(&database).is_clean());
    database
}

/// The inode that a path names.
fn find(database: &Database, path: &[&str]) -> Option<u64> {
    let snapshot = Snapshot::take(database).unwrap();
    path.iter().try_fold(1, |parent, name| {
        let cookies = KEY.cookies(name.as_bytes());
        let range = pair(parent, *cookies.start())..=pair(parent, *cookies.end());

        snapshot.entries.range(range).unwrap().find_map(|row| {
            let (ino, _, found) = EntryRecord::parse(row.as_ref().unwrap().1.value())
                .map(|(a, b, c)| (a, b, c.to_vec()))
                .unwrap();
            (found == name.as_bytes()).then_some(ino.0)
        })
    })
}

#[test]
fn a_sound_volume_is_left_alone() {
    let database = sound();
    let before = dump(&database).unwrap();
    let repair = repair(&database, &KEY, &[REGION], NOW, &mut |_, _, _| {}).unwrap();
    assert_eq!(repair, Repair::default());
    assert_eq!(dump(&database).unwrap(), before);
}

#[test]
fn wrong_numbers_of_links() {
    damaged(
        &["inode 4 says that it has 9 links, but it has 1", "inode 2 says that it has 2 links, but it has 3"],
        |tables| {
            change(tables, 4, |record| record.nlink = U32::new(9));
            change(tables, 2, |record| record.nlink = U32::new(2));
        },
    );
}

#[test]
fn a_file_that_lost_its_name_goes_to_lost_and_found() {
    let database = damaged(&["inode 4 has no name"], |tables| {
        tables.entries_mut().unwrap().remove(pair(1, *KEY.cookies(b"f").start())).unwrap();
    });
    assert_eq!(find(&database, &["lost+found", "#4"]), Some(4));
}

#[test]
fn a_directory_that_lost_its_name_keeps_what_is_in_it() {
    let database = damaged(&["inode 2 has no name"], |tables| {
        tables.entries_mut().unwrap().remove(pair(1, *KEY.cookies(b"d").start())).unwrap();
    });
    assert_eq!(find(&database, &["lost+found", "#2", "e"]), Some(3));
}

#[test]
fn rings_of_directories_are_opened() {
    let database = damaged(&["directory inode 2 cannot be reached"], |tables| {
        tables.entries_mut().unwrap().remove(pair(1, *KEY.cookies(b"d").start())).unwrap();
        entry(tables, 3, "loop", 2, Kind::Directory);
        change(tables, 2, |record| record.parent = U64::new(3));
        change(tables, 3, |record| record.nlink = U32::new(3));
        change(tables, 1, |record| record.nlink = U32::new(2));
    });
    let opened = find(&database, &["lost+found", "#2", "e"]) == Some(3);
    assert!(opened || find(&database, &["lost+found", "#3", "loop"]) == Some(2));
}

#[test]
fn the_root_is_made_again() {
    let database = damaged(&["the root directory is missing"], |tables| {
        tables.inodes_mut().unwrap().remove(1).unwrap();
    });
    let names = ["#2", "#4", "#5"].map(|name| find(&database, &["lost+found", name]));
    // The names are still there, as the new root has the old one's number.
    assert!(names == [Some(2), Some(4), Some(5)] || find(&database, &["d", "e"]) == Some(3));
}

#[test]
fn orphans_are_what_the_list_says() {
    let database =
        damaged(&["inode 4 is listed as waiting", "inode 44 is listed", "inode 6 has no name"], |tables| {
            tables.orphans_mut().unwrap().insert(4, 1).unwrap();
            tables.orphans_mut().unwrap().insert(44, 1).unwrap();
            tables.orphans_mut().unwrap().remove(6).unwrap();
        });
    assert_eq!(find(&database, &["lost+found", "#6"]), Some(6));
}

#[test]
fn entries_that_lead_nowhere() {
    let database = damaged(
        &["names an inode that does not exist", "in a directory that does not exist", "cannot be read"],
        |tables| {
            entry(tables, 1, "ghost", 77, Kind::File);
            entry(tables, 88, "inside", 4, Kind::File);
            tables.entries_mut().unwrap().insert(pair(1, 5000), b"xx".as_slice()).unwrap();
        },
    );
    assert_eq!(find(&database, &["ghost"]), None);
}

#[test]
fn entries_of_the_wrong_type_place_or_name() {
    let database = damaged(
        &[
            "has the wrong type; the inode is a regular file",
            "cannot be found by its name",
            "a name that cannot be one",
        ],
        |tables| {
            entry(tables, 1, "f", 4, Kind::Fifo);
            let place = pair(1, *KEY.cookies(b"g").start());
            tables.entries_mut().unwrap().remove(place).unwrap();
            tables
                .entries_mut()
                .unwrap()
                .insert(pair(1, 7000), EntryRecord::value(Ino(5), Kind::File, b"g").as_slice())
                .unwrap();
            entry(tables, 1, "a/b", 4, Kind::File);
        },
    );
    assert_eq!((find(&database, &["f"]), find(&database, &["g"])), (Some(4), Some(5)));
}

#[test]
fn names_that_stand_twice() {
    let database =
        damaged(&["a name that the directory has already", "is a second name of a directory"], |tables| {
            let second = *KEY.cookies(b"f").start() + 1;
            tables
                .entries_mut()
                .unwrap()
                .insert(pair(1, second), EntryRecord::value(Ino(5), Kind::File, b"f").as_slice())
                .unwrap();
            entry(tables, 1, "again", 3, Kind::Directory);
        });
    assert_eq!(find(&database, &["f"]), Some(4));
    assert!(find(&database, &["again"]) == Some(3) || find(&database, &["d", "e"]) == Some(3));
}

#[test]
fn a_directory_that_names_another_parent() {
    damaged(&["names a directory whose \"..\" is inode 1"], |tables| {
        change(tables, 3, |record| record.parent = U64::new(1));
    });
}

#[test]
fn unreadable_inodes() {
    let database =
        damaged(&["the record of inode 4 cannot be read", "names an inode that does not exist"], |tables| {
            tables.inodes_mut().unwrap().insert(4, b"short".as_slice()).unwrap();
        });
    assert_eq!(find(&database, &["f"]), None);
    let snapshot = Snapshot::take(&database).unwrap();
    assert_eq!(snapshot.extents.range(pair(4, 0)..pair(5, 0)).unwrap().count(), 0);
}

#[test]
fn wrong_numbers_of_blocks() {
    damaged(&["inode 4 says that it occupies 3 blocks, but its extents have 10"], |tables| {
        change(tables, 4, |record| record.blocks = U64::new(3));
    });
}

#[test]
fn extents_that_overlap_or_belong_to_nothing() {
    damaged(
        &["overlaps the extent before it", "belongs to no regular file", "has an impossible length"],
        |tables| {
            tables.extents_mut().unwrap().insert(pair(5, 3), extent(1500, 5, WRITTEN)).unwrap();
            tables.extents_mut().unwrap().insert(pair(3, 0), extent(1600, 5, WRITTEN)).unwrap();
            tables.extents_mut().unwrap().insert(pair(99, 0), extent(1700, 5, WRITTEN)).unwrap();
            tables.extents_mut().unwrap().insert(pair(4, 50), extent(1800, 0, WRITTEN)).unwrap();
        },
    );
}

#[test]
fn extents_beyond_the_region_or_on_metadata_are_cut_out() {
    let database =
        damaged(&["outside of the blocks for data", "lies on blocks of the metadata area"], |tables| {
            tables.extents_mut().unwrap().insert(pair(4, 100), extent(1990, 20, WRITTEN)).unwrap();
            tables.extents_mut().unwrap().insert(pair(4, 200), extent(1390, 20, WRITTEN)).unwrap();
        });
    let snapshot = Snapshot::take(&database).unwrap();
    let cut = snapshot.extents.get(pair(4, 100)).unwrap().unwrap().value();
    assert_eq!((cut.lun.get(), cut.len.get()), (1990, 10));
}

#[test]
fn lost_and_doubly_used_blocks() {
    damaged(
        &["1040..1050 belong to nothing", "1000..1005 belong to inode 4 and also to the free blocks"],
        |tables| {
            tables.free_mut().unwrap().insert(1030, 10).unwrap();
            tables.free_mut().unwrap().insert(1050, 50).unwrap();
            tables.free_mut().unwrap().insert(1000, 5).unwrap();
        },
    );
}

#[test]
fn blocks_in_two_places() {
    let words = [
        "the free blocks and also to a client's reserve",
        "the free blocks and also to the quarantine",
        "to inode 4 and also to the blocks waiting",
        "listed in the free blocks, but are outside",
    ];
    damaged(&words, |tables| {
        tables.free_mut().unwrap().insert(1110, 190).unwrap();
        tables.reserves_mut().unwrap().insert(pair(1, 1115), 10).unwrap();
        tables.free_mut().unwrap().insert(1210, 95).unwrap();
        tables.pending_mut().unwrap().insert(1008, HeldRecord::new(4, Why::Freed, 0)).unwrap();
        tables.free_mut().unwrap().insert(3000, 10).unwrap();
    });
}

#[test]
fn overlapping_free_extents() {
    damaged(&["the free blocks and also to the free blocks"], |tables| {
        tables.free_mut().unwrap().insert(1040, 20).unwrap();
    });
}

#[test]
fn wrong_reference_counts() {
    damaged(
        &["1000..1005 are referred to by 2 extents, but 3 are counted", "1600..1605 are referred to by 0"],
        |tables| {
            tables
                .shared_mut()
                .unwrap()
                .insert(1000, SharedRecord { len: U64::new(5), count: U64::new(3) })
                .unwrap();
            tables
                .shared_mut()
                .unwrap()
                .insert(1600, SharedRecord { len: U64::new(5), count: U64::new(2) })
                .unwrap();
        },
    );
}

#[test]
fn two_files_that_claim_the_same_blocks_share_them() {
    let database =
        damaged(&["are referred to by 2 extents, but 1 are counted", "is not marked as shared"], |tables| {
            tables.extents_mut().unwrap().insert(pair(4, 30), extent(1022, 4, WRITTEN)).unwrap();
            change(tables, 4, |record| record.blocks = U64::new(14));
        });
    let snapshot = Snapshot::take(&database).unwrap();
    assert_eq!(snapshot.shared.get(1022).unwrap().unwrap().value().count.get(), 2);
    for (ino, file) in [(4, 30), (5, 7)] {
        let flags = snapshot.extents.get(pair(ino, file)).unwrap().unwrap().value().flags.get();
        assert!(flags & MAYBE_SHARED != 0);
    }
}

#[test]
fn attributes_without_an_inode_and_inodes_that_deny_theirs() {
    damaged(
        &[
            "\"user.y\" of inode 66 belongs to an inode that does not exist",
            "\"system.posix_acl_access\" of inode 4 cannot be read",
            "inode 5 says wrongly whether it has extended attributes",
        ],
        |tables| {
            tables
                .xattrs_mut()
                .unwrap()
                .insert(xattr_key(66, b"user.y").as_slice(), b"v".as_slice())
                .unwrap();
            tables
                .xattrs_mut()
                .unwrap()
                .insert(xattr_key(4, b"system.posix_acl_access").as_slice(), b"v".as_slice())
                .unwrap();
            change(tables, 5, |record| record.flags = U32::ZERO);
        },
    );
}

#[test]
fn reserves_and_slots_of_unknown_clients() {
    damaged(&["client c8 has reserves or slots", "client c9 has reserves or slots"], |tables| {
        tables.reserves_mut().unwrap().remove(pair(1, 1100)).unwrap();
        tables.reserves_mut().unwrap().insert(pair(8, 1100), 10).unwrap();
        tables.slots_mut().unwrap().insert(pair(9, 0), [0; 8].as_slice()).unwrap();
    });
}

#[test]
fn wrong_numbers_of_the_volume() {
    let words = [
        "the next inode's number is 3 on record",
        "the number of inodes is 60 on record, but 6 were found",
        "without a name is 61 on record",
        "the number of blocks is 62 on record, but 1000",
        "of the free blocks is 63 on record",
        "of a client's reserve is 64 on record",
        "waiting to be freed is 65 on record",
        "of the quarantine is 66 on record",
        "of the metadata area is 67 on record",
    ];
    damaged(&words, |tables| {
        let mut counters = tables.counters().unwrap().get(COUNTERS_ROW).unwrap().unwrap().value();
        counters.next_ino = U64::new(3);
        let fields = [
            &mut counters.inodes,
            &mut counters.orphans,
            &mut counters.total,
            &mut counters.free,
            &mut counters.reserved,
            &mut counters.pending,
            &mut counters.quarantined,
            &mut counters.metadata,
        ];
        for (i, field) in (60..).zip(fields) {
            *field = U64::new(i);
        }
        tables.counters_mut().unwrap().insert(COUNTERS_ROW, counters).unwrap();
    });
}

#[test]
fn progress_is_told_and_findings_are_bounded() {
    let mut findings = Findings::default();
    for _ in 0..FINDINGS_MAX + 5 {
        findings.push(Finding::NoRoot);
    }
    assert_eq!((findings.list.len(), findings.more), (FINDINGS_MAX, 5));
    assert!(findings.to_string().ends_with("and 5 more\n"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, ..Default::default() })]

    /// Whatever stands in the tables, the check ends, and the repair leaves less or nothing.
    #[test]
    fn arbitrary_rows_neither_stop_the_check_nor_the_repair(
        rows in proptest::collection::vec((0u8..10, 0u64..12, 0u64..40, 0u64..60), 1..30),
    ) {
        let database = sound();
        edit(&database, |tables| for (table, ino, at, len) in rows {
            let lun = 995 + at * 27;
            match table {
                0 => drop(tables.inodes_mut().unwrap().insert(ino, [1; 96].as_slice()).unwrap()),
                1 => drop(tables.inodes_mut().unwrap().remove(ino).unwrap()),
                2 => entry(tables, ino, "x", at, Kind::Directory),
                3 => drop(tables.extents_mut().unwrap().insert(pair(ino, at), extent(lun, len, WRITTEN)).unwrap()),
                4 => drop(tables.free_mut().unwrap().insert(lun, len).unwrap()),
                5 => drop(tables.free_mut().unwrap().remove(1030).unwrap()),
                6 => drop(tables.shared_mut().unwrap().insert(lun, SharedRecord { len: U64::new(len), count: U64::new(ino) }).unwrap()),
                7 => drop(tables.pending_mut().unwrap().insert(lun, HeldRecord::new(len, Why::Freed, 0)).unwrap()),
                8 => drop(tables.reserves_mut().unwrap().insert(pair(ino, lun), len).unwrap()),
                _ => drop(tables.orphans_mut().unwrap().insert(ino, 0).unwrap()),
            }
        });
        let repair = repair(&database, &KEY, &[REGION], NOW, &mut |_, _, _| {}).unwrap();
        proptest::prop_assert!(repair.left.is_clean(), "left:\n{}mended:\n{}", repair.left, repair.mended);
    }
}

#[test]
fn a_layout_is_found_by_its_file_block() {
    assert_eq!(FileBlock(low(pair(4, 7))), FileBlock(7));
}
