//! A FUSE file system that answers at once: what the front end by itself costs, and the baseline of the latency
//! figure. Its one file, `data`, reads as zeros and forgets what is written.
//!
//!     cargo run --release -p csvfs --example null_mount -- DIR [SIZE_IN_MIB] [THREADS]

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use csvfs::fuse::{MountOptions, mount};
use csvfs::proto::{Allocation, Created, RenameMode, SetAttr, XattrMode};
use csvfs::refusal::Refusal;
use csvfs::service::{
    Credentials, Done, FileService, HandleId, OpenMode, Opened, Piece, ReadData, Seek, WriteMode,
};
use csvfs::types::{Attr, BLOCK, DirEntry, Ino, Kind, SpaceReport, Timestamp};
use lockd::ids::ClientId;
use lockd::locks::FileLocks;
use redirector::buffer::{Pool, Slice};

const FILE: Ino = Ino(2);
const NAME: &[u8] = b"data";

#[derive(Debug)]
struct Null {
    size: u64,
}

impl Null {
    fn attr(&self, ino: Ino) -> Result<Attr, Refusal> {
        let (kind, mode, size) = match ino {
            Ino::ROOT => (Kind::Directory, 0o755, 0),
            FILE => (Kind::File, 0o666, self.size),
            _ => return Err(Refusal::NotFound),
        };
        let (now, blocks) = (self.now(), size / BLOCK);
        Ok(Attr {
            ino,
            kind,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            blocks,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            sealed: false,
        })
    }

    fn opened(&self, ino: Ino) -> Result<Opened, Refusal> {
        Ok(Opened { handle: HandleId(ino.0), attr: self.attr(ino)?, direct: false, keep_cache: true })
    }
}

impl FileService for Null {
    fn lookup(&self, _parent: Ino, name: &[u8], done: Done<Attr>) {
        done(if name == NAME { self.attr(FILE) } else { Err(Refusal::NotFound) });
    }
    fn get_attr(&self, ino: Ino, done: Done<Attr>) {
        done(self.attr(ino));
    }
    fn set_attr(&self, ino: Ino, _set: SetAttr, _size: Option<u64>, done: Done<Attr>) {
        done(self.attr(ino));
    }
    fn create(&self, _w: Credentials, _p: Ino, _n: &[u8], _what: Created, _mode: u32, done: Done<Attr>) {
        done(Err(Refusal::NotPermitted));
    }
    fn create_open(
        &self,
        _who: Credentials,
        _parent: Ino,
        name: &[u8],
        _mode: u32,
        _open: OpenMode,
        done: Done<Opened>,
    ) {
        done(if name == NAME { self.opened(FILE) } else { Err(Refusal::NotPermitted) });
    }
    fn create_unnamed(&self, _w: Credentials, _p: Ino, _mode: u32, _open: OpenMode, done: Done<Opened>) {
        done(Err(Refusal::NotSupported));
    }
    fn link(&self, _ino: Ino, _parent: Ino, _name: &[u8], done: Done<Attr>) {
        done(Err(Refusal::NotPermitted));
    }
    fn unlink(&self, _parent: Ino, _name: &[u8], done: Done<()>) {
        done(Err(Refusal::NotPermitted));
    }
    fn remove_directory(&self, _parent: Ino, _name: &[u8], done: Done<()>) {
        done(Err(Refusal::NotPermitted));
    }
    fn rename(&self, _p: Ino, _n: &[u8], _np: Ino, _nn: &[u8], _mode: RenameMode, done: Done<()>) {
        done(Err(Refusal::NotPermitted));
    }
    fn read_link(&self, _ino: Ino, done: Done<Vec<u8>>) {
        done(Err(Refusal::Invalid("no links here".to_owned())));
    }
    fn read_directory(
        &self,
        _ino: Ino,
        after: u64,
        _budget: u32,
        attributes: bool,
        done: Done<(Vec<DirEntry>, bool)>,
    ) {
        let attr = if attributes { self.attr(FILE).ok() } else { None };
        let entry = DirEntry { cookie: 1, ino: FILE, kind: Kind::File, name: NAME.to_vec(), attr };
        done(Ok((if after == 0 { vec![entry] } else { Vec::new() }, true)));
    }
    fn parent(&self, _ino: Ino, done: Done<Attr>) {
        done(self.attr(Ino::ROOT));
    }
    fn get_xattr(&self, _ino: Ino, _name: &[u8], done: Done<Vec<u8>>) {
        done(Err(Refusal::NoData));
    }
    fn list_xattr(&self, _ino: Ino, done: Done<Vec<u8>>) {
        done(Ok(Vec::new()));
    }
    fn set_xattr(&self, _i: Ino, _n: &[u8], _v: &[u8], _mode: XattrMode, _clear: bool, done: Done<()>) {
        done(Err(Refusal::NotSupported));
    }
    fn remove_xattr(&self, _ino: Ino, _name: &[u8], done: Done<()>) {
        done(Err(Refusal::NoData));
    }
    fn space(&self, done: Done<SpaceReport>) {
        done(Ok(SpaceReport { blocks: self.size / BLOCK, free: 0, inodes: 2 }));
    }
    fn open(&self, ino: Ino, _mode: OpenMode, done: Done<Opened>) {
        done(self.opened(ino));
    }
    fn release(&self, _handle: HandleId) {}
    fn read(&self, _handle: HandleId, offset: u64, len: u32, done: Done<ReadData>) {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = left.min(len as usize);
        done(Ok(ReadData { pieces: if len == 0 { Vec::new() } else { vec![Piece::Zeros(len)] } }));
    }
    fn write(&self, _handle: HandleId, offset: u64, _data: Slice, _mode: WriteMode, done: Done<u64>) {
        done(Ok(offset));
    }
    fn sync(&self, _handle: HandleId, done: Done<()>) {
        done(Ok(()));
    }
    fn sync_all(&self, done: Done<()>) {
        done(Ok(()));
    }
    fn allocate(&self, _h: HandleId, _o: u64, _len: u64, _how: Allocation, _keep: bool, done: Done<()>) {
        done(Ok(()));
    }
    fn seek(&self, _handle: HandleId, offset: u64, _what: Seek, done: Done<u64>) {
        done(Ok(offset));
    }
    fn copy_range(&self, _f: HandleId, _fo: u64, _t: HandleId, _to: u64, len: u64, done: Done<u64>) {
        done(Ok(len));
    }
    fn now(&self) -> Timestamp {
        Timestamp(1_700_000_000_000_000_000)
    }
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().context("usage: null_mount DIR [SIZE_IN_MIB] [THREADS]")?;
    let mib: u64 = arguments.next().map_or(Ok(4096), |size| size.parse()).context("SIZE_IN_MIB")?;
    let mut options = MountOptions::default();
    options.threads =
        arguments.next().map_or(Ok(options.threads), |count| count.parse()).context("THREADS")?;
    let service = Arc::new(Null { size: mib << 20 });
    let mounted = mount(
        Path::new(&directory),
        &options,
        service,
        Arc::new(FileLocks::default()),
        ClientId(1),
        &Pool::default(),
    )?;
    println!("{directory}/data is mounted; umount {directory} ends this");
    mounted.wait();
    Ok(())
}
