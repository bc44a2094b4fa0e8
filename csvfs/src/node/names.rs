//! Names and attributes: asked of the coordinator, and completed with what this node knows as the files' owner.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::Core;
use super::channel::unexpected;
use crate::proto::{Answer, Created, Operation, Reply, SetAttr};
use crate::refusal::Refusal;
use crate::service::{Credentials, OpenMode, Opened};
use crate::types::{Attr, DirEntry, Ino, Kind};

impl Core {
    /// Asks the coordinator. When the volume is full, this node's reserve is given back first and it is asked again.
    pub(super) async fn call(&self, operation: Operation) -> Reply {
        let again = operation.changes().then(|| operation.clone());
        match (self.channel.call(operation).await, again) {
            (Err(Refusal::NoSpace), Some(again)) if self.give_up_reserve().await => {
                self.channel.call(again).await
            }
            (reply, _) => reply,
        }
    }

    /// Asks for something that is answered with attributes, as the coordinator has them.
    pub(super) async fn entry(&self, operation: Operation) -> Result<Attr, Refusal> {
        match self.call(operation).await? {
            Answer::Entry(attr) => Ok(attr),
            other => Err(unexpected(&other)),
        }
    }

    /// The same, as the owner has them.
    pub(super) async fn attr(&self, operation: Operation) -> Result<Attr, Refusal> {
        let closed = self.closed.load(SeqCst);
        let attr = self.entry(operation).await?;
        self.known(attr, closed).await
    }

    pub(super) async fn done(&self, operation: Operation) -> Result<(), Refusal> {
        match self.call(operation).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn bytes(&self, operation: Operation) -> Result<Vec<u8>, Refusal> {
        match self.call(operation).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    /// Attributes with what this node knows better. They were asked for when `closed` files had been closed: if the
    /// owner's last commit came after them, they are asked for again.
    async fn known(&self, mut attr: Attr, mut closed: u64) -> Result<Attr, Refusal> {
        loop {
            if let Some(file) = self.files.get(attr.ino) {
                file.apply(&mut attr);
                return Ok(attr);
            }
            let now = self.closed.load(SeqCst);
            if attr.kind != Kind::File || now == closed {
                return Ok(attr);
            }
            closed = now;
            attr = self.entry(Operation::GetAttr { ino: attr.ino }).await?;
        }
    }

    pub(super) async fn directory(&self, operation: Operation) -> Result<(Vec<DirEntry>, bool), Refusal> {
        let closed = self.closed.load(SeqCst);
        match self.call(operation).await? {
            Answer::Directory { mut entries, end } => {
                for entry in &mut entries {
                    if let Some(attr) = entry.attr {
                        // One that is gone meanwhile is told as it was.
                        entry.attr = self.known(attr, closed).await.ok().or(Some(attr));
                    }
                }
                Ok((entries, end))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Changes attributes but for the size. What has been noted here about the same ones is outdated by it.
    pub(super) async fn set_attr(self: &Arc<Self>, ino: Ino, set: SetAttr) -> Result<Attr, Refusal> {
        let operation = Operation::SetAttr { ino, set, now: self.now() };
        let Some(file) = self.files.get(ino) else { return self.attr(operation).await };
        // No commit is on its way with older times.
        let _turn = file.turn.take().await;
        let times = (set.mtime.is_some(), set.atime.is_some());
        let forgotten = file.marks.forget(times.0, times.1, set.mode.is_some());
        let result = self.attr(operation).await;
        if result.is_err() {
            file.marks.restore(forgotten);
        }
        result
    }

    pub(super) async fn link(&self, ino: Ino, parent: Ino, name: Vec<u8>) -> Result<Attr, Refusal> {
        let attr = self.attr(Operation::Link { ino, parent, name, now: self.now() }).await?;
        if let Some(file) = self.files.get(ino) {
            file.nameless.store(false, SeqCst);
        }
        Ok(attr)
    }

    /// Takes a name away. An inode that nobody uses any more is closed, so that its space is free when this returns.
    pub(super) async fn remove(self: &Arc<Self>, operation: Operation) -> Result<(), Refusal> {
        match self.call(operation).await? {
            Answer::Removed { ino, nlink: 0 } => {
                if let Some(file) = self.files.get(ino) {
                    file.nameless.store(true, SeqCst);
                    self.close(&file, u64::MAX).await;
                }
                Ok(())
            }
            Answer::Removed { .. } | Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn create_open(
        self: &Arc<Self>,
        who: Credentials,
        parent: Ino,
        name: Vec<u8>,
        mode: u32,
        open: OpenMode,
    ) -> Result<Opened, Refusal> {
        let now = self.now();
        let operation = Operation::Create {
            parent,
            name,
            what: Created::File,
            mode,
            umask: who.umask,
            uid: who.uid,
            gid: who.gid,
            exclusive: open.exclusive,
            open: true,
            now,
        };
        let attr = self.entry(operation).await?;
        // An existing file may have been closed here since the coordinator opened it: it is opened once more.
        let is_known = self.files.get(attr.ino).is_some();
        let is_new = !is_known && attr.btime == now && attr.size == 0 && attr.nlink == 1;
        let truncate = open.truncate && !is_new;
        self.open(attr.ino, is_new.then_some(attr), truncate, open.clear_set_id).await
    }

    pub(super) async fn create_unnamed(
        self: &Arc<Self>,
        who: Credentials,
        parent: Ino,
        mode: u32,
    ) -> Result<Opened, Refusal> {
        let Credentials { uid, gid, umask } = who;
        let operation = Operation::CreateUnnamed { parent, mode, umask, uid, gid, now: self.now() };
        let attr = self.entry(operation).await?;
        let opened = self.open(attr.ino, Some(attr), false, false).await?;
        if let Some(file) = self.files.get(attr.ino) {
            file.nameless.store(true, SeqCst);
        }
        Ok(opened)
    }
}
