//! The production state machine under a model checker: every order of what can happen, within bounds.
//!
//! Node 1's mount `a` owns a file and has a lock on it; it hands both to node 2's mount `b`, or node 1 is cut off, or `a`
//! is killed. Commands are lost, repeated and overtake each other (which is also what a change of leader does to them);
//! replies are lost. Writes of `a` linger on their way to the LUN, or at node 3, which carries for it. What is checked:
//! - invariants 1 and 2: `b` starts to write only when `a` has stopped for good and nothing of it can land any more;
//! - invariant 7: no command has effect twice;
//! - the lock of the program that moves is never anybody else's (L8);
//! - all invariants of [`State::check`].

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::super::*;
use super::cluster::*;
use crate::ids::{ClientId, Epoch, Sequence, SessionId, SlotId};
use crate::rules::{Rule, Rules};

/// What can go wrong in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// Messages only.
    None,
    /// Node 1 is cut off; its session lapses and is fenced.
    CutOff,
    /// `a` is killed.
    Killed,
    /// `b` asks for what is not its own, `c` for locks that are not its own.
    Thieves,
}

/// What `a` does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Source {
    /// It owns the file and writes.
    Writes,
    /// It has stopped and drained, and asked for the transfer.
    Moving,
    /// It has given up waiting for the answer and asked for the abort.
    Aborting,
    /// It is the owner no more, and knows it.
    Over,
    /// It is dead, or its lease is over.
    Stopped,
}

/// A message that is on its way, or may come again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Message {
    Transfer,
    Abort,
    AcquireByB,
    AdoptByB,
    TheftByB,
    AdoptByC,
    EndFirst,
    AGone,
    Drained(SessionId),
    Fenced,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Action {
    /// The message reaches the leader and is applied.
    Apply(Message),
    /// The reply to it reaches the sender.
    Answer(Message),
    /// A write of `a` lingers on its own path, or at the third node.
    Linger {
        carried: bool,
    },
    /// It lands after all.
    Land {
        carried: bool,
    },
    Send(Message),
    /// `b` asks the confirmed leader and finds itself the owner.
    Learn,
    CutOff,
    Kill,
    /// The third node has the target refuse what comes by `a`'s own path, and drain it.
    FenceAtTarget,
}

#[derive(Clone, PartialEq, Debug)]
struct World {
    lockd: State,
    source: Source,
    /// Writes of `a` of unknown fate: on its own path, at the third node.
    lingering: [bool; 2],
    /// The target refuses node 1; the third node refuses it.
    refused: [bool; 2],
    b_writes: bool,
    /// How often a message can still arrive.
    network: BTreeMap<Message, u8>,
    /// Replies that may still arrive.
    replies: BTreeMap<Message, Reply>,
    /// How often a command has changed something.
    effects: BTreeMap<Message, u8>,
    broken: Option<String>,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.lockd.snapshot().unwrap().hash(state);
        (self.source, self.lingering, self.refused, self.b_writes, &self.network, &self.effects).hash(state);
        for (message, reply) in &self.replies {
            (message, encode_reply(reply).unwrap()).hash(state);
        }
    }
}

struct Handover {
    rules: Rules,
    fault: Fault,
    start: State,
    sessions: [SessionId; 3],
    a: ClientId,
    b: ClientId,
    c: ClientId,
    epoch: Epoch,
}

impl Handover {
    fn new(rules: Rules, fault: Fault) -> Self {
        let mut cluster = Cluster::new();
        let (first, a) = cluster.mounted("n1");
        let (second, b) = cluster.mounted("n2");
        let (third, c) = cluster.mounted("n3");
        let epoch = cluster.acquire(a, &file(1));
        cluster.lock(a, 1, 1, 0, 9);
        Self { rules, fault, start: cluster.state, sessions: [first, second, third], a, b, c, epoch }
    }

    fn victim(&self) -> Victim {
        if self.fault == Fault::Killed { Victim::Client(self.a) } else { Victim::Session(self.sessions[0]) }
    }

