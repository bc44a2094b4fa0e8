//! Why a mount has not done what `lockctl` asks.

use std::fmt;

use lockd::client::HolderReply;

use crate::node::SetRefusal;
use crate::refusal::Refusal;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotDone {
    /// What is in the way passes by itself: who asks again a moment later may have it done.
    Passing(String),
    /// Somebody has to do something first.
    Refused(String),
}

impl NotDone {
    /// The same, said in other words.
    #[must_use]
    pub fn said(self, words: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Passing(why) => Self::Passing(words(why)),
            Self::Refused(why) => Self::Refused(words(why)),
        }
    }
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passing(why) | Self::Refused(why) => f.write_str(why),
        }
    }
}

impl From<String> for NotDone {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

impl From<Refusal> for NotDone {
    fn from(refusal: Refusal) -> Self {
        SetRefusal::from(refusal).into()
    }
}

impl From<SetRefusal> for NotDone {
    fn from(refusal: SetRefusal) -> Self {
        match refusal.why {
            Refusal::Passing(_) => Self::Passing(refusal.to_string()),
            _ => Self::Refused(refusal.to_string()),
        }
    }
}

impl From<NotDone> for HolderReply {
    fn from(not_done: NotDone) -> Self {
        match not_done {
            NotDone::Passing(why) => Self::Passing(why),
            NotDone::Refused(why) => Self::Refused(why),
        }
    }
}
