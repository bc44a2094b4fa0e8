use super::*;
use crate::types::{Kind, LINK_MAX, NAME_MAX};

fn list(volume: &Volume, ino: Ino, budget: u32) -> Vec<String> {
    let mut names = Vec::new();
    let mut after = 0;
    loop {
        let part = volume.ask(Operation::ReadDirectory { ino, after, budget, attributes: true });
        let Ok(Answer::Directory { entries, end }) = part else { panic!("{part:?}") };
        for entry in &entries {
            assert!(entry.cookie > after.max(2), "cookies rise");
            after = entry.cookie;
            assert_eq!(entry.attr.map(|attr| (attr.ino, attr.kind)), Some((entry.ino, entry.kind)));
            names.push(String::from_utf8(entry.name.clone()).unwrap());
        }
        if end {
            names.sort();
            return names;
        }
    }
}

#[test]
fn a_file_is_made_found_listed_written_and_removed() {
    let volume = Volume::new(1000);
    let file = volume.file("a");
    let attr = volume.lookup(Ino::ROOT, "a").unwrap();
    assert_eq!((attr.ino, attr.kind, attr.mode, attr.nlink, attr.uid), (file, Kind::File, 0o644, 1, 1000));
    let lun = volume.write(file, 2, 10);
    let extents = volume.extents(file);
    assert_eq!(extents.len(), 1);
    assert_eq!((extents[0].file, extents[0].lun, extents[0].len), (FileBlock(2), lun, 10));
    assert_eq!((volume.attr(file).blocks, volume.attr(file).size), (10, 12 * 4096));
    volume.truncate(file, 4096 * 5 + 1).unwrap();
    assert_eq!(volume.extents(file)[0].len, 4);
    assert_eq!(list(&volume, Ino::ROOT, 4096), ["a"]);
    assert_clean(&volume, 1000);
    assert_eq!(volume.unlink(Ino::ROOT, "a"), Ok(Answer::Removed { ino: file, nlink: 0 }));
    assert_eq!(volume.lookup(Ino::ROOT, "a"), Err(Refusal::NotFound));
    assert_eq!(volume.ask(Operation::GetAttr { ino: file }), Err(Refusal::NotFound));
    assert_clean(&volume, 1000);
}

#[test]
fn a_large_directory_is_listed_in_parts() {
    let volume = Volume::new(100);
    let mut made: Vec<String> = (0..500).map(|i| format!("name {i}")).collect();
    for name in &made {
        volume.file(name);
    }
    made.sort();
    assert_eq!(list(&volume, Ino::ROOT, 3000), made);
    assert_eq!(list(&volume, Ino::ROOT, 0), made, "a budget too small for one entry still gets on");
}

#[test]
fn every_kind_of_inode_keeps_what_it_is() {
    let volume = Volume::new(100);
    let link = volume.create(Ino::ROOT, "l", Created::Symlink(b"to/where".to_vec()));
    assert_eq!((link.kind, link.size, link.mode), (Kind::Symlink, 8, 0o777));
    assert_eq!(volume.ask(Operation::ReadLink { ino: link.ino }), Ok(Answer::Bytes(b"to/where".to_vec())));
    volume.entry(set_mode(link.ino, 0o700));
    assert_eq!(volume.ask(Operation::ReadLink { ino: link.ino }), Ok(Answer::Bytes(b"to/where".to_vec())));
    let device = volume.create(Ino::ROOT, "b", Created::BlockDevice(0x0801));
    assert_eq!((device.kind, device.rdev), (Kind::BlockDevice, 0x0801));
    assert_eq!(volume.create(Ino::ROOT, "c", Created::CharDevice(5)).rdev, 5);
    assert_eq!(volume.create(Ino::ROOT, "f", Created::Fifo).kind, Kind::Fifo);
    assert_eq!(volume.create(Ino::ROOT, "s", Created::Socket).kind, Kind::Socket);
    let directory = volume.directory(Ino::ROOT, "d");
    assert_eq!((volume.attr(directory).nlink, volume.attr(Ino::ROOT).nlink), (2, 3));
    assert_eq!(volume.entry(Operation::Parent { ino: directory }).ino, Ino::ROOT);
    let below = volume.directory(directory, "e");
    assert_eq!(volume.entry(Operation::Parent { ino: below }).ino, directory);
    assert_clean(&volume, 100);
}

