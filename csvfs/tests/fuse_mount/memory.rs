//! A small file system in memory, against which the front end is tested: POSIX as far as a front end can show it.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use csvfs::proto::{Allocation, Created, RenameMode, SetAttr, XattrMode};
use csvfs::refusal::Refusal;
use csvfs::service::{
    Credentials, Done, FileService, HandleId, OpenMode, Opened, Piece, ReadData, Seek, WriteMode,
};
use csvfs::types::{Attr, BLOCK, DirEntry, Ino, Kind, SpaceReport, Timestamp, XATTR_VALUE_MAX};
use parking_lot::Mutex;
use redirector::buffer::{Pool, Slice};
use redirector::memory::{FaultyLun, MemoryLun};

type Answer<T> = Result<T, Refusal>;
type Later = Box<dyn FnOnce() + Send>;

#[derive(Debug, Default)]
struct Directory {
    parent: u64,
    names: HashMap<Vec<u8>, u64>,
    entries: BTreeMap<u64, (Vec<u8>, u64)>,
    last_cookie: u64,
}

#[derive(Debug)]
struct Inode {
    attr: Attr,
    directory: Directory,
    target: Vec<u8>,
    blocks: BTreeMap<u64, Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    handles: usize,
}

#[derive(Debug)]
struct Tree {
    inodes: HashMap<u64, Inode>,
    handles: HashMap<u64, (u64, OpenMode)>,
    last_ino: u64,
    last_handle: u64,
}

/// What the tests want to know of what the front end asked.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// The modes of the writes, and whether their data was aligned.
    pub writes: Vec<(WriteMode, usize, bool)>,
    /// How often everything was synced.
    pub syncs_of_all: usize,
    /// How many reads came.
    pub reads: usize,
    /// How many lookups came.
    pub lookups: usize,
    /// How often attributes were asked for.
    pub attributes: usize,
}

/// The file system. Data is read and written by a thread of its own, so that those answers come from there.
#[derive(Debug)]
pub struct Memory {
    tree: std::sync::Arc<Mutex<Tree>>,
    seen: Mutex<Seen>,
    later: Sender<Later>,
    pool: Pool,
    /// Read by whoever looks up a name that begins with `cold`.
    pub lun: FaultyLun,
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(i64::try_from(since.as_nanos()).unwrap())
}

impl Tree {
    fn get(&self, ino: u64) -> Answer<&Inode> {
        self.inodes.get(&ino).ok_or(Refusal::NotFound)
    }

