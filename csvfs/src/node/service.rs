//! What a front end asks, given to the parts of the node.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lockd::ids::ResourceId;
use redirector::buffer::Slice;

use super::task::run;
use super::{Core, Node};
use crate::proto::{Allocation, Answer, Created, Operation, RenameMode, SetAttr, XattrMode};
use crate::refusal::Refusal;
use crate::service::{
    Credentials, Done, FileService, HandleId, OpenMode, Opened, Pages, ReadData, Seek, WriteMode,
};
use crate::types::{Attr, DirEntry, Ino, Kind, SpaceReport, Timestamp};

/// The virtual attribute by which a mount tells the resource of a file; not listed.
const RESOURCE_ATTRIBUTE: &[u8] = b"user.csvfs.resource";
/// The virtual attribute that a sealed file has; not listed, and not to be set.
const SEALED_ATTRIBUTE: &[u8] = b"user.csvfs.sealed";
/// The one by which `csvfs seal` and `unseal` ask: only root may set attributes of this kind.
const SEAL_ATTRIBUTE: &[u8] = b"trusted.csvfs.sealed";

/// How long the lease must run on for the kernel to keep attributes: far longer than it keeps them.
const LEASE_LEFT: Duration = Duration::from_millis(500);

impl Node {
    /// Runs a request of several steps and answers it.
    fn answer<T, F>(&self, done: Done<T>, request: impl FnOnce(Arc<Core>) -> F)
    where
        T: 'static,
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
    {
        let request = request(Arc::clone(&self.core));
        run(async move { done(request.await) });
    }

    fn attr(&self, operation: Operation, done: Done<Attr>) {
        self.answer(done, |core| async move { core.attr(operation).await });
    }

    fn bytes(&self, operation: Operation, done: Done<Vec<u8>>) {
        self.answer(done, |core| async move { core.bytes(operation).await });
    }

    fn remove(&self, operation: Operation, done: Done<()>) {
        self.answer(done, |core| async move { core.remove(operation).await });
    }
}

impl FileService for Node {
    fn lookup(&self, parent: Ino, name: &[u8], done: Done<Attr>) {
        let name = name.to_vec();
        self.answer(done, |core| async move { core.lookup(parent, &name).await });
    }

    fn get_attr(&self, ino: Ino, done: Done<Attr>) {
        self.answer(done, |core| async move { core.get_attr(ino).await });
    }

    fn stays(&self, attr: &Attr) -> bool {
        // V9: as long as this node has the lease of them. What is done to a file goes many ways; to a directory, this one.
        attr.kind == Kind::Directory
            && self.core.channel.cache.attr(attr.ino).is_some_and(|kept| kept == *attr)
            && self.core.media.has_lease_for(LEASE_LEFT)
    }

    fn set_attr(&self, ino: Ino, set: SetAttr, size: Option<u64>, done: Done<Attr>) {
        self.answer(done, |core| async move {
            let Some(size) = size else { return core.set_attr(ino, set).await };
            let file = core.hold(ino, true).await?;
            let mut result = core.set_size(&file, size, set.clear_set_id).await;
            let rest = SetAttr { clear_set_id: false, ..set };
            if result.is_ok() && rest != SetAttr::default() {
                result = core.set_attr(ino, rest).await;
            }
            core.let_go(&file);
            result
        });
    }

    fn create(&self, who: Credentials, parent: Ino, name: &[u8], what: Created, mode: u32, done: Done<Attr>) {
        let Credentials { uid, gid, umask } = who;
        let (name, now) = (name.to_vec(), self.now());
        let (exclusive, open) = (true, false);
        let create = Operation::Create { parent, name, what, mode, umask, uid, gid, exclusive, open, now };
        self.attr(create, done);
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
        let name = name.to_vec();
        self.answer(done, |core| async move { core.create_open(who, parent, name, mode, open).await });
    }

