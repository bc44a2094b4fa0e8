//! Checking a volume that is not mounted: what lies outside the store, then the store.
//!
//! A check writes nothing. A repair opens the volume as a mount does (V1): it is refused while somebody else has it.

mod chunks;
mod damage;
mod report;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use lockd::clock::{Clock, SystemClock};
use lockd::rules::Rules;
use redirector::lun::Lun;
use redirector::uri::LunUri;

pub(crate) use damage::{Rescued, rescue};
pub use report::Report;

use crate::disk;
use crate::disk::format::data_region;
use crate::disk::open::{OpenError, OpenOptions, OpenVolume};
use crate::disk::repair::clear_dead_claims;
use crate::disk::survey::{Finding, Survey};
use crate::disk::view::{ViewOptions, open_read_only};
use crate::store::check::{self as store, Findings, OnProgress};
use crate::store::cookie::HashKey;
use crate::store::redo::replayer;
use crate::types::Timestamp;
use crate::volume::{Settings, VolumeError, refuse_beside_writer, refuse_moved};

/// Texts of what is wrong with the structures outside the store, and of what a crash leaves there.
fn outside(survey: &Survey) -> (Vec<String>, Vec<String>) {
    // A claim that was never closed and a map copy that lags behind are what a kill -9 leaves: the next writer clears
    // them away.
    let is_note =
        |finding: &&Finding| matches!(finding, Finding::StaleClaim { .. } | Finding::MapBehind { .. });
    let text = |findings: Vec<&Finding>| findings.iter().map(ToString::to_string).collect();
    let (notes, wrong) = survey.findings.iter().partition::<Vec<_>, _>(is_note);
    (text(wrong), text(notes))
}

fn texts(findings: &Findings) -> Vec<String> {
    let more = (findings.more > 0).then(|| format!("and {} more", findings.more));
    findings.list.iter().map(ToString::to_string).chain(more).collect()
}

fn unreadable(error: &dyn std::error::Error) -> String {
    format!(
        "the metadata store is damaged and cannot be read whole ({error}); copy off what a read-only mount (-o ro) can \
         still read; --repair makes a new store of what is left"
    )
}

/// Checks the volume on `lun`: what is wrong with it, in words. Writes nothing.
///
/// # Errors
/// If there is no volume, the LUN fails, or somebody writes to the volume.
pub fn check(lun: &Arc<dyn Lun>) -> Result<Vec<String>, VolumeError> {
    check_lun(lun, &SystemClock, &mut |_, _, _| {}).map(|report| report.findings)
}

fn check_lun(
    lun: &Arc<dyn Lun>,
    clock: &dyn Clock,
    on_progress: OnProgress<'_>,
) -> Result<Report, VolumeError> {
    let start = Instant::now();
    let survey = refuse_beside_writer(lun.as_ref(), Survey::read(lun.as_ref())?, clock)?;
    let (findings, notes) = outside(&survey);
    let mut report = Report { volume: survey.label.uuid.to_string(), findings, notes, ..Report::default() };
    let options = ViewOptions { check: true, ..ViewOptions::default() };
    match open_read_only(lun, survey.clone(), &options, &replayer(Rules::all())) {
        Ok(view) => {
            let key = HashKey(survey.label.hash_key);
            match store::check(&view.database, &key, &data_region(&survey.label), on_progress) {
                Ok(findings) => report.findings.extend(texts(&findings)),
                Err(error) => report.findings.push(unreadable(&error)),
            }
            report.findings.extend(chunks::check(&view.database, &survey));
        }
        Err(OpenError::Store(error)) => {
            damage::explain(lun, &survey, error.as_ref(), &mut report, on_progress)?
        }
        Err(error @ OpenError::Journal(_)) => {
            damage::explain(lun, &survey, &error, &mut report, on_progress)?
        }
        Err(error) => return Err(error.into()),
    }
    // Whoever began to write meanwhile has changed what was read.
    refuse_moved(lun.as_ref(), &survey)?;
    report.took = start.elapsed();
    Ok(report)
}

