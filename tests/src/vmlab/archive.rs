//! An initramfs: cpio's "new ASCII" format (cpio(5)), as the kernel unpacks it. Not compressed: unpacking would be emulated.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive that is being made.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<PathBuf>,
    number: u32,
}

impl Archive {
    fn entry(&mut self, path: &Path, mode: u32, contents: &[u8]) -> Result<()> {
        let name = path.strip_prefix("/").unwrap_or(path).to_str().context("a name that is no text")?;
        let len = u32::try_from(contents.len()).context("a file of 4 GiB")?;
        self.number += 1;
        let mut header = String::from("070701");
        let name_len = u32::try_from(name.len() + 1)?;
        // Number, mode, owner, group, links, time, length, four of devices, the name's length, no checksum.
        for field in [self.number, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0] {
            write!(header, "{field:08x}")?;
        }
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(contents);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// A folder, and those that it is in.
    pub(super) fn folder(&mut self, path: &Path) -> Result<()> {
        let above: Vec<&Path> = path.ancestors().filter(|path| path.parent().is_some()).collect();
        for folder in above.into_iter().rev() {
            if self.folders.insert(folder.to_owned()) {
                self.entry(folder, FOLDER | 0o755, &[])?;
            }
        }
        Ok(())
    }

    /// A file, whose permissions are `mode`.
    pub(super) fn file(&mut self, path: &Path, mode: u32, contents: &[u8]) -> Result<()> {
        self.folder(path.parent().context("a file has a folder")?)?;
        self.entry(path, REGULAR | mode, contents)
    }

    /// A symbolic link to `to`.
    pub(super) fn link(&mut self, path: &Path, to: &str) -> Result<()> {
        self.folder(path.parent().context("a link has a folder")?)?;
        self.entry(path, LINK | 0o777, to.as_bytes())
    }

    /// The whole.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(Path::new("TRAILER!!!"), 0, &[])?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_bytes_of_the_format() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b"), 0o644, b"hello").unwrap();
        archive.link(Path::new("/a/c"), "b").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(bytes.len().is_multiple_of(4));
        assert!(text.starts_with("0707010000000100004 1ed".replace(' ', "").as_str()), "{text}");
        for part in ["a/b\0\0\0hello\0", "000081a4", "a/c\0\0\0b\0", "0000a1ff", "TRAILER!!!\0"] {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }
}
