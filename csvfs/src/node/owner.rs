//! Becoming the owner of files.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use lockd::authority::Authority;
use lockd::failpoint;
use lockd::ids::{ClientId, Epoch, ResourceId, SlotId};
use lockd::machine::Cookie;
use lockd::rules::Rule;

use super::Core;
use super::channel::unexpected;
use super::file::File;
use super::task::run;
use super::turn::Held;
use crate::proto::codec::{decode, encode};
use crate::proto::{Answer, Claim, Key, OpenedFile, Operation, Term};
use crate::refusal::Refusal;
use crate::slots::Slot;
use crate::types::Ino;

/// A file of this size that is open for writing on one node alone is acquired by it.
pub(super) const ACQUIRE_MIN: u64 = 1 << 20;

/// Why a set of files did not change hands, and which of them was in the way, where that is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetRefusal {
    /// The file.
    pub ino: Option<Ino>,
    /// Why.
    pub why: Refusal,
}

impl fmt::Display for SetRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ino {
            Some(ino) => write!(f, "{ino}: {}", self.why),
            None => self.why.fmt(f),
        }
    }
}

impl std::error::Error for SetRefusal {}

impl From<Refusal> for SetRefusal {
    fn from(why: Refusal) -> Self {
        Self { ino: None, why }
    }
}

impl Core {
    /// The slots of other nodes' changes to `file`, to be handed on. Nothing of theirs is under way.
    pub(super) fn slots_of(&self, file: &File) -> Vec<u8> {
        let slots = file.guest_slots.lock().export();
        if slots.is_empty() { Vec::new() } else { encode(&slots).unwrap_or_default() }
    }

    /// Takes over what the last server has handed on.
    pub(super) fn take_slots(&self, file: &File, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match decode::<Vec<(ClientId, SlotId, Slot)>>(bytes) {
            Ok(slots) => file.guest_slots.lock().import(slots),
            Err(error) => tracing::error!(ino = file.ino.0, %error, "the slots of a file are not understood"),
        }
    }

