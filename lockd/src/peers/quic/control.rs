//! The first stream of a connection: who speaks, and whether he is still there.

use std::time::Duration;

use quinn::SendStream;
use tokio::sync::{Mutex, watch};

use super::frame::{FrameError, FrameReader, Header, Kind};
use super::hello::{self, Hello};

/// Our side of a connection's control stream.
#[derive(Debug)]
pub(super) struct Control {
    // Held while one small frame is written; the stream's order is that of the lock.
    stream: Mutex<SendStream>,
    last_pong: watch::Sender<u64>,
}

impl Control {
    pub(super) fn new(stream: SendStream) -> Self {
        Self { stream: Mutex::new(stream), last_pong: watch::Sender::new(0) }
    }

    /// Says who we are.
    pub(super) async fn introduce(&self, kind: Kind, hello: Hello) -> Result<(), quinn::WriteError> {
        self.send(kind, 0, &hello.encode()).await
    }

    /// Answers the other side's pings and notes its pongs, until the stream ends.
    pub(super) async fn run(&self, reader: &mut FrameReader) -> Result<(), FrameError> {
        while let Some(header) = reader.header().await? {
            match header {
                Header { kind: Kind::Ping, length: 0, id, .. } => {
                    if self.send(Kind::Pong, id, &[]).await.is_err() {
                        return Ok(());
                    }
                }
                Header { kind: Kind::Pong, length: 0, id, .. } => {
                    self.last_pong.send_if_modified(|last| {
                        let newer = id > *last;
                        *last = id.max(*last);
                        newer
                    });
                }
                _ => return Err(FrameError::Garbage("it does not belong on the control stream")),
            }
        }
        Ok(())
    }

    /// Whether the other side answers within `patience`.
    pub(super) async fn is_alive(&self, patience: Duration) -> bool {
        let mut pongs = self.last_pong.subscribe();
        let id = *pongs.borrow() + 1;
        let answered = async {
            self.send(Kind::Ping, id, &[]).await.is_ok() && pongs.wait_for(|last| *last >= id).await.is_ok()
        };
        tokio::time::timeout(patience, answered).await.unwrap_or(false)
    }

    async fn send(&self, kind: Kind, id: u64, payload: &[u8]) -> Result<(), quinn::WriteError> {
        let header = Header { kind, channel: 0, length: payload.len(), id };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(payload);
        self.stream.lock().await.write_all(&bytes).await
    }
}

/// Reads who the other side is.
pub(super) async fn introduction(reader: &mut FrameReader, kind: Kind) -> Result<Hello, FrameError> {
    match reader.header().await? {
        Some(header) if header.kind == kind && header.length <= hello::LENGTH_MAX => {
            let payload = reader.payload(header.length).await?;
            Hello::decode(&payload).ok_or(FrameError::Garbage("it does not say who speaks"))
        }
        Some(_) => Err(FrameError::Garbage("a connection begins with a hello")),
        None => Err(FrameError::Truncated),
    }
}
