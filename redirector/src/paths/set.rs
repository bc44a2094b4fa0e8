//! A LUN over its paths.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use lockd::ids::ClientId;
use lockd::lease::Lease;
use lockd::rules::Rule;
use parking_lot::{Condvar, Mutex};

use crate::buffer::{Buffer, Pool, Slice};
use crate::ghosts::GhostTable;
use crate::lun::{Geometry, Identity, Lun, LunFigures, OnDone, OnRead, Outcome, Proof, TargetMark};
use crate::open::{OpenError, OpenOptions};
use crate::paths::kept::Kept;
use crate::paths::request::{Command, Request};
use crate::paths::state::{Condition, PathState};
use crate::paths::supervisor;
use crate::paths::tenure::Tenure;
use crate::paths::traffic::{Traffic, Trouble};
use crate::paths::way::{Purpose, Way};

/// The longest range of one zero or trim, in bytes: longer ones are split, lest one request takes longer than a path
/// may be silent.
const RANGE_MAX: u64 = 128 << 20;
/// Bytes that are written at a time where the target cannot write zeroes itself.
const ZEROS: usize = 1 << 20;

/// A LUN whose path errors stay here: see [`crate::paths`].
pub struct PathSet {
    traffic: Arc<Traffic>,
    read_only: bool,
    zeros: Slice,
}

impl fmt::Debug for PathSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// Waits for the parts of a request that was split, and reports the worst of their outcomes.
struct Parts {
    left: usize,
    worst: Outcome,
    on_done: Option<OnDone>,
}

impl Parts {
    fn share(count: usize, on_done: OnDone) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { left: count, worst: Outcome::Done, on_done: Some(on_done) }))
    }

    fn ended(this: &Mutex<Self>, outcome: Outcome) {
        let (on_done, worst) = {
            let mut parts = this.lock();
            parts.left -= 1;
            parts.worst = match (parts.worst, outcome) {
                (Outcome::Unknown, _) | (_, Outcome::Unknown) => Outcome::Unknown,
                (Outcome::Failed(errno), _) | (_, Outcome::Failed(errno)) => Outcome::Failed(errno),
                (Outcome::Done, Outcome::Done) => Outcome::Done,
            };
            let done = if parts.left == 0 { parts.on_done.take() } else { None };
            (done, parts.worst)
        };
        if let Some(on_done) = on_done {
            on_done(worst);
        }
    }
}

impl PathSet {
    /// Connects by `way`, and looks after the path from now on.
    pub fn open(way: Arc<dyn Way>, options: &OpenOptions) -> Result<Self, OpenError> {
        let lun = way.name();
        // What the LUN can do must be known before its traffic can be set up.
        let first = way.connect(Purpose::Probe, Arc::new(supervisor::Discard))?;
        let abilities = first.abilities().clone();
        first.close("the probe is over");
        if abilities.geometry.size == 0 {
            return Err(OpenError::Empty { lun });
        }
        if abilities.read_only && !options.read_only {
            return Err(OpenError::ReadOnly { lun });
        }
        let now = options.clock.boot();
        let mut state = PathState::up(now, options.probe_every);
        state.lost("not connected yet", now);
        let traffic = Arc::new(Traffic {
            way,
            rules: options.rules,
            clock: Arc::clone(&options.clock),
            hold: options.hold,
            abilities,
            live: ArcSwapOption::empty(),
            calm: AtomicBool::new(false),
            keeps: AtomicBool::new(false),
            kept: Mutex::new(Kept::new(options.kept_max)),
            flush_fails: AtomicBool::new(false),
            flush_wanted: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            tenure: Mutex::new(None),
            trouble: Mutex::new(Trouble {
                state,
                ghosts: GhostTable::default(),
                held: std::collections::VecDeque::new(),
                waiting: Vec::new(),
                last_token: 0,
                generation: 0,
                instance: None,
                target_quiesce: options.target_quiesce,
                identity: options.identity.clone(),
                warned: None,
            }),
            news: Condvar::new(),
            room: Condvar::new(),
        });
        traffic.bring_back(Purpose::First)?;
        let supervised = Arc::clone(&traffic);
        thread::Builder::new()
            .name("lun-path".to_owned())
            .spawn(move || supervisor::run(&supervised))
            .map_err(|source| OpenError::Unreachable { lun, source })?;
        let zeros =
            Pool::default().take_zeroed(ZEROS.min(traffic.abilities.geometry.request_max as usize)).share();
        Ok(Self { traffic, read_only: options.read_only, zeros })
    }

