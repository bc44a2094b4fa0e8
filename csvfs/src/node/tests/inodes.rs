//! What else an owner answers for: errors, times, set-id bits, names that go while files are open.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use redirector::lun::Outcome;

use super::platter::{Event, Platter, What};
use super::world::{WHO, World, slice, start, until, wait};
use crate::proto::{Created, RenameMode, SetAttr};
use crate::refusal::Refusal;
use crate::service::{FileService, OpenMode, WriteMode};
use crate::types::{Ino, Timestamp};

fn world() -> World {
    World::new(Platter::new(8 << 20))
}

fn messages(world: &World, name: &str) -> usize {
    world.events().iter().filter(|event| **event == Event::Message(name.to_owned())).count()
}

#[test]
fn a_failed_flush_is_told_once_to_every_handle() {
    let world = world();
    let file = world.file("a");
    let other = world.open_file(file.attr.ino);
    world.write(file.handle, 0, &[1; 4096]);
    world.platter.fail_next_flush(Outcome::Failed(libc::EIO));
    assert!(matches!(world.sync(file.handle), Err(Refusal::Io(_))));
    assert_eq!(messages(&world, "Commit"), 0, "nothing is committed that was not flushed");
    assert_eq!(world.sync(file.handle), Ok(()), "what was kept is committed by the next");
    assert_eq!(messages(&world, "Commit"), 1);
    let later = world.open_file(file.attr.ino);
    assert!(matches!(world.sync(other.handle), Err(Refusal::Io(_))));
    assert_eq!(world.sync(other.handle), Ok(()));
    assert_eq!(world.sync(later.handle), Ok(()), "opened after it");
}

#[test]
fn a_failed_write_is_told_and_shows_nothing_of_earlier_files() {
    let world = world();
    let file = world.file("a");
    world.platter.fail_next_write(Outcome::Failed(libc::EIO));
    assert!(matches!(world.try_write(file.handle, 0, &[1; 5000]), Err(Refusal::Io(_))));
    assert_eq!(world.attr(file.attr.ino).size, 0);
    world.write(file.handle, 9000, b"x");
    let read = world.read(file.handle, 0, 10_000);
    assert!(read[..9000].iter().all(|byte| *byte == 0 || *byte == 1));
    world.platter.fail_next_write(Outcome::Failed(libc::ENOSPC));
    assert_eq!(world.try_write(file.handle, 0, &[1; 4096]), Err(Refusal::NoSpace));
}

#[test]
fn syncs_that_come_together_share_a_flush() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 4096]);
    world.platter.hold(What::Flushes);
    let syncs: Vec<_> = (0..8).map(|_| start(|done| world.node.sync(file.handle, done))).collect();
    until("the flush", || world.platter.held() == 1);
    world.platter.let_go();
    for sync in syncs {
        sync.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    }
    let flushes = world.events().iter().filter(|event| **event == Event::Flush).count();
    assert!(flushes <= 2, "{flushes} flushes for eight syncs");
    assert_eq!(messages(&world, "Commit"), 1);
}

#[test]
fn l5_a_lost_reply_changes_nothing() {
    let world = world();
    world.loses.store(3, SeqCst);
    let file = world.file("a");
    world.loses.store(2, SeqCst);
    world.write(file.handle, 0, &[1; 9000]);
    world.loses.store(5, SeqCst);
    world.sync(file.handle).unwrap();
    world.loses.store(1, SeqCst);
    wait(|done| world.node.rename(Ino::ROOT, b"a", Ino::ROOT, b"b", RenameMode::Replace, done)).unwrap();
    world.loses.store(1, SeqCst);
    wait(|done| world.node.unlink(Ino::ROOT, b"b", done)).unwrap();
    assert!(world.read(file.handle, 0, 9000) == [1; 9000]);
    world.shut_down();
    world.check();
}

#[test]
fn times_follow_writes_and_what_is_set_stays() {
    let world = world();
    let file = world.file("a");
    let ino = file.attr.ino;
    world.clock.advance(Duration::from_secs(5));
    world.write(file.handle, 0, b"x");
    let written = world.attr(ino);
    assert!(written.mtime > file.attr.mtime && written.ctime == written.mtime);
    world.clock.advance(Duration::from_secs(5));
    world.sync(file.handle).unwrap();
    assert_eq!(world.attr(ino), crate::types::Attr { blocks: 1, ..written }, "a commit changes no time");
    world.write(file.handle, 0, b"y");
    let set = SetAttr { mtime: Some(Timestamp(77)), ..SetAttr::default() };
    assert_eq!(wait(|done| world.node.set_attr(ino, set, None, done)).unwrap().mtime, Timestamp(77));
    world.sync(file.handle).unwrap();
    assert_eq!(world.attr(ino).mtime, Timestamp(77), "an older note does not overwrite it");
    world.clock.advance(Duration::from_secs(5));
    world.read(file.handle, 0, 1);
    assert_eq!(world.attr(ino).atime, world.node.now());
    world.write(file.handle, 0, b"z");
    assert_eq!(world.attr(ino).mtime, world.node.now());
}

