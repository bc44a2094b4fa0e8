use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use bincode::config::standard;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::ids::{ClientId, Sequence, SlotId};
use crate::rules::Rules;

const CLIENT: ClientId = ClientId(5);
const SLOT: SlotId = SlotId(0);

fn table() -> SlotTable {
    let mut table = SlotTable::new();
    table.add_client(CLIENT).unwrap();
    table
}

fn begin(table: &mut SlotTable, sequence: u64) -> SlotDecision {
    table.begin(Rules::from_test_environment(), CLIENT, SLOT, Sequence(sequence))
}

fn execute(table: &mut SlotTable, sequence: u64, reply: &[u8]) {
    assert_eq!(begin(table, sequence), SlotDecision::Execute);
    table.finish(CLIENT, SLOT, Sequence(sequence), reply.to_vec()).unwrap();
}

#[test]
fn l5_a_command_that_comes_again_is_answered_and_not_executed() {
    let mut table = table();
    execute(&mut table, 1, b"one");
    assert_eq!(begin(&mut table, 1), SlotDecision::Replay(b"one".to_vec()));
    execute(&mut table, 2, b"two");
    assert_eq!(begin(&mut table, 2), SlotDecision::Replay(b"two".to_vec()));
    let old = SlotRefusal::Old { asked: Sequence(1), last: Sequence(2) };
    assert_eq!(begin(&mut table, 1), SlotDecision::Refused(old));
    let skips = SlotRefusal::Skips { asked: Sequence(4), last: Sequence(2) };
    assert_eq!(begin(&mut table, 4), SlotDecision::Refused(skips));
}

#[test]
fn l5_the_rule_decides_alike_over_any_store() {
    let decide = |stored, asked| decide(Rules::from_test_environment(), stored, Sequence(asked));
    assert_eq!(decide(None, 1), SlotDecision::Execute);
    for asked in [0, 2] {
        let skips = SlotRefusal::Skips { asked: Sequence(asked), last: Sequence(0) };
        assert_eq!(decide(None, asked), SlotDecision::Refused(skips));
    }
    let stored = Some((Sequence(u64::MAX), b"last".as_slice()));
    assert_eq!(decide(stored, u64::MAX), SlotDecision::Replay(b"last".to_vec()));
    assert!(matches!(decide(stored, 0), SlotDecision::Refused(SlotRefusal::Old { .. })));
}

#[test]
fn l5_a_copy_does_not_run_beside_the_first() {
    let mut table = table();
    assert_eq!(begin(&mut table, 1), SlotDecision::Execute);
    assert_eq!(begin(&mut table, 1), SlotDecision::Refused(SlotRefusal::UnderWay(Sequence(1))));
    table.abandon(CLIENT, SLOT, Sequence(1)).unwrap();
    execute(&mut table, 1, b"done");
}

#[test]
fn what_no_client_has_is_refused() {
    let rules = Rules::from_test_environment();
    let mut table = table();
    let beyond = SlotId(SLOTS_PER_CLIENT);
    let refused = table.begin(rules, CLIENT, beyond, Sequence(1));
    assert_eq!(refused, SlotDecision::Refused(SlotRefusal::NoSuchSlot(beyond)));
    let refused = table.begin(rules, ClientId(6), SLOT, Sequence(1));
    assert_eq!(refused, SlotDecision::Refused(SlotRefusal::ClientEnded(ClientId(6))));

    assert_eq!(begin(&mut table, 1), SlotDecision::Execute);
    let long = vec![0; REPLY_BYTES_MAX + 1];
    let too_long = table.finish(CLIENT, SLOT, Sequence(1), long);
    assert_eq!(too_long, Err(SlotError::ReplyTooLong(REPLY_BYTES_MAX + 1)));
    table.end_client(CLIENT);
    let late = SlotError::NotUnderWay { client: CLIENT, slot: SLOT, sequence: Sequence(1) };
    assert_eq!(table.finish(CLIENT, SLOT, Sequence(1), Vec::new()), Err(late));
    assert_eq!(begin(&mut table, 1), SlotDecision::Refused(SlotRefusal::ClientEnded(CLIENT)));
}

