//! The leader's memory of sessions under a model checker: keep-alives, leases, and leaders that change, stand still or lose
//! their quorum, in every order, within bounds.
//!
//! One session, two voters. Time goes on in ticks, of which a lease has three; who runs hears what has come and looks once in
//! each. What is taken for granted is raft's: one leader at a time can commit, and who has just come to office has applied
//! what was committed before. What is checked:
//! - L1, L4: when a session is ended its lease is over, whoever has answered its keep-alives;
//! - L1: none is ended for a silence while its keep-alive waits at the leader that stood still.

use std::time::Duration;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::super::Lapse;
use crate::clock::BootTime;
use crate::ids::SessionId;
use crate::rules::{Rule, Rules};

const SESSION: SessionId = SessionId(1);
const LEASE: u8 = 3;
const TICK: Duration = Duration::from_secs(1);
/// How often the session's node asks.
const ASKS: usize = 2;

/// What a voter does that holds itself for the leader.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Term {
    lapse: Lapse,
    /// It has proposed to end the session, and answers it no more.
    is_ending: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Voter {
    term: Option<Term>,
    stands_still: bool,
    has_looked: bool,
    /// Keep-alives that have come and were not read yet, by when they were sent.
    waiting: Vec<u8>,
    /// Those that were read, and are to be answered.
    read: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Group {
    now: u8,
    voters: [Voter; 2],
    /// Who can commit.
    leader: usize,
    has_quorum: bool,
    /// The leader's proposal to end the session is under way.
    proposed: bool,
    ended: Option<u8>,
    /// When the session's lease is over, by its node's own count.
    lease_over: u8,
    asks_left: usize,
    changes_left: u8,
    /// How often a leader may stand still, or lose its quorum.
    gaps_left: [u8; 2],
    /// The session was to be ended though its keep-alive had come.
    unheard: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Action {
    Tick,
    /// The node sends a keep-alive to this voter.
    Ask(usize),
    /// The voter reads it.
    Read(usize),
    /// The voter answers, or not.
    Answer(usize),
    /// The other voter leads from now on; what was proposed survives or not.
    Change {
        survives: bool,
    },
    /// The last leader learns of it.
    Resign(usize),
    StandStill(usize),
    GoOn(usize),
    LoseQuorum,
    WinQuorum,
    Look(usize),
    Commit,
}

struct Leading {
    rules: Rules,
    /// How far time goes, and how often another voter leads.
    time_max: u8,
    changes: u8,
}

fn at(tick: u8) -> BootTime {
    BootTime(0).after(TICK * u32::from(tick))
}

fn office(now: u8) -> Term {
    // A look in each tick is no gap.
    Term { lapse: Lapse::new(TICK * u32::from(LEASE), TICK, at(now)), is_ending: false }
}

impl Group {
    fn end(&mut self) {
        self.ended.get_or_insert(self.now);
        self.proposed = false;
    }

    /// Whether everybody who runs has done what it does in each tick.
    fn has_done(&self) -> bool {
        self.voters.iter().all(|voter| {
            voter.stands_still || voter.term.is_none() || (voter.has_looked && voter.waiting.is_empty())
        })
    }
}

impl Leading {
    fn look(&self, group: &mut Group, voter: usize) -> Option<()> {
        let (now, leads) = (at(group.now), group.leader == voter);
        let it = &mut group.voters[voter];
        it.has_looked = true;
        let term = it.term.as_mut()?;
        if !leads || !group.has_quorum {
            term.lapse.without_quorum(self.rules, now);
        }
        let lapsed = !term.lapse.look(self.rules, now, [SESSION]).is_empty();
        if lapsed && !term.is_ending {
            term.is_ending = true;
            // What has come since the last tick may be read a moment too late.
            group.unheard |= leads && it.waiting.iter().any(|sent| sent + 1 < group.now);
            group.proposed |= leads;
        }
        Some(())
    }

    fn answer(&self, group: &mut Group, voter: usize) -> Option<()> {
        // L4: a quorum confirms that it leads.
        let is_sure = !self.rules.keeps(Rule::L4) || (group.leader == voter && group.has_quorum);
        let it = &mut group.voters[voter];
        let sent = it.read.pop()?;
        let answers = is_sure && it.term.as_ref().is_some_and(|term| !term.is_ending);
        if answers {
            group.lease_over = group.lease_over.max(sent + LEASE);
        }
        Some(())
    }
}

impl Model for Leading {
    type State = Group;
    type Action = Action;

    fn init_states(&self) -> Vec<Group> {
        let mut voters: [Voter; 2] = Default::default();
        voters[0].term = Some(office(0));
        // The session has just been opened.
        voters[0].term.iter_mut().for_each(|term| term.lapse.heard(SESSION, at(0)));
        vec![Group {
            now: 0,
            voters,
            leader: 0,
            has_quorum: true,
            proposed: false,
            ended: None,
            lease_over: LEASE,
            asks_left: ASKS,
            changes_left: self.changes,
            gaps_left: [1, 1],
            unheard: false,
        }]
    }

    fn actions(&self, group: &Group, actions: &mut Vec<Action>) {
        if group.ended.is_some() {
            return;
        }
        if group.now < self.time_max && group.has_done() {
            actions.push(Action::Tick);
        }
        for (number, voter) in group.voters.iter().enumerate() {
            if group.asks_left > 0 && voter.term.is_some() {
                actions.push(Action::Ask(number));
            }
            if voter.stands_still {
                actions.push(Action::GoOn(number));
                continue;
            }
            if !voter.waiting.is_empty() {
                actions.push(Action::Read(number));
            }
            if !voter.read.is_empty() {
                actions.push(Action::Answer(number));
            }
            if voter.term.is_some() {
                if !voter.has_looked {
                    actions.push(Action::Look(number));
                }
                if group.gaps_left[0] > 0 {
                    actions.push(Action::StandStill(number));
                }
                if group.leader != number {
                    actions.push(Action::Resign(number));
                }
            }
        }
        if group.changes_left > 0 {
            actions.push(Action::Change { survives: false });
            if group.proposed {
                actions.push(Action::Change { survives: true });
            }
        }
        match group.has_quorum {
            true if group.gaps_left[1] > 0 => actions.push(Action::LoseQuorum),
            true => {}
            false => actions.push(Action::WinQuorum),
        }
        if group.proposed && group.has_quorum {
            actions.push(Action::Commit);
        }
    }

    fn next_state(&self, last: &Group, action: Action) -> Option<Group> {
        let mut group = last.clone();
        match action {
            Action::Tick => {
                group.now += 1;
                group.voters.iter_mut().for_each(|voter| voter.has_looked = false);
            }
            Action::Ask(voter) => {
                group.voters[voter].waiting.push(group.now);
                group.asks_left -= 1;
            }
            Action::Read(voter) => {
                let it = &mut group.voters[voter];
                let sent = it.waiting.remove(0);
                if let Some(term) = it.term.as_mut().filter(|term| !term.is_ending) {
                    term.lapse.heard(SESSION, at(group.now));
                    it.read.push(sent);
                }
            }
            Action::Answer(voter) => self.answer(&mut group, voter)?,
            Action::Change { survives } => {
                if survives {
                    group.end();
                }
                (group.leader, group.proposed, group.has_quorum) = (1 - group.leader, false, true);
                group.voters[group.leader] = Voter { term: Some(office(group.now)), ..Voter::default() };
                group.changes_left -= 1;
            }
            Action::Resign(voter) => group.voters[voter] = Voter::default(),
            Action::StandStill(voter) => {
                group.voters[voter].stands_still = true;
                group.gaps_left[0] -= 1;
            }
            Action::GoOn(voter) => group.voters[voter].stands_still = false,
            Action::LoseQuorum => {
                group.has_quorum = false;
                group.gaps_left[1] -= 1;
            }
            Action::WinQuorum => group.has_quorum = true,
            Action::Look(voter) => self.look(&mut group, voter)?,
            Action::Commit => group.end(),
        }
        Some(group)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("its lease is over", |_, group: &Group| {
                group.ended.is_none_or(|ended| group.lease_over <= ended)
            }),
            Property::always("nobody is ended unheard", |_, group: &Group| !group.unheard),
            Property::sometimes("a session is ended", |_, group: &Group| group.ended.is_some()),
            Property::sometimes("a new leader ends it", |_, group: &Group| {
                group.ended.is_some() && group.changes_left == 0
            }),
            Property::sometimes("a session lives on", |model: &Self, group: &Group| {
                group.ended.is_none() && group.now == model.time_max && group.changes_left == 0
            }),
        ]
    }
}

const SOMETIMES: [&str; 3] = ["a session is ended", "a new leader ends it", "a session lives on"];

#[test]
fn l1_no_session_is_ended_whose_lease_runs_whoever_leads() {
    let (time_max, changes) = if std::env::var_os("CSV_SOAK").is_some() { (7, 2) } else { (6, 1) };
    let model = Leading { rules: Rules::from_test_environment(), time_max, changes };
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (found, states) = (checker.discoveries(), checker.unique_state_count());
    println!("{states} states");
    let wrong: Vec<_> = found.keys().filter(|name| !SOMETIMES.contains(name)).collect();
    assert!(wrong.is_empty(), "{wrong:?} in {states} states");
    assert!(SOMETIMES.iter().all(|name| found.contains_key(name)), "only {found:?} in {states} states");
}

#[test]
fn the_model_finds_a_rule_that_is_switched_off() {
    let planted = [
        (Rule::L1, "nobody is ended unheard"),
        (Rule::L1, "its lease is over"),
        (Rule::L4, "its lease is over"),
    ];
    for (rule, what) in planted {
        let model = Leading { rules: Rules::all().without(rule), time_max: 6, changes: 1 };
        let checker = model.checker().finish_when(HasDiscoveries::AllOf([what].into())).spawn_bfs().join();
        let states = checker.unique_state_count();
        println!("{rule} off: {what:?} in {states} states");
        assert!(checker.discovery(what).is_some(), "{rule} was off; {what:?} still holds in {states} states");
    }
}
