//! Names and attributes: asked of the coordinator, and completed with what this node knows as the files' owner.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use lockd::rules::Rule;

use super::Core;
use super::channel::unexpected;
use super::gate::Pass;
use super::open::Made;
use crate::proto::{Answer, Created, Operation, Reply, SetAttr, Term};
use crate::refusal::Refusal;
use crate::service::{Credentials, OpenMode, Opened};
use crate::types::{Attr, DirEntry, Ino, Kind};

impl Core {
    /// Asks the coordinator. When the volume is full, this node's reserve is given back first and it is asked again.
    pub(super) async fn call(&self, operation: Operation) -> Reply {
        let again = operation.changes().then(|| operation.clone());
        let is_question = again.is_none();
        let reply = match (self.channel.call(operation).await, again) {
            (Err(Refusal::NoSpace), Some(again)) if self.give_up_reserve().await => {
                self.channel.call(again).await
            }
            (reply, _) => reply,
        };
        // L3: a coordinator that is cut off, and has a successor, answers its own node as well.
        let is_answered = matches!(reply, Ok(_) | Err(Refusal::NotFound));
        if is_question && is_answered && self.options.cluster && self.rules.keeps(Rule::L3) {
            self.media.lease().await?;
        }
        reply
    }

    /// The same, of what opens an inode as well: the pass under which that has to be noted, and whether more than one
    /// coordinator was asked, of whom the last may not know that it is open.
    async fn call_opening(&self, operation: Operation) -> (Reply, Pass, bool) {
        let again = operation.clone();
        match self.channel.call_inside(operation, &self.openings).await {
            (Err(Refusal::NoSpace), pass, _) => {
                drop(pass);
                if self.give_up_reserve().await {
                    self.channel.call_inside(again, &self.openings).await
                } else {
                    (Err(Refusal::NoSpace), self.openings.enter().await, false)
                }
            }
            answered => answered,
        }
    }

    /// Asks for something that is answered with attributes, as the coordinator has them.
    pub(super) async fn entry(&self, operation: Operation) -> Result<Attr, Refusal> {
        match self.call(operation).await? {
            Answer::Entry(attr) => Ok(attr),
            other => Err(unexpected(&other)),
        }
    }

    /// The same, as the server has them.
    pub(super) async fn attr(self: &Arc<Self>, operation: Operation) -> Result<Attr, Refusal> {
        let closed = self.closed.load(SeqCst);
        match self.call(operation).await? {
            Answer::Entry(attr) => self.known(attr, closed).await,
            Answer::Elsewhere(attr, term) => self.ask_server(attr.ino, term).await,
            other => Err(unexpected(&other)),
        }
    }

