//! The fault switch: what a test can make the target do wrong.
//!
//! A fault says which requests it strikes (kinds, byte range, client; after so many, so many times) and what happens to
//! them. Nothing is looked up while there is none. Requests that a fault holds back wait in threads of their own, so
//! that they delay nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockd::ids::ClientId;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::request::{Kind, Request};

/// The most faults at a time.
const FAULTS_MAX: usize = 64;
/// The most requests held back at a time; further ones pass unharmed.
const HELD_MAX: u64 = 1024;
/// How often a held request looks whether its connection was closed.
const GLANCE: Duration = Duration::from_millis(10);

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Action {
    /// It is executed so much later.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// It is not executed, and answered with this errno (of Linux; the protocol knows a few and calls the rest EIO).
    Error {
        /// The errno.
        errno: i32,
    },
    /// It is not executed, and its connection closed.
    Cut,
    /// It is neither executed nor answered until the fault is released; never, if its connection closes before.
    Hang,
    /// Its connection is closed, and it is executed later: a ghost. Draining waits for it.
    Late {
        /// Milliseconds; until the fault is released, if there are none.
        ms: Option<u64>,
    },
    /// A change is answered as done and never executed, which no target may do: for those who want to see that it is found.
    /// Reads pass.
    Forget,
}

/// A fault: which requests, and what happens to them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSpec {
    /// What happens.
    pub action: Action,
    /// The kinds of requests; all of them, if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<Kind>,
    /// Only requests that touch bytes at or after this offset. Flushes touch none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// With `offset`: only those that touch so many bytes after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Only requests of this client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<u64>,
    /// So many matching requests pass unharmed first.
    #[serde(default)]
    pub after: u64,
    /// It strikes so many times; always, if there is no number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl FaultSpec {
    /// A fault that strikes every request.
    #[must_use]
    pub fn new(action: Action) -> Self {
        Self { action, kinds: Vec::new(), offset: None, length: None, client: None, after: 0, count: None }
    }

    /// Only requests of `kind` (and of other kinds named before).
    #[must_use]
    pub fn on(mut self, kind: Kind) -> Self {
        self.kinds.push(kind);
        self
    }

    /// Only requests that touch `range`, in bytes.
    #[must_use]
    pub fn within(self, range: std::ops::Range<u64>) -> Self {
        Self { offset: Some(range.start), length: Some(range.end.saturating_sub(range.start)), ..self }
    }

    /// Only requests of `client`.
    #[must_use]
    pub fn of(self, client: ClientId) -> Self {
        Self { client: Some(client.0), ..self }
    }

    /// Only after `requests` matching ones.
    #[must_use]
    pub fn after(self, requests: u64) -> Self {
        Self { after: requests, ..self }
    }

    /// Only so many times.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self { count: Some(count), ..self }
    }

    fn matches(&self, request: &Request, client: Option<ClientId>) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.contains(&request.kind);
        let start = self.offset.unwrap_or(0);
        let end = self.length.map_or(u64::MAX, |length| start.saturating_add(length));
        let everywhere = self.offset.is_none() && self.length.is_none();
        let range = everywhere || (request.range.start < end && start < request.range.end);
        kind && range && (self.client.is_none() || self.client == client.map(|client| client.0))
    }
}

/// The number of a fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FaultId(pub u64);

/// A fault as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct FaultStatus {
    /// Its number.
    pub fault: FaultId,
    /// What it does.
    #[serde(flatten)]
    pub spec: FaultSpec,
    /// How many requests it has struck.
    pub fired: u64,
    /// How many it holds back now.
    pub held: u64,
    /// How many it has held back and then let be executed.
    pub delivered: u64,
}

#[derive(Debug)]
pub(super) struct Fault {
    id: FaultId,
    spec: FaultSpec,
    seen: AtomicU64,
    fired: AtomicU64,
    held: AtomicU64,
    delivered: AtomicU64,
    releases: AtomicU64,
}

/// The target's faults.
#[derive(Debug, Default)]
pub struct Faults {
    armed: AtomicBool,
    faults: Mutex<(u64, Vec<Arc<Fault>>)>,
    held: AtomicU64,
    crashes: AtomicU64,
    changed: Condvar,
    glance: Mutex<()>,
}