    fn create_unnamed(&self, who: Credentials, parent: Ino, mode: u32, open: OpenMode, done: Done<Opened>) {
        self.answer(done, |core| async move { core.create_unnamed(who, parent, mode, open).await });
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8], done: Done<Attr>) {
        let name = name.to_vec();
        self.answer(done, |core| async move { core.link(ino, parent, name).await });
    }

    fn unlink(&self, parent: Ino, name: &[u8], done: Done<()>) {
        self.remove(Operation::Unlink { parent, name: name.to_vec(), now: self.now() }, done);
    }

    fn remove_directory(&self, parent: Ino, name: &[u8], done: Done<()>) {
        self.remove(Operation::RemoveDirectory { parent, name: name.to_vec(), now: self.now() }, done);
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
        let (name, new_name, now) = (name.to_vec(), new_name.to_vec(), self.now());
        self.remove(Operation::Rename { parent, name, new_parent, new_name, mode, now }, done);
    }

    fn read_link(&self, ino: Ino, done: Done<Vec<u8>>) {
        self.bytes(Operation::ReadLink { ino }, done);
    }

    fn read_directory(
        &self,
        ino: Ino,
        after: u64,
        budget: u32,
        attributes: bool,
        done: Done<(Vec<DirEntry>, bool)>,
    ) {
        let operation = Operation::ReadDirectory { ino, after, budget, attributes };
        self.answer(done, |core| async move { core.directory(operation).await });
    }

    fn parent(&self, ino: Ino, done: Done<Attr>) {
        self.attr(Operation::Parent { ino }, done);
    }

    fn get_xattr(&self, ino: Ino, name: &[u8], done: Done<Vec<u8>>) {
        if name == RESOURCE_ATTRIBUTE && self.core.options.cluster {
            let resource = ResourceId::File(self.core.volume, ino.0);
            return done(Ok(resource.to_string().into_bytes()));
        }
        if name == SEALED_ATTRIBUTE {
            return self.answer(done, |core| async move {
                if core.get_attr(ino).await?.sealed { Ok(b"1".to_vec()) } else { Err(Refusal::NoData) }
            });
        }
        self.bytes(Operation::GetXattr { ino, name: name.to_vec() }, done);
    }

    fn list_xattr(&self, ino: Ino, done: Done<Vec<u8>>) {
        self.bytes(Operation::ListXattr { ino }, done);
    }

    fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        clear_sgid: bool,
        done: Done<()>,
    ) {
        if name == SEAL_ATTRIBUTE {
            let seal = match value {
                b"1" => true,
                b"0" => false,
                _ => return done(Err(Refusal::Invalid("a seal is 1, or 0 to take it off".to_owned()))),
            };
            return self.answer(done, |core| async move { core.seal(ino, seal).await });
        }
        if name == SEALED_ATTRIBUTE {
            return done(Err(Refusal::NotPermitted));
        }
        let (name, value, now) = (name.to_vec(), value.to_vec(), self.now());
        let operation = Operation::SetXattr { ino, name, value, mode, clear_sgid, now };
        self.answer(done, |core| async move { core.done(operation).await });
    }

    fn remove_xattr(&self, ino: Ino, name: &[u8], done: Done<()>) {
        let operation = Operation::RemoveXattr { ino, name: name.to_vec(), now: self.now() };
        self.answer(done, |core| async move { core.done(operation).await });
    }

    fn space(&self, done: Done<SpaceReport>) {
        self.answer(done, |core| async move {
            match core.call(Operation::Space).await? {
                Answer::Space(mut report) => {
                    let new = core.files.values().iter().map(|file| file.layout.read().new_blocks()).sum();
                    report.free = report.free.saturating_sub(new);
                    Ok(report)
                }
                other => Err(super::channel::unexpected(&other)),
            }
        });
    }

    fn open(&self, ino: Ino, mode: OpenMode, done: Done<Opened>) {
        self.answer(done, |core| async move { core.open(ino, None, mode).await });
    }

    fn release(&self, handle: HandleId) {
        if let Some(handle) = self.core.handles.remove(handle.0) {
            self.core.end_handle(&handle);
        }
    }

    fn read(&self, handle: HandleId, offset: u64, len: u32, done: Done<ReadData>) {
        match self.core.find(handle) {
            Ok(handle) => {
                self.core.counters.read(len);
                self.core.read(&handle.file, offset, len, done);
            }
            Err(error) => done(Err(error)),
        }
    }

    fn write(&self, handle: HandleId, offset: u64, data: Slice, mode: WriteMode, done: Done<u64>) {
        match self.core.find(handle) {
            Ok(handle) => {
                self.core.counters.write(data.len());
                self.core.write(&handle.file, offset, data, mode, done);
            }
            Err(error) => done(Err(error)),
        }
    }

    fn sync(&self, handle: HandleId, done: Done<()>) {
        let handle = self.core.find(handle);
        self.answer(done, |core| async move {
            let handle = handle?;
            core.sync(&handle, false).await
        });
    }

    fn sync_data(&self, handle: HandleId, done: Done<()>) {
        let handle = self.core.find(handle);
        self.answer(done, |core| async move {
            let handle = handle?;
            core.sync(&handle, true).await
        });
    }

    fn sync_all(&self, done: Done<()>) {
        self.answer(done, |core| async move { core.sync_all().await });
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
        let handle = self.core.find(handle);
        self.answer(
            done,
            |core| async move { core.allocate(&handle?.file, offset, len, how, keep_size).await },
        );
    }

    fn seek(&self, handle: HandleId, offset: u64, what: Seek, done: Done<u64>) {
        let handle = self.core.find(handle);
        self.answer(done, |core| async move { core.seek(&handle?.file, offset, what).await });
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
        let handles = self.core.find(from).and_then(|from| Ok((from, self.core.find(to)?)));
        self.answer(done, |core| async move {
            let (from, to) = handles?;
            core.copy_range(&from.file, from_offset, &to.file, to_offset, len).await
        });
    }

    fn has_pages(&self, pages: Arc<dyn Pages>) {
        // A node has one front end.
        let _ = self.core.pages.set(pages);
    }

    fn now(&self) -> Timestamp {
        self.core.now()
    }
}
