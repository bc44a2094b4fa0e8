//! A coordinator learns that this node is here, what it has open, and what it serves.
//!
//! From then on it may call this node back, and what it tells may be kept under leases (V9). A coordinator that has taken
//! the volume over from another knows nothing else of it. The list must be right at the moment at which it counts: nothing
//! is opened or closed, and no file changes its server, from before it is made until the coordinator has it. What is
//! asked meanwhile waits.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use lockd::ids::Epoch;
use lockd::network::Carrier;

use super::Core;
use super::file::File;
use crate::proto::{Bequest, Declared, Kept, Operation};
use crate::refusal::Refusal;

/// Files of one message, and bytes of slots after which no more are added: well below
/// [`FRAME_MAX`](crate::proto::codec::FRAME_MAX).
const FILES_MAX: usize = 4096;
const SLOTS_MAX: usize = 256 << 10;

/// One message.
#[derive(Default)]
struct Part {
    open: Vec<Declared>,
    kept: Vec<Kept>,
}

/// All of it, in messages that are not too long; at least one.
fn parts(open: Vec<Declared>, kept: Vec<Kept>) -> Vec<Part> {
    let mut parts: Vec<Part> =
        open.chunks(FILES_MAX).map(|open| Part { open: open.to_vec(), kept: Vec::new() }).collect();
    let (mut some, mut bytes) = (Vec::new(), 0);
    for one in kept {
        bytes += one.slots.len();
        if !some.is_empty() && (bytes > SLOTS_MAX || some.len() >= FILES_MAX) {
            bytes = one.slots.len();
            parts.push(Part { open: Vec::new(), kept: std::mem::take(&mut some) });
        }
        some.push(one);
    }
    if !some.is_empty() {
        parts.push(Part { open: Vec::new(), kept: some });
    }
    if parts.is_empty() {
        parts.push(Part::default());
    }
    parts
}

fn other_coordinator() -> Refusal {
    Refusal::Stale("another mount coordinates the volume now".to_owned())
}

impl Core {
    /// Another coordinator. What was asked and not answered is asked of it.
    pub(super) async fn follow(
        self: &Arc<Self>,
        carrier: Arc<dyn Carrier>,
        coordinator: Epoch,
    ) -> Result<(), Refusal> {
        // V8: no read goes on by a layout that the new coordinator has not lent. One that is just being loaded is given up,
        // so that nobody waits for it.
        let lent: Vec<Arc<File>> =
            self.files.values().into_iter().filter(|file| file.lent.swap(false, SeqCst)).collect();
        let number = self.channel.switch(Some(carrier), coordinator);
        self.resigns.store(false, SeqCst);
        // Who served what nobody owns is gone, or has resigned: nobody waits for its answer.
        self.sendings.cut();
        self.attach_on(number, lent).await
    }

    /// Lets the coordinator know that this node is here, and what it has open; from now on it may keep what it is told
    /// under leases (V9).
    pub(super) async fn attach(self: &Arc<Self>) -> Result<(), Refusal> {
        self.attach_on(self.channel.number(), Vec::new()).await
    }

    async fn attach_on(self: &Arc<Self>, number: u64, lent: Vec<Arc<File>>) -> Result<(), Refusal> {
        let attaching = self.attaching.take().await;
        // What was kept before is not covered by leases any more.
        self.channel.cache.switch(false);
        self.drop_attributes(None).await;
        let told = loop {
            // What is opened or closed between the list and its arrival would be neither as it says nor as it was told.
            let stops = [self.openings.stop(), self.givings.stop()];
            self.openings.drain().await;
            self.givings.drain().await;
            let mut open = Vec::new();
            for file in self.files.values() {
                if file.lent.load(SeqCst) || lent.iter().any(|lent| lent.ino == file.ino) {
                    self.return_layout(file.ino).await;
                } else {
                    // One that is being borrowed was lent by the last coordinator.
                    file.recalls.fetch_add(1, SeqCst);
                }
                open.extend(file.declaration());
            }
            let bequest = self.legacy.lock().clone();
            let left = bequest.left;
            match self.tell_open(number, open, bequest).await {
                Ok(()) => break left,
                // No way to this node is known yet.
                Err(Refusal::Busy(_)) => {}
                Err(refusal) => return Err(refusal),
            }
            drop(stops);
            self.media.tick_passed().await;
        };
        self.files.values().iter().for_each(|file| file.forget_home());
        {
            // Not what has been left since.
            let mut legacy = self.legacy.lock();
            if legacy.left == told {
                *legacy = Bequest::default();
            }
        }
        self.channel.cache.switch(true);
        if !self.channel.open(number) {
            return Err(other_coordinator());
        }
        drop(attaching);
        for file in lent {
            self.borrow_anew(&file).await;
        }
        Ok(())
    }

    async fn tell_open(&self, number: u64, open: Vec<Declared>, bequest: Bequest) -> Result<(), Refusal> {
        let Bequest { left, kept } = bequest;
        let parts = parts(open, kept);
        let last = parts.len() - 1;
        for (at, Part { open, kept }) in parts.into_iter().enumerate() {
            let attach = Operation::Attach { first: at == 0, last: at == last, open, left, kept };
            self.channel.call_on(number, attach).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Ino;

    #[test]
    fn much_is_told_in_several_messages() {
        let declared = |ino: u64| Declared { ino: Ino(ino), write: false, served: None };
        let kept = |ino: u64| Kept { ino: Ino(ino), owned: false, since: 1, slots: vec![0; SLOTS_MAX / 2] };
        assert_eq!(parts(Vec::new(), Vec::new()).len(), 1);
        let all = parts((0..10_000).map(declared).collect(), (0..3).map(kept).collect());
        let counts: Vec<(usize, usize)> = all.iter().map(|part| (part.open.len(), part.kept.len())).collect();
        assert_eq!(counts, [(4096, 0), (4096, 0), (1808, 0), (0, 2), (0, 1)]);
    }
}
