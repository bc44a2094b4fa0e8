//! Opening a volume for writing (V1, V2), and closing it.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockd::clock::BootTime;
use lockd::ids::{ClientId, Epoch, SessionId};
use lockd::lease::Lease;
use lockd::rules::{Rule, Rules};
use redirector::lun::{Lun, Proof};

use super::area::{Area, AreaBackend, AreaError, Surroundings};
use super::blocks::write_block;
use super::claim::{Claim, ClaimState, ClusterMark};
use super::contest::{Contest, ContestError, Won, is_closed, write_claim};
use super::copy::{Kept, Move, Reader, copy};
use super::drained::{MARGIN, await_drained};
use super::format::data_region;
use super::heart::{Chest, Heart};
use super::journal::{self, Found, Journal};
use super::label::Label;
use super::layout;
use super::map::ChunkUse;
pub use super::options::{OpenOptions, Rebuild, Replay, Salvage, Unapplied};
use super::superblock::{Side, Superblock};
use super::survey::{Survey, open_claims, read_claims};
use super::tree::Row;
use super::view::{ViewOptions, salvage};
use crate::types::{BLOCK, LunBlock, Run};

/// Why a volume could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The label is damaged, its copy is not.
    #[error(
        "the label in block 0 is damaged: {0}; its copy in block 255 is whole: `csvfs fsck --repair` writes it back \
         (a mount with -o ro reads the volume meanwhile)"
    )]
    LabelDamaged(super::frame::Damage),
    /// What the journal has could not be applied.
    #[error(
        "the last changes, in the redo journal, cannot be applied to the metadata store: {0}; run csvfs fsck"
    )]
    Journal(String),
    /// A new store could not be made from the old one.
    #[error("a new metadata store could not be made from what is left: {0}")]
    Rebuild(String),
    /// It is not a volume, it is damaged, or somebody else has it.
    #[error(transparent)]
    Contest(#[from] ContestError),
    /// Features that forbid writing.
    #[error(
        "the volume uses features {0:#x} that this program can only read: mount it read-only, or use a newer csvfs"
    )]
    ReadOnlyFeatures(u64),
    /// There is no room for a copy.
    #[error(
        "the store must be copied before it is opened (an earlier writer did not close it), which takes {needed} \
         chunks, but only {free} are reserved; `csvfs fsck --repair` can give it more"
    )]
    NoReserve {
        /// How many chunks the store occupies.
        needed: usize,
        /// How many are reserved.
        free: usize,
    },
    /// The chunk map knows of no store.
    #[error(
        "the chunk map says that the metadata store is empty: the volume was never whole; run csvfs fsck"
    )]
    NoStore,
    /// The LUN failed.
    #[error("cannot {what} (errno {errno})")]
    Lun {
        /// What was tried.
        what: &'static str,
        /// What the LUN said.
        errno: i32,
    },
    /// The area failed.
    #[error(transparent)]
    Area(#[from] AreaError),
    /// The store is damaged or could not be read.
    #[error("the metadata store cannot be opened: {0}; run csvfs fsck")]
    Store(#[source] Box<redb::Error>),
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

pub(super) fn store_error(error: impl Into<redb::Error>) -> OpenError {
    OpenError::Store(Box::new(error.into()))
}

/// How a store was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opened {
    /// Where it was; why that was safe.
    InPlace(String),
    /// After a copy to a fresh area.
    Copied {
        /// How much was copied.
        bytes: u64,
        /// How long copying took.
        copying: Duration,
        /// How long the check of all checksums took after that.
        checking: Duration,
    },
    /// With a new store, made from what was left of a damaged one.
    Rebuilt,
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InPlace(why) => write!(f, "in place: {why}"),
            Self::Rebuilt => f.write_str("with a new store, made from what was left of a damaged one"),
            Self::Copied { bytes, copying, checking } => write!(
                f,
                "by copy of {} MiB in {:.2} s, checked in {:.2} s",
                bytes >> 20,
                copying.as_secs_f64(),
                checking.as_secs_f64()
            ),
        }
    }
}