    fn command(&self, message: Message) -> Command {
        let Self { a, b, c, epoch, .. } = *self;
        let transfer = || Operation::Transfer {
            cookie: Cookie(1),
            moves: vec![moving(&file(1), epoch, a, b)],
            escrow: true,
            pinned: false,
        };
        let adopt = |cookie| Operation::Adopt { cookie: Cookie(cookie), resource: file(1), to: None };
        let report = |reporter, report| Command::FenceReport {
            volume: VOLUME,
            victim: self.victim(),
            reporter,
            report,
        };
        // `a` has used its slot 0 twice.
        let (client, slot, sequence, operation) = match message {
            Message::Transfer => (a, 0, 3, transfer()),
            Message::Abort => (a, 1, 1, Operation::Abort { slot: SlotId(0), sequence: Sequence(3) }),
            Message::AcquireByB => (b, 0, 1, acquisition(&file(1))),
            Message::AdoptByB => (b, 1, 1, adopt(1)),
            Message::TheftByB => (b, 2, 1, transfer()),
            Message::AdoptByC => (c, 0, 1, adopt(2)),
            Message::EndFirst => {
                return Command::EndSession { session: self.sessions[0], cause: EndCause::Lapsed };
            }
            Message::AGone => return Command::ClientGone { session: self.sessions[0], client: a },
            Message::Drained(reporter) => return report(reporter, Report::Drained),
            Message::Fenced => {
                let by_node_1 = self.fault == Fault::Killed;
                let method = if by_node_1 { FenceMethod::Quiesce } else { FenceMethod::NbdTarget };
                return report(self.sessions[if by_node_1 { 0 } else { 2 }], Report::Fenced { method });
            }
        };
        Command::Client { client, slot: SlotId(slot), sequence: Sequence(sequence), operation }
    }

    fn is_known_dead(&self, world: &World) -> bool {
        world.lockd.fences.contains_key(&(VOLUME, self.victim()))
    }

    /// What may be sent now for the first time.
    fn sendable(&self, world: &World) -> Vec<Message> {
        let [_, second, third] = self.sessions;
        let mut messages = Vec::new();
        match world.source {
            Source::Writes if world.lingering == [false; 2] => messages.push(Message::Transfer),
            Source::Moving => messages.push(Message::Abort),
            Source::Stopped => {
                messages.push(if self.fault == Fault::Killed { Message::AGone } else { Message::EndFirst });
            }
            _ => {}
        }
        if self.is_known_dead(world) {
            messages.push(Message::Drained(second));
            if world.refused[1] && !world.lingering[1] {
                messages.push(Message::Drained(third));
            }
            if world.refused[0] && !world.lingering[0] {
                messages.push(Message::Fenced);
            }
        }
        if self.fault != Fault::None {
            messages.push(Message::AcquireByB);
        }
        if world.b_writes {
            messages.push(Message::AdoptByB);
        }
        if self.fault == Fault::Thieves {
            messages.extend([Message::TheftByB, Message::AdoptByC]);
        }
        messages.retain(|message| !world.network.contains_key(message));
        messages
    }

    fn apply(&self, world: &mut World, message: Message) {
        let before = (world.lockd.resources.clone(), world.lockd.locks.clone());
        let (reply, _) = world.lockd.apply(self.rules, SECOND_NS, &self.command(message));
        // What watchers are told does not matter here, and would tell apart what is the same.
        world.lockd.events = Default::default();
        if (&before.0, &before.1) != (&world.lockd.resources, &world.lockd.locks) {
            *world.effects.entry(message).or_default() += 1;
        }
        if let Err(wrong) = world.lockd.check() {
            world.broken.get_or_insert(wrong);
        }
        if matches!(message, Message::Transfer | Message::Abort | Message::AcquireByB) {
            world.replies.insert(message, reply);
        }
    }

    fn answer(&self, world: &mut World, message: Message, reply: Reply) {
        match (message, reply) {
            (Message::AcquireByB, Reply::Acquired(_)) => world.b_writes = true,
            (Message::AcquireByB, _) => {}
            _ if !matches!(world.source, Source::Moving | Source::Aborting) => {}
            (Message::Transfer, Reply::Transferred { .. })
            | (Message::Abort, Reply::Abort(AbortOutcome::Applied(_))) => world.source = Source::Over,
            (Message::Transfer, Reply::Refused(Refusal::ClientEnded(_)))
            | (Message::Abort, Reply::Refused(_)) => world.source = Source::Stopped,
            // Not moved, for certain: it goes on.
            _ => world.source = Source::Writes,
        }
    }
}

