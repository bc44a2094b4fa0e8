//! Who may write: the claim before a volume is opened (V1).
//!
//! An opener writes a claim into a free block and then looks at all claims. Claims that were not closed are watched for
//! longer than the window, while the opener beats its own; whoever beats is alive, and the opener refuses. When all are
//! still, it says in its claim that it writes, and looks again.
//!
//! Two openers never both succeed. Each writes its own block and *then* reads those of all others; of two that do so,
//! at least one sees the other, and what it sees moves within the window (an opener beats while it waits, and a writer
//! while it writes). When both see each other, the one with the lower client id goes on and watches once more. If both
//! should have chosen the same free block, the later one has overwritten the earlier, who sees that in its next look,
//! which comes after its superblock at the latest; or the later one sees that superblock, for it reads all structures
//! again after its claim.
//!
//! The members of a cluster beat their own blocks, too ([`super::member`]). Whoever opens the volume for that cluster does
//! not wait for them, nor for the one who had it open before: the cluster has given it the role, and has dealt with that one.
//! To everybody else their claims are like any other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lockd::clock::{BootTime, Clock};
use lockd::ids::{ClientId, Epoch};
use lockd::rules::{Rule, Rules};
use redirector::buffer::Pool;
use redirector::lun::{Lun, Proof};

use super::blocks::write_block;
use super::claim::{Claim, ClaimState, ClusterMark};
use super::frame::Damage;
use super::label::Label;
use super::layout;
use super::superblock::Superblock;
use super::survey::{ClaimBlock, Finding, Survey, SurveyError, open_claims, read_claims};

/// How often a window is watched again because another opener was there too.
const ROUNDS_MAX: usize = 4;

/// Who opens a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The client: the id under which the LUN knows this process.
    pub client: ClientId,
    /// The host's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The cluster for which it opens it, if for one.
    pub cluster: Option<ClusterMark>,
}

impl Identity {
    /// Whether a finding is but the claim of a member of this cluster whose mount lives: of this one, or on another of the nodes
    /// on which one does. That beats, whoever has the store open.
    pub(super) fn knows_alive(&self, finding: &Finding, living: &BTreeSet<String>) -> bool {
        let Finding::StaleClaim { claim, .. } = finding else { return false };
        let lives =
            if claim.host == self.host { claim.client == self.client } else { living.contains(&claim.host) };
        lives && claim.is_fellow_of(self.cluster.as_ref())
    }
}

/// Why a volume was not given to an opener.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ContestError {
    /// The structures outside the store cannot be used.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// Somebody else writes.
    #[error("the volume is in use by {0}: unmount it there first")]
    Writing(Box<Claim>),
    /// Somebody else is opening it.
    #[error("the volume is being opened by {0} at the same time: try again when that has ended")]
    Opening(Box<Claim>),
    /// The LUN knows that somebody else has it open.
    #[error("the LUN is in use: {0}")]
    InUse(String),
    /// The superblock or the own claim changed meanwhile.
    #[error(
        "another process has opened the volume at the same time (superblock now of epoch {0}): try again"
    )]
    Overtaken(Epoch),
    /// Somebody who is not of the cluster has the volume.
    #[error("{0}: unmount it there first")]
    Taken(String),
    /// Others came again and again.
    #[error("others keep claiming the volume while it is being opened: try again when they have ended")]
    Crowded,
    /// The claims could not be written or read.
    #[error("cannot write or read the claims (errno {0})")]
    Lun(i32),
}

/// What the opener has won.
#[derive(Debug)]
pub(super) struct Won {
    /// The block of its claim.
    pub block: usize,
    /// The claim, in state writing.
    pub claim: Claim,
    /// When the last beat was about to be sent.
    pub beaten: BootTime,
    /// The structures as last seen.
    pub survey: Survey,
    /// Whether the LUN has proved that nobody else can have it.
    pub alone: Option<String>,
    /// The foreign claims that were not closed, all of them still.
    pub still: Vec<(usize, Claim)>,
}

