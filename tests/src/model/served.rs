//! The same operations asked of the node directly, without a kernel between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use csvfs::proto::{Allocation, Created, RenameMode, SetAttr, XattrMode};
use csvfs::refusal::Refusal;
use csvfs::service::{Credentials, Done, FileService, HandleId, OpenMode, Piece, ReadData, WriteMode};
use csvfs::types::{Attr, Ino, Kind};
use redirector::buffer::Pool;

use super::reference::attribute_value;
use super::{Allocate, Op, Path, Rename, Seen};

/// How long a call may take before the test says that it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const WHO: Credentials = Credentials { uid: 0, gid: 0, umask: 0o022 };

/// Calls a service and waits for its answer.
pub fn call<T: Send + 'static>(start: impl FnOnce(Done<T>)) -> Result<T, Refusal> {
    let (sender, receiver) = mpsc::sync_channel(1);
    start(Box::new(move |result| {
        let _ = sender.send(result);
    }));
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("a call had no answer within {PATIENCE:?}"))
}

/// A node, asked by paths.
#[derive(Clone, Debug)]
pub struct Served {
    service: Arc<dyn FileService>,
    pool: Pool,
}

type Answer<T> = Result<T, i32>;

fn errno<T>(result: Result<T, Refusal>) -> Answer<T> {
    result.map_err(|refusal| refusal.errno())
}

fn name(number: u8) -> Vec<u8> {
    format!("n{number}").into_bytes()
}

