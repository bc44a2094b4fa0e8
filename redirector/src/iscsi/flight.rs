//! A request in flight, as commands.

use std::ops::Range;

use lockd::clock::BootTime;
use lockd::iscsi::cdb::{Cdb, unmap_list};
use lockd::iscsi::{Page, Payload, Transfer, Unit};

use crate::paths::request::{Command, Request};

/// What requests are made to commands by.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks of the longest UNMAP.
    pub unmap_max: u32,
    /// Blocks of the longest WRITE SAME.
    pub write_same_max: u32,
    /// WRITE SAME may give the blocks up.
    pub unmapped_is_zero: bool,
}

impl Terms {
    /// Those of `unit`.
    #[must_use]
    pub fn of(unit: &Unit) -> Self {
        Self {
            block_size: unit.block_size,
            unmap_max: unit.unmap_max,
            write_same_max: unit.write_same_max,
            unmapped_is_zero: unit.unmapped_is_zero && unit.unmap_max > 0,
        }
    }

    fn blocks(&self, bytes: u64) -> u32 {
        u32::try_from(bytes / u64::from(self.block_size)).unwrap_or(u32::MAX)
    }
}

/// A request and the command that is under way for it.
#[derive(Debug)]
pub struct Entry {
    /// The request itself.
    pub request: Request,
    /// When it was sent first on this session.
    pub sent: BootTime,
    /// How often the present command has been sent.
    pub tries: u32,
    /// Of a zero or a trim: how many bytes earlier commands have done, and how many this one does.
    done: u64,
    part: u64,
    /// The bytes that a zero or a trim sends.
    parameters: Vec<u8>,
}

impl Entry {
    /// A request that has not been sent.
    #[must_use]
    pub fn new(request: Request, sent: BootTime) -> Self {
        Self { request, sent, tries: 0, done: 0, part: 0, parameters: Vec::new() }
    }

    /// The next command for it.
    pub fn command(&mut self, terms: &Terms) -> Cdb {
        let size = u64::from(terms.block_size);
        self.tries += 1;
        match &self.request.command {
            Command::Read(offset, buffer, _) => Cdb::read(offset / size, terms.blocks(buffer.len() as u64)),
            Command::Write(offset, data, fua, _) => {
                Cdb::write(offset / size, terms.blocks(data.len() as u64), *fua)
            }
            Command::Flush(_) => Cdb::synchronize_cache(),
            Command::Zero(range, _) => {
                let (block, blocks) = self.next_part(range.clone(), terms, terms.write_same_max);
                self.parameters = vec![0; usize::try_from(terms.block_size).unwrap_or(0)];
                Cdb::write_same(block, blocks, terms.unmapped_is_zero)
            }
            Command::Trim(range, _) => {
                let (block, blocks) = self.next_part(range.clone(), terms, terms.unmap_max);
                self.parameters = unmap_list(Some((block, blocks)));
                Cdb::unmap(u16::try_from(self.parameters.len()).unwrap_or(0))
            }
        }
    }

    fn next_part(&mut self, range: Range<u64>, terms: &Terms, blocks_max: u32) -> (u64, u32) {
        let size = u64::from(terms.block_size);
        let left = range.end - range.start - self.done;
        self.part = left.min(u64::from(blocks_max.max(1)) * size);
        ((range.start + self.done) / size, terms.blocks(self.part))
    }

    /// Whether what is transferred is the caller's data.
    #[must_use]
    pub fn moves_data(&self) -> bool {
        matches!(self.request.command, Command::Read(..) | Command::Write(..))
    }

    /// The command is done. Whether the request is.
    pub fn has_done(&mut self) -> bool {
        let len = match &self.request.command {
            Command::Zero(range, _) | Command::Trim(range, _) => range.end - range.start,
            Command::Read(..) | Command::Write(..) | Command::Flush(_) => return true,
        };
        self.done += self.part;
        self.tries = 0;
        self.done >= len
    }
}

/// What a session carries.
#[derive(Debug)]
pub enum Load {
    /// A request.
    Io(Box<Entry>),
    /// A command of our own.
    Own(Page),
}

impl From<Page> for Load {
    fn from(page: Page) -> Self {
        Self::Own(page)
    }
}

// SAFETY: buffers, slices and vectors keep their bytes in their place on the heap when they are moved. A read's buffer
// belongs to the request alone; a slice is only read, by everybody.
unsafe impl Payload for Load {
    fn transfer(&mut self) -> Transfer {
        match self {
            Self::Own(page) => page.transfer(),
            Self::Io(entry) => match &mut entry.request.command {
                Command::Read(_, buffer, _) => Transfer::In(buffer.as_mut_ptr(), buffer.len()),
                Command::Write(_, data, ..) => Transfer::Out(data.as_ptr(), data.len()),
                Command::Flush(_) => Transfer::None,
                Command::Zero(..) | Command::Trim(..) => {
                    Transfer::Out(entry.parameters.as_ptr(), entry.parameters.len())
                }
            },
        }
    }

    fn into_page(self) -> Option<Page> {
        match self {
            Self::Own(page) => Some(page),
            Self::Io(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Pool;

    const TERMS: Terms = Terms { block_size: 512, unmap_max: 8, write_same_max: 16, unmapped_is_zero: false };

    fn entry(command: Command) -> Entry {
        Entry::new(Request::new(command, BootTime(0)), BootTime(0))
    }

    #[test]
    fn requests_become_commands_in_blocks() {
        let pool = Pool::default();
        let mut read = entry(Command::Read(8192, pool.take(4096), Box::new(|_, _| ())));
        assert_eq!(read.command(&TERMS), Cdb::read(16, 8));
        let large = Terms { block_size: 4096, ..TERMS };
        let mut write = entry(Command::Write(8192, pool.take(4096).share(), true, Box::new(|_| ())));
        assert_eq!(write.command(&large), Cdb::write(2, 1, true));
        assert!(write.has_done());
    }

    #[test]
    fn long_trims_and_zeroes_go_in_parts_until_all_is_done() {
        let mut trim = entry(Command::Trim(4096..4096 + 10 * 512, Box::new(|_| ())));
        assert_eq!(trim.command(&TERMS), Cdb::unmap(24));
        assert_eq!(trim.parameters, unmap_list(Some((8, 8))));
        assert!(!trim.has_done());
        trim.command(&TERMS);
        assert_eq!(trim.parameters, unmap_list(Some((16, 2))));
        // Sent again: the same part.
        trim.command(&TERMS);
        assert_eq!((trim.parameters.as_slice(), trim.tries), (&unmap_list(Some((16, 2)))[..], 2));
        assert!(trim.has_done());
        let mut zero = entry(Command::Zero(0..20 * 512, Box::new(|_| ())));
        assert_eq!(zero.command(&TERMS), Cdb::write_same(0, 16, false));
        assert!(!zero.has_done());
        assert_eq!(zero.command(&TERMS), Cdb::write_same(16, 4, false));
        assert!(zero.has_done());
    }
}