    fn get_mut(&mut self, ino: u64) -> Answer<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or(Refusal::NotFound)
    }

    fn directory(&mut self, ino: u64) -> Answer<&mut Directory> {
        let inode = self.get_mut(ino)?;
        if inode.attr.kind == Kind::Directory { Ok(&mut inode.directory) } else { Err(Refusal::NotDirectory) }
    }

    fn find(&mut self, parent: u64, name: &[u8]) -> Answer<u64> {
        let directory = self.directory(parent)?;
        let cookie = directory.names.get(name).ok_or(Refusal::NotFound)?;
        Ok(directory.entries[cookie].1)
    }

    fn changed(&mut self, ino: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            (inode.attr.mtime, inode.attr.ctime) = (now(), now());
        }
    }

    fn enter(&mut self, parent: u64, name: &[u8], ino: u64) -> Answer<()> {
        let directory = self.directory(parent)?;
        directory.last_cookie += 1;
        let cookie = directory.last_cookie;
        directory.names.insert(name.to_vec(), cookie);
        directory.entries.insert(cookie, (name.to_vec(), ino));
        self.changed(parent);
        if self.get(ino)?.attr.kind == Kind::Directory {
            self.get_mut(ino)?.directory.parent = parent;
            self.get_mut(parent)?.attr.nlink += 1;
        }
        Ok(())
    }

    fn take_out(&mut self, parent: u64, name: &[u8]) -> Answer<u64> {
        let ino = self.find(parent, name)?;
        let directory = self.directory(parent)?;
        let cookie = directory.names.remove(name).unwrap();
        directory.entries.remove(&cookie);
        self.changed(parent);
        if self.get(ino)?.attr.kind == Kind::Directory {
            self.get_mut(parent)?.attr.nlink -= 1;
        }
        Ok(ino)
    }

    /// A name of `ino` is gone.
    fn lost_name(&mut self, ino: u64) {
        let inode = self.inodes.get_mut(&ino).unwrap();
        inode.attr.nlink = if inode.attr.kind == Kind::Directory { 0 } else { inode.attr.nlink - 1 };
        inode.attr.ctime = now();
        self.reclaim(ino);
    }

    fn reclaim(&mut self, ino: u64) {
        if self.inodes.get(&ino).is_some_and(|inode| inode.attr.nlink == 0 && inode.handles == 0) {
            self.inodes.remove(&ino);
        }
    }

    fn new_inode(&mut self, who: Credentials, parent: u64, kind: Kind, mode: u32) -> Answer<u64> {
        let of_parent = self.get(parent)?.attr;
        let inherits = of_parent.mode & libc::S_ISGID != 0;
        let mut mode = mode & !who.umask;
        if inherits && kind == Kind::Directory {
            mode |= libc::S_ISGID;
        }
        self.last_ino += 1;
        let (ino, time) = (self.last_ino, now());
        let attr = Attr {
            ino: Ino(ino),
            kind,
            mode,
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            uid: who.uid,
            gid: if inherits { of_parent.gid } else { who.gid },
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            sealed: false,
        };
        self.inodes.insert(
            ino,
            Inode {
                attr,
                directory: Directory::default(),
                target: Vec::new(),
                blocks: BTreeMap::new(),
                xattrs: BTreeMap::new(),
                handles: 0,
            },
        );
        Ok(ino)
    }

    fn open(&mut self, ino: u64, mode: OpenMode) -> Answer<Opened> {
        if mode.truncate {
            self.resize(ino, 0, mode.clear_set_id)?;
        }
        self.last_handle += 1;
        let handle = self.last_handle;
        let inode = self.get_mut(ino)?;
        inode.handles += 1;
        let attr = inode.attr;
        self.handles.insert(handle, (ino, mode));
        Ok(Opened { handle: HandleId(handle), attr, direct: false, keep_cache: true })
    }

    fn resize(&mut self, ino: u64, size: u64, clear_set_id: bool) -> Answer<()> {
        let inode = self.get_mut(ino)?;
        if clear_set_id {
            inode.clear_set_id();
        }
        inode.blocks.retain(|block, _| block * BLOCK < size);
        if !size.is_multiple_of(BLOCK)
            && let Some(last) = inode.blocks.get_mut(&(size / BLOCK))
        {
            last[usize::try_from(size % BLOCK).unwrap()..].fill(0);
        }
        inode.attr.size = size;
        (inode.attr.mtime, inode.attr.ctime) = (now(), now());
        inode.attr.blocks = inode.blocks.len() as u64;
        Ok(())
    }

    fn ino_of(&self, handle: HandleId) -> Answer<u64> {
        let known = self.handles.get(&handle.0).ok_or_else(|| Refusal::Stale("no such handle".to_owned()))?;
        Ok(known.0)
    }

    fn write(&mut self, handle: HandleId, offset: u64, data: &[u8], mode: WriteMode) -> Answer<u64> {
        let ino = self.ino_of(handle)?;
        let inode = self.get_mut(ino)?;
        let offset = if mode.append { inode.attr.size } else { offset };
        inode.put(offset, data);
        if mode.clear_set_id {
            inode.clear_set_id();
        }
        inode.attr.size = inode.attr.size.max(offset + data.len() as u64);
        (inode.attr.mtime, inode.attr.ctime) = (now(), now());
        Ok(offset)
    }

    fn allocate(
        &mut self,
        handle: HandleId,
        offset: u64,
        len: u64,
        how: Allocation,
        keep_size: bool,
    ) -> Answer<()> {
        let ino = self.ino_of(handle)?;
        let inode = self.get_mut(ino)?;
        let end = offset + len;
        match how {
            Allocation::Allocate => {
                for block in offset / BLOCK..end.div_ceil(BLOCK) {
                    inode.blocks.entry(block).or_insert_with(|| vec![0; BLOCK as usize]);
                }
            }
            Allocation::Punch | Allocation::Zero => {
                for block in offset / BLOCK..end.div_ceil(BLOCK) {
                    let (from, to) = (offset.max(block * BLOCK), end.min((block + 1) * BLOCK));
                    if how == Allocation::Punch && to - from == BLOCK {
                        inode.blocks.remove(&block);
                    } else if let Some(bytes) = inode.blocks.get_mut(&block) {
                        bytes[(from % BLOCK) as usize..][..(to - from) as usize].fill(0);
                    }
                }
            }
        }
        if !keep_size {
            inode.attr.size = inode.attr.size.max(end);
        }
        inode.attr.blocks = inode.blocks.len() as u64;
        (inode.attr.mtime, inode.attr.ctime) = (now(), now());
        Ok(())
    }

    fn rename(
        &mut self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Answer<()> {
        let ino = self.find(parent, name)?;
        let target = self.find(new_parent, new_name).ok();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Refusal::Exists),
            (RenameMode::Exchange, None) => return Err(Refusal::NotFound),
            (RenameMode::Exchange, Some(other)) => {
                self.take_out(parent, name)?;
                self.take_out(new_parent, new_name)?;
                self.enter(parent, name, other)?;
                self.enter(new_parent, new_name, ino)?;
                self.get_mut(ino)?.attr.ctime = now();
                self.get_mut(other)?.attr.ctime = now();
                return Ok(());
            }
            (_, Some(other)) if other == ino => return Ok(()),
            (_, Some(other)) => {
                let (is_directory, kind) =
                    (self.get(ino)?.attr.kind == Kind::Directory, self.get(other)?.attr.kind);
                match (is_directory, kind == Kind::Directory) {
                    (true, false) => return Err(Refusal::NotDirectory),
                    (false, true) => return Err(Refusal::IsDirectory),
                    (true, true) if !self.get(other)?.directory.names.is_empty() => {
                        return Err(Refusal::NotEmpty);
                    }
                    _ => {}
                }
                self.take_out(new_parent, new_name)?;
                self.lost_name(other);
            }
            (_, None) => {}
        }
        self.take_out(parent, name)?;
        self.enter(new_parent, new_name, ino)?;
        self.get_mut(ino)?.attr.ctime = now();
        Ok(())
    }
}

