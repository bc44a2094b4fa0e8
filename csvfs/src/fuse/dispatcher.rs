//! The threads that take requests from the kernel.
//!
//! What moves data, what fuser does not know or hides a part of, and what is asked at every open and close, is
//! answered from here; the rest goes over the bridge. A thread does not wait for an answer: whoever completes a request
//! sends its reply. (What the coordinator of the same process has to read from the LUN it does wait for; if that takes
//! long, a thread of [`relief`](super::relief) takes its place.)

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redirector::buffer::Pool;
use redirector::plug;
use zerocopy::{FromBytes, FromZeros};

use super::abi::{
    AttrOut, CopyRangeIn, CopyRangeOut, CreateIn, EntryOut, FlushIn, InHeader, InterruptIn, LkIn,
    OPEN_KILL_SUIDGID, OpenIn, OpenOut, RELEASE_FLOCK_UNLOCK, ReadIn, ReleaseIn, SETXATTR_ACL_KILL_SGID,
    SetAttrIn, SetXattrIn, SetXattrInShort, WRITE_CACHE, WRITE_KILL_SUIDGID, WriteIn, WriteOut, fattr,
    opcode,
};
use super::attributes::{kernel_attributes, statx, timestamp};
use super::bridge::Bridge;
use super::connection::{Connection, open_mode};
use super::device::Device;
use super::gathering::Gathering;
use super::inbox::{Inbox, WRITE_MAX};
use super::reply::Reply;
use super::vigil::Vigil;
use crate::proto::{SetAttr, XattrMode};
use crate::refusal::Refusal;
use crate::service::{Credentials, Done, HandleId, OpenMode, Opened, WriteMode};
use crate::types::{Attr, Ino, NAME_MAX};

/// One thread's part of a mount: its descriptor and its landing place.
#[derive(Debug)]
pub(super) struct Dispatcher {
    connection: Arc<Connection>,
    bridge: Arc<Bridge>,
    device: Arc<Device>,
    inbox: Inbox,
    /// Requests since there was none.
    streak: u32,
    /// How much work they were, in small requests.
    work: u32,
    /// Whether the LUN has answered here since the last sleep. Otherwise others do what is asked for, and need the
    /// processors more than who looks for more.
    replied: bool,
    gathering: Gathering,
    vigil: Vigil,
}

impl Dispatcher {
    pub(super) fn new(
        connection: &Arc<Connection>,
        bridge: &Arc<Bridge>,
        device: &Arc<Device>,
        pool: &Pool,
    ) -> io::Result<Self> {
        Ok(Self {
            connection: Arc::clone(connection),
            bridge: Arc::clone(bridge),
            device: Arc::clone(device),
            inbox: Inbox::new(pool.clone()),
            streak: 0,
            work: 0,
            replied: false,
            gathering: Gathering::default(),
            vigil: Vigil::new(device),
        })
    }

    /// Answers, or hands on, the request in the inbox.
    fn dispatch(&mut self) {
        let Some(header) = self.inbox.header() else {
            tracing::error!(len = self.inbox.len(), "a message of the kernel is not a request");
            return;
        };
        if !matches!(header.opcode, opcode::READ | opcode::WRITE) {
            // Anything else may wait for something.
            plug::flush();
        }
        let understood = match header.opcode {
            opcode::READ => self.read(&header),
            opcode::WRITE => self.write(&header),
            opcode::FLUSH => self.flush(&header),
            opcode::RELEASE => self.release(&header),
            opcode::GETLK | opcode::SETLK | opcode::SETLKW => self.lock(&header),
            opcode::INTERRUPT => self.interrupt(),
            opcode::LOOKUP => self.lookup(&header),
            opcode::GETATTR => self.get_attr(&header),
            opcode::OPEN => self.open(&header),
            opcode::CREATE => self.create(&header),
            opcode::TMPFILE => self.create_unnamed(&header),
            opcode::SETATTR => self.set_attr(&header),
            opcode::SETXATTR => self.set_xattr(&header),
            opcode::STATX => self.statx(&header),
            opcode::SYNCFS => self.sync_all(&header),
            opcode::COPY_FILE_RANGE_64 => self.copy_range(&header),
            // Inodes are numbered for good, so that nothing has to be remembered for the kernel. No answer.
            opcode::FORGET | opcode::BATCH_FORGET => Some(()),
            _ => {
                self.forward(&header);
                Some(())
            }
        };
        if understood.is_none() {
            tracing::error!(opcode = header.opcode, len = header.len, "a request of the kernel is malformed");
            if header.opcode != opcode::INTERRUPT {
                self.reply(&header).error(libc::EIO);
            }
        }
    }