/// An opener on its way.
#[derive(Debug)]
pub(super) struct Contest {
    pub lun: Arc<dyn Lun>,
    pub pool: Pool,
    pub clock: Arc<dyn Clock>,
    pub rules: Rules,
    pub who: Identity,
    /// Overrides the label's window.
    pub window: Option<Duration>,
}

/// The next epoch: above all that were ever seen, and not in the slot of the superblock in force.
pub(super) fn next_epoch(survey: &Survey) -> Epoch {
    let next = Epoch(survey.last_epoch().0 + 1);
    let same = Superblock::slot(next) == Superblock::slot(survey.superblock.epoch);
    Epoch(next.0 + u64::from(same))
}

/// Whether `now` is the claim `before` without a beat since.
fn is_still(before: &[(usize, Claim)], block: usize, now: &Claim) -> bool {
    before.iter().any(|(at, claim)| *at == block && claim == now)
}

/// Writes a claim, durably.
pub(super) fn write_claim(
    lun: &dyn Lun,
    pool: &Pool,
    label: &Label,
    block: usize,
    claim: &Claim,
) -> Result<(), i32> {
    write_block(lun, pool, layout::CLAIMS_AT + block as u64, &claim.encode(label.uuid))
}

impl Contest {
    /// Why nobody else can have the volume, if the LUN proves that; refuses when it knows of somebody.
    pub(super) fn prove_alone(&self) -> Result<Option<String>, ContestError> {
        match self.lun.prove_alone() {
            Proof::Alive(who) => Err(self.named(who)),
            Proof::Ended(how) => Ok(Some(how)),
            Proof::Unprovable => Ok(None),
        }
    }

    /// Wins the right to write, or says who has it. `survey` is younger than what proved that nobody else can have it, if that
    /// is proved.
    pub(super) fn win(&self, survey: &Survey, alone: Option<String>) -> Result<Won, ContestError> {
        let block = match self.free_block(&survey.claims) {
            Some(block) => block,
            None => self.dead_block(survey, alone.is_some())?,
        };
        let mut claim = Claim {
            client: self.who.client,
            epoch: next_epoch(survey),
            counter: 0,
            state: ClaimState::Claiming,
            pid: self.who.pid,
            started: self.clock.wall(),
            beaten: self.clock.wall(),
            window: self.window.unwrap_or(survey.label.window),
            host: self.who.host.clone(),
            cluster: self.who.cluster.clone(),
            is_member: false,
        };
        self.beat(&survey.label, block, &mut claim)?;
        let won = self.look(survey, block, &mut claim, alone);
        if won.is_err() {
            self.give_up(&survey.label, block, claim);
        }
        won
    }

    /// Names the writer of the claims when the LUN says that somebody has it.
    fn named(&self, who: String) -> ContestError {
        match Survey::read(self.lun.as_ref()).ok().and_then(|survey| survey.writer().cloned()) {
            Some(claim) => ContestError::Writing(Box::new(claim)),
            None => ContestError::InUse(who),
        }
    }

    fn look(
        &self,
        first: &Survey,
        block: usize,
        claim: &mut Claim,
        alone: Option<String>,
    ) -> Result<Won, ContestError> {
        let mut survey = self.survey_again(first, block)?;
        let mut still = self.foreign(&survey.claims, block);
        let is_open = !is_closed(&survey) && !self.is_dealt_with(&survey);
        let waits = is_open || still.iter().any(|(_, claim)| !claim.is_of(self.who.cluster.as_ref()));
        if self.rules.keeps(Rule::V1) && alone.is_none() && waits {
            still = self.watch(&survey.label, block, claim, still)?;
            survey = self.survey_again(first, block)?;
            self.judge(&still, &self.foreign(&survey.claims, block))?;
        }
        claim.state = ClaimState::Writing;
        let beaten = self.beat(&survey.label, block, claim)?;
        let survey = self.survey_again(first, block)?;
        if self.rules.keeps(Rule::V1) {
            self.judge(&still, &self.foreign(&survey.claims, block))?;
        }
        Ok(Won { block, claim: claim.clone(), beaten, survey, alone, still })
    }

