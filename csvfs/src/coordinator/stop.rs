//! Why an operation did not go through.

use crate::refusal::Refusal;
use crate::store::StoreError;

/// What ends the application of an operation.
#[derive(Debug)]
pub enum Stop {
    /// Refused before anything was changed: it leaves no trace.
    Refused(Refusal),
    /// The store failed: nothing of the transaction may be acknowledged, and nothing more may be changed.
    Broken(StoreError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Broken(error)
    }
}

impl From<redb::StorageError> for Stop {
    fn from(error: redb::StorageError) -> Self {
        Self::Broken(error.into())
    }
}

impl Stop {
    /// The refusal that the asker gets.
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Broken(error) => Refusal::Io(error.to_string()),
        }
    }
}
