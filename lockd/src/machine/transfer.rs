//! Handing a set of resources over, all or nothing (L6), with its locks (L8).
//!
//! What nobody holds may be in the set: whoever serves such files (the coordinator's mount) names them with
//! [`Epoch::NOBODY`], and may give them to itself.

use std::collections::{BTreeMap, BTreeSet};

use super::bounds::{Bound, ESCROWS_MAX, EVENT_RESOURCES_MAX, MOVES_MAX, RESOURCES_MAX};
use super::command::{Cookie, HoldMode, Move};
use super::event::{Audience, EventKind};
use super::reply::{Refusal, Reply};
use super::state::{Holding, Outcome, State};
use crate::ids::{ClientId, Epoch, ResourceId, SessionId};
use crate::rules::{Rule, Rules};

impl State {
    pub(super) fn transfer(
        &mut self,
        rules: Rules,
        client: ClientId,
        cookie: Cookie,
        moves: &[Move],
        (escrow, pinned): (bool, bool),
    ) -> Outcome {
        if moves.len() > MOVES_MAX {
            return Err(Refusal::Full(Bound::Moves));
        }
        let source = self.clients.get(&client).ok_or(Refusal::ClientEnded(client))?.session;
        let target = self.check_transfer(rules, source, moves)?;
        if escrow {
            self.check_escrow(cookie, moves)?;
        }
        // One epoch for the whole set: it is above all earlier ones of each.
        let epoch = self.next_epoch()?;
        let mut counts: BTreeMap<ClientId, u64> = BTreeMap::new();
        for moved in moves {
            let since_ns = self.time_ns;
            let mut holding =
                Holding { client: moved.to, mode: HoldMode::Exclusive, epoch, since_ns, pinned };
            let from = match self.resources.get_mut(&moved.resource).and_then(|held| held.first_mut()) {
                Some(held) => {
                    let from = held.client;
                    holding.pinned |= held.pinned;
                    *held = holding;
                    self.forget_held(from, &moved.resource);
                    from
                }
                None if moved.epoch == Epoch::NOBODY => {
                    self.resources.insert(moved.resource.clone(), vec![holding]);
                    moved.from
                }
                // With all rules kept, every other one of the set is there.
                None => continue,
            };
            self.held.entry(moved.to).or_default().insert(moved.resource.clone());
            *counts.entry(moved.to).or_default() += 1;
            if escrow {
                self.put_in_escrow(&moved.resource, from, source, cookie, target);
            }
        }
        for (to, count) in counts {
            let arrived = EventKind::Arrived { cookie, from: source, epoch, count };
            self.tell(Audience::Client(to), arrived);
        }
        let resources = moves.iter().take(EVENT_RESOURCES_MAX).map(|moved| moved.resource.clone()).collect();
        let count = moves.len() as u64;
        let moved = EventKind::Moved { from: source, to: target, epoch, resources, count };
        self.tell(Audience::Everyone, moved);
        Ok(Reply::Transferred { epoch })
    }

    /// Everything that L6 asks, before anything is changed. Tells the target's session.
    fn check_transfer(&self, rules: Rules, source: SessionId, moves: &[Move]) -> Result<SessionId, Refusal> {
        let first = moves.first().ok_or(Refusal::NothingToMove)?;
        let added = moves.iter().filter(|moved| moved.epoch == Epoch::NOBODY).count();
        if self.resources.len() + added > RESOURCES_MAX {
            return Err(Refusal::Full(Bound::Resources));
        }
        let target_of = |moved: &Move| {
            let refusal = || Refusal::NotTarget { resource: moved.resource.clone(), to: moved.to };
            let to_itself = moved.to == moved.from && moved.epoch != Epoch::NOBODY;
            if !self.is_live(moved.to) || to_itself {
                return Err(refusal());
            }
            self.clients.get(&moved.to).map(|client| client.session).ok_or_else(refusal)
        };
        let target = target_of(first)?;
        if !rules.keeps(Rule::L6) {
            return Ok(target);
        }
        let mut seen = BTreeSet::new();
        for moved in moves {
            let Move { resource, epoch, from, to } = moved;
            if !seen.insert(resource) {
                return Err(Refusal::MovedTwice(resource.clone()));
            }
            let of_source = self.clients.get(from).is_some_and(|client| client.session == source);
            if !of_source || !self.is_live(*from) {
                return Err(Refusal::NotSource { resource: resource.clone(), from: *from });
            }
            if target_of(moved)? != target {
                return Err(Refusal::NotTarget { resource: resource.clone(), to: *to });
            }
            self.check_kind(*to, resource)?;
            if *epoch == Epoch::NOBODY {
                self.check_kind(*from, resource)?;
                let held = self.resources.get(resource).and_then(|holdings| holdings.first());
                match held {
                    None => continue,
                    Some(held) => {
                        let holder = self.show(held);
                        return Err(Refusal::Held { resource: resource.clone(), holder });
                    }
                }
            }
            let holding = self.holding(*from, resource);
            let held = |holding: &Holding| holding.epoch == *epoch && holding.mode == HoldMode::Exclusive;
            if !holding.is_some_and(held) {
                let (resource, client, epoch) = (resource.clone(), *from, *epoch);
                return Err(Refusal::NotHeld { resource, client, epoch });
            }
        }
        Ok(target)
    }

    fn check_escrow(&self, cookie: Cookie, moves: &[Move]) -> Result<(), Refusal> {
        if self.escrows.values().any(|escrow| escrow.cookie == cookie) {
            return Err(Refusal::CookieInUse(cookie));
        }
        let locked = |resource: &ResourceId| self.locks.count_all(resource).0 > 0;
        let added = moves.iter().filter(|moved| locked(&moved.resource)).count();
        if self.escrows.len() + added > ESCROWS_MAX { Err(Refusal::Full(Bound::Escrows)) } else { Ok(()) }
    }
}
