//! Random operations on several nodes over a bad network, against a simple model: what was acknowledged anywhere is
//! seen by every later operation everywhere.
//!
//! Each *thing* is a file with its names; whoever works on it has it alone, so that the model is certain, while other
//! things of the same directories are worked on at the same time.

use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::world::{WHO, slice, wait};
use super::stage::{READ_WRITE, Stage};
use crate::node::SetRefusal;
use crate::proto::{Allocation, Created, RenameMode, SetAttr};
use crate::refusal::Refusal;
use crate::service::{FileService, HandleId, WriteMode};
use crate::types::Ino;

const NODES: usize = 3;
const THINGS: usize = 6;
const THREADS: usize = 3;
const REACH: u64 = 40_000;

#[derive(Default)]
struct Thing {
    /// The file, if it is there.
    file: Option<(Ino, Vec<u8>, u32)>,
    /// In which of the two directories its name is.
    place: usize,
    /// It has a second name in the other directory.
    linked: bool,
    handles: [Option<HandleId>; NODES],
}

struct Play {
    stage: Stage,
    directories: [Ino; 2],
    things: Vec<Mutex<Thing>>,
}

fn name(number: usize) -> Vec<u8> {
    format!("thing {number}").into_bytes()
}

impl Play {
    fn new(seed: u64) -> Self {
        let stage = Stage::new(NODES, seed, 0.05);
        let directories = ["one", "other"].map(|name| {
            let create =
                |done| stage.node(1).create(WHO, Ino::ROOT, name.as_bytes(), Created::Directory, 0o755, done);
            wait(create).unwrap().ino
        });
        Self { stage, directories, things: (0..THINGS).map(|_| Mutex::default()).collect() }
    }

    fn handle(&self, thing: &mut Thing, node: usize, ino: Ino) -> HandleId {
        *thing.handles[node].get_or_insert_with(|| self.stage.open(node, ino))
    }

    fn close(&self, thing: &mut Thing) {
        for (node, handle) in thing.handles.iter_mut().enumerate() {
            if let Some(handle) = handle.take() {
                self.stage.node(node).release(handle);
            }
        }
    }

    /// What every node says of a thing is what the model says.
    fn look(&self, number: usize, thing: &mut Thing, node: usize, random: &mut SmallRng) {
        for place in 0..2 {
            let asked = self.directories[place];
            let found = wait(|done| self.stage.node(node).lookup(asked, &name(number), done));
            let is_there = thing.file.is_some() && (place == thing.place || thing.linked);
            match (&found, &thing.file) {
                (Ok(attr), Some((ino, data, mode))) if is_there => {
                    assert_eq!((attr.ino, attr.mode), (*ino, *mode), "node {node}, {number}");
                    assert_eq!(attr.size, data.len() as u64, "node {node}, {number}: an old size");
                    assert_eq!(attr.nlink, 1 + u32::from(thing.linked), "node {node}, {number}");
                }
                (Err(Refusal::NotFound), _) if !is_there => {}
                _ => panic!("node {node}, {number} in {place}: {found:?}, though there {is_there}"),
            }
        }
        let Some((ino, data)) = thing.file.as_ref().map(|(ino, data, _)| (*ino, data.clone())) else {
            return;
        };
        if random.random_bool(0.5) {
            let handle = self.handle(thing, node, ino);
            let read = self.stage.read(node, handle, 0, 1 << 20);
            let differs = read.iter().zip(&data).position(|(read, data)| read != data);
            let lengths = (read.len(), data.len());
            assert!(
                read == data,
                "node {node}, {number}: byte {differs:?} of {lengths:?} is not what was written"
            );
        }
    }

