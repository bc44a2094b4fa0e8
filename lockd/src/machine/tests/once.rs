use super::super::*;
use super::cluster::*;
use crate::ids::{Sequence, SlotId};
use crate::slots::SlotRefusal;

#[test]
fn l5_a_command_that_comes_again_takes_effect_once() {
    let mut cluster = Cluster::new();
    let (_, client) = cluster.mounted("n1");
    let acquire = cluster.command_in(client, 1, acquisition(&file(1)));
    let reply = cluster.apply(&acquire);
    let Reply::Acquired(holder) = reply.clone() else { panic!("{reply:?}") };
    assert_eq!(cluster.apply(&acquire), reply);
    cluster.ask_done(client, Operation::Release { resource: file(1), epoch: holder.epoch });
    assert_eq!(cluster.apply(&acquire), reply, "a late copy gets the reply of the first");
    assert_eq!(cluster.holder(&file(1)), None, "and has no effect");
    assert!(cluster.events.is_empty());
    // A refusal is a reply as any other.
    let release = Operation::Release { resource: file(1), epoch: holder.epoch };
    let command = cluster.command_in(client, 1, release);
    let refusal = cluster.refused(command.clone());
    cluster.acquire(client, &file(1));
    assert_eq!(cluster.refused(command), refusal);
    let skipping =
        Command::Client { client, slot: SlotId(1), sequence: Sequence(9), operation: Operation::Leave };
    assert!(matches!(cluster.refused(skipping), Refusal::Slot(SlotRefusal::Skips { .. })));
    let beyond =
        Command::Client { client, slot: SlotId(64), sequence: Sequence(1), operation: Operation::Leave };
    assert!(matches!(cluster.refused(beyond), Refusal::Slot(SlotRefusal::NoSuchSlot(_))));
}

#[test]
fn l7_of_a_transfer_and_its_abort_the_first_wins() {
    let mut cluster = Cluster::new();
    let (_, a) = cluster.mounted("n1");
    let (_, b) = cluster.mounted("n2");
    let epoch = cluster.acquire(a, &file(1));
    let transfer = |cookie| Operation::Transfer {
        cookie: Cookie(cookie),
        moves: vec![moving(&file(1), epoch, a, b)],
        escrow: false,
        pinned: false,
    };
    let abort = |sequence| Operation::Abort { slot: SlotId(1), sequence: Sequence(sequence) };

    // The abort comes first, the transfer was delayed.
    let late = cluster.command_in(a, 1, transfer(1));
    assert_eq!(cluster.ask(a, abort(1)), Reply::Abort(AbortOutcome::Aborted));
    assert_eq!(cluster.refused(late.clone()), Refusal::Aborted);
    assert_eq!(cluster.holder(&file(1)), Some(a));
    assert_eq!(cluster.ask(a, abort(1)), Reply::Abort(AbortOutcome::Aborted));
    assert_eq!(cluster.refused(late), Refusal::Aborted);

    // The transfer comes first.
    let transfer = cluster.command_in(a, 1, transfer(2));
    let reply = cluster.apply(&transfer);
    assert!(matches!(reply, Reply::Transferred { .. }), "{reply:?}");
    let Reply::Abort(AbortOutcome::Applied(bytes)) = cluster.ask(a, abort(2)) else { panic!() };
    assert_eq!(decode_reply(&bytes), Ok(reply.clone()));
    assert_eq!(cluster.holder(&file(1)), Some(b));
    assert_eq!(cluster.apply(&transfer), reply);

    // Commands that are neither.
    assert!(matches!(cluster.ask_refused(a, abort(1)), Refusal::Slot(SlotRefusal::Old { .. })));
    assert!(matches!(cluster.ask_refused(a, abort(9)), Refusal::Slot(SlotRefusal::Skips { .. })));
    let own = Operation::Abort { slot: SlotId(0), sequence: Sequence(1) };
    assert!(matches!(cluster.ask_refused(a, own), Refusal::Slot(SlotRefusal::UnderWay(_))));
}