    fn request(&self, command: Command) {
        self.traffic.dispatch(Request::new(command, self.traffic.clock.boot()));
    }

    /// What is wrong with a request for `length` bytes at `offset`.
    fn refusal(&self, offset: u64, length: u64, changes: bool) -> Option<Outcome> {
        let geometry = &self.traffic.abilities.geometry;
        let block = u64::from(geometry.block_size);
        if changes && self.read_only {
            return Some(Outcome::Failed(libc::EROFS));
        }
        let fits = offset.checked_add(length).is_some_and(|end| end <= geometry.size);
        let aligned = offset.is_multiple_of(block) && length.is_multiple_of(block);
        (!fits || !aligned).then_some(Outcome::Failed(libc::EINVAL))
    }

    /// Splits `range` into parts of at most `part_max` bytes and starts each.
    fn split(range: &Range<u64>, part_max: u64, on_done: OnDone, mut start: impl FnMut(Range<u64>, OnDone)) {
        if range.end - range.start <= part_max {
            return start(range.clone(), on_done);
        }
        let count = (range.end - range.start).div_ceil(part_max);
        let parts = Parts::share(usize::try_from(count).unwrap_or(usize::MAX), on_done);
        let mut at = range.start;
        while at < range.end {
            let part = at..range.end.min(at + part_max);
            at = part.end;
            let parts = Arc::clone(&parts);
            start(part, Box::new(move |outcome| Parts::ended(&parts, outcome)));
        }
    }
}

impl Drop for PathSet {
    fn drop(&mut self) {
        self.traffic.stop();
    }
}

impl Lun for PathSet {
    fn geometry(&self) -> Geometry {
        self.traffic.abilities.geometry
    }

    fn read(&self, offset: u64, buffer: Buffer, on_read: OnRead) {
        let length = buffer.len() as u64;
        if let Some(refusal) = self.refusal(offset, length, false) {
            return on_read(refusal, buffer);
        }
        if length == 0 {
            return on_read(Outcome::Done, buffer);
        }
        if length > u64::from(self.traffic.abilities.geometry.request_max) {
            return on_read(Outcome::Failed(libc::EINVAL), buffer);
        }
        self.request(Command::Read(offset, buffer, on_read));
    }

    fn write(&self, offset: u64, data: Slice, fua: bool, on_done: OnDone) {
        let (length, abilities) = (data.len() as u64, &self.traffic.abilities);
        if let Some(refusal) = self.refusal(offset, length, true) {
            return on_done(refusal);
        }
        if length == 0 {
            return on_done(Outcome::Done);
        }
        if length > u64::from(abilities.geometry.request_max) {
            return on_done(Outcome::Failed(libc::EINVAL));
        }
        if fua && !abilities.fua && abilities.flush {
            // Durable by itself is what this target cannot do: a flush follows.
            let traffic = Arc::clone(&self.traffic);
            let then = Box::new(move |outcome| match outcome {
                Outcome::Done => traffic.flush(on_done),
                other => on_done(other),
            });
            return self.request(Command::Write(offset, data, false, then));
        }
        self.request(Command::Write(offset, data, fua && abilities.fua, on_done));
    }

    fn flush(&self, on_done: OnDone) {
        if self.traffic.abilities.flush {
            self.traffic.flush(on_done);
        } else {
            on_done(Outcome::Done);
        }
    }

