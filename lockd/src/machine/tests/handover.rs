use std::time::{Duration, Instant};

use super::super::*;
use super::cluster::*;
use crate::ids::{ClientId, Epoch, SessionId};

struct Pair {
    cluster: Cluster,
    source: SessionId,
    target: SessionId,
    /// Mounts and virtual machine hosts of both.
    a: ClientId,
    b: ClientId,
    host_a: ClientId,
    host_b: ClientId,
}

fn pair() -> Pair {
    let mut cluster = Cluster::new();
    let (source, a) = cluster.mounted("n1");
    let (target, b) = cluster.mounted("n2");
    let host_a = cluster.join(source, ClientKind::Vmhost);
    let host_b = cluster.join(target, ClientKind::Vmhost);
    Pair { cluster, source, target, a, b, host_a, host_b }
}

fn transfer(moves: Vec<Move>) -> Operation {
    Operation::Transfer { cookie: Cookie(5), moves, escrow: false, pinned: false }
}

#[test]
fn l6_a_virtual_machine_and_its_files_move_in_one_entry() {
    let Pair { mut cluster, source, target, a, b, host_a, host_b } = pair();
    let machine = cluster.acquire(host_a, &vm("web"));
    let disks: Vec<Epoch> = (1..=3).map(|ino| cluster.acquire(a, &file(ino))).collect();
    let mut moves = vec![moving(&vm("web"), machine, host_a, host_b)];
    moves.extend((1..=3).zip(&disks).map(|(ino, epoch)| moving(&file(ino), *epoch, a, b)));
    let Reply::Transferred { epoch } = cluster.ask(host_a, transfer(moves.clone())) else { panic!() };
    assert!(epoch > disks[2]);
    assert_eq!(cluster.holder(&vm("web")), Some(host_b));
    for ino in 1..=3 {
        assert_eq!(cluster.holder(&file(ino)), Some(b));
    }
    let arrived = |count| EventKind::Arrived { cookie: Cookie(5), from: source, epoch, count };
    assert!(cluster.events.contains(&arrived(1)) && cluster.events.contains(&arrived(3)));
    let moved = cluster.events.last();
    assert!(matches!(moved, Some(EventKind::Moved { to, count: 4, .. }) if *to == target), "{moved:?}");
    assert!(matches!(cluster.ask_refused(host_a, transfer(moves)), Refusal::NotHeld { .. }));
}

#[test]
fn l6_one_stale_epoch_refuses_the_whole_set() {
    let Pair { mut cluster, a, b, .. } = pair();
    let first = cluster.acquire(a, &file(1));
    let second = cluster.acquire(a, &file(2));
    let before = cluster.state.resources.clone();
    let stale = Epoch(second.0 - 1);
    let moves = vec![moving(&file(1), first, a, b), moving(&file(2), stale, a, b)];
    let refusal = cluster.ask_refused(a, transfer(moves));
    assert_eq!(refusal, Refusal::NotHeld { resource: file(2), client: a, epoch: stale });
    let moves = vec![moving(&file(1), first, a, b), moving(&file(3), first, a, b)];
    assert!(matches!(cluster.ask_refused(a, transfer(moves)), Refusal::NotHeld { .. }));
    let moves = vec![moving(&file(1), first, a, b), moving(&file(1), first, a, b)];
    assert_eq!(cluster.ask_refused(a, transfer(moves)), Refusal::MovedTwice(file(1)));
    assert_eq!(cluster.ask_refused(a, transfer(vec![])), Refusal::NothingToMove);
    assert_eq!(cluster.state.resources, before);
}

#[test]
fn l6_only_the_live_source_hands_over() {
    let Pair { mut cluster, source, a, b, host_b, .. } = pair();
    let epoch = cluster.acquire(a, &file(1));
    // The target may not take it, nor may a third node.
    let moves = vec![moving(&file(1), epoch, a, b)];
    for client in [b, host_b] {
        let refusal = cluster.ask_refused(client, transfer(moves.clone()));
        assert_eq!(refusal, Refusal::NotSource { resource: file(1), from: a });
    }
    // Another client of the source's session may, but not when the holder is dead.
    let tool = cluster.join(source, ClientKind::Tool);
    cluster.done(Command::ClientGone { session: source, client: a });
    let refusal = cluster.ask_refused(tool, transfer(moves.clone()));
    assert_eq!(refusal, Refusal::NotSource { resource: file(1), from: a });
    cluster.end(source);
    assert_eq!(cluster.ask_refused(tool, transfer(moves)), Refusal::ClientEnded(tool));
}

