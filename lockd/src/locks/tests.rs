use super::*;
use crate::ids::ClientId;

const FILE: u64 = 7;
const OTHER: u64 = 8;

fn owner(id: u64) -> LockOwner {
    LockOwner { client: ClientId(1), kind: LockKind::Posix, id }
}

fn of(kind: LockKind, id: u64) -> LockOwner {
    LockOwner { kind, ..owner(id) }
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

fn ask(owner: LockOwner, mode: LockMode, start: u64, end: u64) -> LockRequest {
    let pid = u32::try_from(owner.id).unwrap() + 1000;
    LockRequest { owner, pid, mode, range: range(start, end) }
}

fn shared(owner: LockOwner, start: u64, end: u64) -> LockRequest {
    ask(owner, LockMode::Shared, start, end)
}

fn exclusive(owner: LockOwner, start: u64, end: u64) -> LockRequest {
    ask(owner, LockMode::Exclusive, start, end)
}

/// A table that keeps the events of the last call.
struct Table {
    table: LockTable,
    events: Vec<LockEvent>,
}

impl Table {
    fn new() -> Self {
        Self::with(LockLimits::default())
    }

    fn with(limits: LockLimits) -> Self {
        Self { table: LockTable::new(limits), events: Vec::new() }
    }

    fn set(&mut self, file: u64, request: LockRequest, wait: bool) -> LockOutcome {
        self.events.clear();
        self.table.set(&file, request, wait, &mut self.events)
    }

    #[track_caller]
    fn granted(&mut self, file: u64, request: LockRequest) -> GrantId {
        match self.set(file, request, false) {
            LockOutcome::Granted(grant) => grant,
            other => panic!("{request:?}: {other:?}"),
        }
    }

    #[track_caller]
    fn waits(&mut self, file: u64, request: LockRequest) -> Ticket {
        match self.set(file, request, true) {
            LockOutcome::Waiting(ticket) => ticket,
            other => panic!("{request:?}: {other:?}"),
        }
    }

    #[track_caller]
    fn blocked(&mut self, file: u64, request: LockRequest) -> Conflict {
        match self.set(file, request, false) {
            LockOutcome::Refused(LockError::WouldBlock(conflict)) => conflict,
            other => panic!("{request:?}: {other:?}"),
        }
    }

    fn unlock(&mut self, file: u64, owner: LockOwner, start: u64, end: u64) {
        self.events.clear();
        self.table.unlock(&file, owner, range(start, end), None, &mut self.events).unwrap();
    }

    fn release(&mut self, file: u64, owner: LockOwner) {
        self.events.clear();
        self.table.release_owner(&file, owner, &mut self.events);
    }

    fn granted_tickets(&self) -> Vec<Ticket> {
        self.events.iter().filter(|event| event.reply.is_ok()).map(|event| event.ticket).collect()
    }

    /// What `owner` holds on the file, as (start, end, exclusive).
    fn held(&self, file: u64, owner: LockOwner) -> Vec<(u64, u64, bool)> {
        let held = self.table.list().filter(|listed| {
            listed.key == file && listed.lock.owner == owner && matches!(listed.state, LockState::Held(_))
        });
        held.map(|Listed { lock, .. }| {
            (lock.range.start(), lock.range.end(), lock.mode == LockMode::Exclusive)
        })
        .collect()
    }
}

#[test]
fn a_lock_inside_another_of_its_owner_splits_it() {
    let mut table = Table::new();
    table.granted(FILE, exclusive(owner(1), 0, 99));
    table.granted(FILE, shared(owner(1), 40, 59));
    assert_eq!(table.held(FILE, owner(1)), [(0, 39, true), (40, 59, false), (60, 99, true)]);
    table.granted(FILE, shared(owner(2), 45, 50));
    table.blocked(FILE, shared(owner(2), 39, 50));
    table.unlock(FILE, owner(1), 20, 79);
    assert_eq!(table.held(FILE, owner(1)), [(0, 19, true), (80, 99, true)]);
}

#[test]
fn neighbours_in_one_mode_are_shown_as_one() {
    let mut table = Table::new();
    table.granted(FILE, exclusive(owner(1), 10, 19));
    table.granted(FILE, exclusive(owner(1), 0, 9));
    table.granted(FILE, exclusive(owner(1), 20, 29));
    table.granted(FILE, shared(owner(1), 30, 39));
    let seen = table.table.test(&FILE, shared(owner(2), 15, 100)).unwrap();
    assert_eq!(seen, Conflict { owner: owner(1), mode: LockMode::Exclusive, range: range(0, 29), pid: 1001 });
    let seen = table.table.test(&FILE, exclusive(owner(2), 30, 100)).unwrap();
    assert_eq!((seen.mode, seen.range), (LockMode::Shared, range(30, 39)));
    assert_eq!(table.table.test(&FILE, exclusive(owner(2), 40, 100)), None);
}

#[test]
fn locks_at_the_end_of_the_number_space_work() {
    let mut table = Table::new();
    table.granted(FILE, exclusive(owner(1), 5, u64::MAX));
    table.granted(FILE, shared(owner(1), u64::MAX, u64::MAX));
    assert_eq!(table.held(FILE, owner(1)), [(5, u64::MAX - 1, true), (u64::MAX, u64::MAX, false)]);
    table.unlock(FILE, owner(1), 0, u64::MAX - 1);
    assert_eq!(table.held(FILE, owner(1)), [(u64::MAX, u64::MAX, false)]);
    table.unlock(FILE, owner(1), 0, u64::MAX);
    assert!(table.table.is_empty());
    assert_eq!(ByteRange::new(1, 0), None);
}

#[test]
fn posix_and_ofd_conflict_and_flock_is_apart() {
    let mut table = Table::new();
    table.granted(FILE, exclusive(of(LockKind::Posix, 1), 0, 9));
    let conflict = table.blocked(FILE, exclusive(of(LockKind::Ofd, 1), 0, 9));
    assert_eq!(conflict.owner.kind, LockKind::Posix);
    table.granted(FILE, exclusive(of(LockKind::Flock, 1), 0, 0));
    let conflict = table.blocked(FILE, shared(of(LockKind::Flock, 2), 50, 60));
    assert_eq!(conflict.range, ByteRange::WHOLE);
    table.granted(FILE, exclusive(of(LockKind::Ofd, 1), 10, 19));
}

#[test]
fn waiting_requests_are_granted_in_order() {
    let mut table = Table::new();
    table.granted(FILE, shared(owner(1), 0, 9));
    let writer = table.waits(FILE, exclusive(owner(2), 0, 9));
    let reader = table.waits(FILE, shared(owner(3), 5, 5));
    assert!(
        table.table.test(&FILE, shared(owner(4), 0, 9)).is_none(),
        "a test asks for locks, not for waiters"
    );
    let before = table.blocked(FILE, shared(owner(4), 0, 9));
    assert_eq!(before.owner, owner(2), "a reader does not overtake the writer that waits");
    table.granted(FILE, exclusive(owner(5), 10, 19));
    table.release(FILE, owner(1));
    assert_eq!(table.granted_tickets(), [writer]);
    table.release(FILE, owner(2));
    assert_eq!(table.granted_tickets(), [reader]);
}

#[test]
fn readers_that_wait_are_granted_together() {
    let mut table = Table::new();
    table.granted(FILE, exclusive(owner(1), 0, 9));
    let first = table.waits(FILE, shared(owner(2), 0, 9));
    let second = table.waits(FILE, shared(owner(3), 0, 9));
    table.granted(FILE, shared(owner(1), 0, 9));
    assert_eq!(table.granted_tickets(), [first, second], "a downgrade lets the readers in");
}

#[test]
fn a_holder_passes_whoever_waits_for_it() {
    let mut table = Table::new();
    table.granted(FILE, shared(owner(1), 0, 9));
    let writer = table.waits(FILE, exclusive(owner(2), 0, 19));
    let reader = table.waits(FILE, shared(owner(3), 15, 29));
    table.granted(FILE, exclusive(owner(1), 0, 9));
    // The reader waits for the writer and thus for owner 1 as well.
    table.granted(FILE, exclusive(owner(1), 20, 29));
    table.release(FILE, owner(1));
    assert_eq!(table.granted_tickets(), [writer]);
    table.release(FILE, owner(2));
    assert_eq!(table.granted_tickets(), [reader]);
}

#[test]
fn fairness_makes_no_deadlock_across_files() {
    let mut table = Table::new();
    table.granted(FILE, shared(owner(1), 0, 9));
    table.granted(OTHER, exclusive(owner(3), 0, 9));
    let writer = table.waits(FILE, exclusive(owner(2), 0, 9));
    // Owner 3 queues behind the writer; then owner 1, for which the writer waits, waits for owner 3.
    let reader = table.waits(FILE, shared(owner(3), 0, 9));
    let last = table.waits(OTHER, shared(owner(1), 0, 9));
    assert_eq!(
        table.granted_tickets(),
        [reader],
        "the reader passes the writer: otherwise all three wait for ever"
    );
    table.release(OTHER, owner(3));
    assert_eq!(table.granted_tickets(), [last]);
    table.release(FILE, owner(3));
    table.release(FILE, owner(1));
    assert_eq!(table.granted_tickets(), [writer]);
}

#[test]
fn two_that_upgrade_deadlock() {
    let mut table = Table::new();
    table.granted(FILE, shared(owner(1), 0, 9));
    table.granted(FILE, shared(owner(2), 0, 9));
    let first = table.waits(FILE, exclusive(owner(1), 0, 9));
    assert_eq!(table.set(FILE, exclusive(owner(2), 0, 9), true), LockOutcome::Refused(LockError::Deadlock));
    table.release(FILE, owner(2));
    assert_eq!(table.granted_tickets(), [first]);
}

#[test]
fn deadlocks_are_found_over_files_and_not_invented() {
    let mut table = Table::new();
    for (file, id) in [(1, 1), (2, 2), (3, 3)] {
        table.granted(file, exclusive(owner(id), 0, 9));
    }
    table.waits(2, exclusive(owner(1), 0, 9));
    table.waits(3, exclusive(owner(2), 0, 9));
    assert_eq!(table.set(1, shared(owner(3), 9, 9), true), LockOutcome::Refused(LockError::Deadlock));
    table.waits(1, shared(owner(4), 9, 9));
    table.waits(1, exclusive(of(LockKind::Ofd, 3), 9, 9));
}

#[test]
fn open_files_are_never_refused_for_a_deadlock() {
    let mut table = Table::new();
    let (a, b) = (of(LockKind::Ofd, 1), of(LockKind::Ofd, 2));
    table.granted(1, exclusive(a, 0, 9));
    table.granted(2, exclusive(b, 0, 9));
    table.waits(2, exclusive(a, 0, 9));
    table.waits(1, exclusive(b, 0, 9));
}

#[test]
fn a_thread_that_makes_its_process_wait_in_a_circle_is_found_when_a_lock_is_granted() {
    let mut table = Table::new();
    table.granted(1, exclusive(owner(9), 0, 9));
    table.granted(2, exclusive(owner(2), 0, 9));
    let first = table.waits(1, exclusive(owner(1), 0, 9));
    let second = table.waits(1, exclusive(owner(2), 0, 9));
    // Another thread of owner 1 waits for owner 2, which waits, so far, for owner 9 only.
    let third = table.waits(2, exclusive(owner(1), 0, 9));
    table.release(1, owner(9));
    assert_eq!(table.granted_tickets(), [first]);
    let refused = LockEvent { ticket: second, reply: Err(LockError::Deadlock) };
    assert!(table.events.contains(&refused), "{:?}", table.events);
    table.release(2, owner(2));
    assert_eq!(table.granted_tickets(), [third]);
}

#[test]
fn a_flock_that_changes_its_mode_lets_go_first() {
    let mut table = Table::new();
    let (a, b, c) = (of(LockKind::Flock, 1), of(LockKind::Flock, 2), of(LockKind::Flock, 3));
    table.granted(FILE, shared(a, 0, 0));
    table.granted(FILE, shared(b, 0, 0));
    table.blocked(FILE, exclusive(a, 0, 0));
    assert_eq!(table.held(FILE, a), [], "the refused change has cost the lock");
    table.granted(FILE, exclusive(b, 0, 0));
    let waits = table.waits(FILE, shared(c, 0, 0));
    let change = table.waits(FILE, exclusive(a, 0, 0));
    table.granted(FILE, shared(b, 0, 0));
    assert_eq!(table.granted_tickets(), [waits]);
    // Both want more: who asks first lets go and waits, so that the other, then alone, gets it.
    let again = table.waits(FILE, exclusive(b, 0, 0));
    table.granted(FILE, exclusive(c, 0, 0));
    assert_eq!(table.granted_tickets(), []);
    table.release(FILE, c);
    assert_eq!(table.granted_tickets(), [change]);
    table.release(FILE, a);
    assert_eq!(table.granted_tickets(), [again]);
}

#[test]
fn a_flock_can_be_weakened_while_others_wait() {
    let mut table = Table::new();
    let (a, b) = (of(LockKind::Flock, 1), of(LockKind::Flock, 2));
    table.granted(FILE, exclusive(a, 0, 0));
    table.waits(FILE, exclusive(b, 0, 0));
    table.granted(FILE, shared(a, 0, 0));
    table.granted(FILE, exclusive(a, 0, 0));
}

#[test]
fn a_cancelled_request_stands_in_nobodys_way() {
    let mut table = Table::new();
    table.granted(FILE, shared(owner(1), 0, 9));
    let writer = table.waits(FILE, exclusive(owner(2), 0, 9));
    let reader = table.waits(FILE, shared(owner(3), 0, 9));
    let mut events = Vec::new();
    assert!(table.table.cancel(writer, &mut events));
    assert_eq!(events[0], LockEvent { ticket: writer, reply: Err(LockError::Interrupted) });
    assert!(matches!(events[1..], [LockEvent { ticket, reply: Ok(_) }] if ticket == reader), "{events:?}");
    assert!(!table.table.cancel(writer, &mut events), "only once");
    assert!(!table.table.cancel(reader, &mut events), "it is granted");
}

#[test]
fn the_end_of_a_client_frees_its_locks_and_answers_its_requests() {
    let mut table = Table::new();
    let foreign = LockOwner { client: ClientId(2), ..owner(1) };
    table.granted(FILE, exclusive(owner(1), 0, 9));
    table.granted(OTHER, exclusive(foreign, 0, 9));
    let mine = table.waits(OTHER, exclusive(owner(3), 0, 9));
    let theirs = table.waits(FILE, exclusive(foreign, 0, 9));
    let mut events = Vec::new();
    table.table.end_client(ClientId(1), &mut events);
    assert_eq!(events[0], LockEvent { ticket: mine, reply: Err(LockError::ClientEnded(ClientId(1))) });
    assert!(matches!(events[1..], [LockEvent { ticket, reply: Ok(_) }] if ticket == theirs), "{events:?}");
    table.table.end_client(ClientId(2), &mut events);
    assert!(table.table.is_empty());
}

#[test]
fn a_closed_file_leaves_other_threads_waiting() {
    let mut table = Table::new();
    table.granted(FILE, exclusive(owner(1), 0, 9));
    let waits = table.waits(FILE, exclusive(owner(2), 0, 9));
    table.release(FILE, owner(2));
    assert_eq!(table.events, []);
    table.release(FILE, owner(1));
    assert_eq!(table.granted_tickets(), [waits]);
}

#[test]
fn an_unlock_that_names_its_grant_leaves_newer_ones() {
    let mut table = Table::new();
    let old = table.granted(FILE, exclusive(owner(1), 0, 9));
    let new = table.granted(FILE, exclusive(owner(1), 5, 14));
    let mut events = Vec::new();
    let mut unlock = |table: &mut Table, through| {
        table.table.unlock(&FILE, owner(1), ByteRange::WHOLE, Some(through), &mut events).unwrap();
    };
    unlock(&mut table, old);
    assert_eq!(table.held(FILE, owner(1)), [(5, 14, true)]);
    unlock(&mut table, old);
    assert_eq!(table.held(FILE, owner(1)), [(5, 14, true)], "a repeated unlock does nothing");
    unlock(&mut table, new);
    assert!(table.table.is_empty());
}

#[test]
fn a_client_that_uses_too_much_is_refused_and_can_go_on() {
    let mut table = Table::with(LockLimits { locks_per_client: 3, waiters_per_client: 1 });
    let full = LockError::TooManyLocks { client: ClientId(1), limit: 3 };
    table.granted(FILE, exclusive(owner(1), 0, 99));
    table.granted(FILE, shared(owner(1), 40, 49));
    assert_eq!(table.set(OTHER, shared(owner(2), 0, 0), false), LockOutcome::Refused(full));
    let unlocked = table.table.unlock(&FILE, owner(1), range(10, 19), None, &mut Vec::new());
    assert_eq!(unlocked, Err(full), "it would leave four");
    let foreign = LockOwner { client: ClientId(2), ..owner(1) };
    table.waits(FILE, exclusive(foreign, 0, 9));
    let refused = table.set(FILE, exclusive(foreign, 0, 9), true);
    let error = LockError::TooManyWaiters { client: ClientId(2), limit: 1 };
    assert_eq!(refused, LockOutcome::Refused(error));
    table.granted(FILE, shared(owner(1), 0, 99));
    table.unlock(FILE, owner(1), 10, 19);
    assert_eq!(table.held(FILE, owner(1)), [(0, 9, false), (20, 99, false)]);
    assert!(full.to_string().contains("limit of 3 file locks"));
}

#[test]
fn a_request_that_waited_is_refused_when_its_client_is_full_by_then() {
    let mut table = Table::with(LockLimits { locks_per_client: 1, waiters_per_client: 9 });
    let foreign = LockOwner { client: ClientId(2), ..owner(1) };
    table.granted(FILE, exclusive(foreign, 0, 9));
    let waits = table.waits(FILE, exclusive(owner(1), 0, 9));
    let behind = table.waits(FILE, exclusive(LockOwner { client: ClientId(3), ..owner(1) }, 0, 9));
    table.granted(OTHER, exclusive(owner(1), 0, 9));
    table.release(FILE, foreign);
    let error = LockError::TooManyLocks { client: ClientId(1), limit: 1 };
    assert_eq!(table.events[0], LockEvent { ticket: waits, reply: Err(error) });
    assert_eq!(table.granted_tickets(), [behind]);
}
