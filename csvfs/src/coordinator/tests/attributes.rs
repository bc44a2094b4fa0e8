use super::*;
use crate::proto::XattrMode;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

const NONE: u32 = u32::MAX;

fn extended() -> Vec<u8> {
    acl(&[(1, 7, NONE), (2, 6, 1234), (4, 5, NONE), (16, 7, NONE), (32, 4, NONE)])
}

fn set(ino: Ino, name: &str, value: &[u8]) -> Operation {
    Operation::SetXattr {
        ino,
        name: name.into(),
        value: value.to_vec(),
        mode: XattrMode::Set,
        clear_sgid: false,
        now: NOW,
    }
}

fn get(volume: &Volume, ino: Ino, name: &str) -> Result<Vec<u8>, Refusal> {
    match volume.ask(Operation::GetXattr { ino, name: name.into() }) {
        Ok(Answer::Bytes(value)) => Ok(value),
        Err(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn attributes_are_set() {
    let volume = Volume::new(100);
    let file = volume.file("a");
    let set = SetAttr {
        mode: Some(0o6755),
        uid: Some(5),
        gid: Some(6),
        atime: Some(Timestamp(1)),
        mtime: Some(Timestamp(2)),
        ..SetAttr::default()
    };
    let attr = volume.entry(Operation::SetAttr { ino: file, set, now: Timestamp(9) });
    assert_eq!((attr.mode, attr.uid, attr.gid), (0o6755, 5, 6));
    assert_eq!((attr.atime, attr.mtime, attr.ctime), (Timestamp(1), Timestamp(2), Timestamp(9)));
    let clear = SetAttr { clear_set_id: true, ..SetAttr::default() };
    let attr = volume.entry(Operation::SetAttr { ino: file, set: clear, now: NOW });
    assert_eq!(attr.mode, 0o755);
    volume.entry(set_mode(file, 0o6745));
    let attr = volume.entry(Operation::SetAttr { ino: file, set: clear, now: NOW });
    assert_eq!(attr.mode, 0o2745, "set-group-id without group execution is mandatory locking, and stays");
    assert_eq!(volume.refused(set_mode(Ino(55), 0)), Refusal::NotFound);
}

#[test]
fn extended_attributes_are_kept_listed_and_removed() {
    let volume = Volume::new(100);
    let file = volume.file("a");
    assert_eq!(get(&volume, file, "user.x"), Err(Refusal::NoData));
    volume.done(set(file, "user.x", b"one"));
    volume.done(set(file, "security.y", b""));
    volume.done(set(file, "trusted.z", &vec![7; 65536]));
    assert_eq!(get(&volume, file, "user.x").unwrap(), b"one");
    let list = volume.ask(Operation::ListXattr { ino: file });
    assert_eq!(list, Ok(Answer::Bytes(b"security.y\0trusted.z\0user.x\0".to_vec())));
    let with = |mode, name: &str| Operation::SetXattr {
        ino: file,
        name: name.into(),
        value: b"v".to_vec(),
        mode,
        clear_sgid: false,
        now: NOW,
    };
    assert_eq!(volume.refused(with(XattrMode::Create, "user.x")), Refusal::Exists);
    assert_eq!(volume.refused(with(XattrMode::Replace, "user.n")), Refusal::NoData);
    volume.done(with(XattrMode::Replace, "user.x"));
    assert_eq!(volume.refused(set(file, "user.x", &vec![0; 65537])), Refusal::TooBig);
    assert_eq!(volume.refused(set(file, "system.other", b"")), Refusal::NotSupported);
    assert_eq!(volume.refused(set(file, "odd", b"")), Refusal::NotSupported);
    assert!(matches!(volume.refused(set(file, "user.", b"")), Refusal::Invalid(_)));
    assert_eq!(volume.refused(set(file, &format!("user.{}", "x".repeat(251)), b"")), Refusal::OutOfRange);
    assert_clean(&volume, 100);
    let remove = |name: &str| Operation::RemoveXattr { ino: file, name: name.into(), now: NOW };
    volume.done(remove("user.x"));
    assert_eq!(volume.refused(remove("user.x")), Refusal::NoData);
    volume.unlink(Ino::ROOT, "a").unwrap();
    assert_clean(&volume, 100);
}

#[test]
fn the_list_of_attributes_has_a_longest_length() {
    let volume = Volume::new(100);
    let file = volume.file("a");
    let name = |i: u32| format!("user.{}{i:03}", "n".repeat(245));
    let fits = 65536 / (u32::try_from(name(0).len()).unwrap() + 1);
    for i in 0..fits {
        volume.done(set(file, &name(i), b""));
    }
    assert_eq!(volume.refused(set(file, &name(fits), b"")), Refusal::NoSpace);
}

#[test]
fn an_access_list_and_the_mode_follow_each_other() {
    let volume = Volume::new(100);
    let file = volume.file("a");
    volume.done(set(file, ACCESS, &extended()));
    assert_eq!(volume.attr(file).mode, 0o774, "the mask is the group's bits");
    assert_eq!(get(&volume, file, ACCESS).unwrap(), extended());
    assert_clean(&volume, 100);
    volume.entry(set_mode(file, 0o640));
    let masked = acl(&[(1, 6, NONE), (2, 6, 1234), (4, 5, NONE), (16, 4, NONE), (32, 0, NONE)]);
    assert_eq!(get(&volume, file, ACCESS).unwrap(), masked);
    // What the mode says in full is not kept beside it.
    volume.done(set(file, ACCESS, &acl(&[(1, 6, NONE), (4, 6, NONE), (32, 0, NONE)])));
    assert_eq!(volume.attr(file).mode, 0o660);
    assert_eq!(get(&volume, file, ACCESS), Err(Refusal::NoData));
    volume.entry(set_mode(file, 0o2770));
    let sgid = Operation::SetXattr {
        ino: file,
        name: ACCESS.into(),
        value: extended(),
        mode: XattrMode::Set,
        clear_sgid: true,
        now: NOW,
    };
    volume.done(sgid);
    assert_eq!(volume.attr(file).mode, 0o774);
    volume.done(Operation::RemoveXattr { ino: file, name: ACCESS.into(), now: NOW });
    assert_eq!(volume.attr(file).mode, 0o774);
    assert_clean(&volume, 100);
}

#[test]
fn bad_lists_are_refused() {
    let volume = Volume::new(100);
    let file = volume.file("a");
    let bad = [
        acl(&[(1, 7, NONE), (4, 5, NONE)]),
        acl(&[(1, 8, NONE), (4, 5, NONE), (32, 0, NONE)]),
        acl(&[(4, 5, NONE), (1, 7, NONE), (32, 0, NONE)]),
        acl(&[(1, 7, NONE), (2, 7, 5), (4, 5, NONE), (32, 0, NONE)]),
        acl(&[(1, 7, NONE), (1, 7, NONE), (4, 5, NONE), (32, 0, NONE)]),
        acl(&[(1, 7, NONE), (3, 7, NONE), (4, 5, NONE), (32, 0, NONE)]),
        vec![2, 0, 0, 0, 1],
        vec![2, 0],
    ];
    for value in bad {
        assert!(matches!(volume.refused(set(file, ACCESS, &value)), Refusal::Invalid(_)), "{value:?}");
    }
    assert_eq!(volume.refused(set(file, ACCESS, &[1, 0, 0, 0])), Refusal::NotSupported);
    assert_eq!(volume.refused(set(file, DEFAULT, &extended())), Refusal::NotPermitted);
}

#[test]
fn new_inodes_inherit_the_default_list_instead_of_the_umask() {
    let volume = Volume::new(100);
    let directory = volume.directory(Ino::ROOT, "d");
    volume.done(set(directory, DEFAULT, &extended()));
    let file = volume.create(directory, "f", Created::File);
    assert_eq!(file.mode, 0o664, "the mask and the mode asked for, without the umask");
    let inherited = acl(&[(1, 6, NONE), (2, 6, 1234), (4, 5, NONE), (16, 6, NONE), (32, 4, NONE)]);
    assert_eq!(get(&volume, file.ino, ACCESS).unwrap(), inherited);
    assert_eq!(get(&volume, file.ino, DEFAULT), Err(Refusal::NoData));
    let below = volume.create(directory, "e", Created::Directory);
    assert_eq!(below.mode, 0o774);
    assert_eq!(get(&volume, below.ino, DEFAULT).unwrap(), extended());
    let link = volume.create(directory, "l", Created::Symlink(b"x".to_vec()));
    assert_eq!(link.mode, 0o777);
    // A default list that says no more than a mode leaves none behind.
    volume.done(set(directory, DEFAULT, &acl(&[(1, 7, NONE), (4, 0, NONE), (32, 0, NONE)])));
    let file = volume.create(directory, "g", Created::File);
    assert_eq!((file.mode, get(&volume, file.ino, ACCESS)), (0o600, Err(Refusal::NoData)));
    assert_clean(&volume, 100);
}

#[test]
fn set_group_id_directories_hand_their_group_on() {
    let volume = Volume::new(100);
    let directory = volume.directory(Ino::ROOT, "d");
    let set = SetAttr { mode: Some(0o2775), gid: Some(777), ..SetAttr::default() };
    volume.entry(Operation::SetAttr { ino: directory, set, now: NOW });
    let file = volume.create(directory, "f", Created::File);
    assert_eq!((file.gid, file.mode), (777, 0o644));
    let below = volume.create(directory, "e", Created::Directory);
    assert_eq!((below.gid, below.mode), (777, 0o2755));
}

proptest::proptest! {
    #[test]
    fn arbitrary_lists_are_read_or_refused(value: Vec<u8>, mode: u32) {
        if let Ok(Some(acl)) = crate::coordinator::acl::Acl::parse(&value) {
            proptest::prop_assert_eq!(acl.value(), value);
            let (inherited, _) = acl.inherit(mode);
            proptest::prop_assert!(crate::coordinator::acl::Acl::parse(&inherited.value()).is_ok());
        }
    }
}
