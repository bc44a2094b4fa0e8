//! What a client is told, and asked.

use std::fmt::Debug;

use crate::ids::{ClientId, NodeName, SessionId, VolumeId};
use crate::machine::{Event, Victim};

/// What a program does when the control plane tells or asks it something. Methods may block and may use the client.
pub trait Listener: Send + Sync + Debug {
    /// Serves a request that somebody in the cluster has sent to `client` through its lockd. Several run at once.
    ///
    /// # Errors
    /// The text that tells the asker why not.
    fn serve(&self, client: ClientId, from: &NodeName, request: &[u8]) -> Result<Vec<u8>, String> {
        let _ = (client, from, request);
        Err("this program serves no requests".to_owned())
    }

    /// Something has happened that concerns everyone; only after [`LockClient::watch`](super::LockClient::watch).
    fn event(&self, event: &Event) {
        let _ = event;
    }

    /// Events were lost: what is followed by them must be read anew.
    fn missed(&self) {}

    /// `victim` is to be fenced from `volume` (F1): refuses it from now on, and returns when what was carried for it is
    /// drained. A program that carries nothing for others has nothing to do.
    fn drain(&self, volume: VolumeId, victim: Victim) {
        let _ = (volume, victim);
    }

    /// The session has ended, and all of its clients. Its lease is over already.
    fn session_ended(&self, session: SessionId) {
        let _ = session;
    }
}

/// Who does not listen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deaf;

impl Listener for Deaf {}
