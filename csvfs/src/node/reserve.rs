//! The node's reserve: blocks that the coordinator has granted, from which growing files are fed without a round trip.
//!
//! It is refilled in the background when less than half of its target is left; the target grows with the pace of the
//! writers. Every block that comes back from a file comes through [`Core::put_back`], which keeps those under a ghost
//! out of use (P6).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use lockd::clock::BootTime;
use lockd::failpoint;
use lockd::rules::Rule;
use parking_lot::Mutex;

use super::Core;
use super::blocks::Claim;
use super::media::is_haunted;
use super::stock::Stock;
use super::task::{Sender, promise, run};
use crate::proto::{Answer, Operation};
use crate::refusal::Refusal;
use crate::types::{FileBlock, Run};

/// Runs in one message.
const RUNS_MAX: usize = 4096;
/// Refills that follow each other faster than this double the target.
const PACE: Duration = Duration::from_millis(500);

struct Refill {
    running: bool,
    /// What those who wait need at least, in blocks.
    needed: u64,
    waiting: Vec<Sender<Result<(), Refusal>>>,
    target: u64,
    last: BootTime,
}

/// See the module.
pub(super) struct Reserve {
    pub(super) stock: Mutex<Stock>,
    refill: Mutex<Refill>,
    /// The volume had no more: nothing is asked ahead until the next tick.
    scarce: AtomicBool,
}

impl Reserve {
    pub(super) fn new(target: u64) -> Self {
        let refill =
            Refill { running: false, needed: 0, waiting: Vec::new(), target, last: BootTime::default() };
        Self { stock: Mutex::default(), refill: Mutex::new(refill), scarce: AtomicBool::new(false) }
    }

    pub(super) fn tick(&self) {
        self.scarce.store(false, SeqCst);
    }
}

impl Core {
    /// Asks for more blocks ahead of the writers, if it is time to.
    pub(super) fn refill_ahead(self: &Arc<Self>) {
        let free = self.reserve.stock.lock().free();
        let starts = {
            let mut refill = self.reserve.refill.lock();
            let may = !self.reserve.scarce.load(SeqCst) && !self.ended.load(SeqCst);
            let low = may && free < refill.target / 2;
            low && !std::mem::replace(&mut refill.running, true)
        };
        if starts {
            let core = Arc::clone(self);
            run(async move { core.refill().await });
        }
    }

