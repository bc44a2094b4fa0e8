//! What a dispatcher does between requests: when it takes the next one, receives the LUN's replies, calls another one, and
//! sleeps.

use std::io;
use std::sync::Arc;

use redirector::{attend, plug, stand_in};

use super::Dispatcher;
use crate::fuse::abi::opcode;
use crate::fuse::relief::{Call, Relief};
use crate::fuse::rota::Rota;

/// Requests without a pause after which another thread is called: more than a moment's work.
const MANY: u32 = 256;
/// How many of them a request counts for that neither reads nor writes.
const METADATA: u32 = 64;
/// A request of so many bytes keeps a thread long enough to call another one.
const LARGE: usize = 64 << 10;
/// Requests without a pause after which they are sent, and the LUN's replies are received.
const BATCH: u32 = 32;

/// What a look at the kernel's requests, and the LUN's replies, has brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    Work,
    Nothing,
    /// There will be no more requests.
    End,
}

impl Dispatcher {
    /// Takes requests until the file system is unmounted, when `rota` has it do so. Where it has to wait for the LUN,
    /// somebody of `relief` takes its place.
    pub(in crate::fuse) fn serve(&mut self, rota: &Arc<Rota>, relief: &Arc<Relief>) {
        stand_in::appoint(Arc::new(Call { relief: Arc::clone(relief), rota: Some(Arc::clone(rota)) }));
        plug::allow();
        attend::volunteer();
        while rota.waits_for_duty() {
            loop {
                match self.turn(false) {
                    Turn::Work if self.work >= MANY => {
                        self.work = 0;
                        rota.call();
                    }
                    Turn::Work if self.streak == 0 && self.replied => self.gathering.wait(),
                    Turn::Work => {}
                    Turn::Nothing if self.replied && self.finds_work() => {}
                    Turn::Nothing if rota.ends_duty() => break,
                    Turn::Nothing => {
                        plug::flush();
                        self.replied = false;
                        self.vigil.sleep();
                        // What is attended may have ended.
                        self.turn(true);
                    }
                    Turn::End => {
                        rota.end();
                        break;
                    }
                }
            }
            plug::flush();
            attend::leave();
        }
        attend::resign();
    }

    /// Takes requests as long as `goes_on`, in the place of a dispatcher that waits. Whether there may be more.
    pub(in crate::fuse) fn relieve(&mut self, relief: &Arc<Relief>, goes_on: impl Fn() -> bool) -> bool {
        stand_in::appoint(Arc::new(Call { relief: Arc::clone(relief), rota: None }));
        plug::allow();
        while goes_on() {
            match self.turn(false) {
                Turn::Work => {}
                Turn::Nothing => {
                    plug::flush();
                    self.vigil.sleep();
                }
                Turn::End => return false,
            }
        }
        plug::flush();
        true
    }

    /// Looks for work for a while: whether there was some.
    fn finds_work(&mut self) -> bool {
        self.vigil.begin();
        while self.vigil.goes_on() {
            if self.turn(false) != Turn::Nothing {
                return true;
            }
        }
        false
    }

    /// Takes one request if there is one; otherwise sends what was held back, and receives what the LUN has answered.
    fn turn(&mut self, anyway: bool) -> Turn {
        match self.inbox.receive(&self.device) {
            Ok(()) => {
                self.work += self.weight();
                self.streak += 1;
                self.dispatch();
                if self.streak.is_multiple_of(BATCH) {
                    plug::flush();
                    self.replied |= attend::poll(false);
                }
                Turn::Work
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                (self.streak, self.work) = (0, 0);
                // Before the replies are received: a server that has something to do is not woken by that.
                plug::flush();
                let replied = attend::poll(anyway);
                self.replied |= replied;
                if replied { Turn::Work } else { Turn::Nothing }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Turn::Work,
            Err(error) => match error.raw_os_error() {
                // The request was given up before it could be read.
                Some(libc::ENOENT) => Turn::Work,
                Some(libc::ENODEV | libc::ECONNABORTED) => Turn::End,
                _ => {
                    tracing::error!("requests cannot be read from /dev/fuse any more: {error}");
                    Turn::End
                }
            },
        }
    }

    /// How much work the request in the inbox is.
    fn weight(&self) -> u32 {
        match self.inbox.header() {
            _ if self.inbox.len() > LARGE => MANY,
            Some(header) if !matches!(header.opcode, opcode::READ | opcode::WRITE) => METADATA,
            _ => 1,
        }
    }
}
