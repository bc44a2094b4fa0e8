//! Mends what a check has found, and checks again.

use redb::{Database, ReadableTable};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::finding::{BlockFault, Count, EntryFault, ExtentFault, Finding, Place};
use super::{FINDINGS_MAX, Findings, OnProgress, check};
use crate::store::cookie::HashKey;
use crate::store::record::{
    ACCESS_ACL, ClientRecord, Counters, DEFAULT_ACL, EntryRecord, ExtentRecord, HeldRecord, InodeRecord,
    MAYBE_SHARED, SharedRecord, XATTRS,
};
use crate::store::{COUNTERS_ROW, Changing, Result, Tables, high, low, pair, xattr_key};
use crate::types::{Extent, FileBlock, Ino, Kind, LunBlock, Run, Timestamp};

/// Checks and mendings at most: a mended fault may bring another to light.
const ROUNDS_MAX: usize = 16;
/// Where inodes go that have lost their name.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// What a repair did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Repair {
    /// What was mended.
    pub mended: Findings,
    /// What is still wrong.
    pub left: Findings,
}

/// Checks and mends until nothing is found or nothing more can be mended. Nobody else may have the volume open.
///
/// # Errors
/// If the database itself cannot be read or written.
pub fn repair(
    database: &Database,
    key: &HashKey,
    region: &[Run],
    now: Timestamp,
    on_progress: OnProgress<'_>,
) -> Result<Repair> {
    let mut repair = Repair::default();
    for round in 0.. {
        repair.left = check(database, key, region, on_progress)?;
        if repair.left.is_clean() || round == ROUNDS_MAX {
            break;
        }
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        let mut mender = Mender::open(Tables::of(&transaction), *key, now)?;
        let mut mended = 0;
        for finding in &repair.left.list {
            if mender.mend(finding)? {
                mended += 1;
                if repair.mended.list.len() < FINDINGS_MAX {
                    repair.mended.list.push(finding.clone());
                } else {
                    repair.mended.more += 1;
                }
            }
        }
        mender.mark_shared()?;
        mender.finish()?;
        drop(mender);
        if mended == 0 {
            transaction.abort()?;
            break;
        }
        transaction.commit()?;
    }
    Ok(repair)
}

/// One round of mending.
struct Mender<'t> {
    tables: Tables<'t>,
    counters: Counters,
    key: HashKey,
    now: Timestamp,
    /// Runs whose extents must be marked as shared.
    shared: Vec<Run>,
}

impl<'t> Mender<'t> {
    fn open(tables: Tables<'t>, key: HashKey, now: Timestamp) -> Result<Self> {
        let counters =
            tables.counters()?.get(COUNTERS_ROW)?.map(|counters| counters.value()).unwrap_or_default();
        Ok(Self { tables, counters, key, now, shared: Vec::new() })
    }

    fn finish(&mut self) -> Result<()> {
        self.tables.counters_mut()?.insert(COUNTERS_ROW, self.counters)?;
        Ok(())
    }

    /// Mends one finding, if it can be.
    fn mend(&mut self, finding: &Finding) -> Result<bool> {
        match finding {
            Finding::UnreadableInode(ino) => {
                self.tables.inodes_mut()?.remove(ino.0)?;
            }
            Finding::NoRoot => self.make_root()?,
            Finding::Links { ino, found, .. } => {
                return self.change(*ino, |record| record.nlink = U32::new(*found));
            }
            Finding::Unreachable(ino) => return self.adopt(*ino),
            Finding::Ring(ino) => return self.open_ring(*ino),
            Finding::NotAnOrphan(ino) => {
                self.tables.orphans_mut()?.remove(ino.0)?;
            }
            Finding::Blocks { ino, found, .. } => {
                return self.change(*ino, |record| record.blocks = U64::new(*found));
            }
            Finding::Entry { parent, cookie, ino, fault, .. } => {
                return self.mend_entry(*parent, *cookie, *ino, *fault);
            }
            Finding::Extent { ino, file, run, fault } => self.mend_extent(*ino, *file, *run, *fault)?,
            Finding::Space { run, fault } => return self.mend_space(*run, *fault),
            Finding::Xattr { ino, name, .. } => {
                self.tables.xattrs_mut()?.remove(xattr_key(ino.0, name).as_slice())?;
            }
            Finding::XattrFlags { ino, flags } => {
                return self.change(*ino, |record| {
                    record.set(ACCESS_ACL | DEFAULT_ACL | XATTRS, false);
                    record.set(*flags, true);
                });
            }
            Finding::UnknownClient(client) => {
                // On record under a session that never was: ended, and its reserve returned, when the volume opens.
                let record = ClientRecord { session: U64::ZERO, flags: U32::ZERO, zero: U32::ZERO };
                self.tables.clients_mut()?.insert(*client, record)?;
            }
            Finding::Number { count, found, .. } => self.set_number(*count, *found),
        }
        Ok(true)
    }

