//! A store with damaged pages: what they held, what is lost with them, and a new store from the rest.

use std::error::Error;
use std::sync::Arc;

use parking_lot::Mutex;
use redirector::lun::Lun;

use super::{Report, chunks, texts, unreadable};
use crate::disk::format::data_region;
use crate::disk::journal::Found;
use crate::disk::open::{OpenError, OpenOptions, OpenVolume, Rebuild, open};
use crate::disk::survey::Survey;
use crate::disk::tree::{BAD_MAX, Walk};
use crate::disk::view::{ViewOptions, salvage};
use crate::store::check::{self as store, Findings, OnProgress};
use crate::store::cookie::HashKey;
use crate::store::rebuild::{Rebuilt, describe, follows, losses, rebuild};
use crate::volume::VolumeError;

/// What a walk has found, in words.
fn pages(walk: &Walk) -> Vec<String> {
    let mut said: Vec<String> = walk.bad.iter().map(describe).collect();
    if walk.bad.len() == BAD_MAX {
        said.push("and more".to_owned());
    }
    if walk.earlier {
        said.push(
            "the header of the metadata store is damaged: the commit before the last is used".to_owned(),
        );
    }
    said
}

/// What can be read of a damaged store.
pub(crate) struct Rescued {
    /// It, in memory.
    pub database: redb::Database,
    /// What the walk over its pages has found.
    pub walk: Walk,
    /// Why the redo journal could not be used, or not all of it.
    pub journal: Option<String>,
}

/// A store in memory of what can be read of the one on `lun`. Nothing if nothing can be.
pub(crate) fn rescue(lun: &Arc<dyn Lun>, survey: &Survey) -> Option<Result<Rescued, VolumeError>> {
    let database = redb::Builder::new().create_with_backend(redb::backends::InMemoryBackend::new()).ok()?;
    let options = ViewOptions::default();
    let found = Found::of(survey, lun.as_ref(), &options.pool);
    match rebuild(&database, &[], &found, |on_row| salvage(lun, survey, &options, on_row)) {
        Ok(Ok(Rebuilt { walk, journal })) => walk.map(|walk| Ok(Rescued { database, walk, journal })),
        Ok(Err(error)) => Some(Err(error.into())),
        Err(error) => Some(Err(error.into())),
    }
}

/// Says what is damaged and what is lost with it. Writes nothing.
pub(super) fn explain(
    lun: &Arc<dyn Lun>,
    survey: &Survey,
    error: &(dyn Error + 'static),
    report: &mut Report,
    on_progress: OnProgress<'_>,
) -> Result<(), VolumeError> {
    report.findings.push(unreadable(error));
    let Some(rescued) = rescue(lun, survey) else {
        report.findings.push("nothing of the metadata store can be read: its header is damaged".to_owned());
        return Ok(());
    };
    let Rescued { database, walk, journal } = rescued?;
    report.findings.extend(pages(&walk));
    report.lost.extend(journal);
    let key = HashKey(survey.label.hash_key);
    let found = store::check(&database, &key, &data_region(&survey.label), on_progress)?;
    report.lost.extend(losses(&database, &found)?);
    let list = found.list.into_iter().filter(|finding| !follows(finding)).collect();
    report.findings.extend(texts(&Findings { list, more: found.more }));
    report.findings.extend(chunks::check(&database, survey));
    Ok(())
}

/// Opens the volume with a new store, made from what can be read of the damaged one; notes what is lost.
pub(super) fn open_rebuilt(
    lun: &Arc<dyn Lun>,
    options: OpenOptions,
    report: &mut Report,
) -> Result<OpenVolume, VolumeError> {
    let survey = Survey::read(lun.as_ref())?;
    let key = HashKey(survey.label.hash_key);
    let region = data_region(&survey.label);
    let told: Arc<Mutex<(Vec<String>, Vec<String>)>> = Arc::default();
    let (tell, beside, pool) = (Arc::clone(&told), Arc::clone(lun), options.pool.clone());
    let make = move |database: &redb::Database,
                     given: &[crate::types::Run],
                     read: &mut crate::disk::open::Salvage<'_>| {
        let found = Found::of(&survey, beside.as_ref(), &pool);
        let Rebuilt { walk, journal } = rebuild(database, given, &found, |on_row| read(on_row))
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        let walk = walk.ok_or("its header is damaged, and nothing else says where anything is")?;
        let found =
            store::check(database, &key, &region, &mut |_, _, _| {}).map_err(|error| error.to_string())?;
        let mut lost = losses(database, &found).map_err(|error| error.to_string())?;
        lost.extend(journal);
        *tell.lock() = (pages(&walk), lost);
        Ok(())
    };
    let options = OpenOptions { rebuild: Some(Rebuild(Arc::new(make))), ..options };
    let opened = open(Arc::clone(lun), options).map_err(|error| match error {
        OpenError::Store(error) => OpenError::Rebuild(error.to_string()),
        OpenError::Journal(error) => OpenError::Rebuild(error),
        other => other,
    })?;
    let (pages, lost) = std::mem::take(&mut *told.lock());
    report.repairs.extend(pages);
    report.lost.extend(lost);
    Ok(opened)
}
