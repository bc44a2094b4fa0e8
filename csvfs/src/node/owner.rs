//! Becoming and ceasing to be the server of a file.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use lockd::ids::{ClientId, SessionId, SlotId};
use lockd::rules::Rule;

use super::Core;
use super::channel::unexpected;
use super::file::{File, Phase};
use super::task::{promise, run};
use crate::proto::codec::{decode, encode};
use crate::proto::{Answer, Operation, Term};
use crate::refusal::Refusal;
use crate::slots::{Cache, Slot};
use crate::types::{FileBlock, Ino};

/// A file of this size that is open for writing on one node alone is acquired by it.
pub(super) const ACQUIRE_MIN: u64 = 1 << 20;
/// Files given up lately whose slots are kept for a repeated call.
const YIELDED_MAX: usize = 256;

/// Files that were given up lately, and the slots that went with them.
#[derive(Default)]
pub(super) struct Yielded(VecDeque<(Ino, u64, Vec<u8>)>);

impl Core {
    /// The slots of other nodes' changes to `file`, to be handed on. Nothing of theirs is under way.
    pub(super) fn slots_of(&self, file: &File) -> Vec<u8> {
        let slots = file.guest_slots.lock().export();
        if slots.is_empty() { Vec::new() } else { encode(&slots).unwrap_or_default() }
    }

    /// Takes over what the last server has handed on.
    pub(super) fn take_slots(&self, file: &File, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match decode::<Vec<(ClientId, SlotId, Slot)>>(bytes) {
            Ok(slots) => file.guest_slots.lock().import(slots),
            Err(error) => tracing::error!(ino = file.ino.0, %error, "the slots of a file are not understood"),
        }
    }

    /// Ends this node's term of service of a file: drained, flushed, committed, given back. The slots to hand on.
    pub(super) async fn give_up(
        self: &Arc<Self>,
        ino: Ino,
        tenure: u64,
        soft: bool,
        next: Option<(SessionId, ClientId)>,
    ) -> Result<Vec<u8>, Refusal> {
        let file = loop {
            if let Some((_, _, slots)) =
                self.yielded.lock().0.iter().find(|(yielded, term, _)| (*yielded, *term) == (ino, tenure))
            {
                return Ok(slots.clone());
            }
            // Not open here: nothing is pending. The coordinator has the slots.
            let Some(file) = self.files.get(ino) else { return Ok(Vec::new()) };
            let waits = {
                let mut life = file.life.lock();
                match life.phase {
                    Phase::Open => {
                        if life.uses == 0 {
                            self.idle.fetch_sub(1, SeqCst);
                        }
                        life.uses += 1;
                        break Arc::clone(&file);
                    }
                    Phase::Opening | Phase::Closing => {
                        let (sender, receiver) = promise();
                        life.waiting.push(sender);
                        Some(receiver)
                    }
                    Phase::Gone => None,
                }
            };
            if let Some(waits) = waits {
                waits.await;
            }
        };
        let result = self.hand_over(&file, tenure, soft, next).await;
        self.let_go(&file);
        result
    }

    async fn hand_over(
        self: &Arc<Self>,
        file: &Arc<File>,
        tenure: u64,
        soft: bool,
        next: Option<(SessionId, ClientId)>,
    ) -> Result<Vec<u8>, Refusal> {
        if file.pinned.load(SeqCst) {
            return Err(Refusal::Busy(format!(
                "{} is pinned to the node that owns it; release it there",
                file.ino
            )));
        }
        if soft && file.writers.load(SeqCst) > 0 {
            return Err(Refusal::Busy(format!("{} is being written on the node that serves it", file.ino)));
        }
        // Others' requests end first, as they pass the gate, too; new ones are told to ask who serves.
        let _guests = file.guests.stop();
        file.guests.drain().await;
        // V8, P7: nothing is in flight, and nothing will land later.
        let still = self.hold_still(file).await;
        if file.tenure() != Some(tenure) {
            // A late copy of a call that was answered long ago, or one that has come in the middle of the change.
            return if file.is_elsewhere() {
                Ok(Vec::new())
            } else {
                Err(Refusal::Stale("another term".to_owned()))
            };
        }
        self.commit_now(file, &still.turn).await?;
        let all = FileBlock(0)..FileBlock(u64::MAX);
        let fresh = file.layout.write().cut_fresh(&all);
        self.put_back(fresh, false).await;
        let slots = self.slots_of(file);
        // Refused: this node goes on as if nothing had happened (L7).
        self.give_to(file, next).await?;
        file.leave();
        *file.guest_slots.lock() = Cache::default();
        let mut yielded = self.yielded.lock();
        yielded.0.push_back((file.ino, tenure, slots.clone()));
        if yielded.0.len() > YIELDED_MAX {
            yielded.0.pop_front();
        }
        Ok(slots)
    }

