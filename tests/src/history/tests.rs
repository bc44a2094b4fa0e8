//! The checker against a plain search, planted violations, and the workload on good and bad stores.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;

fn write(value: u64, began: u64, ended: u64) -> Operation {
    Operation { node: 0, kind: Kind::Write(Value(value)), began: Tick(began), ended: Tick(ended) }
}

fn lost(value: u64, began: u64) -> Operation {
    Operation { ended: Tick::NEVER, ..write(value, began, 0) }
}

fn read(value: u64, began: u64, ended: u64) -> Operation {
    Operation { node: 1, kind: Kind::Read(Value(value)), began: Tick(began), ended: Tick(ended) }
}

fn judge(operations: &[Operation]) -> Result<(), Violation> {
    check_block(Block(0), operations)
}

/// Whether there is an order of the operations that keeps to their times and explains every read: the search of Wing,
/// Gong and Lowe, with what was tried before remembered.
fn search(operations: &[Operation]) -> bool {
    fn go(operations: &[Operation], done: u64, value: u64, tried: &mut HashSet<(u64, u64)>) -> bool {
        let is_open = |at: &usize| done & (1 << at) == 0;
        let open: Vec<usize> = (0..operations.len()).filter(is_open).collect();
        // Writes of unknown outcome may never take effect.
        if open.iter().all(|at| operations[*at].ended == Tick::NEVER) {
            return true;
        }
        if !tried.insert((done, value)) {
            return false;
        }
        let first_end = open.iter().map(|at| operations[*at].ended).min().unwrap_or(Tick::NEVER);
        open.iter().filter(|at| operations[**at].began < first_end).any(|at| {
            let next = match operations[*at].kind {
                Kind::Write(Value(next)) => next,
                Kind::Read(Value(seen)) if seen == value => value,
                _ => return false,
            };
            go(operations, done | 1 << at, next, tried)
        })
    }
    go(operations, 0, 0, &mut HashSet::new())
}

#[test]
fn good_histories_pass() {
    let good: [&[Operation]; 6] = [
        &[],
        &[read(0, 1, 2), write(1, 3, 4), read(1, 5, 6)],
        // Of two writes at a time either may be last.
        &[write(1, 1, 4), write(2, 2, 3), read(1, 5, 6)],
        &[write(1, 1, 4), write(2, 2, 3), read(2, 5, 6)],
        // A write of unknown outcome takes effect late.
        &[lost(1, 1), read(0, 2, 3), write(2, 4, 5), read(2, 6, 7), read(1, 8, 9)],
        // ... or never.
        &[lost(1, 1), read(0, 2, 3), write(2, 4, 5), read(2, 6, 7)],
    ];
    for operations in good {
        assert_eq!(judge(operations), Ok(()), "{operations:?}");
        assert!(search(operations));
    }
}

#[test]
fn planted_violations_are_found() {
    let stale = [write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)];
    assert!(matches!(judge(&stale), Err(Violation::TwoValues { .. })));
    let lost_write = [write(1, 1, 2), read(0, 3, 4)];
    assert!(matches!(judge(&lost_write), Err(Violation::TwoValues { .. })));
    let back_and_forth = [write(1, 1, 9), write(2, 2, 10), read(1, 3, 4), read(2, 5, 6), read(1, 7, 8)];
    assert!(matches!(judge(&back_and_forth), Err(Violation::TwoValues { .. })));
    // A write of unknown outcome may land once, not twice: its ghost hit again after it was overwritten.
    let ghost = [lost(1, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7), read(1, 8, 9)];
    assert!(matches!(judge(&ghost), Err(Violation::TwoValues { .. })));
    let two_readers_disagree = [lost(1, 1), lost(2, 2), read(1, 3, 4), read(2, 5, 6), read(1, 7, 8)];
    assert!(matches!(judge(&two_readers_disagree), Err(Violation::TwoValues { .. })));
    for operations in [&stale[..], &lost_write, &back_and_forth, &ghost, &two_readers_disagree] {
        assert!(!search(operations));
    }
    let future = [read(1, 1, 2), write(1, 3, 4)];
    assert!(matches!(judge(&future), Err(Violation::FromTheFuture { .. })));
    assert!(matches!(judge(&[read(7, 1, 2)]), Err(Violation::NobodyWrote { .. })));
    let torn = Operation { kind: Kind::ReadTorn, ..read(0, 1, 2) };
    assert!(matches!(judge(&[torn]), Err(Violation::Torn { .. })));
    let twice = [write(1, 1, 2), write(1, 3, 4)];
    assert!(matches!(judge(&twice), Err(Violation::SameValue { .. })));
}