    /// What a name stands for, from what this node keeps if it may (V9).
    pub(super) async fn lookup(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Result<Attr, Refusal> {
        let kept = self.channel.cache.lookup(parent, name);
        // L3: without the lease nothing that is kept holds.
        if let Some(kept) = kept
            && self.media.has_lease()
        {
            match kept? {
                (ino, Some(attr)) if !self.serves(ino) => return Ok(attr),
                (ino, _) => match self.get_attr(ino).await {
                    // Its last name has gone meanwhile: what the name stands for now is asked for.
                    Err(Refusal::NotFound) => {}
                    result => return result,
                },
            }
        }
        self.attr(Operation::Lookup { parent, name: name.to_vec() }).await
    }

    /// The attributes of an inode, from what this node keeps if it may (V9).
    pub(super) async fn get_attr(self: &Arc<Self>, ino: Ino) -> Result<Attr, Refusal> {
        if let Some(attr) = self.channel.cache.attr(ino)
            && self.media.has_lease()
            && !self.serves(ino)
        {
            return Ok(attr);
        }
        self.attr(Operation::GetAttr { ino }).await
    }

    /// Whether this node knows better than any answer how the file is.
    fn serves(&self, ino: Ino) -> bool {
        self.files.get(ino).is_some_and(|file| file.tenure().is_some())
    }

    /// Attributes of a file that is being written, from the node that serves it.
    async fn ask_server(self: &Arc<Self>, ino: Ino, mut term: Option<Term>) -> Result<Attr, Refusal> {
        let since = self.clock.boot();
        loop {
            let told = match &term {
                Some(term) => self.attr_there(ino, term).await?,
                None => None,
            };
            if let Some(attr) = told {
                return Ok(attr);
            }
            if self.clock.boot().since(since) > self.options.hold {
                let hold = self.options.hold.as_secs();
                return Err(Refusal::Io(format!("no node has served {ino} for {hold} s")));
            }
            let closed = self.closed.load(SeqCst);
            let before = term;
            term = match self.call(Operation::GetAttr { ino }).await? {
                Answer::Entry(attr) => return self.known(attr, closed).await,
                Answer::Elsewhere(_, Some(term)) => Some(term),
                Answer::Elsewhere(_, None) => match self.call(Operation::Serving { ino }).await {
                    Ok(Answer::Opened { term, .. }) => Some(term),
                    Ok(_) | Err(Refusal::Stale(_)) => None,
                    Err(error) => return Err(error),
                },
                other => return Err(unexpected(&other)),
            };
            if term.is_none() || term == before {
                self.media.tick_passed().await;
            }
        }
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
    pub(super) async fn known(self: &Arc<Self>, mut attr: Attr, mut closed: u64) -> Result<Attr, Refusal> {
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
            attr = match self.call(Operation::GetAttr { ino: attr.ino }).await? {
                Answer::Entry(attr) => attr,
                Answer::Elsewhere(attr, term) => return Box::pin(self.ask_server(attr.ino, term)).await,
                other => return Err(unexpected(&other)),
            };
        }
    }

    pub(super) async fn directory(
        self: &Arc<Self>,
        operation: Operation,
    ) -> Result<(Vec<DirEntry>, bool), Refusal> {
        let closed = self.closed.load(SeqCst);
        let attributes = matches!(operation, Operation::ReadDirectory { attributes: true, .. });
        match self.call(operation).await? {
            Answer::Directory { mut entries, end } => {
                for entry in entries.iter_mut().filter(|entry| attributes && entry.attr.is_none()) {
                    // It is being written elsewhere. One that is gone meanwhile is told without attributes.
                    entry.attr = self.get_attr(entry.ino).await.ok();
                }
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
        let operation = || Operation::SetAttr { ino, set, now: self.now() };
        let closed = self.closed.load(SeqCst);
        let file = self.files.get(ino).filter(|file| !file.is_elsewhere());
        let answer = match file {
            None => self.call(operation()).await?,
            Some(file) => {
                // No commit is on its way with older times.
                let _turn = file.turn.take().await;
                let times = (set.mtime.is_some(), set.atime.is_some());
                let forgotten = file.marks.forget(times.0, times.1, set.mode.is_some());
                let result = self.call(operation()).await;
                if result.is_err() {
                    file.marks.restore(forgotten);
                }
                result?
            }
        };
        match answer {
            Answer::Entry(attr) => self.known(attr, closed).await,
            // The node that serves it has notes of its own: it is changed there.
            Answer::Elsewhere(..) => Box::pin(self.set_attr_at_server(ino, set)).await,
            other => Err(unexpected(&other)),
        }
    }

    async fn set_attr_at_server(self: &Arc<Self>, ino: Ino, set: SetAttr) -> Result<Attr, Refusal> {
        let file = self.hold(ino, false).await?;
        let result = match self.set_attr_there(&file, &set).await {
            Ok(Some(attr)) => Ok(attr),
            Ok(None) => self.set_attr(ino, set).await,
            Err(error) => Err(error),
        };
        self.let_go(&file);
        result
    }

    pub(super) async fn link(
        self: &Arc<Self>,
        ino: Ino,
        parent: Ino,
        name: Vec<u8>,
    ) -> Result<Attr, Refusal> {
        let mut attr = self.attr(Operation::Link { ino, parent, name, now: self.now() }).await?;
        if let Some(file) = self.files.get(ino) {
            file.nameless.store(false, SeqCst);
        }
        if self.options.cluster {
            // The answer has what is committed; the size may be another by now.
            attr = self.get_attr(ino).await.unwrap_or(attr);
        }
        Ok(attr)
    }

    /// Takes a name away. An inode that nobody uses any more is closed, so that its space is free when this returns.
    pub(super) async fn remove(self: &Arc<Self>, operation: Operation) -> Result<(), Refusal> {
        match self.call(operation).await? {
            Answer::Removed { ino, nlink: 0 } => {
                if let Some(file) = self.files.get(ino) {
                    file.nameless.store(true, SeqCst);
                    let _ = self.close(&file, u64::MAX).await;
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
        let (reply, pass, again) = self.call_opening(operation).await;
        match reply? {
            Answer::Opened { attr, .. } if again => {
                drop(pass);
                self.open(attr.ino, None, OpenMode { truncate: false, ..open }).await
            }
            Answer::Opened { attr, term, .. } => {
                let mode = OpenMode { truncate: false, ..open };
                self.open(attr.ino, Some(Made { attr, term: Some(term), pass }), mode).await
            }
            // An existing file may have been closed here since the coordinator opened it: it is opened once more.
            Answer::Entry(attr) => {
                drop(pass);
                self.open(attr.ino, None, open).await
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn create_unnamed(
        self: &Arc<Self>,
        who: Credentials,
        parent: Ino,
        mode: u32,
        open: OpenMode,
    ) -> Result<Opened, Refusal> {
        let Credentials { uid, gid, umask } = who;
        let flags = OpenMode { truncate: false, ..open };
        let (attr, opened) = loop {
            let operation = Operation::CreateUnnamed { parent, mode, umask, uid, gid, now: self.now() };
            let (reply, pass, again) = self.call_opening(operation).await;
            let attr = match reply? {
                Answer::Entry(attr) => attr,
                other => return Err(unexpected(&other)),
            };
            if !again {
                let made = Made { attr, term: None, pass };
                break (attr, self.open(attr.ino, Some(made), flags).await?);
            }
            drop(pass);
            match self.open(attr.ino, None, flags).await {
                // The last coordinator had made it, and nobody had it open for the next one.
                Err(Refusal::NotFound) => {}
                opened => break (attr, opened?),
            }
        };
        if let Some(file) = self.files.get(attr.ino) {
            file.nameless.store(true, SeqCst);
        }
        Ok(opened)
    }
}