    fn zero(&self, range: Range<u64>, on_done: OnDone) {
        let length = range.end.saturating_sub(range.start);
        if let Some(refusal) = self.refusal(range.start, length, true) {
            return on_done(refusal);
        }
        if length == 0 {
            return on_done(Outcome::Done);
        }
        if self.traffic.abilities.geometry.write_zeroes {
            Self::split(&range, RANGE_MAX, on_done, |part, done| self.request(Command::Zero(part, done)));
        } else {
            Self::split(&range, self.zeros.len() as u64, on_done, |part, done| {
                let length = usize::try_from(part.end - part.start).unwrap_or(self.zeros.len());
                self.request(Command::Write(part.start, self.zeros.part(0..length), false, done));
            });
        }
    }

    fn trim(&self, range: Range<u64>, on_done: OnDone) {
        let length = range.end.saturating_sub(range.start);
        if let Some(refusal) = self.refusal(range.start, length, true) {
            return on_done(refusal);
        }
        if length == 0 || !self.traffic.abilities.geometry.trim {
            return on_done(Outcome::Done);
        }
        Self::split(&range, RANGE_MAX, on_done, |part, done| self.request(Command::Trim(part, done)));
    }

    fn ghosts(&self) -> Vec<Range<u64>> {
        self.traffic.ghosts()
    }

    fn prove_ended(&self, earlier: ClientId) -> Proof {
        self.traffic.way.prove_ended(earlier)
    }

    fn target(&self) -> Option<TargetMark> {
        let boot = self.traffic.trouble.lock().instance?;
        Some(TargetMark { boot, list: self.traffic.abilities.list })
    }

    fn expect(&self, identity: Identity) {
        self.traffic.trouble.lock().identity = Some(identity);
    }

    fn assume_quiesce(&self, quiesce: Duration) {
        self.traffic.trouble.lock().target_quiesce = quiesce;
    }

    fn under(&self, lease: Arc<Lease>, free: Range<u64>) {
        *self.traffic.tenure.lock() = Some(Tenure { lease, free });
    }

    fn is_working(&self) -> bool {
        self.traffic.trouble.lock().state.condition() != Condition::Down
    }

    fn figures(&self) -> LunFigures {
        let latencies = self.traffic.live.load().as_ref().map_or_else(Vec::new, |live| live.link.latencies());
        let trouble = self.traffic.trouble.lock();
        LunFigures {
            held: (trouble.held.len() + trouble.waiting.len()) as u64,
            ghosts: trouble.ghosts.ranges().len() as u64,
            latencies,
            overdue: trouble.state.condition() == Condition::Suspect,
            state_age: Some(self.traffic.clock.boot().since(trouble.state.since())),
        }
    }

    fn describe(&self) -> String {
        let traffic = &self.traffic;
        let connections = traffic.live.load().as_ref().map_or(0, |live| live.link.connections());
        let trouble = traffic.trouble.lock();
        let state = &trouble.state;
        let age = traffic.clock.boot().since(state.since()).as_secs();
        let mut text = format!("{}: {} for {age} s ({})", traffic.way.name(), state.condition(), state.why());
        if state.condition() != Condition::Down {
            text += &format!(", {connections} connections");
        }
        if !trouble.held.is_empty() || !trouble.waiting.is_empty() {
            text += &format!(", {} requests held", trouble.held.len() + trouble.waiting.len());
        }
        if !trouble.ghosts.is_empty() {
            text += &format!(", ghosts in {} ranges", trouble.ghosts.ranges().len());
        }
        text += &match trouble.instance {
            Some([a, b, c, d, ..]) => {
                format!(
                    "; csv-target instance {a:02x}{b:02x}{c:02x}{d:02x}: proves drains, and its restarts are seen"
                )
            }
            None => format!(
                "; assumed of this server: it executes nothing later than {} s after a connection is closed \
                 (target_quiesce), and a restart of it loses nothing that was completed",
                trouble.target_quiesce.as_secs_f64()
            ),
        };
        let off: Vec<_> = traffic.rules.switched_off().map(Rule::name).collect();
        if !off.is_empty() {
            text += &format!("; RULES SWITCHED OFF: {}", off.join(", "));
        }
        text
    }
}