impl Inode {
    fn clear_set_id(&mut self) {
        if self.attr.kind != Kind::File {
            return;
        }
        self.attr.mode &= !libc::S_ISUID;
        if self.attr.mode & libc::S_IXGRP != 0 {
            self.attr.mode &= !libc::S_ISGID;
        }
    }

    fn put(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (block, from) = (at / BLOCK, (at % BLOCK) as usize);
            let len = (BLOCK as usize - from).min(data.len() - done);
            let bytes = self.blocks.entry(block).or_insert_with(|| vec![0; BLOCK as usize]);
            bytes[from..from + len].copy_from_slice(&data[done..done + len]);
            done += len;
        }
        self.attr.blocks = self.blocks.len() as u64;
    }

    fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let left = usize::try_from(self.attr.size.saturating_sub(offset)).unwrap();
        let mut data = vec![0; len.min(left)];
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (block, from) = (at / BLOCK, (at % BLOCK) as usize);
            let len = (BLOCK as usize - from).min(data.len() - done);
            if let Some(bytes) = self.blocks.get(&block) {
                data[done..done + len].copy_from_slice(&bytes[from..from + len]);
            }
            done += len;
        }
        data
    }
}

impl Memory {
    /// An empty file system whose root belongs to root and is open to all, as `/tmp` is.
    pub fn new() -> Self {
        let mut tree = Tree { inodes: HashMap::new(), handles: HashMap::new(), last_ino: 0, last_handle: 0 };
        let root = Credentials { uid: 0, gid: 0, umask: 0 };
        let attr = Attr {
            ino: Ino(0),
            kind: Kind::Directory,
            mode: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: now(),
            mtime: now(),
            ctime: now(),
            btime: now(),
            sealed: false,
        };
        let above = Inode {
            attr,
            directory: Directory::default(),
            target: Vec::new(),
            blocks: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            handles: 0,
        };
        tree.inodes.insert(0, above);
        tree.new_inode(root, 0, Kind::Directory, 0o777).unwrap();
        tree.inodes.get_mut(&1).unwrap().directory.parent = 1;
        let (later, jobs) = channel::<Later>();
        thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        Self {
            tree: std::sync::Arc::new(Mutex::new(tree)),
            seen: Mutex::default(),
            later,
            pool: Pool::default(),
            lun: FaultyLun::new(std::sync::Arc::new(MemoryLun::new(4096))),
        }
    }

