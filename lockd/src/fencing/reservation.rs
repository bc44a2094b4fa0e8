//! Persistent reservations: the keys of who is fenced are removed from a LUN's units, and what the units had accepted is
//! aborted.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ring::digest::{SHA256, digest};

use crate::ids::{ClientId, NodeName};
use crate::iscsi::reservation::{Nexus, node_isid};
use crate::iscsi::{IscsiUri, Page, Role, Session};
use crate::reservation::device::Visit;
use crate::reservation::{Key, Registrant, ReservationError, fence};

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

/// The key of a node itself.
#[must_use]
pub fn node_key(node: &NodeName) -> Key {
    let hash = digest(&SHA256, &[b"csvfs fencer ", node.as_str().as_bytes()].concat());
    let first = hash.as_ref().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    Key(first | NODE)
}

/// One unit, as it is reached.
#[derive(Clone, Debug)]
enum Unit {
    Iscsi(IscsiUri),
    Device(PathBuf),
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iscsi(uri) => uri.fmt(f),
            Self::Device(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The units by which a volume's LUN is reached, as one node fences there.
#[derive(Clone, Debug)]
pub struct Units {
    units: Vec<Unit>,
    node: NodeName,
    /// The keys of this host's mounts that are alive.
    mounts: Vec<Key>,
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
    /// The units that `paths` name, fenced by `node`: of iSCSI, or one block device.
    ///
    /// # Errors
    /// The path that is neither.
    pub fn new(paths: &[String], node: &NodeName) -> Result<Self, String> {
        let unit = |path: &String| match path.starts_with("iscsi://") {
            true => path.parse::<IscsiUri>().map(Unit::Iscsi).map_err(|error| error.to_string()),
            false if path.starts_with('/') && paths.len() == 1 => Ok(Unit::Device(path.into())),
            // Another kind of path may hold a secret as well.
            false => {
                Err("a path of the volume is no iscsi:// unit, nor a block device that is the only path"
                    .to_owned())
            }
        };
        let units = paths.iter().map(unit).collect::<Result<_, _>>()?;
        Ok(Self { units, node: node.clone(), mounts: Vec::new() })
    }

    /// One unit of iSCSI.
    #[must_use]
    pub fn one(uri: &IscsiUri, node: &NodeName) -> Self {
        Self { units: vec![Unit::Iscsi(uri.clone())], node: node.clone(), mounts: Vec::new() }
    }

    /// The same, with the keys of the mounts of this host that are alive: a block device is registered by the mount that
    /// uses it.
    #[must_use]
    pub fn beside(self, mounts: Vec<Key>) -> Self {
        Self { mounts, ..self }
    }

    /// The units, as messages name them.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.units.iter().map(ToString::to_string)
    }

    /// Has only registrants write to the units from now on, by the node's own key. It stays: a reservation ends with its last
    /// registrant, and who was fenced could write again when the others have unmounted. And some targets (tgt 1.0.85) lose
    /// track of a reservation when the key of who made it is removed; so it is made by a key that never is.
    ///
    /// # Errors
    /// If the units do not take it, or somebody else has reserved them.
    pub fn hold(&self) -> Result<(), UnitError> {
        self.each(&[], |registrant, own| {
            registrant.register(own)?;
            registrant.reserve(own)
        })?;
        Ok(())
    }

    /// Removes the keys of `victims` everywhere; says what was done.
    ///
    /// # Errors
    /// If one of them may still write, or something of theirs be under way.
    pub fn fence(&self, victims: &[Key]) -> Result<String, UnitError> {
        let seen = self.each(victims, |registrant, own| fence(registrant, own, victims))?;
        let lines: Vec<_> = self.names().zip(seen).map(|(name, seen)| format!("{name}: {seen}")).collect();
        Ok(lines.join("; "))
    }

    /// Ends the reservation, so that also somebody who is none of the cluster may write. Nobody may have the volume mounted.
    ///
    /// # Errors
    /// If a mount is registered.
    pub fn release(&self) -> Result<(), UnitError> {
        self.each(&[], |registrant, own| {
            // One that has begun several sessions is listed several times by some targets.
            let mounts: BTreeSet<Key> =
                registrant.keys()?.into_iter().filter(|key| key.0 & NODE == 0).collect();
            if !mounts.is_empty() {
                return Err(ReservationError::InUse(mounts.len()));
            }
            registrant.clear(own)
        })?;
        Ok(())
    }

    /// Does `work` at each unit, by the key that it is given. None of `not` is relied on as a live mount.
    fn each<T>(
        &self,
        not: &[Key],
        work: impl Fn(&mut dyn Registrant, Key) -> Result<T, ReservationError>,
    ) -> Result<Vec<T>, UnitError> {
        let _turn = TURN.lock();
        let at = |unit: &Unit| {
            let done = match unit {
                Unit::Iscsi(uri) => self.by_session(uri, &work),
                Unit::Device(path) => {
                    let mounts: Vec<_> =
                        self.mounts.iter().copied().filter(|key| !not.contains(key)).collect();
                    Visit::begin(path, node_key(&self.node), &mounts)
                        .and_then(|visit| work(&mut visit.device(), visit.own()))
                }
            };
            done.map_err(|source| UnitError { uri: unit.to_string(), source })
        };
        self.units.iter().map(at).collect()
    }

    fn by_session<T>(
        &self,
        uri: &IscsiUri,
        work: impl Fn(&mut dyn Registrant, Key) -> Result<T, ReservationError>,
    ) -> Result<T, ReservationError> {
        let id = node_isid(&self.node, uri);
        let mut session = Session::<Page>::open(&uri.as_role(Role::Node), id, LOGIN)?;
        let mut nexus = Nexus::new(&mut session, Instant::now() + PATIENCE);
        let done = work(&mut nexus, node_key(&self.node));
        session.log_out(LOGIN);
        done
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
        assert_eq!(units(&["/dev/sda"], "n1").unwrap().names().collect::<Vec<_>>(), ["/dev/sda"]);
        assert!(units(&["/dev/sda", "/dev/sdb"], "n1").is_err() && units(&["file:/x"], "n1").is_err());
        let (one, other) = (node_key(&"n1".parse().unwrap()), node_key(&"n2".parse().unwrap()));
        assert_ne!(one, other);
        assert!(
            one.0 > u64::MAX / 2
                && key_of(super::super::incarnation(crate::machine::Nonce(7))).0 < u64::MAX / 2
        );
    }
}
