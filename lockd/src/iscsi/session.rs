//! One session with a target: login, commands in flight, and what became of them.
//!
//! libiscsi does no I/O by itself: whoever owns the session waits for its descriptor and calls [`Session::service`]. It
//! never connects anew by itself either (it would send again what was in flight): a session that breaks is over, and
//! gives back what it had been given. libiscsi's functions must not run side by side on one context; a `Session` is
//! owned by one thread at a time.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_int, c_short, c_void};
use std::fmt;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use ring::digest::{Context, SHA256};

use super::cdb::Cdb;
use super::page::Page;
use super::sense::{Ended, Sense};
use super::sys;
use super::uri::{IscsiUri, SecretError};

/// After what time data that were sent and are not acknowledged end the connection (P5).
const USER_TIMEOUT_MS: c_int = 3000;
/// How often a session that is being opened is looked at without news.
const GLANCE: Duration = Duration::from_millis(100);
/// How often a command is sent again that the target did not begin.
const TRIES: u32 = 12;
/// The pause before it when the target is busy.
const BUSY: Duration = Duration::from_millis(50);

/// Why a session cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Nobody answers, or not in time, or the connection broke.
    #[error("{0}")]
    Unreachable(String),
    /// The target does not let us in.
    #[error(
        "the target refuses the login ({0}); check the target's name, its access list, and the CHAP user and secret"
    )]
    Login(String),
    /// The target sends us elsewhere.
    #[error("the target says that it is at {0} now: name that address")]
    Moved(String),
    /// The secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A command of ours was refused.
    #[error("{command}: {ended}")]
    Refused {
        /// The command.
        command: &'static str,
        /// How it ended.
        ended: Ended,
    },
    /// A page makes no sense.
    #[error("the target's answer to {command} makes no sense: {why}")]
    Nonsense {
        /// The command.
        command: &'static str,
        /// What is wrong.
        why: &'static str,
    },
}

/// Where a command's data are.
#[derive(Debug)]
pub enum Transfer {
    /// It has none.
    None,
    /// The target's data go to this place.
    In(*mut u8, usize),
    /// The data from this place go to the target.
    Out(*const u8, usize),
}

/// What a command carries, and what is given back with its end.
///
/// # Safety
/// The place that `transfer` names stays where it is, readable or writable, and is used by nobody else, for as long as
/// the payload lives, also while the payload itself is moved.
pub unsafe trait Payload: From<Page> {
    /// Where the data are.
    fn transfer(&mut self) -> Transfer;
    /// The page that it was made of, if it was.
    fn into_page(self) -> Option<Page>;
}

/// By what a session is told from others of the same host: the initiator session id. A session that logs in with the
/// id of another one takes its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Isid(pub [u8; 5]);

impl Isid {
    /// The id that follows from `parts`: the same every time, and by all likelihood nobody else's.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let hash = context.finish();
        Self(hash.as_ref().first_chunk().copied().unwrap_or_default())
    }
}

/// What a callback of the library has to say. The library calls back only while one of its functions runs.
#[derive(Default)]
struct Inbox {
    ended: RefCell<Vec<(usize, Ended)>>,
    connected: Cell<Option<c_int>>,
    logged_in: Cell<Option<c_int>>,
    reset: Cell<Option<bool>>,
    cancelled: Cell<bool>,
}

/// A place in flight, as the library knows it.
struct Mark {
    inbox: *const Inbox,
    index: usize,
    task: Cell<*mut sys::TaskHead>,
}

/// A session, logged in.
pub struct Session<P> {
    context: NonNull<sys::Context>,
    lun: u16,
    inbox: Box<Inbox>,
    #[expect(clippy::vec_box, reason = "the library keeps the address of each, also when the vector grows")]
    marks: Vec<Box<Mark>>,
    flight: Vec<Option<P>>,
    free: Vec<usize>,
    /// The codes of the unit attentions that commands of our own have met.
    attentions: Vec<Sense>,
}

// SAFETY: the context and what the marks refer to belong to the session alone and are not bound to a thread.
unsafe impl<P: Send> Send for Session<P> {}

impl<P> fmt::Debug for Session<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("in_flight", &(self.marks.len() - self.free.len()))
            .finish_non_exhaustive()
    }
}

