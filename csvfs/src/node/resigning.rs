//! Ceasing to be the coordinator's node: what nobody owns is served by another node from then on.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::Core;
use super::file::File;
use crate::proto::{Claim, FileSlots};
use crate::refusal::Refusal;
use crate::slots::Cache;
use crate::types::FileBlock;

impl Core {
    fn unowned(&self) -> Vec<Arc<File>> {
        self.files.values().into_iter().filter(|file| file.is_served_for_nobody()).collect()
    }

    /// Does of [`Core::resign`] what can be done before anything is stopped.
    pub(super) async fn prepare_to_resign(self: &Arc<Self>) -> Result<(), Refusal> {
        // What the kernel keeps pages of stays here: this node owns it from now on.
        let with_pages: Vec<Arc<File>> = self.unowned().into_iter().filter(|file| file.has_pages()).collect();
        if !with_pages.is_empty() {
            let claim = Claim { automatic: false, pinned: false, offer: None };
            self.acquire(&with_pages, claim).await.map_err(|refusal| refusal.why)?;
        }
        // What is pending is committed before anything is stopped: little is left to do afterwards.
        for file in self.unowned() {
            self.commit(&file).await?;
        }
        Ok(())
    }

    /// Stops, drains and commits what this node serves for nobody, and serves it no more. The slots of the remote users.
    pub(super) async fn resign(self: &Arc<Self>) -> Result<Vec<FileSlots>, Refusal> {
        self.resigns.store(true, SeqCst);
        let result = self.leave_unowned().await;
        if result.is_err() {
            self.resigns.store(false, SeqCst);
        }
        result
    }

    async fn leave_unowned(self: &Arc<Self>) -> Result<Vec<FileSlots>, Refusal> {
        // What is being opened, or changes hands, has done so or sees that this node resigns. Neither stays stopped: whoever
        // closes a file has its turn and needs them.
        let stop = self.openings.stop();
        self.openings.drain().await;
        drop(stop);
        let stop = self.givings.stop();
        self.givings.drain().await;
        drop(stop);
        let files = self.unowned();
        let mut leavings = Vec::with_capacity(files.len());
        for file in &files {
            leavings.push(file.leave_with_pages()?);
        }
        let (_guests, stills) = self.hold_all_still(&files).await;
        self.commit_set(&files).await?;
        let all = FileBlock(0)..FileBlock(u64::MAX);
        let fresh = files.iter().flat_map(|file| file.layout.write().cut_fresh(&all)).collect();
        self.put_back(fresh, false).await;
        let mut slots = Vec::new();
        for file in &files {
            let of_file = self.slots_of(file);
            if !of_file.is_empty() {
                slots.push(FileSlots { ino: file.ino, slots: of_file });
            }
            file.leave();
            *file.guest_slots.lock() = Cache::default();
        }
        drop(stills);
        Ok(slots)
    }
}
