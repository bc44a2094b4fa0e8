//! The metadata area's need for room, as the coordinator sees it.

use std::fmt::Debug;

use crate::types::Run;

/// The chunk map could not be written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the chunk map could not be written (errno {0}); the volume must be opened anew")]
pub struct SpaceError(pub i32);

/// The metadata area grows by whole chunks that the coordinator takes from the volume's free blocks.
///
/// For every chunk that the area may use a second one is kept aside, so that a full volume can still be taken over by
/// copy (V2). The coordinator first records the chunks in its store, in the transaction that takes them from the free
/// blocks, and offers them after the commit; when it starts it offers again what is recorded (offering a chunk twice
/// is no error). So a crash between the two loses nothing.
pub trait MetadataSpace: Send + Sync + Debug {
    /// The size of a chunk in blocks of 4 KiB; chunks start at multiples of it.
    fn chunk_blocks(&self) -> u64;

    /// How many chunks the area would like to be given now, copies included; zero when it has enough to spare.
    fn wanted(&self) -> u64;

    /// Whether so little room is left that operations that need more metadata must be refused (deletes still work).
    fn is_scarce(&self) -> bool;

    /// The store uses so many bytes of what it has at the moment; what it writes from now on may come on top of it. So
    /// room that deletions have made inside of the store is found: chunks never leave it.
    fn measured(&self, used: u64) {
        let _ = used;
    }

    /// What is wrong with the area itself, if anything: the first cause of what its database says later.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Gives whole chunks to the area, durably.
    fn offer(&self, chunks: &[Run]) -> Result<(), SpaceError>;
}