    fn set_number(&mut self, count: Count, found: u64) {
        let counters = &mut self.counters;
        let counter = match count {
            Count::NextIno => &mut counters.next_ino,
            Count::Inodes => &mut counters.inodes,
            Count::Orphans => &mut counters.orphans,
            Count::Total => &mut counters.total,
            Count::Blocks(Place::Free) => &mut counters.free,
            Count::Blocks(Place::Reserve) => &mut counters.reserved,
            Count::Blocks(Place::Pending) => &mut counters.pending,
            Count::Blocks(Place::Quarantine) => &mut counters.quarantined,
            Count::Blocks(Place::Metadata) => &mut counters.metadata,
        };
        counter.set(found);
    }

    fn make_root(&mut self) -> Result<()> {
        let mut root = InodeRecord::new(Kind::Directory, 0o755, 0, 0, self.now);
        root.nlink = U32::new(2);
        root.parent = U64::new(Ino::ROOT.0);
        self.tables.inodes_mut()?.insert(Ino::ROOT.0, root.as_bytes())?;
        Ok(())
    }

    fn inode(&self, ino: Ino) -> Result<Option<(InodeRecord, Vec<u8>)>> {
        let Some(value) = self.tables.inodes()?.get(ino.0)? else { return Ok(None) };
        Ok(InodeRecord::parse(ino, value.value()).ok().map(|(record, tail)| (record, tail.to_vec())))
    }

    fn change(&mut self, ino: Ino, change: impl FnOnce(&mut InodeRecord)) -> Result<bool> {
        let Some((mut record, tail)) = self.inode(ino)? else { return Ok(false) };
        change(&mut record);
        self.tables.inodes_mut()?.insert(ino.0, [record.as_bytes(), &tail].concat().as_slice())?;
        Ok(true)
    }

    /// What `name` stands for in `parent`, or a free position for it.
    fn find(&self, parent: Ino, name: &[u8]) -> Result<Result<Ino, Option<u64>>> {
        let cookies = self.key.cookies(name);
        let mut free = Some(*cookies.start());
        for row in
            self.tables.entries()?.range(pair(parent.0, *cookies.start())..=pair(parent.0, *cookies.end()))?
        {
            let (key, value) = row?;
            let cookie = low(key.value());
            if let Ok((ino, _, found)) = EntryRecord::parse(value.value())
                && found == name
            {
                return Ok(Ok(ino));
            }
            if free == Some(cookie) {
                free = Some(cookie + 1);
            }
        }
        Ok(Err(free.filter(|cookie| cookies.contains(cookie))))
    }

    fn insert(&mut self, parent: Ino, ino: Ino, kind: Kind, name: &[u8]) -> Result<bool> {
        let Err(Some(cookie)) = self.find(parent, name)? else { return Ok(false) };
        self.tables
            .entries_mut()?
            .insert(pair(parent.0, cookie), EntryRecord::value(ino, kind, name).as_slice())?;
        Ok(true)
    }

