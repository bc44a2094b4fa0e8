//! A logical unit of an iSCSI target, as a way to a LUN.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockd::clock::Clock;
use lockd::ids::ClientId;
use lockd::iscsi::reservation::{Nexus, try_out};
use lockd::iscsi::unit::Mode;
use lockd::iscsi::{Attention, IscsiUri, Isid, Session, SessionError, Unit};
use lockd::reservation::{ReservationError, Shown, Trial};
use lockd::rules::{Rule, Rules};
use parking_lot::Mutex;

use crate::iscsi::flight::{Load, Terms};
use crate::iscsi::link::IscsiLink;
use crate::iscsi::registration::{RegistrationError, Reservation};
use crate::lun::{Geometry, Proof};
use crate::open::OpenError;
use crate::paths::way::{Abilities, Drained, Events, Instance, Link, Purpose, Restarts, Way};

/// How long a target may take for a login, and for telling what it is.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest read or write, in bytes, of a target that names no limit.
const REQUEST_MAX: u32 = 8 << 20;
/// What the longest request is a multiple of, in bytes.
const ALIGNMENT: u32 = 4096;

/// What a link tells about its unit while it is in use.
#[derive(Debug)]
pub struct Word {
    /// Changes with each reset that is seen: by what completions are told from those of before (P9).
    pub instance: Mutex<Instance>,
    /// Why this client may not write any more, once that is so.
    pub refused: Mutex<Option<String>>,
    /// The client leaves in order.
    pub parting: AtomicBool,
}

impl Word {
    /// The unit was reset.
    pub fn has_reset(&self) {
        *self.instance.lock() = rand::random();
    }
}

/// A unit, and who we are to it.
pub struct Portal {
    uri: IscsiUri,
    client: ClientId,
    reservation: Option<Reservation>,
    rules: Rules,
    clock: Arc<dyn Clock>,
    word: Arc<Word>,
    /// By what the unit was known when it was reached first.
    identity: Mutex<Option<Vec<u8>>>,
    /// How it treats writes, once it has said so: it does so only to who has registered, where others have.
    mode: Mutex<Option<Mode>>,
}

impl fmt::Debug for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Portal({})", self.uri)
    }
}

impl Portal {
    /// The unit that `uri` names. Does not connect.
    #[must_use]
    pub fn new(
        uri: &IscsiUri,
        client: ClientId,
        reservation: Option<Reservation>,
        rules: Rules,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let word = Arc::new(Word {
            instance: Mutex::new(rand::random()),
            refused: Mutex::default(),
            parting: AtomicBool::new(false),
        });
        Self {
            uri: uri.clone(),
            client,
            reservation,
            rules,
            clock,
            word,
            identity: Mutex::default(),
            mode: Mutex::default(),
        }
    }

    /// One session for probes, and one that all I/O goes by: logging in under the id of an earlier session of ours ends
    /// that one at the target.
    fn isid(&self, purpose: Purpose) -> Isid {
        let role: &[u8] = if purpose == Purpose::Probe { b"probe" } else { b"link" };
        Isid::of(&[role, &self.client.0.to_le_bytes(), self.uri.to_string().as_bytes()])
    }

    fn lun(&self) -> String {
        self.uri.to_string()
    }

    fn failed(&self, error: SessionError) -> OpenError {
        match error {
            SessionError::Unreachable(why) => {
                OpenError::Unreachable { lun: self.lun(), source: std::io::Error::other(why) }
            }
            source => OpenError::Iscsi { lun: self.lun(), source },
        }
    }

    fn refused(&self, why: String) -> OpenError {
        OpenError::Refused { lun: self.lun(), why }
    }

    /// Registers, if others fence by reservations.
    fn enter(&self, session: &mut Session<Load>, deadline: Instant) -> Result<(), OpenError> {
        let Some(reservation) = &self.reservation else { return Ok(()) };
        match reservation.enter(&self.uri, session, deadline, self.rules, &*self.clock) {
            Ok(()) => Ok(()),
            Err(error @ RegistrationError::Ended) => Err(self.refused(error.to_string())),
            Err(RegistrationError::Target(ReservationError::Session(error))) => Err(self.failed(error)),
            Err(error) => Err(OpenError::Unreachable {
                lun: self.lun(),
                source: std::io::Error::other(error.to_string()),
            }),
        }
    }

