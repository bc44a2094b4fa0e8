//! Page caches of front ends, on a network that loses and repeats.

use std::ops::Range;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::super::world::{slice, wait};
use super::stage::{READ_WRITE, Stage};
use crate::node::Node;
use crate::proto::{Allocation, SetAttr};
use crate::refusal::Refusal;
use crate::service::{FileService, HandleId, OpenMode, Opened, Pages, WriteMode};
use crate::types::Ino;

/// A kernel with one page that a program has changed.
#[derive(Debug, Default)]
struct Kernel {
    node: Weak<Node>,
    dirty: Mutex<Option<(HandleId, u64, Vec<u8>)>>,
    dropped: Arc<Mutex<Vec<(Ino, Range<u64>)>>>,
}

impl Kernel {
    fn of(stage: &Stage, number: usize) -> Arc<Self> {
        let node = &stage.members[number].node;
        let kernel = Arc::new(Self { node: Arc::downgrade(node), ..Self::default() });
        node.has_pages(Arc::clone(&kernel) as _);
        kernel
    }
}

impl Pages for Kernel {
    fn drop_range(&self, ino: Ino, bytes: Range<u64>, then: Box<dyn FnOnce() + Send>) {
        let (dirty, node) = (self.dirty.lock().take(), self.node.clone());
        let dropped = Arc::clone(&self.dropped);
        std::thread::spawn(move || {
            if let (Some((handle, offset, page)), Some(node)) = (dirty, node.upgrade()) {
                let mode = WriteMode { from_cache: true, ..WriteMode::default() };
                wait(|done| node.write(handle, offset, slice(&page), mode, done)).unwrap();
            }
            dropped.lock().push((ino, bytes));
            then();
        });
    }
}

fn opened(stage: &Stage, number: usize, ino: Ino, mode: OpenMode) -> Opened {
    wait(|done| stage.node(number).open(ino, mode, done)).unwrap()
}

#[test]
fn a_file_with_pages_stays_and_the_refusal_names_the_process() {
    let stage = Stage::new(2, 1, 0.0);
    let _kernel = Kernel::of(&stage, 0);
    let file = stage.create(0, "a");
    let ino = file.attr.ino;
    assert!(!file.direct, "it is served here: it may keep pages");
    stage.node(0).release(file.handle);
    let mode = OpenMode { pid: std::process::id(), ..READ_WRITE };
    let here = opened(&stage, 0, ino, mode);
    let there = opened(&stage, 1, ino, mode);
    assert!(there.direct, "a node without page cache has no pages");
    let refused = stage.acquire(1, ino).unwrap_err();
    let Refusal::Busy(why) = &refused else { panic!("{refused}") };
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert!(why.contains(&format!("process {} ({})", std::process::id(), name.trim_end())), "{why}");
    // Nothing has changed: both read and write.
    stage.write(1, there.handle, 0, b"there");
    stage.write(0, here.handle, 5, b"here");
    assert_eq!(stage.read(1, there.handle, 0, 9), b"therehere");
    stage.node(0).release(here.handle);
    stage.acquire(1, ino).unwrap();
    assert!(opened(&stage, 0, ino, OpenMode { write: false, ..mode }).direct, "it is served elsewhere");
    assert_eq!(stage.read(1, there.handle, 0, 9), b"therehere");
    stage.finish();
}

#[test]
fn an_open_for_both_makes_its_node_the_server_and_keeps_pages() {
    let stage = Stage::new(3, 1, 0.0);
    let kernels: Vec<_> = (0..3).map(|number| Kernel::of(&stage, number)).collect();
    let file = stage.create(1, "a");
    let ino = file.attr.ino;
    assert!(!file.direct, "it has become the server");
    let append = OpenMode { read: false, ..READ_WRITE };
    let other = opened(&stage, 2, ino, append);
    assert!(other.direct);
    stage.write(2, other.handle, 0, b"from two");
    assert_eq!(*kernels[1].dropped.lock(), [(ino, 0..8)]);
    assert!(kernels[0].dropped.lock().is_empty() && kernels[2].dropped.lock().is_empty());
    // Opened for both elsewhere: the file stays, and that open goes past the cache.
    assert!(opened(&stage, 2, ino, READ_WRITE).direct);
    stage.finish();
}

#[test]
fn changes_of_others_win_over_pages_that_are_written_back_meanwhile() {
    for seed in 1..=4 {
        let trouble = if seed == 1 { 0.0 } else { 0.2 };
        let stage = Stage::new(2, seed, trouble);
        let kernel = Kernel::of(&stage, 0);
        let file = stage.create(0, "a");
        let (ino, here) = (file.attr.ino, file.handle);
        stage.write(0, here, 0, &[1; 8192]);
        let there = stage.open(1, ino);
        let dirty = |bytes: &[u8]| *kernel.dirty.lock() = Some((here, 0, bytes.to_vec()));

        // A program has stored twos in the first half of the page. The rest is as it was when the page was read.
        dirty(&[[2; 2048], [1; 2048]].concat());
        stage.write(1, there, 2000, &[3; 1000]);
        assert!(kernel.dirty.lock().is_none(), "the page was not dropped before the write was answered");
        let expected = [vec![2; 2000], vec![3; 1000], vec![1; 1096]].concat();
        assert!(stage.read(0, here, 0, 4096) == expected, "seed {seed}");

        dirty(&[4; 4096]);
        wait(|done| stage.node(1).allocate(there, 1000, 3096, Allocation::Punch, true, done)).unwrap();
        let expected = [vec![4; 1000], vec![0; 3096]].concat();
        assert!(stage.read(1, there, 0, 4096) == expected, "seed {seed}: punched bytes are back");

        dirty(&[5; 8192]);
        wait(|done| stage.node(1).set_attr(ino, SetAttr::default(), Some(5000), done)).unwrap();
        assert_eq!(stage.attr(1, ino).unwrap().size, 5000, "pages make no file longer");
        wait(|done| stage.node(1).set_attr(ino, SetAttr::default(), Some(6000), done)).unwrap();
        let tail = stage.read(0, here, 4096, 4096);
        assert!(tail[..904] == [5; 904] && tail[904..] == [0; 1000], "seed {seed}: what was cut off is back");

        dirty(&[6; 8192]);
        assert_eq!(stage.append(1, there, &[7; 1000]), 6000);
        let all = stage.read(1, there, 5990, 4096);
        assert!(all == [vec![6; 10], vec![7; 1000]].concat(), "seed {seed}: {} bytes", all.len());
        stage.finish();
    }
}
