//! Random commands: whatever comes, the invariants hold, and the same entries give the same state.

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::*;
use super::cluster::*;
use crate::ids::{ClientId, Epoch, GrantId, ResourceId, Sequence, SessionId, SlotId, Ticket, VolumeId};
use crate::locks::{ByteRange, LockKind, LockMode, LockOwner, LockRequest};
use crate::rules::Rules;

/// A command before it is known what there is to name.
#[derive(Clone, Debug)]
struct Step {
    what: u8,
    seconds: u8,
    pick: [Index; 4],
    number: u64,
    flags: [bool; 3],
}

fn step() -> impl Strategy<Value = Step> {
    let pick = [any::<Index>(), any::<Index>(), any::<Index>(), any::<Index>()];
    (0_u8..34, 0_u8..4, pick, 0_u64..6, any::<[bool; 3]>())
        .prop_map(|(what, seconds, pick, number, flags)| Step { what, seconds, pick, number, flags })
}

/// One of what there is; rarely, something that is not there.
fn one_of<T: Clone>(index: Index, all: Vec<T>, none: T) -> T {
    let at = index.index(all.len() * 8 + 1);
    all.get(at / 8).cloned().unwrap_or(none)
}

impl Step {
    fn command(&self, state: &State) -> Command {
        let session =
            |n: usize| one_of(self.pick[n], state.sessions.keys().copied().collect(), SessionId(99));
        match self.what {
            0 => Command::Tick,
            1..4 => Command::OpenSession {
                node: node(["n1", "n2", "n3"][self.pick[0].index(3)]),
                nonce: Nonce(u128::from(self.number)),
            },
            // Seldom, as it undoes much.
            4 if self.flags == [true; 3] => Command::EndSession {
                session: session(0),
                cause: [EndCause::Lapsed, EndCause::Closed, EndCause::Forced][self.pick[1].index(3)],
            },
            4..9 => Command::AddClient {
                session: session(0),
                nonce: Nonce(u128::from(self.number)),
                kind: [
                    mount(),
                    mount(),
                    mount(),
                    ClientKind::Csvfs { volume: OTHER_VOLUME },
                    ClientKind::Vmhost,
                    ClientKind::Tool,
                ][self.pick[1].index(6)],
                pid: 1,
            },
            9 => {
                let client = self.client(state, 0);
                let own = state.clients.get(&client).map_or(SessionId(1), |client| client.session);
                Command::ClientGone { session: if self.flags[0] { own } else { session(1) }, client }
            }
            10..14 => {
                let nowhere = (VolumeId([0; 16]), Victim::Session(SessionId(1)));
                let (volume, victim) = one_of(self.pick[0], state.fences.keys().copied().collect(), nowhere);
                let methods = [FenceMethod::ScsiPr, FenceMethod::Lease, FenceMethod::Quiesce];
                let fenced = Report::Fenced { method: methods[self.pick[2].index(3)] };
                let report = if self.flags[0] { Report::Drained } else { fenced };
                Command::FenceReport { volume, victim, reporter: session(1), report }
            }
            14 => Command::RegisterVolume {
                volume: [VOLUME, OTHER_VOLUME, VolumeId([3; 16])][self.pick[0].index(3)],
                name: ["vms", "other", "x", "a/b"][self.pick[1].index(4)].to_owned(),
                fence: if self.flags[0] { FenceMethod::Lease } else { FenceMethod::ScsiPr },
                quiesce_ns: [QUIESCE_NS, SECOND_NS][self.pick[2].index(2)],
                epoch_floor: Epoch(self.number),
            },
            15 => Command::Configure(Settings {
                lease_ns: self.number * SECOND_NS,
                grace_ns: u64::from(self.seconds) * SECOND_NS,
            }),
            _ => {
                let client = self.client(state, 0);
                let slot = SlotId(u32::from(self.flags[1]));
                // The next of the slot, as one can find it by trying; often enough a copy of the last.
                let next = (1..).map(Sequence).find(|sequence| {
                    let mut slots = state.slots.clone();
                    let decision = slots.begin(Rules::all(), client, slot, *sequence);
                    !matches!(
                        decision,
                        crate::slots::SlotDecision::Refused(crate::slots::SlotRefusal::Old { .. })
                            | crate::slots::SlotDecision::Replay(_)
                    )
                });
                let next = next.unwrap_or(Sequence(1));
                let back = u64::from(self.pick[3].index(6) == 0);
                let sequence = Sequence(next.0.saturating_sub(back));
                Command::Client { client, slot, sequence, operation: self.operation(state, client) }
            }
        }
    }

    fn client(&self, state: &State, n: usize) -> ClientId {
        one_of(self.pick[n], state.clients.keys().copied().collect(), ClientId(99))
    }

    fn resource(&self) -> ResourceId {
        match self.number {
            0 => COORDINATOR,
            1 => vm("web"),
            2 => ResourceId::File(OTHER_VOLUME, 1),
            ino => file(ino),
        }
    }