/// The end of a connection or of a login.
unsafe extern "C" fn on_connected(_: *mut sys::Context, status: c_int, _: *mut c_void, private: *mut c_void) {
    // SAFETY: `private` is the session's inbox, which outlives the context.
    unsafe { (*private.cast::<Inbox>()).connected.set(Some(status)) };
}

unsafe extern "C" fn on_login(_: *mut sys::Context, status: c_int, _: *mut c_void, private: *mut c_void) {
    // SAFETY: as above.
    unsafe { (*private.cast::<Inbox>()).logged_in.set(Some(status)) };
}

/// The end of a task management function; the data are its response.
unsafe extern "C" fn on_reset(_: *mut sys::Context, status: c_int, data: *mut c_void, private: *mut c_void) {
    // SAFETY: `private` as above; the data of a good end are one u32.
    unsafe {
        let complete = status == sys::STATUS_GOOD
            && !data.is_null()
            && data.cast::<u32>().read_unaligned() == sys::TASK_MANAGEMENT_COMPLETE;
        (*private.cast::<Inbox>()).reset.set(Some(complete));
    }
}

unsafe extern "C" fn on_logout(_: *mut sys::Context, _: c_int, _: *mut c_void, private: *mut c_void) {
    // SAFETY: as above.
    unsafe { (*private.cast::<Inbox>()).logged_in.set(None) };
}

/// The end of a command.
unsafe extern "C" fn on_command(_: *mut sys::Context, status: c_int, _: *mut c_void, private: *mut c_void) {
    // SAFETY: `private` is a mark of the session, whose marks and inbox outlive the context; its task is the command's,
    // which the library does not touch any more.
    unsafe {
        let mark = &*private.cast::<Mark>();
        let task = mark.task.replace(std::ptr::null_mut());
        if task.is_null() {
            return;
        }
        let ended = end_of(status, task);
        sys::scsi_free_scsi_task(task);
        let inbox = &*mark.inbox;
        if ended == Ended::Lost {
            inbox.cancelled.set(true);
        }
        inbox.ended.borrow_mut().push((mark.index, ended));
    }
}

/// # Safety
/// `task` is a task of the library.
unsafe fn end_of(status: c_int, task: *mut sys::TaskHead) -> Ended {
    match status {
        sys::STATUS_GOOD => {
            // SAFETY: see the caller; the fields are plain numbers.
            let (residual, missing) = unsafe { ((*task).residual_status, (*task).residual) };
            Ended::Good(if residual == sys::RESIDUAL_UNDERFLOW { missing } else { 0 })
        }
        sys::STATUS_CHECK_CONDITION => {
            let mut sense = sys::Sense { error_type: 0, key: 0, ascq: 0, rest: [0; 13] };
            // SAFETY: see the caller; the structure has more room than is written.
            unsafe { sys::scsi_task_get_status(task, &raw mut sense) };
            let key = u8::try_from(sense.key).unwrap_or(u8::MAX);
            Ended::Check(Sense { key, code: u16::try_from(sense.ascq).unwrap_or(0) })
        }
        sys::STATUS_RESERVATION_CONFLICT => Ended::Conflict,
        sys::STATUS_BUSY | sys::STATUS_TASK_SET_FULL => Ended::Busy,
        sys::STATUS_TASK_ABORTED => Ended::Aborted,
        // Those of the library itself: cancelled, error, timeout.
        0x0f00_0000.. => Ended::Lost,
        other => Ended::Other(other),
    }
}

