//! The files of a voter's directory, as few operations as log and snapshots need, so that tests can crash between any
//! two of them.

use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::StartError;

/// The files of one directory. Names are plain file names. What is not synced may be lost in a crash, or be there in
/// part; a rename is durable after [`sync_dir`](Self::sync_dir).
pub(super) trait Disk: Send + Sync + Debug {
    /// The directory, for messages.
    fn path(&self) -> &Path;
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A whole file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Makes a new file with `content`, or replaces what was there.
    fn write_new(&self, name: &str, content: &[u8]) -> io::Result<()>;
    /// Writes into an existing file.
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the file's data durable, and its size.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Renames, replacing what was there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Lets another process have the directory. Nothing is written any more.
    fn release(&self) {}
}

/// What is still being written has this ending; a crash leaves it, the next start removes it.
pub(super) const TEMPORARY: &str = ".tmp";

/// Makes file `name` whole or not at all: written under another name, synced, renamed.
pub(super) fn create_whole(disk: &dyn Disk, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}{TEMPORARY}");
    disk.write_new(&temporary, content)?;
    disk.sync(&temporary)?;
    disk.rename(&temporary, name)?;
    disk.sync_dir()
}

/// A directory of the machine, locked for this process.
#[derive(Debug)]
pub(super) struct RealDisk {
    dir: PathBuf,
    /// The file that is written to again and again stays open.
    open: Mutex<Option<(String, Arc<File>)>>,
    handle: File,
    lock: File,
}

impl RealDisk {
    /// Takes the directory, which is made when it is not there.
    pub(super) fn open(dir: &Path) -> Result<Self, StartError> {
        let failed = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| StartError::Disk { what, path, source }
        };
        std::fs::create_dir_all(dir).map_err(failed("make", dir))?;
        let lock_path = dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(failed("write to", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StartError::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(failed("lock", &lock_path)(error)),
        }
        let handle = File::open(dir).map_err(failed("open", dir))?;
        Ok(Self { dir: dir.to_owned(), open: Mutex::new(None), handle, lock })
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        if let Some((current, file)) = &*self.open.lock()
            && current == name
        {
            return Ok(file.clone());
        }
        let file = Arc::new(OpenOptions::new().write(true).open(self.dir.join(name))?);
        *self.open.lock() = Some((name.to_owned(), file.clone()));
        Ok(file)
    }

    fn forget(&self, name: &str) {
        self.open.lock().take_if(|(current, _)| current == name);
    }
}

impl Disk for RealDisk {
    fn path(&self) -> &Path {
        &self.dir
    }

    fn list(&self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.dir)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.dir.join(name))
    }

    fn write_new(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.forget(name);
        File::create(self.dir.join(name))?.write_all(content)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all_at(bytes, offset)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.forget(from);
        self.forget(to);
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.forget(name);
        std::fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn release(&self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!("cannot unlock {}: {error}", self.dir.display());
        }
    }
}

#[cfg(test)]
pub(super) mod faulty;
