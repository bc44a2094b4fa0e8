//! The way of the requests that the dispatcher leaves to fuser, and of fuser's replies.
//!
//! fuser reads whole messages from, and writes whole messages to, one descriptor, which may be a socket that keeps
//! messages whole. The kernel takes a reply only through the descriptor that its request came from, so the highest
//! byte of the request's number, which the kernel leaves zero, says which one that was while fuser has it.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes};

use super::abi::{HEAD, IN_HEADER_LEN, InHeader, OutHeader, opcode};
use super::device::Device;
use super::inbox::Inbox;
use super::sys;

/// The longest message either way, in bytes: the reply to a large readdir (fuser's replies are bounded by what the
/// front end puts into them), or an extended attribute of 64 KiB.
const MESSAGE_MAX: usize = 256 << 10;
/// What a socket holds, in bytes.
const SOCKET_BUFFER: libc::c_int = 2 << 20;
const TAG_SHIFT: u32 = 56;
/// The number of a request that came from no descriptor: its reply goes nowhere.
const NO_DEVICE: u64 = 0xff << TAG_SHIFT;

/// Our end.
#[derive(Debug)]
pub(super) struct Bridge {
    socket: File,
}

impl Bridge {
    /// Our end and fuser's.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = sys::message_pair(SOCKET_BUFFER)?;
        Ok((Self { socket: ours.into() }, theirs))
    }

    /// Hands the request in `inbox` to fuser.
    pub(super) fn forward(&self, inbox: &Inbox, header: &InHeader, device: &Device) -> io::Result<()> {
        let tagged = InHeader { unique: header.unique | u64::from(device.index()) << TAG_SHIFT, ..*header };
        let [head, rest @ ..] = inbox.parts();
        let mut first = [0; HEAD];
        first[..head.len()].copy_from_slice(&head);
        first[..size_of::<InHeader>()].copy_from_slice(tagged.as_bytes());
        let [small, middle, large] = rest;
        (&self.socket).write_vectored(&[IoSlice::new(&first[..head.len()]), small, middle, large]).map(|_| ())
    }

    /// Tells `threads` threads of fuser to end.
    pub(super) fn send_ends(&self, threads: usize) {
        let header = InHeader {
            len: IN_HEADER_LEN,
            opcode: opcode::DESTROY,
            unique: NO_DEVICE,
            nodeid: 0,
            uid: 0,
            gid: 0,
            pid: 0,
            total_extlen: 0,
            padding: 0,
        };
        for _ in 0..threads {
            if let Err(error) = (&self.socket).write(header.as_bytes()) {
                tracing::debug!("fuser is gone already: {error}");
                return;
            }
        }
    }

    /// Ends [`Bridge::carry_replies`] and everything else that waits on the sockets.
    pub(super) fn close(&self) {
        if let Err(error) = sys::shut_down(&self.socket) {
            tracing::debug!("the bridge to fuser was closed already: {error}");
        }
    }

    /// Carries fuser's replies to the kernel until the bridge is closed. `device` gives the descriptor of an index.
    pub(super) fn carry_replies(&self, device: impl Fn(u8) -> Option<Arc<Device>>) {
        let mut message = vec![0; MESSAGE_MAX];
        loop {
            let len = match (&self.socket).read(&mut message) {
                Ok(0) => return,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!("the bridge to fuser broke: {error}");
                    return;
                }
            };
            let Ok((header, _)) = OutHeader::read_from_prefix(&message[..len]) else { continue };
            if header.len as usize != len {
                tracing::error!(len, said = header.len, "a reply of fuser is not as long as it says");
                continue;
            }
            let index = (header.unique >> TAG_SHIFT) as u8;
            let untagged = OutHeader { unique: header.unique & !(0xff << TAG_SHIFT), ..header };
            let Some(device) = device(index) else { continue };
            message[..size_of::<OutHeader>()].copy_from_slice(untagged.as_bytes());
            if let Err(error) = device.send(&[IoSlice::new(&message[..len])])
                && !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
            {
                tracing::error!(unique = untagged.unique, len, "a reply could not be sent: {error}");
            }
        }
    }
}