/// A volume that is open for writing.
#[derive(Debug)]
pub struct OpenVolume {
    /// What it is.
    pub label: Label,
    /// The epoch of this opening.
    pub epoch: Epoch,
    /// That of the last one by a writer.
    pub last_epoch: Epoch,
    /// The session of a mount without a cluster: the epoch's number.
    pub session: SessionId,
    /// The client that has it open.
    pub client: ClientId,
    /// The size of the volume in bytes.
    pub size: u64,
    /// The metadata store.
    pub database: redb::Database,
    /// Where the store lies.
    pub area: Arc<Area>,
    /// Where changes are made durable between two commits of the store, if the volume has room for that.
    pub journal: Option<Journal>,
    /// The lease that every writer to the LUN looks at (L3).
    pub lease: Arc<Lease>,
    /// How it was opened.
    pub opened: Opened,
    /// Whether every checksum of the store was checked when it was opened. (Pages are checked when they are read, in
    /// any case.)
    pub checked: bool,
    /// How long others were given to show themselves (V1).
    pub waited: Duration,
    /// How long the rest of the opening took.
    pub took: Duration,
    /// What was wrong, but could be coped with.
    pub warnings: Vec<String>,
    /// The claim and the heartbeat: as long as it lives, the volume is held.
    pub hold: Hold,
}

/// The claim on a volume: held until it is closed. Dropped without that, the volume is left as a crash would leave it.
#[derive(Debug)]
pub struct Hold {
    around: Surroundings,
    heart: Arc<Heart>,
    area: Arc<Area>,
    superblock: Superblock,
    keeps_lease: bool,
    beat: Option<JoinHandle<()>>,
    settle: Option<JoinHandle<()>>,
}

impl OpenVolume {
    /// Closes the volume: the next opening needs no wait and no copy.
    pub fn close(self) -> Result<(), OpenError> {
        self.hold.close(self.database)
    }
}

impl Hold {
    /// Closes the volume: first the store, then the superblock, then the claim. Every other write to the LUN must be
    /// done by then.
    pub fn close(mut self, database: redb::Database) -> Result<(), OpenError> {
        database.close().map_err(store_error)?;
        self.heart.settle_no_more();
        if let Some(settle) = self.settle.take() {
            let _ = settle.join();
        }
        self.area.sync()?;
        self.area.end(AreaError::Closed);
        // V2: the next opening uses the store, and what was freed, as they are. Of what was lost on its way and sent again
        // an earlier copy may still land.
        let around = &self.around;
        let limit = around.hold.max(around.label.quiesce) + MARGIN;
        await_drained(around.lun.as_ref(), around.clock.as_ref(), around.rules, limit);
        // The heart goes on until the last write has started.
        self.around.await_lease()?;
        let closed = Superblock { clean: true, written: self.around.clock.wall(), ..self.superblock.clone() };
        write_superblock(&self.around, &closed)?;
        // P9: what is kept until a flush is written again when the target is restarted, over what the next one has written by
        // then: nothing of the store may be kept any more. (Claims are this mount's own, and are not written again.)
        let errno = |errno| OpenError::Lun { what: "flush what was closed", errno };
        redirector::blocking::flush(self.around.lun.as_ref()).map_err(errno)?;
        self.stop();
        let errno = |errno| OpenError::Lun { what: "close the claim", errno };
        self.heart.close().map_err(errno)
    }

    /// Why this session is over, if another one has taken the volume.
    #[must_use]
    pub fn fenced(&self) -> Option<String> {
        self.heart.fenced()
    }

    /// The claim as last written.
    #[must_use]
    pub fn claim(&self) -> Claim {
        self.heart.claim()
    }

    fn stop(&mut self) {
        self.heart.stop();
        for thread in [self.settle.take(), self.beat.take()].into_iter().flatten() {
            let _ = thread.join();
        }
    }

    /// One beat, out of turn.
    #[cfg(test)]
    pub(super) fn beat(&self) -> Result<(), super::heart::BeatError> {
        self.heart.round()
    }

    /// Waits until the chunks of earlier areas are reserve again, if nothing is in the way of that.
    #[cfg(test)]
    pub(super) fn settled(&mut self) {
        self.settle.take().into_iter().for_each(|thread| thread.join().unwrap());
    }

    pub(super) fn around(&self) -> &Surroundings {
        &self.around
    }

