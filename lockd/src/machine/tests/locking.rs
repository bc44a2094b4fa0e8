use super::super::*;
use super::cluster::*;
use crate::ids::{ClientId, ResourceId, SessionId};
use crate::locks::{ByteRange, LockError, LockMode, LockRequest};

struct Three {
    cluster: Cluster,
    sessions: [SessionId; 3],
    a: ClientId,
    b: ClientId,
    c: ClientId,
}

fn three() -> Three {
    let mut cluster = Cluster::new();
    let (first, a) = cluster.mounted("n1");
    let (second, b) = cluster.mounted("n2");
    let (third, c) = cluster.mounted("n3");
    Three { cluster, sessions: [first, second, third], a, b, c }
}

const COOKIE: Cookie = Cookie(5);

/// File 1 goes from `from` to `to` with its locks.
#[track_caller]
fn hand_over(cluster: &mut Cluster, cookie: Cookie, from: ClientId, to: ClientId) {
    let epoch = cluster.acquire(from, &file(1));
    let moves = vec![moving(&file(1), epoch, from, to)];
    let reply = cluster.ask(from, Operation::Transfer { cookie, moves, escrow: true, pinned: false });
    assert!(matches!(reply, Reply::Transferred { .. }), "{reply:?}");
}

fn adopting(cookie: Cookie) -> Operation {
    Operation::Adopt { cookie, resource: file(1), to: Some(50) }
}

#[test]
fn locks_hold_across_nodes_and_waiting_is_fair() {
    let Three { mut cluster, a, b, c, .. } = three();
    cluster.lock(a, 1, 1, 0, 9);
    let refusal = cluster.ask_refused(b, locking(b, 1, 1, 5, 5, false));
    assert!(matches!(refusal, Refusal::Lock(LockError::WouldBlock(conflict)) if conflict.owner.client == a));
    let first = cluster.wait_for(b, 1, 1, 5, 5);
    let second = cluster.wait_for(c, 1, 1, 5, 9);
    cluster.ask_done(a, unlocking(a, 1, 1, None));
    assert_eq!(cluster.granted(), [first]);
    cluster.ask_done(b, Operation::ReleaseOwner { resource: file(1), owner: posix(b, 1) });
    assert_eq!(cluster.granted(), [second]);
    let third = cluster.wait_for(a, 1, 1, 5, 5);
    assert_eq!(cluster.ask_refused(b, Operation::Cancel { ticket: third }), Refusal::NotTicket(third));
    assert_eq!(cluster.ask(a, Operation::Cancel { ticket: third }), Reply::Cancelled(true));
    let cancelled = EventKind::Lock { ticket: third, reply: Err(LockError::Interrupted) };
    assert_eq!(cluster.events, [cancelled]);
    assert_eq!(cluster.ask(a, Operation::Cancel { ticket: third }), Reply::Cancelled(false));
    let Answer::Locks(locks) = cluster.state.query(&Query::ClientLocks(c)) else { panic!() };
    assert_eq!(locks.len(), 1);
    assert_eq!(locks[0].node, Some(node("n3")));
}

#[test]
fn a_deadlock_over_two_nodes_is_found() {
    let Three { mut cluster, a, b, .. } = three();
    cluster.lock(a, 1, 1, 0, 9);
    cluster.lock(b, 2, 1, 0, 9);
    cluster.wait_for(a, 2, 1, 0, 9);
    let refusal = cluster.ask_refused(b, locking(b, 1, 1, 0, 9, true));
    assert_eq!(refusal, Refusal::Lock(LockError::Deadlock));
}

#[test]
fn only_files_of_the_own_volume_are_locked_and_only_for_oneself() {
    let Three { mut cluster, a, b, .. } = three();
    let range = ByteRange::WHOLE;
    let request = LockRequest { owner: posix(a, 1), pid: 1, mode: LockMode::Shared, range };
    for resource in [COORDINATOR, vm("web"), ResourceId::File(OTHER_VOLUME, 1)] {
        let operation = Operation::Lock { resource: resource.clone(), request, wait: false };
        assert_eq!(cluster.ask_refused(a, operation), Refusal::WrongKind { client: a, resource });
    }
    let operation = Operation::Lock { resource: file(1), request, wait: false };
    assert_eq!(cluster.ask_refused(b, operation), Refusal::NotOwner(posix(a, 1)));
    let operation = unlocking(a, 1, 1, None);
    assert_eq!(cluster.ask_refused(b, operation), Refusal::NotOwner(posix(a, 1)));
}

