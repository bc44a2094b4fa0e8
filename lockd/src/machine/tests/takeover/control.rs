//! What is sent to lockd, and what lockd makes of it.

use super::super::super::*;
use super::super::cluster::*;
use super::scene::{A, B, C, Life, MOUNTS, Scene, Stage, Way};
use super::{Fault, Fence, Takeover, World};
use crate::ids::{Epoch, Sequence, SlotId};
use crate::rules::Rule;

/// A message that is on its way, or may come again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Message {
    /// The mount's so many-th acquisition.
    Acquire(usize, u8),
    Release(usize, u64),
    /// A hands the role to B.
    Transfer(u64),
    /// The session of the mount's node has lapsed, or its process is dead.
    End(usize),
    Drained {
        victim: usize,
        reporter: usize,
    },
    /// After so many waits.
    Fenced(usize, u8),
}

impl Takeover {
    pub(super) fn victim(&self, mount: usize) -> Victim {
        match self.scenario.fault {
            Fault::Killed => Victim::Client(self.clients[mount]),
            _ => Victim::Session(self.sessions[mount]),
        }
    }

    fn command(&self, message: Message) -> Command {
        let in_slot = |mount: usize, slot, sequence, operation| Command::Client {
            client: self.clients[mount],
            slot: SlotId(slot),
            sequence: Sequence(sequence),
            operation,
        };
        let report = |victim, reporter: usize, report| Command::FenceReport {
            volume: VOLUME,
            victim: self.victim(victim),
            reporter: self.sessions[reporter],
            report,
        };
        match message {
            // A has used its slot 0 once.
            Message::Acquire(mount, number) => {
                in_slot(mount, 0, u64::from(number) + u64::from(mount == A), acquisition(&COORDINATOR))
            }
            Message::Release(mount, epoch) => {
                let operation = Operation::Release { resource: COORDINATOR, epoch: Epoch(epoch) };
                in_slot(mount, 1, 1, operation)
            }
            Message::Transfer(epoch) => {
                let moves = vec![moving(&COORDINATOR, Epoch(epoch), self.clients[A], self.clients[B])];
                let (escrow, pinned) = (false, false);
                in_slot(A, 2, 1, Operation::Transfer { cookie: Cookie(1), moves, escrow, pinned })
            }
            Message::End(mount) => match self.victim(mount) {
                Victim::Client(client) => Command::ClientGone { session: self.sessions[mount], client },
                Victim::Session(session) => Command::EndSession { session, cause: EndCause::Lapsed },
            },
            Message::Drained { victim, reporter } => report(victim, reporter, Report::Drained),
            Message::Fenced(victim, _) => {
                let method = match self.scenario.fence {
                    Fence::Target => FenceMethod::NbdTarget,
                    Fence::Lease => FenceMethod::Lease,
                };
                report(victim, C, Report::Fenced { method })
            }
        }
    }

    /// What may be sent now for the first time.
    pub(super) fn sendable(&self, world: &World) -> Vec<Message> {
        let scene = &world.scene;
        let mut messages = Vec::new();
        for mount in MOUNTS {
            self.offered_by(world, mount, &mut messages);
            if let Some(fence) = world.lockd.fences.get(&(VOLUME, self.victim(mount))) {
                self.about_fence(scene, mount, fence, &mut messages);
            }
        }
        messages.retain(|message| !scene.network.contains_key(message));
        messages
    }

    fn offered_by(&self, world: &World, mount: usize, messages: &mut Vec<Message>) {
        let (scene, it) = (&world.scene, &world.scene.mounts[mount]);
        // L1: a session is ended when its lease is over.
        let lapses = self.scenario.fault != Fault::Killed && mount == A && scene.faults_left > 0;
        // A coordinator that a stranger has put out lives on for lockd.
        let is_over = matches!(it.life, Life::Paused | Life::Over)
            && self.is_listed(world, mount)
            && !self.scenario.stranger;
        if is_over || (lapses && !self.guards.keeps(Rule::L1)) {
            messages.push(Message::End(mount));
        }
        if it.life != Life::Runs {
            return;
        }
        if it.gives_back > 0 {
            messages.push(Message::Release(mount, it.gives_back));
        }
        if it.hands_on {
            messages.push(Message::Transfer(it.had));
        }
        let may = u8::from(mount != A || self.scenario.moves);
        if world.role().is_none() && it.office.is_none() && it.acquisitions < may {
            messages.push(Message::Acquire(mount, it.acquisitions + 1));
        }
    }