    /// What the front end has asked so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }

    /// Stops the answering of reads and writes until the sender is used or dropped.
    pub fn pause(&self) -> Sender<()> {
        let (go_on, stopped) = channel();
        self.later(move || {
            let _ = stopped.recv();
        });
        go_on
    }

    fn with<T>(&self, done: Done<T>, act: impl FnOnce(&mut Tree) -> Answer<T>) {
        let answer = act(&mut self.tree.lock());
        done(answer);
    }

    fn later(&self, job: impl FnOnce() + Send + 'static) {
        self.later.send(Box::new(job)).unwrap();
    }
}

impl FileService for Memory {
    fn lookup(&self, parent: Ino, name: &[u8], done: Done<Attr>) {
        self.seen.lock().lookups += 1;
        if name.starts_with(b"cold") {
            redirector::blocking::read(&self.lun, 0, self.pool.take(4096)).unwrap();
        }
        self.with(done, |tree| {
            let ino = tree.find(parent.0, name)?;
            Ok(tree.get(ino)?.attr)
        });
    }

    fn get_attr(&self, ino: Ino, done: Done<Attr>) {
        self.seen.lock().attributes += 1;
        self.with(done, |tree| Ok(tree.get(ino.0)?.attr));
    }

    fn set_attr(&self, ino: Ino, set: SetAttr, size: Option<u64>, done: Done<Attr>) {
        self.with(done, |tree| {
            if let Some(size) = size {
                tree.resize(ino.0, size, set.clear_set_id)?;
            }
            let inode = tree.get_mut(ino.0)?;
            if set.clear_set_id {
                inode.clear_set_id();
            }
            let attr = &mut inode.attr;
            attr.mode = set.mode.unwrap_or(attr.mode);
            attr.uid = set.uid.unwrap_or(attr.uid);
            attr.gid = set.gid.unwrap_or(attr.gid);
            attr.atime = set.atime.unwrap_or(attr.atime);
            attr.mtime = set.mtime.unwrap_or(attr.mtime);
            attr.ctime = set.ctime.unwrap_or_else(now);
            Ok(*attr)
        });
    }

    fn create(&self, who: Credentials, parent: Ino, name: &[u8], what: Created, mode: u32, done: Done<Attr>) {
        self.with(done, |tree| {
            if tree.find(parent.0, name).is_ok() {
                return Err(Refusal::Exists);
            }
            let (kind, target, rdev) = match what {
                Created::File => (Kind::File, Vec::new(), 0),
                Created::Directory => (Kind::Directory, Vec::new(), 0),
                Created::Symlink(target) => (Kind::Symlink, target, 0),
                Created::Fifo => (Kind::Fifo, Vec::new(), 0),
                Created::Socket => (Kind::Socket, Vec::new(), 0),
                Created::CharDevice(rdev) => (Kind::CharDevice, Vec::new(), rdev),
                Created::BlockDevice(rdev) => (Kind::BlockDevice, Vec::new(), rdev),
            };
            let ino = tree.new_inode(who, parent.0, kind, mode)?;
            let inode = tree.get_mut(ino)?;
            inode.attr.rdev = rdev;
            inode.attr.size = target.len() as u64;
            inode.target = target;
            tree.enter(parent.0, name, ino)?;
            Ok(tree.get(ino)?.attr)
        });
    }

    fn create_open(
        &self,
        who: Credentials,
        parent: Ino,
        name: &[u8],
        mode: u32,
        open: OpenMode,
        done: Done<Opened>,
    ) {
        self.with(done, |tree| match tree.find(parent.0, name) {
            Ok(_) if open.exclusive => Err(Refusal::Exists),
            Ok(ino) => tree.open(ino, open),
            Err(_) => {
                let ino = tree.new_inode(who, parent.0, Kind::File, mode)?;
                tree.enter(parent.0, name, ino)?;
                tree.open(ino, open)
            }
        });
    }