#[test]
fn refused_creations_leave_no_trace() {
    let volume = Volume::new(100);
    let file = volume.file("a");
    volume.directory(Ino::ROOT, "d");
    assert_eq!(volume.refused(create(Ino::ROOT, "a", Created::File)), Refusal::Exists);
    assert_eq!(volume.refused(create(Ino::ROOT, "a", Created::Directory)), Refusal::Exists);
    assert_eq!(volume.refused(create(file, "b", Created::File)), Refusal::NotDirectory);
    assert_eq!(volume.refused(create(Ino(99), "b", Created::File)), Refusal::NotFound);
    let long = "x".repeat(NAME_MAX + 1);
    assert_eq!(volume.refused(create(Ino::ROOT, &long, Created::File)), Refusal::NameTooLong);
    for bad in ["", ".", "..", "a/b", "a\0b"] {
        assert!(
            matches!(volume.refused(create(Ino::ROOT, bad, Created::File)), Refusal::Invalid(_)),
            "{bad:?}"
        );
    }
    let target = Created::Symlink(vec![b'x'; 5000]);
    assert_eq!(volume.refused(create(Ino::ROOT, "l", target)), Refusal::NameTooLong);
    volume.area.scarce.store(true, Ordering::SeqCst);
    assert_eq!(volume.refused(create(Ino::ROOT, "b", Created::File)), Refusal::NoSpace);
    assert!(volume.unlink(Ino::ROOT, "a").is_ok(), "deleting works when there is no room");
    // The longest name is one.
    volume.area.scarce.store(false, Ordering::SeqCst);
    volume.file(&"x".repeat(NAME_MAX));
}

#[test]
fn an_existing_file_is_opened_unless_a_new_one_is_demanded() {
    let volume = Volume::new(100);
    let file = volume.file("a");
    let again = |what, open| Operation::Create {
        parent: Ino::ROOT,
        name: b"a".to_vec(),
        what,
        mode: 0o600,
        umask: 0,
        uid: 0,
        gid: 0,
        exclusive: false,
        open,
        now: NOW,
    };
    let attr = volume.entry(again(Created::File, true));
    assert_eq!((attr.ino, attr.mode), (file, 0o644));
    volume.unlink(Ino::ROOT, "a").unwrap();
    assert_eq!(volume.attr(file).nlink, 0, "held open by the creation");
    volume.directory(Ino::ROOT, "a");
    assert_eq!(volume.ask(again(Created::File, true)), Err(Refusal::IsDirectory));
}

#[test]
fn links_count() {
    let volume = Volume::new(100);
    let file = volume.file("a");
    let directory = volume.directory(Ino::ROOT, "d");
    let link = |ino, parent, name: &str| Operation::Link { ino, parent, name: name.into(), now: NOW };
    assert_eq!(volume.entry(link(file, directory, "b")).nlink, 2);
    assert_eq!(volume.refused(link(file, directory, "b")), Refusal::Exists);
    assert_eq!(volume.refused(link(directory, Ino::ROOT, "x")), Refusal::NotPermitted);
    assert_eq!(volume.refused(link(Ino(77), Ino::ROOT, "x")), Refusal::NotFound);
    assert_eq!(volume.unlink(Ino::ROOT, "a"), Ok(Answer::Removed { ino: file, nlink: 1 }));
    assert_eq!(volume.unlink(directory, "b"), Ok(Answer::Removed { ino: file, nlink: 0 }));
    assert_eq!(
        volume.refused(Operation::Unlink { parent: Ino::ROOT, name: b"a".to_vec(), now: NOW }),
        Refusal::NotFound
    );
    assert_eq!(
        volume.refused(Operation::Unlink { parent: Ino::ROOT, name: b"d".to_vec(), now: NOW }),
        Refusal::IsDirectory
    );
    assert_clean(&volume, 100);
}

#[test]
fn an_inode_has_a_largest_number_of_links() {
    let mut record = crate::store::record::InodeRecord::new(Kind::File, 0, 0, 0, NOW);
    record.nlink = zerocopy::little_endian::U32::new(LINK_MAX - 1);
    super::super::names::more_links(&mut record).unwrap();
    assert_eq!(super::super::names::more_links(&mut record), Err(Refusal::TooManyLinks));
}

