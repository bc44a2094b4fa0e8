//! How much may be in flight between two nodes, in one direction: so many requests and so many bytes for each channel.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::channel_lanes::place;
use crate::peers::{Channel, FRAME_MAX};

/// How much may be in flight on each channel between two nodes, in one direction. Who asks waits for room, within the
/// request's time-out; who serves lets the rest wait in the network. No channel takes the room of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Requests.
    pub requests: usize,
    /// The payloads of requests, in bytes; at least that of the largest frame.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: 256, bytes: 32 << 20 }
    }
}

const UNIT: usize = 1 << 10;

/// The rooms of all channels.
#[derive(Debug)]
pub(super) struct Rooms {
    channels: [Room; Channel::ALL.len()],
}

#[derive(Debug)]
struct Room {
    requests: Arc<Semaphore>,
    units: Arc<Semaphore>,
}

/// A request's place in a room, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _request: Option<OwnedSemaphorePermit>,
    _units: Option<OwnedSemaphorePermit>,
}

impl Rooms {
    pub(super) fn new(limits: Limits) -> Self {
        let units = limits.bytes.max(FRAME_MAX + UNIT) / UNIT;
        let room = || Room {
            requests: Arc::new(Semaphore::new(limits.requests.max(1))),
            units: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
        };
        Self { channels: std::array::from_fn(|_| room()) }
    }

    /// Waits until there is room for a request of `length` bytes; who came first is first.
    pub(super) async fn enter(&self, channel: Channel, length: usize) -> Place {
        let room = &self.channels[place(channel)];
        let units = u32::try_from(length.min(FRAME_MAX) / UNIT + 1).unwrap_or(u32::MAX);
        // The semaphores are never closed, so that both permits are always there.
        let request = room.requests.clone().acquire_owned().await.ok();
        let units = room.units.clone().acquire_many_owned(units).await.ok();
        Place { _request: request, _units: units }
    }
}