    /// Waits until the stock has `needed` blocks. The caller holds no block lock.
    pub(super) async fn obtain(self: &Arc<Self>, needed: u64) -> Result<(), Refusal> {
        let mut last_resort = true;
        loop {
            if self.reserve.stock.lock().free() >= needed {
                return Ok(());
            }
            let (sender, receiver) = promise();
            let starts = {
                let mut refill = self.reserve.refill.lock();
                refill.waiting.push(sender);
                refill.needed = refill.needed.max(needed);
                !std::mem::replace(&mut refill.running, true)
            };
            if starts {
                let core = Arc::clone(self);
                run(async move { core.refill().await });
            }
            match receiver.await.unwrap_or_else(|| Err(Refusal::Io("the refill was dropped".to_owned()))) {
                Ok(()) => {}
                Err(_) if self.reserve.stock.lock().free() >= needed => {}
                Err(Refusal::NoSpace) if std::mem::take(&mut last_resort) => {
                    self.take_back_speculation().await
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until no refill is on its way.
    pub(super) async fn refill_ended(&self) {
        loop {
            let (sender, receiver) = promise();
            {
                let mut refill = self.reserve.refill.lock();
                if !refill.running {
                    return;
                }
                refill.waiting.push(sender);
            }
            // An error is that of a refill, not of this.
            let _ = receiver.await;
        }
    }

    /// One refill at a time, until nobody waits any more.
    async fn refill(self: &Arc<Self>) {
        loop {
            let free = self.reserve.stock.lock().free();
            let (want, waiting) = {
                let mut refill = self.reserve.refill.lock();
                let now = self.clock.boot();
                if now.since(refill.last) < PACE {
                    refill.target = (refill.target * 2).min(self.options.reserve_max);
                }
                refill.last = now;
                let needed = std::mem::take(&mut refill.needed);
                let target = if self.ended.load(SeqCst) { 0 } else { refill.target };
                (target.max(needed).saturating_sub(free), std::mem::take(&mut refill.waiting))
            };
            let granted = if want == 0 { Ok(()) } else { self.grow_reserve(want).await };
            self.reserve.scarce.store(granted == Err(Refusal::NoSpace), SeqCst);
            waiting.into_iter().for_each(|waiter| waiter.send(granted.clone()));
            let mut refill = self.reserve.refill.lock();
            if refill.waiting.is_empty() {
                refill.running = false;
                return;
            }
        }
    }

    /// V6: the blocks are used when the coordinator has answered, that is when the grant is durable.
    async fn grow_reserve(&self, want: u64) -> Result<(), Refusal> {
        failpoint::reached("reserve.asking");
        match self.channel.call(Operation::Reserve { want }).await? {
            Answer::Runs(runs) if runs.is_empty() => Err(Refusal::NoSpace),
            Answer::Runs(runs) => {
                let mut stock = self.reserve.stock.lock();
                runs.into_iter().for_each(|run| stock.add(run));
                Ok(())
            }
            other => Err(super::channel::unexpected(&other)),
        }
    }

    /// The volume is full: blocks that files keep for writes to come, and files that nobody uses, give theirs back.
    async fn take_back_speculation(self: &Arc<Self>) {
        let _ = self.close_idle(u64::MAX).await;
        for file in self.files.values() {
            if file.layout.read().fresh_blocks() == 0 {
                continue;
            }
            // Fresh blocks may be under a write in flight; none is while all block locks are held.
            let _hold = file.locks.hold(Claim::everything()).await;
            let fresh = file.layout.write().cut_fresh(&(FileBlock(0)..FileBlock(u64::MAX)));
            self.put_back(fresh, false).await;
        }
    }

    /// Blocks come back from a file, and may be given to the next: nothing reads or writes them any more. Those under
    /// a ghost are not (P6); `haunted`: all of these are.
    pub(super) async fn put_back(&self, runs: Vec<Run>, haunted: bool) {
        if runs.is_empty() {
            return;
        }
        let ghosts = self.media.lun.ghosts();
        let keeps = self.rules.keeps(Rule::P6);
        let (haunted, free): (Vec<Run>, Vec<Run>) =
            runs.into_iter().partition(|run| keeps && (haunted || is_haunted(&ghosts, *run)));
        {
            let mut stock = self.reserve.stock.lock();
            free.into_iter().for_each(|run| stock.add(run));
        }
        for runs in haunted.chunks(RUNS_MAX) {
            let quarantine = Operation::Quarantine { runs: runs.to_vec() };
            if let Err(error) = self.channel.call(quarantine).await {
                // They stay out of use for as long as this node has its reserve.
                tracing::warn!(?runs, %error, "blocks under a write of unknown outcome could not be quarantined");
            }
        }
    }

    /// Gives the whole reserve back to the volume; whether there was something to give.
    pub(super) async fn give_up_reserve(&self) -> bool {
        // V6: out of use here before the coordinator may give them to another.
        let runs = self.reserve.stock.lock().take_all();
        for runs in runs.chunks(RUNS_MAX) {
            match self.channel.call(Operation::Return { runs: runs.to_vec() }).await {
                Ok(_) if self.rules.keeps(Rule::V6) => {}
                Ok(_) => runs.iter().for_each(|run| self.reserve.stock.lock().add(*run)),
                Err(error) => tracing::warn!(%error, "a part of the reserve could not be given back"),
            }
        }
        !runs.is_empty()
    }
}
