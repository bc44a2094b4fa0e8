//! This host's registration with the target of a block device, whose other users fence by persistent reservations
//! (`scsi-pr`).
//!
//! The device is claimed (`O_EXCL`), so that this client alone decides which key the host has there: while it is open, that
//! of the client, made under the lease as over `iscsi://` ([`crate::iscsi::registration`]); when it is left, the node's
//! again. A write that is refused as a conflict tells that the key is gone: this client is fenced, for good. The kernel
//! registers with APTPL only, so that a restart of the target does not look like that.

use std::fs::File;
use std::sync::Arc;

use lockd::clock::Clock;
use lockd::fencing::node_key;
use lockd::reservation::Registrant;
use lockd::reservation::device::Device;
use lockd::rules::Rules;

use crate::iscsi::Reservation;
use crate::iscsi::registration::RegistrationError;

/// By what a client registers.
#[derive(Clone, Debug)]
pub struct Registration {
    own: Reservation,
    rules: Rules,
    clock: Arc<dyn Clock>,
}

impl Registration {
    /// Registers by `own`, when that is asked for.
    #[must_use]
    pub fn new(own: Reservation, rules: Rules, clock: Arc<dyn Clock>) -> Self {
        Self { own, rules, clock }
    }

    /// Whether UNMAP and WRITE SAME are refused to who has no key.
    pub(super) fn guards_unmap(&self) -> bool {
        self.own.guards_unmap
    }

    /// Registers at the claimed device behind `file`, and has only registrants write.
    pub(super) fn enter(&self, file: &File) -> Result<(), RegistrationError> {
        self.own.standing(self.rules, &*self.clock)?;
        let mut device = Device::claimed(file);
        device.register(self.own.key)?;
        device.reserve(self.own.key)?;
        self.own.standing(self.rules, &*self.clock).inspect_err(|_| self.leave(file))
    }

    /// Gives the host's key back to the node. If it has been removed it stays so.
    pub(super) fn leave(&self, file: &File) {
        let node = node_key(&self.own.node);
        if let Err(error) = Device::claimed(file).exchange(self.own.key, Some(node)) {
            tracing::warn!(%error, "the registration with the LUN could not be given back to the node");
        }
    }
}
