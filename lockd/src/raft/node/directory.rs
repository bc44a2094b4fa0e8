//! The directory of a voter, opened.

use crate::ids::NodeName;
use crate::raft::StartError;
use crate::raft::disk::Disk;
use crate::raft::identity::Identity;
use crate::raft::log::{Recovered, recover};
use crate::raft::segment::{self, Header};
use crate::random::Random;

/// Opens the directory of voter `node`, or makes one.
pub(super) fn open(
    disk: &dyn Disk,
    node: &NodeName,
    random: &dyn Random,
) -> Result<(Identity, Recovered), StartError> {
    if let Some(identity) = Identity::read(disk, node)? {
        let recovered = recover(disk, identity.storage)?;
        return Ok((identity, recovered));
    }
    clear_unborn(disk)?;
    let identity = Identity::new(node, random);
    // The log first: a directory with an identity and without a log has lost its log.
    let recovered = recover(disk, identity.storage)?;
    let path = disk.path().to_owned();
    identity.write(disk).map_err(|source| StartError::Disk { what: "write to", path, source })?;
    Ok((identity, recovered))
}

/// Removes what a crash left while the directory was made. A log with records in it is none of that.
fn clear_unborn(disk: &dyn Disk) -> Result<(), StartError> {
    let failed = |what: &'static str| {
        let path = disk.path().to_owned();
        move |source| StartError::Disk { what, path, source }
    };
    for name in disk.list().map_err(failed("list"))? {
        if !name.starts_with("log-") {
            continue;
        }
        if !name.ends_with(crate::raft::disk::TEMPORARY) {
            let file = disk.read(&name).map_err(failed("read"))?;
            let empty = Header::decode(&file).ok().and_then(|header| segment::scan(&header, &file).ok());
            if !empty.is_some_and(|scan| scan.records.is_empty() && !scan.torn) {
                let why = "the file `voter`, which names this directory's owner, is missing".to_owned();
                return Err(StartError::Damaged { path: disk.path().join(name), offset: 0, why });
            }
        }
        disk.remove(&name).map_err(failed("write to"))?;
    }
    Ok(())
}
