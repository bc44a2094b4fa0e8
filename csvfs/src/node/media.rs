//! The LUN as the node uses it: under the lease, and with flushes shared.

use std::sync::Arc;
use std::time::Duration;

use lockd::clock::{BootTime, Clock};
use lockd::lease::Lease;
use lockd::rules::{Rule, Rules};
use parking_lot::Mutex;
use redirector::buffer::{Buffer, Pool, Slice};
use redirector::lun::{Lun, Outcome};

use super::asker::completing;
use super::background::Alarm;
use super::task::{Receiver, Sender, promise, run};
use crate::refusal::Refusal;
use crate::types::{LunBlock, Run};

#[derive(Default)]
struct Flushes {
    running: bool,
    /// Who needs a flush that begins after the running one.
    waiting: Vec<Sender<Outcome>>,
}

/// See the module.
pub(super) struct Media {
    pub(super) lun: Arc<dyn Lun>,
    pub(super) pool: Pool,
    lease: Arc<Lease>,
    /// The lease of this mount's claim on the LUN (V1), where that is another one: nothing is written without it.
    beat: Option<Arc<Lease>>,
    clock: Arc<dyn Clock>,
    rules: Rules,
    /// How long a lapsed lease is waited for (P2).
    hold: Duration,
    /// The deadline of the lease that has lapsed, and when somebody first wanted it: all who wait count from there.
    lapse: Mutex<(BootTime, BootTime)>,
    request_max: usize,
    flushes: Mutex<Flushes>,
    /// Who waits for the lease to be won back, or for a ghost to die: they look again at each tick.
    waiting: Mutex<Vec<Sender<()>>>,
    alarm: Arc<Alarm>,
}

/// Why a request failed, as the caller is told.
pub(super) fn refusal(what: &str, outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Failed(libc::ENOSPC) => Refusal::NoSpace,
        Outcome::Failed(errno) => Refusal::Io(format!("the LUN refused to {what} (errno {errno})")),
        Outcome::Done | Outcome::Unknown => {
            Refusal::Io(format!("no path to the LUN answered; whether it did {what} is unknown"))
        }
    }
}

/// One outcome for several requests: the worst.
pub(super) fn worst(one: Outcome, other: Outcome) -> Outcome {
    match (one, other) {
        (Outcome::Unknown, _) | (_, Outcome::Unknown) => Outcome::Unknown,
        (Outcome::Failed(errno), _) | (_, Outcome::Failed(errno)) => Outcome::Failed(errno),
        (Outcome::Done, Outcome::Done) => Outcome::Done,
    }
}

impl Media {
    pub(super) fn new(
        lun: Arc<dyn Lun>,
        pool: Pool,
        [lease, beat]: [Option<Arc<Lease>>; 2],
        clock: Arc<dyn Clock>,
        rules: Rules,
        hold: Duration,
        alarm: Arc<Alarm>,
    ) -> Self {
        let lease = lease.unwrap_or_default();
        let request_max = usize::try_from(lun.geometry().request_max).unwrap_or(usize::MAX);
        let request_max = (request_max / 4096 * 4096).max(4096);
        Self {
            lun,
            pool,
            lease,
            beat,
            clock,
            rules,
            hold,
            lapse: Mutex::default(),
            request_max,
            flushes: Mutex::default(),
            waiting: Mutex::default(),
            alarm,
        }
    }

    /// The longest request in bytes: a multiple of 4096.
    pub(super) fn request_max(&self) -> usize {
        self.request_max
    }

    /// L3: whether a write may start, or a read be answered, now.
    #[inline]
    pub(super) fn has_lease(&self) -> bool {
        self.lease.admits(self.rules, &*self.clock)
    }

    /// Whether the session is over for good.
    pub(super) fn has_ended(&self) -> bool {
        self.lease.has_ended()
    }

    /// L3: the same, and for so long from now on.
    pub(super) fn has_lease_for(&self, span: Duration) -> bool {
        self.has_lease() && self.lease.deadline().since(self.clock.boot()) >= span
    }

    /// L3, V1: whether a write to the LUN may start now.
    #[inline]
    pub(super) fn may_write(&self) -> bool {
        let beats = |beat: &Arc<Lease>| !self.rules.keeps(Rule::V1) || beat.holds(&*self.clock);
        self.has_lease() && self.beat.as_ref().is_none_or(beats)
    }

    /// Waits until a write to the LUN may start, as [`Media::lease`].
    async fn writable(&self) -> Result<(), Refusal> {
        loop {
            self.lease().await?;
            if self.may_write() {
                return Ok(());
            }
            let deadline = self.beat.as_ref().map_or(BootTime(0), |beat| beat.deadline());
            if deadline.0 == 0 {
                return Err(Refusal::Io("another session has taken the volume; mount again".to_owned()));
            }
            if self.rules.keeps(Rule::P2) && self.lapsed_for(deadline) > self.hold {
                return Err(self.no_heartbeat());
            }
            self.tick_passed().await;
        }
    }

    fn no_heartbeat(&self) -> Refusal {
        let hold = self.hold.as_secs();
        Refusal::Io(format!("no heartbeat has reached the LUN for {hold} s; look after the LUN"))
    }

    /// Waits until the lease is won back, as long as I/O is held for a LUN that is gone (P2). An ended one never is.
    pub(super) async fn lease(&self) -> Result<(), Refusal> {
        if self.has_lease() {
            return Ok(());
        }
        while !self.has_lease() {
            if self.rules.keeps(Rule::P2) && self.lapsed_for(self.lease.deadline()) > self.hold {
                return Err(self.no_heartbeat());
            }
            if self.lease.deadline().0 == 0 {
                return Err(Refusal::Io("the session of this node has ended; mount again".to_owned()));
            }
            self.tick_passed().await;
        }
        Ok(())
    }

