//! Opening and closing: the coordinator knows which inodes this node holds open, the authority which files it owns.
//!
//! A file whose last handle is closed stays open towards the coordinator for a short while: it is committed together
//! with others, and opened again without a message. One that has lost its last name is closed at once, and what it
//! had not committed is dropped.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use lockd::authority::{Authority, AuthorityError};
use lockd::ids::{Epoch, ResourceId};

use super::Core;
use super::channel::unexpected;
use super::file::{File, Life, Phase, Service};
use super::gate::Pass;
use super::owner::SetRefusal;
use super::pages::Kept;
use super::task::{Sender, promise, run};
use crate::proto::{Answer, Declared, OpenedFile, Operation, Owned, Term};
use crate::refusal::Refusal;
use crate::service::{HandleId, OpenMode, Opened};
use crate::types::{Attr, FileBlock, Ino, Kind};

/// Files that are kept open without a user at most; more are closed at once.
const IDLE_MAX: u64 = 2048;
/// Inodes that one message opens.
const OPENINGS_MAX: usize = 2500;

/// An inode that has just been made and opened, as the coordinator has answered.
pub(super) struct Made {
    pub(super) attr: Attr,
    /// Who serves it, if that was told.
    pub(super) term: Option<Term>,
    /// Taken before it was asked for, and kept until this node knows it as open.
    pub(super) pass: Pass,
}

/// A handle of a front end.
pub(super) struct Handle {
    pub(super) file: Arc<File>,
    /// Failed write-backs of the file that this handle has been told about.
    pub(super) failures: AtomicU64,
    /// Open for writing.
    pub(super) write: bool,
    number: u64,
    /// What it is to the kernel's page cache.
    pub(super) kept: Kept,
}

fn change(life: &mut Life, phase: Phase) -> Vec<Sender<()>> {
    life.phase = phase;
    std::mem::take(&mut life.waiting)
}

impl Core {
    /// Opens an inode, or joins those who have it open. Ended by [`Core::let_go`].
    pub(super) async fn hold(self: &Arc<Self>, ino: Ino, write: bool) -> Result<Arc<File>, Refusal> {
        self.hold_with(ino, None, write).await.map(|(file, ..)| file)
    }

    /// As [`Core::hold_with`], and tells the coordinator if it is for writing and was not before.
    pub(super) async fn hold_with(
        self: &Arc<Self>,
        ino: Ino,
        made: Option<Made>,
        write: bool,
    ) -> Result<(Arc<File>, Option<Attr>, bool), Refusal> {
        let (file, attr, is_new) = self.hold_any(ino, made, write).await?;
        if self.options.cluster && write && file.is_regular() && !file.declared.load(SeqCst) {
            let open = Operation::Open { ino, write };
            let (opened, pass, _) = self.channel.call_inside(open, &self.openings).await;
            match opened {
                Ok(Answer::Opened { slots, .. }) => {
                    self.take_slots(&file, &slots);
                    file.declared.store(true, SeqCst);
                }
                Ok(Answer::Elsewhere(..)) => file.declared.store(true, SeqCst),
                Ok(other) => {
                    self.let_go(&file);
                    return Err(unexpected(&other));
                }
                Err(error) => {
                    self.let_go(&file);
                    return Err(error);
                }
            }
            drop(pass);
        }
        Ok((file, attr, is_new))
    }

