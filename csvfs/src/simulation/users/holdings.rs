//! What is held beside files: users lock bytes of files, and start and move virtual machines.

use std::sync::Arc;
use std::time::Duration;

use lockd::client::ClientError;
use lockd::ids::{ResourceId, Ticket};
use lockd::locks::{
    ByteRange, Listed, LockError, LockKind, LockMode, LockOutcome, LockOwner, LockRequest, LockState,
};
use lockd::machine::{Answer, Query, Refusal as LockdRefusal};
use rand::Rng;

use super::{FILES, Users, What};
use crate::cluster::Control;
use crate::refusal::Refusal;
use crate::simulation::VOLUME;
use crate::simulation::holdings::{Held, Runs};
use crate::simulation::member::Member;
use crate::simulation::world::World;

/// Virtual machines.
const MACHINES: usize = 2;
/// Bytes of a part of a file that is locked, and how many parts there are.
const PART: u64 = 100;
/// See [`PART`].
const PARTS: u64 = 4;
/// How long a lock is waited for, and how often it is looked at.
const LOOKS: usize = 4;
/// See [`LOOKS`].
const LOOK: Duration = Duration::from_millis(150);

/// Waits for a lock, for a while: whether it was granted.
fn await_lock(
    world: &World,
    member: &Member,
    (resource, request): (&ResourceId, &LockRequest),
    ticket: Ticket,
) -> Result<bool, ClientError> {
    let is_it = |listed: &Listed<ResourceId>| listed.key == *resource && listed.lock == *request;
    for look in 0..=LOOKS {
        if look == LOOKS {
            member.agent.cancel(ticket)?;
        } else {
            member.rest(world, LOOK);
        }
        let Answer::Locks(locks) = member.agent.query(Query::ClientLocks(request.owner.client))? else {
            return Err(ClientError::Unexpected);
        };
        let states = |wanted: &dyn Fn(LockState) -> bool| {
            locks.iter().any(|info| is_it(&info.listed) && wanted(info.listed.state))
        };
        if !states(&|state| state == LockState::Waiting(ticket)) {
            return Ok(states(&|state| matches!(state, LockState::Held(_))));
        }
    }
    Err(ClientError::Unexpected)
}

impl Users {
    /// Does `act`, which waits. Nothing if the process has died meanwhile.
    fn waiting<T>(
        self: &Arc<Self>,
        world: &Arc<World>,
        member: &Arc<Member>,
        what: What,
        act: impl FnOnce() -> Result<T, ClientError>,
    ) -> Option<T> {
        let name = super::name_of(&what);
        let number = self.state.lock().begin(member, what);
        world.schedule.note(name, &[number, member.number as u64]);
        let result = act();
        world.schedule.note("ends", &[number, u64::from(result.is_ok())]);
        self.state.lock().end(number)?;
        if let (Err(error), false) = (&result, world.schedule.is_over()) {
            self.refused(world, name, &Refusal::Stale(error.to_string()));
        }
        result.ok()
    }