#[test]
fn l8_only_who_shows_the_cookie_adopts() {
    let Three { mut cluster, a, b, c, sessions } = three();
    cluster.lock(a, 1, 1, 0, 9);
    cluster.lock(c, 1, 1, 20, 29);
    hand_over(&mut cluster, COOKIE, a, b);
    let no_escrow = |cookie| Refusal::NoEscrow { resource: file(1), cookie };
    assert_eq!(cluster.ask_refused(b, adopting(Cookie(6))), no_escrow(Cookie(6)));
    assert_eq!(cluster.ask_refused(c, adopting(COOKIE)), no_escrow(COOKIE), "of another session");
    assert!(!cluster.is_free_for(b, 1, 0, 9), "in escrow they are held");
    let Answer::Escrow(escrow) = cluster.state.query(&Query::Escrow(COOKIE)) else { panic!() };
    assert_eq!((escrow[0].source, escrow[0].target), (a, sessions[1]));
    assert_eq!(cluster.ask(b, adopting(COOKIE)), Reply::Escrow { locks: 1 });
    assert_eq!(cluster.ask_refused(b, adopting(COOKIE)), no_escrow(COOKIE));
    let Answer::Locks(locks) = cluster.state.query(&Query::ClientLocks(b)) else { panic!() };
    assert_eq!((locks[0].listed.lock.owner, locks[0].escrow), (posix(b, 50), None));
    assert!(!cluster.is_free_for(b, 1, 20, 29), "a third client keeps its own");
    // The source's late close of its file ends nothing.
    cluster.ask_done(a, Operation::ReleaseOwner { resource: file(1), owner: posix(a, 1) });
    assert!(!cluster.is_free_for(a, 1, 0, 9));
    cluster.ask_done(b, unlocking(b, 1, 50, None));
    assert!(cluster.is_free_for(a, 1, 0, 9));
}

#[test]
fn l8_an_unlock_names_the_grant_that_it_ends() {
    let Three { mut cluster, a, b, .. } = three();
    let old = cluster.lock(a, 1, 1, 0, 9);
    cluster.ask_done(a, unlocking(a, 1, 1, Some(old)));
    let new = cluster.lock(a, 1, 1, 0, 9);
    cluster.ask_done(a, unlocking(a, 1, 1, Some(old)));
    assert!(!cluster.is_free_for(b, 1, 0, 9), "a late unlock does not end the newer lock");
    cluster.ask_done(a, unlocking(a, 1, 1, Some(new)));
    assert!(cluster.is_free_for(b, 1, 0, 9));
}

#[test]
fn locks_in_escrow_outlive_their_source_and_not_their_target() {
    let Three { mut cluster, a, b, c, sessions: [first, second, third] } = three();
    cluster.lock(a, 1, 1, 0, 9);
    hand_over(&mut cluster, COOKIE, a, b);
    let later = cluster.lock(a, 1, 2, 20, 29);
    let waiting = cluster.wait_for(c, 1, 1, 0, 0);
    cluster.end(first);
    cluster.fence(Victim::Session(first), second);
    for session in [second, third] {
        cluster.report(Victim::Session(first), session, Report::Drained);
    }
    assert!(cluster.is_free_for(c, 1, 20, 29), "{later} was set after the transfer and went with its client");
    assert!(!cluster.is_free_for(c, 1, 1, 9));
    let Answer::Locks(locks) = cluster.state.query(&Query::Locks(file(1))) else { panic!() };
    assert_eq!((locks[0].node.clone(), locks[0].escrow), (None, Some(second)));
    cluster.end(second);
    assert!(cluster.granted().is_empty(), "not before the target is fenced");
    cluster.fence(Victim::Session(second), third);
    cluster.report(Victim::Session(second), third, Report::Drained);
    assert_eq!(cluster.granted(), [waiting]);
    assert!(cluster.state.escrows.is_empty());
}

