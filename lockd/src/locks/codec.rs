//! A table as bytes: its files, queues and numbers. The index is made again, and nothing malformed is let in.

use std::collections::BTreeMap;

use bincode::de::{BorrowDecoder, Decoder};
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Decode, Encode};

use super::held::{Change, Held};
use super::index::Index;
use super::lock::{LockKind, LockOwner, LockRequest};
use super::range::ByteRange;
use super::table::LockTable;
use crate::ids::{GrantId, Ticket};

/// No table lives long enough to count beyond this; a decoded one that has could overflow.
const NUMBER_MAX: u64 = u64::MAX >> 1;

impl<K: Encode + Ord> Encode for LockTable<K> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.limits.encode(encoder)?;
        self.last_ticket.encode(encoder)?;
        self.last_grant.encode(encoder)?;
        self.resources.encode(encoder)
    }
}

impl<Context, K: Decode<Context> + Ord + Clone> Decode<Context> for LockTable<K> {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let table = Self {
            limits: Decode::decode(decoder)?,
            last_ticket: Decode::decode(decoder)?,
            last_grant: Decode::decode(decoder)?,
            resources: Decode::decode(decoder)?,
            index: Index::new(),
        };
        table.indexed().map_err(DecodeError::Other)
    }
}

impl<'de, Context, K: Decode<Context> + Ord + Clone> BorrowDecode<'de, Context> for LockTable<K> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Decode::decode(decoder)
    }
}

impl<K: Ord + Clone> LockTable<K> {
    /// Checks what was decoded and makes the index.
    fn indexed(mut self) -> Result<Self, &'static str> {
        if self.last_ticket > NUMBER_MAX || self.last_grant > NUMBER_MAX {
            return Err("the lock table's numbers are beyond what can be reached");
        }
        for (key, resource) in &self.resources {
            if resource.is_empty() {
                return Err("the lock table names a file without locks");
            }
            for (owner, held) in &resource.held {
                held.check(*owner, GrantId(self.last_grant))?;
                let change = Change { removed: 0, added: held.len() };
                self.index.note_held(key, *owner, change, true);
                let mut locks = held.requests(*owner);
                if locks.any(|lock| resource.blockers(&lock).next().is_some()) {
                    return Err("the lock table has two locks that conflict");
                }
                if self.index.usage(owner.client).locks > self.limits.locks_per_client as usize {
                    return Err("the lock table has more locks than its limit");
                }
            }
            check_queue(&resource.queue, Ticket(self.last_ticket))?;
            for (ticket, request) in &resource.queue {
                if self.index.key_of(*ticket).is_some() {
                    return Err("the lock table has a ticket twice");
                }
                self.index.note_waiting(*ticket, key, request.owner);
                let client = request.owner.client;
                if self.index.usage(client).waiters > self.limits.waiters_per_client as usize {
                    return Err("the lock table has more waiting requests than its limit");
                }
            }
        }
        Ok(self)
    }
}

fn check_queue(queue: &BTreeMap<Ticket, LockRequest>, last: Ticket) -> Result<(), &'static str> {
    for (ticket, request) in queue {
        if *ticket > last {
            return Err("the lock table has a ticket that was never given out");
        }
        if request.normalised() != *request {
            return Err("the lock table has a flock of a part of a file");
        }
    }
    Ok(())
}

impl Held {
    fn requests(&self, owner: LockOwner) -> impl Iterator<Item = LockRequest> {
        self.overlapping(ByteRange::WHOLE).map(move |(range, piece)| LockRequest {
            owner,
            pid: piece.pid,
            mode: piece.mode,
            range,
        })
    }

    fn check(&self, owner: LockOwner, last: GrantId) -> Result<(), &'static str> {
        if self.is_empty() {
            return Err("the lock table names an owner without locks");
        }
        let mut end_before = None;
        for (start, piece) in self.iter() {
            let range = ByteRange::new(start, piece.end).ok_or("a lock ends before it starts")?;
            if end_before.is_some_and(|end| end >= start) {
                return Err("the lock table has an owner with two locks on one byte");
            }
            if owner.kind == LockKind::Flock && range != ByteRange::WHOLE {
                return Err("the lock table has a flock of a part of a file");
            }
            if piece.grant > last {
                return Err("the lock table has a grant that was never made");
            }
            end_before = Some(piece.end);
        }
        Ok(())
    }
}
