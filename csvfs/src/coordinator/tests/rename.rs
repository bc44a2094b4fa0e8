use super::*;
use crate::proto::RenameMode::{Exchange, NoReplace, Replace};

const ROOT: Ino = Ino::ROOT;

#[test]
fn a_name_moves_and_replaces() {
    let volume = Volume::new(1000);
    let (file, other) = (volume.file("a"), volume.file("b"));
    volume.write(other, 0, 5);
    let directory = volume.directory(ROOT, "d");
    volume.done(rename((ROOT, "a"), (directory, "a2"), Replace));
    assert_eq!(volume.lookup(ROOT, "a"), Err(Refusal::NotFound));
    assert_eq!(volume.lookup(directory, "a2").unwrap().ino, file);
    let removed = volume.ask(rename((directory, "a2"), (ROOT, "b"), Replace));
    assert_eq!(removed, Ok(Answer::Removed { ino: other, nlink: 0 }));
    assert_eq!(volume.lookup(ROOT, "b").unwrap().ino, file);
    assert_eq!(volume.ask(Operation::GetAttr { ino: other }), Err(Refusal::NotFound));
    assert_clean(&volume, 1000);
}

#[test]
fn directories_take_their_parent_with_them() {
    let volume = Volume::new(100);
    let (one, two) = (volume.directory(ROOT, "one"), volume.directory(ROOT, "two"));
    let moved = volume.directory(one, "m");
    volume.done(rename((one, "m"), (two, "m"), Replace));
    assert_eq!((volume.attr(one).nlink, volume.attr(two).nlink), (2, 3));
    assert_eq!(volume.entry(Operation::Parent { ino: moved }).ino, two);
    // Over an empty directory, which is then gone.
    let empty = volume.directory(one, "e");
    let answer = volume.ask(rename((two, "m"), (one, "e"), Replace));
    assert_eq!(answer, Ok(Answer::Removed { ino: empty, nlink: 0 }));
    assert_eq!((volume.attr(one).nlink, volume.attr(two).nlink), (3, 2));
    let sibling = volume.directory(one, "s");
    volume.ask(rename((one, "e"), (one, "s"), Replace)).unwrap();
    assert_eq!(volume.ask(Operation::GetAttr { ino: sibling }), Err(Refusal::NotFound));
    assert_eq!(volume.attr(one).nlink, 3);
    assert_clean(&volume, 100);
}

#[test]
fn what_cannot_be_renamed_is_refused_without_a_trace() {
    let volume = Volume::new(100);
    let (one, two) = (volume.directory(ROOT, "one"), volume.directory(ROOT, "two"));
    let inner = volume.directory(one, "in");
    volume.create(two, "x", Created::File);
    volume.file("f");
    let invalid = |refusal| matches!(refusal, Refusal::Invalid(_));
    assert!(invalid(volume.refused(rename((ROOT, "one"), (one, "y"), Replace))));
    assert!(invalid(volume.refused(rename((ROOT, "one"), (inner, "y"), Replace))));
    assert!(invalid(volume.refused(rename((ROOT, "one"), (inner, "y"), NoReplace))));
    assert_eq!(volume.refused(rename((ROOT, "one"), (ROOT, "two"), Replace)), Refusal::NotEmpty);
    assert_eq!(volume.refused(rename((ROOT, "one"), (ROOT, "f"), Replace)), Refusal::NotDirectory);
    assert_eq!(volume.refused(rename((ROOT, "f"), (ROOT, "one"), Replace)), Refusal::IsDirectory);
    assert_eq!(volume.refused(rename((ROOT, "f"), (ROOT, "one"), NoReplace)), Refusal::Exists);
    assert_eq!(volume.refused(rename((ROOT, "f"), (ROOT, "none"), Exchange)), Refusal::NotFound);
    assert_eq!(volume.refused(rename((ROOT, "none"), (ROOT, "n"), Replace)), Refusal::NotFound);
    assert!(invalid(volume.refused(rename((one, "in"), (ROOT, "one"), Exchange))));
    assert_eq!(volume.refused(rename((one, "in"), (ROOT, "one"), Replace)), Refusal::NotEmpty);
}

#[test]
fn two_names_of_one_inode_stay() {
    let volume = Volume::new(100);
    let file = volume.file("a");
    volume.entry(Operation::Link { ino: file, parent: ROOT, name: b"b".to_vec(), now: NOW });
    let before = dump(&volume.database).unwrap();
    volume.done(rename((ROOT, "a"), (ROOT, "b"), Replace));
    volume.done(rename((ROOT, "a"), (ROOT, "a"), Replace));
    let names = |rows: Vec<(&'static str, Vec<u8>, Vec<u8>)>| -> Vec<_> {
        rows.into_iter().filter(|row| row.0 != "slots").collect()
    };
    assert_eq!(names(dump(&volume.database).unwrap()), names(before));
}

#[test]
fn names_are_exchanged() {
    let volume = Volume::new(100);
    let (one, two) = (volume.directory(ROOT, "one"), volume.directory(ROOT, "two"));
    let (inner, file) = (volume.directory(one, "in"), volume.create(two, "f", Created::File).ino);
    volume.done(rename((one, "in"), (two, "f"), Exchange));
    assert_eq!(volume.lookup(one, "in").unwrap().ino, file);
    assert_eq!(volume.lookup(two, "f").unwrap().ino, inner);
    assert_eq!((volume.attr(one).nlink, volume.attr(two).nlink), (2, 3));
    assert_eq!(volume.entry(Operation::Parent { ino: inner }).ino, two);
    volume.done(rename((ROOT, "one"), (two, "f"), Exchange));
    assert_eq!(volume.lookup(ROOT, "one").unwrap().ino, inner);
    assert_eq!(volume.entry(Operation::Parent { ino: one }).ino, two);
    assert_clean(&volume, 100);
}
