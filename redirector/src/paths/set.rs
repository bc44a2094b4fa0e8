//! A LUN over its paths.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use lockd::ids::{ClientId, NodeName};
use lockd::lease::Lease;
use lockd::reservation::{Shown, Trial};
use lockd::rules::Rule;
use parking_lot::{Condvar, Mutex};

use crate::buffer::{Buffer, Pool, Slice};
use crate::ghosts::GhostTable;
use crate::lun::{
    Geometry, Identity, Lun, LunFigures, OnDone, OnRead, Outcome, PathFigures, Proof, TargetMark,
};
use crate::open::{OpenError, OpenOptions};
use crate::paths::connect::Discard;
use crate::paths::kept::Kept;
use crate::paths::prober;
use crate::paths::request::{Command, Request};
use crate::paths::roster::{Path, Roster};
use crate::paths::state::Condition;
use crate::paths::supervisor;
use crate::paths::tenure::Tenure;
use crate::paths::traffic::{Traffic, Trouble};
use crate::paths::way::{Abilities, Direct, Purpose, Restarts, Way};
use crate::peer::wire::DATA_MAX;

/// The longest range of one zero or trim, in bytes: longer ones are split, lest one request takes longer than a path
/// may be silent.
const RANGE_MAX: u64 = 128 << 20;
/// Bytes that are written at a time where the target cannot write zeroes itself.
const ZEROS: usize = 1 << 20;

/// A LUN whose path errors stay here: see [`crate::paths`].
pub struct PathSet {
    pub(super) traffic: Arc<Traffic>,
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
    /// Connects by the first of `ways` that answers, and looks after all of them from now on. They are all used from now on,
    /// one at a time, in this order of preference (P1).
    pub fn open(ways: Vec<Arc<dyn Way>>, options: &OpenOptions) -> Result<Self, OpenError> {
        let paths = Self::connect(ways, options)?;
        let traffic = &paths.traffic;
        for index in 0..traffic.ways.len() {
            let probed = Arc::clone(traffic);
            Self::thread(traffic, "lun-probe", move || prober::run(&probed, index))?;
        }
        let supervised = Arc::clone(traffic);
        Self::thread(traffic, "lun-path", move || supervisor::run(&supervised))?;
        Ok(paths)
    }

    /// The same, with nobody who looks after them yet.
    pub(super) fn connect(mut ways: Vec<Arc<dyn Way>>, options: &OpenOptions) -> Result<Self, OpenError> {
        let (first, mut abilities) = Self::reach(&ways, options)?;
        let (direct, peers) = (ways.len(), options.peers.len());
        if peers > 0 {
            // What is longer could not be redirected.
            abilities.geometry.request_max = abilities.geometry.request_max.min(DATA_MAX);
        }
        ways.extend(options.peers.iter().cloned());
        let now = options.clock.boot();
        let traffic = Arc::new(Traffic {
            rules: options.rules,
            clock: Arc::clone(&options.clock),
            hold: options.hold,
            abilities,
            live: ArcSwapOption::empty(),
            calm: AtomicBool::new(false),
            keeps: AtomicBool::new(false),
            durable: AtomicBool::new(false),
            kept: Mutex::new(Kept::new(options.kept_max)),
            flush_fails: AtomicBool::new(false),
            flush_wanted: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            tenure: Mutex::new(None),
            trouble: Mutex::new(Trouble {
                roster: Roster::new(direct, peers, now, options.probe_every),
                ghosts: GhostTable::default(),
                held: std::collections::VecDeque::new(),
                waiting: Vec::new(),
                last_token: 0,
                generation: 0,
                last_generation: 0,
                instance: None,
                target_quiesce: options.target_quiesce,
                identity: options.identity.clone(),
            }),
            news: Condvar::new(),
            room: Condvar::new(),
            current: AtomicUsize::new(first),
            direct,
            ways,
        });
        traffic.bring_back(first, Purpose::First)?;
        let zeros =
            Pool::default().take_zeroed(ZEROS.min(traffic.abilities.geometry.request_max as usize)).share();
        Ok(Self { traffic, read_only: options.read_only, zeros })
    }

