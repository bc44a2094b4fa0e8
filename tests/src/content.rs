//! File contents that tell by themselves whether they are right.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// A block of contents, in bytes.
pub const BLOCK: usize = 4096;

/// The contents of block `index` of the file `seed`, as it is after `version` rewrites: each eight bytes depend on all
/// three and on their place.
#[must_use]
pub fn block(seed: u64, index: u64, version: u64) -> Vec<u8> {
    let mut state = seed ^ index.rotate_left(24) ^ version.rotate_left(48) ^ 0x9e37_79b9_7f4a_7c15;
    let mut out = Vec::with_capacity(BLOCK);
    while out.len() < BLOCK {
        // The generator splitmix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    out
}

/// Makes the file `path` of `blocks` blocks and syncs it.
pub fn fill(path: &Path, seed: u64, blocks: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    for index in 0..blocks {
        file.write_all(&block(seed, index, 0))?;
    }
    file.sync_all()
}

/// Demands that the file `path` has been made by [`fill`].
pub fn check(path: &Path, seed: u64, blocks: u64) -> Result<()> {
    let mut found = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut found))
        .with_context(|| path.display().to_string())?;
    ensure!(found.len() as u64 == blocks * BLOCK as u64, "{} has {} bytes", path.display(), found.len());
    for (index, chunk) in (0..).zip(found.chunks(BLOCK)) {
        ensure!(chunk == block(seed, index, 0), "{}: block {index} is wrong", path.display());
    }
    Ok(())
}

/// Writes to and reads from one file until it is stopped; remembers what must be there.
#[derive(Debug, Default)]
pub struct Ledger {
    /// For each block the version that was last written, and whether that write was acknowledged.
    written: std::collections::BTreeMap<u64, (u64, bool)>,
    /// For each block the version that the last successful sync has covered.
    synced: std::collections::BTreeMap<u64, u64>,
    version: u64,
}

impl Ledger {
    /// Writes block `index` of `file` anew.
    pub fn write(&mut self, file: &File, seed: u64, index: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.version += 1;
        self.written.insert(index, (self.version, false));
        file.write_all_at(&block(seed, index, self.version), index * BLOCK as u64)?;
        self.written.insert(index, (self.version, true));
        Ok(())
    }

    /// Syncs `file`: what was acknowledged by now survives from now on.
    pub fn sync(&mut self, file: &File) -> io::Result<()> {
        let covered: Vec<(u64, u64)> = self
            .written
            .iter()
            .filter(|(_, (_, done))| *done)
            .map(|(index, (version, _))| (*index, *version))
            .collect();
        file.sync_data()?;
        self.synced.extend(covered);
        Ok(())
    }

    /// How many blocks a sync has covered.
    #[must_use]
    pub fn synced(&self) -> usize {
        self.synced.len()
    }

    /// Demands that every block that was acknowledged reads as it was written last.
    pub fn check_all(&self, file: &File, seed: u64) -> Result<()> {
        for (index, (version, _)) in self.written.iter().filter(|(_, (_, done))| *done) {
            ensure!(
                read(file, *index)? == block(seed, *index, *version),
                "block {index} is not what was written"
            );
        }
        Ok(())
    }

    /// Demands that every block that was synced reads as it was then, or as it was written later.
    pub fn check_synced(&self, file: &File, seed: u64) -> Result<()> {
        for (index, version) in &self.synced {
            let found = read(file, *index)?;
            let last = self.written.get(index).map_or(*version, |(last, _)| *last);
            let is_right = (*version..=last).any(|version| found == block(seed, *index, version));
            ensure!(is_right, "block {index} is neither what was synced nor what was written later");
        }
        Ok(())
    }
}

fn read(file: &File, index: u64) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut found = vec![0; BLOCK];
    file.read_exact_at(&mut found, index * BLOCK as u64).with_context(|| format!("reading block {index}"))?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_differ_by_file_place_and_version() {
        let blocks = [block(1, 0, 0), block(2, 0, 0), block(1, 1, 0), block(1, 0, 1)];
        for (i, one) in blocks.iter().enumerate() {
            assert_eq!(one.len(), BLOCK);
            assert!(blocks[i + 1..].iter().all(|other| other != one));
        }
    }
}
