//! Attributes, extended ones, access lists, and what a write takes away.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use csvfs::fuse::{Caching, MountOptions};

use crate::mounted::{Mounted, checked, errno, terminated};

fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let times = [atime, mtime].map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec });
    // SAFETY: the path is NUL-terminated, and there are two times.
    checked(unsafe { libc::utimensat(libc::AT_FDCWD, terminated(path).as_ptr(), times.as_ptr(), 0) })
        .unwrap();
}

/// Runs a shell command as nobody.
fn as_nobody(script: &str) -> bool {
    Command::new("sh").arg("-c").arg(script).uid(65_534).gid(65_534).status().unwrap().success()
}

#[test]
fn times_modes_and_owners_are_set() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    fs::write(&path, "x").unwrap();
    set_times(&path, (1_000, 5), (-1_000, 999_999_999));
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.atime(), metadata.atime_nsec()), (1_000, 5));
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (-1_000, 999_999_999));
    set_times(&path, (0, libc::UTIME_OMIT), (0, libc::UTIME_NOW));
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.atime(), metadata.atime_nsec()), (1_000, 5));
    assert!(metadata.mtime() > 1_700_000_000);
    fs::set_permissions(&path, Permissions::from_mode(0o6751)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6751);
    chown(&path, Some(12), Some(34)).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12, 34, 0o751));
    assert!(metadata.created().unwrap().elapsed().is_ok(), "the time of creation is carried");
}

#[test]
fn writes_change_the_times_at_once() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    fs::write(&path, "x").unwrap();
    set_times(&path, (1_000, 0), (1_000, 0));
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 1_000);
    fs::write(&path, "y").unwrap();
    assert!(fs::metadata(&path).unwrap().mtime() > 1_000);
    let before = fs::metadata(mounted.root()).unwrap();
    fs::write(mounted.path("other"), "").unwrap();
    let after = fs::metadata(mounted.root()).unwrap();
    assert!((after.mtime(), after.mtime_nsec()) > (before.mtime(), before.mtime_nsec()));
}

#[test]
fn a_write_by_another_takes_set_id_bits_away() {
    let mounted = Mounted::new();
    fs::set_permissions(mounted.root(), Permissions::from_mode(0o777)).unwrap();
    let changes = ["echo y >>", "echo y 1<>", ": >", "truncate -s 1", "truncate -s 0"];
    for change in changes {
        let path = mounted.path("program");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o6777)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6777);
        fs::write(&path, "by root").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6777, "root may");
        assert!(as_nobody(&format!("{change} {}", path.display())), "{change}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777, "{change}");
    }
    // Without the group's execute bit, set-group-id means something else and stays.
    let path = mounted.path("marked");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o6766)).unwrap();
    assert!(as_nobody(&format!("echo y >> {}", path.display())));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o2766);
}

#[test]
fn the_kernel_checks_permissions_and_the_umask_is_ours() {
    let mounted = Mounted::new();
    let path = mounted.path("secret");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert!(!as_nobody(&format!("cat {} 2>/dev/null", path.display())));
    assert!(as_nobody(&format!("umask 027; echo x > {0}/made; mkdir {0}/folder", mounted.root().display())));
    let (made, folder) =
        (fs::metadata(mounted.path("made")).unwrap(), fs::metadata(mounted.path("folder")).unwrap());
    assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o640, 65_534, 65_534));
    assert_eq!(folder.mode() & 0o7777, 0o750);
}

fn get(path: &Path, name: &str, room: usize) -> io::Result<Vec<u8>> {
    let (path, name, mut value) = (terminated(path), CString::new(name).unwrap(), vec![0_u8; room]);
    // SAFETY: strings are NUL-terminated, and `value` has `room` bytes.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), room) };
    let len = usize::try_from(checked(len as i64)?).unwrap();
    value.resize(len, 0);
    Ok(value)
}

fn set(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (terminated(path), CString::new(name).unwrap());
    // SAFETY: strings are NUL-terminated, and the value is as long as said.
    let status =
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    checked(status).map(|_| ())
}

fn list(path: &Path) -> Vec<u8> {
    let (path, mut names) = (terminated(path), vec![0_u8; 1000]);
    // SAFETY: the path is NUL-terminated, and there is room for 1000 bytes.
    let len = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(checked(len as i64).unwrap()).unwrap());
    names
}

