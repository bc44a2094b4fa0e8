//! Named points on the way of the protocols at which a test halts a daemon: it is then killed there, paused, or cut off.
//!
//! Only a process whose environment names a folder in `CSV_FAILPOINTS` looks for them; any other passes at the cost of one
//! load. A point is *armed* by a file of its name in that folder. Whoever reaches it first takes the file away, which
//! becomes `NAME.reached`, and waits until there is `NAME.go`, or for a minute.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// How long a process stays where nobody lets it go on.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(1);

/// Every point: where it is.
pub const POINTS: &[(&str, &str)] = &[
    ("transfer.offered", "the owner has offered a set, and is about to ask the next owner to take it"),
    ("acquire.asking", "a node is about to ask the coordinator for a set"),
    ("move.begun", "the coordinator names nobody as the set's server, and is about to call it"),
    ("yield.begun", "the server has been called, and has stopped nothing"),
    ("yield.stopped", "the server has stopped and drained the set"),
    ("yield.committed", "the server has committed the set, and is about to have it transferred"),
    ("lockd.transfer.received", "the leader has a transfer, and is about to propose it"),
    ("lockd.transfer.applied", "the transfer is applied, and not yet answered"),
    ("yield.given", "the server knows that the set is transferred, and has told nobody"),
    ("move.yielded", "the coordinator knows that the set was yielded, and has told nobody"),
    ("acquire.moved", "the next owner knows that it owns the set, and serves nothing of it"),
    ("acquire.served", "the next owner serves the set"),
    ("reserve.asking", "a node is about to ask for blocks"),
    ("commit.applied", "the coordinator has applied a group, and not made it durable"),
    ("commit.durable", "the group is durable, and nobody has been told"),
    ("takeover.acquired", "a mount has the coordinator's role, and has not opened the store"),
    ("takeover.opened", "it has opened the store, and serves nobody"),
    ("mount.joined", "a mount is known to lockd, and has not attached to the coordinator"),
    ("mount.attached", "a mount has attached to the coordinator, and has no claim on the LUN"),
];

fn folder() -> Option<&'static PathBuf> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(|| std::env::var_os("CSV_FAILPOINTS").map(PathBuf::from)).as_ref()
}

/// Whether this process looks for points at all.
#[must_use]
pub fn is_on() -> bool {
    folder().is_some()
}

/// The process is at `point`, which is one of [`POINTS`]: it waits here if that is armed.
pub fn reached(point: &str) {
    let Some(folder) = folder() else { return };
    debug_assert!(POINTS.iter().any(|(name, _)| *name == point), "{point} is none of the points");
    let (armed, here, go) = (folder.join(point), format!("{point}.reached"), format!("{point}.go"));
    if fs::rename(armed, folder.join(here)).is_err() {
        return;
    }
    tracing::warn!(point, "a test halts this process here");
    let (go, since) = (folder.join(go), Instant::now());
    while fs::remove_file(&go).is_err() && since.elapsed() < PATIENCE {
        thread::sleep(LOOK);
    }
}