    fn change(&self, number: usize, thing: &mut Thing, node: usize, random: &mut SmallRng) {
        let service = self.stage.node(node);
        let parent = self.directories[thing.place];
        let name = name(number);
        let Some((ino, size)) = thing.file.as_ref().map(|(ino, data, _)| (*ino, data.len())) else {
            let opened =
                wait(|done| service.create_open(WHO, parent, &name, 0o644, READ_WRITE, done)).unwrap();
            thing.file = Some((opened.attr.ino, Vec::new(), 0o644));
            thing.handles[node] = Some(opened.handle);
            return;
        };
        let other = self.directories[1 - thing.place];
        match random.random_range(0..16) {
            0..=4 => {
                let handle = self.handle(thing, node, ino);
                let append = random.random_bool(0.3);
                let offset = random.random_range(0..REACH);
                let data = vec![random.random_range(1..=255); random.random_range(1..9000)];
                let mode = WriteMode { append, sync: random.random_bool(0.1), ..WriteMode::default() };
                let at = wait(|done| service.write(handle, offset, slice(&data), mode, done)).unwrap();
                let expected = if append { size as u64 } else { offset };
                assert_eq!(at, expected, "node {node}, {number}");
                let at = usize::try_from(at).unwrap();
                let Some((_, bytes, _)) = &mut thing.file else { return };
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[at..at + data.len()].copy_from_slice(&data);
            }
            5 => {
                let size = random.random_range(0..REACH);
                let attr = wait(|done| service.set_attr(ino, SetAttr::default(), Some(size), done)).unwrap();
                assert_eq!(attr.size, size);
                let Some((_, bytes, _)) = &mut thing.file else { return };
                bytes.resize(usize::try_from(size).unwrap(), 0);
            }
            6 => {
                let handle = self.handle(thing, node, ino);
                let (from, len) = (random.random_range(0..REACH), random.random_range(1..20_000));
                let how = if random.random() { Allocation::Punch } else { Allocation::Zero };
                wait(|done| service.allocate(handle, from, len, how, true, done)).unwrap();
                let Some((_, bytes, _)) = &mut thing.file else { return };
                let (from, end) = (usize::try_from(from).unwrap(), usize::try_from(from + len).unwrap());
                let end = end.min(bytes.len());
                if from < end {
                    bytes[from..end].fill(0);
                }
            }
            7 | 8 => {
                let new = random.random_range(0..0o1000);
                let set = SetAttr { mode: Some(new), ..SetAttr::default() };
                wait(|done| service.set_attr(ino, set, None, done)).unwrap();
                if let Some((_, _, mode)) = &mut thing.file {
                    *mode = new;
                }
            }
            9 if !thing.linked => {
                wait(|done| service.link(ino, other, &name, done)).unwrap();
                thing.linked = true;
            }
            10 | 11 if !thing.linked => {
                let mode = RenameMode::NoReplace;
                wait(|done| service.rename(parent, &name, other, &name, mode, done)).unwrap();
                thing.place = 1 - thing.place;
            }
            12 if thing.linked => {
                wait(|done| service.unlink(parent, &name, done)).unwrap();
                (thing.linked, thing.place) = (false, 1 - thing.place);
            }
            12 => {
                wait(|done| service.unlink(parent, &name, done)).unwrap();
                thing.file = None;
                self.close(thing);
            }
            13 => match wait(|done| service.acquire(vec![ino], done)) {
                Ok(()) | Err(SetRefusal { why: Refusal::Busy(_), .. }) => {}
                Err(error) => panic!("node {node}, {number}: {error}"),
            },
            14 => {
                let handle = self.handle(thing, node, ino);
                wait(|done| service.sync(handle, done)).unwrap();
            }
            _ => self.close(thing),
        }
    }
}

fn play(seed: u64) {
    let play = Arc::new(Play::new(seed));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let play = Arc::clone(&play);
            std::thread::spawn(move || {
                let mut random = SmallRng::seed_from_u64(seed * 100 + thread as u64);
                for _ in 0..40 {
                    let number = random.random_range(0..THINGS);
                    let mut thing = play.things[number].lock();
                    let node = random.random_range(0..NODES);
                    play.change(number, &mut thing, node, &mut random);
                    let node = random.random_range(0..NODES);
                    play.look(number, &mut thing, node, &mut random);
                }
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join().is_ok(), "seed {seed} has failed");
    }
    let play = Arc::into_inner(play).unwrap();
    for thing in &play.things {
        play.close(&mut thing.lock());
    }
    play.stage.finish();
}

/// So many seeds, from `CSV_SEED` on if that is set.
fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = number("CSV_SEED").unwrap_or(1);
    first..first + number("CSV_SEEDS").unwrap_or(6)
}

#[test]
fn every_acknowledged_change_is_seen_by_every_later_operation_on_any_node() {
    seeds().for_each(play);
}