    /// Reads all structures again: the superblock must be the same, and the own claim where it was put.
    pub(super) fn survey_again(&self, before: &Survey, block: usize) -> Result<Survey, ContestError> {
        let survey = Survey::read(self.lun.as_ref())?;
        if self.rules.keeps(Rule::V1) {
            if survey.superblock.epoch != before.superblock.epoch {
                return Err(ContestError::Overtaken(survey.superblock.epoch));
            }
            self.own_claim(&survey.claims, block)?;
        }
        Ok(survey)
    }

    pub(super) fn own_claim(&self, claims: &[ClaimBlock], block: usize) -> Result<(), ContestError> {
        match &claims[block] {
            Ok(claim) if claim.client == self.who.client => Ok(()),
            Ok(other) if other.state == ClaimState::Writing => {
                Err(ContestError::Writing(Box::new(other.clone())))
            }
            Ok(other) => Err(ContestError::Opening(Box::new(other.clone()))),
            Err(_) => Err(ContestError::Lun(libc::EIO)),
        }
    }

    /// The open claims of those who have to be watched.
    fn foreign(&self, claims: &[ClaimBlock], own: usize) -> Vec<(usize, Claim)> {
        let cluster = self.who.cluster.as_ref();
        let open = open_claims(claims).filter(|(block, claim)| *block != own && !claim.is_fellow_of(cluster));
        open.map(|(block, claim)| (block, claim.clone())).collect()
    }

    /// Whether the last writer was of the cluster for which the volume is opened, which has given its role away since.
    fn is_dealt_with(&self, survey: &Survey) -> bool {
        let last = &survey.superblock;
        let cluster = self.who.cluster.as_ref();
        let of_last = |claim: &&Claim| claim.client == last.client && claim.epoch == last.epoch;
        survey.claims.iter().flatten().filter(of_last).any(|claim| claim.is_of(cluster))
    }

    /// Refuses when a claim of another than the own cluster has moved. Says whether an opener that must give way was seen.
    fn judge(&self, before: &[(usize, Claim)], now: &[(usize, Claim)]) -> Result<bool, ContestError> {
        let mut contested = false;
        let cluster = self.who.cluster.as_ref();
        let moved = now.iter().filter(|(block, claim)| !is_still(before, *block, claim));
        for (block, claim) in moved.filter(|(_, claim)| !claim.is_of(cluster)) {
            tracing::debug!(block, %claim, "a claim has moved");
            match claim.state {
                ClaimState::Writing => return Err(ContestError::Writing(Box::new(claim.clone()))),
                ClaimState::Claiming if claim.client < self.who.client => {
                    return Err(ContestError::Opening(Box::new(claim.clone())));
                }
                _ => contested = true,
            }
        }
        Ok(contested)
    }

    /// Watches all claims for longer than the window, beating the own one.
    fn watch(
        &self,
        label: &Label,
        block: usize,
        claim: &mut Claim,
        mut seen: Vec<(usize, Claim)>,
    ) -> Result<Vec<(usize, Claim)>, ContestError> {
        let windows = seen.iter().map(|(_, claim)| claim.window);
        let window = windows.chain([claim.window]).max().unwrap_or(claim.window);
        let pause = window / 4;
        for (_, claim) in &seen {
            tracing::info!(%claim, seconds = window.as_secs_f64(), "a claim was not closed: watching whether it moves");
        }
        for _ in 0..ROUNDS_MAX {
            let until = self.clock.boot().after(window + pause);
            let mut contested = false;
            while self.clock.boot() < until && !contested {
                self.clock.sleep(pause);
                let claims = read_claims(self.lun.as_ref(), &self.pool, label).map_err(ContestError::Lun)?;
                self.own_claim(&claims, block)?;
                let now = self.foreign(&claims, block);
                contested = self.judge(&seen, &now)?;
                seen = now;
                self.beat(label, block, claim)?;
            }
            if !contested {
                return Ok(seen);
            }
        }
        let other =
            seen.into_iter().map(|(_, claim)| claim).find(|claim| claim.state == ClaimState::Claiming);
        Err(other.map(Box::new).map_or(ContestError::Crowded, ContestError::Opening))
    }

