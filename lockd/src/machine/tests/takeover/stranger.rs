//! Another cluster's mount, which opens the volume beside a coordinator (V1).

use super::scene::{D, Life, MOUNTS, Scene, Stage};
use super::{Guard, Takeover};

impl Takeover {
    /// A mount of the cluster whose beats a stranger sees.
    fn beats(scene: &Scene) -> bool {
        MOUNTS.iter().any(|mount| {
            let it = &scene.mounts[*mount];
            it.office.is_some() && it.life == Life::Runs
        })
    }

    /// The stranger watches, or judges after it has said that it writes.
    pub(super) fn watch(&self, scene: &mut Scene) {
        let beats = Self::beats(scene);
        let Some(office) = scene.mounts[D].office.as_mut() else { return };
        match office.stage {
            Stage::Watches if !beats => {
                office.stage = Stage::Declares;
                scene.has_beaten = false;
            }
            Stage::Judges if !beats && !scene.has_beaten => office.stage = Stage::Begins,
            _ => {
                scene.mounts[D].office = None;
                scene.lun.claims[D].writes = false;
                scene.seen.turned_away = true;
            }
        }
    }

    /// A coordinator whose beats hung goes on: it looks, beats, looks again (V1), and extends its lease.
    pub(super) fn round(&self, scene: &mut Scene, mount: usize, done: u8) {
        let looks = self.guards.has(Guard::Reread) && done != 1;
        let own = scene.mounts[mount].office.as_ref().map_or(0, |office| office.epoch);
        let other = scene.lun.claims[D];
        if looks && other.writes && other.epoch >= own {
            scene.mounts[mount].life = Life::Over;
            return;
        }
        scene.has_beaten |= done == 1;
        scene.mounts[mount].life = if done == 2 { Life::Runs } else { Life::Stalls(done + 1) };
    }
}