#[test]
fn a_table_knows_so_many_clients_and_each_once() {
    let mut table = table();
    assert_eq!(table.add_client(CLIENT), Err(SlotError::Registered(CLIENT)));
    for id in 1..CLIENTS_MAX as u64 {
        table.add_client(ClientId(id + 100)).unwrap();
    }
    assert_eq!(table.add_client(ClientId(1)), Err(SlotError::TooManyClients));
    table.end_client(CLIENT);
    assert_eq!(table.add_client(ClientId(1)), Ok(()));
    assert_eq!(table.clients().len(), CLIENTS_MAX);
}

#[test]
fn a_slot_is_used_by_one_command_at_a_time() {
    let slots = SlotAllocator::new();
    let mut uses: Vec<SlotUse> = (0..SLOTS_PER_CLIENT).map(|_| slots.acquire().unwrap()).collect();
    assert!(slots.try_acquire().unwrap().is_none());
    assert_eq!(slots.in_use(), SLOTS_PER_CLIENT as usize);

    // A thread waits until the reply of one command frees its slot.
    let (got, gets) = channel();
    let waiting = Arc::clone(&slots);
    let thread = std::thread::spawn(move || got.send(waiting.acquire()).unwrap());
    assert!(gets.recv_timeout(Duration::from_millis(20)).is_err());
    uses.remove(7).answered();
    let used = gets.recv_timeout(Duration::from_secs(15)).unwrap().unwrap();
    thread.join().unwrap();
    assert_eq!((used.slot(), used.sequence()), (SlotId(7), Sequence(2)));
    used.unused();
    let used = slots.acquire().unwrap();
    assert_eq!((used.slot(), used.sequence()), (SlotId(7), Sequence(2)), "its sequence was not used");

    // A command of unknown fate costs its slot; when all are lost, nobody waits for ever.
    drop(used);
    assert!(slots.try_acquire().unwrap().is_none());
    drop(uses);
    assert_eq!(slots.acquire().unwrap_err(), NoSlot::AllLost);
}

#[test]
fn closing_wakes_who_waits_for_a_slot() {
    let slots = SlotAllocator::new();
    let uses: Vec<SlotUse> = (0..SLOTS_PER_CLIENT).map(|_| slots.acquire().unwrap()).collect();
    let waiting = Arc::clone(&slots);
    let thread = std::thread::spawn(move || waiting.acquire().map(|_| ()));
    slots.close();
    assert_eq!(thread.join().unwrap(), Err(NoSlot::Closed));
    for used in uses {
        used.answered();
    }
    assert_eq!(slots.try_acquire().unwrap_err(), NoSlot::Closed);
}

/// What happens to commands on a network that loses, repeats, delays and reorders them.
#[derive(Clone, Debug)]
enum Step {
    /// A new command is made and sent.
    New,
    /// A command without a reply is sent again.
    Again(Index),
    /// A message arrives: the last time, or (a copy stays) not.
    Arrives { at: Index, copy: bool, lost_reply: bool },
    /// A message arrives, and its execution is undone by a crash before it is committed.
    Crashes(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::New),
        2 => any::<Index>().prop_map(Step::Again),
        6 => (any::<Index>(), any::<bool>(), any::<bool>())
            .prop_map(|(at, copy, lost_reply)| Step::Arrives { at, copy, lost_reply }),
        1 => any::<Index>().prop_map(Step::Crashes),
    ]
}

type Message = (SlotId, Sequence, u64);

struct World {
    slots: Arc<SlotAllocator>,
    table: SlotTable,
    /// Commands without a reply.
    open: BTreeMap<u64, SlotUse>,
    network: Vec<Message>,
    executed: BTreeMap<u64, u32>,
    made: u64,
}

