//! A disk in memory that fails when it is told to, and forgets what was not synced.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Disk;

const SECTOR: usize = 512;

/// What a crash does with what was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::raft) enum Crash {
    /// The process was killed: the kernel still has everything.
    Killed,
    /// The power failed: by the seed, each sector that was not synced is there or not, and so is each change of names
    /// up to some point.
    Power(u64),
}

#[derive(Clone, Default, Debug)]
struct MemFile {
    durable: Vec<u8>,
    now: Vec<u8>,
}

/// A change of names that was not synced.
#[derive(Clone, Debug)]
enum Change {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Default, Debug)]
struct Image {
    files: Vec<MemFile>,
    /// Names as the kernel sees them, and as they are on the disk.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    changes: Vec<Change>,
    /// How many more operations that change something succeed.
    fuel: Option<u64>,
    operations: u64,
    error: Option<io::ErrorKind>,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Default, Debug)]
pub(in crate::raft) struct FaultyDisk {
    image: Arc<Mutex<Image>>,
}

fn apply(names: &mut BTreeMap<String, usize>, change: &Change) {
    match change {
        Change::Create(name, file) => {
            names.insert(name.clone(), *file);
        }
        Change::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Change::Remove(name) => {
            names.remove(name);
        }
    }
}

impl FaultyDisk {
    /// From now on, `operations` more changes succeed; the next is done in part, and none after it.
    pub(in crate::raft) fn crash_after(&self, operations: u64) {
        self.image.lock().fuel = Some(operations);
    }

    /// From now on every change fails.
    pub(in crate::raft) fn fail(&self, error: io::ErrorKind) {
        self.image.lock().error = Some(error);
    }

    /// How many changes have been made.
    pub(in crate::raft) fn operations(&self) -> u64 {
        self.image.lock().operations
    }

    /// Flips one bit.
    pub(in crate::raft) fn flip(&self, name: &str, offset: usize) {
        let mut image = self.image.lock();
        let file = image.names[name];
        image.files[file].now[offset] ^= 0x10;
        image.files[file].durable[offset] ^= 0x10;
    }

    /// The names that begin with `prefix`, in order.
    pub(in crate::raft) fn names(&self, prefix: &str) -> Vec<String> {
        self.image.lock().names.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }

    /// The disk as the next start finds it.
    pub(in crate::raft) fn reboot(&self, crash: Crash) -> Self {
        let mut image = self.image.lock().clone();
        (image.fuel, image.error) = (None, None);
        if let Crash::Power(seed) = crash {
            let mut random = SmallRng::seed_from_u64(seed);
            for file in &mut image.files {
                file.durable.resize(file.now.len(), 0);
                for (now, durable) in file.now.chunks_mut(SECTOR).zip(file.durable.chunks(SECTOR)) {
                    if now != durable && random.random() {
                        now.copy_from_slice(durable);
                    }
                }
            }
            let survive = random.random_range(0..=image.changes.len());
            let mut names = std::mem::take(&mut image.durable_names);
            image.changes.iter().take(survive).for_each(|change| apply(&mut names, change));
            image.names = names;
        }
        image.files.iter_mut().for_each(|file| file.durable = file.now.clone());
        (image.durable_names, image.changes) = (image.names.clone(), Vec::new());
        Self { image: Arc::new(Mutex::new(image)) }
    }

    /// Whether the next change is done: `Ok(false)` means in part, then the disk is gone.
    fn step(image: &mut Image) -> io::Result<bool> {
        if let Some(error) = image.error {
            return Err(error.into());
        }
        image.operations += 1;
        match &mut image.fuel {
            None => Ok(true),
            Some(0) => {
                image.error = Some(io::ErrorKind::Other);
                Ok(false)
            }
            Some(fuel) => {
                *fuel -= 1;
                Ok(true)
            }
        }
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut image = self.image.lock();
        if !Self::step(&mut image)? {
            return Err(io::Error::other("crashed"));
        }
        apply(&mut image.names, &change);
        image.changes.push(change);
        Ok(())
    }

    fn write(&self, name: &str, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let mut image = self.image.lock();
        let whole = Self::step(&mut image)?;
        let file = *image.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        // A write that is interrupted has done some pages: it ends where a sector of the file does.
        let half = ((offset + bytes.len() / 2) / SECTOR * SECTOR).saturating_sub(offset);
        let bytes = if whole { bytes } else { &bytes[..half] };
        let content = &mut image.files[file].now;
        content.resize(content.len().max(offset + bytes.len()), 0);
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
        if whole { Ok(()) } else { Err(io::Error::other("crashed")) }
    }
}

impl Disk for FaultyDisk {
    fn path(&self) -> &Path {
        Path::new("/faulty")
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.image.lock().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let image = self.image.lock();
        let file = *image.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(image.files[file].now.clone())
    }

    fn write_new(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let file = {
            let mut image = self.image.lock();
            image.files.push(MemFile::default());
            image.files.len() - 1
        };
        self.change(Change::Create(name.to_owned(), file))?;
        self.write(name, 0, content)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(name, usize::try_from(offset).unwrap(), bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut image = self.image.lock();
        if !Self::step(&mut image)? {
            return Err(io::Error::other("crashed"));
        }
        let file = *image.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        image.files[file].durable = image.files[file].now.clone();
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(Change::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(Change::Remove(name.to_owned()))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut image = self.image.lock();
        if !Self::step(&mut image)? {
            return Err(io::Error::other("crashed"));
        }
        image.durable_names = image.names.clone();
        image.changes.clear();
        Ok(())
    }
}
