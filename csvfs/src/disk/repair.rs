//! Mending what lies outside the store.
//!
//! Opening a volume mends most of it by itself: it writes both copies of the chunk map and a new superblock. What is
//! left are older slots and claim blocks that are damaged, and claims of the dead.

use lockd::clock::Clock;
use redirector::buffer::Pool;
use redirector::lun::Lun;

use super::area::AreaError;
use super::blocks::write_block;
use super::claim::{Claim, ClaimState};
use super::contest::write_claim;
use super::layout::{self, BLOCK_LEN};
use super::open::{Hold, OpenError};
use super::survey::{Finding, Survey, open_claims, read_claims};

impl Hold {
    /// Blanks damaged slots and claim blocks, and rewrites the chunk map and damaged labels; says what was mended. `survey` has been read
    /// after the volume was opened.
    pub fn mend(&self, survey: &Survey) -> Result<Vec<Finding>, OpenError> {
        let errno = |errno| OpenError::Lun { what: "mend the structures outside the store", errno };
        let around = self.around();
        let blank = [0; BLOCK_LEN];
        let mut mended = Vec::new();
        for finding in &survey.findings {
            let block = match finding {
                Finding::Slot { slot, lost: None, .. } => layout::SLOTS_AT + *slot as u64,
                Finding::Claim { block, .. } => layout::CLAIMS_AT + *block as u64,
                Finding::Map { .. } | Finding::MapBehind { .. } => {
                    self.area().change_map(|_| {})?;
                    mended.push(finding.clone());
                    continue;
                }
                Finding::Label(_) => 0,
                Finding::LabelCopy(_) => layout::LABEL_COPY_AT,
                Finding::Slot { lost: Some(_), .. } | Finding::StaleClaim { .. } => continue,
            };
            let label =
                matches!(finding, Finding::Label(_) | Finding::LabelCopy(_)).then(|| around.label.encode());
            around.await_lease()?;
            let contents = label.as_ref().unwrap_or(&blank);
            write_block(around.lun.as_ref(), &around.pool, block, contents).map_err(errno)?;
            mended.push(finding.clone());
        }
        Ok(mended)
    }
}

/// Closes claims of earlier epochs than the volume's that do not move for longer than their window, so that their
/// blocks can be used again; says whose. The claim of the last writer is left: it says whether the store may be opened
/// in place (V2).
pub fn clear_dead_claims(
    lun: &dyn Lun,
    pool: &Pool,
    clock: &dyn Clock,
    survey: &Survey,
) -> Result<Vec<Claim>, AreaError> {
    let read = || {
        read_claims(lun, pool, &survey.label)
            .map_err(|errno| AreaError::Read { offset: layout::byte(layout::CLAIMS_AT), errno })
    };
    let before = read()?;
    let Some(window) = open_claims(&before).map(|(_, claim)| claim.window).max() else {
        return Ok(Vec::new());
    };
    clock.sleep(window + window / 4);
    let after = read()?;
    let mut cleared = Vec::new();
    for (block, claim) in open_claims(&after) {
        let is_still = before[block].as_ref() == Ok(claim);
        if !is_still || claim.epoch >= survey.superblock.epoch {
            continue;
        }
        let closed = Claim { state: ClaimState::Closed, ..claim.clone() };
        write_claim(lun, pool, &survey.label, block, &closed)
            .map_err(|errno| AreaError::Failed { what: format!("write of claim block {block}"), errno })?;
        cleared.push(claim.clone());
    }
    Ok(cleared)
}
