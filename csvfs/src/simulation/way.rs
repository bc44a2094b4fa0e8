//! The ways of one process to the LUN, and its connections: production's paths are above them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use lockd::clock::{BootTime, Clock};
use lockd::ids::ClientId;
use lockd::lease::Lease;
use lockd::rules::Rules;
use parking_lot::Mutex;
use redirector::lun::{Geometry, Outcome, Proof};
use redirector::open::{OpenError, OpenOptions};
use redirector::paths::PathSet;
use redirector::paths::request::{Command, Request};
use redirector::paths::way::{Abilities, Drained, Events, Link, Purpose, Restarts, Way};

use super::lun::{Disk, QUIESCE, Work};
use super::schedule::{Party, VirtualClock};

/// What a connection says of the slowest of a thousand requests, so that a late one makes it suspect after a second.
const P999: Duration = Duration::from_millis(50);
/// Between two looks at a path that is down.
const PROBE: Duration = Duration::from_millis(100);

/// What a process's ways have in common.
#[derive(Clone)]
struct Ends {
    disk: Arc<Disk>,
    party: Arc<Party>,
    clock: VirtualClock,
    client: ClientId,
    lease: Arc<Lease>,
}

/// The LUN as one process reaches it: production's paths, whose threads are steps.
pub struct Port {
    pub paths: Arc<PathSet>,
    steps: AtomicBool,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.paths)
    }
}

impl Port {
    /// Connects `client` by so many ways.
    pub fn open(
        disk: &Arc<Disk>,
        party: &Arc<Party>,
        (client, lease): (ClientId, Arc<Lease>),
        ways: usize,
        (hold, rules): (Duration, Rules),
    ) -> Result<Arc<Self>, OpenError> {
        let clock = VirtualClock { schedule: Arc::clone(&disk.schedule), party: Arc::clone(party) };
        let mut options = OpenOptions::new(client, [0; 16]);
        (options.rules, options.hold, options.clock) = (rules, hold, Arc::new(clock.clone()));
        (options.target_quiesce, options.probe_every, options.kept_max) = (QUIESCE, PROBE, 1 << 20);
        let (disk, party) = (Arc::clone(disk), Arc::clone(party));
        let ends = Ends { disk, party, clock, client, lease: Arc::clone(&lease) };
        let way = |number| Arc::new(SimulatedWay { ends: ends.clone(), number }) as Arc<dyn Way>;
        let paths = Arc::new(PathSet::stepped((0..ways).map(way).collect(), &options)?);
        redirector::lun::Lun::under(&*paths, lease, 0..0);
        Ok(Arc::new(Self { paths, steps: AtomicBool::new(false) }))
    }

    /// What production's threads do, unless that is still being done.
    pub fn step(&self) {
        if !self.steps.swap(true, SeqCst) {
            self.paths.step();
            self.steps.store(false, SeqCst);
        }
    }
}

struct SimulatedWay {
    ends: Ends,
    number: usize,
}

impl std::fmt::Debug for SimulatedWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl Way for SimulatedWay {
    fn connect(&self, purpose: Purpose, events: Arc<dyn Events>) -> Result<Arc<dyn Link>, OpenError> {
        let Ends { disk, party, client, .. } = &self.ends;
        if !disk.is_reached(party.node, self.number) {
            let source = std::io::ErrorKind::TimedOut.into();
            return Err(OpenError::Unreachable { lun: self.name(), source });
        }
        let is_proved = disk.target.proves && purpose != Purpose::Probe;
        if is_proved {
            disk.drain(*client);
        }
        let line = Arc::new_cyclic(|me| Line {
            number: disk.next_line(),
            way: self.number,
            party: Arc::clone(party),
            ends: self.ends.clone(),
            abilities: abilities(disk),
            drained: if is_proved { Drained::EveryInstance } else { Drained::Unproven },
            events,
            state: Mutex::default(),
            me: Weak::clone(me),
        });
        disk.connected(&line);
        Ok(line)
    }

    fn prove_ended(&self, _earlier: ClientId) -> Proof {
        Proof::Unprovable
    }

    fn name(&self) -> String {
        format!("path {} of node {}", self.number, self.ends.party.node)
    }
}

fn abilities(disk: &Disk) -> Abilities {
    let target = disk.target;
    Abilities {
        geometry: Geometry {
            size: target.size,
            block_size: 4096,
            request_max: 64 << 10,
            trim: target.trims,
            write_zeroes: true,
            volatile_cache: true,
        },
        read_only: false,
        fua: true,
        flush: true,
        multi_conn: true,
        instance: target.proves.then_some([1; 16]),
        list: None,
        restarts: if target.proves { Restarts::ByBootId } else { Restarts::Unseen },
    }
}