#[test]
fn locks_in_escrow_go_back_when_the_target_ends_and_on_when_the_file_does() {
    let Three { mut cluster, a, b, c, sessions: [first, second, third] } = three();
    cluster.lock(a, 1, 1, 0, 9);
    hand_over(&mut cluster, COOKIE, a, b);
    // On to the third node: what was not adopted goes along, under the new cookie.
    hand_over(&mut cluster, Cookie(6), b, c);
    assert_eq!(
        cluster.ask_refused(b, adopting(COOKIE)),
        Refusal::NoEscrow { resource: file(1), cookie: COOKIE }
    );
    let busy = Operation::Transfer { cookie: Cookie(6), moves: vec![], escrow: true, pinned: false };
    assert_eq!(cluster.ask_refused(a, busy), Refusal::NothingToMove);
    let epoch = cluster.acquire(a, &file(2));
    let moves = vec![moving(&file(2), epoch, a, b)];
    let busy = Operation::Transfer { cookie: Cookie(6), moves, escrow: true, pinned: false };
    assert_eq!(cluster.ask_refused(a, busy), Refusal::CookieInUse(Cookie(6)));
    cluster.end(third);
    for session in [first, second] {
        cluster.report(Victim::Session(third), session, Report::Drained);
    }
    cluster.fence(Victim::Session(third), second);
    // The source lives: its program still has the lock.
    assert!(!cluster.is_free_for(b, 1, 0, 9) && cluster.state.escrows.is_empty());
    cluster.ask_done(a, unlocking(a, 1, 1, None));
    assert!(cluster.is_free_for(b, 1, 0, 9));

    // Home again: nothing stays in escrow.
    cluster.lock(a, 1, 1, 0, 9);
    hand_over(&mut cluster, Cookie(7), a, b);
    hand_over(&mut cluster, Cookie(8), b, a);
    assert!(cluster.state.escrows.is_empty());
    // Unlocked by its owner while in escrow, or dropped by the target.
    hand_over(&mut cluster, Cookie(9), a, b);
    cluster.ask_done(a, unlocking(a, 1, 1, None));
    assert!(cluster.state.escrows.is_empty() && cluster.state.locks.is_empty());
    hand_over(&mut cluster, Cookie(10), b, a);
    cluster.lock(a, 1, 1, 0, 9);
    hand_over(&mut cluster, Cookie(11), a, b);
    let drop = |cookie| Operation::DropEscrow { cookie: Cookie(cookie), resource: file(1) };
    assert!(matches!(cluster.ask_refused(b, drop(10)), Refusal::NoEscrow { .. }));
    assert_eq!(cluster.ask(b, drop(11)), Reply::Escrow { locks: 1 });
    assert!(cluster.state.locks.is_empty());
}

#[test]
fn adopted_locks_let_the_adopter_go_on_and_show_deadlocks() {
    let Three { mut cluster, a, b, c, .. } = three();
    cluster.lock(a, 1, 1, 0, 9);
    cluster.lock(c, 2, 1, 0, 9);
    hand_over(&mut cluster, COOKIE, a, b);
    // Owner 50 of the target waits for the lock that it is about to adopt.
    let own = cluster.wait_for(b, 1, 50, 5, 14);
    assert_eq!(cluster.ask(b, adopting(COOKIE)), Reply::Escrow { locks: 1 });
    assert_eq!(cluster.granted(), [own]);
    assert!(cluster.is_free_for(c, 1, 15, 15) && !cluster.is_free_for(c, 1, 0, 0));

    hand_over(&mut cluster, Cookie(6), b, a);
    let first = cluster.wait_for(a, 2, 50, 0, 9);
    let second = cluster.wait_for(c, 1, 1, 0, 9);
    assert_eq!(cluster.ask(a, adopting(Cookie(6))), Reply::Escrow { locks: 2 });
    let refused = EventKind::Lock { ticket: second, reply: Err(LockError::Deadlock) };
    assert_eq!(cluster.events, [refused], "each would wait for the other: {first} and {second}");
}
