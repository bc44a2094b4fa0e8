//! What a mount does that has the role: it opens the store (V1, V2, V12), waits for the nodes (V9), serves (V4).
//!
//! A step is one write with what the mount knows before it and does after it. It lands at once, or its sender dies or stands
//! still and it lingers.

use std::collections::BTreeSet;

use super::lun::{Claim, Record, Store, Superblock, Write};
use super::scene::{B, C, D, Life, Lingering, MOUNTS, Office, Request, Scene, Stage, Way};
use super::{Fence, Guard, Takeover, World};
use crate::rules::Rule;

impl Office {
    pub(super) fn new(role: u64) -> Self {
        Self {
            role,
            epoch: 0,
            area: 0,
            stage: Stage::Claims,
            memory: Store::default(),
            found_slot: 0,
            at: 0,
            awaited: BTreeSet::new(),
            undeclared: BTreeSet::new(),
            due: 0,
        }
    }
}

impl Takeover {
    /// V2: whether every write of those who had the store open is known to be done: they have closed it, or the target
    /// proves it.
    fn all_done(&self, scene: &Scene, mount: usize) -> bool {
        let is_proved = |other: usize| scene.refused[other] && self.scenario.fence == Fence::Target;
        let mut others =
            MOUNTS.into_iter().filter(|other| *other != mount && scene.lun.claims[*other].writes);
        !self.guards.keeps(Rule::V2) || others.all(is_proved)
    }

    /// What the mount writes next.
    pub(super) fn next_write(&self, scene: &Scene, mount: usize) -> Option<Write> {
        let office = scene.mounts[mount].office.as_ref()?;
        let superblock = |area| Write::Superblock(Superblock { epoch: office.epoch, area });
        let claim = |writes| Write::Claim { by: mount, claim: Claim { epoch: office.epoch, writes } };
        let store = || Store { epoch: office.epoch, ..scene.lun.read(self.guards) };
        Some(match office.stage {
            Stage::Claims => {
                let claim = Claim { epoch: scene.lun.next_epoch(), writes: mount != D };
                Write::Claim { by: mount, claim }
            }
            Stage::Declares => claim(true),
            Stage::Begins if self.all_done(scene, mount) => superblock(scene.lun.superblock().area),
            // A fresh area has the number of the epoch.
            Stage::Begins => Write::Store { area: office.epoch, store: store() },
            Stage::Marks => superblock(office.area),
            Stage::Replays => Write::Store { area: office.area, store: store() },
            Stage::Closes => claim(false),
            Stage::Watches | Stage::Judges | Stage::Assembles | Stage::Serves => return None,
        })
    }

    /// The record that the request leads to; none if it is a copy, or comes where it cannot be executed.
    pub(super) fn record(&self, scene: &Scene, request: Request) -> Option<Write> {
        let office = scene.mounts[request.to].office.as_ref()?;
        let memory = office.memory;
        (request.change > memory.slot).then(|| Write::Record {
            area: office.area,
            at: office.at,
            record: Record {
                epoch: office.epoch,
                sequence: memory.sequence + 1,
                change: request.change,
                keeps_reply: self.guards.keeps(Rule::V4),
            },
        })
    }

    /// Whether the request is taken up now: one after the other. (In whichever epoch it was asked: V4 suffices here.)
    pub(super) fn takes(&self, scene: &Scene, request: Request) -> bool {
        let it = &scene.mounts[request.to];
        it.serves() && it.lingering.is_none() && it.office.as_ref().is_some_and(|office| office.due == 0)
    }

    /// A copy of what has been executed gets the reply that is kept, if it is the last one.
    pub(super) fn repeat(&self, scene: &mut Scene, request: Request) {
        let Some(office) = scene.mounts[request.to].office.as_mut() else { return };
        if request.change == office.memory.slot {
            office.due = request.change;
            scene.seen.found |= request.change == office.found_slot;
        }
    }

    /// A write of the mount reaches the LUN. What the mount makes of it, if it goes on.
    pub(super) fn land(&self, world: &mut World, mount: usize, lingering: Lingering, goes_on: bool) {
        let Lingering { write, way } = lingering;
        let has_role = self.coordinator(world).is_some_and(|(holder, _)| holder == mount);
        world.scene.seen.late |= mount != D && !has_role;
        let refused = world.scene.refused[mount] && way != Way::Carried;
        if !refused {
            world.scene.lun.land(self.guards, write);
        }
        if goes_on && refused {
            // A write that fails ends the area.
            world.scene.mounts[mount].office = None;
        } else if goes_on {
            self.advance(world, mount, write);
        }
    }