    fn operation(&self, state: &State, client: ClientId) -> Operation {
        let resource = self.resource();
        let held = state.resources.get(&resource).and_then(|held| held.first());
        let epoch = held.map_or(Epoch(1), |holding| holding.epoch);
        let owner = LockOwner { client, kind: LockKind::Posix, id: self.pick[1].index(2) as u64 };
        let owner = if self.flags[2] { owner } else { LockOwner { kind: LockKind::Flock, ..owner } };
        let (start, len) = (self.pick[2].index(10) as u64, self.pick[3].index(10) as u64);
        let range = ByteRange::new(start, start + len).unwrap();
        let mode = if self.flags[0] { LockMode::Shared } else { LockMode::Exclusive };
        let kept = state.escrows.iter().map(|((resource, _), escrow)| (escrow.cookie, resource.clone()));
        let (cookie, escrowed) = one_of(self.pick[1], kept.collect(), (Cookie(0), resource.clone()));
        match self.what {
            16..20 => {
                let mode = if self.pick[1].index(4) == 0 { HoldMode::Shared } else { HoldMode::Exclusive };
                Operation::Acquire { resource, mode, pinned: self.flags[0] }
            }
            20 => {
                let mine = state.held.get(&client).into_iter().flatten().cloned().collect();
                let resource = one_of(self.pick[1], mine, resource);
                let epoch = state.holding(client, &resource).map_or(epoch, |holding| holding.epoch);
                Operation::Release { resource, epoch }
            }
            21..25 => {
                let kind = state.clients.get(&client).map(|client| client.kind);
                let alike =
                    state.clients.iter().filter(|(id, other)| Some(other.kind) == kind && **id != client);
                let to = one_of(self.pick[1], alike.map(|(id, _)| *id).collect(), client);
                let mine = state.held.get(&client).cloned().unwrap_or_default();
                let moves = mine.into_iter().take(1 + self.pick[2].index(3));
                let moves = moves.map(|resource| {
                    let epoch = state.holding(client, &resource).map_or(Epoch(1), |holding| holding.epoch);
                    moving(&resource, epoch, client, to)
                });
                let cookie = Cookie(u128::from(state.last_epoch.0));
                Operation::Transfer { cookie, moves: moves.collect(), escrow: self.flags[0], pinned: false }
            }
            25 => Operation::Abort {
                slot: SlotId(u32::from(!self.flags[1])),
                sequence: Sequence(1 + self.pick[2].index(4) as u64),
            },
            26 => Operation::Adopt { cookie, resource: escrowed, to: self.flags[0].then_some(1) },
            27 => Operation::DropEscrow { cookie, resource: escrowed },
            28..31 => Operation::Lock {
                resource,
                request: LockRequest { owner, pid: 1, mode, range },
                wait: self.pick[1].index(3) > 0,
            },
            31 => {
                let grant = self.flags[0].then_some(GrantId(self.pick[1].index(20) as u64));
                Operation::Unlock { resource, owner, range, grant }
            }
            32 if self.flags[0] => Operation::ReleaseOwner { resource, owner },
            32 => {
                let ticket = one_of(self.pick[1], state.tickets.keys().copied().collect(), Ticket(9));
                Operation::Cancel { ticket }
            }
            _ if self.flags[0] => Operation::Leave,
            _ => {
                let ended = one_of(self.pick[1], state.sessions.keys().copied().collect(), SessionId(99));
                let session = BreakTarget::Session(ended);
                let target = if self.flags[1] { session } else { BreakTarget::Resource(resource) };
                let confirmed_node = ["n1", "n2", "n3"][self.pick[2].index(3)].to_owned();
                Operation::Break { target, confirmed_node, operator: "root".to_owned(), wall_ns: 0 }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_the_invariants_hold_and_the_future_is_the_same(
        steps in prop::collection::vec(step(), 1..120),
        cut in any::<Index>(),
    ) {
        let mut cluster = Cluster::new();
        // Nodes with mounts to begin with, so that less is refused.
        for name in ["n1", "n2", "n3"] {
            cluster.mounted(name);
        }
        let begin = cluster.state.clone();
        let mut entries = Vec::new();
        for step in &steps {
            cluster.pass_s(u64::from(step.seconds));
            let command = step.command(&cluster.state);
            let bytes = encode_command(&command).unwrap();
            prop_assert_eq!(decode_command(&bytes), Ok(command.clone()));
            let reply = cluster.apply(&command);
            prop_assert_eq!(decode_reply(&encode_reply(&reply).unwrap()), Ok(reply.clone()));
            entries.push((cluster.time_ns, command, reply));
        }
        let end = cluster.state.snapshot().unwrap();

        // Another voter, which restarts from a snapshot somewhere on its way.
        let mut other = begin;
        let cut = cut.index(entries.len());
        for (at, (time_ns, command, reply)) in entries.iter().enumerate() {
            if at == cut {
                other = State::restore(&other.snapshot().unwrap()).unwrap();
            }
            let (again, _) = other.apply(cluster.rules, *time_ns, command);
            prop_assert_eq!(&again, reply);
        }
        prop_assert_eq!(&other, &cluster.state);
        prop_assert_eq!(other.snapshot().unwrap(), end);
    }
}
