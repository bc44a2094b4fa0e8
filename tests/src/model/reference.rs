//! The reference: a tree in memory, with the errors that Linux gives.

use std::collections::BTreeMap;

use super::{Allocate, Op, Path, Rename};

/// What a walk sees of one name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// A file: its contents, mode, links, attributes.
    File(Vec<u8>, u16, u64, BTreeMap<u8, Vec<u8>>),
    /// A directory: its mode, links, attributes.
    Directory(u16, u64, BTreeMap<u8, Vec<u8>>),
    /// A symbolic link.
    Symlink,
}

#[derive(Clone, Debug)]
enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<u8, usize>),
    Symlink,
}

#[derive(Clone, Debug)]
struct Inode {
    body: Body,
    mode: u16,
    nlink: u64,
    attributes: BTreeMap<u8, Vec<u8>>,
}

/// The tree. Inodes are never freed; it is small.
#[derive(Clone, Debug)]
pub struct Reference {
    inodes: Vec<Inode>,
}

type Errno = i32;

impl Default for Reference {
    fn default() -> Self {
        Self { inodes: vec![Inode::new(Body::Directory(BTreeMap::new()), 0o755)] }
    }
}

impl Inode {
    fn new(body: Body, mode: u16) -> Self {
        let nlink = if matches!(body, Body::Directory(_)) { 2 } else { 1 };
        Self { body, mode, nlink, attributes: BTreeMap::new() }
    }
}

impl Reference {
    fn entries(&self, inode: usize) -> Result<&BTreeMap<u8, usize>, Errno> {
        match &self.inodes[inode].body {
            Body::Directory(entries) => Ok(entries),
            Body::File(_) => Err(libc::ENOTDIR),
            // In the middle of a path the link is followed, to nowhere.
            Body::Symlink => Err(libc::ENOENT),
        }
    }

    fn entries_mut(&mut self, inode: usize) -> &mut BTreeMap<u8, usize> {
        match &mut self.inodes[inode].body {
            Body::Directory(entries) => entries,
            _ => panic!("the caller has made sure that this is a directory"),
        }
    }

    /// The directory of the last component, and that component.
    fn parent(&self, path: &Path) -> Result<(usize, u8), Errno> {
        let (last, above) = path.split_last().expect("paths are not empty");
        let mut at = 0;
        for name in above {
            at = *self.entries(at)?.get(name).ok_or(libc::ENOENT)?;
        }
        self.entries(at)?;
        Ok((at, *last))
    }

    fn find(&self, path: &Path) -> Result<usize, Errno> {
        let (parent, name) = self.parent(path)?;
        self.entries(parent)?.get(&name).copied().ok_or(libc::ENOENT)
    }

    /// A file opened for writing with O_NOFOLLOW.
    fn file(&mut self, path: &Path) -> Result<&mut Vec<u8>, Errno> {
        let inode = self.find(path)?;
        match &mut self.inodes[inode].body {
            Body::File(data) => Ok(data),
            Body::Directory(_) => Err(libc::EISDIR),
            Body::Symlink => Err(libc::ELOOP),
        }
    }

    fn is_directory(&self, inode: usize) -> bool {
        matches!(self.inodes[inode].body, Body::Directory(_))
    }