#[test]
fn l6_nothing_goes_to_an_ended_or_unfit_target() {
    let Pair { mut cluster, target, a, b, host_a, host_b, .. } = pair();
    let (_, third) = cluster.mounted("n3");
    let epoch = cluster.acquire(a, &file(1));
    let machine = cluster.acquire(host_a, &vm("web"));
    let refused = |cluster: &mut Cluster, moves| cluster.ask_refused(a, transfer(moves));
    let to = |to| vec![moving(&file(1), epoch, a, to)];
    let nobody = ClientId(999);
    for wrong in [a, nobody] {
        let refusal = refused(&mut cluster, to(wrong));
        assert_eq!(refusal, Refusal::NotTarget { resource: file(1), to: wrong });
    }
    let unfit = Refusal::WrongKind { client: host_b, resource: file(1) };
    assert_eq!(refused(&mut cluster, to(host_b)), unfit);
    // A machine and its disk do not go to different nodes.
    let split = vec![moving(&vm("web"), machine, host_a, host_b), moving(&file(1), epoch, a, third)];
    let refusal = Refusal::NotTarget { resource: file(1), to: third };
    assert_eq!(refused(&mut cluster, split), refusal);
    cluster.end(target);
    let refusal = Refusal::NotTarget { resource: file(1), to: b };
    assert_eq!(refused(&mut cluster, to(b)), refusal);
    assert_eq!(cluster.holder(&file(1)), Some(a));
}

#[test]
fn ten_thousand_files_move_in_one_entry_at_once() {
    let Pair { mut cluster, a, b, .. } = pair();
    let mut moves = Vec::new();
    for ino in 0..10_000 {
        let command = cluster.command_in(a, 0, acquisition(&file(ino)));
        let (reply, _) = cluster.state.apply(cluster.rules, 1, &command);
        let Reply::Acquired(holder) = reply else { panic!("{reply:?}") };
        moves.push(moving(&file(ino), holder.epoch, a, b));
    }
    let operation =
        Operation::Transfer { cookie: Cookie(1), moves: moves.clone(), escrow: true, pinned: false };
    let command = cluster.command_in(a, 0, operation);
    let bytes = encode_command(&command).unwrap();
    let start = Instant::now();
    let decoded = decode_command(&bytes).unwrap();
    let (reply, events) = cluster.state.apply(cluster.rules, 1, &decoded);
    let took = start.elapsed();
    assert!(matches!(reply, Reply::Transferred { .. }), "{reply:?}");
    assert!(events.len() <= 2 && took < Duration::from_millis(500), "{took:?}");
    cluster.done(Command::Tick);
    moves.extend((0..MOVES_MAX as u64).map(|ino| moving(&file(ino), Epoch(1), a, b)));
    assert_eq!(cluster.ask_refused(a, transfer(moves)), Refusal::Full(Bound::Moves));
}

#[test]
fn l6_what_nobody_holds_goes_along_in_the_same_entry() {
    let Pair { mut cluster, a, b, .. } = pair();
    let held = cluster.acquire(a, &file(1));
    let moves = vec![moving(&file(1), held, a, b), moving(&file(2), Epoch::NOBODY, a, b)];
    let set = |moves: &Vec<Move>, pinned| Operation::Transfer {
        cookie: Cookie(5),
        moves: moves.clone(),
        escrow: false,
        pinned,
    };
    let Reply::Transferred { epoch } = cluster.ask(a, set(&moves, true)) else { panic!() };
    for ino in 1..=2 {
        let holding = cluster.state.holding(b, &file(ino)).copied();
        assert!(holding.is_some_and(|held| held.epoch == epoch && held.pinned), "{holding:?}");
    }
    // Somebody holds it: the whole set is refused.
    let third = cluster.acquire(a, &file(3));
    let before = cluster.state.resources.clone();
    let moves = vec![moving(&file(3), third, a, b), moving(&file(2), Epoch::NOBODY, a, b)];
    let refusal = cluster.ask_refused(a, set(&moves, false));
    assert!(matches!(&refusal, Refusal::Held { resource, .. } if *resource == file(2)), "{refusal}");
    assert_eq!(cluster.state.resources, before);
    // To itself, what nobody holds; and nothing else.
    let to_itself = vec![moving(&file(4), Epoch::NOBODY, a, a), moving(&file(5), Epoch::NOBODY, a, a)];
    assert!(matches!(cluster.ask(a, set(&to_itself, false)), Reply::Transferred { .. }));
    assert_eq!(cluster.holder(&file(5)), Some(a));
    let own = cluster.state.holding(a, &file(4)).map_or(Epoch::NOBODY, |held| held.epoch);
    let refusal = cluster.ask_refused(a, set(&vec![moving(&file(4), own, a, a)], false));
    assert!(matches!(refusal, Refusal::NotTarget { .. }), "{refusal}");
}