    /// Locks a part of a file, or unlocks what is locked. Waits.
    pub(super) fn lock(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, user: usize) {
        let position = world.schedule.draw(|random| random.random_range(0..FILES));
        let found = {
            let state = self.state.lock();
            state.current[position].map(|file| (file, state.files[&file].ino))
        };
        let Some((file, ino)) = found else { return self.step_later(world, member, user) };
        let (session, resource) = (member.session(), ResourceId::File(VOLUME, ino.0));
        let owner = LockOwner { client: member.client(), kind: LockKind::Posix, id: user as u64 };
        let held = self.state.lock().holdings.lock(session, file, owner.id);
        if let Some(held) = held {
            self.state.lock().holdings.unlocks(&held);
            let unlock = || member.agent.unlock(&resource, owner, held.request.range);
            self.waiting(world, member, What::Lock, unlock);
            return self.step_later(world, member, user);
        }
        let part = world.schedule.draw(|random| random.random_range(0..PARTS));
        let range = ByteRange::new(part * PART, (part + 2) * PART - 1).expect("not empty");
        let mode = if world.schedule.happens(0.4) { LockMode::Shared } else { LockMode::Exclusive };
        let request = LockRequest { owner, pid: 1, mode, range };
        let waits = world.schedule.happens(0.5);
        let granted = self.waiting(world, member, What::Lock, || {
            match member.agent.lock(&resource, request, waits)? {
                LockOutcome::Granted(_) => Ok(true),
                LockOutcome::Waiting(ticket) => await_lock(world, member, (&resource, &request), ticket),
                LockOutcome::Refused(LockError::WouldBlock(_) | LockError::Deadlock) => Ok(false),
                LockOutcome::Refused(_) => Err(ClientError::Unexpected),
            }
        });
        if granted == Some(true) {
            let locked = self.state.lock().holdings.locked(Held { session, file, request });
            if let Err(wrong) = locked {
                world.schedule.fail(wrong);
            }
        }
        self.step_later(world, member, user);
    }

    /// Unlocks all that is locked on a node. Waits.
    ///
    /// # Errors
    /// What is wrong.
    pub fn unlock_all(&self, member: &Member) -> Result<(), String> {
        let locks = self.state.lock().holdings.locks(member.session());
        for Held { file, request, .. } in locks {
            let ino = self.inode(file).ok_or("a lock of no file")?;
            let unlocked =
                member.agent.unlock(&ResourceId::File(VOLUME, ino.0), request.owner, request.range);
            unlocked.map_err(|error| format!("node {}: a lock does not end: {error}", member.number))?;
        }
        self.state.lock().holdings.leaves(member.session());
        Ok(())
    }

    /// Starts a virtual machine that runs nowhere, or moves one of this node, as somebody else may at the same time.
    /// Waits.
    pub(super) fn run_machine(self: &Arc<Self>, world: &Arc<World>, member: &Arc<Member>, user: usize) {
        let machine = world.schedule.draw(|random| random.random_range(0..MACHINES));
        let targets: Vec<_> =
            world.mounted().into_iter().filter(|other| other.number != member.number).collect();
        let target = world.schedule.draw(|random| random.random_range(0..targets.len() + 1));
        let target = targets.get(target).map(|target| (target.session(), target.agent.host()));
        let (resource, agent) = (ResourceId::Vm(format!("machine {machine}")), &member.agent);
        let session = member.session();
        let ran = self.waiting(world, member, What::Machine, || {
            let Answer::Resource(info) = agent.query(Query::Resource(resource.clone()))? else {
                return Err(ClientError::Unexpected);
            };
            let holder = info.holders.first().map(|holder| (holder.client, holder.epoch));
            let refused = |error: ClientError| match error {
                // Another was faster, or the target is gone.
                ClientError::Refused(refusal) => match *refusal {
                    LockdRefusal::Held { .. }
                    | LockdRefusal::NotHeld { .. }
                    | LockdRefusal::NotTarget { .. } => Ok(Ok(())),
                    other => Err(ClientError::Refused(Box::new(other))),
                },
                error => Err(error),
            };
            match (holder, target) {
                (None, _) => agent.start_machine(&resource).map_or_else(refused, |epoch| {
                    Ok(self.state.lock().holdings.started(machine, Runs { session, epoch }))
                }),
                (Some((client, from)), Some((session, to))) if client == agent.host() => {
                    // Whoever decides that takes his time, and others decide, too.
                    member.rest(world, world.schedule.between(1_000, 400_000));
                    self.state.lock().holdings.hands_over(machine, from, session);
                    agent.move_machine(&resource, from, to).map_or_else(refused, |epoch| {
                        Ok(self.state.lock().holdings.handed_over(machine, from, Runs { session, epoch }))
                    })
                }
                _ => Ok(Ok(())),
            }
        });
        if let Some(Err(wrong)) = ran {
            world.schedule.fail(wrong);
        }
        self.step_later(world, member, user);
    }
}
