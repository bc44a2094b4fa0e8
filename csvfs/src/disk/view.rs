//! The store, to be looked at and not changed: what redb writes when it opens goes to memory.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::StorageBackend;
use redirector::blocking;
use redirector::buffer::Pool;
use redirector::lun::{Lun, Proof};

use super::area::{Area, AreaError, pieces};
use super::contest::is_closed;
use super::copy::{Kept, Move, Reader};
use super::journal::Found;
use super::open::{OpenError, Replay, store_error};
use super::superblock::Side;
use super::survey::Survey;
use super::tree::{Ledger, Row, Walk, Wrong, walk};
use crate::types::BLOCK;

const PAGE: usize = 4096;

/// A volume that is looked at.
#[derive(Debug)]
pub struct View {
    /// The store. Changes to it are lost, and never reach the LUN.
    pub database: redb::Database,
    /// The structures outside the store.
    pub survey: Survey,
    /// Who seems to write to the volume meanwhile: what is seen may then be torn, and errors may be none.
    pub writer: Option<String>,
}

/// How to look at a volume.
#[derive(Clone, Debug)]
pub struct ViewOptions {
    /// The memory that the store may use as its cache, in bytes.
    pub cache_bytes: usize,
    /// A store of at most so many bytes is read into memory at once, with large requests.
    pub load_max: u64,
    /// Whether every checksum of the store is checked first.
    pub check: bool,
    /// Where buffers come from.
    pub pool: Pool,
}

impl Default for ViewOptions {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20, load_max: 512 << 20, check: false, pool: Pool::default() }
    }
}

/// Opens the store on `lun` for reading; the LUN is not written to, and no claim is made. `survey` has been read from
/// it.
pub fn open_read_only(
    lun: &Arc<dyn Lun>,
    survey: Survey,
    options: &ViewOptions,
    replay: &Replay,
) -> Result<View, OpenError> {
    // redb would make an empty store.
    if survey.store_len() == 0 {
        return Err(OpenError::NoStore);
    }
    let on_lun = OnLun::new(lun, &survey, options)?;
    let database = database(Arc::new(on_lun), survey.store_len(), options)?;
    replay.apply(&database, &Found::of(&survey, lun.as_ref(), &options.pool), None)?;
    let writer = writer(lun.as_ref(), &survey);
    Ok(View { database, survey, writer })
}

/// Opens the store of an area that is open for writing a second time, for reading: as it is now.
pub fn open_beside(
    area: &Arc<Area>,
    cache_bytes: usize,
    replay: &Replay,
) -> Result<redb::Database, OpenError> {
    let options = ViewOptions { cache_bytes, ..ViewOptions::default() };
    let database = database(Arc::clone(area) as Arc<dyn Under>, area.length(), &options)?;
    replay.apply(&database, &Found::of_area(area), None)?;
    Ok(database)
}

fn database(under: Arc<dyn Under>, len: u64, options: &ViewOptions) -> Result<redb::Database, OpenError> {
    let state = Mutex::new(Changed { len, pages: BTreeMap::new() });
    redb::Builder::new()
        .set_cache_size(options.cache_bytes)
        .set_check_integrity_on_open(options.check)
        .create_with_backend(Overlay { under, state, ledger: Ledger::default() })
        .map_err(store_error)
}

/// Reads what can still be read of a damaged store, row by row. Nothing if there is no header any more.
pub fn salvage(
    lun: &Arc<dyn Lun>,
    survey: &Survey,
    options: &ViewOptions,
    on_row: &mut dyn FnMut(Row<'_>),
) -> Result<Option<Walk>, OpenError> {
    let on_lun = OnLun::new(lun, survey, options)?;
    let len = survey.store_len();
    let mut read = |offset: u64, out: &mut [u8]| {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > len) {
            return Err(AreaError::Beyond { offset, len: out.len(), end: len });
        }
        on_lun.read(offset, out)
    };
    Ok(walk(&mut read, on_row))
}

/// Who seems to write, as far as can be told without waiting.
fn writer(lun: &dyn Lun, survey: &Survey) -> Option<String> {
    match lun.prove_alone() {
        Proof::Alive(who) => Some(survey.writer().map_or(who, ToString::to_string)),
        Proof::Ended(_) => None,
        Proof::Unprovable if is_closed(survey) => None,
        Proof::Unprovable => survey.writer().map(ToString::to_string),
    }
}

#[derive(Debug)]
struct Changed {
    len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

/// What lies below a view: whole pages of an area.
trait Under: fmt::Debug + Send + Sync {
    /// Reads whole pages of 4 KiB.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), AreaError>;

    /// Where on the LUN a byte of the area is.
    fn locate(&self, offset: u64) -> u64;
}

impl Under for Area {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), AreaError> {
        self.fetch(offset, out)
    }

    fn locate(&self, offset: u64) -> u64 {
        self.lun_byte(offset)
    }
}

/// The store as it is on the LUN.
#[derive(Debug)]
struct OnLun {
    lun: Arc<dyn Lun>,
    pool: Pool,
    survey: Survey,
    side: Side,
    request_max: u64,
    /// Chunks in memory, by index.
    loaded: Kept,
}

