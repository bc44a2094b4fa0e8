//! A way to a server that can be shut, or drop everything silently, while the server goes on.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    /// Connections are closed as soon as they are made.
    Shut,
    /// Connections are made, and nothing goes by them.
    Silent,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    connections: Mutex<Vec<UnixStream>>,
}

/// The way.
#[derive(Debug)]
pub struct Portal {
    socket: PathBuf,
    shared: Arc<Shared>,
}

impl Portal {
    /// A way to the server at `server`, by a socket in `dir`.
    pub fn start(dir: &Path, name: &str, server: &Path) -> Self {
        let socket = dir.join(name);
        let listener = UnixListener::bind(&socket).unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Open),
            changed: Condvar::new(),
            connections: Mutex::default(),
        });
        let (accepting, server) = (Arc::clone(&shared), server.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                if *accepting.state.lock() == State::Shut {
                    continue;
                }
                let Ok(server) = UnixStream::connect(&server) else { continue };
                let both = [client.try_clone().unwrap(), server.try_clone().unwrap()];
                accepting.connections.lock().extend(both);
                for (from, to) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    let shared = Arc::clone(&accepting);
                    std::thread::spawn(move || relay(from, to, &shared));
                }
            }
        });
        Self { socket, shared }
    }

    pub fn uri(&self) -> String {
        super::unix(&self.socket, "vms")
    }

    fn set(&self, state: State) {
        *self.shared.state.lock() = state;
        self.shared.changed.notify_all();
    }

    /// Breaks all connections, and refuses new ones.
    pub fn shut(&self) {
        self.set(State::Shut);
        for connection in self.shared.connections.lock().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Drops everything that comes from now on, without a word.
    pub fn silence(&self) {
        self.set(State::Silent);
    }

    /// Lets everything through; what was dropped stays lost, with its connections.
    pub fn open(&self) {
        if *self.shared.state.lock() == State::Silent {
            self.shut();
        }
        self.set(State::Open);
    }
}

/// Passes bytes on until the connection ends.
fn relay(mut from: UnixStream, mut to: UnixStream, shared: &Shared) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        {
            let mut state = shared.state.lock();
            while *state == State::Silent {
                shared.changed.wait_for(&mut state, Duration::from_secs(60));
            }
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
