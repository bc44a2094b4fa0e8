//! The heartbeat of a writer (V1).
//!
//! A round reads all claims, judges them, writes the own beat, and extends the lease to half a window after the
//! round's *beginning*. After a gap of half a window the lease has run out, and others may have watched a still claim:
//! then the claims are read once more after the beat, before anything is extended. For whoever takes over writes
//! "writing" into its claim and *then* looks whether anything moved; of two that write and then look, at least one sees
//! the other. A writer that sees a newer one is fenced: its lease ends for good.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use lockd::clock::{BootTime, Clock};
use lockd::lease::Lease;
use lockd::rules::{Rule, Rules};
use parking_lot::{Condvar, Mutex};
use redirector::buffer::Pool;
use redirector::lun::Lun;

use super::claim::{Claim, ClaimState};
use super::contest::write_claim;
use super::label::Label;
use super::survey::{ClaimBlock, open_claims, read_claims};

/// Why a round has not extended the lease.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BeatError {
    /// The LUN failed; the next round tries again.
    #[error("the heartbeat could not be written (errno {0})")]
    Lun(i32),
    /// The session is over.
    #[error("this session is fenced: {0}")]
    Fenced(String),
}

#[derive(Debug)]
struct Progress {
    claim: Claim,
    /// When the last round that succeeded began.
    beaten: BootTime,
    fenced: Option<String>,
    stop: bool,
    /// What is not due yet is not settled any more; the heart beats on.
    settled: bool,
}

/// What is called, once, when the session has been fenced.
pub(super) type OnFenced = Box<dyn Fn(&str) + Send + Sync>;

/// A writer's claim, and the lease that it keeps alive.
pub(super) struct Heart {
    lun: Arc<dyn Lun>,
    pool: Pool,
    label: Label,
    block: usize,
    clock: Arc<dyn Clock>,
    rules: Rules,
    lease: Arc<Lease>,
    /// Whether the lease is the heart's to extend; else the cluster extends it.
    keeps_lease: bool,
    on_fenced: OnFenced,
    progress: Mutex<Progress>,
    wake: Condvar,
}

impl std::fmt::Debug for Heart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heart")
            .field("block", &self.block)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

/// What a heart is made of.
pub(super) struct Chest {
    pub lun: Arc<dyn Lun>,
    pub pool: Pool,
    pub label: Label,
    pub block: usize,
    pub claim: Claim,
    pub beaten: BootTime,
    pub clock: Arc<dyn Clock>,
    pub rules: Rules,
    pub lease: Arc<Lease>,
    pub keeps_lease: bool,
    pub on_fenced: OnFenced,
}

impl Heart {
    /// A heart whose first beat was the claim that has won.
    pub(super) fn new(chest: Chest) -> Self {
        let heart = Self {
            lun: chest.lun,
            pool: chest.pool,
            label: chest.label,
            block: chest.block,
            clock: chest.clock,
            rules: chest.rules,
            lease: chest.lease,
            keeps_lease: chest.keeps_lease,
            on_fenced: chest.on_fenced,
            progress: Mutex::new(Progress {
                claim: chest.claim,
                beaten: chest.beaten,
                fenced: None,
                stop: false,
                settled: false,
            }),
            wake: Condvar::new(),
        };
        heart.extend(chest.beaten);
        heart
    }

    fn window(&self) -> Duration {
        self.progress.lock().claim.window
    }

    fn extend(&self, begun: BootTime) {
        if self.keeps_lease {
            self.lease.extend(begun.after(self.window() / 2));
        }
    }

    /// The claim as last written or about to be.
    pub(super) fn claim(&self) -> Claim {
        self.progress.lock().claim.clone()
    }

    /// Why the session is over, if it is.
    pub(super) fn fenced(&self) -> Option<String> {
        self.progress.lock().fenced.clone()
    }

    /// One round; see the module's text.
    pub(super) fn round(&self) -> Result<(), BeatError> {
        if let Some(why) = self.fenced() {
            return Err(BeatError::Fenced(why));
        }
        let begun = self.clock.boot();
        let (claim, gap) = {
            let mut progress = self.progress.lock();
            progress.claim.counter += 1;
            progress.claim.beaten = self.clock.wall();
            (progress.claim.clone(), begun.since(progress.beaten) > progress.claim.window / 2)
        };
        self.look(&claim)?;
        write_claim(self.lun.as_ref(), &self.pool, &self.label, self.block, &claim)
            .map_err(BeatError::Lun)?;
        if gap {
            self.look(&claim)?;
        }
        self.progress.lock().beaten = begun;
        self.extend(begun);
        Ok(())
    }