    pub(super) fn area(&self) -> &Area {
        &self.area
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.area.end(AreaError::Closed);
        self.stop();
        if self.keeps_lease {
            self.around.lease.end();
        }
    }
}

fn write_superblock(around: &Surroundings, superblock: &Superblock) -> Result<(), OpenError> {
    let block = layout::SLOTS_AT + Superblock::slot(superblock.epoch) as u64;
    write_block(around.lun.as_ref(), &around.pool, block, &superblock.encode(around.label.uuid))
        .map_err(|errno| OpenError::Lun { what: "write the superblock", errno })
}

/// Why every write of earlier incarnations is known to be done; nothing if it is not known. Refuses when one of them is
/// alive, however still its claim is.
fn all_done(
    lun: &dyn Lun,
    won: &Won,
    cluster: Option<&ClusterMark>,
    rules: Rules,
) -> Result<Option<String>, ContestError> {
    if let Some(how) = &won.alone {
        return Ok(Some(how.clone()));
    }
    let last = &won.survey.superblock;
    let mut writers: Vec<ClientId> = Vec::new();
    if !is_closed(&won.survey) {
        writers.push(last.client);
    }
    // Whoever wrote in an earlier epoch than the superblock's has been dealt with when that was opened.
    let later = won.still.iter().filter(|(_, claim)| claim.epoch >= last.epoch);
    writers
        .extend(later.filter(|(_, claim)| claim.state == ClaimState::Writing).map(|(_, claim)| claim.client));
    // A damaged claim may be that of another writer.
    let damaged = won
        .survey
        .claims
        .iter()
        .any(|claim| claim.as_ref().is_err_and(|damage| *damage != super::frame::Damage::Blank));
    // Where every block was taken, a claim was given up for the own one: that of another writer, perhaps.
    let crowded = won.survey.open_claims().count() >= layout::CLAIMS;
    let mut known = !crowded && (!damaged || is_closed(&won.survey));
    let mut reasons = Vec::new();
    let of_cluster = |client: ClientId| {
        won.survey.claims.iter().flatten().any(|claim| claim.client == client && claim.is_of(cluster))
    };
    for client in writers {
        match lun.prove_ended(client) {
            Proof::Ended(how) => reasons.push(how),
            // The cluster has given its role away: it starts nothing more, and what it sent may still land.
            Proof::Alive(_) if of_cluster(client) => known = false,
            Proof::Alive(who) => return Err(ContestError::InUse(who)),
            Proof::Unprovable => known = false,
        }
    }
    if !known && rules.keeps(Rule::V2) {
        return Ok(None);
    }
    reasons.dedup();
    let closed = || "it was closed by its last writer".to_owned();
    Ok(Some(if reasons.is_empty() { closed() } else { reasons.join("; ") }))
}

/// Opens the volume on `lun` for writing.
pub fn open(lun: Arc<dyn Lun>, options: OpenOptions) -> Result<OpenVolume, OpenError> {
    let contest = Contest {
        lun: Arc::clone(&lun),
        pool: options.pool.clone(),
        clock: Arc::clone(&options.clock),
        rules: options.rules,
        who: options.who.clone(),
        window: options.window,
    };
    let asked = options.clock.boot();
    let alone = contest.prove_alone()?;
    let survey = Survey::read(lun.as_ref()).map_err(ContestError::from)?;
    let unwritable = survey.features().unwritable();
    if unwritable != 0 {
        return Err(OpenError::ReadOnlyFeatures(unwritable));
    }
    // redb would make an empty store there.
    if survey.store_len() == 0 {
        return Err(OpenError::NoStore);
    }
    if let Some(damage) = survey.label_damage().filter(|_| !options.label_from_copy) {
        return Err(OpenError::LabelDamaged(damage.clone()));
    }
    let won = contest.win(&survey, alone)?;
    let begun = options.clock.boot();
    let opening = match all_done(lun.as_ref(), &won, options.who.cluster.as_ref(), options.rules) {
        Ok(reason) => Opening::new(lun, options, &won, [asked, begun], reason),
        Err(error) => {
            contest.give_up(&won.survey.label, won.block, won.claim.clone());
            return Err(error.into());
        }
    };
    let mut hold = opening.hold(&won)?;
    match opening.proceed(&won, &contest, &hold) {
        Ok((database, opened, checked)) => opening.finish(won, hold, database, opened, checked),
        Err(error) => {
            hold.stop();
            // What was sent has ended, unless its outcome is unknown: only then may the claim not be closed.
            let unknown =
                matches!(hold.area.broken(), Some(AreaError::Unknown { .. } | AreaError::LeaseEnded));
            if !unknown && hold.heart.fenced().is_none() {
                contest.give_up(&won.survey.label, won.block, hold.heart.claim());
            }
            Err(error)
        }
    }
}