    fn create_unnamed(&self, who: Credentials, parent: Ino, mode: u32, open: OpenMode, done: Done<Opened>) {
        self.with(done, |tree| {
            let ino = tree.new_inode(who, parent.0, Kind::File, mode)?;
            tree.get_mut(ino)?.attr.nlink = 0;
            tree.open(ino, open)
        });
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8], done: Done<Attr>) {
        self.with(done, |tree| {
            if tree.find(parent.0, name).is_ok() {
                return Err(Refusal::Exists);
            }
            let inode = tree.get_mut(ino.0)?;
            inode.attr.nlink += 1;
            inode.attr.ctime = now();
            let attr = inode.attr;
            tree.enter(parent.0, name, ino.0)?;
            Ok(attr)
        });
    }

    fn unlink(&self, parent: Ino, name: &[u8], done: Done<()>) {
        self.with(done, |tree| {
            let ino = tree.find(parent.0, name)?;
            if tree.get(ino)?.attr.kind == Kind::Directory {
                return Err(Refusal::IsDirectory);
            }
            tree.take_out(parent.0, name)?;
            tree.lost_name(ino);
            Ok(())
        });
    }

    fn remove_directory(&self, parent: Ino, name: &[u8], done: Done<()>) {
        self.with(done, |tree| {
            let ino = tree.find(parent.0, name)?;
            if !tree.directory(ino)?.names.is_empty() {
                return Err(Refusal::NotEmpty);
            }
            tree.take_out(parent.0, name)?;
            tree.lost_name(ino);
            Ok(())
        });
    }

    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
        done: Done<()>,
    ) {
        self.with(done, |tree| tree.rename(parent.0, name, new_parent.0, new_name, mode));
    }

    fn read_link(&self, ino: Ino, done: Done<Vec<u8>>) {
        self.with(done, |tree| Ok(tree.get(ino.0)?.target.clone()));
    }

    fn read_directory(
        &self,
        ino: Ino,
        after: u64,
        budget: u32,
        attributes: bool,
        done: Done<(Vec<DirEntry>, bool)>,
    ) {
        self.with(done, |tree| {
            let count = budget as usize / 100;
            let listed: Vec<_> = tree.directory(ino.0)?.entries.range(after + 1..).take(count + 1).collect();
            let end = listed.len() <= count;
            let listed: Vec<_> = listed
                .into_iter()
                .take(count)
                .map(|(cookie, (name, ino))| (*cookie, name.clone(), *ino))
                .collect();
            let entries = listed.into_iter().map(|(cookie, name, ino)| {
                let attr = tree.get(ino)?.attr;
                Ok(DirEntry {
                    cookie,
                    ino: Ino(ino),
                    kind: attr.kind,
                    name,
                    attr: attributes.then_some(attr),
                })
            });
            Ok((entries.collect::<Answer<_>>()?, end))
        });
    }

    fn parent(&self, ino: Ino, done: Done<Attr>) {
        self.with(done, |tree| {
            let parent = tree.directory(ino.0)?.parent;
            Ok(tree.get(parent)?.attr)
        });
    }

    fn get_xattr(&self, ino: Ino, name: &[u8], done: Done<Vec<u8>>) {
        self.with(done, |tree| tree.get(ino.0)?.xattrs.get(name).cloned().ok_or(Refusal::NoData));
    }

    fn list_xattr(&self, ino: Ino, done: Done<Vec<u8>>) {
        self.with(done, |tree| {
            let names = tree.get(ino.0)?.xattrs.keys();
            Ok(names.flat_map(|name| name.iter().copied().chain([0])).collect())
        });
    }

    fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        _clear_sgid: bool,
        done: Done<()>,
    ) {
        self.with(done, |tree| {
            let inode = tree.get_mut(ino.0)?;
            match (mode, inode.xattrs.contains_key(name)) {
                (XattrMode::Create, true) => return Err(Refusal::Exists),
                (XattrMode::Replace, false) => return Err(Refusal::NoData),
                _ if value.len() > XATTR_VALUE_MAX => return Err(Refusal::TooBig),
                _ => {}
            }
            inode.xattrs.insert(name.to_vec(), value.to_vec());
            inode.attr.ctime = now();
            Ok(())
        });
    }

    fn remove_xattr(&self, ino: Ino, name: &[u8], done: Done<()>) {
        self.with(done, |tree| {
            let inode = tree.get_mut(ino.0)?;
            inode.attr.ctime = now();
            inode.xattrs.remove(name).map(|_| ()).ok_or(Refusal::NoData)
        });
    }

    fn space(&self, done: Done<SpaceReport>) {
        self.with(done, |tree| Ok(SpaceReport { blocks: 1000, free: 600, inodes: tree.inodes.len() as u64 }));
    }

    fn open(&self, ino: Ino, mode: OpenMode, done: Done<Opened>) {
        self.with(done, |tree| tree.open(ino.0, mode));
    }

    fn release(&self, handle: HandleId) {
        let mut tree = self.tree.lock();
        let Some((ino, _)) = tree.handles.remove(&handle.0) else { return };
        if let Some(inode) = tree.inodes.get_mut(&ino) {
            inode.handles -= 1;
        }
        tree.reclaim(ino);
    }

    fn read(&self, handle: HandleId, offset: u64, len: u32, done: Done<ReadData>) {
        self.seen.lock().reads += 1;
        let data = {
            let tree = self.tree.lock();
            tree.ino_of(handle).and_then(|ino| Ok(tree.get(ino)?.get(offset, len as usize)))
        };
        let pool = self.pool.clone();
        self.later(move || {
            // In uneven pieces, zeros by name, so that all of the ways to answer are used.
            done(data.map(|data| {
                let pieces = data.chunks(3 << 12).map(|chunk| {
                    if chunk.iter().all(|byte| *byte == 0) {
                        return Piece::Zeros(chunk.len());
                    }
                    let mut buffer = pool.take(chunk.len() + 5);
                    buffer[5..].copy_from_slice(chunk);
                    Piece::Bytes { buffer, skip: 5, len: chunk.len() }
                });
                ReadData { pieces: pieces.collect() }
            }));
        });
    }

    fn write(&self, handle: HandleId, offset: u64, data: Slice, mode: WriteMode, done: Done<u64>) {
        self.seen.lock().writes.push((mode, data.len(), data.is_aligned()));
        let tree = std::sync::Arc::clone(&self.tree);
        self.later(move || {
            let answer = tree.lock().write(handle, offset, &data, mode);
            done(answer);
        });
    }

    fn sync(&self, handle: HandleId, done: Done<()>) {
        self.with(done, |tree| tree.ino_of(handle).map(|_| ()));
    }

    fn sync_all(&self, done: Done<()>) {
        self.seen.lock().syncs_of_all += 1;
        done(Ok(()));
    }

    fn allocate(
        &self,
        handle: HandleId,
        offset: u64,
        len: u64,
        how: Allocation,
        keep_size: bool,
        done: Done<()>,
    ) {
        self.with(done, |tree| tree.allocate(handle, offset, len, how, keep_size));
    }

    fn seek(&self, handle: HandleId, offset: u64, what: Seek, done: Done<u64>) {
        self.with(done, |tree| {
            let inode = tree.get(tree.ino_of(handle)?)?;
            let size = inode.attr.size;
            if offset >= size {
                return Err(Refusal::BeyondEnd);
            }
            let mut at = offset;
            while at < size {
                if inode.blocks.contains_key(&(at / BLOCK)) == (what == Seek::Data) {
                    return Ok(at);
                }
                at = (at / BLOCK + 1) * BLOCK;
            }
            if what == Seek::Data { Err(Refusal::NoData) } else { Ok(size) }
        });
    }

    fn copy_range(
        &self,
        from: HandleId,
        from_offset: u64,
        to: HandleId,
        to_offset: u64,
        len: u64,
        done: Done<u64>,
    ) {
        self.with(done, |tree| {
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let data = tree.get(tree.ino_of(from)?)?.get(from_offset, len);
            tree.write(to, to_offset, &data, WriteMode::default())?;
            Ok(data.len() as u64)
        });
    }

    fn now(&self) -> Timestamp {
        now()
    }
}
