//! Persistent reservations: the keys of who is fenced are removed from a LUN's units, and what the units had accepted is
//! aborted.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ring::digest::{SHA256, digest};

use crate::ids::{ClientId, NodeName};
use crate::iscsi::reservation::{Key, Registrant, ReservationError};
use crate::iscsi::{IscsiUri, Isid, Page, Session};

/// How long a target may take for a login.
const LOGIN: Duration = Duration::from_secs(5);
/// How long it may take for all that follows; a reset waits for what is under way.
const PATIENCE: Duration = Duration::from_secs(20);

/// Set in the keys of nodes, and not in those of mounts, whose numbers are positive.
const NODE: u64 = 1 << 63;

/// This process fences by one session at a time: all of them log in under the same id, so that a unit keeps one
/// registration of each node's, and a second one would end the first.
static TURN: Mutex<()> = Mutex::new(());

/// The key by which a mount registers, made of its incarnation at targets ([`super::incarnation`]).
#[must_use]
pub fn key_of(incarnation: ClientId) -> Key {
    Key(incarnation.0)
}

/// The units by which a volume's LUN is reached, as one node fences there.
#[derive(Clone, Debug)]
pub struct Units {
    uris: Vec<IscsiUri>,
    node: NodeName,
}

/// Why somebody is not known to be fenced.
#[derive(Debug, thiserror::Error)]
#[error("{uri}: {source}")]
pub struct UnitError {
    uri: String,
    /// What went wrong there.
    pub source: ReservationError,
}

impl Units {
    /// The units that `paths` name, fenced by `node`.
    ///
    /// # Errors
    /// The path that is none of iSCSI.
    pub fn new(paths: &[String], node: &NodeName) -> Result<Self, String> {
        let unit = |path: &String| {
            if !path.starts_with("iscsi://") {
                // Another kind of path may hold a secret as well.
                return Err("a path of the volume is no iscsi:// unit".to_owned());
            }
            path.parse::<IscsiUri>().map_err(|error| error.to_string())
        };
        Ok(Self { uris: paths.iter().map(unit).collect::<Result<_, _>>()?, node: node.clone() })
    }

    /// One unit.
    #[must_use]
    pub fn one(uri: &IscsiUri, node: &NodeName) -> Self {
        Self { uris: vec![uri.clone()], node: node.clone() }
    }

    /// The units, as messages name them.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.uris.iter().map(ToString::to_string)
    }

    /// Has only registrants write to the units from now on, by the node's own key. It stays: a reservation ends with its last
    /// registrant, and who was fenced could write again when the others have unmounted. And some targets (tgt 1.0.85) lose
    /// track of a reservation when the key of who made it is removed; so it is made by a key that never is.
    ///
    /// # Errors
    /// If the units do not take it, or somebody else has reserved them.
    pub fn hold(&self) -> Result<(), UnitError> {
        self.each(b"hold", |registrant| {
            registrant.register(self.own_key())?;
            registrant.reserve(self.own_key())
        })?;
        Ok(())
    }

    /// Removes the keys of `victims` everywhere; says what was done.
    ///
    /// # Errors
    /// If one of them may still write, or something of theirs be under way.
    pub fn fence(&self, victims: &[Key]) -> Result<String, UnitError> {
        let seen = self.each(b"fence", |registrant| registrant.fence(self.own_key(), victims))?;
        let lines: Vec<_> = self.names().zip(seen).map(|(name, seen)| format!("{name}: {seen}")).collect();
        Ok(lines.join("; "))
    }

    /// Ends the reservation, so that also somebody who is none of the cluster may write. Nobody may have the volume mounted.
    ///
    /// # Errors
    /// If a mount is registered.
    pub fn release(&self) -> Result<(), UnitError> {
        self.each(b"release", |registrant| {
            // One that has begun several sessions is listed several times by some targets.
            let mounts: BTreeSet<Key> =
                registrant.keys()?.into_iter().filter(|key| key.0 & NODE == 0).collect();
            if !mounts.is_empty() {
                return Err(ReservationError::InUse(mounts.len()));
            }
            registrant.clear(self.own_key())
        })?;
        Ok(())
    }

    /// Does `work` at each unit, by a session that is told from others of this node by `role`.
    fn each<T>(
        &self,
        role: &[u8],
        work: impl Fn(&mut Registrant<'_, Page>) -> Result<T, ReservationError>,
    ) -> Result<Vec<T>, UnitError> {
        let _turn = TURN.lock();
        let at = |uri: &IscsiUri| {
            let name = uri.to_string();
            let failed = |source| UnitError { uri: name.clone(), source };
            let id = Isid::of(&[role, self.node.as_str().as_bytes(), name.as_bytes()]);
            let mut session = Session::<Page>::open(uri, id, LOGIN).map_err(|error| failed(error.into()))?;
            let done = work(&mut Registrant::new(&mut session, Instant::now() + PATIENCE));
            session.log_out(LOGIN);
            done.map_err(failed)
        };
        self.uris.iter().map(at).collect()
    }

    fn own_key(&self) -> Key {
        let hash = digest(&SHA256, &[b"csvfs fencer ", self.node.as_str().as_bytes()].concat());
        let first = hash.as_ref().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Key(first | NODE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_a_unit_and_nodes_have_keys_that_no_mount_has() {
        let paths = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let units = |list, node: &str| Units::new(&paths(list), &node.parse().unwrap());
        let all = units(&["iscsi://a/t/0", "iscsi://u%hunter2@b/t/0"], "n1").unwrap();
        assert_eq!(all.names().collect::<Vec<_>>(), ["iscsi://a/t/0", "iscsi://u@b/t/0"]);
        let error = units(&["iscsi://a/t/0", "nbd://u:hunter2@b/t"], "n1").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        let other = units(&["iscsi://a/t/0"], "n2").unwrap();
        assert_ne!(all.own_key(), other.own_key());
        assert!(
            all.own_key().0 > u64::MAX / 2
                && key_of(super::super::incarnation(crate::machine::Nonce(7))).0 < u64::MAX / 2
        );
    }
}