impl OnLun {
    fn new(lun: &Arc<dyn Lun>, survey: &Survey, options: &ViewOptions) -> Result<Self, OpenError> {
        let (side, len) = (survey.superblock.side, survey.store_len());
        let chunk_size = survey.label.chunk_size;
        let request_max = u64::from(lun.geometry().request_max).clamp(BLOCK, 1 << 20) / BLOCK * BLOCK;
        let in_use = survey.map.area(side).filter(|(index, _)| u64::from(*index) * chunk_size < len);
        let chunks: Vec<Move> = in_use.map(|(index, from)| Move { index, from, to: from }).collect();
        let reader = Reader { lun: lun.as_ref(), pool: &options.pool, chunk_size, request_max };
        let small = chunks.len() as u64 * chunk_size <= options.load_max;
        // What cannot be read at once is read page by page, and fails where it must.
        let loaded = if small { reader.keep(&chunks, len).unwrap_or_default() } else { Kept::new() };
        let (lun, pool, survey) = (Arc::clone(lun), options.pool.clone(), survey.clone());
        Ok(Self { lun, pool, survey, side, request_max, loaded })
    }

    fn read_page(&self, page: u64, out: &mut [u8]) -> Result<(), AreaError> {
        let size = self.survey.label.chunk_size;
        let within = usize::try_from(page * BLOCK % size).unwrap_or(usize::MAX);
        let loaded =
            self.loaded.get(&(page * BLOCK / size)).and_then(|chunk| chunk.get(within..within + PAGE));
        if let Some(loaded) = loaded {
            out.copy_from_slice(loaded);
            return Ok(());
        }
        let piece = pieces(&self.survey.map, self.side, size, page * BLOCK, BLOCK, self.request_max)[0];
        let Some(offset) = piece.lun else {
            out.fill(0);
            return Ok(());
        };
        let read = blocking::read(self.lun.as_ref(), offset, self.pool.take(PAGE));
        out.copy_from_slice(&read.map_err(|errno| AreaError::Read { offset, errno })?);
        Ok(())
    }
}

impl Under for OnLun {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), AreaError> {
        (offset / BLOCK..)
            .zip(out.chunks_exact_mut(PAGE))
            .try_for_each(|(page, out)| self.read_page(page, out))
    }

    fn locate(&self, offset: u64) -> u64 {
        let size = self.survey.label.chunk_size;
        let chunk = self.survey.map.locate(self.side, offset / size);
        chunk.map_or(0, |chunk| u64::from(chunk) * size + offset % size)
    }
}

/// An area as it is, with redb's writes in memory on top.
#[derive(Debug)]
struct Overlay {
    under: Arc<dyn Under>,
    state: Mutex<Changed>,
    ledger: Ledger,
}

impl Overlay {
    fn read_page(&self, page: u64, out: &mut [u8]) -> Result<(), AreaError> {
        if let Some(changed) = self.state.lock().pages.get(&page) {
            out.copy_from_slice(&changed[..]);
            return Ok(());
        }
        self.under.read(page * BLOCK, out)
    }

    fn fetch(&self, offset: u64, out: &mut [u8]) -> Result<(), AreaError> {
        for (page, start, place) in Self::parts(offset, out.len()) {
            let mut whole = [0; PAGE];
            self.read_page(page, &mut whole)?;
            let len = place.len();
            out[place].copy_from_slice(&whole[start..start + len]);
        }
        Ok(())
    }

    fn check_end(&self, offset: u64, len: usize) -> Result<(), AreaError> {
        let end = self.state.lock().len;
        if offset.checked_add(len as u64).is_none_or(|last| last > end) {
            return Err(AreaError::Beyond { offset, len, end });
        }
        Ok(())
    }

    /// Visits the parts of pages that make up `len` bytes at `offset`: page, start in the page, place in the bytes.
    fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = offset + done as u64;
            let start = usize::try_from(at % BLOCK).unwrap_or(0);
            let part = (PAGE - start).min(len - done);
            let place = done..done + part;
            done += part;
            (part > 0).then_some((at / BLOCK, start, place))
        })
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.state.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.check_end(offset, out.len())?;
        for _ in 0..2 {
            self.fetch(offset, out)?;
            if self.ledger.read(offset, out).is_ok() {
                return Ok(());
            }
        }
        let Err(Wrong { table }) = self.ledger.read(offset, out) else { return Ok(()) };
        Err(AreaError::Corrupt { at: offset, offset: self.under.locate(offset), table }.into())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut state = self.state.lock();
        drop(state.pages.split_off(&len.div_ceil(BLOCK)));
        state.len = len;
        drop(state);
        self.ledger.cut(len);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.check_end(offset, data.len())?;
        self.ledger.written(offset, data);
        for (page, start, place) in Self::parts(offset, data.len()) {
            let mut whole = Box::new([0; PAGE]);
            self.read_page(page, &mut whole[..])?;
            whole[start..start + place.len()].copy_from_slice(&data[place]);
            self.state.lock().pages.insert(page, whole);
        }
        Ok(())
    }
}