impl World {
    fn send(&mut self, command: u64) {
        let used = &self.open[&command];
        self.network.push((used.slot(), used.sequence(), command));
    }

    fn arrives(&mut self, message: Message, lost_reply: bool) {
        let (slot, sequence, command) = message;
        let reply = match self.table.begin(Rules::from_test_environment(), CLIENT, slot, sequence) {
            SlotDecision::Execute => {
                let times = self.executed.entry(command).or_default();
                *times += 1;
                assert_eq!(*times, 1, "command {command} took effect twice");
                let reply = command.to_le_bytes().to_vec();
                self.table.finish(CLIENT, slot, sequence, reply.clone()).unwrap();
                reply
            }
            SlotDecision::Replay(reply) => reply,
            SlotDecision::Refused(refusal) => {
                assert!(matches!(refusal, SlotRefusal::Old { .. }), "{refusal}");
                assert!(!self.open.contains_key(&command), "a command that waits is not old");
                return;
            }
        };
        assert_eq!(reply, command.to_le_bytes(), "the reply of another command");
        if !lost_reply && let Some(used) = self.open.remove(&command) {
            used.answered();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn l5_every_command_takes_effect_once(steps in prop::collection::vec(step(), 1..120)) {
        let slots = SlotAllocator::new();
        let mut world = World {
            slots, table: table(), open: BTreeMap::new(), network: Vec::new(), executed: BTreeMap::new(), made: 0,
        };
        for step in steps {
            match step {
                Step::New => {
                    if let Some(used) = world.slots.try_acquire().unwrap() {
                        world.made += 1;
                        world.open.insert(world.made, used);
                        world.send(world.made);
                    }
                }
                Step::Again(at) if !world.open.is_empty() => {
                    let command = *world.open.keys().nth(at.index(world.open.len())).unwrap();
                    world.send(command);
                }
                Step::Arrives { at, copy, lost_reply } if !world.network.is_empty() => {
                    let at = at.index(world.network.len());
                    let message = if copy { world.network[at] } else { world.network.swap_remove(at) };
                    world.arrives(message, lost_reply);
                }
                Step::Crashes(at) if !world.network.is_empty() => {
                    let (slot, sequence, _) = world.network.swap_remove(at.index(world.network.len()));
                    let rules = Rules::from_test_environment();
                    if world.table.begin(rules, CLIENT, slot, sequence) == SlotDecision::Execute {
                        world.table.abandon(CLIENT, slot, sequence).unwrap();
                    }
                    let bytes = bincode::encode_to_vec(&world.table, standard()).unwrap();
                    let (table, _) = bincode::decode_from_slice::<SlotTable, _>(&bytes, standard()).unwrap();
                    prop_assert_eq!(&table, &world.table);
                    world.table = table;
                }
                Step::Again(_) | Step::Arrives { .. } | Step::Crashes(_) => {}
            }
        }
        // The network heals: every command is sent once more and answered.
        for command in world.open.keys().copied().collect::<Vec<_>>() {
            world.send(command);
        }
        for message in std::mem::take(&mut world.network).into_iter().rev() {
            world.arrives(message, false);
        }
        prop_assert!(world.open.is_empty());
        prop_assert_eq!(world.executed.len() as u64, world.made);
        prop_assert_eq!(world.slots.in_use(), 0);
    }

    #[test]
    fn arbitrary_bytes_make_no_table_or_a_usable_one(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let config = standard().with_limit::<65_536>();
        if let Ok((mut table, _)) = bincode::decode_from_slice::<SlotTable, _>(&bytes, config) {
            for client in table.clients() {
                for slot in 0..SLOTS_PER_CLIENT {
                    let _ = table.begin(Rules::all(), client, SlotId(slot), Sequence(u64::MAX));
                    let _ = table.begin(Rules::all(), client, SlotId(slot), Sequence(1));
                }
            }
        }
        let _ = bincode::decode_from_slice::<SlotDecision, _>(&bytes, config);
    }
}
