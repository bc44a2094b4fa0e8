//! Names, links, kinds of inodes, and directories.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;

use crate::mounted::{Mounted, checked, errno, terminated};

fn rename(from: &Path, to: &Path, flags: u32) -> std::io::Result<()> {
    let (from, to) = (terminated(from), terminated(to));
    // SAFETY: both are NUL-terminated strings.
    let status =
        unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    checked(status).map(|_| ())
}

#[test]
fn names_come_and_go() {
    let mounted = Mounted::new();
    let (file, directory) = (mounted.path("file"), mounted.path("directory"));
    assert!(!file.exists(), "the name is now known to be absent");
    fs::write(&file, "x").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"x", "a name that was known to be absent exists");
    fs::create_dir(&directory).unwrap();
    assert_eq!(fs::metadata(mounted.root()).unwrap().nlink(), 3);
    fs::create_dir(directory.join("inner")).unwrap();
    assert_eq!(errno(fs::remove_dir(&directory)), libc::ENOTEMPTY);
    assert_eq!(errno(fs::create_dir(&directory)), libc::EEXIST);
    assert_eq!(errno(fs::remove_file(&directory)), libc::EISDIR);
    assert_eq!(errno(fs::remove_dir(&file)), libc::ENOTDIR);
    fs::remove_dir(directory.join("inner")).unwrap();
    fs::remove_dir(&directory).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(errno(fs::metadata(&file)), libc::ENOENT);
    assert_eq!(fs::metadata(mounted.root()).unwrap().nlink(), 2);
    assert_eq!(errno(fs::write(mounted.path(&"n".repeat(256)), "")), libc::ENAMETOOLONG);
    fs::write(mounted.path(&"n".repeat(255)), "").unwrap();
}

#[test]
fn hard_links_are_one_inode() {
    let mounted = Mounted::new();
    let (first, second) = (mounted.path("first"), mounted.path("second"));
    fs::write(&first, "one").unwrap();
    let alone = fs::metadata(&first).unwrap();
    fs::hard_link(&first, &second).unwrap();
    let (of_first, of_second) = (fs::metadata(&first).unwrap(), fs::metadata(&second).unwrap());
    assert_eq!((of_first.ino(), of_first.nlink()), (of_second.ino(), 2));
    assert!((of_first.ctime(), of_first.ctime_nsec()) > (alone.ctime(), alone.ctime_nsec()));
    fs::write(&second, "three").unwrap();
    assert_eq!(fs::read(&first).unwrap(), b"three");
    fs::remove_file(&first).unwrap();
    let left = fs::metadata(&second).unwrap();
    assert_eq!(left.nlink(), 1, "the other name shows that one is gone");
    assert!((left.ctime(), left.ctime_nsec()) > (of_second.ctime(), of_second.ctime_nsec()));
    assert_eq!(errno(fs::hard_link(&second, &second)), libc::EEXIST);
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    fs::write(&path, "still here").unwrap();
    let file = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(std::io::read_to_string(&file).unwrap(), "still here");
}