    /// Makes this node the owner of files that it has open: of one server's after those of the other.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        files: &[Arc<File>],
        claim: Claim,
    ) -> Result<(), SetRefusal> {
        let mut wanted = files.to_vec();
        loop {
            // In the order of their numbers, like everybody who takes several.
            wanted.sort_unstable_by_key(|file| file.ino);
            let mut passages: Vec<(Arc<File>, Held)> = Vec::with_capacity(wanted.len());
            for file in wanted.drain(..) {
                let passage = file.passage.take().await;
                // What is owned already does not keep its passage: it may be wanted elsewhere.
                let is_done = file.owned_in().is_some() || (claim.automatic && file.tenure().is_some());
                if !is_done {
                    passages.push((file, passage));
                }
            }
            if passages.is_empty() {
                return Ok(());
            }
            let asked: Vec<Ino> = passages.iter().map(|(file, _)| file.ino).collect();
            let acquire = Operation::Acquire { files: asked.clone(), claim };
            failpoint::reached("acquire.asking");
            let moved: HashSet<Ino> = match self.channel.call(acquire).await {
                Ok(Answer::Moved(moved)) if !moved.is_empty() => moved.into_iter().collect(),
                Ok(other) => return Err(unexpected(&other).into()),
                Err(error) => {
                    self.drop_unclaimed(asked).await;
                    return Err(error.into());
                }
            };
            failpoint::reached("acquire.moved");
            let here = |file: &&Arc<File>| moved.contains(&file.ino);
            let arrived: Vec<Arc<File>> =
                passages.iter().map(|(file, _)| file).filter(here).map(Arc::clone).collect();
            if let Err(refusal) = self.take_up(&arrived).await {
                let untaken = self.unclaimed(asked).await;
                // The coordinator asks for them, and whoever yields them takes their passages.
                drop(passages);
                self.return_untaken(untaken).await;
                return Err(refusal);
            }
            failpoint::reached("acquire.served");
            wanted = passages
                .into_iter()
                .map(|(file, _)| file)
                .filter(|file| !moved.contains(&file.ino))
                .collect();
        }
    }

    /// The coordinator has named this node as the server of files: it serves them from now on. The caller has their
    /// passages.
    async fn take_up(self: &Arc<Self>, files: &[Arc<File>]) -> Result<(), SetRefusal> {
        // Those that were served here already have a new right, and are not opened anew.
        let mut files: Vec<&Arc<File>> = files.iter().filter(|file| file.is_elsewhere()).collect();
        // One that cannot be taken up does not keep the others from being served.
        let mut refused = None;
        while !files.is_empty() {
            let line = self.channel.number();
            let inos: Vec<Ino> = files.iter().map(|file| file.ino).collect();
            let opened = self.open_set(&inos, |file| self.declared(file)).await;
            for (file, opened) in std::mem::take(&mut files).into_iter().zip(opened) {
                match self.take_up_one(file, line, opened).await {
                    Ok(true) => {}
                    Ok(false) => files.push(file),
                    Err(why) => refused = refused.or(Some(SetRefusal { ino: Some(file.ino), why })),
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// False if another coordinator has been told meanwhile that this node does not serve it.
    async fn take_up_one(
        &self,
        file: &File,
        line: u64,
        opened: Result<OpenedFile, Refusal>,
    ) -> Result<bool, Refusal> {
        let opened = opened?;
        let Some(term) = opened.term.filter(|term| term.client == self.client) else {
            return Err(Refusal::Passing("it has gone to another node meanwhile".to_owned()));
        };
        let _turn = file.turn.take().await;
        let _stop = file.gate.stop();
        file.gate.drain().await;
        let _giving = self.givings.enter().await;
        if self.channel.number() != line {
            return Ok(false);
        }
        self.take_slots(file, &opened.slots);
        let here = self.service_here(file.ino, &term);
        if let Some(epoch) = term.owned {
            self.authority.arrived(&[self.resource(file.ino)], self.client, epoch);
        }
        self.count_lost(file, &term);
        // From now on this node knows better than any answer.
        self.channel.cache.invalidate(&[Key::Attr(file.ino)]);
        file.serve(&opened.attr, Some(here));
        Ok(true)
    }

    fn declared(&self, ino: Ino) -> bool {
        self.files.get(ino).is_none_or(|file| file.declared.load(SeqCst))
    }

    pub(super) fn resource(&self, ino: Ino) -> ResourceId {
        ResourceId::File(self.volume, ino.0)
    }

    /// Acquires files, open here or not, for as long as they are open here and no other node acquires them.
    pub(super) async fn acquire_set(self: &Arc<Self>, inos: &[Ino]) -> Result<(), SetRefusal> {
        let files = self.hold_files(inos).await?;
        let claim = Claim { automatic: false, pinned: false, offer: None };
        let result = self.acquire(&files, claim).await;
        files.iter().for_each(|file| self.let_go(file));
        result
    }

    /// Acquires files, which their owner has offered under a cookie if there is one, and keeps them, open or not, until
    /// [`Core::unpin`]. The epoch that they all have, if it is one. Of an offered set that is not taken up as a whole, what
    /// has come is kept all the same: its last owner does not keep it any more.
    pub(super) async fn pin(
        self: &Arc<Self>,
        inos: &[Ino],
        offer: Option<Cookie>,
    ) -> Result<Option<Epoch>, SetRefusal> {
        let files = self.hold_files(inos).await?;
        let before = files.iter().filter(|file| file.owned_in().is_some() && !file.pinned.load(SeqCst));
        let before: Vec<ResourceId> = before.map(|file| self.resource(file.ino)).collect();
        let mut result = self.acquire(&files, Claim { automatic: false, pinned: true, offer }).await;
        if result.is_ok() && !before.is_empty() {
            let client = self.client;
            let pinned = self.with_authority(move |authority| authority.pin(&before, client)).await;
            result = pinned.map_err(SetRefusal::from);
        }
        for file in &files {
            if result.is_ok() || (offer.is_some() && file.owned_in().is_some()) {
                file.pinned.store(true, SeqCst);
                let is_new = self.pins.lock().insert(file.ino);
                if is_new {
                    // Held by the pin from now on.
                    continue;
                }
            }
            self.let_go(file);
        }
        result?;
        let epochs: HashSet<_> = files.iter().map(|file| file.owned_in()).collect();
        Ok(if epochs.len() == 1 { epochs.into_iter().next().flatten() } else { None })
    }

    /// Holds regular files, all or none.
    async fn hold_files(self: &Arc<Self>, inos: &[Ino]) -> Result<Vec<Arc<File>>, SetRefusal> {
        let files = self.hold_set(inos).await?;
        let odd = files.iter().find(|file| !file.is_regular()).map(|file| {
            let why = file.owned().err().unwrap_or_else(|| Refusal::Invalid("no file".to_owned()));
            SetRefusal { ino: Some(file.ino), why }
        });
        match odd {
            None => Ok(files),
            Some(refusal) => {
                files.iter().for_each(|file| self.let_go(file));
                Err(refusal)
            }
        }
    }

    /// Lets files go: they are nobody's, unless their use acquires them again.
    pub(super) async fn unpin(self: &Arc<Self>, inos: &[Ino]) -> Result<(), Refusal> {
        let mut held = Vec::new();
        {
            let mut pins = self.pins.lock();
            for ino in inos {
                if pins.remove(ino)
                    && let Some(file) = self.files.get(*ino)
                {
                    file.pinned.store(false, SeqCst);
                    held.push(file);
                }
            }
        }
        let result = self.release(inos.to_vec()).await;
        held.iter().for_each(|file| self.let_go(file));
        result
    }

    async fn release(&self, mut inos: Vec<Ino>) -> Result<(), Refusal> {
        while !inos.is_empty() {
            match self.channel.call(Operation::Release { files: inos.clone() }).await? {
                Answer::Moved(moved) if !moved.is_empty() => {
                    let moved: HashSet<Ino> = moved.into_iter().collect();
                    inos.retain(|ino| !moved.contains(ino));
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }

    /// Which of these the authority has given to this client, and this node does not own.
    async fn unclaimed(&self, mut inos: Vec<Ino>) -> Vec<(Ino, Epoch)> {
        let (client, volume) = (self.client, self.volume);
        inos.retain(|ino| self.files.get(*ino).is_none_or(|file| file.owned_in().is_none()));
        if inos.is_empty() {
            return Vec::new();
        }
        let look = move |authority: &dyn Authority| {
            let resources: Vec<_> = inos.iter().map(|ino| ResourceId::File(volume, ino.0)).collect();
            let holders = authority.holders(&resources).into_iter();
            let of_client = inos.into_iter().zip(holders).filter_map(|(ino, holder)| {
                Some((ino, holder.filter(|holder| holder.client == client)?.epoch))
            });
            Ok(of_client.collect())
        };
        self.with_authority(look).await.unwrap_or_default()
    }

    /// The coordinator names this node as the server of files that it could not take up: as long as it does, nobody can
    /// use them. They go back to the coordinator's node.
    async fn return_untaken(&self, untaken: Vec<(Ino, Epoch)>) {
        let mut inos: Vec<Ino> = untaken.into_iter().map(|(ino, _)| ino).collect();
        if inos.is_empty() {
            return;
        }
        inos.sort_unstable();
        if let Err(error) = self.release(inos.clone()).await {
            tracing::warn!(%error, "files that were not taken up could not be given back");
        }
        // Where the coordinator does not name this node any more, nothing was asked of it.
        let files: Vec<Arc<File>> = inos.iter().filter_map(|ino| self.files.get(*ino)).collect();
        let mut passages = Vec::with_capacity(files.len());
        for file in &files {
            passages.push(file.passage.take().await);
        }
        self.drop_unclaimed(inos).await;
    }

    /// A server that was lost may have given this client the ownership of files, of which the coordinator knows nothing:
    /// it would be in the way of whoever serves them now.
    pub(super) async fn drop_unclaimed(&self, inos: Vec<Ino>) {
        let client = self.client;
        let unclaimed = self.unclaimed(inos).await;
        if unclaimed.is_empty() {
            return;
        }
        let held = unclaimed.into_iter().map(|(ino, epoch)| (self.resource(ino), epoch)).collect();
        if let Err(error) = self.with_authority(move |authority| authority.release_all(held, client)).await {
            tracing::warn!(%error, "ownerships that nobody uses could not be released");
        }
    }

    /// A file that nobody owns has come back to this node, which is the coordinator's.
    pub(super) async fn serve_again(self: &Arc<Self>, file: &Arc<File>) -> Result<(), Refusal> {
        let _passage = file.passage.take().await;
        let _turn = file.turn.take().await;
        if !file.is_elsewhere() {
            return Ok(());
        }
        let line = self.channel.number();
        let open = Operation::Open { ino: file.ino, write: file.declared.load(SeqCst) };
        match self.channel.call(open).await? {
            Answer::Opened { attr, term, slots } if term.client == self.client => {
                let _stop = file.gate.stop();
                file.gate.drain().await;
                let _giving = self.givings.enter().await;
                if self.channel.number() != line || self.resigns.load(SeqCst) {
                    return Err(Refusal::Stale("another mount coordinates the volume".to_owned()));
                }
                self.take_slots(file, &slots);
                let here = self.service_here(file.ino, &term);
                self.count_lost(file, &term);
                file.serve(&attr, Some(here));
                Ok(())
            }
            _ => Err(Refusal::Stale(format!("{} is served by another node", file.ino))),
        }
    }

    /// P9: what was written at a server that was lost before it handed over is told by the next sync of each handle.
    fn count_lost(&self, file: &File, term: &Term) {
        // A sync that is on its way has taken it, and looks here.
        file.since.store(term.since, SeqCst);
        let unsynced = file.unsynced.lock().take();
        if self.rules.keeps(Rule::P9) && unsynced.is_some_and(|unsynced| unsynced < term.since) {
            file.failures.fetch_add(1, SeqCst);
        }
    }

    /// A large file that is open for writing here: this node tries, once, to own it.
    pub(super) fn maybe_acquire(self: &Arc<Self>, file: &Arc<File>, size: u64) {
        let wants = self.options.cluster
            && size >= ACQUIRE_MIN
            && file.is_elsewhere()
            && file.writers.load(SeqCst) > 0
            && !file.tried.swap(true, SeqCst);
        if !wants {
            return;
        }
        let (core, file) = (Arc::clone(self), Arc::clone(file));
        run(async move {
            let claim = Claim { automatic: true, pinned: false, offer: None };
            match core.acquire(std::slice::from_ref(&file), claim).await {
                Ok(()) => tracing::debug!(ino = file.ino.0, "this node owns the file now"),
                Err(refusal) => tracing::debug!(ino = file.ino.0, %refusal, "the file stays where it is"),
            }
        });
    }
}
