//! Who is hit, with which of its writes on their way, and what becomes of those.

use super::scene::{A, B, Life, Lingering, Scene, Way};
use super::steps::Action;
use super::{Fault, Takeover, World};
use crate::rules::Rule;

impl Takeover {
    /// Who may be hit, and with which of its writes.
    pub(super) fn hits(&self, world: &World, actions: &mut Vec<Action>) {
        let scene = &world.scene;
        for mount in [A, B] {
            let it = &scene.mounts[mount];
            let is_busy = it.office.is_some() || self.scenario.orphan;
            let may = self.scenario.fault != Fault::None && scene.faults_left > 0 && (mount == A || is_busy);
            if !may || it.life != Life::Runs {
                continue;
            }
            actions.push(Action::Hit(mount, None));
            for lingering in self.lingering(world, mount) {
                actions.push(Action::Hit(mount, Some(lingering)));
            }
        }
        let it = &scene.mounts[A];
        if self.scenario.stranger && it.life == Life::Runs && !scene.seen.turned_away && scene.faults_left > 0
        {
            actions.push(Action::Stall(None));
            let own = self.lingering(world, A).into_iter().filter(|lingering| lingering.way == Way::Own);
            actions.extend(own.map(|lingering| Action::Stall(Some(lingering))));
        }
    }

    fn lingering(&self, world: &World, mount: usize) -> Vec<Lingering> {
        let scene = &world.scene;
        let asked = scene.requests.iter().filter(|(request, left)| request.to == mount && **left > 0);
        let asked = asked.map(|(request, _)| *request).filter(|request| self.takes(scene, *request));
        let records = asked.filter_map(|request| self.record(scene, request));
        let writes: Vec<_> = records.chain(self.next_write(scene, mount)).collect();
        let ways = self.ways(scene, mount);
        writes
            .into_iter()
            .flat_map(|write| ways.iter().map(move |way| Lingering { write, way: *way }))
            .collect()
    }

    /// By which ways a write of a mount that is hit may linger.
    fn ways(&self, scene: &Scene, mount: usize) -> &'static [Way] {
        match self.scenario.fault {
            Fault::Paused => &[Way::Gap],
            _ if scene.refused[mount] => &[],
            _ => &[Way::Own, Way::Carried],
        }
    }

    /// The mount dies, or stands still, with this write on its way.
    pub(super) fn hit(&self, scene: &mut Scene, mount: usize, lingering: Option<Lingering>) {
        let it = &mut scene.mounts[mount];
        it.lingering = lingering;
        it.life = if self.scenario.fault == Fault::Paused { Life::Paused } else { Life::Over };
        scene.faults_left -= 1;
    }

    /// The mount goes on. What it was about to send is sent; its lease is over, and it starts nothing more (L3).
    pub(super) fn wake(&self, world: &mut World, mount: usize) {
        let goes_on = !self.guards.keeps(Rule::L3);
        let it = &mut world.scene.mounts[mount];
        it.life = if goes_on { Life::Runs } else { Life::Over };
        if let Some(lingering) = it.lingering.take() {
            self.land(world, mount, lingering, goes_on);
        }
    }
}
