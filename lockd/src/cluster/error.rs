//! What is wrong with a cluster file, and where.

use std::path::PathBuf;

/// What is wrong with a cluster file.
#[derive(Debug, thiserror::Error)]
pub enum ClusterFileError {
    /// It cannot be read at all.
    #[error("the cluster file {path} cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A mistake in it.
    #[error("{path}:{line}:{column}: {field}: {message}")]
    Mistake {
        /// The file.
        path: PathBuf,
        /// The line of the mistake, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// The field, and whose.
        field: String,
        /// What is wrong, and what would be right.
        message: String,
    },
}
