//! Which process, so that a recycled process id is never taken for it.

use std::fs;
use std::io;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::sys;

/// A process: its id, and when it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessId {
    /// The id.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub started_ticks: u64,
}

/// The state letter and the start time of `/proc/PID/stat` or `/proc/PID/task/TID/stat`.
fn stat(path: &str) -> Option<(char, u64)> {
    let text = fs::read_to_string(path).ok()?;
    // The name stands in parentheses and may hold anything, also parentheses and spaces.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3 of proc_pid_stat(5), the start time field 22.
    Some((state, fields.nth(18)?.parse().ok()?))
}

impl ProcessId {
    /// The process that has the id `pid` now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        stat(&format!("/proc/{pid}/stat")).map(|(_, started_ticks)| Self { pid, started_ticks })
    }

    /// This process.
    pub fn own() -> Result<Self> {
        Self::of(std::process::id()).context("this process is not in /proc")
    }

    fn state(self) -> Option<char> {
        let (state, started_ticks) = stat(&format!("/proc/{}/stat", self.pid))?;
        (started_ticks == self.started_ticks).then_some(state)
    }

    /// Whether it runs; one that has ended and was not waited for does not.
    #[must_use]
    pub fn is_alive(self) -> bool {
        self.state().is_some_and(|state| !matches!(state, 'Z' | 'X'))
    }

    /// Whether none of its threads can run before it is resumed.
    #[must_use]
    pub fn is_paused(self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid)) else { return false };
        let mut threads = threads.flatten().filter_map(|thread| {
            let path = thread.path().join("stat");
            stat(path.to_str()?)
        });
        // One that sleeps in the kernel (D) stops before it is back in the program.
        self.state() == Some('T') && threads.all(|(state, _)| matches!(state, 'T' | 't' | 'D' | 'Z' | 'X'))
    }

    /// Sends a signal; gives whether the process was still there.
    pub fn signal(self, signal: i32) -> io::Result<bool> {
        let gone = |error: io::Error| {
            if error.raw_os_error() == Some(libc::ESRCH) { Ok(false) } else { Err(error) }
        };
        let handle = match sys::open_process(self.pid) {
            Ok(handle) => handle,
            Err(error) => return gone(error),
        };
        // The handle holds the process that has the id: only now can it be told whether that is the one.
        if !self.is_alive() {
            return Ok(false);
        }
        sys::signal_process(&handle, signal).map(|()| true).or_else(gone)
    }
}

/// The id of this run of the machine.
pub fn boot() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the boot id")?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_recycled_id_is_another_process() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        assert!(own.signal(0).unwrap());
        let other = ProcessId { started_ticks: own.started_ticks + 1, ..own };
        assert!(!other.is_alive());
        assert!(!other.signal(0).unwrap());
    }

    #[test]
    fn an_ended_process_that_nobody_waited_for_is_not_alive() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive() && !id.is_paused());
        id.signal(libc::SIGSTOP).unwrap();
        crate::wait::until("it stops", std::time::Duration::from_secs(5), || id.is_paused().then_some(()))
            .unwrap();
        id.signal(libc::SIGKILL).unwrap();
        crate::wait::until("it ends", std::time::Duration::from_secs(5), || (!id.is_alive()).then_some(()))
            .unwrap();
        child.wait().unwrap();
        assert!(!id.signal(libc::SIGKILL).unwrap());
    }
}
