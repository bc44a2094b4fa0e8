//! From an operation to its effect on a transaction.

use super::change::{Change, Verdict};
use super::data::{CloneRange, Written};
use super::names::Maker;
use super::rename::Place;
use super::stop::Stop;
use crate::proto::{Operation, Request};
use crate::refusal::Refusal;

/// Applies a change. `mark`: how far earlier steps of the same operation have come.
pub fn apply(change: &mut Change<'_, '_>, request: &Request, mark: u64) -> Result<Verdict, Stop> {
    let client = request.head.client;
    let answer = match &request.operation {
        Operation::Create { parent, name, what, mode, umask, uid, gid, exclusive, open, now } => {
            let maker = Maker { mode: *mode, umask: *umask, uid: *uid, gid: *gid };
            change.create(client, *parent, name, what, maker, *exclusive, *open, *now)?
        }
        Operation::CreateUnnamed { parent, mode, umask, uid, gid, now } => {
            let maker = Maker { mode: *mode, umask: *umask, uid: *uid, gid: *gid };
            change.create_unnamed(client, *parent, maker, *now)?
        }
        Operation::Link { ino, parent, name, now } => change.link(*ino, *parent, name, *now)?,
        Operation::Unlink { parent, name, now } => change.unlink(*parent, name, *now)?,
        Operation::RemoveDirectory { parent, name, now } => change.remove_directory(*parent, name, *now)?,
        Operation::Rename { parent, name, new_parent, new_name, mode, now } => {
            let from = Place { parent: *parent, name };
            change.rename(from, Place { parent: *new_parent, name: new_name }, *mode, *now)?
        }
        Operation::SetAttr { ino, set, now } => change.set_attr(*ino, *set, *now)?,
        Operation::SetXattr { ino, name, value, mode, clear_sgid, now } => {
            change.set_xattr(*ino, name, value, *mode, *clear_sgid, *now)?
        }
        Operation::RemoveXattr { ino, name, now } => change.remove_xattr(*ino, name, *now)?,
        Operation::Commit { file, written, size, mtime, atime, clear_set_id, now } => {
            let beside = Written { size: *size, mtime: *mtime, atime: *atime, clear_set_id: *clear_set_id };
            change.commit(client, file.ino, written, beside, *now)?
        }
        Operation::Truncate { file, size, clear_set_id, now } => {
            return change.truncate(file.ino, *size, *clear_set_id, *now);
        }
        Operation::Allocate { file, from, to, how, size, now } => {
            return change.allocate(file.ino, *from, *to, *how, *size, *now, mark);
        }
        Operation::Clone { source, from, target, to, len, size, now } => {
            let range = CloneRange {
                source: source.ino,
                from: *from,
                target: target.ino,
                to: *to,
                len: *len,
                size: *size,
            };
            return change.clone_range(&range, *now, mark);
        }
        Operation::Reserve { want } => change.reserve(client, *want)?,
        Operation::Return { runs } => change.return_reserve(client, runs)?,
        Operation::Quarantine { runs } => change.quarantine(client, runs)?,
        Operation::CommitSet { parts } => change.commit_set(client, parts)?,
        Operation::Open { .. }
        | Operation::OpenSet { .. }
        | Operation::HandSlots { .. }
        | Operation::Close { .. }
        | Operation::Attach { .. }
        | Operation::Acquire { .. }
        | Operation::Release { .. } => {
            return Err(Refusal::Invalid("opens are not kept in the store".to_owned()).into());
        }
        Operation::Lookup { .. }
        | Operation::GetAttr { .. }
        | Operation::ReadDirectory { .. }
        | Operation::Parent { .. }
        | Operation::ReadLink { .. }
        | Operation::GetXattr { .. }
        | Operation::ListXattr { .. }
        | Operation::Layout { .. }
        | Operation::Space
        | Operation::Serving { .. } => {
            return Err(Refusal::Invalid("a question changes nothing".to_owned()).into());
        }
    };
    Ok(answer.into())
}
