//! Why a volume could not be opened or closed.

use crate::refusal::Refusal;

/// Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The LUN could not be opened.
    #[error(transparent)]
    Lun(#[from] redirector::open::OpenError),
    /// There is no volume on it, or it could not be opened for writing.
    #[error(transparent)]
    Open(#[from] crate::disk::open::OpenError),
    /// What lies outside the store could not be read.
    #[error(transparent)]
    Survey(#[from] crate::disk::survey::SurveyError),
    /// The volume was to be read only, and somebody writes to it.
    #[error(
        "the volume is being written by {0}; a read-only mount would see it change under its feet: unmount it there"
    )]
    BeingWritten(String),
    /// The cluster could not be joined.
    #[error(transparent)]
    Cluster(#[from] crate::cluster::ClusterError),
    /// The node could not be made known to the coordinator.
    #[error("the coordinator does not take this mount: {0}")]
    NotTaken(#[source] Refusal),
    /// The control plane refused.
    #[error(transparent)]
    Authority(#[from] lockd::authority::AuthorityError),
    /// The coordinator could not start.
    #[error(transparent)]
    Coordinator(#[from] crate::coordinator::StartError),
    /// The volume could not be made.
    #[error(transparent)]
    Format(#[from] crate::disk::format::FormatError),
    /// A thread could not be started.
    #[error("a thread could not be started: {0}")]
    Thread(#[source] std::io::Error),
    /// Not everything could be committed before closing.
    #[error("not everything could be written before the volume was closed: {0}; what was synced is safe")]
    Commit(#[source] Refusal),
    /// The last flush failed.
    #[error("the LUN could not be flushed (errno {0}); what was synced is safe")]
    Flush(i32),
    /// The metadata store could not be read or mended.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// Somebody still has the store.
    #[error("the metadata store is still in use inside this program; the volume is left as after a crash")]
    StillUsed,
}