impl<P: Payload> Session<P> {
    /// Connects and logs in under `id`. Waits for `patience` at most.
    ///
    /// # Errors
    /// If the target is not reached, or does not let us in.
    pub fn open(uri: &IscsiUri, id: Isid, patience: Duration) -> Result<Self, SessionError> {
        let deadline = Instant::now() + patience;
        let chap = uri.chap()?;
        let text = |text: &str| {
            CString::new(text).map_err(|_| SessionError::Unreachable("a name holds a zero byte".to_owned()))
        };
        let (initiator, target, portal) = (text(&uri.initiator())?, text(&uri.target)?, text(&uri.portal())?);
        // SAFETY: a C string; the library copies it.
        let context = unsafe { sys::iscsi_create_context(initiator.as_ptr()) };
        let Some(context) = NonNull::new(context) else {
            return Err(SessionError::Unreachable("libiscsi makes no context: out of memory".to_owned()));
        };
        let session = Self {
            context,
            lun: uri.lun,
            inbox: Box::default(),
            marks: Vec::new(),
            flight: Vec::new(),
            free: Vec::new(),
            attentions: Vec::new(),
        };
        let [a, b, c, d, e] = id.0;
        let raw = context.as_ptr();
        let inbox = std::ptr::from_ref(&*session.inbox).cast_mut().cast();
        // SAFETY: the context is alive, the strings end with zero and are copied, and the inbox outlives the context.
        let started = unsafe {
            sys::iscsi_set_noautoreconnect(raw, 1);
            sys::iscsi_set_tcp_user_timeout(raw, USER_TIMEOUT_MS);
            sys::iscsi_set_targetname(raw, target.as_ptr());
            sys::iscsi_set_session_type(raw, sys::SESSION_NORMAL);
            sys::iscsi_set_header_digest(raw, sys::HEADER_DIGEST_NONE);
            sys::iscsi_set_isid_random(
                raw,
                u32::from_be_bytes([0, a, b, c]),
                u32::from_be_bytes([0, 0, d, e]),
            );
            if let Some((user, secret)) = &chap {
                sys::iscsi_set_initiator_username_pwd(raw, text(user)?.as_ptr(), text(secret)?.as_ptr());
            }
            sys::iscsi_connect_async(raw, portal.as_ptr(), on_connected, inbox)
        };
        if started != 0 {
            return Err(SessionError::Unreachable(session.error()));
        }
        let mut session = session;
        let connected = session.wait_for(deadline, |inbox| inbox.connected.get())?;
        if connected != sys::STATUS_GOOD {
            return Err(SessionError::Unreachable(session.error()));
        }
        session.linger_not();
        // SAFETY: as above.
        if unsafe { sys::iscsi_login_async(raw, on_login, inbox) } != 0 {
            return Err(SessionError::Unreachable(session.error()));
        }
        match session.wait_for(deadline, |inbox| inbox.logged_in.get())? {
            sys::STATUS_GOOD => Ok(session),
            sys::STATUS_REDIRECT => {
                // SAFETY: the library keeps the string in the context.
                let address = unsafe { CStr::from_ptr(sys::iscsi_get_target_address(raw)) };
                Err(SessionError::Moved(address.to_string_lossy().into_owned()))
            }
            _ => Err(SessionError::Login(session.error())),
        }
    }

