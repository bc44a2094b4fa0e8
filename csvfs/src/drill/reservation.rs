//! The drill of `scsi-pr`: a client registers and writes, its key is removed by the step that the lockds take, and what it
//! sends then does not land; nor does what somebody sends who has never registered.

use std::sync::Arc;
use std::time::Instant;

use lockd::fencing::{Units, key_of};
use lockd::lease::Lease;
use lockd::machine::FenceMethod;
use redirector::iscsi::Reservation;
use redirector::lun::Outcome;
use redirector::open::{OpenOptions, open};

use super::{DrillError, LATE, contents, expect, options, write};
use crate::cluster::{ClusterError, Place, guarantee};
use crate::disk::layout;
use crate::disk::survey::Survey;

/// Runs it on `place`'s volume; `say` is told of each step.
pub(super) fn run(place: &Place, say: &mut dyn FnMut(&str)) -> Result<(), DrillError> {
    let url = place.luns.first().ok_or_else(|| ClusterError::Lun("it has no path".to_owned()))?;
    let watcher = open(url, &OpenOptions { read_only: true, ..options() })?;
    Survey::read(watcher.as_ref())?;
    let proven = place.prove_fence(watcher.as_ref())?;
    let shown = proven.shown.ok_or_else(|| DrillError::Broken("no reservation was tried".to_owned()))?;
    let can = |can, what, not| if can { what } else { not };
    say(&format!(
        "1. tried on every path: the target refuses writes from who has not registered, and from whose key was removed; it \
         {}; it {}; registrations {}",
        can(shown.aborts, "has PREEMPT AND ABORT", "has PREEMPT only, so that the unit is reset after it"),
        can(shown.guards_unmap, "refuses UNMAP as well", "lets UNMAP pass, so that nobody uses it"),
        can(shown.persists, "outlive its power", "are lost when it restarts, and made again under the lease"),
    ));
    let mut mine = options();
    mine.reservation = Some(Reservation {
        key: key_of(mine.client),
        node: place.node.clone(),
        lease: Arc::new(Lease::unlimited()),
        guards_unmap: shown.guards_unmap,
    });
    let victim = open(url, &mine)?;
    let first = contents(mine.client, 1);
    write(&victim, &first).recv().unwrap_or(Outcome::Unknown).ok().map_err(DrillError::Block)?;
    expect(watcher.as_ref(), &first)
        .map_err(|why| DrillError::Disturbed(format!("what was written is not read back: {why}")))?;
    say(&format!(
        "2. key {:#018x} is registered, and writes to block {}",
        key_of(mine.client).0,
        layout::DRILL_AT
    ));

    let began = Instant::now();
    let units = Units::new(&place.in_file().lun, &place.node).map_err(ClusterError::Lun)?;
    let seen = units.fence(&[key_of(mine.client)])?;
    say(&format!("3. it is fenced as the lockds do it, in {:.0?}: {seen}", began.elapsed()));
    if write(&victim, &contents(mine.client, 2)).recv() == Ok(Outcome::Done) {
        return Err(DrillError::Broken("the victim could write".to_owned()));
    }
    let stranger = open(url, &options())?;
    if write(&stranger, &contents(mine.client, 3)).recv() == Ok(Outcome::Done) {
        return Err(DrillError::Broken("somebody who has not registered could write".to_owned()));
    }
    say(&format!("4. what it writes then is refused: {}", victim.describe()));
    std::thread::sleep(LATE);
    expect(watcher.as_ref(), &first).map_err(DrillError::Broken)?;
    say("5. by another session: its first write is there, and no later one has landed");
    say(&format!("PROVED. {}", guarantee(FenceMethod::ScsiPr)));
    Ok(())
}

/// Ends the reservation of `place`'s volume, which nobody has mounted.
///
/// # Errors
/// If a mount is registered, or the units do not do it.
pub fn release(place: &Place) -> Result<(), DrillError> {
    let units = Units::new(&place.in_file().lun, &place.node).map_err(ClusterError::Lun)?;
    Ok(units.release()?)
}
