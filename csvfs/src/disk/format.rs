//! Making a volume.
//!
//! The order of writes, so that an interrupted format never leaves a volume: first the labels and then all other
//! structures are zeroed; the chunk map and the store are written; then the superblock, the chunk map that seals it;
//! the label and its copy come last.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::ids::{ClientId, Epoch, VolumeId};
use lockd::lease::Lease;
use lockd::random::{Random, SystemRandom};
use lockd::rules::Rules;
use redirector::blocking;
use redirector::buffer::Pool;
use redirector::lun::{Lun, Proof};

use super::area::{Area, AreaBackend, AreaError, Budget, Surroundings};
use super::blocks::write_block;
use super::claim::Claim;
use super::features::Features;
use super::journal;
use super::label::{Label, NAME_LEN_MAX};
use super::layout::{self, BLOCK_LEN, byte};
use super::map::{ChunkMap, ChunkUse};
use super::open::{OpenError, store_error};
use super::signature::{Content, identify};
use super::superblock::{Side, Superblock};
use super::survey::{open_claims, read_claims};
use crate::types::Run;

/// Chunks that the store of an empty volume may use at once, beside the spare ones.
const FIRST_CHUNKS: u64 = 2;

/// How a volume is to be made.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Whether to overwrite what the LUN carries.
    pub force: bool,
    /// The volume's name, at most 64 bytes of UTF-8.
    pub name: String,
    /// The window of claims (V1).
    pub window: Duration,
    /// How long a write may be under way when its sender is gone (V2): the slowest target's `target_quiesce`.
    pub quiesce: Duration,
    /// Who formats.
    pub client: ClientId,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Where uuid and hash key come from.
    pub random: Arc<dyn Random>,
    /// Where buffers come from.
    pub pool: Pool,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self {
            force: false,
            name: String::new(),
            window: Duration::from_secs(10),
            quiesce: Duration::from_secs(10),
            client: ClientId(0),
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom),
            pool: Pool::default(),
        }
    }
}

/// Why a volume was not made.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The LUN is too small.
    #[error("the LUN has {0} bytes; a volume needs at least {min} (64 MiB)", min = layout::LUN_MIN)]
    TooSmall(u64),
    /// The LUN's blocks are too large.
    #[error("the LUN has blocks of {0} bytes; at most 4096 can be used")]
    BlockSize(u32),
    /// The name is too long.
    #[error("the name {name:?} has {len} bytes; at most {max} are possible", len = name.len(), max = NAME_LEN_MAX)]
    Name {
        /// The name.
        name: String,
    },
    /// The window is not usable.
    #[error("a window of {0:?} is not possible: from 1 ms to 10 minutes")]
    Window(Duration),
    /// The LUN carries something.
    #[error("the LUN carries {0}; --force overwrites it, and all its data is lost")]
    Carries(String),
    /// Somebody writes to it.
    #[error("the volume on this LUN is in use by {0}: unmount it there first")]
    InUse(String),
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
    /// The store could not be made.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// What should be in the new store could not be put there.
    #[error("the new metadata store could not be filled")]
    Init(#[source] Box<dyn Error + Send + Sync>),
}

fn failed(what: &'static str) -> impl Fn(i32) -> FormatError {
    move |errno| FormatError::Lun { what, errno }
}

/// Makes a volume on `lun`. `init` fills its store; it is told which runs of blocks are free for file data.
pub fn format<E: Into<Box<dyn Error + Send + Sync>>>(
    lun: &Arc<dyn Lun>,
    options: &FormatOptions,
    init: impl FnOnce(&redb::Database, &[Run]) -> Result<(), E>,
) -> Result<Label, FormatError> {
    let label = plan(lun.as_ref(), options)?;
    refuse_foreign(lun.as_ref(), options)?;
    erase(lun.as_ref(), &options.pool)?;

    let superblock = Superblock {
        epoch: Epoch(1),
        side: Side::A,
        clean: true,
        features: label.features,
        size: label.lun_size,
        written: options.clock.wall(),
        client: options.client,
    };
    let map = first_map(&label, &superblock);
    let free = map.data_runs(label.chunk_size, label.lun_size);
    let around = Surroundings {
        lun: Arc::clone(lun),
        pool: options.pool.clone(),
        label: label.clone(),
        lease: Arc::new(Lease::unlimited()),
        clock: Arc::clone(&options.clock),
        rules: Rules::all(),
        hold: Duration::from_secs(120),
    };
    let area = Arc::new(Area::new(around, map, Side::A));
    let database =
        redb::Builder::new().create_with_backend(AreaBackend(Arc::clone(&area))).map_err(store_error)?;
    init(&database, &free).map_err(|error| FormatError::Init(error.into()))?;
    database.close().map_err(store_error)?;
    area.sync()?;

    let slot = layout::SLOTS_AT + Superblock::slot(superblock.epoch) as u64;
    let write = |block, contents: &[u8; BLOCK_LEN]| write_block(lun.as_ref(), &options.pool, block, contents);
    write(slot, &superblock.encode(label.uuid)).map_err(failed("write the superblock"))?;
    area.change_map(|map| map.sealed = Superblock { clean: false, ..superblock })?;
    write(0, &label.encode()).map_err(failed("write the label"))?;
    // After the label: a copy alone would be taken for a volume whose label is damaged.
    write(layout::LABEL_COPY_AT, &label.encode()).map_err(failed("write the copy of the label"))?;
    blocking::flush(lun.as_ref()).map_err(failed("flush the LUN"))?;
    Ok(label)
}