/// Checks the volume on the LUN at `url`; writes nothing.
///
/// # Errors
/// If there is no volume, the LUN fails, or somebody writes to the volume.
pub fn check_url(url: &LunUri, rules: Rules, on_progress: OnProgress<'_>) -> Result<Report, VolumeError> {
    let settings = Settings { rules, ..Settings::local("fsck") };
    // Opened for writing where that is possible, though nothing is written: a file then proves that nobody has it.
    let writable = redirector::open::open(url, &settings.lun_options());
    let lun = match writable {
        Ok(lun) => lun,
        Err(_) => {
            let reading = Settings { read_only: true, ..settings.clone() };
            redirector::open::open(url, &reading.lun_options())?
        }
    };
    check_lun(&lun, settings.clock.as_ref(), on_progress)
}

/// Checks the volume on the LUN at `url` and repairs what can be repaired. Refused while somebody has it open (V1).
///
/// # Errors
/// If there is no volume that can be opened, the LUN fails, or somebody has the volume.
pub fn repair_url(url: &LunUri, rules: Rules, on_progress: OnProgress<'_>) -> Result<Report, VolumeError> {
    let start = Instant::now();
    let settings = Settings { rules, ..Settings::local(&host()) };
    let lun = redirector::open::open(url, &settings.lun_options())?;
    let before = Survey::read(lun.as_ref())?;
    let options = OpenOptions { check_max: u64::MAX, label_from_copy: true, ..settings.open_options() };
    let mut report = Report { volume: before.label.uuid.to_string(), ..Report::default() };
    match disk::open::open(Arc::clone(&lun), options.clone()) {
        Ok(opened) => mend(&lun, opened, &mut report, settings.clock.as_ref(), on_progress)?,
        Err(error @ (OpenError::Store(_) | OpenError::Journal(_))) => {
            tracing::info!(%error, "making a new store of what is left of this one");
            let opened = damage::open_rebuilt(&lun, options, &mut report)?;
            mend(&lun, opened, &mut report, settings.clock.as_ref(), on_progress)?;
        }
        Err(error) => return Err(error.into()),
    }
    let after = Survey::read(lun.as_ref())?;
    let ((wrong, _), (left, notes)) = (outside(&before), outside(&after));
    report.repairs.extend(wrong.into_iter().filter(|finding| !left.contains(finding)));
    report.findings.extend(left);
    report.notes = notes;
    report.took = start.elapsed();
    Ok(report)
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "fsck".to_owned() } else { name.trim().to_owned() }
}

/// Mends an opened volume, outside the store and in it, and closes it.
fn mend(
    lun: &Arc<dyn Lun>,
    opened: OpenVolume,
    report: &mut Report,
    clock: &dyn Clock,
    on_progress: OnProgress<'_>,
) -> Result<(), VolumeError> {
    let survey = Survey::read(lun.as_ref())?;
    opened.hold.mend(&survey)?;
    let is_stale = |claim: &disk::claim::Claim| claim.epoch < survey.superblock.epoch;
    if survey.open_claims().any(|(_, claim)| is_stale(claim)) {
        let pool = redirector::buffer::Pool::default();
        let cleared = clear_dead_claims(lun.as_ref(), &pool, clock, &survey).map_err(OpenError::from)?;
        report.repairs.extend(cleared.iter().map(|claim| format!("the claim of {claim} was never closed")));
    }
    let key = HashKey(opened.label.hash_key);
    let region = data_region(&opened.label);
    let now = Timestamp(clock.wall().0);
    let repaired = store::repair(&opened.database, &key, &region, now, on_progress)?;
    report.repairs.extend(texts(&repaired.mended));
    report.findings.extend(texts(&repaired.left));
    let after = Survey::read(lun.as_ref())?;
    report.findings.extend(chunks::check(&opened.database, &after));
    opened.close()?;
    Ok(())
}
