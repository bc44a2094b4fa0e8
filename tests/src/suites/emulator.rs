//! QEMU, without the help of the processor: a machine with one disk, whose guest is a boot sector.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::Running;
use crate::programs;
use crate::wait::until;

/// What the guest says on its serial line when it has been read from its disk and runs.
const SAYS: &str = "up";
/// mov dx, 0x3f8; mov al, 'u'; out dx, al; mov al, 'p'; out dx, al; cli; hlt; and halted again.
const GUEST: [u8; 13] = [0xba, 0xf8, 0x03, 0xb0, b'u', 0xee, 0xb0, b'p', 0xee, 0xfa, 0xf4, 0xeb, 0xfd];
const SECTOR: usize = 512;
/// How long a machine may take to boot on a busy host.
const BOOT: Duration = Duration::from_secs(30);

/// The image of a disk that boots the guest, of so many bytes.
#[must_use]
pub fn boot_image(bytes: usize) -> Vec<u8> {
    let mut image = vec![0; bytes.max(SECTOR)];
    image[..GUEST.len()].copy_from_slice(&GUEST);
    image[SECTOR - 2..SECTOR].copy_from_slice(&[0x55, 0xaa]);
    image
}

/// A running machine; killed when dropped.
#[derive(Debug)]
pub struct Machine {
    process: Running,
    serial: PathBuf,
}

impl Machine {
    /// Starts a machine with this raw image as its disk; `command` makes the command for a program on the host where it is
    /// to run. Its files are `scratch/NAME.*`.
    pub fn start(
        name: &str,
        command: impl FnOnce(&Path) -> Result<Command>,
        disk: &Path,
        scratch: &Path,
    ) -> Result<Self> {
        let mut command = command(&programs::installed("qemu-system-x86_64")?)?;
        let serial = scratch.join(format!("{name}.serial"));
        // What an earlier machine of this name has said does not count.
        let _ = std::fs::remove_file(&serial);
        command
            .args(["-machine", "pc", "-accel", "tcg", "-m", "32", "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-serial", &format!("file:{}", serial.display())])
            .args(["-drive", &format!("file={},format=raw,if=ide,cache=none", disk.display())]);
        let process = Running::start(name, &mut command, scratch.join(format!("{name}.log")))?;
        Ok(Self { process, serial })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Running {
        &mut self.process
    }

    /// Waits until its guest runs, which was read from the disk; false if the machine has ended instead.
    pub fn boots(&mut self) -> Result<bool> {
        let says = || std::fs::read_to_string(&self.serial).is_ok_and(|said| said.contains(SAYS));
        let process = &mut self.process;
        let over = until("the guest runs", BOOT, || {
            if says() {
                return Some(true);
            }
            (!process.is_alive()).then_some(false)
        });
        over.with_context(|| self.process.errors())
    }
}