    /// As [`Core::hold`]; tells the attributes, if the coordinator was asked, or has told them with the creation: and whether
    /// they are those.
    async fn hold_any(
        self: &Arc<Self>,
        ino: Ino,
        mut made: Option<Made>,
        write: bool,
    ) -> Result<(Arc<File>, Option<Attr>, bool), Refusal> {
        loop {
            if self.ended.load(SeqCst) {
                return Err(Refusal::Stale("the volume is being unmounted".to_owned()));
            }
            let (file, is_new) = self.files.get_or_insert(ino, || Arc::new(File::new(ino)));
            if is_new {
                let is_new = made.is_some() && self.options.cluster && !self.is_home();
                return self.begin(file, made, write).await.map(|(file, attr)| (file, Some(attr), is_new));
            }
            let waits = {
                let mut life = file.life.lock();
                match life.phase {
                    Phase::Open => {
                        if life.uses == 0 {
                            self.idle.fetch_sub(1, SeqCst);
                        }
                        life.uses += 1;
                        // Whoever has opened a new one already may have changed it.
                        return Ok((Arc::clone(&file), None, false));
                    }
                    Phase::Opening | Phase::Closing => {
                        let (sender, receiver) = promise();
                        life.waiting.push(sender);
                        Some(receiver)
                    }
                    Phase::Gone => None,
                }
            };
            if let Some(waits) = waits {
                // The closing that is awaited may come after the creation that opened it.
                made = None;
                waits.await;
            }
        }
    }

    async fn begin(
        self: &Arc<Self>,
        file: Arc<File>,
        made: Option<Made>,
        write: bool,
    ) -> Result<(Arc<File>, Attr), Refusal> {
        let recalls = file.recalls.load(SeqCst);
        // Under the pass: what is open, and who serves it, is noted before anybody lists it.
        let (begun, _pass) = self.begin_service(&file, made, write).await;
        self.begun(&file, begun, Some(recalls)).map(|attr| (file, attr))
    }

    /// The opening of a file that is new here has gone so: those who wait for it are told.
    fn begun(
        &self,
        file: &Arc<File>,
        begun: Result<(Attr, Option<Service>), Refusal>,
        recalls: Option<u64>,
    ) -> Result<Attr, Refusal> {
        let result = begun.map(|(attr, service)| {
            file.begin(&attr, service);
            if let Some(recalls) = recalls {
                self.borrow(file, &attr, recalls);
            }
            attr
        });
        if result.is_err() {
            self.files.remove(file.ino);
        }
        let waiting = {
            let mut life = file.life.lock();
            life.uses = 1;
            change(&mut life, if result.is_ok() { Phase::Open } else { Phase::Gone })
        };
        waiting.into_iter().for_each(|waiter| waiter.send(()));
        result
    }

    /// Opens towards the coordinator, and finds out who serves the file.
    async fn begin_service(
        &self,
        file: &File,
        made: Option<Made>,
        write: bool,
    ) -> (Result<(Attr, Option<Service>), Refusal>, Pass) {
        // A file that has just been made is known to be nobody's only where nobody else could have acquired it.
        let (opened, write, pass) = match made {
            Some(Made { attr, term, pass }) if !self.options.cluster || !self.is_home() => {
                (Ok(OpenedFile { attr, term, slots: Vec::new() }), true, pass)
            }
            made => {
                file.opened.store(made.is_some(), SeqCst);
                drop(made);
                let open = Operation::Open { ino: file.ino, write };
                let (reply, pass, _) = self.channel.call_inside(open, &self.openings).await;
                let opened = reply.and_then(|answer| match answer {
                    Answer::Opened { attr, term, slots } => Ok(OpenedFile { attr, term: Some(term), slots }),
                    Answer::Elsewhere(attr, term) => Ok(OpenedFile { attr, term, slots: Vec::new() }),
                    other => Err(unexpected(&other)),
                });
                (opened, write, pass)
            }
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(refusal) => return (Err(refusal), pass),
        };
        file.opened.store(true, SeqCst);
        file.declared.store(write, SeqCst);
        let attr = opened.attr;
        if attr.kind == Kind::File && !self.options.cluster {
            let owned = self.acquire_alone(file.ino);
            let service = owned.map(|owned| Service::Here { owned, tenure: 0, acquired: true });
            return (service.map(|service| (attr, Some(service))), pass);
        }
        (Ok((attr, self.service_of(file, &opened))), pass)
    }

