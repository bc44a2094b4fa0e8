//! A connection that we made: carries our requests, and their replies back.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use quinn::Connection;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, mpsc, oneshot};

use super::channel_lanes::{lane, lanes, place, priority};
use super::contact::Contact;
use super::frame::{FrameError, FrameReader, Header, Kind};
use super::transport::{Close, close};
use super::writer::{Outgoing, QUEUE, write_frames};
use crate::peers::Channel;

/// What came back for a request.
#[derive(Debug)]
pub(super) enum Answer {
    Reply(Vec<u8>),
    NotServed(String),
    TooLarge(usize),
}

/// A connection that we made.
pub(super) struct Outbound {
    pub(super) connection: Connection,
    /// The wire version that was agreed on.
    pub(super) version: u16,
    /// Which incarnation of the node is at the other end.
    pub(super) incarnation: u64,
    lanes: [Vec<OnceCell<Lane>>; Channel::ALL.len()],
    last_id: AtomicU64,
    contact: Arc<Contact>,
    /// The endpoint's own; who asks may do so from another one.
    runtime: Handle,
}

struct Lane {
    queue: mpsc::Sender<Outgoing>,
    pending: Arc<Pending>,
}

/// The requests of a lane that wait for their answer; `None` when no answer comes any more.
struct Pending(Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

/// A request on its way. When it is dropped, its answer is not waited for any more.
pub(super) struct Asked {
    answer: oneshot::Receiver<Answer>,
    pending: Arc<Pending>,
    id: u64,
}

impl Asked {
    /// The answer; `None` if the connection was lost before it came.
    pub(super) async fn answer(mut self) -> Option<Answer> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.0.lock().as_mut() {
            pending.remove(&self.id);
        }
    }
}

impl Outbound {
    /// To be called in the endpoint's runtime.
    pub(super) fn new(connection: Connection, version: u16, incarnation: u64, contact: Arc<Contact>) -> Self {
        let empty = |channel| std::iter::repeat_with(OnceCell::new).take(lanes(channel)).collect();
        Self {
            connection,
            version,
            incarnation,
            lanes: Channel::ALL.map(empty),
            last_id: AtomicU64::new(0),
            contact,
            runtime: Handle::current(),
        }
    }

    /// Sends a request. If the connection is lost already, the request comes back: it was surely not sent.
    pub(super) async fn ask(&self, channel: Channel, frame: Vec<u8>) -> Result<Asked, Vec<u8>> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let cell = &self.lanes[place(channel)][lane(channel, id, frame.len())];
        let Ok(lane) = cell.get_or_try_init(|| self.open(channel)).await else { return Err(frame) };
        let (sender, answer) = oneshot::channel();
        match lane.pending.0.lock().as_mut() {
            Some(pending) => pending.insert(id, sender),
            None => return Err(frame),
        };
        let asked = Asked { answer, pending: lane.pending.clone(), id };
        let Ok(place) = lane.queue.reserve().await else { return Err(frame) };
        let header = Header { kind: Kind::Request, channel: channel.byte(), length: frame.len(), id };
        place.send(Outgoing { header, payload: frame, place: None });
        Ok(asked)
    }

    async fn open(&self, channel: Channel) -> Result<Lane, quinn::ConnectionError> {
        let (send, receive) = self.connection.open_bi().await?;
        // Only a stream that is closed cannot be given a priority; then the next write tells.
        let _ = send.set_priority(priority(channel));
        let (queue, requests) = mpsc::channel(QUEUE);
        let pending = Arc::new(Pending(Mutex::new(Some(HashMap::new()))));
        self.runtime.spawn(write_frames(send, requests));
        let lane = Lane { queue, pending: pending.clone() };
        let (connection, contact) = (self.connection.clone(), self.contact.clone());
        self.runtime.spawn(async move {
            let end = read_answers(FrameReader::new(receive), &pending, &contact).await;
            // Wakes who still waits: no answer comes any more.
            pending.0.lock().take();
            let why = match end {
                Err(FrameError::Stream(_)) => return,
                Err(error) => error.to_string(),
                Ok(()) => "a stream ended that should not".to_owned(),
            };
            if connection.close_reason().is_none() {
                tracing::warn!(peer = %connection.remote_address(), why, "closing a connection");
                close(&connection, Close::Protocol, &why);
            }
        });
        Ok(lane)
    }
}

async fn read_answers(
    mut reader: FrameReader,
    pending: &Pending,
    contact: &Contact,
) -> Result<(), FrameError> {
    while let Some(header) = reader.header().await? {
        let payload = reader.payload(header.length).await?;
        contact.note();
        let answer = match header.kind {
            Kind::Reply => Answer::Reply(payload),
            Kind::NotServed => Answer::NotServed(String::from_utf8_lossy(&payload).into_owned()),
            Kind::TooLarge => {
                let length = payload.try_into().map(u64::from_le_bytes);
                let length = length.map_err(|_| FrameError::Garbage("it names no length"))?;
                Answer::TooLarge(usize::try_from(length).unwrap_or(usize::MAX))
            }
            _ => return Err(FrameError::Garbage("it does not answer a request")),
        };
        let asked = pending.0.lock().as_mut().and_then(|pending| pending.remove(&header.id));
        // Who asked may have given up.
        if let Some(asked) = asked {
            let _ = asked.send(answer);
        }
    }
    Ok(())
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound")
            .field("address", &self.connection.remote_address())
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
