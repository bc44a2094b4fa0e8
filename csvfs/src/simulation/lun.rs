//! The LUN: requests are executed in another order than they were sent, some late, also those of the dead.
//!
//! It knows the files: all that is ever written to them are [words](super::words), which name their file, so each write is held
//! against the authority at the moment at which it is executed (invariant 2), and the lease at that at which it starts
//! (invariant 4).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use lockd::ids::ClientId;
use lockd::lease::Lease;
use parking_lot::Mutex;
use redirector::buffer::{Buffer, Slice};
use redirector::lun::{Geometry, Lun, OnDone, OnRead, Outcome, Proof};

use super::schedule::{Party, Schedule, VirtualClock};
use super::words::words_of;

const BLOCK: usize = 4096;
/// What a block holds that nobody has written in this simulation.
const GARBAGE: [u8; BLOCK] = [0xE7; BLOCK];

/// Says whether a client may write to a file now, or why not.
pub type Judge = Arc<dyn Fn(ClientId, u16) -> Result<(), String> + Send + Sync>;

#[derive(Default)]
struct State {
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
    /// Nodes whose requests take long.
    slow: BTreeMap<usize, u64>,
}

/// What all ways to it share.
pub struct Disk {
    schedule: Arc<Schedule>,
    state: Mutex<State>,
    size: u64,
    judge: Judge,
}

impl Disk {
    /// A LUN of `size` bytes that holds garbage.
    pub fn new(schedule: &Arc<Schedule>, size: u64, judge: Judge) -> Arc<Self> {
        Arc::new(Self { schedule: Arc::clone(schedule), state: Mutex::default(), size, judge })
    }

    /// Requests of `node` take up to so many microseconds.
    pub fn slow(&self, node: usize, most_us: u64) {
        self.state.lock().slow.insert(node, most_us);
    }

    /// All requests are fast.
    pub fn heal(&self) {
        self.state.lock().slow.clear();
    }

    fn delay(&self, node: usize) -> Duration {
        let most = self.state.lock().slow.get(&node).copied().unwrap_or(800);
        self.schedule.between(20, most.max(21))
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        let state = self.state.lock();
        for (number, block) in out.chunks_mut(BLOCK).enumerate() {
            let at = offset / BLOCK as u64 + number as u64;
            let data = state.blocks.get(&at).map_or(&GARBAGE, |block| &**block);
            block.copy_from_slice(&data[..block.len()]);
        }
    }

    fn write(&self, client: ClientId, offset: u64, data: &[u8]) {
        let mut last = None;
        for word in words_of(data).filter(|word| !word.is_zero()) {
            let file = word.file();
            if last != Some(file) {
                last = Some(file);
                if let Err(why) = (self.judge)(client, file) {
                    self.schedule.fail(format!(
                        "invariant 2: {client} has written to file {file} at {offset:#x} of the LUN: {why}"
                    ));
                }
            }
        }
        let mut state = self.state.lock();
        for (number, block) in data.chunks(BLOCK).enumerate() {
            let at = offset / BLOCK as u64 + number as u64;
            let kept = state.blocks.entry(at).or_insert_with(|| Box::new(GARBAGE));
            kept[..block.len()].copy_from_slice(block);
        }
    }
}

/// The way of one process to the LUN.
pub struct Port {
    disk: Arc<Disk>,
    party: Arc<Party>,
    clock: VirtualClock,
    client: ClientId,
    lease: Arc<Lease>,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Port({:?})", self.client)
    }
}

impl Port {
    /// The way of `client`.
    pub fn new(disk: &Arc<Disk>, party: &Arc<Party>, client: ClientId, lease: Arc<Lease>) -> Arc<Self> {
        let clock = VirtualClock { schedule: Arc::clone(&disk.schedule), party: Arc::clone(party) };
        Arc::new(Self { disk: Arc::clone(disk), party: Arc::clone(party), clock, client, lease })
    }

    /// Has `execute` done at the LUN, whatever becomes of this process, and then `done` here.
    fn request<T: Send + 'static>(
        &self,
        execute: impl FnOnce(&Disk) -> T + Send + 'static,
        done: impl FnOnce(T) + Send + 'static,
    ) {
        let (disk, party) = (Arc::clone(&self.disk), Arc::clone(&self.party));
        let at_target = move || {
            let result = execute(&disk);
            let back = disk.schedule.between(20, 300);
            disk.schedule.after_in(&party, back, move || done(result));
        };
        self.disk.schedule.after(self.disk.delay(self.party.node), at_target);
    }
}

impl Lun for Port {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.disk.size,
            block_size: 4096,
            request_max: 64 << 10,
            trim: false,
            write_zeroes: true,
            volatile_cache: true,
        }
    }

    fn read(&self, offset: u64, mut buffer: Buffer, on_read: OnRead) {
        let execute = move |disk: &Disk| {
            disk.read(offset, &mut buffer);
            buffer
        };
        self.request(execute, move |buffer| on_read(Outcome::Done, buffer));
    }

    fn write(&self, offset: u64, data: Slice, _fua: bool, on_done: OnDone) {
        let schedule = &self.disk.schedule;
        schedule.note("write", &[self.client.0, offset, data.len() as u64]);
        if !self.lease.holds(&self.clock) {
            schedule.fail(format!(
                "invariant 4: {} starts a write at {offset:#x} of the LUN without its lease",
                self.client
            ));
        }
        let client = self.client;
        self.request(
            move |disk| {
                disk.schedule.note("written", &[client.0, offset]);
                disk.write(client, offset, &data);
            },
            move |()| on_done(Outcome::Done),
        );
    }

    fn flush(&self, on_done: OnDone) {
        self.request(|_| (), move |()| on_done(Outcome::Done));
    }

    fn zero(&self, range: Range<u64>, on_done: OnDone) {
        let client = self.client;
        self.request(
            move |disk| {
                let len = usize::try_from(range.end - range.start).expect("a part of a small LUN");
                disk.write(client, range.start, &vec![0; len]);
            },
            move |()| on_done(Outcome::Done),
        );
    }

    fn trim(&self, _range: Range<u64>, on_done: OnDone) {
        self.request(|_| (), move |()| on_done(Outcome::Done));
    }

    fn ghosts(&self) -> Vec<Range<u64>> {
        Vec::new()
    }

    fn prove_ended(&self, _earlier: ClientId) -> Proof {
        Proof::Unprovable
    }

    fn describe(&self) -> String {
        "a simulated LUN".to_owned()
    }
}
