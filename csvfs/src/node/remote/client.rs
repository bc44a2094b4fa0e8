//! The asking side: one request, sent until it is answered by whoever serves the file at that time.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use lockd::network::CarrierError;
use lockd::rules::Rule;
use lockd::slots::SlotUse;
use redirector::buffer::Slice;

use super::super::Core;
use super::super::file::{File, Service};
use super::super::slots::Slots;
use super::super::task::promise;
use super::wire::{
    APPEND, Ask, CLEAR_SET_ID, DATA_MAX, DATA_ONLY, HOLE, KEEP_SIZE, Kind, PUNCH, SYNC, Status, Told, UNSEAL,
    ZERO,
};
use crate::proto::codec::{decode, encode};
use crate::proto::{Allocation, Answer, Operation, SetAttr, Term};
use crate::refusal::Refusal;
use crate::service::{Piece, ReadData, Seek, WriteMode};
use crate::types::{Attr, Ino};

/// What a request is about.
#[derive(Clone, Copy)]
struct What {
    kind: Kind,
    flags: u8,
    offset: u64,
    len: u64,
}

impl Core {
    /// Who serves `file`, as far as this node knows; asks if it does not.
    async fn server(self: &Arc<Self>, file: &Arc<File>) -> Result<Option<Term>, Refusal> {
        match *file.service.read() {
            Some(Service::There(Some(term))) => return Ok(Some(term)),
            Some(Service::There(None)) => {}
            _ => return Ok(None),
        }
        match self.channel.call(Operation::Serving { ino: file.ino }).await? {
            Answer::Opened { term, .. } => {
                let mut service = file.service.write();
                if matches!(*service, Some(Service::There(None))) {
                    *service = Some(Service::There(Some(term)));
                }
                Ok(Some(term))
            }
            _ => Ok(None),
        }
    }

    fn forget_server(&self, file: &File, tenure: u64) {
        let mut service = file.service.write();
        if matches!(*service, Some(Service::There(Some(term))) if term.tenure == tenure) {
            *service = Some(Service::There(None));
        }
    }

    /// Has a request to `file` executed by its server, whoever that is by the time. `None`: the file is served here
    /// now, and nothing has been sent; the caller goes on by itself.
    async fn redirect(
        self: &Arc<Self>,
        file: &Arc<File>,
        what: What,
        data: &[u8],
    ) -> Result<Option<(Told, Term)>, Refusal> {
        let slots = file.slots.get_or_init(|| Slots::of(self.next_slots.fetch_add(1, SeqCst)));
        let slot = if what.kind.changes() { Some(slots.take().await?) } else { None };
        let number = slot.as_ref().map(|slot| (slot.slot(), slot.sequence()));
        let since = self.clock.boot();
        // The first term in which it was sent.
        let mut sent: Option<u64> = None;
        let (mut last_refused, end): (Option<u64>, fn(SlotUse)) = (None, SlotUse::answered);
        let result = loop {
            if self.clock.boot().since(since) > self.options.hold {
                // The slot is lost with that: nobody knows whether its command was executed.
                let hold = self.options.hold.as_secs();
                return Err(Refusal::Io(format!("no node has served {} for {hold} s", file.ino)));
            }
            if self.media.has_ended() {
                self.media.lease().await?;
            }
            let here = file.tenure();
            if here.is_some() && sent.is_none() {
                slots.free(slot, SlotUse::unused);
                return Ok(None);
            }
            let term = match self.server(file).await {
                Ok(term) => term,
                Err(Refusal::Stale(_)) => None,
                Err(error) => return Err(error),
            };
            let (session, client) = self.channel.client();
            let term = match (here, term) {
                // What was sent before this node came to serve may have been executed: its slot is here now.
                (Some(tenure), _) => {
                    Term { session, client, tenure, since: file.since.load(SeqCst), owned: None }
                }
                (None, Some(term)) if term.client == client => {
                    if !self.is_home() || self.serve_again(file).await.is_err() {
                        self.forget_server(file, term.tenure);
                        self.media.tick_passed().await;
                    }
                    continue;
                }
                (None, Some(term)) => term,
                (None, None) => {
                    self.media.tick_passed().await;
                    continue;
                }
            };
            let ask = Ask {
                kind: what.kind,
                flags: what.flags,
                session,
                client,
                slot: number,
                ino: file.ino,
                tenure: term.tenure,
                offset: what.offset,
                len: what.len,
            };
            let first = *sent.get_or_insert(term.tenure);
            if first < term.since && what.kind == Kind::Write && what.flags & APPEND != 0 {
                // Sent to a server that was lost: it may be in the file, and must not be there twice.
                return Err(Refusal::Io("it is unknown whether the data was appended".to_owned()));
            }
            match self.send(&term, ask.frame(data)).await {
                Some(told) if told.status == Status::Elsewhere => {
                    self.forget_server(file, term.tenure);
                    // Told twice: the coordinator does not know yet.
                    if last_refused.replace(term.tenure) == Some(term.tenure) {
                        self.media.tick_passed().await;
                    }
                }
                Some(told) => break (told, term),
                None => {
                    self.forget_server(file, term.tenure);
                    self.media.tick_passed().await;
                }
            }
        };
        slots.free(slot, end);
        Ok(Some(result))
    }

