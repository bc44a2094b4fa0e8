//! Looking at a volume beside others: does anybody write to it?

use std::time::Duration;

use lockd::clock::Clock;
use redirector::buffer::Pool;
use redirector::lun::{Lun, Proof};

use super::VolumeError;
use crate::disk::claim::Claim;
use crate::disk::survey::{ClaimBlock, Survey, SurveyError, read_claims};

/// How often the claims are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn open_claims(blocks: &[ClaimBlock]) -> Vec<&Claim> {
    blocks.iter().flatten().filter(|claim| claim.is_open()).collect()
}

fn moved<'a>(before: &[&Claim], now: &[&'a Claim]) -> Option<&'a Claim> {
    now.iter().find(|claim| !before.contains(claim)).copied()
}

/// Refuses when somebody writes to the volume. Where the LUN cannot prove that nobody does, and the last writer has
/// not closed the volume, its claim is watched for longer than its window (V1). Nothing is written. Gives the
/// structures as they are in the end: a writer that is just closing is waited for.
pub fn refuse_beside_writer(lun: &dyn Lun, survey: Survey, clock: &dyn Clock) -> Result<Survey, VolumeError> {
    match lun.prove_alone() {
        Proof::Alive(who) => {
            let writer = survey.writer().map(ToString::to_string);
            return Err(VolumeError::BeingWritten(writer.unwrap_or(who)));
        }
        Proof::Ended(_) => return Ok(Survey::read(lun)?),
        Proof::Unprovable => {}
    }
    let before = open_claims(&survey.claims);
    let Some(window) = before.iter().map(|claim| claim.window).max() else { return Ok(survey) };
    tracing::info!(seconds = window.as_secs_f64(), "a claim was not closed: watching whether it moves");
    let until = clock.boot().after(window + window / 4);
    while clock.boot() < until {
        clock.sleep((window / 4).min(LOOK_EVERY));
        let claims = read_claims(lun, &Pool::default(), &survey.label).map_err(SurveyError::Read)?;
        let now = open_claims(&claims);
        if let Some(claim) = moved(&before, &now) {
            return Err(VolumeError::BeingWritten(claim.to_string()));
        }
        if now.is_empty() {
            // Everybody has closed: what was read before that is old.
            return Ok(Survey::read(lun)?);
        }
    }
    Ok(survey)
}

/// Refuses when a claim has moved since `survey` was read: what was read since then may be torn.
pub fn refuse_moved(lun: &dyn Lun, survey: &Survey) -> Result<(), VolumeError> {
    let now = read_claims(lun, &Pool::default(), &survey.label).map_err(SurveyError::Read)?;
    match moved(&open_claims(&survey.claims), &open_claims(&now)) {
        Some(claim) => Err(VolumeError::BeingWritten(claim.to_string())),
        None => Ok(()),
    }
}
