//! Telling the coordinator which files are closed: one message at a time, with all that have gathered meanwhile.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Core;
use super::channel::unexpected;
use super::gate::Pass;
use super::task::{Sender, promise, run};
use crate::proto::{Answer, FileSlots, Operation};
use crate::refusal::Refusal;
use crate::types::Ino;

/// Files of one message at most, and bytes of slots after which no more are added: well below
/// [`FRAME_MAX`](crate::proto::codec::FRAME_MAX).
const FILES_MAX: usize = 1000;
const SLOTS_MAX: usize = 256 << 10;

/// Who waits for the answer, and for the pass under which it has come.
type Told = Sender<(Result<(), Refusal>, Arc<Pass>)>;

#[derive(Default)]
struct State {
    waiting: Vec<(FileSlots, Told)>,
    /// A message is under way, or about to be.
    is_telling: bool,
}

/// Closings that the coordinator has not been told yet.
#[derive(Default)]
pub(super) struct Closings {
    state: Mutex<State>,
}

impl Closings {
    fn take(&self) -> Option<(Vec<FileSlots>, Vec<Told>)> {
        let mut state = self.state.lock();
        let (mut count, mut bytes) = (0, 0);
        for (file, _) in state.waiting.iter().take(FILES_MAX) {
            bytes += file.slots.len();
            // One whose slots alone are more goes by itself.
            if bytes > SLOTS_MAX && count > 0 {
                break;
            }
            count += 1;
        }
        state.is_telling = count > 0;
        (count > 0).then(|| state.waiting.drain(..count).unzip())
    }
}

impl Core {
    /// Tells the coordinator that this client's last handle of `ino` is closed, and hands over the slots of its users. What is
    /// open is not listed before the pass is dropped.
    pub(super) async fn tell_closed(
        self: &Arc<Self>,
        ino: Ino,
        slots: Vec<u8>,
    ) -> (Result<(), Refusal>, Arc<Pass>) {
        let (sender, receiver) = promise();
        let is_first = {
            let mut state = self.closings.state.lock();
            state.waiting.push((FileSlots { ino, slots }, sender));
            !std::mem::replace(&mut state.is_telling, true)
        };
        if is_first {
            let core = Arc::clone(self);
            run(async move { core.tell_closings().await });
        }
        match receiver.await {
            Some(told) => told,
            None => {
                let dropped = Err(Refusal::Io("the closing was dropped".to_owned()));
                (dropped, Arc::new(self.openings.enter().await))
            }
        }
    }

    async fn tell_closings(&self) {
        while let Some((files, told)) = self.closings.take() {
            let (reply, pass, _) = self.channel.call_inside(Operation::Close { files }, &self.openings).await;
            let (result, pass) = match reply {
                Ok(Answer::Done) => (Ok(()), Arc::new(pass)),
                Ok(other) => (Err(unexpected(&other)), Arc::new(pass)),
                Err(refusal) => (Err(refusal), Arc::new(pass)),
            };
            told.into_iter().for_each(|sender| sender.send((result.clone(), Arc::clone(&pass))));
        }
    }
}
