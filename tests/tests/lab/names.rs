//! Names and attributes that a node's kernel keeps for a moment, with the daemons as they run.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};

use crate::volume::with_three_mounts;

/// As many changes as show a kernel that is not told to forget: it keeps attributes for some milliseconds.
const CHANGES: u32 = 200;

#[test]
fn v9_attributes_of_a_directory_are_current_on_every_node_when_a_change_of_them_returns() -> Result<()> {
    with_three_mounts(|cluster| {
        let path = |number: u8| cluster.node(number).mount_point().join("folder");
        fs::create_dir(path(1))?;
        // By its descriptor: a path would be looked up each time.
        let seen = [File::open(path(2))?, File::open(path(3))?];
        let stop = AtomicBool::new(false);
        let changed = std::thread::scope(|scope| {
            for file in &seen {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let _ = file.metadata();
                    }
                });
            }
            let result = (0..CHANGES).try_for_each(|change| {
                let (by, mode) = (u8::try_from(change % 3 + 1)?, 0o700 | change & 0o77);
                fs::set_permissions(path(by), Permissions::from_mode(mode))?;
                for file in &seen {
                    let found = file.metadata()?.permissions().mode() & 0o7777;
                    ensure!(found == mode, "change {change} by n{by} to {mode:o}: {found:o} is seen");
                }
                Ok(())
            });
            stop.store(true, Ordering::Relaxed);
            result
        });
        drop(seen);
        changed
    })
}
