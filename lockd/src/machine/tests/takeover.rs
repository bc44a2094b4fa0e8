//! The takeover of a volume's coordinator under a model checker: lockd's production state machine, and around it the steps
//! of the mounts, the LUN and the fence as `docs/CLUSTER.md` has them, in every order, within bounds.
//!
//! Mount A coordinates. A program on C's node makes two changes, one after the other, each in the same slot and asked again
//! until it is answered; copies of what it asks come late. B has the name of the first cached as absent, and a file without
//! a name open. A is killed, its node is cut off, or stands still in the gap between the look at its lease and a write, or
//! hands its role to B. Then B or C has the role, opens the store and serves; it may be hit as well. What is checked:
//! - invariant 1: one coordinator; 4: its role is given away when nothing of it can land any more;
//! - 5: no change that was answered is missing in the store that the next opening finds; 7: none is there twice;
//! - 6: when a change has returned, nobody has the old name cached; what B has open is not reclaimed (V10);
//! - all invariants of [`State::check`].

mod control;
mod faults;
mod lun;
mod opening;
mod properties;
mod scene;
mod steps;
mod stranger;

use std::hash::{Hash, Hasher};

use stateright::{Checker, HasDiscoveries, Model};

use super::super::*;
use super::cluster::*;
use crate::ids::{ClientId, Epoch, SessionId};
use crate::rules::{Rule, Rules};

use lun::Lun;
use scene::{A, B, Life, MOUNTS, Mount, Office, Scene, Stage};

/// How a mount ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// Not at all.
    None,
    /// Its process is killed; its node lives.
    Killed,
    /// Its node is cut off, or dies.
    CutOff,
    /// Its node stands still until its session is over, and goes on.
    Paused,
}

/// What the volume's fence is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fence {
    /// The target refuses and drains (`nbd-target`).
    Target,
    /// Lease and grace are waited for (`lease`): nothing stops what was about to be sent.
    Lease,
}

/// What can happen in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Scenario {
    fault: Fault,
    fence: Fence,
    /// How many mounts are hit.
    faults: u8,
    /// A hands its role to B, which may fail to open the store.
    moves: bool,
    /// B, which has a file without a name open, may be hit when it has no role.
    orphan: bool,
    /// Another cluster opens the volume while the LUN holds up A's beats.
    stranger: bool,
    /// A has left, the store closed: B and C begin.
    vacant: bool,
    /// How many changes the program makes.
    changes: u8,
    /// How often a command comes that its sender repeats.
    copies: u8,
}

const KILLED: Scenario = Scenario {
    fault: Fault::Killed,
    fence: Fence::Target,
    faults: 1,
    moves: false,
    orphan: false,
    stranger: false,
    vacant: false,
    changes: 2,
    copies: 2,
};
const CUT_OFF: Scenario = Scenario { fault: Fault::CutOff, ..KILLED };
const TWO_CUT_OFF: Scenario = Scenario { faults: 2, orphan: true, ..CUT_OFF };
const PAUSED: Scenario = Scenario { fault: Fault::Paused, fence: Fence::Lease, ..KILLED };
const VACANT: Scenario = Scenario { vacant: true, ..PAUSED };
const TWO_PAUSED: Scenario = Scenario { faults: 2, changes: 1, copies: 1, ..PAUSED };
const MOVED: Scenario = Scenario { fault: Fault::None, faults: 0, moves: true, copies: 1, ..KILLED };
const MOVED_AND_CUT_OFF: Scenario = Scenario { moves: true, changes: 1, copies: 1, ..CUT_OFF };
const STRANGER: Scenario = Scenario { fault: Fault::None, fence: Fence::Lease, stranger: true, ..KILLED };

/// A step of a protocol that has no rule's name, for a model that leaves it out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Guard {
    /// V2: of the superblocks the one of the highest epoch counts, not the last that was written.
    Newest,
    /// A mount does not take up a role that it has had in that epoch.
    Had,
    /// Who hands the role on has stopped and closed the store.
    Closing,
    /// V1: a stranger watches whether anybody beats.
    Watch,
    /// V1: who has not beaten for half a window reads the claims before it goes on.
    Reread,
}

/// What is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Guards {
    rules: Rules,
    lacks: Option<Guard>,
}

impl Guards {
    fn keeps(self, rule: Rule) -> bool {
        self.rules.keeps(rule)
    }

    fn has(self, guard: Guard) -> bool {
        let is_of_v1 = matches!(guard, Guard::Watch | Guard::Reread);
        self.lacks != Some(guard) && (self.keeps(Rule::V1) || !is_of_v1)
    }

    fn newest_counts(self) -> bool {
        self.has(Guard::Newest)
    }
}

#[derive(Clone, PartialEq, Debug)]
struct World {
    lockd: State,
    scene: Scene,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.lockd.snapshot().unwrap().hash(state);
        self.scene.hash(state);
    }
}

impl World {
    /// Who has the role in lockd's state.
    fn role(&self) -> Option<(ClientId, u64)> {
        let holding = self.lockd.resources.get(&COORDINATOR)?.first()?;
        Some((holding.client, holding.epoch.0))
    }
}

struct Takeover {
    guards: Guards,
    scenario: Scenario,
    start: World,
    sessions: [SessionId; 3],
    clients: [ClientId; 3],
}

