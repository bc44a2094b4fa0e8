//! The status socket of a mount.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::VolumeStatus;

/// How long a mount may take to answer, or a client to read.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest status document, in bytes.
const DOCUMENT_MAX: u64 = 1 << 20;

/// Why a status could not be served or asked for.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The folder of the sockets cannot be used.
    #[error("cannot use {path} for status sockets ({source}); run as root, or mount with --run-dir DIR")]
    Folder {
        /// The folder or socket.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// A listening status socket; removed when dropped.
#[derive(Debug)]
pub struct StatusSocket {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

fn folder(run: &Path) -> PathBuf {
    run.join("local")
}

impl StatusSocket {
    /// Answers with what `status` gives, on a socket under the folder `run`.
    pub fn serve(
        run: &Path,
        status: impl Fn() -> VolumeStatus + Send + 'static,
    ) -> Result<Self, StatusError> {
        let folder = folder(run);
        let path = folder.join(format!("{}.sock", std::process::id()));
        let failed = |source| StatusError::Folder { path: path.clone(), source };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let server = std::thread::Builder::new()
            .name("status".to_owned())
            .spawn(move || {
                for stream in listener.incoming() {
                    if stopping.load(Ordering::Acquire) {
                        return;
                    }
                    let Ok(mut stream) = stream else { continue };
                    let _ = stream.set_write_timeout(Some(PATIENCE));
                    if let Ok(text) = serde_json::to_vec(&status()) {
                        let _ = stream.write_all(&text);
                    }
                }
            })
            .map_err(failed)?;
        Ok(Self { path, stop, server: Some(server) })
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A connection wakes the server, which then sees that it is to stop.
        let woken = UnixStream::connect(&self.path).is_ok();
        let _ = std::fs::remove_file(&self.path);
        if let (true, Some(server)) = (woken, self.server.take()) {
            let _ = server.join();
        }
    }
}

/// Asks every mount whose socket is under the folder `run`. Sockets of mounts that are gone are removed; a mount that
/// does not answer in time is left out.
#[must_use]
pub fn ask_all(run: &Path) -> Vec<VolumeStatus> {
    let Ok(entries) = std::fs::read_dir(folder(run)) else { return Vec::new() };
    let mut found: Vec<VolumeStatus> = entries.flatten().filter_map(|entry| ask(&entry.path())).collect();
    found.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    found
}

fn ask(path: &Path) -> Option<VolumeStatus> {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            let _ = std::fs::remove_file(path);
            return None;
        }
        Err(_) => return None,
    };
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut text = Vec::new();
    stream.take(DOCUMENT_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Counters, Opening};

    fn example() -> VolumeStatus {
        VolumeStatus {
            volume: "u".to_owned(),
            name: "vms".to_owned(),
            lun: "file:x".to_owned(),
            mountpoint: "/mnt".to_owned(),
            cluster: None,
            node: "n1".to_owned(),
            pid: 1,
            coordinator: "n1".to_owned(),
            session: 3,
            read_only: false,
            state: "direct".to_owned(),
            since_s: Some(1.5),
            problem: String::new(),
            path: "file".to_owned(),
            metadata: String::new(),
            fence: "none".to_owned(),
            opening: Opening::default(),
            takeover: None,
            counters: Counters::default(),
            blocks: 10,
            blocks_free: 5,
            inodes: 1,
            owned_files: 0,
        }
    }

    #[test]
    fn a_mount_answers_until_it_ends() {
        let run = tempfile::tempdir().unwrap();
        let socket = StatusSocket::serve(run.path(), example).unwrap();
        assert_eq!(ask_all(run.path()), vec![example()]);
        drop(socket);
        assert_eq!(ask_all(run.path()), vec![]);
    }

    #[test]
    fn the_socket_of_a_dead_mount_is_removed() {
        let run = tempfile::tempdir().unwrap();
        let dead = folder(run.path()).join("77.sock");
        std::fs::create_dir_all(folder(run.path())).unwrap();
        drop(UnixListener::bind(&dead).unwrap());
        assert_eq!(ask_all(run.path()), vec![]);
        assert!(!dead.exists());
    }
}
