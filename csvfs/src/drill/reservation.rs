//! The drill of `scsi-pr`: a client registers and writes, its key is removed by the step that the lockds take, and what it
//! sends then does not land; nor does what somebody sends who has never registered.

use std::sync::Arc;
use std::time::Instant;

use lockd::fencing::{Units, key_of, node_key};
use lockd::iscsi::Role;
use lockd::lease::Lease;
use lockd::machine::FenceMethod;
use lockd::reservation::device::Visit;
use redirector::iscsi::Reservation;
use redirector::lun::Outcome;
use redirector::open::{OpenOptions, open};
use redirector::uri::LunUri;

use super::{DrillError, LATE, contents, expect, options, write};
use crate::cluster::{ClusterError, Place, guarantee};
use crate::disk::layout;
use crate::disk::survey::Survey;

/// Runs it on `place`'s volume; `say` is told of each step.
pub(super) fn run(place: &Place, say: &mut dyn FnMut(&str)) -> Result<(), DrillError> {
    let url = match place.luns.first().ok_or_else(|| ClusterError::Lun("it has no path".to_owned()))? {
        LunUri::Iscsi(unit) => &LunUri::Iscsi(unit.as_role(Role::Drill)),
        url => url,
    };
    let watcher = open(url, &OpenOptions { read_only: true, ..options() })?;
    Survey::read(watcher.as_ref())?;
    let proven = place.prove_fence(watcher.as_ref())?;
    let shown = proven.shown.ok_or_else(|| DrillError::Broken("no reservation was tried".to_owned()))?;
    let can = |can, what, not| if can { what } else { not };
    say(&format!(
        "1. tried on every path: the target {}; it {}; it {}; registrations {}",
        can(
            shown.tried,
            "refuses writes from who has not registered, and from whose key was removed",
            "takes the reservation"
        ),
        can(shown.aborts, "has PREEMPT AND ABORT", "has PREEMPT only, so that the unit is reset after it"),
        can(
            shown.guards_unmap,
            "refuses UNMAP as well",
            can(
                shown.tried,
                "lets UNMAP pass, so that nobody uses it",
                "may let UNMAP pass, so that nobody uses it"
            )
        ),
        can(shown.persists, "outlive its power", "are lost when it restarts, and made again under the lease"),
    ));
    if matches!(url, LunUri::Device(_)) && !shown.tried {
        return Err(DrillError::Alone);
    }
    let mut mine = options();
    let lease = Arc::new(Lease::unlimited());
    mine.reservation = Some(Reservation {
        key: key_of(mine.client),
        node: place.node.clone(),
        lease: Arc::clone(&lease),
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

    match url {
        LunUri::Device(path) => {
            let taken = Visit::begin(path, node_key(&place.node), &[key_of(mine.client)])
                .and_then(|visit| visit.device().exchange(key_of(mine.client), None));
            taken.map_err(|error| DrillError::Disturbed(error.to_string()))?;
            say(
                "3. its key is taken away, by itself: a host has one key at a block device. Another node removes it by PREEMPT \
                 AND ABORT, which the target knows",
            );
        }
        _ => {
            let began = Instant::now();
            // As nobody is fenced before his session has ended: one whose lease ran would register again after a reset.
            lease.end();
            let units = Units::new(&place.in_file().lun, &place.node).map_err(ClusterError::Lun)?;
            let seen = units.fence(&[key_of(mine.client)])?;
            say(&format!("3. it is fenced as the lockds do it, in {:.0?}: {seen}", began.elapsed()));
        }
    }
    if write(&victim, &contents(mine.client, 2)).recv() == Ok(Outcome::Done) {
        return Err(DrillError::Broken("the victim could write".to_owned()));
    }
    let why = victim.describe();
    // It has the device to itself.
    drop(victim);
    let stranger = open(url, &options())?;
    if write(&stranger, &contents(mine.client, 3)).recv() == Ok(Outcome::Done) {
        return Err(DrillError::Broken("somebody who has not registered could write".to_owned()));
    }
    say(&format!("4. what it writes then is refused: {why}"));
    drop(stranger);
    std::thread::sleep(LATE);
    expect(watcher.as_ref(), &first).map_err(DrillError::Broken)?;
    say("5. by another session: its first write is there, and no later one has landed");
    if let LunUri::Device(path) = url {
        // The node's key comes back.
        Units::new(&[path.display().to_string()], &place.node).map_err(ClusterError::Lun)?.hold()?;
    }
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