/// Histories of up to eight operations, right and wrong ones: random intervals with distinct ends, random reads.
fn any_history() -> impl Strategy<Value = Vec<Operation>> {
    let operation = (any::<bool>(), 0_u64..5, any::<bool>());
    (prop::collection::vec(operation, 1..9), any::<prop::sample::Index>()).prop_flat_map(|(operations, _)| {
        let moments: Vec<u64> = (1..=2 * operations.len() as u64).collect();
        Just(moments).prop_shuffle().prop_map(move |moments| {
            let mut next = 1;
            let with_times = operations.iter().zip(moments.chunks(2));
            with_times
                .map(|((is_write, value, is_lost), times)| {
                    let (began, ended) = (times[0].min(times[1]), times[0].max(times[1]));
                    if !is_write {
                        return read(*value, began, ended);
                    }
                    next += 1;
                    if *is_lost { lost(next - 1, began) } else { write(next - 1, began, ended) }
                })
                .collect()
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn the_checker_agrees_with_a_plain_search(operations in any_history()) {
        prop_assert_eq!(judge(&operations).is_ok(), search(&operations), "{:?}", judge(&operations));
    }
}

#[test]
fn blocks_tell_when_they_are_torn() {
    let mut block = vec![0; 4096];
    assert_eq!(decode(&block), Some(Value::INITIAL));
    encode(Value(77), &mut block);
    assert_eq!(decode(&block), Some(Value(77)));
    block[4095] ^= 1;
    assert_eq!(decode(&block), None);
    assert_eq!(decode(&[]), None);
}

/// What all nodes share.
type Shared = Arc<Mutex<BTreeMap<Block, Value>>>;

/// A node whose every `stale_each`-th read comes from a cache that nobody invalidates.
#[derive(Debug)]
struct Memory {
    shared: Shared,
    cache: Mutex<BTreeMap<Block, Value>>,
    reads: AtomicU64,
    stale_each: u64,
}

impl Memory {
    fn node(shared: &Shared, stale_each: u64) -> Arc<dyn Register> {
        let shared = Arc::clone(shared);
        Arc::new(Self { shared, cache: Mutex::default(), reads: AtomicU64::new(1), stale_each })
    }
}

impl Register for Memory {
    fn write(&self, block: Block, value: Value) -> io::Result<()> {
        self.shared.lock().insert(block, value);
        Ok(())
    }

    fn read(&self, block: Block) -> io::Result<Option<Value>> {
        let number = self.reads.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(self.stale_each) {
            let cached = self.cache.lock().get(&block).copied();
            return Ok(Some(cached.unwrap_or(Value::INITIAL)));
        }
        let value = self.shared.lock().get(&block).copied().unwrap_or(Value::INITIAL);
        self.cache.lock().insert(block, value);
        Ok(Some(value))
    }
}

#[test]
fn a_workload_on_a_good_store_is_explained_and_a_stale_cache_is_found() {
    let workload = Workload { blocks: 4, operations_max: 5000, ..Workload::default() };
    for (stale_each, is_good) in [(u64::MAX, true), (100, false)] {
        let shared = Shared::default();
        let nodes = [Memory::node(&shared, u64::MAX), Memory::node(&shared, stale_each)];
        let ((), history) = workload.run(&nodes, |_| ());
        assert_eq!(history.len(), 2 * 2 * 5000);
        assert_eq!(history.unknown(), 0);
        assert_eq!(check(&history).is_ok(), is_good, "{:?}", check(&history));
    }
}

#[test]
fn a_file_is_a_good_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::File::create(&path).unwrap().set_len(8 * 4096).unwrap();
    let nodes: Vec<Arc<dyn Register>> =
        (0..2).map(|_| Arc::new(FileRegister::open(&path).unwrap()) as Arc<dyn Register>).collect();
    let (stopped, history) = Workload { threads: 1, ..Workload::default() }.run(&nodes, |done| {
        let enough = || (done.succeeded(0) > 200 && done.succeeded(1) > 200).then_some(());
        let waited = crate::wait::until("both have done some", std::time::Duration::from_secs(10), enough);
        done.stop();
        waited
    });
    stopped.unwrap();
    assert!(!history.is_empty());
    check(&history).unwrap();
}
