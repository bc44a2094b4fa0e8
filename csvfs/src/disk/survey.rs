//! Everything outside the store, read at once and judged piece by piece; nothing is written.

use std::fmt;

use lockd::ids::Epoch;
use redirector::buffer::Pool;
use redirector::lun::Lun;

use super::blocks::read_bytes;
use super::claim::{Claim, ClaimState};
use super::features::Features;
use super::frame::Damage;
use super::label::Label;
use super::layout::{self, BLOCK_LEN, byte};
use super::map::ChunkMap;
use super::signature::{Content, identify};
use super::superblock::Superblock;

/// What is wrong with a structure outside the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// The label is damaged, and its copy serves.
    Label(Damage),
    /// The copy of the label is damaged, or that of another label.
    LabelCopy(Damage),
    /// A superblock slot is damaged.
    Slot {
        /// Which one.
        slot: usize,
        /// In which way.
        damage: Damage,
        /// The epoch that is known, from the chunk map, to have been in it.
        lost: Option<Epoch>,
    },
    /// A copy of the chunk map is damaged.
    Map {
        /// Which one, 0 or 1.
        copy: usize,
        /// In which way.
        damage: Damage,
    },
    /// A copy of the chunk map is older than the other: its writer was interrupted.
    MapBehind {
        /// Which one, 0 or 1.
        copy: usize,
    },
    /// A claim block is damaged.
    Claim {
        /// Which one.
        block: usize,
        /// In which way.
        damage: Damage,
    },
    /// A claim was never closed, though a later writer has closed the volume.
    StaleClaim {
        /// Which block.
        block: usize,
        /// What it says.
        claim: Claim,
    },
}

impl Finding {
    /// Whether this is what a crash leaves behind and the next opening deals with: nothing is damaged.
    #[must_use]
    pub fn is_note(&self) -> bool {
        matches!(self, Self::MapBehind { .. } | Self::StaleClaim { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(damage) => {
                write!(f, "the label in block 0 is damaged: {damage}; its copy in block 255 is used")
            }
            Self::LabelCopy(damage) => {
                write!(
                    f,
                    "the copy of the label in block 255 is damaged: {damage}; the label itself is whole"
                )
            }
            Self::Slot { slot, damage, lost: Some(epoch) } => {
                write!(
                    f,
                    "superblock slot {slot} is damaged: {damage}; it held epoch {epoch}, the newest, of which the \
                     chunk map has a copy"
                )
            }
            Self::Slot { slot, damage, lost: None } => {
                write!(f, "superblock slot {slot} is damaged: {damage}; it is not the newest")
            }
            Self::Map { copy, damage } => {
                write!(f, "copy {} of the chunk map is damaged: {damage}; the other one is used", copy + 1)
            }
            Self::MapBehind { copy } => {
                write!(f, "copy {} of the chunk map is older than the other one, which is used", copy + 1)
            }
            Self::Claim { block, damage } => write!(f, "claim block {block} is damaged: {damage}"),
            Self::StaleClaim { block, claim } => {
                write!(f, "claim block {block} was never closed by {claim}, whose epoch is over")
            }
        }
    }
}

/// The structures outside the store cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SurveyError {
    /// The LUN is too small to hold a volume.
    #[error("the LUN has {0} bytes; a volume needs at least {min}", min = layout::LUN_MIN)]
    TooSmall(u64),
    /// The LUN could not be read.
    #[error("cannot read the structures at the start of the LUN (errno {0})")]
    Read(i32),
    /// There is no label; what is there instead.
    #[error("this LUN holds no csvfs volume: it {0}; nothing was changed")]
    NoVolume(String),
    /// The label is that of a later program.
    #[error("the volume was made by a later program; of its label, {0}; nothing was changed")]
    Later(Damage),
    /// The label is damaged.
    #[error(
        "the label in block 0 is damaged: {0}, and so is its copy in block 255: {1}; without one of them the volume \
         cannot be opened: restore the first 4096 bytes of the LUN from a backup"
    )]
    Label(Damage, Damage),
    /// A feature is not known.
    #[error(
        "the volume uses incompatible features {0:#x} that this program does not know: use a newer csvfs; nothing \
         was changed"
    )]
    Features(u64),
    /// No superblock.
    #[error(
        "none of the superblock slots can be used ({0}), and no copy of the chunk map replaces them: the volume was \
         written by a later program, or is lost"
    )]
    NoSuperblock(Damage),
    /// No chunk map.
    #[error(
        "both copies of the chunk map are damaged (first: {0}; second: {1}); the store cannot \
         be found: restore the volume from a backup"
    )]
    NoMap(Damage, Damage),
    /// The newest superblock is from a later writer than the chunk map.
    #[error(
        "the chunk map is of epoch {map}, but the superblock is of epoch {superblock} and was in force: the newest \
         chunk map is lost"
    )]
    MapLost {
        /// The epoch of the newest chunk map.
        map: Epoch,
        /// The epoch of the newest superblock.
        superblock: Epoch,
    },
    /// The LUN is smaller than it was.
    #[error(
        "the LUN has {found} bytes, but the volume on it has {expected}: it is not the whole LUN, or another one"
    )]
    Shrunk {
        /// What the LUN has, in bytes.
        found: u64,
        /// What the volume needs, in bytes.
        expected: u64,
    },
    /// Label and chunk map do not fit together.
    #[error("the chunk map is of {map} chunks, but a volume of {size} bytes has {expected}")]
    Chunks {
        /// What the map says.
        map: usize,
        /// What follows from the size.
        expected: u64,
        /// The volume's size in bytes.
        size: u64,
    },
}

