//! Attributes and extended attributes.

use zerocopy::little_endian::U32;

use redb::ReadableTable;

use super::acl::{self, Acl};
use super::change::Change;
use super::stop::Stop;
use crate::proto::{Answer, SetAttr, XattrMode};
use crate::refusal::Refusal;
use crate::store::record::{ACCESS_ACL, DEFAULT_ACL, InodeRecord, XATTRS};
use crate::store::xattr_key;
use crate::types::{Ino, Kind, Timestamp, XATTR_VALUE_MAX};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

/// The longest name of an extended attribute, in bytes.
const XATTR_NAME_MAX: usize = 255;
/// The longest list of names, in bytes: what listxattr can return.
pub const XATTR_LIST_MAX: usize = 65536;

/// `mode` without the bits that a write takes away.
pub fn without_set_id(mode: u32) -> u32 {
    let mode = mode & !SETUID;
    if mode & GROUP_EXECUTE != 0 { mode & !SETGID } else { mode }
}

/// Clears the set-id bits of a regular file. Tells whether they were set.
pub fn clear_set_id(record: &mut InodeRecord) -> bool {
    let (old, new) = (record.permissions(), without_set_id(record.permissions()));
    if record.kind() == Kind::Directory || old == new {
        return false;
    }
    record.set_permissions(new);
    true
}

/// Refuses names outside of the namespaces that are kept.
pub fn check_xattr_name(name: &[u8]) -> Result<(), Refusal> {
    if name.len() > XATTR_NAME_MAX {
        return Err(Refusal::OutOfRange);
    }
    if name == acl::ACCESS || name == acl::DEFAULT {
        return Ok(());
    }
    let spaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match spaces.iter().find(|space| name.starts_with(space)) {
        Some(space) if name.len() == space.len() || name.contains(&0) => {
            Err(Refusal::Invalid("not a name of an extended attribute".to_owned()))
        }
        Some(_) => Ok(()),
        None => Err(Refusal::NotSupported),
    }
}

/// The names of all extended attributes, each followed by NUL.
pub fn list_xattrs<T>(table: &T, ino: Ino) -> Result<Vec<u8>, Stop>
where
    T: ReadableTable<&'static [u8], &'static [u8]>,
{
    let (first, end) = (ino.0.to_be_bytes(), (ino.0 + 1).to_be_bytes());
    let mut names = Vec::new();
    for row in table.range(first.as_slice()..end.as_slice())? {
        names.extend_from_slice(&row?.0.value()[8..]);
        names.push(0);
    }
    Ok(names)
}

impl Change<'_, '_> {
    /// [`crate::proto::Operation::SetAttr`].
    pub fn set_attr(&mut self, ino: Ino, set: SetAttr, now: Timestamp) -> Result<Answer, Stop> {
        let mut record = self.inode(ino)?;
        if let Some(mode) = set.mode {
            record.set_permissions(mode);
        }
        if let Some(uid) = set.uid {
            record.uid = U32::new(uid);
        }
        if let Some(gid) = set.gid {
            record.gid = U32::new(gid);
        }
        if set.clear_set_id {
            clear_set_id(&mut record);
        }
        if let Some(atime) = set.atime {
            record.atime.set(atime.0);
        }
        if let Some(mtime) = set.mtime {
            record.mtime.set(mtime.0);
        }
        record.ctime.set(set.ctime.unwrap_or(now).0);
        if set.mode.is_some()
            && record.has(ACCESS_ACL)
            && let Some(mut acl) = self.acl(ino, acl::ACCESS)?
        {
            acl.set_mode(record.permissions());
            self.store_xattr(ino, acl::ACCESS, &acl.value())?;
        }
        self.put(ino, &record)?;
        Ok(Answer::Entry(record.attr(ino)))
    }

