//! The numbers by which a node's session and its processes are known again.

use std::io;
use std::path::{Path, PathBuf};

use crate::lease::BootId;
use crate::local::process::Incarnation;
use crate::machine::Nonce;
use crate::random::Random;

/// The file in which a node keeps the nonce of its session: with it a lockd that is started again finds the session
/// (L11). One line: the nonce in 32 hexadecimal digits, and the CRC-32 of those in eight.
#[derive(Debug)]
pub(super) struct NonceFile {
    path: PathBuf,
}

impl NonceFile {
    pub(super) fn new(data: &Path) -> Self {
        Self { path: data.join("session") }
    }

    /// The nonce that is kept, if there is one.
    pub(super) fn read(&self) -> io::Result<Option<Nonce>> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let fields = text.trim().split_once(' ');
        let whole = fields
            .filter(|(digits, crc)| u32::from_str_radix(crc, 16) == Ok(crc32fast::hash(digits.as_bytes())));
        // A torn file is as good as none: the session that it told of ends by its lease.
        Ok(whole.and_then(|(digits, _)| u128::from_str_radix(digits, 16).ok()).map(Nonce))
    }

    /// Draws a nonce and keeps it.
    pub(super) fn draw(&self, random: &dyn Random) -> io::Result<Nonce> {
        let mut bytes = [0; 16];
        random.fill(&mut bytes);
        let nonce = Nonce(u128::from_le_bytes(bytes));
        let digits = format!("{:032x}", nonce.0);
        let crc = crc32fast::hash(digits.as_bytes());
        let new = self.path.with_extension("new");
        std::fs::write(&new, format!("{digits} {crc:08x}\n"))?;
        std::fs::File::open(&new)?.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        // The name as well: a disk that fails later must not take it back, for the node's mounts live on.
        if let Some(folder) = self.path.parent() {
            std::fs::File::open(folder)?.sync_all()?;
        }
        Ok(nonce)
    }

    /// Forgets the nonce: its session has ended.
    pub(super) fn forget(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// The process part of a client's nonce: 22 bits of process id, 42 of its start time, 32 of the boot. So the incarnation
/// of every client is in the replicated state, and a lockd that has lost everything else can tell whether it is dead.
fn incarnation_bits(incarnation: Incarnation, boot: BootId) -> u128 {
    let boot = u128::from(crc32fast::hash(&boot.0));
    let start = u128::from(incarnation.start_ticks & ((1 << 42) - 1));
    (boot << 64) | (start << 22) | u128::from(incarnation.pid & ((1 << 22) - 1))
}

/// The nonce of a client of process `incarnation` that has chosen `number`.
pub(super) fn client_nonce(incarnation: Incarnation, boot: BootId, number: u64) -> Nonce {
    Nonce((u128::from(number >> 32) << 96) | incarnation_bits(incarnation, boot))
}

/// The process of a nonce, if it was started since the machine was.
pub(super) fn incarnation_of(nonce: Nonce, boot: BootId) -> Option<Incarnation> {
    let here = (nonce.0 >> 64) & 0xffff_ffff == u128::from(crc32fast::hash(&boot.0));
    let pid = u32::try_from(nonce.0 & ((1 << 22) - 1)).unwrap_or_default();
    let start_ticks = u64::try_from((nonce.0 >> 22) & ((1 << 42) - 1)).unwrap_or_default();
    here.then_some(Incarnation { pid, start_ticks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SystemRandom;

    #[test]
    fn a_client_is_known_by_its_nonce() {
        let incarnation = Incarnation { pid: 4_194_303, start_ticks: 123_456_789_012 };
        let boot = BootId([9; 16]);
        let nonce = client_nonce(incarnation, boot, u64::MAX);
        assert_eq!(incarnation_of(nonce, boot), Some(incarnation));
        assert_eq!(incarnation_of(nonce, BootId([8; 16])), None);
        assert_ne!(client_nonce(incarnation, boot, 1 << 40), nonce);
    }

    #[test]
    fn the_nonce_of_a_session_is_kept_and_a_torn_one_is_none() {
        let data = tempfile::tempdir().expect("a folder");
        let file = NonceFile::new(data.path());
        assert_eq!(file.read().expect("none"), None);
        let nonce = file.draw(&SystemRandom).expect("drawn");
        assert_eq!(file.read().expect("kept"), Some(nonce));
        let text = std::fs::read_to_string(data.path().join("session")).expect("text");
        std::fs::write(data.path().join("session"), &text[..20]).expect("torn");
        assert_eq!(file.read().expect("torn"), None);
        file.forget().expect("gone");
        file.forget().expect("gone already");
    }
}
