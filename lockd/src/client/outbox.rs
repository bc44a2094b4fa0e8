//! What goes to lockd, written by whoever has something to say.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use parking_lot::Mutex;

/// The way out of one connection. Whoever finds nobody writing writes, also what others leave in the meantime: so no
/// lock is held while the kernel takes the bytes, and frames that come together go together.
#[derive(Debug)]
pub(super) struct Outbox {
    stream: UnixStream,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: Vec<u8>,
    writing: bool,
    broken: bool,
}

impl Outbox {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, state: Mutex::default() }
    }

    /// Sends a frame, or lets it be sent. On a broken connection nothing happens: its end is noticed by who reads.
    pub(super) fn send(&self, frame: &[u8]) {
        {
            let mut state = self.state.lock();
            if state.broken {
                return;
            }
            state.queue.extend_from_slice(frame);
            if std::mem::replace(&mut state.writing, true) {
                return;
            }
        }
        loop {
            let batch = {
                let mut state = self.state.lock();
                if state.queue.is_empty() {
                    state.writing = false;
                    return;
                }
                std::mem::take(&mut state.queue)
            };
            if (&self.stream).write_all(&batch).is_err() {
                self.close();
                return;
            }
        }
    }

    /// Ends the connection, for the reader too.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.broken = true;
        state.queue = Vec::new();
        drop(state);
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
