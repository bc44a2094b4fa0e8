//! What programs hold in the cluster beside files: locks, and virtual machines. Nothing of it is given to another before
//! they give it back or their session is fenced (invariants 4 and 9), whatever has become of them.

use std::collections::{BTreeMap, BTreeSet};

use lockd::ids::{ClientId, Epoch, SessionId};
use lockd::locks::{LockMode, LockRequest};

/// A lock of a file that a program has been granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Under which session.
    pub session: SessionId,
    /// Of which file.
    pub file: u16,
    /// Owner, mode, bytes.
    pub request: LockRequest,
}

/// Where a virtual machine runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Runs {
    /// Under which session.
    pub session: SessionId,
    /// In which epoch.
    pub epoch: Epoch,
}

/// See the module.
#[derive(Default, Debug)]
pub struct Holdings {
    locks: Vec<Held>,
    machines: BTreeMap<usize, Runs>,
    /// Epochs in which a machine was handed over.
    handed_over: BTreeSet<(usize, Epoch)>,
    /// Who was to get a machine of an epoch: whether he has got it is known when that was answered.
    begun: Vec<(usize, Epoch, SessionId)>,
    fenced: BTreeSet<SessionId>,
}

impl Holdings {
    /// The lock that an owner holds of a file.
    pub fn lock(&self, session: SessionId, file: u16, owner: u64) -> Option<Held> {
        let is_it =
            |held: &&Held| held.session == session && held.file == file && held.request.owner.id == owner;
        self.locks.iter().find(is_it).copied()
    }

    /// What the programs of a session have locked.
    pub fn locks(&self, session: SessionId) -> Vec<Held> {
        self.locks.iter().filter(|held| held.session == session).copied().collect()
    }

    /// A lock was granted.
    ///
    /// # Errors
    /// Whose lock is in its way.
    pub fn locked(&mut self, lock: Held) -> Result<(), String> {
        if self.fenced.contains(&lock.session) {
            return Ok(());
        }
        let conflicts = |held: &&Held| {
            held.file == lock.file
                && held.request.owner != lock.request.owner
                && held.request.range.overlaps(lock.request.range)
                && LockMode::Exclusive == held.request.mode.max(lock.request.mode)
        };
        match self.locks.iter().find(conflicts) {
            Some(held) => Err(format!("{lock:?} was granted, and there is {held:?}")),
            None => {
                self.locks.push(lock);
                Ok(())
            }
        }
    }

    /// Its owner is about to give a lock back.
    pub fn unlocks(&mut self, lock: &Held) {
        self.locks.retain(|held| held != lock);
    }

    /// A machine was started.
    ///
    /// # Errors
    /// Where it may run.
    pub fn started(&mut self, machine: usize, runs: Runs) -> Result<(), String> {
        let may_start = |session| session == runs.session || self.fenced.contains(&session);
        let has_left = |now: Runs| {
            let mut begun = self.begun.iter();
            begun.any(|(of, from, to)| *of == machine && *from >= now.epoch && may_start(*to))
        };
        match self.machines.get(&machine).copied() {
            Some(now) if now.epoch < runs.epoch && !may_start(now.session) && !has_left(now) => Err(format!(
                "invariant 9: machine {machine} is started as {runs:?}, and it may run as {now:?}"
            )),
            now => {
                self.arrived(machine, now, runs);
                Ok(())
            }
        }
    }

    /// A machine is about to be handed over, by whoever has it in the epoch `from`.
    pub fn hands_over(&mut self, machine: usize, from: Epoch, to: SessionId) {
        self.begun.push((machine, from, to));
    }

    /// A machine was handed over, by whoever had it in the epoch `from`.
    ///
    /// # Errors
    /// If it was before.
    pub fn handed_over(&mut self, machine: usize, from: Epoch, runs: Runs) -> Result<(), String> {
        if !self.handed_over.insert((machine, from)) {
            return Err(format!("invariant 9: machine {machine} was handed over twice in {from}"));
        }
        self.arrived(machine, self.machines.get(&machine).copied(), runs);
        Ok(())
    }

    fn arrived(&mut self, machine: usize, now: Option<Runs>, runs: Runs) {
        // What is heard of last has not always happened last.
        if now.is_none_or(|now| now.epoch < runs.epoch) {
            self.machines.insert(machine, runs);
        }
    }

    /// The programs of a session end by themselves.
    pub fn leaves(&mut self, session: SessionId) {
        self.locks.retain(|held| held.session != session);
        self.machines.retain(|_, runs| runs.session != session);
    }

    /// The locks of a session's mount end with it, by themselves.
    pub fn unmounts(&mut self, session: SessionId) {
        self.locks.retain(|held| held.session != session);
    }

    /// A mount has died and is fenced: its locks are free, and not those of the next mount of its session.
    pub fn mount_fenced(&mut self, mount: ClientId) {
        self.locks.retain(|held| held.request.owner.client != mount);
    }

    /// A session is fenced: what it held may be given away.
    pub fn fenced(&mut self, session: SessionId) {
        self.fenced.insert(session);
        self.leaves(session);
    }
}
