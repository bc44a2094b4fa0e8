use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use super::*;
use crate::ids::ClientId;

const FILE: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(15);

fn owner(id: u64) -> LockOwner {
    LockOwner { client: ClientId(1), kind: LockKind::Posix, id }
}

fn exclusive(id: u64) -> LockRequest {
    LockRequest { owner: owner(id), pid: 1, mode: LockMode::Exclusive, range: ByteRange::WHOLE }
}

/// Asks, and hands back where the answer will be.
fn ask(locks: &FileLocks, request: LockRequest, wait: bool) -> (Option<Ticket>, Receiver<LockReply>) {
    let (answer, answers) = channel();
    let ticket = locks.set(FILE, request, wait, Box::new(move |reply| answer.send(reply).unwrap()));
    (ticket, answers)
}

#[test]
fn every_request_is_answered_once() {
    let locks = FileLocks::default();
    let (ticket, granted) = ask(&locks, exclusive(1), true);
    assert_eq!(ticket, None);
    assert!(granted.recv().unwrap().is_ok());
    let (ticket, refused) = ask(&locks, exclusive(2), false);
    assert_eq!(ticket, None);
    assert!(matches!(refused.recv().unwrap(), Err(LockError::WouldBlock(_))));

    let (interrupted, first) = ask(&locks, exclusive(2), true);
    let (_, second) = ask(&locks, exclusive(3), true);
    let (_, third) = ask(
        &locks,
        LockRequest { owner: LockOwner { client: ClientId(2), ..owner(1) }, ..exclusive(1) },
        true,
    );
    assert_eq!(first.try_recv(), Err(TryRecvError::Empty));
    assert!(locks.cancel(interrupted.unwrap()));
    assert_eq!(first.recv().unwrap(), Err(LockError::Interrupted));
    assert!(!locks.cancel(interrupted.unwrap()));
    locks.end_client(ClientId(2));
    assert_eq!(third.recv().unwrap(), Err(LockError::ClientEnded(ClientId(2))));
    assert_eq!(locks.list().len(), 2);
    locks.release_owner(FILE, owner(1));
    assert!(second.recv().unwrap().is_ok());
    assert_eq!(locks.test(FILE, exclusive(1)).unwrap().owner, owner(3));
    locks.unlock(FILE, owner(3), ByteRange::WHOLE).unwrap();
    assert_eq!(locks.test(FILE, exclusive(1)), None);
    for answers in [granted, refused, first, second, third] {
        assert_eq!(
            answers.try_recv(),
            Err(TryRecvError::Disconnected),
            "one answer, and the callback is gone"
        );
    }
}

#[test]
fn a_callback_may_use_the_table() {
    let locks = Arc::new(FileLocks::default());
    let (_, held) = ask(&locks, exclusive(1), false);
    assert!(held.recv().unwrap().is_ok());
    let (answer, answers) = channel();
    let again = Arc::clone(&locks);
    locks.set(
        FILE,
        exclusive(2),
        true,
        Box::new(move |reply| {
            again.unlock(FILE, owner(2), ByteRange::WHOLE).unwrap();
            answer.send((reply, again.list().len())).unwrap();
        }),
    );
    locks.release_owner(FILE, owner(1));
    let (reply, left) = answers.recv().unwrap();
    assert!(reply.is_ok());
    assert_eq!(left, 0);
}

#[test]
fn threads_exclude_each_other_and_none_is_forgotten() {
    const THREADS: u64 = 6;
    const ROUNDS: u64 = 200;
    let locks = FileLocks::default();
    let (inside, granted, interrupted) = (AtomicU32::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for id in 0..THREADS {
            let (locks, inside, granted, interrupted) = (&locks, &inside, &granted, &interrupted);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let (ticket, answers) = ask(locks, exclusive(id), true);
                    if let Some(ticket) = ticket.filter(|_| (round + id) % 7 == 0) {
                        locks.cancel(ticket);
                    }
                    match answers.recv_timeout(PATIENCE).expect("a request was forgotten") {
                        Ok(_) => {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the file");
                            granted.fetch_add(1, Ordering::Relaxed);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            locks.unlock(FILE, owner(id), ByteRange::WHOLE).unwrap();
                        }
                        Err(LockError::Interrupted) => {
                            interrupted.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert_eq!(granted.load(Ordering::Relaxed) + interrupted.load(Ordering::Relaxed), THREADS * ROUNDS);
    assert!(locks.list().is_empty());
}
