//! Serving: this mount has the role, opens the store, and claims the volume.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockd::failpoint;
use lockd::ids::{Epoch, NodeName};

use super::super::office::Office;
use super::super::{Settings, Volume, VolumeError};
use super::state::Shared;
use crate::disk::member::MemberClaim;
use crate::disk::open::OpenError;
use crate::status::Takeover;

/// After a store could not be opened here, for so long others may try.
const OTHERS_FIRST: Duration = Duration::from_secs(3);

impl Shared {
    /// This mount has the role: it opens the store and serves, unless it does so already.
    pub(super) fn serve(&self, epoch: Epoch, acquired: Option<Instant>) {
        let (is_joining, before) = {
            let mut state = self.state.lock();
            if state.office.is_some() {
                return;
            }
            if epoch <= state.had {
                // Known late, or it could not be given back.
                drop(state);
                let _ = self.authority.release(&self.role(), self.member.client, epoch);
                return;
            }
            (state.not_before, state.had, state.opens) = (None, epoch, true);
            (state.is_joining, state.board.node.clone())
        };
        let (since, is_handed_over) = (acquired.unwrap_or_else(Instant::now), acquired.is_none());
        let (role, client) = (self.role(), self.member.client);
        if is_handed_over {
            self.authority.arrived(std::slice::from_ref(&role), client, epoch);
        }
        if !is_joining {
            failpoint::reached("takeover.acquired");
        }
        let office = match self.open(epoch, is_handed_over, is_joining) {
            Ok(office) => office,
            Err(failure) => {
                if let Err(error) = self.authority.release(&role, client, epoch) {
                    tracing::warn!(%error, "the coordinator's role could not be given back");
                }
                {
                    let mut state = self.state.lock();
                    state.not_before = Some(Instant::now() + OTHERS_FIRST);
                    (state.agreed, state.opens) = (None, false);
                }
                return self.fail(failure);
            }
        };
        let carrier = self.member.serve_coordinator(&office.coordinator);
        {
            let mut state = self.state.lock();
            state.board.node = self.settings.node.clone();
            state.board.coordinator = Arc::downgrade(&office.coordinator);
            state.board.opening = office.opening.clone();
            state.office = Some(office);
            (state.agreed, state.opens) = (None, false);
        }
        self.changed.notify_all();
        self.attach(carrier, epoch, move |shared, state| {
            if is_joining {
                return;
            }
            let how = state.board.opening.how.clone();
            let took = since.elapsed();
            tracing::info!(from = before, how, ?took, "this mount coordinates the volume");
            state.board.takeover = Some(Takeover {
                at_ns: shared.settings.clock.wall().0,
                took_s: took.as_secs_f64(),
                from: before,
                how,
                planned: is_handed_over,
            });
        });
    }

    fn open(&self, epoch: Epoch, is_handed_over: bool, is_joining: bool) -> Result<Office, VolumeError> {
        // A store that was closed for this mount a moment ago is checked in the background.
        let since = Instant::now();
        let check_max = if is_handed_over { 0 } else { self.settings.check_max };
        let living_nodes = self.member.plane.living_nodes().iter().map(NodeName::to_string).collect();
        let settings = Settings { check_max, living_nodes, ..self.settings.clone() };
        let ground = Volume::take(&self.lun, &settings)?;
        if let Some(claim) = &self.state.lock().claim {
            claim.govern(&self.lun);
        }
        tracing::debug!(took = ?since.elapsed(), "the store is open");
        if !is_joining {
            failpoint::reached("takeover.opened");
        }
        let peers = Arc::clone(&self.member.ways) as _;
        let office = Office::open(ground, &self.lun, &self.authority, peers, epoch, &settings)?;
        tracing::debug!(took = ?since.elapsed(), "the coordinator has begun");
        Ok(office)
    }

    /// The claim of a mount that writes file data, whoever has the store open.
    pub(super) fn claim(&self) -> Result<(), VolumeError> {
        let options = self.settings.member_options();
        let mut claim = MemberClaim::claim(&self.lun, &options, &self.beat).map_err(OpenError::from)?;
        claim.start().map_err(VolumeError::Thread)?;
        self.state.lock().claim = Some(claim);
        Ok(())
    }
}