    /// The first of `ways` that answers, and what its target can do: that must be known before there is any traffic.
    fn reach(ways: &[Arc<dyn Way>], options: &OpenOptions) -> Result<(usize, Abilities), OpenError> {
        let mut failed = None;
        for (index, way) in ways.iter().enumerate() {
            let abilities = way.connect(Purpose::Probe, Arc::new(Discard)).and_then(|link| {
                let abilities = link.abilities().clone();
                link.close("the probe is over");
                let lun = way.name();
                if abilities.geometry.size == 0 {
                    Err(OpenError::Empty { lun })
                } else if abilities.read_only && !options.read_only {
                    Err(OpenError::ReadOnly { lun })
                } else {
                    Ok(abilities)
                }
            });
            match abilities {
                Ok(abilities) => return Ok((index, abilities)),
                Err(error) => {
                    if ways.len() > 1 {
                        tracing::warn!(lun = way.name(), %error, "a path of the LUN does not answer");
                    }
                    failed = failed.or(Some(error));
                }
            }
        }
        Err(failed.unwrap_or_else(|| {
            let source = std::io::ErrorKind::NotFound.into();
            OpenError::Unreachable { lun: "a LUN without a path".to_owned(), source }
        }))
    }

    fn path_figures(&self, roster: &Roster) -> Vec<PathFigures> {
        let paths = roster.paths().iter().zip(&self.traffic.ways).enumerate();
        let figures = |(index, (path, way)): (usize, (&Path, &Arc<dyn Way>))| PathFigures {
            name: way.name(),
            up: path.state.condition() != Condition::Down,
            used: index == roster.current(),
            through: way.through().cloned(),
            why: path.state.why().to_owned(),
        };
        paths.map(figures).collect()
    }

    fn thread(traffic: &Traffic, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let started = thread::Builder::new().name(name.to_owned()).spawn(run);
        started.map(drop).map_err(|source| {
            traffic.stop();
            OpenError::Unreachable { lun: traffic.name(), source }
        })
    }

    /// A flush follows what is written to `range`, and then `on_done` hears of it.
    fn flushed_after(&self, range: Range<u64>, on_done: OnDone) -> OnDone {
        let traffic = Arc::clone(&self.traffic);
        Box::new(move |outcome| match outcome {
            Outcome::Done => traffic.flush_write(range, on_done),
            other => on_done(other),
        })
    }