/// Too many faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there are {FAULTS_MAX} faults already; clear some")]
pub struct TooManyFaults;

/// How a request's wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Execute,
    Drop,
}

/// A request that a fault holds back.
#[derive(Debug)]
pub(super) struct Hold {
    fault: Arc<Fault>,
    faults: Arc<Faults>,
    releases: u64,
    crashes: u64,
    since: Instant,
}

impl Faults {
    /// Adds a fault, in force at once.
    pub fn add(&self, spec: FaultSpec) -> Result<FaultId, TooManyFaults> {
        let mut faults = self.faults.lock();
        if faults.1.len() >= FAULTS_MAX {
            return Err(TooManyFaults);
        }
        faults.0 += 1;
        let id = FaultId(faults.0);
        tracing::warn!(fault = id.0, ?spec, "a fault is set");
        let zero = AtomicU64::default;
        faults.1.push(Arc::new(Fault {
            id,
            spec,
            seen: zero(),
            fired: zero(),
            held: zero(),
            delivered: zero(),
            releases: zero(),
        }));
        self.armed.store(true, Ordering::Release);
        Ok(id)
    }

    /// Lets go of the requests that the fault (every fault, if `None`) holds back; later ones are held back again.
    pub fn release(&self, id: Option<FaultId>) {
        for fault in self.faults.lock().1.iter().filter(|fault| id.is_none_or(|id| id == fault.id)) {
            fault.releases.fetch_add(1, Ordering::AcqRel);
        }
        self.changed.notify_all();
    }

    /// Ends the fault (every fault, if `None`) and lets go of what it holds back.
    pub fn clear(&self, id: Option<FaultId>) {
        self.release(id);
        let mut faults = self.faults.lock();
        faults.1.retain(|fault| id.is_some_and(|id| id != fault.id));
        self.armed.store(!faults.1.is_empty(), Ordering::Release);
    }

    /// All faults.
    #[must_use]
    pub fn list(&self) -> Vec<FaultStatus> {
        let read = |number: &AtomicU64| number.load(Ordering::Acquire);
        let status = |fault: &Arc<Fault>| FaultStatus {
            fault: fault.id,
            spec: fault.spec.clone(),
            fired: read(&fault.fired),
            held: read(&fault.held),
            delivered: read(&fault.delivered),
        };
        self.faults.lock().1.iter().map(status).collect()
    }

    /// How often the fault has struck.
    #[must_use]
    pub fn fired(&self, id: FaultId) -> u64 {
        self.list().iter().find(|status| status.fault == id).map_or(0, |status| status.fired)
    }

    /// How many requests all faults hold back now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    /// Drops what is held back, as a crash does.
    pub(super) fn crash(&self) {
        self.crashes.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_all();
    }

    /// Whether there is any fault.
    pub(super) fn are_armed(&self) -> bool {
        self.armed.load(Ordering::Acquire)
    }

    /// The fault that strikes this request, if one does.
    pub(super) fn strike(&self, request: &Request, client: Option<ClientId>) -> Option<Arc<Fault>> {
        let faults = self.faults.lock();
        for fault in faults.1.iter().filter(|fault| fault.spec.matches(request, client)) {
            let seen = fault.seen.fetch_add(1, Ordering::AcqRel);
            let turn = seen.checked_sub(fault.spec.after);
            if turn.is_some_and(|turn| fault.spec.count.is_none_or(|count| turn < count)) {
                fault.fired.fetch_add(1, Ordering::AcqRel);
                return Some(Arc::clone(fault));
            }
        }
        None
    }

