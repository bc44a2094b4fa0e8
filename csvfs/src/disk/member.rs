//! The claim of a mount that writes file data while a mount of its cluster has the store open (V1): another one, or the same,
//! which has a further claim for that.
//!
//! It beats like any writer's, so that a mount without the cluster, another cluster and a repairing fsck see that somebody
//! writes, also when the mount that has the store open is dead. It waits for nobody: that mount has waited, and has the
//! volume. Whoever takes the volume from the cluster while this mount is away for longer than half the window is seen
//! before anything more is written, for the lease of the beat has run out by then.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use lockd::clock::Clock;
use lockd::lease::Lease;
use lockd::rules::{Rule, Rules};
use redirector::buffer::Pool;
use redirector::lun::Lun;

use super::claim::{Claim, ClaimState};
use super::contest::{Contest, ContestError, Identity};
use super::heart::{Chest, Heart, verdict};
use super::layout;
use super::survey::{ClaimBlock, Survey, open_claims};

/// How often another block is tried when two members have chosen the same one.
const TRIES: usize = 8;

/// What a member's claim is made with.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    /// Who, and of which cluster.
    pub who: Identity,
    /// The window, if not the label's.
    pub window: Option<Duration>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The rules that are kept.
    pub rules: Rules,
    /// Where buffers come from.
    pub pool: Pool,
}

/// A member's claim, which beats until it is closed or dropped; see the module.
#[derive(Debug)]
pub struct MemberClaim {
    heart: Arc<Heart>,
    lease: Arc<Lease>,
    beat: Option<JoinHandle<()>>,
}

impl MemberClaim {
    /// Claims a block. `lease` lasts from now on as long as the claim beats: without it nothing is written to the LUN.
    /// The store has been opened by another mount of the cluster.
    ///
    /// # Errors
    /// If somebody else than the cluster writes to the volume, or the claims cannot be read and written.
    pub fn claim(
        lun: &Arc<dyn Lun>,
        options: &MemberOptions,
        lease: &Arc<Lease>,
    ) -> Result<Self, ContestError> {
        let contest = Contest {
            lun: Arc::clone(lun),
            pool: options.pool.clone(),
            clock: Arc::clone(&options.clock),
            rules: options.rules,
            who: options.who.clone(),
            window: options.window,
        };
        let mut other = None;
        for _ in 0..TRIES {
            let survey = Survey::read(lun.as_ref())?;
            let block =
                match former_block(&survey.claims, &options.who).or(contest.free_block(&survey.claims)) {
                    Some(block) => block,
                    None => contest.dead_block(&survey, false)?,
                };
            let mut claim = Claim {
                client: options.who.client,
                epoch: survey.superblock.epoch,
                counter: 0,
                state: ClaimState::Writing,
                pid: options.who.pid,
                started: options.clock.wall(),
                beaten: options.clock.wall(),
                window: options.window.unwrap_or(survey.label.window),
                host: options.who.host.clone(),
                cluster: options.who.cluster.clone(),
                is_member: true,
            };
            let beaten = contest.beat(&survey.label, block, &mut claim)?;
            let survey = Survey::read(lun.as_ref())?;
            if let Err(error) = contest.own_claim(&survey.claims, block) {
                // Another one has chosen the same block at the same time, and has it.
                other = Some(error);
                continue;
            }
            if options.rules.keeps(Rule::V1)
                && let Some(newer) = verdict(&survey.claims, block, &claim)
            {
                contest.give_up(&survey.label, block, claim);
                return Err(ContestError::Taken(newer));
            }
            govern(lun, lease);
            let heart = Arc::new(Heart::new(Chest {
                lun: Arc::clone(lun),
                pool: options.pool.clone(),
                label: survey.label.clone(),
                block,
                claim,
                beaten,
                clock: Arc::clone(&options.clock),
                rules: options.rules,
                lease: Arc::clone(lease),
                keeps_lease: true,
                // The lease has ended: that stops the writes.
                on_fenced: Box::new(|_| ()),
            }));
            return Ok(Self { heart, lease: Arc::clone(lease), beat: None });
        }
        Err(other.unwrap_or(ContestError::Crowded))
    }

    /// What a path holds back is sent while this claim beats, also after somebody else had it sent under another.
    pub fn govern(&self, lun: &Arc<dyn Lun>) {
        govern(lun, &self.lease);
    }

    /// Starts to beat.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(&mut self) -> std::io::Result<()> {
        self.beat = Some(self.heart.start()?);
        Ok(())
    }

    /// Why this mount writes nothing more, if somebody else has taken the volume.
    #[must_use]
    pub fn fenced(&self) -> Option<String> {
        self.heart.fenced()
    }

    /// Closes the claim: everything that this mount has sent is done.
    ///
    /// # Errors
    /// The errno, if it could not be written: it is a dead claim then.
    pub fn close(mut self) -> Result<(), i32> {
        self.stop();
        if self.heart.fenced().is_some() { Ok(()) } else { self.heart.close() }
    }

    fn stop(&mut self) {
        self.heart.stop();
        if let Some(thread) = self.beat.take() {
            let _ = thread.join();
        }
    }

    /// One beat, out of turn.
    #[cfg(test)]
    pub(super) fn beat(&self) -> Result<(), super::heart::BeatError> {
        self.heart.round()
    }
}

impl Drop for MemberClaim {
    fn drop(&mut self) {
        self.stop();
        self.lease.end();
    }
}

/// L3: what a path holds back is sent while the claim beats.
fn govern(lun: &Arc<dyn Lun>, lease: &Arc<Lease>) {
    let claims = layout::byte(layout::CLAIMS_AT)..layout::byte(layout::CLAIMS_AT + layout::CLAIMS as u64);
    lun.under(Arc::clone(lease), claims);
}

/// The block of an earlier mount on the same node: it is dead, for the two would listen on the same port.
fn former_block(claims: &[ClaimBlock], who: &Identity) -> Option<usize> {
    let is_former = |claim: &Claim| claim.is_fellow_of(who.cluster.as_ref()) && claim.host == who.host;
    open_claims(claims).find(|(_, claim)| is_former(claim)).map(|(block, _)| block)
}