/// An opening that has won its contest.
struct Opening {
    around: Surroundings,
    /// Why the store can be opened in place, if it can (V2).
    in_place: Option<String>,
    /// Whether every write of earlier incarnations is known to be done.
    proved: bool,
    options: OpenOptions,
    keeps_lease: bool,
    /// How long the contest took.
    waited: Duration,
    /// When it was won.
    begun: BootTime,
    quiesce: Duration,
}

impl Opening {
    fn new(
        lun: Arc<dyn Lun>,
        options: OpenOptions,
        won: &Won,
        [asked, begun]: [BootTime; 2],
        in_place: Option<String>,
    ) -> Self {
        let keeps_lease = options.lease.is_none();
        let lease = options.lease.clone().unwrap_or_else(|| Arc::new(Lease::lapsed()));
        if keeps_lease && won.alone.is_some() {
            lease.extend(BootTime(u64::MAX));
        }
        let label = won.survey.label.clone();
        let quiesce = options.quiesce.unwrap_or(label.quiesce);
        let (clock, rules, pool) = (Arc::clone(&options.clock), options.rules, options.pool.clone());
        let around = Surroundings { lun, pool, label, lease, clock, rules, hold: options.hold };
        let proved = in_place.is_some();
        let in_place = in_place.filter(|_| options.rebuild.is_none());
        Self { around, in_place, proved, options, keeps_lease, waited: begun.since(asked), begun, quiesce }
    }

    /// The area to open, its chunk map not changed yet, and the heart that keeps the claim on it.
    fn hold(&self, won: &Won) -> Result<Hold, OpenError> {
        let survey = &won.survey;
        let current = survey.superblock.side;
        let side = if self.in_place.is_some() { current } else { current.other() };
        let mut map = survey.map.clone();
        map.epoch = won.claim.epoch;
        map.sealed = survey.superblock.clone();
        // L3: what a path holds back is sent under the lease too; the claims are what keeps it alive.
        let claims = layout::byte(layout::CLAIMS_AT)..layout::byte(layout::CLAIMS_AT + layout::CLAIMS as u64);
        self.around.lun.under(Arc::clone(&self.around.lease), claims);
        let area = Arc::new(Area::new(self.around.clone(), map, side));
        let fenced = Arc::downgrade(&area);
        let heart = Arc::new(Heart::new(Chest {
            lun: Arc::clone(&self.around.lun),
            pool: self.around.pool.clone(),
            label: self.around.label.clone(),
            block: won.block,
            claim: won.claim.clone(),
            beaten: won.beaten,
            clock: Arc::clone(&self.around.clock),
            rules: self.around.rules,
            lease: Arc::clone(&self.around.lease),
            keeps_lease: self.keeps_lease,
            on_fenced: Box::new(move |_| {
                if let Some(area) = fenced.upgrade() {
                    area.end(AreaError::LeaseEnded);
                }
            }),
        }));
        let superblock = Superblock {
            epoch: won.claim.epoch,
            side,
            clean: false,
            features: survey.superblock.features.with_journal(),
            size: survey.superblock.size,
            written: self.around.clock.wall(),
            client: won.claim.client,
        };
        let beat = Some(heart.start().map_err(OpenError::Thread)?);
        let (around, keeps_lease) = (self.around.clone(), self.keeps_lease);
        Ok(Hold { around, heart, area, superblock, keeps_lease, beat, settle: None })
    }