    fn about_fence(&self, scene: &Scene, victim: usize, fence: &state::Fence, messages: &mut Vec<Message>) {
        let carried = scene.mounts[victim].lingering.is_some_and(|lingering| lingering.way == Way::Carried);
        for reporter in MOUNTS {
            let lives = self.scenario.fault == Fault::Killed || scene.mounts[reporter].life == Life::Runs;
            let waits = fence.waiting.contains(&self.sessions[reporter]);
            // Node 3 reports when nothing that it carries is under way.
            if lives && waits && !(reporter == C && carried) {
                messages.push(Message::Drained { victim, reporter });
            }
        }
        if scene.refused[victim] || self.scenario.fence == Fence::Lease {
            messages.push(Message::Fenced(victim, scene.waits));
        }
    }

    pub(super) fn send(&self, scene: &mut Scene, message: Message) {
        // What is retried comes twice, or once, or never.
        let retried = matches!(message, Message::Acquire(..) | Message::Transfer(_) | Message::Release(..));
        scene.network.insert(message, if retried { self.scenario.copies } else { 1 });
        if let Message::Acquire(mount, number) = message {
            scene.mounts[mount].acquisitions = number;
        }
    }

    pub(super) fn apply(&self, world: &mut World, message: Message) {
        let time_ns = (1 + 100 * u64::from(world.scene.waits)) * SECOND_NS;
        let (reply, _) = world.lockd.apply(self.guards.rules, time_ns, &self.command(message));
        // What watchers are told does not matter here, and would tell apart what is the same.
        world.lockd.events = Default::default();
        if let Err(wrong) = world.lockd.check() {
            world.scene.broken.get_or_insert(wrong);
        }
        if let (Message::Transfer(epoch), Reply::Refused(_)) = (message, reply) {
            let source = &mut world.scene.mounts[A];
            if source.hands_on {
                (source.hands_on, source.gives_back) = (false, epoch);
            }
        }
    }

    /// Whether a wait for lease and grace would change anything.
    pub(super) fn waits(&self, world: &World) -> bool {
        let is_early = |mount: &usize| {
            let ended = world.lockd.sessions.get(&self.sessions[*mount]);
            let over = ended.and_then(|session| match session.state {
                SessionState::Ended { lease_over_ns, .. } => Some(lease_over_ns),
                SessionState::Live => None,
            });
            over.is_some_and(|over| over > (1 + 100 * u64::from(world.scene.waits)) * SECOND_NS)
        };
        self.scenario.fence == Fence::Lease && MOUNTS.iter().any(is_early)
    }

    /// Whether lockd knows the mount still: not before it is fenced does it forget one.
    pub(super) fn is_listed(&self, world: &World, mount: usize) -> bool {
        world.lockd.clients.contains_key(&self.clients[mount])
    }

    pub(super) fn is_live(&self, world: &World, mount: usize) -> bool {
        world.lockd.is_live(self.clients[mount])
    }

    /// The mount that has the role, and in which epoch.
    pub(super) fn coordinator(&self, world: &World) -> Option<(usize, u64)> {
        let (client, epoch) = world.role()?;
        let mount = MOUNTS.into_iter().find(|mount| self.clients[*mount] == client)?;
        Some((mount, epoch))
    }

    /// The one that serves nodes which follow the role.
    pub(super) fn begun(&self, world: &World) -> Option<(usize, u64)> {
        let (mount, epoch) = self.coordinator(world)?;
        let it = &world.scene.mounts[mount];
        let office = it.office.as_ref().filter(|office| office.role == epoch && it.life == Life::Runs)?;
        matches!(office.stage, Stage::Assembles | Stage::Serves).then_some((mount, epoch))
    }
}
