//! Writes frames to a stream, as many at once as are ready.

use bytes::{Bytes, BytesMut};
use quinn::SendStream;
use tokio::sync::mpsc;

use super::frame::{HEADER, Header};
use super::rooms::Place;

/// How many frames wait for a stream's writer; who has more waits.
pub(super) const QUEUE: usize = 64;
/// Payloads up to this size are copied beside their header, in bytes.
const INLINE: usize = 8 << 10;

/// A frame to be sent, and the room that it takes until it is.
pub(super) struct Outgoing {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
    pub(super) place: Option<Place>,
}

/// Writes what comes from `queue` until that is closed or the stream fails.
pub(super) async fn write_frames(mut stream: SendStream, mut queue: mpsc::Receiver<Outgoing>) {
    let mut batch = Vec::with_capacity(QUEUE);
    let mut chunks: Vec<Bytes> = Vec::new();
    // Who answers slowly keeps the queue open, but must not keep a lost connection and its socket.
    let mut lost = std::pin::pin!(stream.stopped());
    loop {
        let ready = tokio::select! {
            ready = queue.recv_many(&mut batch, QUEUE) => ready,
            _ = &mut lost => return,
        };
        if ready == 0 {
            break;
        }
        let inline: usize =
            batch.iter().map(|frame| HEADER + if is_inline(frame) { frame.payload.len() } else { 0 }).sum();
        let mut small = BytesMut::with_capacity(inline);
        let mut places = Vec::new();
        for frame in batch.drain(..) {
            small.extend_from_slice(&frame.header.encode());
            if is_inline(&frame) {
                small.extend_from_slice(&frame.payload);
            } else {
                chunks.push(small.split().freeze());
                chunks.push(Bytes::from(frame.payload));
            }
            places.push(frame.place);
        }
        if !small.is_empty() {
            chunks.push(small.freeze());
        }
        if stream.write_all_chunks(&mut chunks).await.is_err() {
            // The connection is lost or the other side has given the stream up: its reader tells.
            return;
        }
        chunks.clear();
    }
    // A stream that is closed already needs no end.
    let _ = stream.finish();
}

fn is_inline(frame: &Outgoing) -> bool {
    frame.payload.len() <= INLINE
}