    fn reply(&self, header: &InHeader) -> Reply {
        Reply::new(&self.device, header.unique)
    }

    fn forward(&self, header: &InHeader) {
        if let Err(error) = self.bridge.forward(&self.inbox, header, &self.device) {
            tracing::error!(opcode = header.opcode, "a request could not be handed on: {error}");
            self.reply(header).error(libc::EIO);
        }
    }

    fn read(&self, header: &InHeader) -> Option<()> {
        let request: ReadIn = self.inbox.fixed()?;
        let reply = self.reply(header);
        let limit = request.size as usize;
        let done: Done<_> = Box::new(move |result| match result {
            Ok(data) => reply.data(&data, limit),
            Err(refusal) => reply.refuse("read", &refusal),
        });
        self.connection.service.read(HandleId(request.fh), request.offset, request.size, done);
        Some(())
    }

    fn write(&mut self, header: &InHeader) -> Option<()> {
        let request: WriteIn = self.inbox.fixed()?;
        let len = request.size as usize;
        let data = if len <= WRITE_MAX { self.inbox.take_data(len)? } else { return None };
        let from_cache = request.write_flags & WRITE_CACHE != 0;
        let flags = request.flags.cast_signed();
        let mode = WriteMode {
            append: flags & libc::O_APPEND != 0 && !from_cache,
            clear_set_id: request.write_flags & WRITE_KILL_SUIDGID != 0,
            sync: flags & libc::O_DSYNC != 0,
            from_cache,
        };
        let reply = self.reply(header);
        let done: Done<_> = Box::new(move |result| match result {
            Ok(_) => reply.structure(&WriteOut { size: request.size, padding: 0 }),
            Err(refusal) => reply.refuse("write", &refusal),
        });
        self.connection.service.write(HandleId(request.fh), request.offset, data.share(), mode, done);
        Some(())
    }

    fn flush(&self, header: &InHeader) -> Option<()> {
        let request: FlushIn = self.inbox.fixed()?;
        self.connection.locks.flushed(Ino(header.nodeid), request.lock_owner, self.reply(header));
        Some(())
    }

    fn release(&self, header: &InHeader) -> Option<()> {
        let request: ReleaseIn = self.inbox.fixed()?;
        let handle = HandleId(request.fh);
        let flock_owner = (request.release_flags & RELEASE_FLOCK_UNLOCK != 0).then_some(request.lock_owner);
        self.connection.locks.released(Ino(header.nodeid), handle, flock_owner);
        self.connection.validity.released(handle);
        self.connection.service.release(handle);
        self.reply(header).done();
        Some(())
    }

    fn lock(&self, header: &InHeader) -> Option<()> {
        let body = self.inbox.body();
        let (request, _) = LkIn::read_from_prefix(&body).ok()?;
        let (ino, reply) = (Ino(header.nodeid), self.reply(header));
        let locks = &self.connection.locks;
        match header.opcode {
            opcode::GETLK => locks.test(ino, &request, reply),
            kind => locks.set(header.unique, ino, &request, kind == opcode::SETLKW, reply),
        }
        Some(())
    }

    /// An interrupt itself is not answered. Only those who wait for locks can be interrupted.
    fn interrupt(&self) -> Option<()> {
        let request: InterruptIn = self.inbox.fixed()?;
        self.connection.locks.interrupt(request.unique);
        Some(())
    }

    fn open(&self, header: &InHeader) -> Option<()> {
        let request: OpenIn = self.inbox.fixed()?;
        let mode = open_mode(request.flags, request.open_flags & OPEN_KILL_SUIDGID != 0, header.pid);
        let reply = self.reply(header);
        let connection = Arc::clone(&self.connection);
        let done: Done<_> = Box::new(move |result| match result {
            Ok(opened) => reply.structure(&open_out(&connection, &opened, mode)),
            Err(refusal) => reply.refuse("open", &refusal),
        });
        self.connection.service.open(Ino(header.nodeid), mode, done);
        Some(())
    }

