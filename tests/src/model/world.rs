//! The same operations on a real folder, by system calls.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path as RealPath, PathBuf};

use super::reference::attribute_value;
use super::{Allocate, Op, Path, Rename, Seen};

type Errno = i32;

fn real(root: &RealPath, path: &Path) -> PathBuf {
    path.iter().fold(root.to_owned(), |at, name| at.join(format!("n{name}")))
}

fn c(path: &RealPath) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("the test's paths have no NUL")
}

fn errno(error: &Error) -> Errno {
    error.raw_os_error().unwrap_or(-1)
}

fn check(status: i64) -> Result<(), Errno> {
    if status < 0 { Err(errno(&Error::last_os_error())) } else { Ok(()) }
}

fn open(path: &RealPath) -> Result<File, Errno> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path).map_err(|e| errno(&e))
}

/// Does `op` in the folder `root`; gives the errno if it is refused.
pub fn apply(root: &RealPath, op: &Op) -> Result<(), Errno> {
    let io = |result: std::io::Result<()>| result.map_err(|error| errno(&error));
    match op {
        Op::MakeDirectory(path) => {
            let path = c(&real(root, path));
            // SAFETY: a valid C string.
            check(unsafe { libc::mkdir(path.as_ptr(), 0o755) }.into())
        }
        Op::Create(path) => {
            let made = OpenOptions::new().write(true).create_new(true).mode(0o644).open(real(root, path));
            io(made.map(drop))
        }
        Op::Symlink(path) => io(std::os::unix::fs::symlink("nowhere/at/all", real(root, path))),
        Op::Link(from, to) => io(std::fs::hard_link(real(root, from), real(root, to))),
        Op::Unlink(path) => io(std::fs::remove_file(real(root, path))),
        Op::RemoveDirectory(path) => io(std::fs::remove_dir(real(root, path))),
        Op::Rename(from, to, how) => {
            let (from, to) = (c(&real(root, from)), c(&real(root, to)));
            let flags = match how {
                Rename::Plain => 0,
                Rename::NoReplace => libc::RENAME_NOREPLACE,
                Rename::Exchange => libc::RENAME_EXCHANGE,
            };
            // SAFETY: two valid C strings.
            check(
                unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) }
                    .into(),
            )
        }
        Op::Write(path, offset, len, value) => {
            io(open(&real(root, path))?.write_all_at(&vec![*value; *len as usize], u64::from(*offset)))
        }
        Op::Truncate(path, size) => io(open(&real(root, path))?.set_len(u64::from(*size))),
        Op::Allocate(path, offset, len, how) => {
            let file = open(&real(root, path))?;
            let mode = match how {
                Allocate::Grow => 0,
                Allocate::Keep => libc::FALLOC_FL_KEEP_SIZE,
                Allocate::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                Allocate::Zero => libc::FALLOC_FL_ZERO_RANGE,
            };
            // SAFETY: an open descriptor.
            check(
                unsafe { libc::fallocate(file.as_raw_fd(), mode, i64::from(*offset), i64::from(*len)) }
                    .into(),
            )
        }
        Op::Copy(from, from_offset, to, to_offset, len) => {
            let (source, target) = (open(&real(root, from))?, open(&real(root, to))?);
            let (mut from, mut to) = (i64::from(*from_offset), i64::from(*to_offset));
            // What the copy itself adds to the end of a file is not copied again.
            let size = source.metadata().map_err(|error| errno(&error))?.len();
            let end = (from + i64::from(*len)).min(i64::try_from(size).unwrap_or(i64::MAX));
            while from < end {
                let left = usize::try_from(end - from).expect("the test's lengths are small");
                // SAFETY: two open descriptors and two valid offsets.
                let copied = unsafe {
                    libc::copy_file_range(source.as_raw_fd(), &mut from, target.as_raw_fd(), &mut to, left, 0)
                };
                check(copied as i64)?;
                if copied == 0 {
                    break;
                }
            }
            Ok(())
        }
        Op::Mode(path, mode) => {
            io(std::fs::set_permissions(real(root, path), std::fs::Permissions::from_mode(u32::from(*mode))))
        }
        Op::SetAttribute(path, name, len) => {
            let (path, value) = (c(&real(root, path)), attribute_value(*name, *len));
            let name = CString::new(format!("user.{name}")).expect("no NUL");
            // SAFETY: valid C strings, and a value with its length.
            let status = unsafe {
                libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
            };
            check(status.into())
        }
        Op::RemoveAttribute(path, name) => {
            let path = c(&real(root, path));
            let name = CString::new(format!("user.{name}")).expect("no NUL");
            // SAFETY: valid C strings.
            check(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }.into())
        }
        Op::Map(path, offset, len, value) => map(&open(&real(root, path))?, *offset, *len, *value),
    }
}

