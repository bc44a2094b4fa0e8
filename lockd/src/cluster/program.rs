//! The programs of a node that other nodes speak with, each on a port of its own.

use std::fmt;

/// A program of a node that other nodes speak with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Program {
    /// `lockd`.
    Lockd,
    /// `csvfs mount` of the volume with this place among the volumes of the cluster file. Each mount is a process.
    Mount(u8),
    /// `vmhost serve`.
    Vmhost,
}

impl Program {
    /// How far its port is from that of the node's lockd: lockd 0, the first volume's mount 1, vmhost 2, the mounts of
    /// further volumes 3 and on.
    #[must_use]
    pub const fn port_offset(self) -> u16 {
        match self {
            Self::Lockd => 0,
            Self::Mount(0) => 1,
            Self::Vmhost => 2,
            Self::Mount(volume) => 2 + volume as u16,
        }
    }

    /// How many ports in a row a node needs in a cluster of so many volumes.
    #[must_use]
    pub fn ports(volumes: usize) -> u16 {
        let last = u8::try_from(volumes.saturating_sub(1)).unwrap_or(u8::MAX);
        Self::Mount(last).port_offset().max(Self::Vmhost.port_offset()) + 1
    }

    /// The program with that port offset.
    #[must_use]
    pub fn from_port_offset(offset: u16) -> Option<Self> {
        match offset {
            0 => Some(Self::Lockd),
            1 => Some(Self::Mount(0)),
            2 => Some(Self::Vmhost),
            _ => u8::try_from(offset - 2).ok().map(Self::Mount),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lockd => f.write_str("lockd"),
            Self::Mount(volume) => write!(f, "the mount of volume {volume}"),
            Self::Vmhost => f.write_str("vmhost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_has_a_port_of_its_own() {
        let programs =
            [Program::Lockd, Program::Mount(0), Program::Vmhost, Program::Mount(1), Program::Mount(2)];
        for (offset, program) in (0..).zip(programs) {
            assert_eq!(program.port_offset(), offset);
            assert_eq!(Program::from_port_offset(offset), Some(program));
        }
        assert_eq!([0, 1, 2, 3].map(Program::ports), [3, 3, 4, 5]);
        assert_eq!(Program::from_port_offset(u16::MAX), None);
    }
}