    /// Asks the unit how it treats writes as one who has registered, if it says so to nobody else.
    fn learn_mode(
        &self,
        session: &mut Session<Load>,
        unit: &mut Unit,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<(), OpenError> {
        let is_unknown = unit.mode.is_none() && self.mode.lock().is_none();
        let is_probe = purpose == Purpose::Probe;
        if !is_probe || (is_unknown && self.reservation.is_some()) {
            self.enter(session, deadline)?;
        }
        if is_unknown {
            unit.ask_mode(session, deadline).map_err(|error| self.failed(error))?;
            if is_probe && self.reservation.is_some() {
                // The link registers anew.
                let left = Nexus::new(session, deadline).unregister();
                left.map_err(|error| self.failed(SessionError::Unreachable(error.to_string())))?;
            }
        }
        let mut known = self.mode.lock();
        *known = unit.mode.or(*known);
        unit.mode = *known;
        Ok(())
    }

    fn abilities(&self, unit: &Unit) -> Abilities {
        let mode = unit.mode.unwrap_or_default();
        let size = unit.block_size;
        let guarded = self.reservation.as_ref().is_none_or(|reservation| reservation.guards_unmap);
        let longest = match unit.transfer_max {
            0 => REQUEST_MAX,
            blocks => (blocks.saturating_mul(size).min(REQUEST_MAX) / ALIGNMENT * ALIGNMENT).max(ALIGNMENT),
        };
        Abilities {
            geometry: Geometry {
                size: unit.blocks * u64::from(size),
                block_size: size,
                request_max: longest,
                trim: unit.unmap_max > 0 && guarded,
                write_zeroes: unit.write_same_max > 0 && guarded,
                volatile_cache: mode.volatile_cache,
            },
            read_only: mode.read_only,
            fua: mode.fua,
            flush: mode.volatile_cache,
            multi_conn: true,
            instance: Some(*self.word.instance.lock()),
            list: None,
            restarts: Restarts::ByAttention,
        }
    }
}

impl Way for Portal {
    fn connect(&self, purpose: Purpose, events: Arc<dyn Events>) -> Result<Arc<dyn Link>, OpenError> {
        if let Some(why) = self.word.refused.lock().clone() {
            return Err(self.refused(why));
        }
        let mut session = Session::<Load>::open(&self.uri, self.isid(purpose), STEP_TIMEOUT)
            .map_err(|error| self.failed(error))?;
        let deadline = Instant::now() + STEP_TIMEOUT;
        let mut unit = Unit::ask(&mut session, deadline).map_err(|error| self.failed(error))?;
        let known = self.identity.lock().get_or_insert_with(|| unit.identity.clone()).clone();
        if known != unit.identity && self.rules.keeps(Rule::P3) {
            let why = "another logical unit answers there (its device identification is a different one); I/O is held \
                       until the right one is back"
                .to_owned();
            return Err(OpenError::OtherLun { lun: self.lun(), why });
        }
        self.learn_mode(&mut session, &mut unit, purpose, deadline)?;
        if purpose != Purpose::Probe {
            let reset = |sense: &lockd::iscsi::Sense| sense.attention() == Some(Attention::Reset);
            if session.attentions().iter().any(reset) {
                self.word.has_reset();
            }
        }
        let (abilities, terms) = (self.abilities(&unit), Terms::of(&unit));
        let own = self.reservation.as_ref().filter(|_| purpose != Purpose::Probe);
        let registered = own.map(|own| (self.uri.clone(), own.clone()));
        let word = Arc::clone(&self.word);
        let link =
            IscsiLink::start(session, terms, abilities, word, registered, events, Arc::clone(&self.clock))
                .map_err(|source| OpenError::Unreachable { lun: self.lun(), source })?;
        Ok(link)
    }

    fn prove_ended(&self, _earlier: ClientId) -> Proof {
        Proof::Unprovable
    }

    fn name(&self) -> String {
        self.lun()
    }

    fn try_reservations(&self, trial: Trial<'_>) -> Result<Shown, String> {
        try_out(&self.uri, trial, rand::random::<u64>() >> 1).map_err(|error| error.to_string())
    }

    fn part(&self) {
        self.word.parting.store(true, Ordering::Release);
    }
}

/// Nothing of an earlier session is known to be drained.
pub const DRAINED: Drained = Drained::Unproven;