    fn proceed(
        &self,
        won: &Won,
        contest: &Contest,
        hold: &Hold,
    ) -> Result<(redb::Database, Opened, bool), OpenError> {
        if let Some(why) = &self.in_place {
            // The journal of a volume that has none comes from what the store may grow into.
            let size = self.around.label.chunk_size;
            let keep = hold.area.spare_wanted() / 2;
            hold.area.change_map(|map| {
                let from: Vec<u32> = map.spare().iter().rev().copied().collect();
                let from = &from[..from.len().saturating_sub(keep)];
                journal::allot(map, hold.area.side(), size, from);
            })?;
            self.take_over(contest, won, hold)?;
            let check = hold.area.occupied() <= self.options.check_max;
            if check {
                hold.area.keep(self.load(hold)?);
            }
            let database = self.database(&hold.area, check)?;
            if check {
                hold.area.keep(Kept::new());
            }
            let found = Found::of_area(&hold.area);
            self.options.replay.apply(&database, &found, Some(won.claim.epoch))?;
            return Ok((database, Opened::InPlace(why.clone()), check));
        }
        let (database, opened) = match &self.options.rebuild {
            Some(rebuild) => (self.rebuild_store(won, hold, rebuild)?, Opened::Rebuilt),
            None => self.copy_store(won, hold)?,
        };
        self.take_over(contest, won, hold)?;
        Ok((database, opened, true))
    }