    /// The directory for what has lost its name; made if it is not there.
    fn lost_and_found(&mut self) -> Result<Option<Ino>> {
        match self.find(Ino::ROOT, LOST_AND_FOUND)? {
            Ok(ino) => {
                let directory = self.inode(ino)?.filter(|(record, _)| record.kind() == Kind::Directory);
                return Ok(directory.map(|_| ino));
            }
            Err(None) => return Ok(None),
            Err(Some(_)) => {}
        }
        let last = self.tables.inodes()?.last()?.map_or(Ino::ROOT.0, |(last, _)| last.value());
        let ino = Ino(self.counters.next_ino.get().max(last + 1));
        self.counters.next_ino.set(ino.0 + 1);
        self.counters.inodes.set(self.counters.inodes.get() + 1);
        let mut record = InodeRecord::new(Kind::Directory, 0o700, 0, 0, self.now);
        record.nlink = U32::new(2);
        record.parent = U64::new(Ino::ROOT.0);
        self.tables.inodes_mut()?.insert(ino.0, record.as_bytes())?;
        self.insert(Ino::ROOT, ino, Kind::Directory, LOST_AND_FOUND)?;
        self.change(Ino::ROOT, |root| root.nlink = U32::new(root.nlink.get() + 1))?;
        Ok(Some(ino))
    }

    /// Gives an inode without a name one in `lost+found`.
    fn adopt(&mut self, ino: Ino) -> Result<bool> {
        let Some(home) = self.lost_and_found()? else { return Ok(false) };
        let Some((record, _)) = self.inode(ino)? else { return Ok(false) };
        let kind = record.kind();
        if !self.insert(home, ino, kind, format!("#{}", ino.0).as_bytes())? {
            return Ok(false);
        }
        if kind == Kind::Directory {
            self.change(ino, |record| record.parent = U64::new(home.0))?;
        }
        // The links are counted in the next round.
        Ok(true)
    }

    /// Takes one directory out of a ring of directories into `lost+found`.
    fn open_ring(&mut self, start: Ino) -> Result<bool> {
        let mut seen = std::collections::HashSet::new();
        let mut at = start;
        while seen.insert(at) {
            if at == Ino::ROOT {
                // Opened with an earlier one.
                return Ok(true);
            }
            let Some((record, _)) = self.inode(at)? else { return Ok(false) };
            at = Ino(record.parent.get());
        }
        let parent = self.inode(at)?.map_or(0, |(record, _)| record.parent.get());
        let mut names = Vec::new();
        for row in self.tables.entries()?.range(pair(parent, 0)..=pair(parent, u64::MAX))? {
            let (key, value) = row?;
            if EntryRecord::parse(value.value()).is_ok_and(|(ino, _, _)| ino == at) {
                names.push(key.value());
            }
        }
        for key in names {
            self.tables.entries_mut()?.remove(key)?;
        }
        self.adopt(at)
    }

    fn mend_entry(&mut self, parent: Ino, cookie: u64, ino: Option<Ino>, fault: EntryFault) -> Result<bool> {
        let key = pair(parent.0, cookie);
        match fault {
            EntryFault::OtherKind(kind) => {
                let Some(value) = self.tables.entries()?.get(key)?.map(|value| value.value().to_vec()) else {
                    return Ok(false);
                };
                let Ok((ino, _, name)) = EntryRecord::parse(&value) else { return Ok(false) };
                self.tables.entries_mut()?.insert(key, EntryRecord::value(ino, kind, name).as_slice())?;
            }
            EntryFault::Misplaced => {
                let Some(value) = self.tables.entries_mut()?.remove(key)?.map(|value| value.value().to_vec())
                else {
                    return Ok(false);
                };
                let Ok((ino, kind, name)) = EntryRecord::parse(&value) else { return Ok(false) };
                // If the name is taken there, the inode has lost it, and is found without one in the next round.
                self.insert(parent, ino, kind, name)?;
            }
            EntryFault::OtherParent(_) => {
                let Some(ino) = ino else { return Ok(false) };
                return self.change(ino, |record| record.parent = U64::new(parent.0));
            }
            EntryFault::Unreadable
            | EntryFault::NoDirectory
            | EntryFault::NoInode
            | EntryFault::BadName
            | EntryFault::Twice
            | EntryFault::SecondName => {
                self.tables.entries_mut()?.remove(key)?;
            }
        }
        Ok(true)
    }

