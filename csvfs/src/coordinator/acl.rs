//! POSIX access control lists, as the extended attributes `system.posix_acl_access` and `system.posix_acl_default`
//! carry them (version 2: a 4-byte version, then per entry tag and permissions of 2 bytes and an id of 4).

use crate::refusal::Refusal;

/// The name of the access ACL's attribute.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The name of the default ACL's attribute.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;
const HEADER: usize = 4;
const ENTRY: usize = 8;

/// The largest ACL that is kept, in entries.
const ENTRIES_MAX: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// A valid ACL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl {
    entries: Vec<Entry>,
}

fn invalid(what: &str) -> Refusal {
    Refusal::Invalid(format!("the access control list {what}"))
}

impl Acl {
    /// Reads and checks an attribute's value. An ACL without entries is `None`: it means that there is none.
    pub fn parse(value: &[u8]) -> Result<Option<Self>, Refusal> {
        let (version, body) = value.split_first_chunk::<HEADER>().ok_or_else(|| invalid("is cut off"))?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Refusal::NotSupported);
        }
        if !body.len().is_multiple_of(ENTRY) {
            return Err(invalid("has half an entry"));
        }
        if body.len() / ENTRY > ENTRIES_MAX {
            return Err(Refusal::TooBig);
        }
        let entries: Vec<Entry> = body
            .chunks_exact(ENTRY)
            .map(|raw| Entry {
                tag: u16::from_le_bytes([raw[0], raw[1]]),
                permissions: u16::from_le_bytes([raw[2], raw[3]]),
                id: u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]),
            })
            .collect();
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Self { entries };
        acl.check()?;
        Ok(Some(acl))
    }

    /// The order and number of entries that POSIX 1003.1e draft 17 demands, as the kernel checks them.
    fn check(&self) -> Result<(), Refusal> {
        let mut last = (0, 0);
        let mut named = false;
        for (i, entry) in self.entries.iter().enumerate() {
            if entry.permissions > 7 {
                return Err(invalid("has unknown permissions"));
            }
            let id = match entry.tag {
                USER | GROUP => {
                    named = true;
                    if entry.id == NO_ID {
                        return Err(invalid("names no user or group"));
                    }
                    entry.id
                }
                USER_OBJ | GROUP_OBJ | MASK | OTHER => 0,
                _ => return Err(invalid("has an unknown tag")),
            };
            if i > 0 && (entry.tag < last.0 || (entry.tag == last.0 && !matches!(entry.tag, USER | GROUP))) {
                return Err(invalid("is out of order"));
            }
            last = (entry.tag, id);
        }
        let has = |tag| self.entries.iter().any(|entry| entry.tag == tag);
        if !(has(USER_OBJ) && has(GROUP_OBJ) && has(OTHER)) {
            return Err(invalid("lacks the owner, the group or the others"));
        }
        if named && !has(MASK) {
            return Err(invalid("names users or groups but has no mask"));
        }
        Ok(())
    }

    /// The attribute's value.
    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(HEADER + ENTRY * self.entries.len());
        value.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.entries {
            value.extend_from_slice(&entry.tag.to_le_bytes());
            value.extend_from_slice(&entry.permissions.to_le_bytes());
            value.extend_from_slice(&entry.id.to_le_bytes());
        }
        value
    }

    /// Whether the permission bits alone say as much.
    pub fn is_minimal(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// The tag whose permissions are the group bits of the mode: the mask, if there is one.
    fn group_tag(&self) -> u16 {
        if self.entries.iter().any(|entry| entry.tag == MASK) { MASK } else { GROUP_OBJ }
    }

    fn permissions(&self, tag: u16) -> u32 {
        self.entries.iter().find(|entry| entry.tag == tag).map_or(0, |entry| u32::from(entry.permissions))
    }

    /// `mode` with the nine permission bits that this ACL means.
    pub fn mode(&self, mode: u32) -> u32 {
        let bits = self.permissions(USER_OBJ) << 6
            | self.permissions(self.group_tag()) << 3
            | self.permissions(OTHER);
        mode & !0o777 | bits
    }

    fn change(&mut self, new: impl Fn(u16, u16) -> u16) {
        let group = self.group_tag();
        for entry in &mut self.entries {
            let shift = match entry.tag {
                USER_OBJ => 6,
                OTHER => 0,
                tag if tag == group => 3,
                _ => continue,
            };
            entry.permissions = new(entry.permissions, shift);
        }
    }

    /// Makes the ACL say what chmod has set: owner, mask (or group), others.
    pub fn set_mode(&mut self, mode: u32) {
        self.change(|_, shift| bits(mode, shift));
    }

    /// The ACL and the mode of a new inode in a directory with this default ACL, asked for with `mode`.
    pub fn inherit(&self, mode: u32) -> (Self, u32) {
        let mut acl = self.clone();
        acl.change(|permissions, shift| permissions & bits(mode, shift));
        let mode = acl.mode(mode);
        (acl, mode)
    }
}

fn bits(mode: u32, shift: u16) -> u16 {
    u16::try_from(mode >> shift & 7).unwrap_or(0)
}