    /// Makes a new store in the other area, from what can be read of the one in force.
    fn rebuild_store(&self, won: &Won, hold: &Hold, rebuild: &Rebuild) -> Result<redb::Database, OpenError> {
        let side = hold.area.side();
        if !self.proved {
            // Reserve chunks are fresh, but the new store may need more than those.
            let due = self.begun.after(self.quiesce);
            self.around.clock.sleep(due.since(self.around.clock.boot()));
        }
        // All that is not in force may be used. Durable before the first write there.
        hold.area.change_map(|map| {
            let left = map.all_of(side);
            let reserve: Vec<u32> = map.reserve().iter().copied().collect();
            let free = left.into_iter().chain(map.spent()).chain(reserve);
            free.for_each(|chunk| map.assign(chunk, ChunkUse::Spare));
            map.lens[side.index()] = 0;
        })?;
        let database = self.database(&hold.area, false)?;
        let first_data = data_region(&self.around.label).first().map_or(0, |run| run.start.0);
        let blocks = self.around.label.chunk_size / BLOCK;
        let chunks = (0..won.survey.map.chunks()).filter_map(|chunk| u32::try_from(chunk).ok());
        let given: Vec<Run> = chunks
            .filter(|chunk| won.survey.map.usage(*chunk).is_some_and(|usage| usage != ChunkUse::Data))
            .map(|chunk| Run { start: LunBlock(u64::from(chunk) * blocks), len: blocks })
            .filter(|run| run.start.0 >= first_data)
            .collect();
        let options = ViewOptions { pool: self.around.pool.clone(), ..ViewOptions::default() };
        let mut read =
            |on_row: &mut dyn FnMut(Row<'_>)| salvage(&self.around.lun, &won.survey, &options, on_row);
        (rebuild.0)(&database, &given, &mut read).map_err(OpenError::Rebuild)?;
        let none = Found::none(self.around.lun.as_ref(), &self.around.pool);
        self.options.replay.apply(&database, &none, Some(won.claim.epoch))?;
        // What the new store does not need is kept for its copy.
        let spare = hold.area.spare_wanted();
        hold.area.change_map(|map| {
            let more: Vec<u32> = map.spare().iter().copied().skip(spare).collect();
            journal::allot(map, side, self.around.label.chunk_size, &more);
            let more: Vec<u32> = map.spare().iter().copied().skip(spare).collect();
            more.into_iter().for_each(|chunk| map.assign(chunk, ChunkUse::Reserve));
        })?;
        Ok(database)
    }

    /// Reads the store into memory with large requests, so that its check need not read it page by page.
    fn load(&self, hold: &Hold) -> Result<Kept, OpenError> {
        let (around, map, side) = (&self.around, hold.area.map(), hold.area.side());
        let len = map.lens[side.index()];
        let reader = Reader {
            lun: around.lun.as_ref(),
            pool: &around.pool,
            chunk_size: around.label.chunk_size,
            request_max: around.request_max(),
        };
        let in_use = map.area(side).filter(|(index, _)| u64::from(*index) * around.label.chunk_size < len);
        let chunks: Vec<Move> = in_use.map(|(index, from)| Move { index, from, to: from }).collect();
        Ok(reader.keep(&chunks, len)?)
    }

    /// Makes the new epoch's superblock the one in force.
    fn take_over(&self, contest: &Contest, won: &Won, hold: &Hold) -> Result<(), OpenError> {
        self.around.await_lease()?;
        write_superblock(&self.around, &hold.superblock)?;
        // Whoever chose the same claim block at the same time is seen here, by one of the two (V1).
        let now = Survey::read(self.around.lun.as_ref()).map_err(ContestError::from)?;
        let own = |claim: &Claim| claim.client == won.claim.client;
        let mine = now.claims[won.block].as_ref().is_ok_and(own);
        if self.around.rules.keeps(Rule::V1) && (!mine || now.superblock.client != contest.who.client) {
            return Err(ContestError::Overtaken(now.superblock.epoch).into());
        }
        let (sealed, side) = (hold.superblock.clone(), hold.superblock.side);
        hold.area.change_map(|map| {
            map.sealed = sealed;
            map.all_of(side.other()).into_iter().for_each(|chunk| map.assign(chunk, ChunkUse::Spent));
            map.lens[side.other().index()] = 0;
        })?;
        Ok(())
    }

    /// Copies the store to the other area, checks it, and applies what its journal has.
    fn copy_store(&self, won: &Won, hold: &Hold) -> Result<(redb::Database, Opened), OpenError> {
        let started = Instant::now();
        let (from, size) = (won.survey.superblock.side, self.around.label.chunk_size);
        let to = from.other();
        let (moves, len) = self.plan(from, hold)?;
        let plan = moves.clone();
        // Durable before the first write of the copy: should this opening fail, the next one must not take these
        // chunks for fresh.
        hold.area.change_map(move |map| {
            map.all_of(to).into_iter().for_each(|chunk| map.assign(chunk, ChunkUse::Spent));
            for chunk in plan {
                map.assign(chunk.to, ChunkUse::Store(to, chunk.index));
            }
            map.lens[to.index()] = len;
            let rest: Vec<u32> = map.reserve().iter().copied().collect();
            journal::allot(map, to, size, &rest);
        })?;
        let copied = copy(&self.around, &moves, len, self.options.copy_memory_max)?;
        let (copying, checked) = (started.elapsed(), Instant::now());
        hold.area.keep(copied.kept);
        let database = self.database(&hold.area, true)?;
        let found = Found::of(&won.survey, self.around.lun.as_ref(), &self.around.pool);
        self.options.replay.apply(&database, &found, Some(won.claim.epoch))?;
        // So that a crash before the first commit needs no repair.
        let mut transaction = database.begin_write().map_err(store_error)?;
        transaction.set_quick_repair(true);
        transaction.commit().map_err(store_error)?;
        hold.area.keep(Kept::new());
        let opened = Opened::Copied { bytes: copied.bytes, copying, checking: checked.elapsed() };
        Ok((database, opened))
    }

    /// Which chunks go where.
    fn plan(&self, from: Side, hold: &Hold) -> Result<(Vec<Move>, u64), OpenError> {
        let map = hold.area.map();
        let len = map.lens[from.index()];
        let in_use = |index: u32| u64::from(index) * self.around.label.chunk_size < len;
        let used: Vec<(u32, u32)> = map.area(from).filter(|(index, _)| in_use(*index)).collect();
        let mut free: Vec<u32> = map.reserve().iter().copied().collect();
        if free.len() < used.len() {
            // What earlier areas and copies left is fresh again when nothing sent to it can be under way.
            let due = self.begun.after(self.quiesce);
            tracing::info!("waiting until writes of earlier writers cannot be under way any more");
            self.around.clock.sleep(due.since(self.around.clock.boot()));
            let left = map.all_of(from.other());
            free.extend(map.spent().into_iter().chain(left));
            free.extend(map.spare());
        }
        if free.len() < used.len() {
            return Err(OpenError::NoReserve { needed: used.len(), free: free.len() });
        }
        let moves = used.into_iter().zip(free).map(|((index, from), to)| Move { index, from, to });
        Ok((moves.collect(), len))
    }

    fn database(&self, area: &Arc<Area>, check: bool) -> Result<redb::Database, OpenError> {
        redb::Builder::new()
            .set_cache_size(self.options.cache_bytes)
            .set_check_integrity_on_open(check)
            .create_with_backend(AreaBackend(Arc::clone(area)))
            .map_err(store_error)
    }

    fn finish(
        self,
        won: Won,
        mut hold: Hold,
        database: redb::Database,
        opened: Opened,
        checked: bool,
    ) -> Result<OpenVolume, OpenError> {
        if !won.survey.has_label_copy {
            self.copy_label();
        }
        hold.settle = Some(self.settle(&won, &hold)?);
        let (who, living) = (&self.options.who, &self.options.living_nodes);
        let findings = won.survey.findings.iter();
        let findings = findings.filter(|finding| !who.knows_alive(finding, living));
        let warnings: Vec<String> = findings.map(ToString::to_string).collect();
        for warning in &warnings {
            tracing::warn!(volume = %self.around.label.uuid, "{warning}");
        }
        let has_journal = self.options.replay.is_some();
        let journal = if has_journal { Journal::of(&hold.area, won.claim.epoch) } else { None };
        let volume = OpenVolume {
            label: self.around.label.clone(),
            epoch: won.claim.epoch,
            last_epoch: won.survey.superblock.epoch,
            session: SessionId(won.claim.epoch.0),
            client: won.claim.client,
            size: hold.superblock.size,
            database,
            area: Arc::clone(&hold.area),
            journal,
            lease: Arc::clone(&self.around.lease),
            opened,
            checked,
            waited: self.waited,
            took: self.around.clock.boot().since(self.begun),
            warnings,
            hold,
        };
        tracing::info!(volume = %volume.label.uuid, epoch = %volume.epoch, opened = %volume.opened, "opened");
        Ok(volume)
    }

    /// Gives the label of a volume that was made without one a copy.
    fn copy_label(&self) {
        let (lun, label) = (self.around.lun.as_ref(), self.around.label.encode());
        let written = self.around.await_lease().map_err(|error| error.errno());
        let written =
            written.and_then(|()| write_block(lun, &self.around.pool, layout::LABEL_COPY_AT, &label));
        if let Err(errno) = written {
            tracing::warn!(errno, "the label has no copy, and none could be written");
        }
    }

    /// When no write of earlier incarnations can be under way any more: makes the chunks of earlier areas reserve, and
    /// closes the claims of the dead.
    fn settle(&self, won: &Won, hold: &Hold) -> Result<JoinHandle<()>, OpenError> {
        let (heart, area, around) = (Arc::clone(&hold.heart), Arc::clone(&hold.area), self.around.clone());
        let dead = won.still.clone();
        // Opened in place means that the last writer's requests are proved to be over; those of earlier ones are not.
        let last = won.survey.superblock.epoch;
        let proved = self.proved && won.still.iter().all(|(_, claim)| claim.epoch >= last);
        let due = if proved { self.begun } else { self.begun.after(self.quiesce) };
        let work = move || {
            if !heart.sleep_until(due) {
                return;
            }
            let changed = if area.map().spent().is_empty() {
                Ok(())
            } else {
                area.change_map(|map| {
                    map.spent().into_iter().for_each(|chunk| map.assign(chunk, ChunkUse::Reserve));
                })
            };
            if let Err(error) = changed {
                tracing::warn!(%error, "the chunks of an earlier area could not be made reserve");
                return;
            }
            close_dead(&around, &area, &dead);
        };
        let builder = std::thread::Builder::new().name("csvfs-settle".to_owned());
        builder.spawn(work).map_err(OpenError::Thread)
    }
}

/// Closes claims that have not moved since they were watched.
fn close_dead(around: &Surroundings, area: &Area, dead: &[(usize, Claim)]) {
    if dead.is_empty() {
        return;
    }
    let Ok(claims) = read_claims(around.lun.as_ref(), &around.pool, &around.label) else { return };
    for (block, claim) in open_claims(&claims) {
        if !dead.iter().any(|(at, seen)| *at == block && seen == claim) || area.await_lease().is_err() {
            continue;
        }
        let closed = Claim { state: ClaimState::Closed, ..claim.clone() };
        if let Err(errno) = write_claim(around.lun.as_ref(), &around.pool, &around.label, block, &closed) {
            tracing::warn!(errno, %claim, "the claim of a dead writer could not be closed");
        }
    }
}