    /// Who serves a file that has just been opened.
    fn service_of(&self, file: &File, opened: &OpenedFile) -> Option<Service> {
        if opened.attr.kind != Kind::File {
            return None;
        }
        Some(match &opened.term {
            // It resigns: the next coordinator's node serves it.
            Some(term) if term.client == self.client && term.owned.is_none() && self.resigns.load(SeqCst) => {
                Service::There(None)
            }
            Some(term) if term.client == self.client => {
                self.take_slots(file, &opened.slots);
                file.since.store(term.since, SeqCst);
                self.service_here(file.ino, term)
            }
            term => Service::There(*term),
        })
    }

    /// Opens many inodes towards the coordinator, in as few messages as they fit into; `write`: which for writing.
    pub(super) async fn open_set(
        &self,
        inos: &[Ino],
        write: impl Fn(Ino) -> bool,
    ) -> Vec<Result<OpenedFile, Refusal>> {
        let mut opened = Vec::with_capacity(inos.len());
        while opened.len() < inos.len() {
            let part = &inos[opened.len()..inos.len().min(opened.len() + OPENINGS_MAX)];
            let files =
                part.iter().map(|ino| Declared { ino: *ino, write: write(*ino), served: None }).collect();
            let (reply, _pass, _) =
                self.channel.call_inside(Operation::OpenSet { files }, &self.openings).await;
            match reply {
                // Those that did not fit are asked for again.
                Ok(Answer::OpenedSet(replies)) if !replies.is_empty() && replies.len() <= part.len() => {
                    for (ino, reply) in part.iter().zip(&replies) {
                        if let (Some(file), Ok(_)) = (self.files.get(*ino), reply) {
                            file.opened.store(true, SeqCst);
                            file.declared.fetch_or(write(*ino), SeqCst);
                        }
                    }
                    opened.extend(replies);
                }
                other => {
                    let refusal = other.map_or_else(|refusal| refusal, |answer| unexpected(&answer));
                    opened.extend(part.iter().map(|_| Err(refusal.clone())));
                }
            }
        }
        opened
    }

    /// As [`Core::hold`], of many and for writing: all or none. Ended by [`Core::let_go`] of each.
    pub(super) async fn hold_set(self: &Arc<Self>, inos: &[Ino]) -> Result<Vec<Arc<File>>, SetRefusal> {
        if self.ended.load(SeqCst) {
            return Err(Refusal::Stale("the volume is being unmounted".to_owned()).into());
        }
        let new: Vec<Arc<File>> = inos
            .iter()
            .map(|ino| self.files.get_or_insert(*ino, || Arc::new(File::new(*ino))))
            .filter_map(|(file, is_new)| is_new.then_some(file))
            .collect();
        let asked: Vec<Ino> = new.iter().map(|file| file.ino).collect();
        // First the own ones, for which others may be waiting; then what others are opening.
        let opened = self.open_set(&asked, |_| true).await;
        let (mut held, mut refused) = (Vec::with_capacity(inos.len()), None);
        let mut opened_here = HashSet::with_capacity(new.len());
        for (file, opened) in new.into_iter().zip(opened) {
            let begun = opened.map(|opened| {
                file.declared.store(true, SeqCst);
                (opened.attr, self.service_of(&file, &opened))
            });
            match self.begun(&file, begun, None) {
                Ok(_) => {
                    opened_here.insert(file.ino);
                    held.push(file);
                }
                Err(why) => refused = refused.or(Some(SetRefusal { ino: Some(file.ino), why })),
            }
        }
        for ino in inos.iter().filter(|ino| !opened_here.contains(ino)) {
            if refused.is_some() {
                break;
            }
            match self.hold(*ino, true).await {
                Ok(file) => held.push(file),
                Err(why) => refused = Some(SetRefusal { ino: Some(*ino), why }),
            }
        }
        match refused {
            None => Ok(held),
            Some(refusal) => {
                held.iter().for_each(|file| self.let_go(file));
                Err(refusal)
            }
        }
    }

