//! Sealed files (V8): nobody changes their data, so that every node reads them directly.
//!
//! The file's server seals it: it stops, drains and commits it, and the coordinator keeps the seal in the inode. Names and
//! attributes still change, and the last name may go. A node that opens it for reading afterwards is *lent* the layout:
//! its reads go to the LUN, past the server. Called back, it first sends no further read that way, waits for those that are
//! under way, forgets the layout and answers; then it is a remote user as of any other file.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::Core;
use super::channel::unexpected;
use super::file::File;
use super::layout::Layout;
use crate::proto::{Answer, Operation};
use crate::refusal::Refusal;
use crate::types::{Attr, FileBlock, Ino, Kind};

impl File {
    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(SeqCst)
    }

    /// Refuses a change of the data of a sealed file.
    pub(super) fn check_unsealed(&self) -> Result<(), Refusal> {
        if !self.is_sealed() {
            return Ok(());
        }
        tracing::warn!(ino = self.ino.0, "a sealed file is not changed; `csvfs unseal` takes the seal off");
        Err(Refusal::NotPermitted)
    }
}

impl Core {
    /// Seals a file, or takes the seal off.
    pub(super) async fn seal(self: &Arc<Self>, ino: Ino, seal: bool) -> Result<(), Refusal> {
        let file = self.hold(ino, false).await?;
        let result = loop {
            if file.is_regular() && file.is_elsewhere() {
                match self.seal_there(&file, seal).await {
                    Ok(None) => continue,
                    Ok(Some(())) => break Ok(()),
                    Err(error) => break Err(error),
                }
            }
            match self.seal_here(&file, seal).await {
                Err(error) if self.has_moved(&file, &error) => {}
                result => break result,
            }
        };
        self.let_go(&file);
        if let Err(refusal) = &result {
            tracing::warn!(ino = ino.0, seal, %refusal, "the seal of a file is not changed");
        }
        result
    }

    /// The same, of a file that this node serves.
    pub(super) async fn seal_here(self: &Arc<Self>, file: &Arc<File>, seal: bool) -> Result<(), Refusal> {
        if seal && self.has_page_cache() {
            // What a program has stored in a page could not be written back any more.
            file.check_no_pages()?;
        }
        let still = self.hold_still(file).await;
        let owned = file.owned()?;
        if seal {
            self.commit_now(file, &still.turn).await?;
            let fresh = file.layout.write().cut_fresh(&(FileBlock(0)..FileBlock(u64::MAX)));
            self.put_back(fresh, false).await;
        }
        match self.call(Operation::Seal { file: owned, seal, now: self.now() }).await? {
            Answer::Entry(attr) => file.sealed.store(attr.sealed, SeqCst),
            other => return Err(unexpected(&other)),
        }
        if !seal {
            // Clones may share its blocks since it was loaded (V11).
            *file.layout.write() = Layout::default();
            file.loaded.store(false, SeqCst);
        }
        Ok(())
    }

    /// A file has been opened, and another node serves it: if it is sealed, it is read directly, unless its layout has
    /// been called back since (it had been so `recalls` times).
    pub(super) fn borrow(&self, file: &File, attr: &Attr, recalls: u64) {
        if !attr.sealed || attr.kind != Kind::File || !file.is_elsewhere() {
            return;
        }
        file.sealed.store(true, SeqCst);
        file.size.store(attr.size, SeqCst);
        file.lent.store(true, SeqCst);
        // Looked at after it is lent: a call that comes later finds that.
        if file.recalls.load(SeqCst) != recalls {
            file.sealed.store(false, SeqCst);
            file.lent.store(false, SeqCst);
        }
    }

    /// The same of a file that was open here already, if only because it was closed a moment ago: it may have been sealed
    /// since. Without the layout it is read through its server.
    pub(super) async fn borrow_again(&self, file: &File, attr: &Attr) {
        if !attr.sealed || attr.kind != Kind::File || !file.is_elsewhere() || file.lent.load(SeqCst) {
            return;
        }
        self.borrow_anew(file).await;
    }

    /// Asks for the layout of a file that is open here, and that another node serves: it is lent if the file is sealed.
    pub(super) async fn borrow_anew(&self, file: &File) {
        let recalls = file.recalls.load(SeqCst);
        let open = Operation::Open { ino: file.ino, write: false };
        let (opened, _pass, _) = self.channel.call_inside(open, &self.openings).await;
        match opened {
            Ok(Answer::Opened { attr, slots, .. }) => {
                // It may have come here meanwhile.
                self.take_slots(file, &slots);
                self.borrow(file, &attr, recalls);
            }
            Ok(Answer::Elsewhere(attr, _)) => self.borrow(file, &attr, recalls),
            Ok(_) | Err(_) => {}
        }
    }

    /// V8: the layout of a sealed file is called back.
    pub(super) async fn return_layout(&self, ino: Ino) {
        let Some(file) = self.files.get(ino) else { return };
        file.recalls.fetch_add(1, SeqCst);
        if !file.is_elsewhere() {
            return;
        }
        file.lent.store(false, SeqCst);
        file.sealed.store(false, SeqCst);
        let _stop = file.gate.stop();
        file.gate.drain().await;
        if file.is_elsewhere() {
            file.loaded.store(false, SeqCst);
            *file.layout.write() = Layout::default();
        }
    }
}