    /// Makes this node the server of a file that it has open.
    pub(super) async fn acquire(self: &Arc<Self>, file: &Arc<File>, automatic: bool) -> Result<(), Refusal> {
        let _turn = file.turn.take().await;
        if !file.is_elsewhere() {
            return Ok(());
        }
        let operation = Operation::Acquire { ino: file.ino, automatic };
        let answer = match self.channel.call(operation).await {
            Ok(answer) => answer,
            Err(error) => {
                self.drop_unclaimed(file.ino).await;
                return Err(error);
            }
        };
        match answer {
            Answer::Opened { attr, term, slots } if term.client == self.client => {
                self.take_slots(file, &slots);
                let here = match self.service_here(file.ino, &term).await {
                    Ok(here) => here,
                    Err(error) => {
                        self.disclaim(file, &slots).await;
                        return Err(error);
                    }
                };
                let _stop = file.gate.stop();
                file.gate.drain().await;
                self.count_lost(file, &term);
                file.serve(&attr, Some(here));
                Ok(())
            }
            Answer::Opened { .. } | Answer::Elsewhere(..) => {
                self.drop_unclaimed(file.ino).await;
                Err(Refusal::Busy(format!("{} has gone to another node meanwhile", file.ino)))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Acquires a file and keeps it, open or not, until [`Core::unpin`].
    pub(super) async fn pin(self: &Arc<Self>, ino: Ino) -> Result<(), Refusal> {
        let file = self.hold(ino, true).await?;
        let result =
            if file.is_regular() { self.acquire(&file, false).await } else { file.owned().map(|_| ()) };
        if result.is_ok() {
            file.pinned.store(true, SeqCst);
            let is_new = self.pins.lock().insert(ino);
            if is_new {
                // Held by the pin from now on.
                return Ok(());
            }
        }
        self.let_go(&file);
        result
    }

    /// Lets a file go: it is nobody's, unless its use acquires it again.
    pub(super) async fn unpin(self: &Arc<Self>, ino: Ino) -> Result<(), Refusal> {
        let was_pinned = self.pins.lock().remove(&ino);
        let file = if was_pinned { self.files.get(ino) } else { None };
        if let Some(file) = &file {
            file.pinned.store(false, SeqCst);
        }
        let released = self.done(Operation::Release { ino }).await;
        if let Some(file) = file {
            self.let_go(&file);
        }
        released
    }

    /// The coordinator names this node as the server, and it cannot be: the file is closed and opened again.
    async fn disclaim(&self, file: &File, slots: &[u8]) {
        let close = Operation::Close { ino: file.ino, slots: slots.to_vec() };
        let open = Operation::Open { ino: file.ino, write: file.declared.load(SeqCst) };
        for operation in [close, open] {
            if let Err(error) = self.channel.call(operation).await {
                tracing::error!(ino = file.ino.0, %error, "a file could not be given to the coordinator");
            }
        }
    }

    /// A file that nobody owns has come back to this node, which is the coordinator's.
    pub(super) async fn serve_again(self: &Arc<Self>, file: &Arc<File>) -> Result<(), Refusal> {
        let _turn = file.turn.take().await;
        if !file.is_elsewhere() {
            return Ok(());
        }
        let open = Operation::Open { ino: file.ino, write: file.declared.load(SeqCst) };
        match self.channel.call(open).await? {
            Answer::Opened { attr, term, slots } if term.client == self.client => {
                self.take_slots(file, &slots);
                let here = self.service_here(file.ino, &term).await?;
                let _stop = file.gate.stop();
                file.gate.drain().await;
                self.count_lost(file, &term);
                file.serve(&attr, Some(here));
                Ok(())
            }
            _ => Err(Refusal::Stale(format!("{} is served by another node", file.ino))),
        }
    }

    /// P9: what was written at a server that was lost before it handed over is told by the next sync of each handle.
    fn count_lost(&self, file: &File, term: &Term) {
        // A sync that is on its way has taken it, and looks here.
        file.since.store(term.since, SeqCst);
        let unsynced = file.unsynced.lock().take();
        if self.rules.keeps(Rule::P9) && unsynced.is_some_and(|unsynced| unsynced < term.since) {
            file.failures.fetch_add(1, SeqCst);
        }
    }

    /// A large file that is open for writing here: this node tries, once, to own it.
    pub(super) fn maybe_acquire(self: &Arc<Self>, file: &Arc<File>, size: u64) {
        let wants = self.options.cluster
            && size >= ACQUIRE_MIN
            && file.is_elsewhere()
            && file.writers.load(SeqCst) > 0
            && !file.tried.swap(true, SeqCst);
        if !wants {
            return;
        }
        let (core, file) = (Arc::clone(self), Arc::clone(file));
        run(async move {
            match core.acquire(&file, true).await {
                Ok(()) => tracing::debug!(ino = file.ino.0, "this node owns the file now"),
                Err(refusal) => tracing::debug!(ino = file.ino.0, %refusal, "the file stays where it is"),
            }
        });
    }
}
