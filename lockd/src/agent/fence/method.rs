//! Whose turn it is to fence a victim, and by which step.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::super::core::Core;
use super::super::nonce::incarnation_of;
use super::super::session::OpenSession;
use super::Seen;
use crate::cluster::{FenceChoice, Volume};
use crate::fencing::{AgentCommand, Targets, Units, incarnation, key_of};
use crate::ids::{ClientId, NodeName, SessionId};
use crate::local::process::Process;
use crate::machine::{
    ClientInfo, ClientState, FenceInfo, FenceMethod, SessionInfo, SessionState, Victim, VolumeInfo,
};
use crate::reservation::Key;

/// After how long the next node in turn tries, too.
const TURN: Duration = Duration::from_secs(1);
/// The same with an agent, which takes its time.
const AGENT_TURN: Duration = Duration::from_secs(5);

/// What this node is to do about a fence.
#[derive(Debug)]
pub(super) enum Plan {
    /// Nothing: others do it.
    Others,
    /// Nothing for so long.
    In(Duration),
    /// To report that waiting has made it true.
    Waited(FenceMethod),
    /// To take a step, which may fail.
    Step(Step),
}

/// A step that makes a fence true.
#[derive(Debug)]
pub(super) enum Step {
    /// Have these incarnations refused by every target.
    Targets(Targets, Vec<ClientId>),
    /// Have these keys removed from every unit.
    Units(Units, Vec<Key>),
    /// Have a host switched off.
    Agent(AgentCommand, NodeName),
    /// It cannot be taken; why.
    Impossible(FenceMethod, String),
}

impl Step {
    pub(super) fn method(&self) -> FenceMethod {
        match self {
            Self::Targets(..) => FenceMethod::NbdTarget,
            Self::Units(..) => FenceMethod::ScsiPr,
            Self::Agent(..) => FenceMethod::Agent,
            Self::Impossible(method, _) => *method,
        }
    }