    /// Whether this is the coordinator's node: it serves what nobody owns.
    pub(super) fn is_home(&self) -> bool {
        let role = ResourceId::Coordinator(self.volume);
        self.authority.holder(&role).is_some_and(|holding| holding.client == self.client)
    }

    /// Whether this is the node of the coordinator in this epoch of the role.
    pub(super) fn is_home_of(&self, coordinator: Epoch) -> bool {
        let role = ResourceId::Coordinator(self.volume);
        let holding = self.authority.holder(&role);
        holding.is_some_and(|holding| holding.client == self.client && holding.epoch == coordinator)
    }

    /// The coordinator says that this node serves the file: by its ownership, or in the coordinator's epoch.
    pub(super) fn service_here(&self, ino: Ino, term: &Term) -> Service {
        let epoch = term.owned.unwrap_or_else(|| self.channel.coordinator());
        Service::Here { owned: Owned { ino, epoch }, tenure: term.tenure, acquired: term.owned.is_some() }
    }

    /// Asks the authority. In a cluster that takes a round trip: a thread that may wait does it.
    pub(super) async fn with_authority<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&dyn Authority) -> Result<T, AuthorityError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let busy = |error: AuthorityError| Refusal::Busy(error.to_string());
        if !self.options.cluster {
            return ask(&*self.authority).map_err(busy);
        }
        let (sender, receiver) = promise();
        let authority = Arc::clone(&self.authority);
        self.channel.aside(move || sender.send(ask(&*authority)));
        let dropped = || Refusal::Io("the question to the authority was dropped".to_owned());
        receiver.await.ok_or_else(dropped)?.map_err(busy)
    }

    /// In a mount without a cluster, where the authority is of this process.
    fn acquire_alone(&self, ino: Ino) -> Result<Owned, Refusal> {
        let acquired = self.authority.acquire(&self.resource(ino), self.client);
        let holding = acquired.map_err(|error| Refusal::Busy(error.to_string()))?;
        Ok(Owned { ino, epoch: holding.epoch })
    }

    /// Gives an ownership of this client's own back.
    async fn give_back(&self, file: &File) -> Result<(), Refusal> {
        let Some(epoch) = file.owned_in() else { return Ok(()) };
        let (resource, client) = (self.resource(file.ino), self.client);
        let release = move |authority: &dyn Authority| match authority.release(&resource, client, epoch) {
            Err(error @ (AuthorityError::SessionEnded(_) | AuthorityError::ClientEnded(_))) => Err(error),
            // An earlier try may have succeeded.
            Err(error) => match authority.confirmed_holder(&resource) {
                Some(holding) if holding.client == client => Err(error),
                _ => Ok(()),
            },
            Ok(()) => Ok(()),
        };
        self.with_authority(release).await
    }

    /// A handle is closed.
    pub(super) fn end_handle(self: &Arc<Self>, handle: &Handle) {
        handle.file.leave_pages(handle.number, handle.kept);
        if handle.write {
            handle.file.writers.fetch_sub(1, SeqCst);
        }
        self.let_go(&handle.file);
    }

    /// One user less. After the last the file is closed later, or at once if it has no name.
    pub(super) fn let_go(self: &Arc<Self>, file: &Arc<File>) {
        let is_last = {
            let mut life = file.life.lock();
            life.uses -= 1;
            life.idle_since = self.ticks.load(SeqCst);
            life.uses == 0
        };
        if !is_last {
            return;
        }
        let idle = self.idle.fetch_add(1, SeqCst);
        if idle >= IDLE_MAX || file.nameless.load(SeqCst) {
            let (core, file) = (Arc::clone(self), Arc::clone(file));
            run(async move {
                let _ = core.close(&file, u64::MAX).await;
            });
        }
    }

    /// Closes the files that nobody has used since tick `before`, and waits for it. Whether somebody used another one,
    /// which nobody may use any more by now.
    pub(super) async fn close_idle(self: &Arc<Self>, before: u64) -> bool {
        let (mut closing, mut was_used) = (Vec::new(), false);
        for file in self.files.values() {
            let is_idle = {
                let life = file.life.lock();
                life.phase == Phase::Open && life.uses == 0 && life.idle_since < before
                    // Already on its way out: wait for it as well.
                    || life.phase == Phase::Closing
            };
            if is_idle {
                let (sender, receiver) = promise();
                let core = Arc::clone(self);
                run(async move { sender.send(core.close(&file, before).await) });
                closing.push(receiver);
            } else {
                was_used = true;
            }
        }
        for closed in closing {
            was_used |= !closed.await.unwrap_or(true);
        }
        was_used
    }

    /// Closes the file unless somebody uses it, or has since tick `before`; waits if another closes it. False if it is
    /// used.
    pub(super) async fn close(self: &Arc<Self>, file: &Arc<File>, before: u64) -> bool {
        let waits = {
            let mut life = file.life.lock();
            match life.phase {
                Phase::Open if life.uses == 0 && life.idle_since < before => {
                    life.phase = Phase::Closing;
                    None
                }
                Phase::Closing => {
                    let (sender, receiver) = promise();
                    life.waiting.push(sender);
                    Some(receiver)
                }
                Phase::Open | Phase::Opening => return false,
                Phase::Gone => return true,
            }
        };
        if let Some(waits) = waits {
            waits.await;
            return true;
        }
        self.idle.fetch_sub(1, SeqCst);
        let Some(pass) = self.finish(file).await else { return true };
        file.opened.store(false, SeqCst);
        self.closed.fetch_add(1, SeqCst);
        // Out of the table first: whoever sees `Gone` finds or makes another.
        self.files.remove(file.ino);
        drop(pass);
        let waiting = change(&mut file.life.lock(), Phase::Gone);
        waiting.into_iter().for_each(|waiter| waiter.send(()));
        true
    }

    /// The last steps of an owner. The passage under which the file is closed; if its data could not be committed, or it could
    /// not be given back, it stays.
    async fn finish(self: &Arc<Self>, file: &Arc<File>) -> Option<Arc<Pass>> {
        // Other nodes' requests end before: they pass the gate, too.
        let _guests = file.guests.stop();
        file.guests.drain().await;
        let turn = file.turn.take().await;
        let _stop = file.gate.stop();
        file.gate.drain().await;
        let is_here = file.tenure().is_some();
        if is_here {
            // In a cluster other nodes may have it open, and go on with what they have written here.
            let alone = !self.options.cluster && file.nameless.load(SeqCst);
            let drops = alone && self.has_no_name(file.ino).await;
            if !drops && let Err(error) = self.commit_now(file, &turn).await {
                tracing::error!(ino = file.ino.0, %error, "a closed file could not be committed; it is kept and tried again");
                self.keep(file);
                return None;
            }
            // P7: the coordinator may give the blocks of a nameless file to another at once.
            self.media.wait_for_ghosts(|| file.runs()).await;
            let all = FileBlock(0)..FileBlock(u64::MAX);
            let unused = {
                let mut layout = file.layout.write();
                if drops { layout.cut(&all) } else { layout.cut_fresh(&all) }
            };
            self.put_back(unused, false).await;
        }
        if let Err(error) = self.give_back(file).await {
            // Told that it is closed, the coordinator would serve what this node still owns (invariant 2).
            tracing::warn!(ino = file.ino.0, %error, "a closed file could not be given back; it is kept and tried again");
            self.keep(file);
            return None;
        }
        let slots = if is_here { self.slots_of(file) } else { Vec::new() };
        let (told, pass) = self.tell_closed(file.ino, slots).await;
        if let Err(error) = told {
            tracing::warn!(ino = file.ino.0, %error, "the coordinator could not be told that a file is closed");
        }
        Some(pass)
    }

    /// A file that was to be closed stays as it is.
    fn keep(&self, file: &File) {
        let waiting = {
            let mut life = file.life.lock();
            life.idle_since = self.ticks.load(SeqCst);
            change(&mut life, Phase::Open)
        };
        self.idle.fetch_add(1, SeqCst);
        waiting.into_iter().for_each(|waiter| waiter.send(()));
    }

    /// Asks the coordinator: what this node remembers of names may come from answers in another order.
    async fn has_no_name(&self, ino: Ino) -> bool {
        match self.channel.call(Operation::GetAttr { ino }).await {
            Ok(Answer::Entry(attr)) => attr.nlink == 0,
            Ok(_) => false,
            Err(error) => error == Refusal::NotFound,
        }
    }

    /// A handle for a file that is held.
    pub(super) fn handle(&self, file: &Arc<File>, mode: OpenMode) -> (HandleId, Kept) {
        let write = mode.write;
        if write {
            file.writers.fetch_add(1, SeqCst);
        }
        let number = self.next_handle.fetch_add(1, SeqCst);
        let failures = AtomicU64::new(file.failures.load(SeqCst));
        let may_keep = self.has_page_cache() && file.is_regular();
        let kept = if may_keep { file.enter_pages(number, mode) } else { Kept::Past };
        self.handles
            .insert(number, Arc::new(Handle { file: Arc::clone(file), failures, write, number, kept }));
        (HandleId(number), kept)
    }

    pub(super) fn find(&self, handle: HandleId) -> Result<Arc<Handle>, Refusal> {
        self.handles.get(handle.0).ok_or_else(|| Refusal::Stale(format!("handle {} is not open", handle.0)))
    }

    /// Opens for a front end.
    pub(super) async fn open(
        self: &Arc<Self>,
        ino: Ino,
        made: Option<Made>,
        mode: OpenMode,
    ) -> Result<Opened, Refusal> {
        let (file, asked, is_new) = self.hold_with(ino, made, mode.write || mode.truncate).await?;
        if (mode.write || mode.truncate) && (file.is_sealed() || asked.is_some_and(|attr| attr.sealed)) {
            tracing::warn!(ino = ino.0, pid = mode.pid, "a sealed file is not opened for writing");
            self.let_go(&file);
            return Err(Refusal::NotPermitted);
        }
        match self.opened(&file, asked, is_new, mode).await {
            Ok(attr) => {
                self.borrow_again(&file, &attr).await;
                // Nobody but this node changes the file while it owns it, and what the kernel itself asked for it
                // has done to its own pages; those of a truncation by opening it drops when told. In a cluster others
                // may change it at any time: the kernel keeps pages only where this node sees them do so.
                let alone = !self.options.cluster;
                self.come_to_serve(&file, mode).await;
                let (handle, kept) = self.handle(&file, mode);
                if mode.write {
                    self.maybe_acquire(&file, attr.size);
                }
                Ok(Opened {
                    handle,
                    attr,
                    keep_cache: alone && !mode.truncate,
                    direct: !alone && file.is_regular() && kept != Kept::Pages,
                })
            }
            Err(error) => {
                self.let_go(&file);
                Err(error)
            }
        }
    }

    async fn opened(
        self: &Arc<Self>,
        file: &Arc<File>,
        asked: Option<Attr>,
        is_new: bool,
        mode: OpenMode,
    ) -> Result<Attr, Refusal> {
        if mode.truncate && file.is_regular() {
            return self.set_size(file, 0, mode.clear_set_id).await;
        }
        match asked {
            // Whatever its server does to a new file comes after its creation.
            Some(mut attr) if is_new || !file.is_elsewhere() => {
                file.apply(&mut attr);
                Ok(attr)
            }
            _ => self.attr(Operation::GetAttr { ino: file.ino }).await,
        }
    }
}