    fn look(&self, own: &Claim) -> Result<(), BeatError> {
        if !self.rules.keeps(Rule::V1) {
            return Ok(());
        }
        let claims = read_claims(self.lun.as_ref(), &self.pool, &self.label).map_err(BeatError::Lun)?;
        let Some(why) = verdict(&claims, self.block, own) else { return Ok(()) };
        self.lease.end();
        self.progress.lock().fenced = Some(why.clone());
        tracing::error!(%why, "FENCED: another session writes to the volume; nothing more is written by this one");
        (self.on_fenced)(&why);
        Err(BeatError::Fenced(why))
    }

    /// Beats until it is stopped or fenced.
    fn run(&self) {
        let pause = self.window() / 4;
        let mut rests = true;
        loop {
            {
                let mut progress = self.progress.lock();
                if rests && !progress.stop {
                    self.wake.wait_for(&mut progress, pause);
                }
                if progress.stop {
                    return;
                }
            }
            let begun = self.clock.boot();
            let round = self.round();
            // A round that the LUN has held up has won little or nothing: the next one begins at once.
            rests = round.is_err() || self.clock.boot().since(begun) < pause;
            match round {
                Ok(()) => {}
                Err(BeatError::Fenced(_)) => return,
                Err(error) => tracing::warn!(%error, "no heartbeat; trying again"),
            }
        }
    }

    /// Waits until the time `due`; says whether it has come, which it has not when the heart is stopped before.
    pub(super) fn sleep_until(&self, due: BootTime) -> bool {
        let mut progress = self.progress.lock();
        while !progress.stop && progress.fenced.is_none() {
            let now = self.clock.boot();
            if now >= due {
                return true;
            }
            if progress.settled {
                return false;
            }
            let pause = due.since(now).min(Duration::from_millis(200));
            self.wake.wait_for(&mut progress, pause);
        }
        false
    }

    /// Ends [`Heart::sleep_until`], now and later; what is due already is still done.
    pub(super) fn settle_no_more(&self) {
        self.progress.lock().settled = true;
        self.wake.notify_all();
    }

    /// Stops the threads at their next look.
    pub(super) fn stop(&self) {
        self.progress.lock().stop = true;
        self.wake.notify_all();
    }

    /// Closes the claim: all that the session has sent is done.
    pub(super) fn close(&self) -> Result<(), i32> {
        let mut claim = self.claim();
        claim.counter += 1;
        claim.state = ClaimState::Closed;
        claim.beaten = self.clock.wall();
        write_claim(self.lun.as_ref(), &self.pool, &self.label, self.block, &claim)
    }

    /// Starts the thread that beats.
    pub(super) fn start(self: &Arc<Self>) -> std::io::Result<JoinHandle<()>> {
        let heart = Arc::clone(self);
        std::thread::Builder::new().name("csvfs-heart".to_owned()).spawn(move || heart.run())
    }
}

/// Why `claims` say that the session of `own` is over; nothing if they do not.
pub(super) fn verdict(claims: &[ClaimBlock], block: usize, own: &Claim) -> Option<String> {
    if let Ok(found) = &claims[block] {
        if found.client == own.client && found.state == ClaimState::Closed {
            return Some("its claim was closed by another session, which held it for dead".to_owned());
        }
        if found.client != own.client && found.state == ClaimState::Writing {
            return Some(format!("its claim block was taken by {found}"));
        }
    }
    let cluster = own.cluster.as_ref();
    // A member follows whoever opens the volume for its cluster; that one has no member to fear.
    let is_fellow = |claim: &Claim| claim.is_fellow_of(cluster) || (own.is_member && claim.is_of(cluster));
    let newer = open_claims(claims).find(|(at, claim)| {
        *at != block
            && claim.state == ClaimState::Writing
            && claim.epoch >= own.epoch
            && claim.client != own.client
            && !is_fellow(claim)
    });
    newer.map(|(_, claim)| format!("the volume was taken over by {claim}"))
}