    fn advance(&self, world: &mut World, mount: usize, write: Write) {
        let listed: Vec<usize> = MOUNTS.into_iter().filter(|other| self.is_listed(world, *other)).collect();
        let live: Vec<usize> = MOUNTS.into_iter().filter(|other| self.is_live(world, *other)).collect();
        let it = &mut world.scene.mounts[mount];
        let Some(office) = it.office.as_mut() else { return };
        let assemble = |office: &mut Office| {
            office.stage = if mount == D { Stage::Serves } else { Stage::Assembles };
            office.awaited = live.iter().copied().filter(|_| self.guards.keeps(Rule::V9)).collect();
            office.undeclared = listed.iter().copied().collect();
        };
        match (office.stage, write) {
            (Stage::Claims, Write::Claim { claim, .. }) => {
                office.epoch = claim.epoch;
                let watches = mount == D && self.guards.has(Guard::Watch);
                office.stage = match (mount == D, watches) {
                    (false, _) => Stage::Begins,
                    (true, true) => Stage::Watches,
                    (true, false) => Stage::Declares,
                };
            }
            (Stage::Declares, _) => {
                office.stage = if self.guards.has(Guard::Watch) { Stage::Judges } else { Stage::Begins };
            }
            (Stage::Begins, Write::Superblock(superblock)) => {
                (office.area, office.stage) = (superblock.area, Stage::Replays);
            }
            (Stage::Begins, Write::Store { area, store }) => {
                (office.area, office.memory, office.found_slot) = (area, store, store.slot);
                office.stage = Stage::Marks;
            }
            (Stage::Marks, _) => assemble(office),
            (Stage::Replays, Write::Store { store, .. }) => {
                (office.memory, office.found_slot) = (store, store.slot);
                assemble(office);
            }
            (Stage::Serves, Write::Record { record, .. }) => {
                office.memory.make(record);
                // In memory it is known in any case.
                office.memory.slot = record.change;
                (office.at, office.due) = (office.at + 1, record.change);
            }
            (Stage::Closes, _) => {
                it.office = None;
                it.hands_on = true;
            }
            _ => {}
        }
    }

    /// The node attaches to the coordinator: it drops what it cached, and declares what it has open.
    pub(super) fn attach(&self, scene: &mut Scene, node: usize, (coordinator, role): (usize, u64)) {
        (scene.mounts[node].line, scene.mounts[node].caches) = (role, false);
        if let Some(office) = scene.mounts[coordinator].office.as_mut() {
            office.awaited.remove(&node);
            office.undeclared.remove(&node);
        }
    }

    /// Everybody who lives has attached.
    pub(super) fn has_assembled(&self, world: &World, mount: usize) -> bool {
        let assembles = |office: &Office| {
            office.stage == Stage::Assembles && !office.awaited.iter().any(|node| self.is_live(world, *node))
        };
        let it = &world.scene.mounts[mount];
        it.life == Life::Runs && it.office.as_ref().is_some_and(assembles)
    }

    /// V10: the file without a name that B has open is reclaimed when all have declared what they have open, and B has
    /// not, or is fenced.
    pub(super) fn reclaims(&self, world: &World, mount: usize) -> bool {
        let it = &world.scene.mounts[mount];
        let Some(office) = it.office.as_ref().filter(|_| it.serves()) else { return false };
        let is_known = office.undeclared.iter().all(|node| !self.is_listed(world, *node));
        let has_declared = !office.undeclared.contains(&B) && self.is_listed(world, B);
        (is_known || !self.guards.keeps(Rule::V10)) && !has_declared && !world.scene.reclaimed
    }

    /// V9: the change is answered when nobody has cached what it changes.
    pub(super) fn answers(&self, world: &World, mount: usize) -> bool {
        let it = &world.scene.mounts[mount];
        let Some(office) = it.office.as_ref().filter(|_| it.serves() && it.lingering.is_none()) else {
            return false;
        };
        let mounts = &world.scene.mounts;
        let is_kept = |node: &usize| {
            mounts[*node].caches && mounts[*node].line == office.role && self.is_live(world, *node)
        };
        // An answer on a line that is over counts for nothing.
        office.due > 0 && mounts[C].line == office.role && !MOUNTS.iter().any(is_kept)
    }
}