    fn add(&mut self, path: &Path, body: Body, mode: u16) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        if self.entries(parent)?.contains_key(&name) {
            return Err(libc::EEXIST);
        }
        let directory = matches!(body, Body::Directory(_));
        self.inodes.push(Inode::new(body, mode));
        let new = self.inodes.len() - 1;
        self.entries_mut(parent).insert(name, new);
        if directory {
            self.inodes[parent].nlink += 1;
        }
        Ok(())
    }

    /// Does `op`, or says with which errno Linux refuses it.
    pub fn apply(&mut self, op: &Op) -> Result<(), Errno> {
        match op {
            Op::MakeDirectory(path) => self.add(path, Body::Directory(BTreeMap::new()), 0o755),
            Op::Create(path) => self.add(path, Body::File(Vec::new()), 0o644),
            Op::Symlink(path) => self.add(path, Body::Symlink, 0o777),
            Op::Link(from, to) => self.link(from, to),
            Op::Unlink(path) => {
                let (parent, name) = self.parent(path)?;
                let inode = *self.entries(parent)?.get(&name).ok_or(libc::ENOENT)?;
                if self.is_directory(inode) {
                    return Err(libc::EISDIR);
                }
                self.inodes[inode].nlink -= 1;
                self.entries_mut(parent).remove(&name);
                Ok(())
            }
            Op::RemoveDirectory(path) => {
                let (parent, name) = self.parent(path)?;
                let inode = *self.entries(parent)?.get(&name).ok_or(libc::ENOENT)?;
                if !self.is_directory(inode) {
                    return Err(libc::ENOTDIR);
                }
                if !self.entries(inode)?.is_empty() {
                    return Err(libc::ENOTEMPTY);
                }
                self.entries_mut(parent).remove(&name);
                self.inodes[parent].nlink -= 1;
                Ok(())
            }
            Op::Rename(from, to, how) => self.rename(from, to, *how),
            Op::Write(path, offset, len, value) => {
                let data = self.file(path)?;
                let (start, end) = (*offset as usize, (*offset + *len) as usize);
                if *len > 0 {
                    data.resize(data.len().max(end), 0);
                    data[start..end].fill(*value);
                }
                Ok(())
            }
            Op::Truncate(path, size) => {
                self.file(path)?.resize(*size as usize, 0);
                Ok(())
            }
            Op::Allocate(path, offset, len, how) => {
                let data = self.file(path)?;
                if *len == 0 {
                    return Err(libc::EINVAL);
                }
                let (start, end) = (*offset as usize, (*offset + *len) as usize);
                if matches!(how, Allocate::Punch | Allocate::Zero) {
                    let (start, end) = (start.min(data.len()), end.min(data.len()));
                    data[start..end].fill(0);
                }
                if matches!(how, Allocate::Grow | Allocate::Zero) {
                    data.resize(data.len().max(end), 0);
                }
                Ok(())
            }
            Op::Copy(from, from_offset, to, to_offset, len) => {
                self.copy(from, *from_offset, to, *to_offset, *len)
            }
            Op::Mode(path, mode) => {
                let inode = self.find(path)?;
                if matches!(self.inodes[inode].body, Body::Symlink) {
                    return Err(libc::ENOENT);
                }
                self.inodes[inode].mode = *mode;
                Ok(())
            }
            Op::SetAttribute(path, name, len) => {
                let inode = self.find(path)?;
                if matches!(self.inodes[inode].body, Body::Symlink) {
                    return Err(libc::EPERM);
                }
                let value = attribute_value(*name, *len);
                self.inodes[inode].attributes.insert(*name, value);
                Ok(())
            }
            Op::RemoveAttribute(path, name) => {
                let inode = self.find(path)?;
                if matches!(self.inodes[inode].body, Body::Symlink) {
                    return Err(libc::EPERM);
                }
                self.inodes[inode].attributes.remove(name).map(drop).ok_or(libc::ENODATA)
            }
            Op::Map(path, offset, len, value) => {
                let data = self.file(path)?;
                let end = ((*offset + *len) as usize).min(data.len());
                let start = (*offset as usize).min(end);
                data[start..end].fill(*value);
                Ok(())
            }
        }
    }

    fn link(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        let inode = self.find(from)?;
        let (parent, name) = self.parent(to)?;
        if self.entries(parent)?.contains_key(&name) {
            return Err(libc::EEXIST);
        }
        if self.is_directory(inode) {
            return Err(libc::EPERM);
        }
        self.inodes[inode].nlink += 1;
        self.entries_mut(parent).insert(name, inode);
        Ok(())
    }

    fn holds(&self, above: usize, below: usize) -> bool {
        above == below
            || match &self.inodes[above].body {
                Body::Directory(entries) => entries.values().any(|inode| self.holds(*inode, below)),
                _ => false,
            }
    }

    fn rename(&mut self, from: &Path, to: &Path, how: Rename) -> Result<(), Errno> {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        let inode = *self.entries(from_parent)?.get(&from_name).ok_or(libc::ENOENT)?;
        let target = self.entries(to_parent)?.get(&to_name).copied();
        match how {
            Rename::NoReplace if target.is_some() => return Err(libc::EEXIST),
            Rename::Exchange if target.is_none() => return Err(libc::ENOENT),
            _ => {}
        }
        // The kernel looks first whether one of the two lies in the way of the other.
        if self.is_directory(inode) && self.holds(inode, to_parent) {
            return Err(libc::EINVAL);
        }
        if let Some(target) = target {
            if self.is_directory(target) && self.holds(target, from_parent) {
                return Err(if how == Rename::Exchange { libc::EINVAL } else { libc::ENOTEMPTY });
            }
            if target == inode {
                return Ok(());
            }
            if how != Rename::Exchange {
                match (self.is_directory(inode), self.is_directory(target)) {
                    (true, false) => return Err(libc::ENOTDIR),
                    (false, true) => return Err(libc::EISDIR),
                    (true, true) if !self.entries(target)?.is_empty() => return Err(libc::ENOTEMPTY),
                    _ => {}
                }
            }
        }
        let moves_directory = self.is_directory(inode);
        self.entries_mut(from_parent).remove(&from_name);
        self.entries_mut(to_parent).insert(to_name, inode);
        if moves_directory {
            self.inodes[from_parent].nlink -= 1;
            self.inodes[to_parent].nlink += 1;
        }
        if let Some(target) = target {
            let target_is_directory = self.is_directory(target);
            if how == Rename::Exchange {
                self.entries_mut(from_parent).insert(from_name, target);
                if target_is_directory {
                    self.inodes[to_parent].nlink -= 1;
                    self.inodes[from_parent].nlink += 1;
                }
            } else if target_is_directory {
                self.inodes[to_parent].nlink -= 1;
            } else {
                self.inodes[target].nlink -= 1;
            }
        }
        Ok(())
    }

    fn copy(
        &mut self,
        from: &Path,
        from_offset: u32,
        to: &Path,
        to_offset: u32,
        len: u32,
    ) -> Result<(), Errno> {
        let source = self.file(from)?.clone();
        let (source_inode, target_inode) = (self.find(from)?, self.find(to));
        let target = self.file(to)?;
        let (from_offset, to_offset) = (from_offset as usize, to_offset as usize);
        let len = (len as usize).min(source.len().saturating_sub(from_offset));
        if Ok(source_inode) == target_inode && from_offset < to_offset + len && to_offset < from_offset + len
        {
            return Err(libc::EINVAL);
        }
        if len > 0 {
            target.resize(target.len().max(to_offset + len), 0);
            target[to_offset..to_offset + len].copy_from_slice(&source[from_offset..from_offset + len]);
        }
        Ok(())
    }

    /// The number of the inode at each path, by which a file is known through renames.
    #[must_use]
    pub fn inodes(&self) -> BTreeMap<Path, usize> {
        let paths = self.look().into_keys();
        paths.filter_map(|path| self.find(&path).ok().map(|inode| (path, inode))).collect()
    }

    /// The contents of each file by the number of its inode, those without a name left out.
    #[must_use]
    pub fn contents(&self) -> BTreeMap<usize, Vec<u8>> {
        let inodes = self.inodes().into_values();
        inodes
            .filter_map(|inode| match &self.inodes[inode].body {
                Body::File(data) => Some((inode, data.clone())),
                _ => None,
            })
            .collect()
    }

    /// Everything that a walk would see, by path.
    #[must_use]
    pub fn look(&self) -> BTreeMap<Path, Seen> {
        let mut seen = BTreeMap::new();
        self.walk(0, &mut Vec::new(), &mut seen);
        seen
    }

    fn walk(&self, at: usize, path: &mut Path, seen: &mut BTreeMap<Path, Seen>) {
        let Body::Directory(entries) = &self.inodes[at].body else { return };
        for (name, inode) in entries {
            path.push(*name);
            let node = &self.inodes[*inode];
            let view = match &node.body {
                Body::File(data) => Seen::File(data.clone(), node.mode, node.nlink, node.attributes.clone()),
                Body::Directory(_) => Seen::Directory(node.mode, node.nlink, node.attributes.clone()),
                Body::Symlink => Seen::Symlink,
            };
            seen.insert(path.clone(), view);
            self.walk(*inode, path, seen);
            path.pop();
        }
    }
}

/// The value that [`Op::SetAttribute`] sets.
#[must_use]
pub fn attribute_value(name: u8, len: u16) -> Vec<u8> {
    vec![name.wrapping_add(u8::try_from(len % 251).unwrap_or(0)); len.into()]
}
