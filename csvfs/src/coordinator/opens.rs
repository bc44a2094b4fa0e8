//! Who holds which inode open: it outlives its last name as long as anybody does.
//!
//! Kept in memory only: opening costs no transaction. What was open when a coordinator ended is declared anew by the
//! nodes (V10), or was open in a session that is over.

use std::collections::{HashMap, HashSet};

use lockd::ids::ClientId;

use crate::types::Ino;

/// The table of opens.
#[derive(Debug, Default)]
pub struct Opens {
    by_inode: HashMap<Ino, Vec<ClientId>>,
    /// Inodes that a transaction under way removes.
    dying: HashSet<Ino>,
    /// Inodes without a name that somebody holds open.
    orphans: HashSet<Ino>,
    /// Clients that are over.
    ended: HashSet<ClientId>,
}

impl Opens {
    /// `client` holds `ino` open. Refused if the inode is being removed.
    pub fn open(&mut self, ino: Ino, client: ClientId) -> bool {
        if self.dying.contains(&ino) || self.ended.contains(&client) {
            return false;
        }
        let holders = self.by_inode.entry(ino).or_default();
        if !holders.contains(&client) {
            holders.push(client);
        }
        true
    }

    /// `client` holds `ino` open no more. Tells whether it was an orphan's last holder.
    pub fn close(&mut self, ino: Ino, client: ClientId) -> bool {
        let Some(holders) = self.by_inode.get_mut(&ino) else { return false };
        holders.retain(|holder| *holder != client);
        if !holders.is_empty() {
            return false;
        }
        self.by_inode.remove(&ino);
        self.orphans.remove(&ino)
    }

    /// Whether anybody holds `ino` open.
    pub fn is_open(&self, ino: Ino) -> bool {
        self.by_inode.contains_key(&ino)
    }

    /// `ino` has lost its last name: it is removed by the transaction under way, unless somebody holds it open.
    pub fn bury(&mut self, ino: Ino) -> bool {
        if self.is_open(ino) {
            self.orphans.insert(ino);
            return false;
        }
        self.dying.insert(ino);
        true
    }

    /// `client` holds `ino` open, which never had a name.
    pub fn open_unnamed(&mut self, ino: Ino, client: ClientId) {
        self.by_inode.insert(ino, vec![client]);
        self.orphans.insert(ino);
    }

    /// `ino` has a name again.
    pub fn adopted(&mut self, ino: Ino) {
        self.orphans.remove(&ino);
    }

    /// The transaction that removed `gone` is committed.
    pub fn buried(&mut self, gone: &[Ino]) {
        for ino in gone {
            self.dying.remove(ino);
        }
    }

    /// `client` is over: what it held open is closed.
    pub fn end(&mut self, client: ClientId) {
        self.ended.insert(client);
        self.by_inode.retain(|_, holders| {
            holders.retain(|holder| *holder != client);
            !holders.is_empty()
        });
        self.orphans.retain(|ino| self.by_inode.contains_key(ino));
    }

    /// Whether `client` is over.
    pub fn is_over(&self, client: ClientId) -> bool {
        self.ended.contains(&client)
    }
}