    /// P5: what has not reached the target dies with the connection.
    fn linger_not(&self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let len = libc::socklen_t::try_from(size_of_val(&linger)).unwrap_or(0);
        // SAFETY: the kernel reads one `linger`.
        unsafe {
            libc::setsockopt(
                self.descriptor(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                len,
            )
        };
    }

    /// What the library last complained of. It knows no secret's text.
    fn error(&self) -> String {
        // SAFETY: the library keeps the string in the context; it is copied at once.
        let text = unsafe { CStr::from_ptr(sys::iscsi_get_error(self.context.as_ptr())) };
        let text = text.to_string_lossy();
        let text: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if text.is_empty() { "the connection broke".to_owned() } else { text }
    }

    /// Serves the session until `news` has something.
    fn wait_for<T>(
        &mut self,
        deadline: Instant,
        news: impl Fn(&Inbox) -> Option<T>,
    ) -> Result<T, SessionError> {
        loop {
            if let Some(found) = news(&self.inbox) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SessionError::Unreachable("it did not answer in time".to_owned()));
            }
            let mut poll = libc::pollfd { fd: self.descriptor(), events: self.events(), revents: 0 };
            let wait = c_int::try_from(left.min(GLANCE).as_millis()).unwrap_or(0).max(1);
            // SAFETY: one `pollfd`.
            unsafe { libc::poll(&raw mut poll, 1, wait) };
            if let Err(error) = self.service(poll.revents) {
                // The last word may have come with the break.
                return news(&self.inbox).ok_or(error);
            }
        }
    }

    /// The descriptor to wait for.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        // SAFETY: the context is alive.
        unsafe { sys::iscsi_get_fd(self.context.as_ptr()) }
    }

    /// For what to wait at the descriptor (poll(2)).
    #[must_use]
    pub fn events(&self) -> c_short {
        // SAFETY: the context is alive.
        let events = unsafe { sys::iscsi_which_events(self.context.as_ptr()) };
        c_short::try_from(events).unwrap_or(libc::POLLIN) | libc::POLLRDHUP
    }

    /// Does what `events` of the descriptor ask for.
    ///
    /// # Errors
    /// If the session is over. What was in flight comes by [`Session::end`].
    pub fn service(&mut self, events: c_short) -> Result<(), SessionError> {
        let over = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
        let known = events & (libc::POLLIN | libc::POLLOUT | over);
        if known & !over != 0 || (known != 0 && self.inbox.connected.get().is_none()) {
            // SAFETY: the context is alive; callbacks find the marks and the inbox, which live as long.
            let status = unsafe { sys::iscsi_service(self.context.as_ptr(), c_int::from(known)) };
            if status != 0 || self.inbox.cancelled.get() {
                return Err(SessionError::Unreachable(self.error()));
            }
        }
        if events & over != 0 || (events & libc::POLLRDHUP != 0 && self.is_at_end()) {
            return Err(SessionError::Unreachable("the target closed the connection".to_owned()));
        }
        Ok(())
    }

    /// Whether the target has closed the connection and all that it sent is read.
    fn is_at_end(&self) -> bool {
        let mut byte = 0_u8;
        // SAFETY: one byte, which stays in the socket.
        let read = unsafe {
            libc::recv(self.descriptor(), (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT)
        };
        read == 0
    }

    /// What is in flight.
    pub fn payloads(&self) -> impl Iterator<Item = &P> {
        self.flight.iter().flatten()
    }

    /// How many commands are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.marks.len() - self.free.len()
    }

    /// Starts a command; nothing is sent before [`Session::service`]. The payload comes back if the session does not take
    /// it: nothing of it has been sent then.
    pub fn start(&mut self, cdb: &Cdb, mut payload: P) -> Result<(), P> {
        let transfer = payload.transfer();
        let (direction, len) = match &transfer {
            Transfer::None => (sys::XFER_NONE, 0),
            Transfer::In(_, len) => (sys::XFER_READ, *len),
            Transfer::Out(_, len) => (sys::XFER_WRITE, *len),
        };
        let (Ok(len), Ok(cdb_len)) = (c_int::try_from(len), c_int::try_from(cdb.bytes().len())) else {
            return Err(payload);
        };
        let index = self.free.pop().unwrap_or_else(|| {
            let inbox = std::ptr::from_ref(&*self.inbox);
            let index = self.marks.len();
            self.marks.push(Box::new(Mark { inbox, index, task: Cell::new(std::ptr::null_mut()) }));
            self.flight.push(None);
            index
        });
        // SAFETY: the library copies the command's bytes. The data stay in their place until the payload is given back,
        // which is after the command's end; what goes out is only read. The mark lives as long as the context.
        let started = unsafe {
            let task = sys::scsi_create_task(cdb_len, cdb.bytes().as_ptr(), direction, len);
            let fits = !task.is_null()
                && match transfer {
                    Transfer::None => true,
                    Transfer::In(at, _) => sys::scsi_task_add_data_in_buffer(task, len, at) == 0,
                    Transfer::Out(at, _) => sys::scsi_task_add_data_out_buffer(task, len, at.cast_mut()) == 0,
                };
            let mark = &self.marks[index];
            mark.task.set(task);
            let private = std::ptr::from_ref(&**mark).cast_mut().cast();
            let started = fits
                && sys::iscsi_scsi_command_async(
                    self.context.as_ptr(),
                    c_int::from(self.lun),
                    task,
                    on_command,
                    std::ptr::null_mut(),
                    private,
                ) == 0;
            if !started && !task.is_null() {
                mark.task.set(std::ptr::null_mut());
                sys::scsi_free_scsi_task(task);
            }
            started
        };
        if !started {
            self.free.push(index);
            return Err(payload);
        }
        self.flight[index] = Some(payload);
        Ok(())
    }

    /// The commands that have ended since the last call, in that order.
    pub fn ended(&mut self) -> Vec<(P, Ended)> {
        let ended = std::mem::take(&mut *self.inbox.ended.borrow_mut());
        let mut all = Vec::with_capacity(ended.len());
        for (index, how) in ended {
            if let Some(payload) = self.flight[index].take() {
                self.free.push(index);
                all.push((payload, how));
            }
        }
        all
    }

    /// Ends the session. What was in flight and not answered comes back: its outcome is unknown.
    pub fn end(mut self) -> Vec<P> {
        let flight = std::mem::take(&mut self.flight);
        // The library may write to a payload's place until its context is gone.
        drop(self);
        flight.into_iter().flatten().collect()
    }

    /// Logs out, if the target answers in time, and ends the session.
    pub fn log_out(mut self, patience: Duration) {
        let inbox = std::ptr::from_ref(&*self.inbox).cast_mut().cast();
        // SAFETY: the context is alive and the inbox outlives it.
        if unsafe { sys::iscsi_logout_async(self.context.as_ptr(), on_logout, inbox) } == 0 {
            let out = |inbox: &Inbox| inbox.logged_in.get().is_none().then_some(());
            // Whether it answers or not, the session ends.
            let _ = self.wait_for(Instant::now() + patience, out);
        }
        drop(self.end());
    }

    /// Runs one command on a session that has nothing else in flight. What the target says about itself before it
    /// executes anything (unit attentions) is noted, and the command sent again; so is one that the target did not begin.
    ///
    /// # Errors
    /// If the session breaks, or there is no answer in time.
    pub fn run(
        &mut self,
        cdb: &Cdb,
        mut page: Page,
        deadline: Instant,
    ) -> Result<(Page, Ended), SessionError> {
        let lost = |why: &str| SessionError::Unreachable(why.to_owned());
        for try_number in 1.. {
            self.start(cdb, P::from(page)).map_err(|_| lost("the session takes no command"))?;
            let (payload, ended) = loop {
                if let Some(ended) = self.ended().pop() {
                    break ended;
                }
                self.wait_for(deadline, |inbox| (!inbox.ended.borrow().is_empty()).then_some(()))?;
            };
            page = payload.into_page().ok_or_else(|| lost("something else was in flight"))?;
            match ended {
                Ended::Check(sense) if sense.attention().is_some() && try_number < TRIES => {
                    self.attentions.push(sense);
                }
                Ended::Check(sense) if sense.is_aborted() && try_number < TRIES => {}
                Ended::Busy | Ended::Aborted if try_number < TRIES => std::thread::sleep(BUSY),
                Ended::Lost => return Err(lost(&self.error())),
                ended => return Ok((page, ended)),
            }
        }
        Err(lost("the target never begins"))
    }

    /// The unit attentions that commands of [`Session::run`] have met since the last call.
    pub fn attentions(&mut self) -> Vec<Sense> {
        std::mem::take(&mut self.attentions)
    }

    /// LOGICAL UNIT RESET: every command that the unit had accepted from anybody is over when this returns true.
    ///
    /// # Errors
    /// If the session breaks, or there is no answer in time.
    pub fn reset_unit(&mut self, deadline: Instant) -> Result<bool, SessionError> {
        let inbox = std::ptr::from_ref(&*self.inbox).cast_mut().cast();
        self.inbox.reset.set(None);
        // SAFETY: the context is alive and the inbox outlives it.
        let started = unsafe {
            sys::iscsi_task_mgmt_lun_reset_async(self.context.as_ptr(), u32::from(self.lun), on_reset, inbox)
        };
        if started != 0 {
            return Err(SessionError::Unreachable(self.error()));
        }
        self.wait_for(deadline, |inbox| inbox.reset.get())
    }
}

impl<P> Drop for Session<P> {
    fn drop(&mut self) {
        // SAFETY: the context is not used after this. It calls back for what is in flight; marks and inbox are still there.
        unsafe { sys::iscsi_destroy_context(self.context.as_ptr()) };
        for mark in &self.marks {
            let task = mark.task.get();
            if !task.is_null() {
                // SAFETY: the library has not called back for it, so that it is ours.
                unsafe { sys::scsi_free_scsi_task(task) };
            }
        }
    }
}