    /// How long a lease of that deadline has been wanted in vain.
    fn lapsed_for(&self, deadline: BootTime) -> Duration {
        let now = self.clock.boot();
        let mut lapse = self.lapse.lock();
        if lapse.0 != deadline {
            *lapse = (deadline, now);
        }
        now.since(lapse.1)
    }

    /// P7: waits until no ghost overlaps one of the runs that `runs` tells.
    pub(super) async fn wait_for_ghosts(&self, mut runs: impl FnMut() -> Vec<Run>) {
        while self.rules.keeps(Rule::P7) {
            let ghosts = self.lun.ghosts();
            if ghosts.is_empty() || !runs().iter().any(|run| is_haunted(&ghosts, *run)) {
                return;
            }
            self.tick_passed().await;
        }
    }

    /// Waits for the next look at what nobody tells of.
    pub(super) async fn tick_passed(&self) {
        self.next_tick().await;
    }

    fn next_tick(&self) -> Receiver<()> {
        let (sender, receiver) = promise();
        self.waiting.lock().push(sender);
        self.alarm.ring();
        receiver
    }

    /// Lets those who wait for time to pass look again.
    pub(super) fn tick(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        waiting.into_iter().for_each(|sender| sender.send(()));
    }

    /// Whether somebody waits for a tick.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiting.lock().is_empty()
    }

    /// Reads whole blocks. The caller checks the lease before it answers.
    pub(super) fn start_read(
        &self,
        at: LunBlock,
        buffer: Buffer,
        on_read: impl FnOnce(Outcome, Buffer) + Send + 'static,
    ) {
        let on_read = move |outcome, buffer| completing(|| on_read(outcome, buffer));
        self.lun.read(at.byte(), buffer, Box::new(on_read));
    }

    /// Starts a write at once: the caller has just seen that it [may](Media::may_write).
    pub(super) fn start_write(
        &self,
        at: LunBlock,
        data: Slice,
        on_done: impl FnOnce(Outcome) + Send + 'static,
    ) {
        let on_done = move |outcome| completing(|| on_done(outcome));
        self.lun.write(at.byte(), data, false, Box::new(on_done));
    }

    /// Reads one block.
    pub(super) fn read_block(&self, at: LunBlock) -> Receiver<(Outcome, Buffer)> {
        let (sender, receiver) = promise();
        self.start_read(at, self.pool.take(4096), move |outcome, data| sender.send((outcome, data)));
        receiver
    }

    /// Writes `data`, whole blocks, in requests that the LUN takes; what became of them.
    ///
    /// # Errors
    /// If the lease has ended (L3): nothing has been sent then.
    pub(super) async fn write(&self, at: LunBlock, data: Slice) -> Result<Writing, Refusal> {
        let mut parts = Vec::with_capacity(data.len().div_ceil(self.request_max));
        let mut done = 0;
        while done < data.len() {
            let len = (data.len() - done).min(self.request_max);
            if let Err(ended) = self.writable().await {
                if parts.is_empty() {
                    return Err(ended);
                }
                return Ok(Writing { parts, cut_short: true });
            }
            let (sender, receiver) = promise();
            let part = data.part(done..done + len);
            self.start_write(at + (done / 4096) as u64, part, move |outcome| sender.send(outcome));
            parts.push(receiver);
            done += len;
        }
        Ok(Writing { parts, cut_short: false })
    }

    /// Makes everything durable that was written before this call. Callers that come while a flush runs share the
    /// next one.
    pub(super) async fn flush(self: &Arc<Self>) -> Outcome {
        let (sender, receiver) = promise();
        let starts = {
            let mut flushes = self.flushes.lock();
            flushes.waiting.push(sender);
            !std::mem::replace(&mut flushes.running, true)
        };
        if starts {
            let media = Arc::clone(self);
            run(async move { media.flush_all().await });
        }
        receiver.await.unwrap_or(Outcome::Unknown)
    }

    async fn flush_all(&self) {
        loop {
            let waiting = {
                let mut flushes = self.flushes.lock();
                flushes.running = !flushes.waiting.is_empty();
                std::mem::take(&mut flushes.waiting)
            };
            if waiting.is_empty() {
                return;
            }
            let (sender, receiver) = promise();
            self.lun.flush(Box::new(move |outcome| completing(|| sender.send(outcome))));
            let outcome = receiver.await.unwrap_or(Outcome::Unknown);
            waiting.into_iter().for_each(|waiter| waiter.send(outcome));
        }
    }
}

/// Whether a ghost overlaps `run`.
pub(super) fn is_haunted(ghosts: &[std::ops::Range<u64>], run: Run) -> bool {
    let bytes = run.bytes();
    ghosts.iter().any(|ghost| ghost.start < bytes.end && bytes.start < ghost.end)
}

/// A write on its way.
pub(super) struct Writing {
    parts: Vec<Receiver<Outcome>>,
    cut_short: bool,
}

impl Writing {
    /// Waits for all of it.
    pub(super) async fn outcome(self) -> Outcome {
        let mut outcome = if self.cut_short { Outcome::Failed(libc::EIO) } else { Outcome::Done };
        for part in self.parts {
            outcome = worst(outcome, part.await.unwrap_or(Outcome::Unknown));
        }
        outcome
    }
}
