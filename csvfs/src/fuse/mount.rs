//! Mounting, and the end of a mount.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use fuser::{Config, Session, SessionACL};
use lockd::ids::ClientId;
use redirector::buffer::Pool;

use super::bridge::Bridge;
use super::caching::{Caching, Validity};
use super::connection::Connection;
use super::device::Device;
use super::dispatcher::Dispatcher;
use super::filesystem::Front;
use super::locks::Locks;
use super::mountpoint::Mountpoint;
use super::options::MountOptions;
use super::pages::KernelPages;
use super::relief::Relief;
use super::rota::Rota;
use super::sys;
use crate::lock_service::LockService;
use crate::service::FileService;

/// Threads in which fuser decodes requests; none of them waits for an answer.
const FUSER_THREADS: usize = 2;

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No FUSE device.
    #[error("/dev/fuse cannot be opened; is the kernel's fuse module loaded (modprobe fuse)?")]
    Device(#[source] io::Error),
    /// mount(2) refused.
    #[error("{path} cannot be mounted on; it must be a directory, and mounting needs root")]
    Mount {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel and we could not agree.
    #[error("the kernel's FUSE and this program do not understand each other")]
    Handshake(#[source] io::Error),
    /// A thread, socket or descriptor could not be had.
    #[error("the mount's threads and sockets cannot be set up")]
    Resources(#[source] io::Error),
}

/// A mounted file system. Dropping it unmounts, by force if it is in use: end its users first.
#[derive(Debug)]
pub struct MountHandle {
    mountpoint: Arc<Mountpoint>,
    bridge: Arc<Bridge>,
    connection: Option<Arc<Connection>>,
    dispatchers: Vec<JoinHandle<()>>,
    relief: Option<Arc<Relief>>,
    fuser: Option<JoinHandle<io::Result<()>>>,
    forwarder: Option<JoinHandle<()>>,
}

/// Mounts `service` on the directory `path`; returns when the file system can be used. Its programs' locks are those of
/// `client` in `locks`. The data of writes is put into buffers of `pool`.
pub fn mount(
    path: &Path,
    options: &MountOptions,
    service: Arc<dyn FileService>,
    locks: Arc<dyn LockService>,
    client: ClientId,
    pool: &Pool,
) -> Result<MountHandle, MountError> {
    let file = sys::open_fuse_device(libc::O_NONBLOCK).map_err(MountError::Device)?;
    let (bridge, fuser_end) = Bridge::pair().map_err(MountError::Resources)?;
    let mountpoint = Mountpoint::mount(path, &file, options)
        .map_err(|source| MountError::Mount { path: path.to_owned(), source })?;
    // From here on an early return drops the handle, which unmounts and ends the threads that run.
    let mut handle = MountHandle {
        mountpoint: Arc::new(mountpoint),
        bridge: Arc::new(bridge),
        connection: None,
        dispatchers: Vec::new(),
        relief: None,
        fuser: None,
        forwarder: None,
    };

    let first = Arc::new(Device::new(file, 0));
    let threads = options.threads.max(1);
    let mut devices = vec![Arc::clone(&first)];
    for index in 1..threads {
        devices.push(first.duplicate(index).map(Arc::new).map_err(MountError::Resources)?);
    }
    let locks = Locks::new(locks, client);
    let shared = options.caching == Caching::none();
    let connection = Arc::new(Connection::new(service, locks, Validity::new(options.caching), shared));
    if shared {
        let pages = KernelPages::start(&first, connection.told()).map_err(MountError::Resources)?;
        connection.service.has_pages(Arc::new(pages));
    }
    handle.connection = Some(Arc::clone(&connection));

    let (bridge, known) = (Arc::clone(&handle.bridge), devices.clone());
    let forward = move || bridge.carry_replies(|index| known.get(usize::from(index)).cloned());
    handle.forwarder = Some(spawn("fuse-replies", forward)?);
    // Who stands in for a dispatcher works with its descriptor, or another one's: it is all the same to the kernel.
    let make = {
        let (connection, bridge, pool) = (Arc::clone(&connection), Arc::clone(&handle.bridge), pool.clone());
        move |number: usize| Dispatcher::new(&connection, &bridge, &devices[number % devices.len()], &pool)
    };
    let dispatchers: Vec<_> =
        (0..usize::from(threads)).map(&make).collect::<io::Result<_>>().map_err(MountError::Resources)?;
    let relief = Relief::new(Box::new(make));
    handle.relief = Some(Arc::clone(&relief));
    let rota = Arc::new(Rota::new(dispatchers.len()));
    for (number, mut dispatcher) in dispatchers.into_iter().enumerate() {
        let (relief, rota) = (Arc::clone(&relief), Arc::clone(&rota));
        let run = move || dispatcher.serve(&rota, &relief);
        handle.dispatchers.push(spawn(&format!("fuse-{number}"), run)?);
    }

    let mut config = Config::default();
    config.n_threads = Some(FUSER_THREADS);
    let session = Session::from_fd(Front::new(&connection), fuser_end, SessionACL::All, config)
        .map_err(MountError::Handshake)?;
    handle.fuser = Some(spawn("fuse-fuser", || session.run())?);
    if let Err(error) = handle.mountpoint.read_ahead(options.read_ahead_kib) {
        tracing::debug!("the kernel reads ahead as far as it does by itself: {error}");
    }
    Ok(handle)
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, MountError> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map_err(MountError::Resources)
}

/// Unmounts from any thread, while another one waits for the end of the mount.
#[derive(Clone, Debug)]
pub struct Unmounter(Arc<Mountpoint>);

impl Unmounter {
    /// As [`MountHandle::unmount`].
    pub fn unmount(&self) -> io::Result<()> {
        self.0.unmount(0)
    }

    /// As [`MountHandle::detach`].
    pub fn detach(&self) -> io::Result<()> {
        self.0.unmount(libc::MNT_DETACH)
    }
}

impl MountHandle {
    /// Unmounts; refused with EBUSY while a process uses the file system. [`MountHandle::wait`] tells when its last
    /// request has been taken.
    pub fn unmount(&self) -> io::Result<()> {
        self.mountpoint.unmount(0)
    }

    /// Takes the file system out of the tree of names at once; it ends when its last user is gone.
    pub fn detach(&self) -> io::Result<()> {
        self.mountpoint.unmount(libc::MNT_DETACH)
    }

    /// A way to unmount from another thread.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        Unmounter(Arc::clone(&self.mountpoint))
    }

    /// Waits until the file system has been unmounted, by whomever, and its threads have ended. Requests that the
    /// service has not answered by then are answered by nobody: the kernel has given them up.
    pub fn wait(mut self) {
        self.join();
    }

    fn join(&mut self) {
        for dispatcher in self.dispatchers.drain(..) {
            if dispatcher.join().is_err() {
                tracing::error!("a thread that takes requests has panicked");
            }
        }
        if let Some(relief) = self.relief.take() {
            relief.end();
        }
        if let Some(fuser) = self.fuser.take() {
            self.bridge.send_ends(FUSER_THREADS);
            match fuser.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!("fuser has ended with an error: {error}"),
                Err(_) => tracing::error!("a thread of fuser has panicked"),
            }
        }
        self.bridge.close();
        if let Some(connection) = self.connection.take() {
            connection.locks.end();
        }
        if let Some(forwarder) = self.forwarder.take()
            && forwarder.join().is_err()
        {
            tracing::error!("the thread that carries replies has panicked");
        }
    }
}

impl Drop for MountHandle {
    fn drop(&mut self) {
        let running = self.dispatchers.iter().any(|dispatcher| !dispatcher.is_finished());
        if running && self.mountpoint.unmount(0).is_err() {
            // Ends the connection, so that the threads end whoever still uses the file system.
            if let Err(error) = self.mountpoint.unmount(libc::MNT_FORCE | libc::MNT_DETACH) {
                tracing::error!("the file system cannot be unmounted: {error}");
                return;
            }
        }
        self.join();
    }
}