impl Model for Handover {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut lockd = self.start.clone();
        lockd.events = Default::default();
        vec![World {
            lockd,
            source: Source::Writes,
            lingering: [false; 2],
            refused: [false; 2],
            b_writes: false,
            network: BTreeMap::new(),
            replies: BTreeMap::new(),
            effects: BTreeMap::new(),
            broken: None,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let arriving = world.network.iter().filter(|(_, left)| **left > 0);
        actions.extend(arriving.map(|(message, _)| Action::Apply(*message)));
        actions.extend(world.replies.keys().map(|message| Action::Answer(*message)));
        actions.extend(self.sendable(world).into_iter().map(Action::Send));
        for carried in [false, true] {
            if world.lingering[usize::from(carried)] {
                actions.push(Action::Land { carried });
            } else if world.source == Source::Writes
                && matches!(self.fault, Fault::CutOff | Fault::Killed)
                && !world.refused[usize::from(carried)]
            {
                actions.push(Action::Linger { carried });
            }
        }
        if !world.b_writes && world.lockd.holding(self.b, &file(1)).is_some() {
            actions.push(Action::Learn);
        }
        if world.source != Source::Stopped && world.source != Source::Over {
            match self.fault {
                Fault::CutOff => actions.push(Action::CutOff),
                Fault::Killed => actions.push(Action::Kill),
                Fault::None | Fault::Thieves => {}
            }
        }
        if self.is_known_dead(world) && world.refused != [true; 2] {
            actions.push(Action::FenceAtTarget);
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        match action {
            Action::Apply(message) => {
                *world.network.get_mut(&message)? -= 1;
                self.apply(&mut world, message);
            }
            Action::Answer(message) => {
                let reply = world.replies.remove(&message)?;
                self.answer(&mut world, message, reply);
            }
            Action::Send(message) => {
                // What is retried comes twice, or once, or never.
                let retried = matches!(message, Message::Transfer | Message::Abort | Message::AdoptByB);
                let copies = if retried { 2 } else { 1 };
                world.network.insert(message, copies);
                match message {
                    Message::Transfer => world.source = Source::Moving,
                    Message::Abort => world.source = Source::Aborting,
                    _ => {}
                }
            }
            Action::Linger { carried } => world.lingering[usize::from(carried)] = true,
            Action::Land { carried } => world.lingering[usize::from(carried)] = false,
            Action::Learn => world.b_writes = true,
            // L3: no write starts past the lease. L1: the leader ends the session only after that.
            Action::CutOff | Action::Kill => world.source = Source::Stopped,
            Action::FenceAtTarget => {
                world.refused = [true; 2];
                // The target's drain is proof; what the third node carries is its own to drain.
                world.lingering[0] = false;
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one writer", |_, world: &World| {
                let a_writes = world.source == Source::Writes || world.lingering != [false; 2];
                !(world.b_writes && a_writes)
            }),
            Property::always("once", |_, world: &World| world.effects.values().all(|effects| *effects <= 1)),
            Property::always("the lock is the program's", |model: &Self, world: &World| {
                world.lockd.locks.held_by(model.c).is_empty()
            }),
            Property::always("checked", |_, world: &World| world.broken.is_none()),
            Property::sometimes("b becomes the owner", |_, world: &World| world.b_writes),
            Property::sometimes("a goes on after an abort", |model: &Self, world: &World| {
                // With a fault there are shorter ways to look at.
                model.fault != Fault::None
                    || (world.source == Source::Writes && world.network.contains_key(&Message::Abort))
            }),
        ]
    }
}

/// Looks at everything that can happen; tells which properties do not hold, and how many states there are.
fn explore(rules: Rules, fault: Fault) -> (Vec<&'static str>, usize) {
    let checker = Handover::new(rules, fault).checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_bfs().join();
    let mut wrong: Vec<_> = checker.discoveries().into_keys().collect();
    // What should sometimes be and was found is fine.
    let sometimes = ["b becomes the owner", "a goes on after an abort"];
    let missing: Vec<_> = sometimes.into_iter().filter(|name| !wrong.contains(name)).collect();
    wrong.retain(|name| !sometimes.contains(name));
    wrong.extend(missing);
    (wrong, checker.unique_state_count())
}

#[track_caller]
fn one_node_writes(fault: Fault) {
    let (wrong, states) = explore(Rules::from_test_environment(), fault);
    assert!(wrong.is_empty(), "{wrong:?} in {states} states");
    println!("{states} states");
}

#[test]
fn one_node_writes_when_messages_are_lost_and_repeated() {
    one_node_writes(Fault::None);
}

#[test]
fn one_node_writes_when_the_source_is_cut_off() {
    one_node_writes(Fault::CutOff);
}

#[test]
fn one_node_writes_when_the_source_is_killed() {
    one_node_writes(Fault::Killed);
}

#[test]
fn one_node_writes_when_others_ask_for_what_is_not_theirs() {
    one_node_writes(Fault::Thieves);
}

#[test]
fn the_model_finds_a_rule_that_is_switched_off() {
    let planted = [
        (Rule::L5, Fault::None),
        (Rule::L6, Fault::Thieves),
        (Rule::L7, Fault::None),
        (Rule::L8, Fault::Thieves),
        (Rule::L9, Fault::CutOff),
        (Rule::L10, Fault::Killed),
        (Rule::F1, Fault::CutOff),
    ];
    for (rule, fault) in planted {
        let (wrong, states) = explore(Rules::all().without(rule), fault);
        assert!(!wrong.is_empty(), "{rule} was off and nothing was found in {states} states");
        println!("{rule} off, {fault:?}: {wrong:?}");
    }
}
