//! The LUN: requests are executed in another order than they were sent, some late, also those of the dead and those that came
//! by connections which are lost.
//!
//! It knows the files: all that is ever written to them are [words](super::words), which name their file, so each write is held
//! against the authority at the moment at which it is executed (invariant 2).
//!
//! What a lost connection leaves here may be executed for the target's quiesce time (P4). When that is, the seed says, and
//! mostly it is at the end of it; but as soon as it would do harm, it is done: when the file has got another server, or other
//! bytes have been written there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockd::ids::ClientId;
use parking_lot::Mutex;
use rand::Rng;
use redirector::buffer::Slice;

use super::schedule::{Party, Schedule};
use super::way::Line;
use super::words::words_of;

/// For how long the target may execute what a lost connection has left (P4).
pub const QUIESCE: Duration = Duration::from_millis(1_200);
/// For how long it may execute anything after that was sent: the grace is longer (P5).
const LONGEST: Duration = Duration::from_millis(2_900);

const BLOCK: usize = 4096;
/// What a block holds that nobody has written in this simulation, or that has been trimmed.
const GARBAGE: [u8; BLOCK] = [0xE7; BLOCK];

/// Says whether a client may write to a file now, or why not.
pub type Judge = Arc<dyn Fn(ClientId, u16) -> Result<(), String> + Send + Sync>;

/// Says whether nobody uses a block that a client had for a write which may land late: it is held back, or still in the
/// client's reserve.
pub type IsIdle = Box<dyn Fn(ClientId, u64) -> bool + Send + Sync>;

/// Kills the mount of a node.
pub type OnKill = Box<dyn Fn(usize) + Send + Sync>;

/// Takes what was read, at the target.
pub type OnAnswer = Box<dyn FnOnce(Vec<u8>) + Send>;

/// What the target does for a request.
#[derive(Debug)]
pub enum Work {
    Read(u64, usize),
    Write(u64, Slice),
    Zero(Range<u64>),
    Trim(Range<u64>),
    Flush,
}

impl Work {
    /// The bytes that it changes.
    fn changes(&self) -> Option<Range<u64>> {
        match self {
            Self::Read(..) | Self::Flush => None,
            Self::Write(offset, data) => Some(*offset..*offset + data.len() as u64),
            Self::Zero(range) | Self::Trim(range) => Some(range.clone()),
        }
    }
}

/// A request that has reached the target and is not executed yet.
struct Accepted {
    /// The connection by which it came.
    line: u64,
    client: ClientId,
    work: Work,
    sent: Duration,
    /// Its connection is lost.
    is_late: bool,
    on_answer: Option<OnAnswer>,
}

/// What the target is like.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Size in bytes.
    pub size: u64,
    /// It proves that what an earlier connection of a client has left is executed (csv-target's drain).
    pub proves: bool,
    /// It trims.
    pub trims: bool,
}

/// What has happened to lost connections.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Figures {
    /// Changes whose outcome somebody did not know.
    pub ghosts: u64,
    /// Changes that were executed after their connection was lost.
    pub late: u64,
}

/// The next change that a node sends loses its connection, or is the last thing that its mount does.
#[derive(Clone, Copy, Debug)]
pub struct Trap {
    /// Only a trim does that.
    pub on_trim: bool,
    /// The mount is killed.
    pub kills: bool,
    /// Also those that go by its other path.
    pub all: bool,
    /// Nothing is answered before.
    pub silence: Duration,
    /// For how long it cannot connect again.
    pub away: Duration,
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
    /// Nodes whose requests take long.
    slow: BTreeMap<usize, u64>,
    accepted: BTreeMap<u64, Accepted>,
    last: u64,
    lines: BTreeMap<u64, Arc<Line>>,
    last_line: u64,
    /// Connections that carry nothing.
    silent: BTreeSet<u64>,
    /// Nodes, and their paths, that do not reach it.
    away: BTreeSet<(usize, usize)>,
    /// By node, and whether it is for trims.
    traps: BTreeMap<(usize, bool), Trap>,
    figures: Figures,
}

/// What all ways to it share.
pub struct Disk {
    pub schedule: Arc<Schedule>,
    pub target: Target,
    state: Mutex<State>,
    judge: Judge,
    on_kill: OnceLock<OnKill>,
    is_idle: OnceLock<IsIdle>,
}

