//! Looking at a volume beside others: does anybody write to it?

use lockd::clock::Clock;
use redirector::buffer::Pool;
use redirector::lun::{Lun, Proof};

use super::VolumeError;
use crate::disk::claim::Claim;
use crate::disk::survey::{ClaimBlock, Survey, SurveyError, read_claims};

fn open_claims(blocks: &[ClaimBlock]) -> Vec<&Claim> {
    blocks.iter().flatten().filter(|claim| claim.is_open()).collect()
}

fn moved<'a>(before: &[&Claim], now: &[&'a Claim]) -> Option<&'a Claim> {
    now.iter().find(|claim| !before.contains(claim)).copied()
}

/// Refuses when somebody writes to the volume. Where the LUN cannot prove that nobody does, and the last writer has
/// not closed the volume, its claim is watched for longer than its window (V1). Nothing is written.
pub fn refuse_beside_writer(lun: &dyn Lun, survey: &Survey, clock: &dyn Clock) -> Result<(), VolumeError> {
    let writer = || survey.writer().map(ToString::to_string);
    match lun.prove_alone() {
        Proof::Alive(who) => return Err(VolumeError::BeingWritten(writer().unwrap_or(who))),
        Proof::Ended(_) => return Ok(()),
        Proof::Unprovable => {}
    }
    let before = open_claims(&survey.claims);
    let Some(window) = before.iter().map(|claim| claim.window).max() else { return Ok(()) };
    tracing::info!(seconds = window.as_secs_f64(), "a claim was not closed: watching whether it moves");
    let pause = window / 4;
    let until = clock.boot().after(window + pause);
    while clock.boot() < until {
        clock.sleep(pause);
        refuse_moved(lun, survey)?;
    }
    Ok(())
}

/// Refuses when a claim has moved since `survey` was read: what was read since then may be torn.
pub fn refuse_moved(lun: &dyn Lun, survey: &Survey) -> Result<(), VolumeError> {
    let now = read_claims(lun, &Pool::default(), &survey.label).map_err(SurveyError::Read)?;
    match moved(&open_claims(&survey.claims), &open_claims(&now)) {
        Some(claim) => Err(VolumeError::BeingWritten(claim.to_string())),
        None => Ok(()),
    }
}
