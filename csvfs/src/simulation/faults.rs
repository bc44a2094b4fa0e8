//! What goes wrong, drawn from the seed: all of it before everything is healed.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use super::lockd::{GRACE, LEASE};
use super::lun::Trap;
use super::world::World;

/// Draws what goes wrong in the first seconds.
pub fn plan(world: &Arc<World>) {
    let nodes = world.plan.nodes;
    let count = world.schedule.draw(|random| random.random_range(2..7));
    world.lockd.be_unlucky(0.15);
    for _ in 0..count {
        let at = world.schedule.between(300_000, 5_500_000);
        let node = world.schedule.draw(|random| random.random_range(0..nodes));
        let other = world.schedule.draw(|random| random.random_range(0..nodes));
        let (short, long) =
            (world.schedule.between(50_000, 700_000), world.schedule.between(500_000, 6_000_000));
        let world_then = Arc::clone(world);
        let kind = world.schedule.draw(|random| random.random_range(0..KINDS));
        world.schedule.after(at, move || happen(&world_then, kind, node, other, short, long));
    }
}

/// Draws when connections to the LUN are lost, each with a change under way.
pub fn plan_losses(world: &Arc<World>) {
    let count = world.schedule.draw(|random| random.random_range(1..8));
    for _ in 0..count {
        let at = world.schedule.between(100_000, 8_000_000);
        let node = world.schedule.draw(|random| random.random_range(0..world.plan.nodes));
        let (is_silent, is_away) = (world.schedule.happens(0.2), world.schedule.happens(0.5));
        let silence = if is_silent { world.schedule.between(100_000, 1_400_000) } else { Duration::ZERO };
        let away = if is_away { world.schedule.between(1_000, 1_500_000) } else { Duration::ZERO };
        let (all, kills) = (world.schedule.happens(0.5), world.schedule.happens(0.1));
        let on_trim = world.plan.trims && world.schedule.happens(0.5);
        let silence = if kills { Duration::ZERO } else { silence };
        let trap = Trap { on_trim, kills, all, silence, away };
        let then = Arc::clone(world);
        world.schedule.after(at, move || {
            if then.plan.hold < SURE {
                // It may be given up.
                then.users.disturb();
            }
            // Only one of them trims.
            let home = then.home().map_or(node, |(home, _)| home.number);
            then.disk.set_trap(if on_trim { home } else { node }, trap);
        });
    }
}

/// I/O that is held for so long meets a path that works.
const SURE: Duration = Duration::from_secs(60);

/// Draws when lockd is restarted under its clients: it is back within the lease.
pub fn plan_restarts(world: &Arc<World>) {
    for _ in 0..world.schedule.draw(|random| random.random_range(1..6)) {
        let at = world.schedule.between(50_000, 6_000_000);
        let node = world.schedule.draw(|random| random.random_range(0..world.plan.nodes));
        let away = world.schedule.between(10_000, 1_000_000);
        let then = Arc::clone(world);
        world.schedule.after(at, move || {
            then.member(node).into_iter().for_each(|member| member.agent.restart(away));
        });
    }
}

/// How many kinds of trouble there are.
const KINDS: u32 = 22;

fn happen(world: &Arc<World>, kind: u32, node: usize, other: usize, short: Duration, long: Duration) {
    world.schedule.note("fault", &[u64::from(kind), node as u64, other as u64]);
    let then = Arc::clone(world);
    match kind {
        0 | 1 => {
            if let Some(member) = world.member(node) {
                world.bury(&member);
            }
        }
        // Long enough to lose the session, or not.
        2 | 3 => pause(world, node, if kind == 2 { long } else { short }),
        4 => {
            world.network.cut(node, other);
            world.network.cut(other, node);
            world.schedule.after(long, move || {
                then.network.join(node, other);
                then.network.join(other, node);
            });
        }
        5 => {
            world.network.cut(other, node);
            world.schedule.after(short, move || then.network.join(other, node));
        }
        6 => {
            world.lockd.cut(node, true);
            world.schedule.after(long, move || then.lockd.cut(node, false));
        }
        7 => {
            // Longer than lease and grace.
            world.lockd.deafen(node, 12_000_000);
            world.disk.slow(node, 1_500_000);
        }
        8 => {
            // What it has sent to the LUN when it is lost takes longest.
            world.disk.slow(node, 1_500_000);
            world.lockd.cut(node, true);
            world.schedule.after(long.max(LEASE + GRACE / 2), move || then.lockd.cut(node, false));
        }
        9 if other != node => {
            // What it has sent comes when it is fenced, to one who has not heard of that.
            world.lockd.deafen(other, 12_000_000);
            world.network.hold(node, other);
            world.schedule.after(LEASE + GRACE + short * 3, move || then.network.release(node, other));
            world.schedule.after(short, {
                let world = Arc::clone(world);
                move || world.member(node).into_iter().for_each(|member| world.bury(&member))
            });
        }
        10 | 11 => world.lockd.lose_quorum(long, kind == 10),
        12 => {
            world.lockd.leave_behind(node);
            world.schedule.after(long.max(LEASE * 2), move || then.lockd.cut(node, false));
        }
        13 | 14 => world.remount(node, (kind == 14).then_some(short)),
        15 => world.move_role(other),
        16 => {
            // Whoever coordinates at that moment.
            if let Some((home, _)) = world.home() {
                world.bury(&home);
            }
        }
        18 => world.kill_mount(node),
        // Within the lease, or not.
        19 | 20 => {
            let away = if kind == 20 { long } else { short };
            world.member(node).into_iter().for_each(|member| member.agent.restart(away));
        }
        21 => world.lockd.stand_still(long),
        _ => world.lockd.change_leader(),
    }
}

fn pause(world: &Arc<World>, node: usize, span: Duration) {
    let Some(member) = world.member(node) else { return };
    member.party.pause();
    let then = Arc::clone(world);
    world.schedule.after(span, move || then.schedule.resume(&member.party));
}