    fn store_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8]) -> Result<(), Stop> {
        self.dirty = true;
        self.tables.xattrs_mut()?.insert(xattr_key(ino.0, name).as_slice(), value)?;
        Ok(())
    }

    fn has_xattr(&self, ino: Ino, name: &[u8]) -> Result<bool, Stop> {
        Ok(self.tables.xattrs()?.get(xattr_key(ino.0, name).as_slice())?.is_some())
    }

    /// [`crate::proto::Operation::SetXattr`].
    pub fn set_xattr(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        clear_sgid: bool,
        now: Timestamp,
    ) -> Result<Answer, Stop> {
        check_xattr_name(name)?;
        if value.len() > XATTR_VALUE_MAX {
            return Err(Refusal::TooBig.into());
        }
        let mut record = self.inode(ino)?;
        let exists = self.has_xattr(ino, name)?;
        match mode {
            XattrMode::Create if exists => return Err(Refusal::Exists.into()),
            XattrMode::Replace if !exists => return Err(Refusal::NoData.into()),
            _ => {}
        }
        if name == acl::ACCESS || name == acl::DEFAULT {
            return self.set_acl(ino, record, name, value, clear_sgid, now);
        }
        self.room()?;
        if !exists && list_xattrs(self.tables.xattrs()?, ino)?.len() + name.len() + 1 > XATTR_LIST_MAX {
            return Err(Refusal::NoSpace.into());
        }
        self.store_xattr(ino, name, value)?;
        record.set(XATTRS, true);
        record.ctime.set(now.0);
        self.put(ino, &record)?;
        Ok(Answer::Done)
    }

    fn set_acl(
        &mut self,
        ino: Ino,
        mut record: InodeRecord,
        name: &[u8],
        value: &[u8],
        clear_sgid: bool,
        now: Timestamp,
    ) -> Result<Answer, Stop> {
        let acl = if value.is_empty() { None } else { Acl::parse(value)? };
        let access = name == acl::ACCESS;
        if record.kind() == Kind::Symlink {
            return Err(Refusal::NotSupported.into());
        }
        if !access && record.kind() != Kind::Directory && acl.is_some() {
            return Err(Refusal::NotPermitted.into());
        }
        if acl.is_some() {
            self.room()?;
        }
        if access {
            if let Some(acl) = &acl {
                record.set_permissions(acl.mode(record.permissions()));
            }
            if clear_sgid {
                record.set_permissions(record.permissions() & !SETGID);
            }
        }
        // What the permission bits say in full needs no list beside them.
        let stored = acl.filter(|acl| !(access && acl.is_minimal()));
        record.set(if access { ACCESS_ACL } else { DEFAULT_ACL }, stored.is_some());
        match &stored {
            Some(acl) => {
                self.store_xattr(ino, name, &acl.value())?;
                record.set(XATTRS, true);
            }
            None => {
                self.tables.xattrs_mut()?.remove(xattr_key(ino.0, name).as_slice())?;
            }
        }
        record.ctime.set(now.0);
        self.put(ino, &record)?;
        Ok(Answer::Done)
    }

    /// [`crate::proto::Operation::RemoveXattr`].
    pub fn remove_xattr(&mut self, ino: Ino, name: &[u8], now: Timestamp) -> Result<Answer, Stop> {
        check_xattr_name(name)?;
        let mut record = self.inode(ino)?;
        if !self.has_xattr(ino, name)? {
            return Err(Refusal::NoData.into());
        }
        self.dirty = true;
        self.tables.xattrs_mut()?.remove(xattr_key(ino.0, name).as_slice())?;
        if name == acl::ACCESS {
            record.set(ACCESS_ACL, false);
        }
        if name == acl::DEFAULT {
            record.set(DEFAULT_ACL, false);
        }
        record.ctime.set(now.0);
        self.put(ino, &record)?;
        Ok(Answer::Done)
    }

    /// Takes all extended attributes of a removed inode away.
    pub fn remove_xattrs(&mut self, ino: Ino) -> Result<(), Stop> {
        let names = list_xattrs(self.tables.xattrs()?, ino)?;
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            self.tables.xattrs_mut()?.remove(xattr_key(ino.0, name).as_slice())?;
        }
        Ok(())
    }
}
