//! What must hold in every state, and what must be reached.

use stateright::Property;

use super::scene::{A, B, C, D, Life, MOUNTS, Way};
use super::{Fault, Fence, Scenario, Takeover, World};

fn one_serves(_: &Takeover, world: &World) -> bool {
    world.scene.mounts.iter().filter(|mount| mount.serves()).count() <= 1
}

/// Invariant 5: what the program was told is in the store that the next opening finds.
fn nothing_is_lost(model: &Takeover, world: &World) -> bool {
    let store = world.scene.lun.read(model.guards);
    store.made.iter().take(usize::from(world.scene.answered)).all(|made| *made >= 1)
}

/// Invariant 7.
fn once(model: &Takeover, world: &World) -> bool {
    world.scene.lun.read(model.guards).made.iter().all(|made| *made <= 1)
}

/// Invariant 6: when a change has returned, nobody answers by what was before it.
fn nothing_is_stale(_: &Takeover, world: &World) -> bool {
    let stale = |mount: &usize| {
        let it = &world.scene.mounts[*mount];
        it.caches && it.life == Life::Runs
    };
    world.scene.answered == 0 || !MOUNTS.iter().any(stale)
}

/// Invariant 4: when somebody else may have the role, nothing that its last holder has sent can land any more. (Where no
/// target fences, what was about to be sent may.)
fn fenced_first(model: &Takeover, world: &World) -> bool {
    let holder = model.coordinator(world).map(|(mount, _)| mount);
    MOUNTS.into_iter().filter(|mount| Some(*mount) != holder).all(|mount| {
        let scene = &world.scene;
        match scene.mounts[mount].lingering.map(|lingering| lingering.way) {
            Some(Way::Own | Way::Carried) => false,
            Some(Way::Gap) => model.scenario.fence == Fence::Lease || scene.refused[mount],
            None => true,
        }
    })
}

/// V10: what B has open is not reclaimed before B is fenced.
fn nothing_open_is_reclaimed(model: &Takeover, world: &World) -> bool {
    !world.scene.reclaimed || !model.is_listed(world, B)
}

fn checked(_: &Takeover, world: &World) -> bool {
    world.scene.broken.is_none()
}

pub(super) fn always() -> Vec<Property<Takeover>> {
    vec![
        Property::always("one coordinator", one_serves),
        Property::always("nothing acknowledged is lost", nothing_is_lost),
        Property::always("once", once),
        Property::always("nothing stale", nothing_is_stale),
        Property::always("fenced first", fenced_first),
        Property::always("nothing open is reclaimed", nothing_open_is_reclaimed),
        Property::always("checked", checked),
    ]
}

fn serves(world: &World, mount: usize) -> bool {
    world.scene.mounts[mount].serves()
}

/// All that the program wanted is done, and somebody else than at first has done the last of it.
fn ends(model: &Takeover, world: &World) -> bool {
    world.scene.answered == model.scenario.changes && (serves(world, B) || serves(world, C))
}

pub(super) fn sometimes(scenario: Scenario) -> Vec<Property<Takeover>> {
    let mut all = Vec::new();
    if scenario.stranger {
        all.push(Property::sometimes("the stranger serves", |_, world: &World| serves(world, D)));
        all.push(Property::sometimes("the stranger is refused", |_, world: &World| {
            world.scene.seen.turned_away && serves(world, A)
        }));
    } else {
        all.push(Property::sometimes("the program ends", ends));
    }
    if matches!(scenario.fault, Fault::Killed | Fault::CutOff | Fault::Paused) {
        all.push(Property::sometimes("a reply is found", |_, world: &World| world.scene.seen.found));
    }
    if scenario.fault == Fault::Paused {
        all.push(Property::sometimes("a write lands late", |_, world: &World| world.scene.seen.late));
    }
    if scenario.orphan {
        all.push(Property::sometimes("a file is reclaimed", |_, world: &World| world.scene.reclaimed));
    }
    if scenario.moves {
        all.push(Property::sometimes("it comes back", |_, world: &World| {
            serves(world, A) && world.scene.mounts[A].acquisitions > 0
        }));
    }
    all
}
