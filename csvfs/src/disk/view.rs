//! The store, to be looked at and not changed: what redb writes when it opens goes to memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::StorageBackend;
use redirector::blocking;
use redirector::buffer::Pool;
use redirector::lun::{Lun, Proof};

use super::area::{AreaError, pieces};
use super::contest::is_closed;
use super::copy::{Kept, Move, Reader};
use super::open::{OpenError, store_error};
use super::superblock::Side;
use super::survey::Survey;
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
pub fn open_read_only(lun: &Arc<dyn Lun>, survey: Survey, options: &ViewOptions) -> Result<View, OpenError> {
    let side = survey.superblock.side;
    let len = survey.store_len();
    // redb would make an empty store.
    if len == 0 {
        return Err(OpenError::NoStore);
    }
    let chunk_size = survey.label.chunk_size;
    let request_max = u64::from(lun.geometry().request_max).clamp(BLOCK, 1 << 20) / BLOCK * BLOCK;
    let in_use = survey.map.area(side).filter(|(index, _)| u64::from(*index) * chunk_size < len);
    let chunks: Vec<Move> = in_use.map(|(index, from)| Move { index, from, to: from }).collect();
    let reader = Reader { lun: lun.as_ref(), pool: &options.pool, chunk_size, request_max };
    let small = chunks.len() as u64 * chunk_size <= options.load_max;
    let loaded = if small { reader.keep(&chunks, len)? } else { Kept::new() };
    let backend = Overlay {
        lun: Arc::clone(lun),
        pool: options.pool.clone(),
        survey: survey.clone(),
        side,
        request_max,
        loaded,
        state: Mutex::new(Changed { len, pages: BTreeMap::new() }),
    };
    let database = redb::Builder::new()
        .set_cache_size(options.cache_bytes)
        .set_check_integrity_on_open(options.check)
        .create_with_backend(backend)
        .map_err(store_error)?;
    let writer = writer(lun.as_ref(), &survey);
    Ok(View { database, survey, writer })
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

/// The area as it is on the LUN, with redb's writes in memory on top.
#[derive(Debug)]
struct Overlay {
    lun: Arc<dyn Lun>,
    pool: Pool,
    survey: Survey,
    side: Side,
    request_max: u64,
    /// Chunks in memory, by index.
    loaded: Kept,
    state: Mutex<Changed>,
}

impl Overlay {
    fn read_page(&self, page: u64, out: &mut [u8]) -> Result<(), AreaError> {
        if let Some(changed) = self.state.lock().pages.get(&page) {
            out.copy_from_slice(&changed[..]);
            return Ok(());
        }
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
        for (page, start, place) in Self::parts(offset, out.len()) {
            let mut whole = [0; PAGE];
            self.read_page(page, &mut whole)?;
            let len = place.len();
            out[place].copy_from_slice(&whole[start..start + len]);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut state = self.state.lock();
        drop(state.pages.split_off(&len.div_ceil(BLOCK)));
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.check_end(offset, data.len())?;
        for (page, start, place) in Self::parts(offset, data.len()) {
            let mut whole = Box::new([0; PAGE]);
            self.read_page(page, &mut whole[..])?;
            whole[start..start + place.len()].copy_from_slice(&data[place]);
            self.state.lock().pages.insert(page, whole);
        }
        Ok(())
    }
}
