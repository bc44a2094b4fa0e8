//! The coordinator's part of a mount: the store, opened by rule V2, and the coordinator that serves it.

use std::sync::Arc;
use std::time::Duration;

use lockd::authority::Authority;
use lockd::ids::Epoch;
use redirector::lun::Lun;

use super::{Ground, Settings, VolumeError};
use crate::coordinator::{self, Coordinator};
use crate::disk::open::Hold;
use crate::peers::Peers;
use crate::proto::{Bequest, FileSlots};
use crate::status::Opening;
use crate::store::cookie::HashKey;

/// How often, and after which pauses, a store is looked at that somebody still reads, before it is given up.
const CLOSE_TRIES: u32 = 2000;
const CLOSE_PAUSE: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Office {
    /// The claim; none on a volume that is only read. Dropped first: a store that is not closed is left as it is, and nothing
    /// waits for a lease that does not come.
    hold: Option<Hold>,
    pub(super) coordinator: Arc<Coordinator>,
    /// In which the coordinator serves.
    pub(super) epoch: Epoch,
    /// How the store was opened.
    pub(super) opening: Opening,
    pub(super) database: Arc<redb::Database>,
}

impl Office {
    /// Starts a coordinator on what has been opened.
    pub(super) fn open(
        ground: Ground,
        lun: &Arc<dyn Lun>,
        authority: &Arc<dyn Authority>,
        peers: Arc<dyn Peers>,
        epoch: Epoch,
        settings: &Settings,
    ) -> Result<Self, VolumeError> {
        let database = Arc::new(ground.database);
        let coordinator = Coordinator::start(coordinator::Parts {
            database: Arc::clone(&database),
            space: ground.space,
            lun: Arc::clone(lun),
            authority: Arc::clone(authority),
            peers,
            clock: Arc::clone(&settings.clock),
            rules: settings.rules,
            key: HashKey(ground.label.hash_key),
            epoch,
            openings: ground.openings,
            volume: ground.label.uuid,
            read_only: settings.read_only,
            discard: settings.discard,
            settle: ground.settle,
            quiesce: settings.quiesce_of(&ground.label),
            journal: ground.journal,
            beside: Some(ground.beside),
            scrub: !ground.checked,
        })?;
        Ok(Self { hold: ground.hold, coordinator, epoch, opening: ground.opening, database })
    }

    /// Whether nothing is written.
    pub(super) fn is_read_only(&self) -> bool {
        self.hold.is_none()
    }

    /// Ends the coordinator, when what is queued is done. What the next one has to be told of files that nobody owns.
    pub(super) fn stop(&self, slots: Vec<FileSlots>) -> Bequest {
        self.coordinator.stop();
        self.coordinator.bequeath(slots)
    }

    /// Closes the store, so that the next opening needs no wait and no copy. All that was written is done, and nobody has a
    /// way to the coordinator any more.
    pub(super) fn close(self, lun: &Arc<dyn Lun>) -> Result<(), VolumeError> {
        let Self { coordinator, mut database, hold, .. } = self;
        coordinator.stop();
        drop(coordinator);
        redirector::blocking::flush(lun.as_ref()).map_err(VolumeError::Flush)?;
        let Some(hold) = hold else { return Ok(()) };
        for _ in 0..CLOSE_TRIES {
            match Arc::try_unwrap(database) {
                Ok(database) => return Ok(hold.close(database)?),
                // A question of another node is still being answered.
                Err(shared) => {
                    database = shared;
                    std::thread::sleep(CLOSE_PAUSE);
                }
            }
        }
        Err(VolumeError::StillUsed)
    }
}