    /// Takes it, and says what was seen. Waits for others.
    pub(super) fn take(&self) -> Result<String, String> {
        match self {
            Self::Targets(targets, victims) => {
                targets.fence(victims).map_err(|error| error.to_string())?;
                Ok(format!("refused for good and drained: {}", count(victims.len(), "incarnation")))
            }
            Self::Units(units, victims) => units.fence(victims).map_err(|error| error.to_string()),
            Self::Agent(agent, _) => agent.off().map_err(|error| error.to_string()),
            Self::Impossible(_, why) => Err(why.clone()),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Targets(targets, victims) => {
                let places: Vec<_> = targets.iter().map(|target| target.address().to_string()).collect();
                write!(f, "{} refused at {}", count(victims.len(), "incarnation"), places.join(", "))
            }
            Self::Units(units, victims) => {
                let places: Vec<_> = units.names().collect();
                write!(f, "{} removed at {}", count(victims.len(), "key"), places.join(", "))
            }
            Self::Agent(_, node) => write!(f, "the fence agent switches node {node} off"),
            Self::Impossible(method, _) => write!(f, "{method}"),
        }
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What this node is to do so that the victim itself reaches the volume no more.
pub(super) fn plan(core: &Core, open: &OpenSession, seen: &Seen, fence: &FenceInfo) -> Plan {
    let Some(volume) = seen.volumes.get(&fence.volume) else { return Plan::Others };
    let in_file = core.cluster.volume(&volume.name).map(|(_, volume)| volume);
    match fence.victim {
        Victim::Session(victim) => match seen.sessions.get(&victim) {
            Some(info) => of_session(core, open, seen, fence, (volume, in_file), info),
            None => Plan::Others,
        },
        Victim::Client(victim) => match seen.client(victim) {
            Some(info) => of_client(core, open, seen, fence, (volume, in_file), info),
            None => Plan::Others,
        },
    }
}

fn of_session(
    core: &Core,
    open: &OpenSession,
    seen: &Seen,
    fence: &FenceInfo,
    (volume, in_file): (&VolumeInfo, Option<&Volume>),
    victim: &SessionInfo,
) -> Plan {
    let SessionState::Ended { lease_over_ns, .. } = victim.state else { return Plan::Others };
    let mounts = seen.mounts_of(fence.volume, victim.session);
    let here = victim.node == core.node;
    match volume.fence {
        FenceMethod::NbdTarget | FenceMethod::ScsiPr => {
            let first = here.then_some(open.session);
            let own = seen.mounts_of(fence.volume, open.session);
            let step = || at_target(core, volume, in_file, (&own, &mounts));
            in_turn(core, open, seen, fence, (volume, first), TURN, step)
        }
        // A host that has come back proves by itself that nothing of its former session runs, and waits for what that
        // has sent: nobody else needs to switch it off, and it cannot do so itself.
        _ if here && let Some(dead) = dead_for(core, fence, &mounts) => {
            let quiesce = Duration::from_nanos(volume.quiesce_ns);
            if dead >= quiesce { Plan::Waited(FenceMethod::Quiesce) } else { Plan::In(quiesce - dead) }
        }
        // Lease and grace are over, by the cluster's own count. The lowest live session says so. Its count may be ahead of
        // the leader's: a report that is too early is refused, and repeated.
        FenceMethod::Lease if seen.lowest() == Some(open.session) => {
            let wait = Duration::from_nanos(lease_over_ns.saturating_sub(fence.since_ns));
            waited(core, seen, fence, wait, FenceMethod::Lease)
        }
        FenceMethod::Agent if !here => {
            let step = || agent(in_file, core, &victim.node);
            in_turn(core, open, seen, fence, (volume, None), AGENT_TURN, step)
        }
        _ => Plan::Others,
    }
}

fn of_client(
    core: &Core,
    open: &OpenSession,
    seen: &Seen,
    fence: &FenceInfo,
    (volume, in_file): (&VolumeInfo, Option<&Volume>),
    victim: &ClientInfo,
) -> Plan {
    if matches!(volume.fence, FenceMethod::NbdTarget | FenceMethod::ScsiPr) {
        let first = Some(victim.session);
        let own = seen.mounts_of(fence.volume, open.session);
        let step = || at_target(core, volume, in_file, (&own, &[victim]));
        return in_turn(core, open, seen, fence, (volume, first), TURN, step);
    }
    // L10: the target may still execute what the dead process had sent. Its own node waits for that.
    if victim.session != open.session {
        return Plan::Others;
    }
    waited(core, seen, fence, Duration::from_nanos(volume.quiesce_ns), FenceMethod::Quiesce)
}

/// Whether `wait` has passed since the fence began: by the cluster's time, which on a node that does not vote is that of
/// the last entry and stands still while nothing happens; or since this node has known of the fence, which is later.
fn waited(core: &Core, seen: &Seen, fence: &FenceInfo, wait: Duration, method: FenceMethod) -> Plan {
    let by_cluster = Duration::from_nanos(seen.time_ns.saturating_sub(fence.since_ns));
    let passed = by_cluster.max(core.attempts.known_for((fence.volume, fence.victim)));
    if passed >= wait { Plan::Waited(method) } else { Plan::In(wait - passed) }
}

/// The step, if it is this node's turn by now: each node that is in turn waits a while for those before it.
fn in_turn(
    core: &Core,
    open: &OpenSession,
    seen: &Seen,
    fence: &FenceInfo,
    (volume, first): (&VolumeInfo, Option<SessionId>),
    each: Duration,
    step: impl FnOnce() -> Step,
) -> Plan {
    let turns = seen.turns(volume, first);
    let Some(turn) = turns.iter().position(|session| *session == open.session) else { return Plan::Others };
    let begins = each.saturating_mul(u32::try_from(turn).unwrap_or(u32::MAX));
    let known = core.attempts.known_for((fence.volume, fence.victim));
    if known >= begins { Plan::Step(step()) } else { Plan::In(begins - known) }
}

/// How long everything that `mounts`, clients of an earlier session of this host, have run in has been dead.
fn dead_for(core: &Core, fence: &FenceInfo, mounts: &[&ClientInfo]) -> Option<Duration> {
    let is_dead = |info: &&ClientInfo| match incarnation_of(info.nonce, core.boot) {
        // Without proof it lives.
        Some(process) => matches!(Process::open(process), Ok(None)),
        // It was of an earlier start of the machine.
        None => true,
    };
    core.attempts.dead_for((fence.volume, fence.victim), mounts.iter().all(is_dead))
}

/// The step by which the target of the LUN itself keeps `mounts` out; `own` are those of this session.
fn at_target(
    core: &Core,
    volume: &VolumeInfo,
    in_file: Option<&Volume>,
    (own, mounts): (&[&ClientInfo], &[&ClientInfo]),
) -> Step {
    match volume.fence {
        FenceMethod::ScsiPr => units(core, in_file, own, mounts),
        _ => targets(core, in_file, mounts),
    }
}

fn units(core: &Core, in_file: Option<&Volume>, own: &[&ClientInfo], mounts: &[&ClientInfo]) -> Step {
    let paths = in_file.map_or(&[][..], |volume| &volume.lun);
    let key = |info: &&ClientInfo| key_of(incarnation(info.nonce));
    let keys: Vec<Key> = mounts.iter().map(key).collect();
    let own = own.iter().filter(|info| info.state == ClientState::Live).map(key).collect();
    match Units::new(paths, &core.node) {
        Ok(_) if paths.is_empty() => {
            let why = "this node's cluster file does not name the volume: give all nodes the same file";
            Step::Impossible(FenceMethod::ScsiPr, why.to_owned())
        }
        Ok(units) => Step::Units(units.beside(own), keys),
        Err(why) => Step::Impossible(FenceMethod::ScsiPr, why),
    }
}

fn targets(core: &Core, in_file: Option<&Volume>, mounts: &[&ClientInfo]) -> Step {
    let control = in_file.map_or(&[][..], |volume| &volume.control);
    if control.is_empty() {
        let why = "this node's cluster file names no control port for the volume, which is fenced by nbd-target: give \
                   all nodes the same file";
        return Step::Impossible(FenceMethod::NbdTarget, why.to_owned());
    }
    match Targets::new(control, &core.credentials) {
        Ok(targets) => Step::Targets(targets, mounts.iter().map(|info| incarnation(info.nonce)).collect()),
        Err(error) => Step::Impossible(FenceMethod::NbdTarget, error.to_string()),
    }
}

fn agent(in_file: Option<&Volume>, core: &Core, node: &NodeName) -> Step {
    let Some((volume, FenceChoice::Agent(command))) = in_file.map(|volume| (volume, &volume.fence)) else {
        let why = "this node's cluster file names no fence agent for the volume, which is fenced by one: give all nodes \
                   the same file";
        return Step::Impossible(FenceMethod::Agent, why.to_owned());
    };
    let mut keys: BTreeMap<_, _> = volume.agent.clone();
    keys.extend(core.cluster.node(node).map(|node| node.agent.clone()).unwrap_or_default());
    Step::Agent(AgentCommand::new(command, node, keys, volume.agent_timeout), node.clone())
}
