//! The executing side: other nodes' requests to files that this node serves.

use std::sync::Arc;
use std::time::Duration;

use lockd::authority::Standing;
use lockd::network::CarrierError;
use lockd::slots::SLOTS_PER_CLIENT;

use super::super::Core;
use super::super::file::File;
use super::super::pages::Cover;
use super::super::task::promise;
use super::wire::{
    APPEND, Ask, CLEAR_SET_ID, DATA_MAX, DATA_ONLY, HOLE, KEEP_SIZE, Kind, PUNCH, SYNC, Status, Told, ZERO,
};
use crate::proto::codec::{decode, encode};
use crate::proto::{Allocation, Answer, Operation, SetAttr};
use crate::refusal::Refusal;
use crate::service::{Piece, ReadData, Seek, WriteMode};
use crate::slots::Begun;
use crate::types::{Attr, Kind as InodeKind};

fn refused(refusal: &Refusal) -> Told {
    Told { status: Status::Refused, value: 0, data: encode(refusal).unwrap_or_default() }
}

fn told<T>(result: Result<T, Refusal>, done: impl FnOnce(T) -> Told) -> Told {
    match result {
        Ok(value) => done(value),
        Err(refusal) => refused(&refusal),
    }
}

fn attributes(attr: Attr) -> Told {
    match encode(&attr) {
        Ok(data) => Told::done(0, data),
        Err(error) => refused(&Refusal::Io(error.to_string())),
    }
}

impl Core {
    /// Executes a frame. An error means that no answer can be given: the asker sends again.
    pub(in super::super) async fn serve_remote(
        self: &Arc<Self>,
        frame: &[u8],
    ) -> Result<Vec<u8>, CarrierError> {
        let told = match Ask::parse(frame) {
            Ok((ask, data)) => self.execute_remote(&ask, data).await,
            Err(error) => Some(refused(&Refusal::Invalid(error.to_string()))),
        };
        told.map(|told| told.frame()).ok_or(CarrierError::TimedOut(Duration::ZERO))
    }

    /// `None`: an earlier copy is being executed.
    async fn execute_remote(self: &Arc<Self>, ask: &Ask, data: &[u8]) -> Option<Told> {
        if self.authority.standing(ask.session) != Standing::Live {
            return Some(refused(&Refusal::Stale(format!("session {} is over", ask.session))));
        }
        if ask.kind == Kind::GetAttr {
            return Some(self.remote_attr(ask).await);
        }
        let writes = ask.kind.changes() && ask.kind != Kind::SetAttr;
        let file = match self.hold(ask.ino, writes).await {
            Ok(file) => file,
            // The asker has it open; here it may be on its way out.
            Err(Refusal::Stale(_) | Refusal::NotFound) => return Some(Told::elsewhere()),
            Err(refusal) => return Some(refused(&refusal)),
        };
        if file.is_elsewhere() && self.is_home() {
            // Refused: another node serves it, which is found out below.
            let _ = self.serve_again(&file).await;
        }
        let told = self.execute_on(&file, ask, data).await;
        self.let_go(&file);
        told
    }

    async fn remote_attr(self: &Arc<Self>, ask: &Ask) -> Told {
        match self.channel.call(Operation::GetAttr { ino: ask.ino }).await {
            Ok(Answer::Entry(attr)) if attr.kind == InodeKind::File => {
                let closed = self.closed.load(std::sync::atomic::Ordering::SeqCst);
                told(self.known(attr, closed).await, attributes)
            }
            Ok(_) => Told::elsewhere(),
            Err(refusal) => refused(&refusal),
        }
    }

    /// In the term that the asker names, and in no other: the file does not leave while the guest is inside.
    async fn execute_on(self: &Arc<Self>, file: &Arc<File>, ask: &Ask, data: &[u8]) -> Option<Told> {
        let Some(_guest) = file.guests.try_enter() else { return Some(Told::elsewhere()) };
        if file.tenure() != Some(ask.tenure) {
            return Some(Told::elsewhere());
        }
        if !ask.kind.changes() {
            return Some(self.perform(file, ask, data, None).await);
        }
        let Some((slot, sequence)) = ask.slot else {
            return Some(refused(&Refusal::Invalid("a change needs a reply slot".to_owned())));
        };
        if slot.0 >= SLOTS_PER_CLIENT {
            return Some(refused(&Refusal::Invalid(format!("no client has {slot}"))));
        }
        {
            let mut slots = file.guest_slots.lock();
            match slots.begin(self.rules, ask.client, slot, sequence) {
                Begun::Execute => {}
                Begun::Repeated(reply) => {
                    let lost = || refused(&Refusal::Io("the reply that was kept is damaged".to_owned()));
                    return Some(Told::parse(&reply).unwrap_or_else(|_| lost()));
                }
                Begun::UnderWay => return None,
                Begun::Refused(refusal) => return Some(refused(&Refusal::Invalid(refusal.to_string()))),
            }
        }
        let told = self.perform_beside_pages(file, ask, data).await;
        file.guest_slots.lock().put(ask.client, slot, sequence, told.frame());
        Some(told)
    }