    fn lookup(&self, header: &InHeader) -> Option<()> {
        let body = self.inbox.body();
        let name = terminated(&body)?;
        if matches!(name, b"." | b"..") || name.len() > NAME_MAX {
            self.forward(header);
            return Some(());
        }
        let reply = self.reply(header);
        let connection = Arc::clone(&self.connection);
        let absent = self.connection.validity.absent();
        let done: Done<Attr> = Box::new(move |result| match result {
            Ok(attr) => reply.structure(&entry_out(&connection, &attr, connection.kept(&attr))),
            // An entry without an inode says for how long the name does not exist.
            Err(Refusal::NotFound) if !absent.is_zero() => reply.structure(&EntryOut {
                entry_valid: absent.as_secs(),
                entry_valid_nanos: absent.subsec_nanos(),
                ..EntryOut::new_zeroed()
            }),
            Err(refusal) => reply.refuse("lookup", &refusal),
        });
        self.connection.service.lookup(Ino(header.nodeid), name, done);
        Some(())
    }

    fn create(&self, header: &InHeader) -> Option<()> {
        let body = self.inbox.body();
        let (request, name) = CreateIn::read_from_prefix(&body).ok()?;
        let name = terminated(name)?;
        let (mode, done) = self.creation(header, &request, "create");
        if name.len() > NAME_MAX {
            done(Err(Refusal::NameTooLong));
            return Some(());
        }
        let service = &self.connection.service;
        service.create_open(
            credentials(header, request.umask),
            Ino(header.nodeid),
            name,
            request.mode & 0o7777,
            mode,
            done,
        );
        Some(())
    }

    fn create_unnamed(&self, header: &InHeader) -> Option<()> {
        let request: CreateIn = self.inbox.fixed()?;
        let (mode, done) = self.creation(header, &request, "tmpfile");
        let who = credentials(header, request.umask);
        self.connection.service.create_unnamed(who, Ino(header.nodeid), request.mode & 0o7777, mode, done);
        Some(())
    }

    fn creation(
        &self,
        header: &InHeader,
        request: &CreateIn,
        operation: &'static str,
    ) -> (OpenMode, Done<Opened>) {
        let mode = open_mode(request.flags, request.open_flags & OPEN_KILL_SUIDGID != 0, header.pid);
        let reply = self.reply(header);
        let connection = Arc::clone(&self.connection);
        let done: Done<_> = Box::new(move |result: Result<Opened, Refusal>| match result {
            Ok(opened) => {
                let open = open_out(&connection, &opened, mode);
                let validity = connection.validity.attributes(&opened.attr);
                reply.structures(&entry_out(&connection, &opened.attr, validity), &open);
            }
            Err(refusal) => reply.refuse(operation, &refusal),
        });
        (mode, done)
    }

    fn get_attr(&self, header: &InHeader) -> Option<()> {
        let done = self.attributes(header, "getattr", |connection, attr| connection.kept(attr));
        self.connection.service.get_attr(Ino(header.nodeid), done);
        Some(())
    }

    /// Answers with attributes.
    fn attributes(
        &self,
        header: &InHeader,
        operation: &'static str,
        validity: fn(&Connection, &Attr) -> Duration,
    ) -> Done<Attr> {
        let reply = self.reply(header);
        let connection = Arc::clone(&self.connection);
        Box::new(move |result| match result {
            Ok(attr) => {
                let validity = validity(&connection, &attr);
                reply.structure(&AttrOut {
                    valid: validity.as_secs(),
                    valid_nanos: validity.subsec_nanos(),
                    dummy: 0,
                    attributes: kernel_attributes(&attr),
                });
            }
            Err(refusal) => reply.refuse(operation, &refusal),
        })
    }

    fn set_attr(&self, header: &InHeader) -> Option<()> {
        let body = self.inbox.body();
        let (request, _) = SetAttrIn::read_from_prefix(&body).ok()?;
        let (set, size) = set_attr(&request, || self.connection.service.now());
        let done =
            self.attributes(header, "setattr", |connection, attr| connection.validity.attributes(attr));
        self.connection.service.set_attr(Ino(header.nodeid), set, size, done);
        Some(())
    }