#[derive(Default)]
struct State {
    is_closed: bool,
    /// The read by which the LUN is recognised was answered: at once, as whoever has connected waits for it.
    is_greeted: bool,
    flights: BTreeMap<u64, (BootTime, Request)>,
    last: u64,
}

/// A connection.
pub struct Line {
    pub number: u64,
    /// Which of the ways it goes.
    pub way: usize,
    pub party: Arc<Party>,
    ends: Ends,
    abilities: Abilities,
    drained: Drained,
    events: Arc<dyn Events>,
    state: Mutex<State>,
    me: Weak<Self>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Line({})", self.number)
    }
}

impl Line {
    /// It is lost, from this moment at the target; the process hears of it a little later.
    pub fn cut(&self, why: &str) {
        let schedule = &self.ends.disk.schedule;
        let flights = {
            let mut state = self.state.lock();
            if std::mem::replace(&mut state.is_closed, true) {
                return;
            }
            std::mem::take(&mut state.flights)
        };
        self.ends.disk.lost(self.number);
        let sent: Vec<Request> = flights.into_values().map(|(_, request)| request).collect();
        schedule.note("line lost", &[self.party.node as u64, sent.len() as u64]);
        let (events, disk, why) = (Arc::clone(&self.events), Arc::clone(&self.ends.disk), why.to_owned());
        schedule.after_in(&self.party, schedule.between(0, 2_000), move || {
            disk.haunted(sent.iter().filter(|request| request.changes().is_some()).count() as u64);
            events.lost(&why, sent, Vec::new());
        });
    }

    /// The answer to a request, with what was read.
    fn answered(&self, id: u64, data: &[u8]) {
        let flight = self.state.lock().flights.remove(&id);
        if let Some((_, request)) = flight {
            self.events.ended(filled(request, data), Outcome::Done);
        }
    }

    /// L3: whoever sends a change has the lease now.
    fn check(&self, range: Option<Range<u64>>) {
        let Some(range) = range else { return };
        let Ends { disk, client, lease, clock, .. } = &self.ends;
        disk.schedule.note("write", &[client.0, range.start, range.end - range.start]);
        if !lease.holds(clock) {
            let at = range.start;
            disk.schedule.fail(format!("invariant 4: {client} changes {at:#x} of the LUN without its lease"));
        }
    }
}

/// A read with what was read.
fn filled(mut request: Request, data: &[u8]) -> Request {
    if let Command::Read(_, buffer, _) = &mut request.command {
        buffer.copy_from_slice(data);
    }
    request
}

impl Link for Line {
    fn submit(&self, request: Request) -> Result<(), Box<Request>> {
        let disk = &self.ends.disk;
        let work = match &request.command {
            Command::Read(offset, buffer, _) => Work::Read(*offset, buffer.len()),
            Command::Write(offset, data, ..) => Work::Write(*offset, data.clone()),
            Command::Zero(range, _) => Work::Zero(range.clone()),
            Command::Trim(range, _) => Work::Trim(range.clone()),
            Command::Flush(_) => Work::Flush,
        };
        let (id, range) = {
            let mut state = self.state.lock();
            if state.is_closed {
                return Err(Box::new(request));
            }
            if let (Work::Read(offset, len), false) = (&work, state.is_greeted) {
                state.is_greeted = true;
                drop(state);
                let mut data = vec![0; *len];
                disk.read(*offset, &mut data);
                self.events.ended(filled(request, &data), Outcome::Done);
                return Ok(());
            }
            state.last += 1;
            let (id, range) = (state.last, request.changes());
            state.flights.insert(id, (self.ends.clock.boot(), request));
            (id, range)
        };
        self.check(range);
        let line = self.me.upgrade().expect("somebody is calling it");
        let on_answer = Box::new(move |data: Vec<u8>| {
            let schedule = Arc::clone(&line.ends.disk.schedule);
            let back = schedule.between(20, 300);
            schedule.after_in(&Arc::clone(&line.party), back, move || line.answered(id, &data));
        });
        disk.accept(self, self.ends.client, work, on_answer);
        Ok(())
    }

    fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    fn drained(&self) -> Drained {
        self.drained
    }

    fn connections(&self) -> usize {
        1
    }

    fn oldest(&self) -> Option<BootTime> {
        self.state.lock().flights.values().map(|(sent, _)| *sent).min()
    }

    fn p999(&self) -> Option<Duration> {
        Some(P999)
    }

    fn close(&self, why: &str) {
        self.cut(why);
    }
}