impl Takeover {
    fn new(guards: Guards, scenario: Scenario) -> Self {
        let mut cluster = Cluster::new();
        if scenario.fence == Fence::Lease {
            cluster.done(Command::RegisterVolume {
                volume: VOLUME,
                name: "vms".to_owned(),
                fence: FenceMethod::Lease,
                quiesce_ns: QUIESCE_NS,
                epoch_floor: Epoch(0),
            });
        }
        let mounted = ["n1", "n2", "n3"].map(|name| cluster.mounted(name));
        let clients = mounted.map(|(_, client)| client);
        let lun = Lun::opened(A, !scenario.vacant);
        let mut mounts: [Mount; 4] = Default::default();
        if scenario.vacant {
            cluster.ask_done(clients[A], Operation::Leave);
            mounts[A].life = Life::Over;
        } else {
            let role = cluster.acquire(clients[A], &COORDINATOR).0;
            MOUNTS.into_iter().for_each(|mount| mounts[mount].line = role);
            mounts[B].caches = !scenario.stranger;
            let memory = lun.read(guards);
            let office = Office { epoch: 1, area: 1, stage: Stage::Serves, memory, ..Office::new(role) };
            (mounts[A].office, mounts[A].had) = (Some(office), role);
        }
        let mut lockd = cluster.state;
        lockd.events = Default::default();
        let scene = Scene {
            lun,
            mounts,
            network: Default::default(),
            requests: Default::default(),
            refused: [false; 4],
            answered: 0,
            reclaimed: false,
            faults_left: scenario.faults,
            failures_left: u8::from(scenario.moves),
            waits: 0,
            has_beaten: false,
            seen: Default::default(),
            broken: None,
        };
        let start = World { lockd, scene };
        Self { guards, scenario, start, sessions: mounted.map(|(session, _)| session), clients }
    }
}

/// In a soak each command that its sender repeats comes twice.
fn wider_in_a_soak(scenario: Scenario) -> Scenario {
    let copies = if std::env::var_os("CSV_SOAK").is_some() { 2 } else { scenario.copies };
    Scenario { copies, ..scenario }
}

/// Looks at everything that can happen.
#[track_caller]
fn holds(scenario: Scenario) {
    let model = Takeover::new(Guards { rules: Rules::from_test_environment(), lacks: None }, scenario);
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (found, states) = (checker.discoveries(), checker.unique_state_count());
    println!("{states} states");
    let wrong: Vec<_> = properties::always().into_iter().map(|property| property.name).collect();
    let wrong: Vec<_> = wrong.into_iter().filter(|name| found.contains_key(name)).collect();
    assert!(wrong.is_empty(), "{wrong:?} in {states} states");
    for property in properties::sometimes(scenario) {
        assert!(found.contains_key(property.name), "never: {:?}, in {states} states", property.name);
    }
}

/// Looks until `what` does not hold.
#[track_caller]
fn is_found(guards: Guards, scenario: Scenario, what: &'static str) {
    let checker = Takeover::new(guards, scenario).checker();
    let checker = checker.finish_when(HasDiscoveries::AllOf([what].into())).spawn_bfs().join();
    let states = checker.unique_state_count();
    println!("{guards:?}: not {what:?} in {states} states");
    assert!(checker.discovery(what).is_some(), "{guards:?}, and {what:?} still holds in {states} states");
}

#[test]
fn one_coordinates_when_the_first_is_killed() {
    holds(KILLED);
}

#[test]
fn one_coordinates_when_the_first_is_cut_off() {
    holds(CUT_OFF);
}

#[test]
fn one_coordinates_when_two_nodes_are_cut_off() {
    holds(TWO_CUT_OFF);
}

#[test]
fn one_coordinates_when_the_first_is_paused_and_nothing_refuses_it() {
    holds(PAUSED);
}

#[test]
fn one_coordinates_when_the_first_has_left() {
    holds(VACANT);
}

#[test]
fn one_coordinates_when_two_are_paused() {
    holds(wider_in_a_soak(TWO_PAUSED));
}

#[test]
fn one_coordinates_when_the_role_moves() {
    holds(wider_in_a_soak(MOVED));
}

#[test]
fn one_coordinates_when_the_role_moves_and_a_node_is_cut_off() {
    holds(MOVED_AND_CUT_OFF);
}

#[test]
fn one_cluster_has_the_volume() {
    holds(STRANGER);
}

#[test]
fn the_model_finds_a_rule_that_is_switched_off() {
    let planted = [
        (Rule::L1, CUT_OFF, "one coordinator"),
        (Rule::L3, PAUSED, "one coordinator"),
        (Rule::L3, PAUSED, "nothing acknowledged is lost"),
        (Rule::L9, CUT_OFF, "fenced first"),
        (Rule::L10, KILLED, "fenced first"),
        (Rule::F1, CUT_OFF, "fenced first"),
        (Rule::F1, CUT_OFF, "nothing acknowledged is lost"),
        (Rule::V1, STRANGER, "one coordinator"),
        (Rule::V2, PAUSED, "nothing acknowledged is lost"),
        (Rule::V4, CUT_OFF, "once"),
        (Rule::V9, CUT_OFF, "nothing stale"),
        (Rule::V10, TWO_CUT_OFF, "nothing open is reclaimed"),
        (Rule::V12, CUT_OFF, "nothing acknowledged is lost"),
    ];
    for (rule, scenario, what) in planted {
        is_found(Guards { rules: Rules::all().without(rule), lacks: None }, scenario, what);
    }
}

#[test]
fn the_model_finds_a_step_that_is_left_out() {
    let planted = [
        (Guard::Newest, VACANT, "nothing acknowledged is lost"),
        (Guard::Had, MOVED, "nothing acknowledged is lost"),
        (Guard::Closing, MOVED, "one coordinator"),
        (Guard::Closing, MOVED, "nothing acknowledged is lost"),
        (Guard::Watch, STRANGER, "one coordinator"),
        (Guard::Reread, STRANGER, "nothing acknowledged is lost"),
    ];
    for (guard, scenario, what) in planted {
        is_found(Guards { rules: Rules::all(), lacks: Some(guard) }, scenario, what);
    }
}