fn plan(lun: &dyn Lun, options: &FormatOptions) -> Result<Label, FormatError> {
    let geometry = lun.geometry();
    let size = geometry.size / BLOCK_LEN as u64 * BLOCK_LEN as u64;
    if size < layout::LUN_MIN {
        return Err(FormatError::TooSmall(geometry.size));
    }
    if geometry.block_size as usize > BLOCK_LEN {
        return Err(FormatError::BlockSize(geometry.block_size));
    }
    if options.name.len() > NAME_LEN_MAX {
        return Err(FormatError::Name { name: options.name.clone() });
    }
    if options.window < Duration::from_millis(1) || options.window > super::claim::WINDOW_MAX {
        return Err(FormatError::Window(options.window));
    }
    let (mut uuid, mut hash_key) = ([0; 16], [0; 16]);
    options.random.fill(&mut uuid);
    options.random.fill(&mut hash_key);
    // Version 4 of RFC 9562: random.
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(Label {
        uuid: VolumeId(uuid),
        created: options.clock.wall(),
        lun_size: size,
        chunk_size: layout::chunk_size(size),
        window: options.window,
        quiesce: options.quiesce,
        features: Features::default().with_journal(),
        hash_key,
        name: options.name.clone(),
    })
}

/// The blocks that a volume is made with for file data: all but the structures at its start and the first chunks of
/// the store.
#[must_use]
pub fn data_region(label: &Label) -> Vec<Run> {
    let superblock = Superblock {
        epoch: Epoch(1),
        side: Side::A,
        clean: true,
        features: label.features,
        size: label.lun_size,
        written: label.created,
        client: ClientId(0),
    };
    first_map(label, &superblock).data_runs(label.chunk_size, label.lun_size)
}

fn first_map(label: &Label, superblock: &Superblock) -> ChunkMap {
    let chunks = label.lun_size.div_ceil(label.chunk_size);
    // Nothing is sealed before the superblock is there.
    let unsealed = Superblock { epoch: Epoch(0), clean: false, ..superblock.clone() };
    let mut map = ChunkMap::new(usize::try_from(chunks).unwrap_or(0), unsealed);
    map.epoch = superblock.epoch;
    let spare =
        u32::try_from(Budget::new(label.chunk_size, chunks, FIRST_CHUNKS).spare + FIRST_CHUNKS).unwrap_or(8);
    (1..=spare).for_each(|chunk| map.assign(chunk, ChunkUse::Spare));
    let journal =
        if label.features.has_journal() { journal::chunks_wanted(label.chunk_size, chunks) } else { 0 };
    (0..journal).for_each(|index| map.assign(spare + 1 + index, ChunkUse::Journal(Side::A, index)));
    let first = spare + journal;
    (first + 1..=2 * first).for_each(|chunk| map.assign(chunk, ChunkUse::Reserve));
    map
}

/// Refuses a LUN that carries something, unless forced, and one that is in use, always.
fn refuse_foreign(lun: &dyn Lun, options: &FormatOptions) -> Result<(), FormatError> {
    let content = identify(lun, &options.pool).map_err(failed("read the LUN"))?;
    let alone = lun.prove_alone();
    if let Proof::Alive(who) = &alone {
        return Err(FormatError::InUse(who.clone()));
    }
    match content {
        Content::Unknown => Ok(()),
        Content::Other(what) if !options.force => Err(FormatError::Carries(what)),
        Content::Other(_) => Ok(()),
        Content::Volume(label) if !options.force => {
            Err(FormatError::Carries(format!("the csvfs volume {:?} ({})", label.name, label.uuid)))
        }
        Content::Volume(_) if matches!(alone, Proof::Ended(_)) => Ok(()),
        Content::Volume(label) => watch(lun, options, &label),
    }
}

/// Watches the claims of an existing volume for longer than their window; refuses when one moves.
fn watch(lun: &dyn Lun, options: &FormatOptions, label: &Label) -> Result<(), FormatError> {
    let read = || -> Result<Vec<Claim>, FormatError> {
        let claims = read_claims(lun, &options.pool, label).map_err(failed("read the claims"))?;
        Ok(open_claims(&claims).map(|(_, claim)| claim.clone()).collect())
    };
    let seen = read()?;
    let Some(window) = seen.iter().map(|claim| claim.window).max() else { return Ok(()) };
    let pause = window / 4;
    let until = options.clock.boot().after(window + pause);
    while options.clock.boot() < until {
        options.clock.sleep(pause);
        if let Some(moved) = read()?.into_iter().find(|claim| !seen.contains(claim)) {
            return Err(FormatError::InUse(moved.to_string()));
        }
    }
    Ok(())
}

/// Zeroes both labels, and when that is durable everything else outside the store, and signatures at the end.
fn erase(lun: &dyn Lun, pool: &Pool) -> Result<(), FormatError> {
    let erased = failed("erase what the LUN carried");
    // The copy first: alone it would be taken for a volume whose label is damaged.
    write_block(lun, pool, layout::LABEL_COPY_AT, &[0; BLOCK_LEN]).map_err(&erased)?;
    write_block(lun, pool, 0, &[0; BLOCK_LEN]).map_err(&erased)?;
    let zeros = pool.take_zeroed(64 << 10).share();
    let request = u64::from(lun.geometry().request_max).min(64 << 10);
    let size = lun.geometry().size / BLOCK_LEN as u64 * BLOCK_LEN as u64;
    let first_data =
        byte(layout::MAPS_AT[1] + layout::MAP_BLOCKS).next_multiple_of(1 << 20) + BLOCK_LEN as u64;
    for range in [0..first_data, size - (64 << 10)..size] {
        let mut at = range.start;
        while at < range.end {
            let len = request.min(range.end - at);
            let part = zeros.part(0..usize::try_from(len).unwrap_or(0));
            blocking::write(lun, at, part, false).map_err(&erased)?;
            at += len;
        }
    }
    blocking::flush(lun).map_err(&erased)
}
