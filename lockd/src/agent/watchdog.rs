//! The watchdog of this host: it restarts the host when lockd does not come to it any more, or when the lease has been over
//! for a while with volumes mounted. So that the whole machine, stopped and woken up again, does not write late where
//! nothing at the LUN refuses it (`fence = "lease"`).
//!
//! It is patted as long as the lease runs, or nothing is mounted. The others give away what this node had no earlier than
//! lease + grace after its last keep-alive; the lease is over after the lease, and the watchdog strikes within its time-out
//! after the last pat: so the time-out must be shorter than the grace.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;

/// How often it is patted.
const PAT: Duration = Duration::from_millis(500);
/// How much shorter than the grace the time-out is: pats come late, and devices count whole seconds.
const MARGIN: Duration = Duration::from_secs(1);
/// The longest time-out that is asked for.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// What makes a device stand down when it is closed next.
const MAGIC: &[u8] = b"V";

/// Why the watchdog cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WatchdogError {
    /// It cannot be opened.
    #[error(
        "the watchdog {path}, which the cluster file names for this node, cannot be opened: {source}; load its driver \
         (softdog, if the host has none of its own), end whoever else has it, or take `watchdog` out of the cluster file"
    )]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The grace leaves it no time.
    #[error(
        "grace_s is {} s: a watchdog that counts whole seconds cannot strike before the grace is over; give at least \
         {} s, or take `watchdog` out of the cluster file", grace.as_secs_f64(), (MARGIN + MARGIN).as_secs()
    )]
    Grace {
        /// The grace.
        grace: Duration,
    },
    /// It does not take the time-out.
    #[error("the watchdog {path} cannot be set to {seconds} s: {why}; another grace_s may do")]
    Timeout {
        /// The device.
        path: PathBuf,
        /// What was asked for.
        seconds: u64,
        /// Why not.
        why: String,
    },
}

/// A device that restarts the host unless it is patted in time.
pub(super) trait Device: Send {
    /// Puts the strike off.
    fn pat(&mut self) -> io::Result<()>;
    /// Stands down.
    fn stand_down(&mut self) -> io::Result<()>;
}

/// A watchdog of the kernel; or a file or FIFO in its place, which is written to in the same way.
#[derive(Debug)]
struct Kernel(File);

impl Device for Kernel {
    fn pat(&mut self) -> io::Result<()> {
        self.0.write_all(b".")
    }

    fn stand_down(&mut self) -> io::Result<()> {
        self.0.write_all(MAGIC)
    }
}

/// The time-out for a grace.
fn timeout_for(grace: Duration) -> Result<u64, WatchdogError> {
    match grace.saturating_sub(MARGIN).min(TIMEOUT_MAX).as_secs() {
        0 => Err(WatchdogError::Grace { grace }),
        seconds => Ok(seconds),
    }
}

/// Opens the watchdog at `path`: from now on it strikes unless it is patted.
pub(super) fn open(path: &Path, grace: Duration) -> Result<Box<dyn Device>, WatchdogError> {
    let seconds = timeout_for(grace)?;
    let opened = File::options().write(true).open(path);
    let file = opened.map_err(|source| WatchdogError::Open { path: path.to_owned(), source })?;
    let mut device = Kernel(file);
    let is_device = device.0.metadata().is_ok_and(|metadata| metadata.file_type().is_char_device());
    if is_device && let Err(why) = set_timeout(&device.0, seconds) {
        // Opened, it counts already.
        let _ = device.stand_down();
        return Err(WatchdogError::Timeout { path: path.to_owned(), seconds, why });
    }
    tracing::info!(path = %path.display(), seconds, "the watchdog counts");
    Ok(Box::new(device))
}

/// Sets the time-out, which a driver may round.
fn set_timeout(file: &File, seconds: u64) -> Result<(), String> {
    /// `WDIOC_SETTIMEOUT`: `_IOWR('W', 6, int)`.
    const SET_TIMEOUT: libc::c_ulong = 0xc004_5706;
    let mut value = libc::c_int::try_from(seconds).unwrap_or(libc::c_int::MAX);
    // SAFETY: the call reads and writes the one number that it is given, which outlives it.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), SET_TIMEOUT, &raw mut value) };
    if status != 0 {
        return Err(io::Error::last_os_error().to_string());
    }
    match u64::try_from(value) {
        Ok(set) if set <= seconds => Ok(()),
        _ => Err(format!("it would count {value} s")),
    }
}

/// Whether the device is to be patted.
fn is_well(has_mounts: bool, lease_holds: bool) -> bool {
    !has_mounts || lease_holds
}

/// Pats `device` as long as all is well, until `stop` says how lockd ends: cleanly, with nothing mounted, or not.
pub(super) async fn run(
    core: Arc<Core>,
    mut device: Box<dyn Device>,
    mut stop: tokio::sync::oneshot::Receiver<bool>,
) {
    let mut ticks = tokio::time::interval(PAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut well = true;
    loop {
        tokio::select! {
            clean = &mut stop => {
                let done = if clean == Ok(true) { device.stand_down() } else { Ok(()) };
                if let Err(error) = done {
                    tracing::error!(%error, "the watchdog could not be told to stand down");
                }
                return;
            }
            _ = ticks.tick() => {}
        }
        let holds = core.session_now().is_some_and(|open| open.lease.holds(&*core.clock));
        let now = is_well(core.clients.has_mounts(), holds);
        if well && !now {
            tracing::error!(
                "the lease is over with volumes mounted: the watchdog restarts this host unless it is won back"
            );
        }
        well = now;
        if well && let Err(error) = device.pat() {
            core.say(&format!("the watchdog cannot be patted: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_is_shorter_than_the_grace() {
        let seconds = |grace_s: f64| timeout_for(Duration::from_secs_f64(grace_s)).ok();
        assert_eq!([seconds(15.0), seconds(2.0), seconds(300.0)], [Some(14), Some(1), Some(60)]);
        assert_eq!(seconds(1.9), None);
    }

    #[test]
    fn a_host_without_mounts_or_with_its_lease_is_left_alone() {
        assert!(is_well(false, false) && is_well(true, true) && !is_well(true, false));
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let said =
            open(Path::new("/dev/no-watchdog"), Duration::from_secs(15)).err().expect("none").to_string();
        assert!(said.contains("/dev/no-watchdog") && said.contains("softdog"), "{said}");
    }

    #[test]
    fn a_stand_in_is_patted_and_told_to_stand_down() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("watchdog");
        std::fs::write(&path, "").expect("a file");
        let mut device = open(&path, Duration::from_secs(15)).expect("opened");
        device.pat().expect("patted");
        device.stand_down().expect("down");
        assert_eq!(std::fs::read_to_string(&path).expect("text"), ".V");
    }
}