    /// What a change that cannot be durable by itself ends with (P8).
    fn made_durable(&self, range: &Range<u64>, on_done: OnDone) -> OnDone {
        let durable = self.traffic.durable.load(Ordering::Acquire) && self.traffic.abilities.flush;
        if durable { self.flushed_after(range.clone(), on_done) } else { on_done }
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
        let fua = fua || self.traffic.durable.load(Ordering::Acquire);
        if fua && !abilities.fua && abilities.flush {
            // Durable by itself is what this target cannot do.
            let then = self.flushed_after(offset..offset + length, on_done);
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
        let durable = self.traffic.durable.load(Ordering::Acquire);
        // What cannot be durable by itself and could be flushed at another server is written.
        let kept = self.traffic.keeps.load(Ordering::Acquire) || !self.traffic.abilities.flush;
        if self.traffic.abilities.geometry.write_zeroes && (!durable || kept) {
            let on_done = self.made_durable(&range, on_done);
            Self::split(&range, RANGE_MAX, on_done, |part, done| self.request(Command::Zero(part, done)));
        } else {
            Self::split(&range, self.zeros.len() as u64, on_done, |part, done| {
                let length = usize::try_from(part.end - part.start).unwrap_or(self.zeros.len());
                self.write(part.start, self.zeros.part(0..length), false, done);
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
        let mut ended = Vec::new();
        for way in &self.traffic.ways[..self.traffic.direct] {
            match way.prove_ended(earlier) {
                Proof::Ended(how) => ended.push(how),
                other => return other,
            }
        }
        Proof::Ended(ended.join("; "))
    }

    fn try_reservations(&self, trial: Trial<'_>) -> Result<Shown, String> {
        // What every path has shown.
        let mut all = Shown { aborts: true, persists: true, guards_unmap: true, tried: true };
        for way in &self.traffic.ways[..self.traffic.direct] {
            let shown = way.try_reservations(trial).map_err(|why| format!("{}: {why}", way.name()))?;
            all.aborts &= shown.aborts;
            all.persists &= shown.persists;
            all.guards_unmap &= shown.guards_unmap;
            all.tried &= shown.tried;
        }
        Ok(all)
    }

    fn target(&self) -> Option<TargetMark> {
        if self.traffic.abilities.restarts != Restarts::ByBootId {
            return None;
        }
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
        self.traffic.trouble.lock().roster.is_live()
    }

    fn through(&self) -> Option<NodeName> {
        let trouble = self.traffic.trouble.lock();
        let way = &self.traffic.ways[trouble.roster.current()];
        way.through().filter(|_| trouble.roster.is_live()).cloned()
    }

    fn direct(&self) -> Option<Weak<dyn Direct>> {
        let direct: Arc<dyn Direct> = Arc::clone(&self.traffic) as _;
        Some(Arc::downgrade(&direct))
    }

    fn figures(&self) -> LunFigures {
        let latencies = self.traffic.live.load().as_ref().map_or_else(Vec::new, |live| live.link.latencies());
        let trouble = self.traffic.trouble.lock();
        LunFigures {
            held: (trouble.held.len() + trouble.waiting.len()) as u64,
            ghosts: trouble.ghosts.ranges().len() as u64,
            latencies,
            overdue: trouble.roster.state().condition() == Condition::Suspect,
            state_age: Some(self.traffic.clock.boot().since(trouble.roster.state().since())),
            paths: self.path_figures(&trouble.roster),
        }
    }

    fn describe(&self) -> String {
        let traffic = &self.traffic;
        let connections = traffic.live.load().as_ref().map_or(0, |live| live.link.connections());
        let trouble = traffic.trouble.lock();
        let (state, now) = (trouble.roster.state(), traffic.clock.boot());
        let age = now.since(state.since()).as_secs();
        let mut text = format!("{}: {} for {age} s ({})", traffic.name(), state.condition(), state.why());
        if state.condition() != Condition::Down {
            text += &format!(", {connections} connections");
        }
        if !trouble.held.is_empty() || !trouble.waiting.is_empty() {
            text += &format!(", {} requests held", trouble.held.len() + trouble.waiting.len());
        }
        if !trouble.ghosts.is_empty() {
            text += &format!(", ghosts in {} ranges", trouble.ghosts.ranges().len());
        }
        text += &match (traffic.abilities.restarts, trouble.instance) {
            (Restarts::ByBootId, Some([a, b, c, d, ..])) => {
                format!(
                    "; csv-target instance {a:02x}{b:02x}{c:02x}{d:02x}: proves drains, and its restarts are seen"
                )
            }
            (Restarts::ByAttention, _) => format!(
                "; assumed of this target: it executes nothing later than {} s after a session is gone (target_quiesce), \
                 and reports each reset by a unit attention",
                trouble.target_quiesce.as_secs_f64()
            ),
            _ => format!(
                "; assumed of this server: it executes nothing later than {} s after a connection is closed \
                 (target_quiesce), and a restart of it loses nothing that was completed",
                trouble.target_quiesce.as_secs_f64()
            ),
        };
        for (index, path) in trouble.roster.paths().iter().enumerate() {
            if index != trouble.roster.current() {
                let (name, state) = (traffic.ways[index].name(), &path.state);
                let age = now.since(state.since()).as_secs();
                text += &format!("; beside it {name}: {} for {age} s ({})", state.condition(), state.why());
            }
        }
        if traffic.durable.load(Ordering::Acquire) {
            text +=
                "; the paths may lead to several servers of one store: every write is made durable by itself";
        }
        let off: Vec<_> = traffic.rules.switched_off().map(Rule::name).collect();
        if !off.is_empty() {
            text += &format!("; RULES SWITCHED OFF: {}", off.join(", "));
        }
        text
    }
}
