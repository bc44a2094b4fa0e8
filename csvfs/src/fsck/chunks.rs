//! The chunk map against the store: every chunk of the metadata area that the volume was not made with was given by the
//! store, which must know it, or its blocks are also those of files.

use redb::{Database, ReadableTable};

use crate::disk::format::data_region;
use crate::disk::map::ChunkUse;
use crate::disk::survey::Survey;
use crate::store::{Result, Snapshot};
use crate::types::BLOCK;

/// What is wrong, in words. (That the map lacks a chunk which the store has given is what a crash may leave; the next
/// mount gives it again.)
pub fn check(database: &Database, survey: &Survey) -> Vec<String> {
    given(database).map_or_else(
        |error| vec![format!("the chunks that were given to the metadata area cannot be read: {error}")],
        |given| judge(survey, &given),
    )
}

/// The runs of blocks that the store has given to the area: start and end.
fn given(database: &Database) -> Result<Vec<(u64, u64)>> {
    let snapshot = Snapshot::take(database)?;
    let mut given = Vec::new();
    for row in snapshot.chunks.iter()? {
        let (start, len) = row?;
        given.push((start.value(), start.value().saturating_add(len.value())));
    }
    Ok(given)
}

fn judge(survey: &Survey, given: &[(u64, u64)]) -> Vec<String> {
    let blocks = survey.label.chunk_size / BLOCK;
    let first_data = data_region(&survey.label).first().map_or(u64::MAX, |run| run.start.0);
    let chunks = (0..survey.map.chunks()).filter_map(|chunk| u32::try_from(chunk).ok());
    let mut findings = Vec::new();
    for chunk in chunks.filter(|chunk| survey.map.usage(*chunk).is_some_and(|usage| usage != ChunkUse::Data))
    {
        let start = u64::from(chunk) * blocks;
        let known = given.iter().any(|(from, to)| *from <= start && start + blocks <= *to);
        if start >= first_data && !known {
            findings.push(format!(
                "chunk {chunk} (LUN blocks {start}..{}) belongs to the metadata area, but the store has not given it",
                start + blocks
            ));
        }
    }
    findings
}