/// What a LUN without a label carries, and what to do.
fn what_else(lun: &dyn Lun) -> String {
    match identify(lun, &Pool::default()) {
        Ok(Content::Other(what)) => format!("carries {what}; check the URL"),
        Ok(Content::Unknown | Content::Volume(_)) => {
            "carries nothing that is known; check the URL, or make a volume by csvfs format".to_owned()
        }
        Err(errno) => format!("cannot be read (errno {errno})"),
    }
}

/// A claim block: its contents, or why it has none.
pub type ClaimBlock = Result<Claim, Damage>;

/// What lies outside the store.
#[derive(Clone, Debug)]
pub struct Survey {
    /// What the volume is.
    pub label: Label,
    /// Each superblock slot.
    pub slots: Vec<Result<Superblock, Damage>>,
    /// Each claim block.
    pub claims: Vec<ClaimBlock>,
    /// Each copy of the chunk map.
    pub maps: [Result<ChunkMap, Damage>; 2],
    /// The superblock in force.
    pub superblock: Superblock,
    /// The chunk map in force.
    pub map: ChunkMap,
    /// The LUN's size in bytes.
    pub lun_size: u64,
    /// Whether the label has a copy: not on a volume that an earlier version made, until it is opened for writing.
    pub has_label_copy: bool,
    /// What is wrong, but does not stop anybody.
    pub findings: Vec<Finding>,
}

fn block(head: &[u8], number: u64) -> &[u8] {
    let start = usize::try_from(byte(number)).unwrap_or(usize::MAX);
    &head[start..start + BLOCK_LEN]
}

/// Decodes every claim block of `region`, which starts with the first.
fn claims(region: impl Fn(u64) -> Vec<u8>, label: &Label) -> Vec<ClaimBlock> {
    (0..layout::CLAIMS as u64).map(|i| Claim::decode(&region(i), label.uuid)).collect()
}

/// Reads the claims alone: what a writer does between its beats.
pub fn read_claims(lun: &dyn Lun, pool: &Pool, label: &Label) -> Result<Vec<ClaimBlock>, i32> {
    let len = byte(layout::CLAIMS as u64);
    let bytes = read_bytes(lun, pool, byte(layout::CLAIMS_AT), len)?;
    Ok(claims(|i| block(&bytes, i).to_vec(), label))
}

impl Survey {
    /// Reads all structures outside the store and judges them.
    pub fn read(lun: &dyn Lun) -> Result<Self, SurveyError> {
        let lun_size = lun.geometry().size;
        if lun_size < layout::HEAD {
            return Err(SurveyError::TooSmall(lun_size));
        }
        // A map is as long as the LUN is large, as a rule; one that is not whole by that is read to its end.
        let chunks = lun_size.div_ceil(layout::CHUNK_MIN).min(layout::CHUNKS_MAX);
        let blocks =
            usize::try_from(chunks).map(ChunkMap::encoded_len).map(|len| len.div_ceil(BLOCK_LEN) as u64);
        match blocks.map(|blocks| Self::read_with(lun, blocks)) {
            Ok(Ok(survey)) if survey.maps.iter().all(Result::is_ok) => Ok(survey),
            _ => Self::read_with(lun, layout::MAP_BLOCKS),
        }
    }