impl Disk {
    /// A LUN that holds garbage.
    pub fn new(schedule: &Arc<Schedule>, target: Target, judge: Judge) -> Arc<Self> {
        Arc::new(Self {
            schedule: Arc::clone(schedule),
            target,
            state: Mutex::default(),
            judge,
            on_kill: OnceLock::new(),
            is_idle: OnceLock::new(),
        })
    }

    /// Requests of `node` take up to so many microseconds.
    pub fn slow(&self, node: usize, most_us: u64) {
        self.state.lock().slow.insert(node, most_us);
    }

    /// Who kills mounts.
    pub fn on_kill(&self, on_kill: OnKill) {
        let _ = self.on_kill.set(on_kill);
    }

    /// Who knows which blocks nobody uses (P6).
    pub fn ask_of_blocks(&self, is_idle: IsIdle) {
        let _ = self.is_idle.set(is_idle);
    }

    /// See [`Trap`].
    pub fn set_trap(&self, node: usize, trap: Trap) {
        self.state.lock().traps.insert((node, trap.on_trim), trap);
    }

    /// All requests are fast, and everybody reaches it.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.slow.clear();
        state.away.clear();
        state.traps.clear();
    }

    /// Drops what it leads to.
    pub fn end(&self) {
        let mut state = self.state.lock();
        let (lines, accepted) = (std::mem::take(&mut state.lines), std::mem::take(&mut state.accepted));
        drop(state);
        drop((lines, accepted));
    }

    /// What has happened to lost connections.
    pub fn figures(&self) -> Figures {
        self.state.lock().figures
    }

    /// Whether `node` reaches it by its path `way`.
    pub fn is_reached(&self, node: usize, way: usize) -> bool {
        !self.state.lock().away.contains(&(node, way))
    }

    /// A number for a new connection.
    pub fn next_line(&self) -> u64 {
        let mut state = self.state.lock();
        state.last_line += 1;
        state.last_line
    }

    /// A connection was made.
    pub fn connected(&self, line: &Arc<Line>) {
        self.state.lock().lines.insert(line.number, Arc::clone(line));
    }

    fn delay(&self, node: usize) -> Duration {
        let most = self.state.lock().slow.get(&node).copied().unwrap_or(800);
        self.schedule.between(20, most.max(21))
    }

    /// A request comes by `line`: it is executed after a while, whatever becomes of who has sent it.
    pub fn accept(self: &Arc<Self>, line: &Line, client: ClientId, work: Work, on_answer: OnAnswer) {
        let node = line.party.node;
        let (is_change, is_trim) = (work.changes().is_some(), matches!(work, Work::Trim(_)));
        let (id, trap) = {
            let mut state = self.state.lock();
            state.last += 1;
            let (id, sent) = (state.last, self.schedule.time());
            let on_answer = Some(on_answer);
            let accepted = Accepted { line: line.number, client, work, sent, is_late: false, on_answer };
            state.accepted.insert(id, accepted);
            (id, if is_change { state.traps.remove(&(node, is_trim)) } else { None })
        };
        let disk = Arc::clone(self);
        self.schedule.after(self.delay(node), move || disk.execute(id));
        if let Some(trap) = trap {
            self.spring(line, trap);
        }
    }

    fn spring(self: &Arc<Self>, line: &Line, trap: Trap) {
        self.schedule.note("trap", &[line.party.node as u64, line.way as u64]);
        let (node, way, all) = (line.party.node, line.way, trap.all);
        let delay = if trap.silence.is_zero() { self.schedule.between(0, 400) } else { trap.silence };
        if !trap.silence.is_zero() {
            let mut state = self.state.lock();
            let silent = lines_of(&state, node, way, all);
            state.silent.extend(silent.iter().map(|line| line.number));
            state.away.extend(ways(way, all).map(|way| (node, way)));
        }
        let disk = Arc::clone(self);
        if trap.kills {
            return self.schedule.after(delay, move || {
                disk.on_kill.get().into_iter().for_each(|kill| kill(node));
            });
        }
        self.schedule.after(delay, move || {
            let lost = {
                let mut state = disk.state.lock();
                state.away.extend(ways(way, all).map(|way| (node, way)));
                lines_of(&state, node, way, all)
            };
            lost.iter().for_each(|line| line.cut("the connection was reset"));
            let back = Arc::clone(&disk);
            disk.schedule.after(trap.away, move || {
                back.state.lock().away.retain(|(of, _)| *of != node);
            });
        });
    }

    /// A process is over, and with it its connections.
    pub fn process_gone(self: &Arc<Self>, party: &Arc<Party>) {
        let lines: Vec<Arc<Line>> = {
            let state = self.state.lock();
            state.lines.values().filter(|line| Arc::ptr_eq(&line.party, party)).cloned().collect()
        };
        lines.iter().for_each(|line| line.cut("the process has ended"));
    }

    fn execute(&self, id: u64) {
        let accepted = {
            let mut state = self.state.lock();
            let waits = |accepted: &Accepted, silent: &BTreeSet<u64>| {
                accepted.is_late || silent.contains(&accepted.line)
            };
            match state.accepted.get(&id) {
                Some(accepted) if !waits(accepted, &state.silent) => state.accepted.remove(&id),
                _ => None,
            }
        };
        let Some(Accepted { client, work, on_answer, .. }) = accepted else { return };
        let data = self.perform(client, &work, false);
        if let Some(on_answer) = on_answer {
            on_answer(data);
        }
    }

    /// Does the work. What was read.
    fn perform(&self, client: ClientId, work: &Work, is_late: bool) -> Vec<u8> {
        if let Some(range) = work.changes() {
            self.schedule.note("written", &[client.0, range.start]);
        }
        match work {
            Work::Read(offset, len) => {
                let mut data = vec![0; *len];
                self.read(*offset, &mut data);
                return data;
            }
            Work::Write(offset, data) => self.write(client, *offset, data, is_late),
            Work::Zero(range) => self.fill(range, &[0; BLOCK]),
            Work::Trim(range) => self.fill(range, &GARBAGE),
            Work::Flush => {}
        }
        if let Some(range) = work.changes() {
            self.undo(&range);
        }
        Vec::new()
    }

    /// Reads what is there.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        let state = self.state.lock();
        for (number, block) in out.chunks_mut(BLOCK).enumerate() {
            let at = offset / BLOCK as u64 + number as u64;
            let data = state.blocks.get(&at).map_or(&GARBAGE, |block| &**block);
            block.copy_from_slice(&data[..block.len()]);
        }
    }

    fn fill(&self, range: &Range<u64>, with: &[u8; BLOCK]) {
        let mut state = self.state.lock();
        for at in range.start / BLOCK as u64..range.end / BLOCK as u64 {
            state.blocks.insert(at, Box::new(*with));
        }
    }

    fn write(&self, client: ClientId, offset: u64, data: &[u8], is_late: bool) {
        let harms = || !is_late || !self.is_idle(client, offset);
        if let Err((file, why)) = self.judged(client, data)
            && harms()
        {
            self.schedule.fail(format!(
                "invariant 2: {client} has written to file {file} at {offset:#x} of the LUN: {why}"
            ));
        }
        let mut state = self.state.lock();
        for (number, block) in data.chunks(BLOCK).enumerate() {
            let at = offset / BLOCK as u64 + number as u64;
            let kept = state.blocks.entry(at).or_insert_with(|| Box::new(GARBAGE));
            kept[..block.len()].copy_from_slice(block);
        }
    }

    fn is_idle(&self, client: ClientId, offset: u64) -> bool {
        self.is_idle.get().is_some_and(|is_idle| is_idle(client, offset / BLOCK as u64))
    }

    /// Whether a client may write this now, or to which file not.
    fn judged(&self, client: ClientId, data: &[u8]) -> Result<(), (u16, String)> {
        let mut last = None;
        for word in words_of(data).filter(|word| !word.is_zero()) {
            let file = word.file();
            if last != Some(file) {
                last = Some(file);
                (self.judge)(client, file).map_err(|why| (file, why))?;
            }
        }
        Ok(())
    }

    /// The connection `line` is lost: what it has left is never executed, or soon, or late.
    pub fn lost(self: &Arc<Self>, line: u64) {
        let left: Vec<u64> = {
            let mut state = self.state.lock();
            state.lines.remove(&line);
            state.silent.remove(&line);
            let of_line = |accepted: &Accepted| accepted.line == line && !accepted.is_late;
            let left = state.accepted.iter().filter(|(_, accepted)| of_line(accepted));
            left.map(|(id, _)| *id).collect()
        };
        for id in left {
            let due = self.fate();
            let mut state = self.state.lock();
            let Some(accepted) = state.accepted.get_mut(&id) else { continue };
            match due.filter(|_| accepted.work.changes().is_some()) {
                Some(due) => {
                    (accepted.is_late, accepted.on_answer) = (true, None);
                    let due = due.min((accepted.sent + LONGEST).saturating_sub(self.schedule.time()));
                    drop(state);
                    let disk = Arc::clone(self);
                    self.schedule.after(due, move || disk.land(id));
                }
                None => {
                    let removed = state.accepted.remove(&id);
                    drop(state);
                    drop(removed);
                }
            }
        }
    }

    /// When a request is executed whose connection is lost now, if it ever is.
    fn fate(&self) -> Option<Duration> {
        let quiesce = u64::try_from(QUIESCE.as_micros()).expect("a second");
        match self.schedule.draw(|random| random.random_range(0..100)) {
            0..25 => None,
            25..35 => Some(self.schedule.between(0, 3_000)),
            35..55 => Some(self.schedule.between(0, quiesce)),
            _ => Some(self.schedule.between(quiesce - 3_000, quiesce)),
        }
    }

    /// What is late is executed, if it has not been.
    fn land(&self, id: u64) {
        let accepted = {
            let mut state = self.state.lock();
            let accepted = state.accepted.remove(&id);
            state.figures.late += u64::from(accepted.is_some());
            accepted
        };
        if let Some(Accepted { client, work, .. }) = accepted {
            self.schedule.note("late", &[client.0]);
            self.perform(client, &work, true);
        }
    }

    fn late(&self, such: impl Fn(&Accepted) -> bool) -> Vec<u64> {
        let state = self.state.lock();
        let late = state.accepted.iter().filter(|(_, accepted)| accepted.is_late && such(accepted));
        late.map(|(id, _)| *id).collect()
    }

    /// `range` has been changed: what is late there, and would change it again, is executed now.
    fn undo(&self, range: &Range<u64>) {
        let overlaps = |other: Range<u64>| other.start < range.end && range.start < other.end;
        for id in self.late(|accepted| accepted.work.changes().is_some_and(overlaps)) {
            let differs = {
                let state = self.state.lock();
                state.accepted.get(&id).is_some_and(|accepted| match &accepted.work {
                    Work::Write(offset, data) => {
                        data.chunks(BLOCK).zip(*offset / BLOCK as u64..).any(|(bytes, at)| {
                            let there = state.blocks.get(&at).map_or(&GARBAGE, |block| &**block);
                            there[..bytes.len()] != *bytes
                        })
                    }
                    _ => true,
                })
            };
            if differs {
                self.land(id);
            }
        }
    }

    /// Somebody may hold other things now: what is late of who may not write it any more is executed.
    pub fn has_changed_hands(&self) {
        for id in self.late(|accepted| matches!(accepted.work, Work::Write(..))) {
            let of = {
                let state = self.state.lock();
                match state.accepted.get(&id) {
                    Some(Accepted { client, work: Work::Write(offset, data), .. }) => {
                        Some((*client, *offset, data.clone()))
                    }
                    _ => None,
                }
            };
            if let Some((client, offset, data)) = of
                && self.judged(client, &data).is_err()
                && !self.is_idle(client, offset)
            {
                self.land(id);
            }
        }
    }

    /// Executes what lost connections of `client` have left: the proof that csv-target gives to who connects again.
    pub fn drain(&self, client: ClientId) {
        for id in self.late(|accepted| accepted.client == client) {
            self.land(id);
        }
    }

    /// So many changes came back with an unknown outcome.
    pub fn haunted(&self, changes: u64) {
        self.state.lock().figures.ghosts += changes;
    }
}

fn ways(way: usize, all: bool) -> impl Iterator<Item = usize> {
    (0..2).filter(move |other| all || *other == way)
}

fn lines_of(state: &State, node: usize, way: usize, all: bool) -> Vec<Arc<Line>> {
    let is_it =
        |line: &&Arc<Line>| line.party.node == node && (all || line.way == way) && line.party.is_alive();
    state.lines.values().filter(is_it).cloned().collect()
}