    /// Executes a change, then has the kernel of this node drop the pages that it has made old. Then the change may be
    /// answered.
    async fn perform_beside_pages(self: &Arc<Self>, file: &Arc<File>, ask: &Ask, data: &[u8]) -> Told {
        // What the own kernel asks for it has done to its own pages, and it holds them until it is answered.
        if !self.has_page_cache() || ask.client == self.client {
            return self.perform(file, ask, data, None).await;
        }
        let cover = file.cover();
        let told = self.perform(file, ask, data, Some(&cover)).await;
        // Looked at after the execution: who opens the file from now on reads what it has left.
        if let Some(range) = cover.range().filter(|_| file.has_pages()) {
            self.drop_pages(file, range).await;
        }
        told
    }

    async fn perform(
        self: &Arc<Self>,
        file: &Arc<File>,
        ask: &Ask,
        data: &[u8],
        cover: Option<&Cover>,
    ) -> Told {
        let has = |flag: u8| ask.flags & flag != 0;
        match ask.kind {
            Kind::Read => {
                let len = u32::try_from(ask.len.min(DATA_MAX as u64)).unwrap_or(u32::MAX);
                let (sender, receiver) = promise();
                self.read(file, ask.offset, len, Box::new(move |data| sender.send(data)));
                let dropped = || Err(Refusal::Io("the read was dropped".to_owned()));
                told(receiver.await.unwrap_or_else(dropped), |data| Told::done(0, bytes_of(&data)))
            }
            Kind::Write => {
                let mut buffer = self.media.pool.take(data.len());
                buffer[..data.len()].copy_from_slice(data);
                let mode = WriteMode {
                    append: has(APPEND),
                    clear_set_id: has(CLEAR_SET_ID),
                    sync: has(SYNC),
                    from_cache: false,
                };
                let data = buffer.share().part(0..data.len());
                let written = self.write_any(file, ask.offset, data, mode, cover).await;
                told(written, |at| Told::done(at, Vec::new()))
            }
            Kind::Sync => told(self.sync_file(file, has(DATA_ONLY)).await, |()| Told::done(0, Vec::new())),
            Kind::Resize => told(self.resize(file, ask.offset, has(CLEAR_SET_ID), cover).await, attributes),
            Kind::Allocate => {
                let how = match (has(PUNCH), has(ZERO)) {
                    (true, _) => Allocation::Punch,
                    (_, true) => Allocation::Zero,
                    _ => Allocation::Allocate,
                };
                let done = self.allocate_here(file, ask.offset, ask.len, (how, has(KEEP_SIZE)), cover).await;
                told(done, |()| Told::done(0, Vec::new()))
            }
            Kind::Seek => {
                let what = if has(HOLE) { Seek::Hole } else { Seek::Data };
                told(self.seek_here(file, ask.offset, what).await, |at| Told::done(at, Vec::new()))
            }
            Kind::SetAttr => match decode::<SetAttr>(data) {
                Ok(set) => told(self.set_attr(file.ino, set).await, attributes),
                Err(error) => refused(&Refusal::Invalid(error.to_string())),
            },
            Kind::GetAttr => {
                refused(&Refusal::Invalid("attributes are answered without the file".to_owned()))
            }
        }
    }
}

fn bytes_of(data: &ReadData) -> Vec<u8> {
    let len = data.pieces.iter().map(|piece| match piece {
        Piece::Bytes { len, .. } | Piece::Zeros(len) => *len,
    });
    let mut all = Vec::with_capacity(len.sum());
    for piece in &data.pieces {
        match piece {
            Piece::Bytes { buffer, skip, len } => all.extend_from_slice(&buffer[*skip..skip + len]),
            Piece::Zeros(len) => all.resize(all.len() + len, 0),
        }
    }
    all
}