#[test]
fn symbolic_links_and_special_files() {
    let mounted = Mounted::new();
    let link = mounted.path("link");
    symlink("some/where", &link).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("some/where"));
    assert_eq!(fs::symlink_metadata(&link).unwrap().len(), 10);
    let cases = [
        ("fifo", libc::S_IFIFO, 0),
        ("socket", libc::S_IFSOCK, 0),
        ("char", libc::S_IFCHR, libc::makedev(1, 3)),
        ("block", libc::S_IFBLK, libc::makedev(259, 70_000)),
    ];
    for (name, kind, device) in cases {
        let path = mounted.path(name);
        // SAFETY: the path is a NUL-terminated string.
        checked(unsafe { libc::mknod(terminated(&path).as_ptr(), kind | 0o600, device) }).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.mode() & libc::S_IFMT, kind, "{name}");
        assert_eq!(metadata.rdev(), device, "{name}");
    }
    assert!(fs::metadata(mounted.path("fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn rename_replaces_refuses_or_exchanges() {
    let mounted = Mounted::new();
    let (a, b, c) = (mounted.path("a"), mounted.path("b"), mounted.path("c"));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    let open_b = File::open(&b).unwrap();
    assert_eq!(errno(rename(&a, &b, libc::RENAME_NOREPLACE)), libc::EEXIST);
    rename(&a, &b, libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".to_vec(), b"a".to_vec()));
    rename(&a, &b, 0).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"b");
    assert!(!a.exists());
    assert_eq!(open_b.metadata().unwrap().nlink(), 1);
    assert_eq!(errno(rename(&b, &c, libc::RENAME_EXCHANGE)), libc::ENOENT);
    assert_eq!(errno(rename(&b, &c, libc::RENAME_WHITEOUT)), libc::EINVAL);

    let (full, empty) = (mounted.path("full"), mounted.path("empty"));
    fs::create_dir(&full).unwrap();
    fs::write(full.join("inside"), "").unwrap();
    fs::create_dir(&empty).unwrap();
    assert_eq!(errno(rename(&empty, &full, 0)), libc::ENOTEMPTY);
    rename(&full, &empty, 0).unwrap();
    assert!(empty.join("inside").exists());
    assert_eq!(fs::metadata(mounted.root()).unwrap().nlink(), 3);
}

#[test]
fn a_file_without_a_name_can_get_one() {
    let mounted = Mounted::new();
    let options = OpenOptions::new().read(true).write(true).mode(0o640).custom_flags(libc::O_TMPFILE).clone();
    let file = options.open(mounted.root()).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(fs::read_dir(mounted.root()).unwrap().count(), 0);
    std::io::Write::write_all(&mut &file, b"hidden").unwrap();
    let (from, to) = (format!("/proc/self/fd/{}\0", file.as_raw_fd()), mounted.path("named"));
    // SAFETY: both are NUL-terminated strings.
    let status = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr().cast(),
            libc::AT_FDCWD,
            terminated(&to).as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    checked(status).unwrap();
    assert_eq!(fs::read(&to).unwrap(), b"hidden");
    assert_eq!(file.metadata().unwrap().nlink(), 1);
}

#[test]
fn a_large_directory_is_listed_whole_and_positions_stay() {
    let mounted = Mounted::new();
    let directory = mounted.path("many");
    fs::create_dir(&directory).unwrap();
    for number in 0..10_000 {
        File::create(directory.join(format!("entry-{number:05}"))).unwrap();
    }
    let listed: HashSet<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(listed.len(), 10_000);

    // SAFETY: the path is a NUL-terminated string.
    let stream = unsafe { libc::opendir(terminated(&directory).as_ptr()) };
    assert!(!stream.is_null());
    let next = || {
        // SAFETY: the stream is open; the entry is used before the next call.
        let entry = unsafe { libc::readdir64(stream) };
        if entry.is_null() {
            return None;
        }
        // SAFETY: the name is NUL-terminated within the entry.
        let name = unsafe { std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()) };
        // SAFETY: the entry is valid until the next call.
        Some((name.to_str().unwrap().to_owned(), unsafe { (*entry).d_ino }))
    };
    let (dot, dots) = (next().unwrap(), next().unwrap());
    assert_eq!(dot, (".".to_owned(), fs::metadata(&directory).unwrap().ino()));
    assert_eq!(dots, ("..".to_owned(), fs::metadata(mounted.root()).unwrap().ino()));
    let mut positions = Vec::new();
    loop {
        // SAFETY: the stream is open.
        let position = unsafe { libc::telldir(stream) };
        let Some((name, _)) = next() else { break };
        positions.push((position, name));
    }
    assert_eq!(positions.len(), 10_000);
    for removed in (0..10_000).step_by(3) {
        fs::remove_file(directory.join(&positions[removed].1)).unwrap();
    }
    for place in [9_998, 1, 5_000, 4_999] {
        let expected = &positions[if place % 3 == 0 { place + 1 } else { place }];
        // SAFETY: the stream is open, and the position is one of its own.
        unsafe { libc::seekdir(stream, positions[place].0) };
        assert_eq!(next().unwrap().0, expected.1, "at {place}");
    }
    // SAFETY: the stream is open and not used any more.
    unsafe { libc::closedir(stream) };
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 6_666);
}

#[test]
fn names_are_asked_for_once() {
    let mounted = Mounted::new();
    let path = mounted.path("file");
    fs::write(&path, "").unwrap();
    let _absent = fs::metadata(mounted.path("absent"));
    let before = mounted.memory.seen().lookups;
    for _ in 0..10 {
        fs::metadata(&path).unwrap();
        assert!(fs::metadata(mounted.path("absent")).is_err());
    }
    assert_eq!(mounted.memory.seen().lookups, before);
}

#[test]
fn an_inode_is_found_by_its_handle() {
    let mounted = Mounted::new();
    fs::create_dir(mounted.path("directory")).unwrap();
    let path = mounted.path("directory/file");
    fs::write(&path, "by handle").unwrap();
    #[repr(C)]
    struct Handle {
        head: libc::file_handle,
        room: [u8; 128],
    }
    // SAFETY: all zeros is a valid handle of length zero.
    let mut handle: Handle = unsafe { std::mem::zeroed() };
    handle.head.handle_bytes = 128;
    let mut mount = 0;
    // SAFETY: the path is NUL-terminated, and the handle has the room that it says.
    let status = unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            terminated(&path).as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            0,
        )
    };
    checked(status).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let root = File::open(mounted.root()).unwrap();
    // SAFETY: the handle was filled by the kernel.
    let descriptor = checked(unsafe {
        libc::open_by_handle_at(root.as_raw_fd(), (&raw mut handle).cast(), libc::O_RDONLY)
    });
    // SAFETY: the kernel has just made the descriptor.
    let file = unsafe { File::from_raw_fd(i32::try_from(descriptor.unwrap()).unwrap()) };
    assert_eq!(std::io::read_to_string(&file).unwrap(), "by handle");
}