    fn set_xattr(&self, header: &InHeader) -> Option<()> {
        let body = self.inbox.body();
        let (size, flags, extra, rest) = if self.connection.has_extended_setxattr() {
            let (request, rest) = SetXattrIn::read_from_prefix(&body).ok()?;
            (request.size, request.flags, request.setxattr_flags, rest)
        } else {
            let (request, rest) = SetXattrInShort::read_from_prefix(&body).ok()?;
            (request.size, request.flags, 0, rest)
        };
        let name = terminated(rest)?;
        let value = rest.get(name.len() + 1..)?;
        if value.len() != size as usize {
            return None;
        }
        let reply = self.reply(header);
        let mode = match flags.cast_signed() {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => {
                reply.error(libc::EINVAL);
                return Some(());
            }
        };
        let clear_sgid = extra & SETXATTR_ACL_KILL_SGID != 0;
        let done: Done<_> = Box::new(move |result| reply.result("setxattr", result));
        self.connection.service.set_xattr(Ino(header.nodeid), name, value, mode, clear_sgid, done);
        Some(())
    }

    fn statx(&self, header: &InHeader) -> Option<()> {
        let reply = self.reply(header);
        let connection = Arc::clone(&self.connection);
        let done: Done<_> = Box::new(move |result| match result {
            Ok(attr) => reply.structure(&statx(&attr, connection.kept(&attr))),
            Err(refusal) => reply.refuse("statx", &refusal),
        });
        self.connection.service.get_attr(Ino(header.nodeid), done);
        Some(())
    }

    fn sync_all(&self, header: &InHeader) -> Option<()> {
        let reply = self.reply(header);
        self.connection.service.sync_all(Box::new(move |result| reply.result("syncfs", result)));
        Some(())
    }

    fn copy_range(&self, header: &InHeader) -> Option<()> {
        let body = self.inbox.body();
        let (request, _) = CopyRangeIn::read_from_prefix(&body).ok()?;
        let reply = self.reply(header);
        if request.flags != 0 {
            reply.error(libc::EINVAL);
            return Some(());
        }
        let done: Done<_> = Box::new(move |result| match result {
            Ok(copied) => reply.structure(&CopyRangeOut { copied }),
            Err(refusal) => reply.refuse("copy_file_range", &refusal),
        });
        self.connection.service.copy_range(
            HandleId(request.fh_in),
            request.offset_in,
            HandleId(request.fh_out),
            request.offset_out,
            request.len,
            done,
        );
        Some(())
    }
}

/// The bytes before the first NUL.
fn terminated(bytes: &[u8]) -> Option<&[u8]> {
    bytes.iter().position(|byte| *byte == 0).map(|end| &bytes[..end])
}

fn credentials(header: &InHeader, umask: u32) -> Credentials {
    Credentials { uid: header.uid, gid: header.gid, umask }
}

fn open_out(connection: &Connection, opened: &Opened, mode: OpenMode) -> OpenOut {
    OpenOut { fh: opened.handle.0, open_flags: connection.opened(opened, mode), backing_id: 0 }
}

fn entry_out(connection: &Connection, attr: &Attr, attributes: Duration) -> EntryOut {
    let entry = connection.validity.entry();
    EntryOut {
        nodeid: attr.ino.0,
        generation: 0,
        entry_valid: entry.as_secs(),
        attr_valid: attributes.as_secs(),
        entry_valid_nanos: entry.subsec_nanos(),
        attr_valid_nanos: attributes.subsec_nanos(),
        attributes: kernel_attributes(attr),
    }
}

/// What SETATTR asks for: the changes, and the new size.
fn set_attr(request: &SetAttrIn, now: impl Fn() -> crate::types::Timestamp) -> (SetAttr, Option<u64>) {
    let has = |bit| request.valid & bit != 0;
    let time = |set, to_now, seconds, nanos| {
        has(set).then(|| if has(to_now) { now() } else { timestamp(seconds, nanos) })
    };
    let owner_changes = has(fattr::UID) || has(fattr::GID);
    // chown(-1, -1) asks for nothing, and clears the set-id bits as every change of owner.
    let asks_nothing = request.valid
        & (fattr::MODE | fattr::SIZE | fattr::ATIME | fattr::MTIME | fattr::ATIME_NOW | fattr::MTIME_NOW)
        == 0;
    let set = SetAttr {
        mode: has(fattr::MODE).then_some(request.mode & 0o7777),
        uid: has(fattr::UID).then_some(request.uid),
        gid: has(fattr::GID).then_some(request.gid),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, request.atime, request.atime_nanos),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, request.mtime, request.mtime_nanos),
        ctime: has(fattr::CTIME).then(|| timestamp(request.ctime, request.ctime_nanos)),
        clear_set_id: has(fattr::KILL_SUIDGID) || owner_changes || asks_nothing,
    };
    (set, has(fattr::SIZE).then_some(request.size))
}

mod duty;
#[cfg(test)]
mod tests;
