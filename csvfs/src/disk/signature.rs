//! What else may be on a LUN: the signatures of other file systems, volume managers, partition tables, image formats.

use redirector::buffer::Pool;
use redirector::lun::Lun;

use super::blocks::read_bytes;
use super::frame::Damage;
use super::label::Label;
use super::layout::{BLOCK_LEN, LABEL_COPY_AT, byte};

/// How much of the start of the LUN is looked at.
const START: u64 = (1 << 20) + 4096;
/// How much of its end.
const END: u64 = 64 << 10;

/// A name, and bytes at a place that give it away.
struct Signature(&'static str, usize, &'static [u8]);

const AT_START: &[Signature] = &[
    Signature("an XFS file system", 0, b"XFSB"),
    Signature("a Btrfs file system", 0x1_0040, b"_BHRfS_M"),
    Signature("an ext2, ext3 or ext4 file system", 0x438, &[0x53, 0xef]),
    Signature("an LVM physical volume", 0, b"LABELONE"),
    Signature("an LVM physical volume", 0x200, b"LABELONE"),
    Signature("an LVM physical volume", 0x400, b"LABELONE"),
    Signature("an LVM physical volume", 0x600, b"LABELONE"),
    Signature("a GPT partition table", 512, b"EFI PART"),
    Signature("a GPT partition table", 4096, b"EFI PART"),
    Signature("a LUKS container", 0, b"LUKS\xba\xbe"),
    Signature("swap space", 4086, b"SWAPSPACE2"),
    Signature("swap space", 4086, b"SWAP-SPACE"),
    Signature("a qcow2 image", 0, b"QFI\xfb"),
    Signature("a VMDK image", 0, b"KDMV"),
    Signature("a VHDX image", 0, b"vhdxfile"),
    Signature("a VDI image", 0x40, &[0x7f, 0x10, 0xda, 0xbe]),
    Signature("a SquashFS file system", 0, b"hsqs"),
    Signature("an EROFS file system", 0x400, &[0xe2, 0xe1, 0xf5, 0xe0]),
    Signature("an F2FS file system", 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    Signature("a GFS2 file system", 0x1_0000, &[0x01, 0x16, 0x19, 0x70]),
    Signature("an OCFS2 file system", 0x400, b"OCFSV2"),
    Signature("an OCFS2 file system", 0x800, b"OCFSV2"),
    Signature("an OCFS2 file system", 0x1000, b"OCFSV2"),
    Signature("an OCFS2 file system", 0x2000, b"OCFSV2"),
    Signature("a Linux RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    Signature("a Linux RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    Signature("a bcache or bcachefs device", 4120, &[0xc6, 0x85, 0x73, 0xf6]),
    Signature("a VDO volume", 0, b"dmvdo001"),
    Signature("a Ceph BlueStore device", 0, b"bluestore block device"),
    Signature("a Stratis pool member", 512 + 4, b"!Stra0tis"),
    Signature("an NTFS file system", 3, b"NTFS    "),
    Signature("an exFAT file system", 3, b"EXFAT   "),
    Signature("a FAT file system", 0x36, b"FAT1"),
    Signature("a FAT file system", 0x52, b"FAT32"),
    Signature("an ISO 9660 image", 0x8001, b"CD001"),
    Signature("a JFS file system", 0x8000, b"JFS1"),
    Signature("a ReiserFS file system", 0x1_0034, b"ReIsEr"),
    Signature("an HFS+ file system", 0x400, b"H+"),
    Signature("a VMFS volume", 0x10_0000, &[0x0d, 0xd0, 0x01, 0xc0]),
    // The last, because FAT, NTFS and boot loaders have it too.
    Signature("an MBR partition table or boot sector", 510, &[0x55, 0xaa]),
];

/// The magic number of a ZFS uberblock, which lies in one of 128 places of the first label.
const ZFS: [u8; 8] = 0x00ba_b10c_u64.to_le_bytes();

/// What a LUN carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Nothing that is known.
    Unknown,
    /// A volume of ours.
    Volume(Box<Label>),
    /// Something else, by its name.
    Other(String),
}

/// Looks at the start and the end of a LUN. Errors are positive errnos.
pub fn identify(lun: &dyn Lun, pool: &Pool) -> Result<Content, i32> {
    let size = lun.geometry().size / BLOCK_LEN as u64 * BLOCK_LEN as u64;
    let start = read_bytes(lun, pool, 0, START.min(size))?;
    match start.get(..BLOCK_LEN).map(Label::decode) {
        Some(Ok(label)) => return Ok(Content::Volume(Box::new(label))),
        Some(Err(Damage::Checksum { .. } | Damage::Version(_) | Damage::Value { .. })) => {
            return Ok(Content::Other("a csvfs volume that is damaged or of a later version".to_owned()));
        }
        _ => {}
    }
    let carries = |bytes: &[u8], at: usize, magic: &[u8]| bytes.get(at..at + magic.len()) == Some(magic);
    if let Some(found) = AT_START.iter().find(|signature| carries(&start, signature.1, signature.2)) {
        return Ok(Content::Other(found.0.to_owned()));
    }
    let big_endian = [ZFS[7], ZFS[6], ZFS[5], ZFS[4], ZFS[3], ZFS[2], ZFS[1], ZFS[0]];
    let uberblocks = (0..128).map(|i| 0x2_0000 + i * 1024);
    if uberblocks.into_iter().any(|at| carries(&start, at, &ZFS) || carries(&start, at, &big_endian)) {
        return Ok(Content::Other("a ZFS pool member".to_owned()));
    }
    let end_at = size.saturating_sub(END);
    let end = read_bytes(lun, pool, end_at, size - end_at)?;
    if (0..end.len()).step_by(512).any(|at| carries(&end, at, b"EFI PART")) {
        return Ok(Content::Other("a GPT partition table (its backup at the end)".to_owned()));
    }
    if (0..end.len()).step_by(4096).any(|at| carries(&end, at, &[0xfc, 0x4e, 0x2b, 0xa9])) {
        return Ok(Content::Other("a Linux RAID member (metadata at the end)".to_owned()));
    }
    // A volume whose label was overwritten by nothing that is known.
    let copy = usize::try_from(byte(LABEL_COPY_AT)).unwrap_or(usize::MAX);
    if let Some(Ok(label)) = start.get(copy..copy + BLOCK_LEN).map(Label::decode) {
        return Ok(Content::Volume(Box::new(label)));
    }
    Ok(Content::Unknown)
}