    pub(super) fn beat(
        &self,
        label: &Label,
        block: usize,
        claim: &mut Claim,
    ) -> Result<BootTime, ContestError> {
        let now = self.clock.boot();
        claim.counter += 1;
        claim.beaten = self.clock.wall();
        write_claim(self.lun.as_ref(), &self.pool, label, block, claim).map_err(ContestError::Lun)?;
        Ok(now)
    }

    /// Closes the own claim, if it is still there; the volume is left as it was.
    pub(super) fn give_up(&self, label: &Label, block: usize, mut claim: Claim) {
        let Ok(claims) = read_claims(self.lun.as_ref(), &self.pool, label) else { return };
        if self.own_claim(&claims, block).is_ok() {
            claim.state = ClaimState::Closed;
            claim.counter += 1;
            let _ = write_claim(self.lun.as_ref(), &self.pool, label, block, &claim);
        }
    }

    /// The block of a dead claim, when every block holds one that was never closed: of the oldest that a later writer
    /// has superseded, if there is one. Dead they are by the LUN's proof, or when none has moved for longer than the
    /// window; that is found out without a claim of one's own.
    pub(super) fn dead_block(&self, survey: &Survey, alone: bool) -> Result<usize, ContestError> {
        let seen = self.foreign(&survey.claims, usize::MAX);
        if self.rules.keeps(Rule::V1) && !alone {
            let window = seen.iter().map(|(_, claim)| claim.window).max().unwrap_or(survey.label.window);
            self.clock.sleep(window + window / 4);
            let claims =
                read_claims(self.lun.as_ref(), &self.pool, &survey.label).map_err(ContestError::Lun)?;
            if let Some(block) = self.free_block(&claims) {
                return Ok(block);
            }
            let now = self.foreign(&claims, usize::MAX);
            if let Some((_, claim)) = now.into_iter().find(|(block, claim)| !is_still(&seen, *block, claim)) {
                return Err(match claim.state {
                    ClaimState::Writing => ContestError::Writing(Box::new(claim)),
                    _ => ContestError::Opening(Box::new(claim)),
                });
            }
        }
        let last = survey.superblock.epoch;
        let oldest = seen.iter().min_by_key(|(_, claim)| (claim.epoch >= last, claim.epoch));
        oldest.map(|(block, _)| *block).ok_or(ContestError::Crowded)
    }

    /// A block that holds no open claim. Two openers begin their search at different places.
    pub(super) fn free_block(&self, claims: &[ClaimBlock]) -> Option<usize> {
        let start = usize::try_from(self.who.client.0 % claims.len() as u64).unwrap_or(0);
        let order = (0..claims.len()).map(|i| (start + i) % claims.len());
        order.into_iter().find(|block| match &claims[*block] {
            Ok(claim) => !claim.is_open(),
            Err(Damage::Blank) => true,
            Err(_) => false,
        })
    }
}

/// Whether the last writer has ended by itself, all of its writes done.
pub(super) fn is_closed(survey: &Survey) -> bool {
    let last = &survey.superblock;
    last.clean
        || survey.claims.iter().flatten().any(|claim| {
            claim.client == last.client && claim.epoch == last.epoch && claim.state == ClaimState::Closed
        })
}