#[test]
fn extended_attributes() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    fs::write(&path, "x").unwrap();
    let before = fs::metadata(&path).unwrap();
    set(&path, "user.colour", b"blue", 0).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    assert_eq!(get(&path, "user.colour", 100).unwrap(), b"blue");
    assert_eq!(get(&path, "user.colour", 0).unwrap(), vec![0; 4], "the length by itself");
    assert_eq!(errno(get(&path, "user.colour", 3)), libc::ERANGE);
    assert_eq!(errno(get(&path, "user.none", 3)), libc::ENODATA);
    assert_eq!(errno(set(&path, "user.colour", b"red", libc::XATTR_CREATE)), libc::EEXIST);
    assert_eq!(errno(set(&path, "user.size", b"1", libc::XATTR_REPLACE)), libc::ENODATA);
    set(&path, "user.colour", b"", libc::XATTR_REPLACE).unwrap();
    assert_eq!(get(&path, "user.colour", 100).unwrap(), b"");
    let large: Vec<u8> = (0..65_536_u32).map(|place| place as u8).collect();
    set(&path, "user.large", &large, 0).unwrap();
    assert!(get(&path, "user.large", 65_536).unwrap() == large);
    assert_eq!(list(&path), b"user.colour\0user.large\0");
    // SAFETY: both are NUL-terminated strings.
    let removed = unsafe { libc::removexattr(terminated(&path).as_ptr(), c"user.colour".as_ptr()) };
    checked(removed).unwrap();
    assert_eq!(errno(get(&path, "user.colour", 3)), libc::ENODATA);
}

#[test]
fn access_lists_are_obeyed() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let read = format!("cat {} 2>/dev/null", path.display());
    assert!(!as_nobody(&read));
    // Version 2; then the owner rw, user nobody r, the group nothing, the mask r, others nothing.
    let entry = |tag: u16, bits: u16, id: u32| {
        [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let any = u32::MAX;
    let entries =
        [entry(1, 6, any), entry(2, 4, 65_534), entry(4, 0, any), entry(16, 4, any), entry(32, 0, any)];
    let list = [&2_u32.to_le_bytes()[..], &entries.concat()].concat();
    set(&path, "system.posix_acl_access", &list, 0).unwrap();
    assert!(as_nobody(&read));
    assert_eq!(get(&path, "system.posix_acl_access", 100).unwrap(), list);
}

#[test]
fn statfs_counts_blocks_of_4096() {
    let mounted = Mounted::new();
    // SAFETY: all zeros is valid room for the answer.
    let mut space: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated, and there is room for the answer.
    checked(unsafe { libc::statvfs(terminated(mounted.root()).as_ptr(), &raw mut space) }).unwrap();
    assert_eq!((space.f_bsize, space.f_frsize, space.f_namemax), (4096, 4096, 255));
    assert_eq!((space.f_blocks, space.f_bfree, space.f_bavail), (1000, 600, 600));
    assert!(space.f_ffree > 0 && space.f_files >= space.f_ffree);
}

#[test]
fn options_reach_the_kernel() {
    let mut options = MountOptions { caching: Caching::none(), threads: 4, ..MountOptions::default() };
    options.apply("nosuid,nodev,noexec,noatime,fsname=some volume").unwrap();
    let mounted = Mounted::with(&options);
    fs::write(mounted.path("file"), "works with nothing cached, too").unwrap();
    assert_eq!(fs::read(mounted.path("file")).unwrap().len(), 30);
    let root = mounted.root().to_str().unwrap().to_owned();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(&root)).unwrap();
    assert!(line.starts_with("some\\040volume ") && line.contains(" fuse.csvfs "), "{line}");
    for option in ["nosuid", "nodev", "noexec", "noatime", "default_permissions", "allow_other"] {
        assert!(line.contains(option), "{option} in {line}");
    }
    drop(mounted);

    options.apply("ro").unwrap();
    let mounted = Mounted::with(&options);
    assert_eq!(errno(fs::write(mounted.path("file"), "")), libc::EROFS);
    let directory = File::open(mounted.root()).unwrap();
    // SAFETY: the descriptor is open.
    checked(unsafe { libc::fsync(directory.as_raw_fd()) }).unwrap();
}