    /// Sends a frame to the server of a term, as long as it may be there. `None`: it is not.
    async fn send(self: &Arc<Self>, term: &Term, frame: Vec<u8>) -> Option<Told> {
        loop {
            let reply = if term.client == self.client {
                Box::pin(self.serve_remote(&frame)).await
            } else {
                let carrier = self.peers.way(term.session, term.client)?;
                if term.owned.is_none() {
                    self.sendings.send(&*carrier, frame.clone()).await?
                } else {
                    let (sender, receiver) = promise();
                    carrier.request(frame.clone(), Box::new(move |reply| sender.send(reply)));
                    receiver.await?
                }
            };
            match reply {
                Ok(reply) => match Told::parse(&reply) {
                    Ok(told) => return Some(told),
                    Err(error) => {
                        tracing::error!(%error, "a node's reply is not understood");
                        return None;
                    }
                },
                Err(CarrierError::TimedOut(_)) => {
                    if self.authority.standing(term.session) != lockd::authority::Standing::Live {
                        return None;
                    }
                }
                Err(CarrierError::Closed(_)) => return None,
            }
        }
    }

    /// Reads from a file that another node serves. `None`: it is served here now.
    pub(in super::super) async fn read_there(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        len: u32,
    ) -> Result<Option<ReadData>, Refusal> {
        let mut pieces = Vec::new();
        let mut done = 0_u64;
        while done < u64::from(len) {
            let part = (u64::from(len) - done).min(DATA_MAX as u64);
            let what = What { kind: Kind::Read, flags: 0, offset: offset.saturating_add(done), len: part };
            let Some((told, _)) = self.redirect(file, what, &[]).await? else {
                // What has been read is thrown away: all of it is read here.
                return Ok(None);
            };
            let data = done_or_refused(told)?.data;
            // L3: nothing is answered without the lease, wherever it was read.
            self.media.lease().await?;
            let read = data.len() as u64;
            if read > 0 {
                let mut buffer = self.media.pool.take(data.len());
                buffer[..data.len()].copy_from_slice(&data);
                pieces.push(Piece::Bytes { buffer, skip: 0, len: data.len() });
            }
            done += read;
            if read < part {
                break;
            }
        }
        Ok(Some(ReadData { pieces }))
    }

    /// Writes to a file that another node serves.
    pub(in super::super) async fn write_there(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        data: &Slice,
        mode: WriteMode,
    ) -> Result<Option<u64>, Refusal> {
        self.media.lease().await?;
        let flags = if mode.append { APPEND } else { 0 }
            | if mode.sync { SYNC } else { 0 }
            | if mode.clear_set_id { CLEAR_SET_ID } else { 0 };
        if data.len() > DATA_MAX {
            return Err(Refusal::Invalid(format!("a write of more than {DATA_MAX} bytes")));
        }
        let what = What { kind: Kind::Write, flags, offset, len: data.len() as u64 };
        let Some((told, term)) = self.redirect(file, what, data).await? else { return Ok(None) };
        let at = done_or_refused(told)?.value;
        if !mode.sync {
            let mut unsynced = file.unsynced.lock();
            *unsynced = Some(unsynced.map_or(term.tenure, |first| first.min(term.tenure)));
        }
        self.maybe_acquire(file, at.saturating_add(data.len() as u64));
        Ok(Some(at))
    }

    /// Syncs a file that another node serves. P9: what was written in a term that ended without handing over is lost.
    pub(in super::super) async fn sync_there(
        self: &Arc<Self>,
        file: &Arc<File>,
        data_only: bool,
    ) -> Result<Option<()>, Refusal> {
        let flags = if data_only { DATA_ONLY } else { 0 };
        let before = file.unsynced.lock().take();
        let what = What { kind: Kind::Sync, flags, offset: 0, len: 0 };
        let restore = || {
            let mut unsynced = file.unsynced.lock();
            *unsynced = unsynced.or(before).min(before.or(*unsynced));
        };
        let is_lost = |since: u64| self.rules.keeps(Rule::P9) && before.is_some_and(|before| before < since);
        let lost = "what was written was lost with the node that served the file";
        match self.redirect(file, what, &[]).await {
            Ok(None) if is_lost(file.since.load(SeqCst)) => Err(Refusal::Io(lost.to_owned())),
            Ok(None) => {
                restore();
                Ok(None)
            }
            Ok(Some((told, term))) => {
                if is_lost(term.since) {
                    return Err(Refusal::Io(lost.to_owned()));
                }
                done_or_refused(told).map(|_| Some(())).inspect_err(|_| restore())
            }
            Err(error) => {
                restore();
                Err(error)
            }
        }
    }