#[test]
fn a_write_takes_set_id_bits_away_and_a_later_mode_stays() {
    let world = world();
    let file = world.file("a");
    let ino = file.attr.ino;
    let mode = |mode| {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        wait(|done| world.node.set_attr(ino, set, None, done)).unwrap().mode
    };
    assert_eq!(mode(0o6755), 0o6755);
    let write = WriteMode { clear_set_id: true, ..WriteMode::default() };
    wait(|done| world.node.write(file.handle, 0, slice(b"x"), write, done)).unwrap();
    assert_eq!(world.attr(ino).mode, 0o755, "at once");
    world.sync(file.handle).unwrap();
    assert_eq!(world.attr(ino).mode, 0o755);
    wait(|done| world.node.write(file.handle, 0, slice(b"x"), write, done)).unwrap();
    assert_eq!(mode(0o4711), 0o4711);
    world.sync(file.handle).unwrap();
    assert_eq!(world.attr(ino).mode, 0o4711);
}

#[test]
fn closing_and_opening_soon_costs_no_message() {
    let world = world();
    let file = world.file("a");
    let asked = messages(&world, "Open");
    for _ in 0..5 {
        world.node.release(world.open_file(file.attr.ino).handle);
    }
    world.node.release(file.handle);
    world.node.release(world.open_file(file.attr.ino).handle);
    assert_eq!((messages(&world, "Open"), messages(&world, "Close")), (asked, 0));
    (0..5).for_each(|_| world.node.round());
    until("the closing", || world.node.figures().open == 0);
    assert_eq!(messages(&world, "Close"), 1);
}

#[test]
fn a_file_without_a_name_gets_one_and_keeps_its_data() {
    let world = world();
    let open = OpenMode { read: true, write: true, ..OpenMode::default() };
    let file = wait(|done| world.node.create_unnamed(WHO, Ino::ROOT, 0o600, open, done)).unwrap();
    world.write(file.handle, 0, &[1; 5000]);
    wait(|done| world.node.link(file.attr.ino, Ino::ROOT, b"named", done)).unwrap();
    world.node.release(file.handle);
    world.shut_down();
    world.check();
    let world = world.crash(1);
    let attr = wait(|done| world.node.lookup(Ino::ROOT, b"named", done)).unwrap();
    assert_eq!((attr.size, attr.nlink), (5000, 1));
    let file = world.open_file(attr.ino);
    assert!(world.read(file.handle, 0, 5000) == [1; 5000]);
}

#[test]
fn an_unlinked_file_that_nobody_uses_is_dropped_at_once() {
    let world = world();
    let before = wait(|done| world.node.space(done)).unwrap();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 100_000]);
    world.node.release(file.handle);
    wait(|done| world.node.unlink(Ino::ROOT, b"a", done)).unwrap();
    assert_eq!(world.node.figures().open, 0);
    assert_eq!(messages(&world, "Commit"), 0, "what nobody can read is not committed");
    until("the space", || wait(|done| world.node.space(done)).unwrap() == before);
    world.shut_down();
    world.check();
}

#[test]
fn directories_are_opened_and_are_not_read_as_files() {
    let world = world();
    let made = wait(|done| world.node.create(WHO, Ino::ROOT, b"d", Created::Directory, 0o755, done)).unwrap();
    let open = wait(|done| world.node.open(made.ino, OpenMode::default(), done)).unwrap();
    assert_eq!(wait(|done| world.node.read(open.handle, 0, 10, done)).err(), Some(Refusal::IsDirectory));
    assert_eq!(world.try_write(open.handle, 0, b"x"), Err(Refusal::IsDirectory));
    let truncated = wait(|done| world.node.set_attr(made.ino, SetAttr::default(), Some(0), done));
    assert_eq!(truncated, Err(Refusal::IsDirectory));
    assert_eq!(world.sync(open.handle), Ok(()));
    wait(|done| world.node.remove_directory(Ino::ROOT, b"d", done)).unwrap();
    assert_eq!(world.attr(made.ino).nlink, 0);
    world.node.release(open.handle);
    until("the end of the directory", || wait(|done| world.node.get_attr(made.ino, done)).is_err());
}

#[test]
fn opening_with_truncation_empties_the_file() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[1; 9000]);
    let open = OpenMode { write: true, truncate: true, ..OpenMode::default() };
    let again = wait(|done| world.node.create_open(WHO, Ino::ROOT, b"a", 0o644, open, done)).unwrap();
    assert_eq!((again.attr.ino, again.attr.size, again.keep_cache), (file.attr.ino, 0, false));
    assert!(world.read(file.handle, 0, 100).is_empty());
    let exclusive = OpenMode { exclusive: true, ..open };
    let refused = wait(|done| world.node.create_open(WHO, Ino::ROOT, b"a", 0o644, exclusive, done));
    assert_eq!(refused, Err(Refusal::Exists));
    assert!(matches!(wait(|done| world.node.open(Ino(999), open, done)), Err(Refusal::NotFound)));
    world.node.release(again.handle);
    assert!(matches!(wait(|done| world.node.sync(again.handle, done)), Err(Refusal::Stale(_))));
}

#[test]
fn sync_writes_are_durable_when_done() {
    let world = world();
    let file = world.file("a");
    let mode = WriteMode { sync: true, ..WriteMode::default() };
    wait(|done| world.node.write(file.handle, 0, slice(&[9; 6000]), mode, done)).unwrap();
    let world = world.crash(3);
    let file = world.open_file(file.attr.ino);
    assert!(world.read(file.handle, 0, 9000) == [9; 6000]);
}

#[test]
fn what_nobody_syncs_is_committed_by_the_background() {
    let world = world();
    let file = world.file("a");
    world.write(file.handle, 0, &[9; 6000]);
    until("the commit", || {
        world.node.round();
        messages(&world, "Commit") == 1
    });
    let world = world.crash(3);
    assert_eq!(world.attr(file.attr.ino).size, 6000);
}