#[test]
fn directories_are_removed_when_empty() {
    let volume = Volume::new(100);
    let directory = volume.directory(Ino::ROOT, "d");
    volume.create(directory, "x", Created::File);
    let remove = |name: &str| Operation::RemoveDirectory { parent: Ino::ROOT, name: name.into(), now: NOW };
    assert_eq!(volume.refused(remove("d")), Refusal::NotEmpty);
    volume.unlink(directory, "x").unwrap();
    volume.file("f");
    assert_eq!(volume.refused(remove("f")), Refusal::NotDirectory);
    assert_eq!(volume.refused(remove("none")), Refusal::NotFound);
    assert_eq!(volume.ask(remove("d")), Ok(Answer::Removed { ino: directory, nlink: 0 }));
    assert_eq!(volume.attr(Ino::ROOT).nlink, 2);
    assert_eq!(volume.refused(create(directory, "x", Created::File)), Refusal::NotFound);
    assert_clean(&volume, 100);
}

#[test]
fn an_open_directory_that_is_removed_takes_no_new_names() {
    let volume = Volume::new(100);
    let directory = volume.directory(Ino::ROOT, "d");
    volume.open(directory);
    volume.ask(Operation::RemoveDirectory { parent: Ino::ROOT, name: b"d".to_vec(), now: NOW }).unwrap();
    assert_eq!(volume.attr(directory).nlink, 0);
    assert_eq!(volume.refused(create(directory, "x", Created::File)), Refusal::NotFound);
    assert_clean(&volume, 100);
    volume.done(close(directory));
    until("the directory's end", || volume.ask(Operation::GetAttr { ino: directory }).is_err());
    assert_clean(&volume, 100);
}

#[test]
fn a_file_that_is_open_outlives_its_name() {
    let volume = Volume::new(1000);
    let file = volume.file("a");
    volume.write(file, 0, 10);
    volume.open(file);
    volume.unlink(Ino::ROOT, "a").unwrap();
    assert_eq!(volume.extents(file).len(), 1);
    assert_clean(&volume, 1000);
    let link = Operation::Link { ino: file, parent: Ino::ROOT, name: b"b".to_vec(), now: NOW };
    assert_eq!(volume.refused(link), Refusal::NotFound, "a removed file gets no new name");
    volume.done(close(file));
    until("the file's end", || volume.ask(Operation::GetAttr { ino: file }).is_err());
    assert_eq!(volume.ask(Operation::Open { ino: file, write: false }), Err(Refusal::NotFound));
    assert_clean(&volume, 1000);
}

#[test]
fn an_unnamed_file_lives_while_it_is_open_and_may_get_a_name() {
    let volume = Volume::new(100);
    let unnamed = || {
        volume.entry(Operation::CreateUnnamed {
            parent: Ino::ROOT,
            mode: 0o600,
            umask: 0,
            uid: 1,
            gid: 1,
            now: NOW,
        })
    };
    let (kept, dropped) = (unnamed(), unnamed());
    assert_eq!(kept.nlink, 0);
    assert_clean(&volume, 100);
    let linked = Operation::Link { ino: kept.ino, parent: Ino::ROOT, name: b"n".to_vec(), now: NOW };
    assert_eq!(volume.entry(linked).nlink, 1);
    for file in [kept, dropped] {
        volume.done(close(file.ino));
    }
    until("the unnamed file's end", || volume.ask(Operation::GetAttr { ino: dropped.ino }).is_err());
    assert_eq!(volume.lookup(Ino::ROOT, "n").unwrap().ino, kept.ino);
    assert_clean(&volume, 100);
}

#[test]
fn times_change_as_posix_says() {
    let volume = Volume::new(100);
    let at = Timestamp(5_000);
    let file = volume.file("a");
    let stamp = |ino| {
        let attr = volume.attr(ino);
        (attr.mtime, attr.ctime)
    };
    volume.entry(Operation::Link { ino: file, parent: Ino::ROOT, name: b"b".to_vec(), now: at });
    assert_eq!(stamp(file), (NOW, at));
    assert_eq!(stamp(Ino::ROOT), (at, at));
    let at = Timestamp(6_000);
    volume.ask(Operation::Unlink { parent: Ino::ROOT, name: b"b".to_vec(), now: at }).unwrap();
    assert_eq!(stamp(file), (NOW, at));
    assert_eq!(stamp(Ino::ROOT), (at, at));
}