impl Served {
    /// Asks `service`.
    #[must_use]
    pub fn new(service: Arc<dyn FileService>) -> Self {
        Self { service, pool: Pool::default() }
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Answer<Attr> {
        errno(call(|done| self.service.lookup(parent, name, done)))
    }

    fn parent(&self, path: &Path) -> Answer<(Ino, Vec<u8>)> {
        let (last, above) = path.split_last().expect("paths are not empty");
        let mut at = Ino::ROOT;
        for number in above {
            let attr = self.lookup(at, &name(*number))?;
            match attr.kind {
                Kind::Directory => at = attr.ino,
                Kind::Symlink => return Err(libc::ENOENT),
                _ => return Err(libc::ENOTDIR),
            }
        }
        Ok((at, name(*last)))
    }

    fn find(&self, path: &Path) -> Answer<Attr> {
        let (parent, name) = self.parent(path)?;
        self.lookup(parent, &name)
    }

    fn open(&self, path: &Path) -> Answer<HandleId> {
        let attr = self.find(path)?;
        match attr.kind {
            Kind::Directory => return Err(libc::EISDIR),
            Kind::Symlink => return Err(libc::ELOOP),
            _ => {}
        }
        let mode = OpenMode { read: true, write: true, ..OpenMode::default() };
        Ok(errno(call(|done| self.service.open(attr.ino, mode, done)))?.handle)
    }

    fn with_file<T>(&self, path: &Path, work: impl FnOnce(HandleId) -> Answer<T>) -> Answer<T> {
        let handle = self.open(path)?;
        let result = work(handle);
        self.service.release(handle);
        result
    }

    /// fsync of a file.
    pub fn sync(&self, path: &Path) -> Answer<()> {
        self.with_file(path, |handle| errno(call(|done| self.service.sync(handle, done))))
    }

    fn create(&self, path: &Path, what: Created, mode: u32) -> Answer<()> {
        let (parent, name) = self.parent(path)?;
        errno(call(|done| self.service.create(WHO, parent, &name, what, mode, done))).map(drop)
    }

    fn write(&self, handle: HandleId, offset: u64, value: u8, len: u32) -> Answer<()> {
        // The kernel sends a large write in parts.
        let mut at = 0;
        while at < len {
            let part = (len - at).min(1 << 20);
            let mut buffer = self.pool.take(part as usize);
            buffer.fill(value);
            let offset = offset + u64::from(at);
            errno(call(|done| {
                self.service.write(handle, offset, buffer.share(), WriteMode::default(), done)
            }))?;
            at += part;
        }
        Ok(())
    }

    /// Does `op`; gives the errno if it is refused.
    pub fn apply(&self, op: &Op) -> Answer<()> {
        let service = &self.service;
        match op {
            Op::MakeDirectory(path) => self.create(path, Created::Directory, 0o755),
            Op::Create(path) => self.create(path, Created::File, 0o644),
            Op::Symlink(path) => self.create(path, Created::Symlink(b"nowhere/at/all".to_vec()), 0o777),
            Op::Link(from, to) => {
                let (inode, (parent, name)) = (self.find(from)?, self.parent(to)?);
                if self.lookup(parent, &name).is_ok() {
                    return Err(libc::EEXIST);
                }
                errno(call(|done| service.link(inode.ino, parent, &name, done))).map(drop)
            }
            Op::Unlink(path) => {
                let (parent, name) = self.parent(path)?;
                errno(call(|done| service.unlink(parent, &name, done)))
            }
            Op::RemoveDirectory(path) => {
                let (parent, name) = self.parent(path)?;
                errno(call(|done| service.remove_directory(parent, &name, done)))
            }
            Op::Rename(from, to, how) => {
                let ((parent, name), (new_parent, new_name)) = (self.parent(from)?, self.parent(to)?);
                let how = match how {
                    Rename::Plain => RenameMode::Replace,
                    Rename::NoReplace => RenameMode::NoReplace,
                    Rename::Exchange => RenameMode::Exchange,
                };
                errno(call(|done| service.rename(parent, &name, new_parent, &new_name, how, done)))
            }
            Op::Write(path, offset, len, value) => {
                self.with_file(path, |handle| self.write(handle, u64::from(*offset), *value, *len))
            }
            Op::Truncate(path, size) => self.with_file(path, |_| {
                let ino = self.find(path)?.ino;
                let size = Some(u64::from(*size));
                errno(call(|done| service.set_attr(ino, SetAttr::default(), size, done))).map(drop)
            }),
            Op::Allocate(path, offset, len, how) => self.with_file(path, |handle| {
                if *len == 0 {
                    return Err(libc::EINVAL);
                }
                let (how, keep_size) = match how {
                    Allocate::Grow => (Allocation::Allocate, false),
                    Allocate::Keep => (Allocation::Allocate, true),
                    Allocate::Punch => (Allocation::Punch, true),
                    Allocate::Zero => (Allocation::Zero, false),
                };
                let (offset, len) = (u64::from(*offset), u64::from(*len));
                errno(call(|done| service.allocate(handle, offset, len, how, keep_size, done)))
            }),
            Op::Copy(from, from_offset, to, to_offset, len) => {
                self.copy(from, *from_offset, to, *to_offset, *len)
            }
            Op::Mode(path, mode) => {
                let attr = self.find(path)?;
                if attr.kind == Kind::Symlink {
                    return Err(libc::ENOENT);
                }
                let set = SetAttr { mode: Some(u32::from(*mode)), ..SetAttr::default() };
                errno(call(|done| service.set_attr(attr.ino, set, None, done))).map(drop)
            }
            Op::SetAttribute(path, number, len) => {
                let attr = self.find(path)?;
                if attr.kind == Kind::Symlink {
                    return Err(libc::EPERM);
                }
                let (name, value) = (format!("user.{number}").into_bytes(), attribute_value(*number, *len));
                errno(call(|done| service.set_xattr(attr.ino, &name, &value, XattrMode::Set, false, done)))
            }
            Op::RemoveAttribute(path, number) => {
                let attr = self.find(path)?;
                if attr.kind == Kind::Symlink {
                    return Err(libc::EPERM);
                }
                let name = format!("user.{number}").into_bytes();
                errno(call(|done| service.remove_xattr(attr.ino, &name, done)))
            }
            // What a mapping writes comes as writes of whole pages, cut at the end of the file.
            Op::Map(path, offset, len, value) => self.with_file(path, |handle| {
                let size = self.find(path)?.size;
                let end = u64::from(offset + len).min(size);
                let start = u64::from(*offset).min(end);
                let len = u32::try_from(end - start).expect("cut from a length of 32 bits");
                self.write(handle, start, *value, len)
            }),
        }
    }

    fn copy(&self, from: &Path, from_offset: u32, to: &Path, to_offset: u32, len: u32) -> Answer<()> {
        self.with_file(from, |source| {
            self.with_file(to, |target| {
                // What the copy itself adds to the end of a file is not copied again.
                let left = self.find(from)?.size.saturating_sub(u64::from(from_offset));
                let (mut done_bytes, len) = (0, u64::from(len).min(left));
                while done_bytes < len {
                    let (at, into) = (u64::from(from_offset) + done_bytes, u64::from(to_offset) + done_bytes);
                    let left = len - done_bytes;
                    let copied =
                        errno(call(|done| self.service.copy_range(source, at, target, into, left, done)))?;
                    if copied == 0 {
                        break;
                    }
                    done_bytes += copied;
                }
                Ok(())
            })
        })
    }

    /// Walks everything.
    pub fn look(&self) -> Answer<BTreeMap<Path, Seen>> {
        let mut seen = BTreeMap::new();
        self.walk(Ino::ROOT, &mut Vec::new(), &mut seen)?;
        Ok(seen)
    }

    fn walk(&self, ino: Ino, path: &mut Path, seen: &mut BTreeMap<Path, Seen>) -> Answer<()> {
        let mut after = 0;
        loop {
            let (entries, end) =
                errno(call(|done| self.service.read_directory(ino, after, 32 << 10, true, done)))?;
            for entry in &entries {
                let Some(number) =
                    std::str::from_utf8(&entry.name).ok().and_then(|name| name.strip_prefix('n'))
                else {
                    continue;
                };
                path.push(number.parse().expect("the test's names are numbers"));
                let attr = errno(call(|done| self.service.get_attr(entry.ino, done)))?;
                let mode = u16::try_from(attr.mode).expect("twelve bits");
                let nlink = u64::from(attr.nlink);
                let view = match attr.kind {
                    Kind::Directory => Seen::Directory(mode, nlink, self.attributes(attr.ino)?),
                    Kind::Symlink => Seen::Symlink,
                    _ => Seen::File(self.read(attr)?, mode, nlink, self.attributes(attr.ino)?),
                };
                seen.insert(path.clone(), view);
                if attr.kind == Kind::Directory {
                    self.walk(attr.ino, path, seen)?;
                }
                path.pop();
            }
            match entries.last() {
                Some(last) if !end => after = last.cookie,
                _ => return Ok(()),
            }
        }
    }

    fn attributes(&self, ino: Ino) -> Answer<BTreeMap<u8, Vec<u8>>> {
        let list = errno(call(|done| self.service.list_xattr(ino, done)))?;
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut found = BTreeMap::new();
        for name in names {
            let value = errno(call(|done| self.service.get_xattr(ino, name, done)))?;
            let number =
                std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix("user.")?.parse().ok());
            found.insert(number.expect("the test's attributes are numbers"), value);
        }
        Ok(found)
    }

    fn read(&self, attr: Attr) -> Answer<Vec<u8>> {
        let mode = OpenMode { read: true, ..OpenMode::default() };
        let opened = errno(call(|done| self.service.open(attr.ino, mode, done)))?;
        let mut contents = Vec::new();
        let result = loop {
            let offset = contents.len() as u64;
            match errno(call(|done| self.service.read(opened.handle, offset, 1 << 20, done))) {
                Ok(data) => {
                    let before = contents.len();
                    append(&mut contents, data);
                    if contents.len() == before {
                        break Ok(contents);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        self.service.release(opened.handle);
        result
    }
}

fn append(contents: &mut Vec<u8>, data: ReadData) {
    for piece in data.pieces {
        match piece {
            Piece::Bytes { buffer, skip, len } => contents.extend_from_slice(&buffer[skip..skip + len]),
            Piece::Zeros(len) => contents.resize(contents.len() + len, 0),
        }
    }
}
