//! A few bytes that a command brings or takes: pages, parameters.

use super::session::{Payload, Transfer};

/// Data of a command of our own.
#[derive(Debug)]
pub enum Page {
    /// None.
    None,
    /// From the target; zeros before.
    In(Vec<u8>),
    /// To the target.
    Out(Vec<u8>),
}

impl Page {
    /// Room for `len` bytes of the target's.
    #[must_use]
    pub fn room(len: usize) -> Self {
        Self::In(vec![0; len])
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::In(bytes) | Self::Out(bytes) => bytes,
        }
    }
}

// SAFETY: a vector's bytes stay in their place when it is moved, and nobody reaches them while the session has the page.
unsafe impl Payload for Page {
    fn transfer(&mut self) -> Transfer {
        match self {
            Self::None => Transfer::None,
            Self::In(bytes) => Transfer::In(bytes.as_mut_ptr(), bytes.len()),
            Self::Out(bytes) => Transfer::Out(bytes.as_ptr(), bytes.len()),
        }
    }

    fn into_page(self) -> Option<Self> {
        Some(self)
    }
}
