//! How a SCSI command ended, in our words. Pure.

use std::fmt;

/// Sense keys (SPC-4, table 27).
mod key {
    pub const NONE: u8 = 0;
    pub const RECOVERED: u8 = 1;
    pub const NOT_READY: u8 = 2;
    pub const MEDIUM: u8 = 3;
    pub const HARDWARE: u8 = 4;
    pub const ILLEGAL: u8 = 5;
    pub const ATTENTION: u8 = 6;
    pub const PROTECTED: u8 = 7;
    pub const ABORTED: u8 = 0xb;
}

/// What a target says about a command that it has not simply done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sense {
    /// The sense key.
    pub key: u8,
    /// Additional sense code and its qualifier.
    pub code: u16,
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Done; so many bytes of the transfer are missing.
    Good(usize),
    /// The target has something to say.
    Check(Sense),
    /// Somebody's reservation forbids it.
    Conflict,
    /// The target cannot take it now, and has not begun it.
    Busy,
    /// Somebody has had it aborted.
    Aborted,
    /// Nobody knows: the session broke.
    Lost,
    /// A status that nobody expects.
    Other(i32),
}

/// What a unit attention tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attention {
    /// The unit was reset or switched on: a volatile cache may be lost, and all commands are.
    Reset,
    /// Somebody has taken our registration away.
    Preempted,
    /// The unit, or what it holds, may be another one now.
    Changed,
    /// Commands of ours were cleared by somebody else, without an answer.
    Cleared,
    /// Nothing that matters here.
    Harmless,
}

impl Sense {
    /// Whether the command was done all the same.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.key, key::NONE | key::RECOVERED)
    }

    /// Whether the target does not know the command, or not with these fields.
    #[must_use]
    pub fn is_unknown_command(&self) -> bool {
        self.key == key::ILLEGAL
    }

    /// Whether the command may be sent again at once.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.key == key::ABORTED
    }

    /// Whether the unit is not ready; it may be later.
    #[must_use]
    pub fn is_not_ready(&self) -> bool {
        self.key == key::NOT_READY
    }

    /// The unit attention, if it is one: the command was not executed.
    #[must_use]
    pub fn attention(&self) -> Option<Attention> {
        (self.key == key::ATTENTION).then_some(match self.code {
            // A new nexus only; nothing of the unit is lost.
            0x2907 => Attention::Harmless,
            0x2900..=0x29ff => Attention::Reset,
            0x2a03 | 0x2a05 => Attention::Preempted,
            0x2a09 | 0x3f03 => Attention::Changed,
            0x2f00..=0x2f02 => Attention::Cleared,
            _ => Attention::Harmless,
        })
    }

    /// The errno of an error that stays one.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match (self.key, self.code) {
            (key::PROTECTED, 0x2707) => libc::ENOSPC,
            (key::PROTECTED, _) => libc::EROFS,
            (key::ILLEGAL, 0x2000) => libc::EOPNOTSUPP,
            (key::ILLEGAL, 0x2100) => libc::EINVAL,
            _ => libc::EIO,
        }
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.key, self.code) {
            (_, 0x2000) => "it does not know this command",
            (_, 0x2100) => "the address is outside the unit",
            (_, 0x2400 | 0x2600) => "it does not support a field of this command",
            (_, 0x2500) => "there is no such LUN",
            (_, 0x2700..=0x2706) => "it is write-protected",
            (_, 0x2707) => "it has no space left",
            (_, 0x2900..=0x29ff) => "it was switched on or reset",
            (_, 0x2a03 | 0x2a05) => "somebody has taken our registration away",
            (_, 0x2a09) => "its capacity has changed",
            (_, 0x3f03) => "it is another unit now",
            (key::NOT_READY, _) => "it is not ready",
            (key::MEDIUM, _) => "the medium has an error there",
            (key::HARDWARE, _) => "its hardware has failed",
            (key::ILLEGAL, _) => "it refuses this command",
            (key::ATTENTION, _) => "something about it has changed",
            (key::PROTECTED, _) => "it is protected",
            (key::ABORTED, _) => "it has aborted the command",
            _ => "it reports an error",
        };
        write!(f, "{what} (sense key {:x}, code {:04x})", self.key, self.code)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good(0) => f.write_str("done"),
            Self::Good(missing) => write!(f, "the target has sent {missing} bytes too few"),
            Self::Check(sense) => sense.fmt(f),
            Self::Conflict => f.write_str("the LUN is reserved by somebody else (RESERVATION CONFLICT)"),
            Self::Busy => f.write_str("the target is busy"),
            Self::Aborted => f.write_str("somebody has had the command aborted"),
            Self::Lost => f.write_str("the session broke"),
            Self::Other(status) => write!(f, "the target ended it with the unknown status {status:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sense(key: u8, code: u16) -> Sense {
        Sense { key, code }
    }

    #[test]
    fn unit_attentions_are_understood() {
        for (code, means) in [
            (0x2900, Attention::Reset),
            (0x2903, Attention::Reset),
            (0x2907, Attention::Harmless),
            (0x2a03, Attention::Preempted),
            (0x2a05, Attention::Preempted),
            (0x2a04, Attention::Harmless),
            (0x2a09, Attention::Changed),
            (0x2f00, Attention::Cleared),
            (0x3f0e, Attention::Harmless),
            (0x2a01, Attention::Harmless),
        ] {
            assert_eq!(sense(6, code).attention(), Some(means), "{code:x}");
            assert_eq!(sense(5, code).attention(), None);
        }
    }

    #[test]
    fn errors_are_told_in_words_and_as_errno() {
        assert_eq!(sense(7, 0x2707).errno(), libc::ENOSPC);
        assert_eq!(sense(7, 0x2700).errno(), libc::EROFS);
        assert_eq!(sense(3, 0x1100).errno(), libc::EIO);
        assert!(sense(1, 0x1700).is_done() && !sense(3, 0x1100).is_done());
        let text = Ended::Check(sense(5, 0x2500)).to_string();
        assert_eq!(text, "there is no such LUN (sense key 5, code 2500)");
        assert!(sense(5, 0x2000).is_unknown_command());
    }
}