    /// Begins to hold a request back; `None` when too many are.
    pub(super) fn hold(self: &Arc<Self>, fault: Arc<Fault>) -> Option<Hold> {
        if self.held.fetch_add(1, Ordering::AcqRel) >= HELD_MAX {
            self.held.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        fault.held.fetch_add(1, Ordering::AcqRel);
        Some(Hold {
            releases: fault.releases.load(Ordering::Acquire),
            crashes: self.crashes.load(Ordering::Acquire),
            since: Instant::now(),
            faults: Arc::clone(self),
            fault,
        })
    }
}

impl Fault {
    pub(super) fn action(&self) -> Action {
        self.spec.action
    }
}

impl Hold {
    /// Waits for the time or the release that the fault asks for, or until `is_dropped`, or a crash.
    pub(super) fn wait(&self, is_dropped: impl Fn() -> bool) -> Fate {
        let span = match self.fault.spec.action {
            Action::Delay { ms } | Action::Late { ms: Some(ms) } => Some(Duration::from_millis(ms)),
            _ => None,
        };
        let mut glance = self.faults.glance.lock();
        loop {
            if self.faults.crashes.load(Ordering::Acquire) != self.crashes || is_dropped() {
                return Fate::Drop;
            }
            let elapsed = self.since.elapsed();
            let is_over = span.is_some_and(|span| elapsed >= span);
            if is_over || self.fault.releases.load(Ordering::Acquire) != self.releases {
                return Fate::Execute;
            }
            let left = span.map_or(GLANCE, |span| GLANCE.min(span.saturating_sub(elapsed)));
            self.faults.changed.wait_for(&mut glance, left);
        }
    }

    /// The request was executed after all.
    pub(super) fn delivered(&self) {
        self.fault.delivered.fetch_add(1, Ordering::AcqRel);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.fault.held.fetch_sub(1, Ordering::AcqRel);
        self.faults.held.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(range: std::ops::Range<u64>) -> Request {
        Request { kind: Kind::Write, flags: 0, cookie: 0, range }
    }

    #[test]
    fn a_fault_strikes_what_it_names() {
        let faults = Faults::default();
        assert!(!faults.are_armed());
        let spec =
            FaultSpec::new(Action::Cut).on(Kind::Write).within(4096..8192).of(ClientId(7)).after(1).times(2);
        let id = faults.add(spec).unwrap();
        let seven = Some(ClientId(7));
        assert!(faults.strike(&write(0..4096), seven).is_none());
        assert!(faults.strike(&write(8192..9000), seven).is_none());
        assert!(faults.strike(&write(4096..8192), None).is_none());
        assert!(faults.strike(&Request { kind: Kind::Read, ..write(4096..8192) }, seven).is_none());
        let struck: Vec<_> = (0..4).map(|_| faults.strike(&write(8191..9000), seven).is_some()).collect();
        assert_eq!(struck, [false, true, true, false]);
        assert_eq!(faults.fired(id), 2);
        faults.clear(None);
        assert!(!faults.are_armed() && faults.list().is_empty());
    }

    #[test]
    fn held_requests_go_on_release_and_are_lost_in_a_crash() {
        let faults = Arc::new(Faults::default());
        faults.add(FaultSpec::new(Action::Hang)).unwrap();
        let hold = |faults: &Arc<Faults>| {
            let fault = faults.strike(&write(0..1), None).unwrap();
            faults.hold(fault).unwrap()
        };
        let (first, second, third) = (hold(&faults), hold(&faults), hold(&faults));
        assert_eq!(faults.held(), 3);
        assert_eq!(first.wait(|| true), Fate::Drop);
        faults.release(None);
        assert_eq!(first.wait(|| false), Fate::Execute);
        let fourth = hold(&faults);
        faults.crash();
        assert_eq!(fourth.wait(|| false), Fate::Drop);
        drop((first, second, third, fourth));
        assert_eq!(faults.held(), 0);
    }

    #[test]
    fn json() {
        let text = r#"{"action":{"late":{"ms":20}},"kinds":["write","zero"],"offset":4096,"count":1}"#;
        let spec: FaultSpec = serde_json::from_str(text).unwrap();
        assert_eq!(spec.action, Action::Late { ms: Some(20) });
        assert_eq!(serde_json::from_str::<FaultSpec>(r#"{"action":"hang"}"#).unwrap().action, Action::Hang);
        assert!(serde_json::from_str::<FaultSpec>(r#"{"action":"hang","kind":"write"}"#).is_err());
    }
}