    /// The head of the LUN, with so many blocks of each chunk map.
    fn head(lun: &dyn Lun, map_blocks: u64) -> Result<Vec<u8>, i32> {
        let (pool, [first, second]) = (Pool::default(), layout::MAPS_AT);
        let mut head = vec![0; usize::try_from(layout::HEAD).map_err(|_| libc::ENOMEM)?];
        // In this order: a superblock is written after the chunk map of its epoch, so it is read before.
        let parts = [
            0..first + map_blocks,
            second..second + map_blocks,
            layout::LABEL_COPY_AT..layout::LABEL_COPY_AT + 1,
        ];
        for part in parts {
            let bytes = read_bytes(lun, &pool, byte(part.start), byte(part.end - part.start))?;
            let at = usize::try_from(byte(part.start)).map_err(|_| libc::ENOMEM)?;
            head[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(head)
    }

    fn read_with(lun: &dyn Lun, map_blocks: u64) -> Result<Self, SurveyError> {
        let lun_size = lun.geometry().size;
        let head = Self::head(lun, map_blocks).map_err(SurveyError::Read)?;
        let (label, finding) = Self::label(lun, &head)?;
        let slots: Vec<_> = (0..layout::SLOTS as u64)
            .map(|slot| Superblock::decode(block(&head, layout::SLOTS_AT + slot), label.uuid))
            .collect();
        let claims = claims(|i| block(&head, layout::CLAIMS_AT + i).to_vec(), &label);
        let maps = layout::MAPS_AT.map(|at| {
            let start = usize::try_from(byte(at)).unwrap_or(usize::MAX);
            let end = usize::try_from(byte(at + layout::MAP_BLOCKS)).unwrap_or(usize::MAX);
            ChunkMap::decode(&head[start..end], label.uuid)
        });
        let mut survey = Self::judge(label, slots, claims, maps, lun_size)?;
        survey.findings.splice(0..0, finding);
        survey.has_label_copy = Label::decode(block(&head, layout::LABEL_COPY_AT)) != Err(Damage::Blank);
        Ok(survey)
    }

    /// The label, or its copy.
    fn label(lun: &dyn Lun, head: &[u8]) -> Result<(Label, Option<Finding>), SurveyError> {
        let copy = Label::decode(block(head, layout::LABEL_COPY_AT));
        match (Label::decode(block(head, 0)), copy) {
            (Ok(label), Ok(copy)) if label == copy => Ok((label, None)),
            // Volumes were made without a copy once.
            (Ok(label), Err(Damage::Blank)) => Ok((label, None)),
            (Ok(label), Ok(copy)) => {
                let finding = Finding::LabelCopy(Damage::Foreign(copy.uuid));
                Ok((label, Some(finding)))
            }
            (Ok(label), Err(damage)) => Ok((label, Some(Finding::LabelCopy(damage)))),
            (Err(later @ Damage::Version(_)), _) => Err(SurveyError::Later(later)),
            (Err(damage @ (Damage::Blank | Damage::Magic(_))), Ok(copy)) => {
                // Whoever has made something else of the LUN has overwritten the label on purpose.
                match identify(lun, &Pool::default()) {
                    Ok(Content::Other(_)) => Err(SurveyError::NoVolume(what_else(lun))),
                    Ok(_) => Ok((copy, Some(Finding::Label(damage)))),
                    Err(errno) => Err(SurveyError::Read(errno)),
                }
            }
            (Err(damage), Ok(copy)) => Ok((copy, Some(Finding::Label(damage)))),
            (Err(Damage::Blank | Damage::Magic(_)), Err(_)) => Err(SurveyError::NoVolume(what_else(lun))),
            (Err(damage), Err(copy)) => Err(SurveyError::Label(damage, copy)),
        }
    }

    /// What is wrong with the label, if its copy serves.
    #[must_use]
    pub fn label_damage(&self) -> Option<&Damage> {
        self.findings.iter().find_map(|finding| match finding {
            Finding::Label(damage) => Some(damage),
            _ => None,
        })
    }

    fn judge(
        label: Label,
        slots: Vec<Result<Superblock, Damage>>,
        claims: Vec<ClaimBlock>,
        maps: [Result<ChunkMap, Damage>; 2],
        lun_size: u64,
    ) -> Result<Self, SurveyError> {
        // What a later program has written is not damage, and nothing may be concluded from what is left.
        for slot in &slots {
            if let Err(newer @ Damage::Version(_)) = slot {
                return Err(SurveyError::NoSuperblock(newer.clone()));
            }
        }
        let newest = maps.iter().flatten().max_by_key(|map| (map.epoch, map.generation));
        let Some(map) = newest.cloned() else {
            let [first, second] = maps.map(|map| map.err().unwrap_or(Damage::Blank));
            return Err(SurveyError::NoMap(first, second));
        };
        let newest = slots.iter().flatten().max_by_key(|superblock| superblock.epoch);
        // A superblock is written after a chunk map of its epoch.
        if let Some(newest) = newest.filter(|newest| newest.epoch > map.epoch) {
            return Err(SurveyError::MapLost { map: map.epoch, superblock: newest.epoch });
        }
        // In force is the one that the writer of the newest map has written, or else the one that was sealed then. One
        // between the two was on its way when its writer died, and came after another writer had begun.
        let slot = |epoch| slots.iter().flatten().find(|superblock| superblock.epoch == epoch);
        let in_force = slot(map.epoch).or_else(|| slot(map.sealed.epoch)).cloned();
        let lost = in_force.is_none();
        let superblock = match in_force {
            Some(superblock) => superblock,
            None if map.sealed.epoch > Epoch(0) => map.sealed.clone(),
            None => {
                let damage = slots.iter().find_map(|slot| slot.clone().err()).unwrap_or(Damage::Blank);
                return Err(SurveyError::NoSuperblock(damage));
            }
        };
        let features = superblock.features.union(label.features);
        if features.unreadable() != 0 {
            return Err(SurveyError::Features(features.unreadable()));
        }
        if lun_size < superblock.size {
            return Err(SurveyError::Shrunk { found: lun_size, expected: superblock.size });
        }
        let expected = superblock.size.div_ceil(label.chunk_size);
        if map.chunks() as u64 != expected {
            return Err(SurveyError::Chunks { map: map.chunks(), expected, size: superblock.size });
        }
        let findings = Self::findings(&slots, &claims, &maps, &superblock, lost);
        Ok(Self { label, slots, claims, maps, superblock, map, lun_size, has_label_copy: true, findings })
    }

    fn findings(
        slots: &[Result<Superblock, Damage>],
        claims: &[ClaimBlock],
        maps: &[Result<ChunkMap, Damage>; 2],
        superblock: &Superblock,
        lost: bool,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        let newest_slot = Superblock::slot(superblock.epoch);
        for (slot, contents) in slots.iter().enumerate() {
            let is_lost = lost && slot == newest_slot;
            match contents {
                Err(damage) if is_lost || *damage != Damage::Blank => findings.push(Finding::Slot {
                    slot,
                    damage: damage.clone(),
                    lost: is_lost.then_some(superblock.epoch),
                }),
                Ok(old) if is_lost => findings.push(Finding::Slot {
                    slot,
                    damage: Damage::value("epoch", old.epoch.0),
                    lost: Some(superblock.epoch),
                }),
                _ => {}
            }
        }
        for (copy, contents) in maps.iter().enumerate() {
            match (contents, &maps[1 - copy]) {
                (Err(damage), _) => findings.push(Finding::Map { copy, damage: damage.clone() }),
                (Ok(this), Ok(other)) if (this.epoch, this.generation) < (other.epoch, other.generation) => {
                    findings.push(Finding::MapBehind { copy });
                }
                _ => {}
            }
        }
        for (block, contents) in claims.iter().enumerate() {
            match contents {
                Err(Damage::Blank) => {}
                Err(damage) => findings.push(Finding::Claim { block, damage: damage.clone() }),
                Ok(claim) if claim.is_open() && superblock.clean && claim.epoch < superblock.epoch => {
                    findings.push(Finding::StaleClaim { block, claim: claim.clone() });
                }
                Ok(_) => {}
            }
        }
        findings
    }

    /// The length of the store in bytes.
    #[must_use]
    pub fn store_len(&self) -> u64 {
        self.map.lens[self.superblock.side.index()]
    }

    /// The features of the volume.
    #[must_use]
    pub fn features(&self) -> Features {
        self.superblock.features.union(self.label.features)
    }

    /// The claims that were not closed, with their blocks.
    pub fn open_claims(&self) -> impl Iterator<Item = (usize, &Claim)> {
        open_claims(&self.claims)
    }

    /// The claim of whoever says that it is writing now, the newest first.
    #[must_use]
    pub fn writer(&self) -> Option<&Claim> {
        let writing = self.open_claims().filter(|(_, claim)| claim.state == ClaimState::Writing);
        writing.max_by_key(|(_, claim)| (claim.epoch, !claim.is_member)).map(|(_, claim)| claim)
    }

    /// The highest epoch that anybody has used or wanted.
    #[must_use]
    pub fn last_epoch(&self) -> Epoch {
        let slots = self.slots.iter().flatten().map(|superblock| superblock.epoch);
        let maps = self.maps.iter().flatten().map(|map| map.epoch.max(map.sealed.epoch));
        let claims = self.claims.iter().flatten().map(|claim| claim.epoch);
        slots.chain(maps).chain(claims).max().unwrap_or_default()
    }
}

/// The claims of `blocks` that were not closed, with their blocks.
pub(super) fn open_claims(blocks: &[ClaimBlock]) -> impl Iterator<Item = (usize, &Claim)> {
    let claims = blocks.iter().enumerate().filter_map(|(block, claim)| Some((block, claim.as_ref().ok()?)));
    claims.filter(|(_, claim)| claim.is_open())
}