    /// Sets the size of a file that another node serves.
    pub(in super::super) async fn resize_there(
        self: &Arc<Self>,
        file: &Arc<File>,
        size: u64,
        clear_set_id: bool,
    ) -> Result<Option<Attr>, Refusal> {
        let flags = if clear_set_id { CLEAR_SET_ID } else { 0 };
        let what = What { kind: Kind::Resize, flags, offset: size, len: 0 };
        let Some((told, _)) = self.redirect(file, what, &[]).await? else { return Ok(None) };
        attr_of(&done_or_refused(told)?).map(Some)
    }

    /// Allocates, punches or zeroes in a file that another node serves.
    pub(in super::super) async fn allocate_there(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        len: u64,
        how: Allocation,
        keep_size: bool,
    ) -> Result<Option<()>, Refusal> {
        let how = match how {
            Allocation::Allocate => 0,
            Allocation::Punch => PUNCH,
            Allocation::Zero => ZERO,
        };
        let flags = how | if keep_size { KEEP_SIZE } else { 0 };
        let what = What { kind: Kind::Allocate, flags, offset, len };
        let Some((told, _)) = self.redirect(file, what, &[]).await? else { return Ok(None) };
        done_or_refused(told).map(|_| Some(()))
    }

    /// Seals or unseals a file that another node serves.
    pub(in super::super) async fn seal_there(
        self: &Arc<Self>,
        file: &Arc<File>,
        seal: bool,
    ) -> Result<Option<()>, Refusal> {
        let flags = if seal { 0 } else { UNSEAL };
        let what = What { kind: Kind::Seal, flags, offset: 0, len: 0 };
        let Some((told, _)) = self.redirect(file, what, &[]).await? else { return Ok(None) };
        done_or_refused(told).map(|_| Some(()))
    }

    /// Finds data or a hole in a file that another node serves.
    pub(in super::super) async fn seek_there(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        seek: Seek,
    ) -> Result<Option<u64>, Refusal> {
        let flags = if seek == Seek::Hole { HOLE } else { 0 };
        let what = What { kind: Kind::Seek, flags, offset, len: 0 };
        let Some((told, _)) = self.redirect(file, what, &[]).await? else { return Ok(None) };
        Ok(Some(done_or_refused(told)?.value))
    }

    /// Changes attributes of a file that is being written on another node.
    pub(in super::super) async fn set_attr_there(
        self: &Arc<Self>,
        file: &Arc<File>,
        set: &SetAttr,
    ) -> Result<Option<Attr>, Refusal> {
        let data = encode(set).map_err(|error| Refusal::Io(error.to_string()))?;
        let what = What { kind: Kind::SetAttr, flags: 0, offset: 0, len: 0 };
        let Some((told, _)) = self.redirect(file, what, &data).await? else { return Ok(None) };
        attr_of(&done_or_refused(told)?).map(Some)
    }

    /// The attributes of an inode that is being written on another node, as that node knows them. `None`: it does not
    /// serve it (any more).
    pub(in super::super) async fn attr_there(
        self: &Arc<Self>,
        ino: Ino,
        term: &Term,
    ) -> Result<Option<Attr>, Refusal> {
        let (session, client) = self.channel.client();
        let (kind, flags, slot, tenure) = (Kind::GetAttr, 0, None, term.tenure);
        let ask = Ask { kind, flags, session, client, slot, ino, tenure, offset: 0, len: 0 };
        let Some(told) = self.send(term, ask.frame(&[])).await else { return Ok(None) };
        if told.status == Status::Elsewhere {
            return Ok(None);
        }
        let attr = attr_of(&done_or_refused(told)?)?;
        self.media.lease().await?;
        Ok(Some(attr))
    }

    /// Whether the file went to another node in the middle of a request that was refused for that.
    pub(in super::super) fn has_moved(&self, file: &File, error: &Refusal) -> bool {
        matches!(error, Refusal::Stale(_))
            && self.options.cluster
            && file.is_elsewhere()
            && !self.ended.load(SeqCst)
    }
}

fn done_or_refused(told: Told) -> Result<Told, Refusal> {
    match told.status {
        Status::Done => Ok(told),
        Status::Elsewhere | Status::Refused => Err(decode::<Refusal>(&told.data)
            .unwrap_or_else(|error| Refusal::Io(format!("a node's refusal is not understood: {error}")))),
    }
}

fn attr_of(told: &Told) -> Result<Attr, Refusal> {
    decode::<Attr>(&told.data)
        .map_err(|error| Refusal::Io(format!("a node's answer is not understood: {error}")))
}