    fn mend_extent(&mut self, ino: Ino, file: FileBlock, run: Run, fault: ExtentFault) -> Result<()> {
        match fault {
            ExtentFault::NoFile | ExtentFault::Overlap | ExtentFault::BadLength => {
                self.tables.extents_mut()?.remove(pair(ino.0, file.0))?;
            }
            ExtentFault::Outside | ExtentFault::OnMetadata => self.cut_extents(ino, run)?,
            ExtentFault::Unmarked => self.shared.push(run),
        }
        Ok(())
    }

    /// Takes the blocks of `run` out of the layout of `ino`: they hold something else.
    fn cut_extents(&mut self, ino: Ino, run: Run) -> Result<()> {
        let mut hit = Vec::new();
        for row in self.tables.extents()?.range(pair(ino.0, 0)..=pair(ino.0, u64::MAX))? {
            let (key, record) = row?;
            let extent = record.value().at(FileBlock(low(key.value())));
            if extent.run().overlaps(run) {
                hit.push(extent);
            }
        }
        for extent in hit {
            self.tables.extents_mut()?.remove(pair(ino.0, extent.file.0))?;
            let (from, to) = (run.start.max(extent.lun), run.end().min(extent.lun + extent.len));
            let left = Extent { len: from - extent.lun, ..extent };
            let skipped = to - extent.lun;
            let right = Extent { file: extent.file + skipped, lun: to, len: extent.len - skipped, ..extent };
            for part in [left, right].iter().filter(|part| part.len > 0) {
                self.tables.extents_mut()?.insert(pair(ino.0, part.file.0), ExtentRecord::of(part))?;
            }
        }
        Ok(())
    }

    /// Marks every extent on a run that has several references.
    fn mark_shared(&mut self) -> Result<()> {
        if self.shared.is_empty() {
            return Ok(());
        }
        self.shared.sort_unstable();
        // Runs that do not overlap end in the order in which they start.
        self.shared.dedup_by(|next, last| {
            let joined = next.start <= last.end();
            if joined {
                last.len = last.len.max(next.end() - last.start);
            }
            joined
        });
        let mut marked = Vec::new();
        for row in self.tables.extents()?.iter()? {
            let (key, record) = row?;
            let mut record: ExtentRecord = record.value();
            let run = Run { start: LunBlock(record.lun.get()), len: record.len.get() };
            let first = self.shared.partition_point(|shared| shared.end() <= run.start);
            if self.shared.get(first).is_some_and(|shared| shared.overlaps(run)) {
                record.flags.set(record.flags.get() | MAYBE_SHARED);
                marked.push((key.value(), record));
            }
        }
        for (key, record) in marked {
            self.tables.extents_mut()?.insert(key, record)?;
        }
        Ok(())
    }

    fn mend_space(&mut self, run: Run, fault: BlockFault) -> Result<bool> {
        match fault {
            BlockFault::Lost => {
                self.tables.free_mut()?.insert(run.start.0, run.len)?;
                self.join_free(run)?;
            }
            // What files have, they keep; so does the metadata area.
            BlockFault::UsedAnd(place, _) | BlockFault::Twice(place, _) | BlockFault::Outside(place) => {
                return self.cut_place(place, run);
            }
            BlockFault::References { found, .. } => {
                self.cut_shared(run)?;
                if found >= 2 {
                    let record = SharedRecord { len: U64::new(run.len), count: U64::new(found) };
                    self.tables.shared_mut()?.insert(run.start.0, record)?;
                    // As extents that nothing told apart have come to share blocks, all are marked.
                    self.shared.push(run);
                }
            }
        }
        Ok(true)
    }

    /// Joins a free run with its neighbours.
    fn join_free(&mut self, run: Run) -> Result<()> {
        let (mut start, mut end) = (run.start.0, run.end().0);
        let before = self.tables.free()?.range(..run.start.0)?.next_back().transpose()?;
        let before = before.map(|(key, len)| (key.value(), len.value()));
        if let Some((key, _)) = before.filter(|(key, len)| key + len == start) {
            self.tables.free_mut()?.remove(start)?;
            start = key;
        }
        let after = self.tables.free()?.get(end)?.map(|len| len.value());
        if let Some(len) = after {
            self.tables.free_mut()?.remove(end)?;
            end += len;
        }
        self.tables.free_mut()?.insert(start, end - start)?;
        Ok(())
    }