fn map(file: &File, offset: u32, len: u32, value: u8) -> Result<(), Errno> {
    let size = usize::try_from(file.metadata().map_err(|error| errno(&error))?.len()).unwrap_or(0);
    let end = ((offset + len) as usize).min(size);
    let start = (offset as usize).min(end);
    if start == end {
        return Ok(());
    }
    // SAFETY: a new mapping of an open file at an address that the kernel chooses.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(errno(&Error::last_os_error()));
    }
    // SAFETY: `start..end` lies within the mapping, and nobody shortens the file meanwhile.
    unsafe { memory.cast::<u8>().add(start).write_bytes(value, end - start) };
    // SAFETY: the mapping made above, and all of it.
    let synced = unsafe { libc::msync(memory, size, libc::MS_SYNC) };
    let result = check(synced.into());
    // SAFETY: the mapping made above is not used after this.
    unsafe { libc::munmap(memory, size) };
    result
}

fn attributes(path: &RealPath) -> BTreeMap<u8, Vec<u8>> {
    let mut found = BTreeMap::new();
    let path = c(path);
    for name in 0..4_u8 {
        let attribute = CString::new(format!("user.{name}")).expect("no NUL");
        let mut value = vec![0; 1 << 16];
        // SAFETY: valid C strings, and a buffer with its length.
        let len = unsafe {
            libc::lgetxattr(path.as_ptr(), attribute.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        if let Ok(len) = usize::try_from(len) {
            value.truncate(len);
            found.insert(name, value);
        }
    }
    found
}

/// Walks the folder `root` and tells all that it sees.
///
/// # Errors
/// What the walk could not read.
pub fn look(root: &RealPath) -> std::io::Result<BTreeMap<Path, Seen>> {
    let mut seen = BTreeMap::new();
    walk(root, &mut Vec::new(), &mut seen)?;
    Ok(seen)
}

fn walk(folder: &RealPath, path: &mut Path, seen: &mut BTreeMap<Path, Seen>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) =
            name.to_str().and_then(|name| name.strip_prefix('n')).and_then(|name| name.parse().ok())
        else {
            continue;
        };
        path.push(name);
        let real = entry.path();
        let data = std::fs::symlink_metadata(&real)?;
        let mode = u16::try_from(data.mode() & 0o7777).expect("twelve bits");
        let view = if data.is_dir() {
            Seen::Directory(mode, data.nlink(), attributes(&real))
        } else if data.is_symlink() {
            assert_eq!(std::fs::read_link(&real)?.as_os_str(), "nowhere/at/all");
            Seen::Symlink
        } else {
            let contents = std::fs::read(&real)?;
            assert_eq!(contents.len() as u64, data.len(), "{}: stat and read disagree", real.display());
            Seen::File(contents, mode, data.nlink(), attributes(&real))
        };
        seen.insert(path.clone(), view);
        if data.is_dir() {
            walk(&real, path, seen)?;
        }
        path.pop();
    }
    Ok(())
}
