//! A coordinator without threads, for the simulation: each of its threads is a step that somebody else takes.
//!
//! What a step waits for it waits for in virtual time ([`lockd::clock::Clock::sleep`]): the writer may be in the middle
//! of a group, because that asks the control plane.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use parking_lot::Mutex;

use super::core::{Core, Parts};
use super::writer::Writer;
use super::{Coordinator, StartError, assembly, reclaim, take_over, watch};
use crate::refusal::Refusal;

/// How long a step waits for another before it looks again.
const LOOK: Duration = Duration::from_millis(1);

/// The writer between its steps.
#[derive(Default)]
pub struct Stepped {
    is_on: AtomicBool,
    writer: Mutex<Option<Writer>>,
    /// A round is under way.
    round: AtomicBool,
}

impl Stepped {
    /// Whether there are no threads.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::SeqCst)
    }

    /// Takes no steps any more.
    pub fn end(&self) {
        let writer = self.writer.lock().take();
        drop(writer);
    }
}

impl Core {
    /// One step of the writer; false while another is under way.
    fn step(&self) -> bool {
        let Some(mut writer) = self.stepped.writer.lock().take() else { return false };
        writer.step();
        if !self.queue.is_stopped() {
            *self.stepped.writer.lock() = Some(writer);
        }
        true
    }

    /// Takes steps until there is an answer.
    pub fn step_until<T>(&self, answer: &Receiver<Result<T, Refusal>>) -> Result<T, Refusal> {
        loop {
            match answer.try_recv() {
                Ok(answer) => return answer,
                Err(TryRecvError::Disconnected) => {
                    return Err(Refusal::Io("the coordinator has stopped".to_owned()));
                }
                Err(TryRecvError::Empty) if self.queue.is_stopped() => {
                    return Err(Refusal::Io("the coordinator has stopped".to_owned()));
                }
                Err(TryRecvError::Empty) => {
                    if !self.step() {
                        self.parts.clock.sleep(LOOK);
                    }
                }
            }
        }
    }
}

impl Core {
    /// The next of what somebody else sends, waited for in virtual time.
    pub fn receive_in_step<T>(&self, receiver: &Receiver<T>) -> Option<T> {
        loop {
            match receiver.try_recv() {
                Ok(value) => return Some(value),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {
                    let before = self.parts.clock.boot();
                    self.parts.clock.sleep(LOOK);
                    // The simulation is over: time does not pass any more.
                    if self.parts.clock.boot() == before {
                        return None;
                    }
                }
            }
        }
    }
}

impl Coordinator {
    /// Starts on an opened store, without threads.
    pub(crate) fn simulated(parts: Parts) -> Result<Arc<Self>, StartError> {
        let core = Arc::new(Core::new(parts));
        let mounts = core.parts.authority.mounts(core.parts.volume).ok_or(StartError::SessionEnded)?;
        assembly::begin(&core, &mounts);
        take_over(&core)?;
        let writer = Writer::new(Arc::clone(&core))?;
        *core.stepped.writer.lock() = Some(writer);
        core.stepped.is_on.store(true, Ordering::SeqCst);
        core.call_reclaimer(false);
        Ok(Arc::new(Self { core, threads: Mutex::default() }))
    }

    /// A step of the writer. Whether there is more to do.
    pub(crate) fn step(&self) -> bool {
        let stepped = self.core.step();
        let goes_on = self.core.stepped.writer.lock().as_ref().is_some_and(Writer::has_work);
        !stepped || goes_on || !self.core.queue.is_empty()
    }

    /// Where it stands, for who wonders why nothing goes on.
    pub(crate) fn describe(&self) -> String {
        let core = &self.core;
        format!(
            "work {}, stopped {}, writer {}, round {}, settled {}, retired {}, failure {:?}",
            !core.queue.is_empty(),
            core.queue.is_stopped(),
            core.stepped.writer.lock().is_some(),
            core.stepped.round.load(Ordering::SeqCst),
            core.assembly.is_settled(),
            core.retired.load(Ordering::SeqCst),
            core.failure(),
        )
    }

    /// Whether a round is under way; production's threads are waited for when it stops.
    pub(crate) fn is_in_round(&self) -> bool {
        self.core.stepped.round.load(Ordering::SeqCst)
    }

    /// A look at the sessions, and a pass of the reclaimer if one is wanted.
    pub(crate) fn round(&self) {
        if self.core.stepped.round.swap(true, Ordering::SeqCst) {
            return;
        }
        watch::look(&self.core);
        reclaim::round(&self.core);
        self.core.stepped.round.store(false, Ordering::SeqCst);
    }
}