    /// Takes `run` out of a place.
    fn cut_place(&mut self, place: Place, run: Run) -> Result<bool> {
        match place {
            Place::Free => {
                let mut rows = Vec::new();
                for row in self.tables.free()?.range(..run.end().0)?.rev() {
                    let (start, len) = row?;
                    rows.push(Run { start: LunBlock(start.value()), len: len.value() });
                    // Extents that overlap each other may reach far: look back past the first that ends before.
                    if rows.len() > 1024 {
                        break;
                    }
                }
                for row in rows.iter().filter(|row| row.overlaps(run)) {
                    self.tables.free_mut()?.remove(row.start.0)?;
                }
                for part in rows.iter().filter(|row| row.overlaps(run)).flat_map(|row| without(*row, run)) {
                    self.tables.free_mut()?.insert(part.start.0, part.len)?;
                }
            }
            Place::Reserve => {
                let mut rows = Vec::new();
                for row in self.tables.reserves()?.iter()? {
                    let (key, len) = row?;
                    let reserved = Run { start: LunBlock(low(key.value())), len: len.value() };
                    if reserved.overlaps(run) {
                        rows.push((high(key.value()), reserved));
                    }
                }
                for (client, reserved) in rows {
                    self.tables.reserves_mut()?.remove(pair(client, reserved.start.0))?;
                    for part in without(reserved, run) {
                        self.tables.reserves_mut()?.insert(pair(client, part.start.0), part.len)?;
                    }
                }
            }
            Place::Pending | Place::Quarantine => {
                let is_pending = place == Place::Pending;
                let table = if is_pending { self.tables.pending()? } else { self.tables.quarantine()? };
                let mut rows = Vec::new();
                for row in table.iter()? {
                    let (start, record) = row?;
                    let record: HeldRecord = record.value();
                    let held = Run { start: LunBlock(start.value()), len: record.len.get() };
                    if held.overlaps(run) {
                        rows.push((held, record));
                    }
                }
                for (held, record) in rows {
                    self.held(is_pending)?.remove(held.start.0)?;
                    for part in without(held, run) {
                        let rest = HeldRecord { len: U64::new(part.len), ..record };
                        self.held(is_pending)?.insert(part.start.0, rest)?;
                    }
                }
            }
            // Nobody but the metadata area itself can say what it needs.
            Place::Metadata => return Ok(false),
        }
        Ok(true)
    }

    /// The blocks that wait to be free, or those in quarantine.
    fn held(&mut self, is_pending: bool) -> Result<Changing<'_, 't, u64, HeldRecord>> {
        if is_pending { self.tables.pending_mut() } else { self.tables.quarantine_mut() }
    }

    /// Takes `run` out of the table of shared runs.
    fn cut_shared(&mut self, run: Run) -> Result<()> {
        let mut rows = Vec::new();
        for row in self.tables.shared()?.range(..run.end().0)?.rev() {
            let (start, record) = row?;
            let record: SharedRecord = record.value();
            let shared = Run { start: LunBlock(start.value()), len: record.len.get() };
            if !shared.overlaps(run) {
                break;
            }
            rows.push((shared, record));
        }
        for (shared, record) in rows {
            self.tables.shared_mut()?.remove(shared.start.0)?;
            for part in without(shared, run) {
                let record = SharedRecord { len: U64::new(part.len), ..record };
                self.tables.shared_mut()?.insert(part.start.0, record)?;
            }
        }
        Ok(())
    }
}

/// What is left of `whole` without `gone`.
fn without(whole: Run, gone: Run) -> Vec<Run> {
    let end = |run: Run| run.start.0.saturating_add(run.len);
    let left = Run { start: whole.start, len: gone.start.0.saturating_sub(whole.start.0).min(whole.len) };
    let right_start = end(gone).clamp(whole.start.0, end(whole));
    let right = Run { start: LunBlock(right_start), len: end(whole) - right_start };
    [left, right].into_iter().filter(|run| run.len > 0).collect()
}
