//! What lies on a device: a pool, a file system, a partition table, something, nothing. Recognised by the marks that
//! tools of all kinds look for, so that nothing of anybody's is overwritten without being named.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::Result;
use crate::label::{self, Found};
use stillpoint_hw::device::DeviceFile;

/// Bytes at either end of a device that are looked at, and wiped when it is taken by force: so much that all four labels of ZFS
/// (at 0 and 256 KiB, and 512 and 256 KiB before the end) are among them.
pub const END_BYTES: usize = 1 << 20;

/// What lies on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros, where marks would lie.
    Nothing,
    /// A pool of Stillpoint.
    Pool(String),
    /// A pool's label that cannot be used, and why.
    DamagedLabel(String),
    /// Something with a well-known mark: `an ext4 file system`.
    Known(&'static str),
    /// Something else.
    Unknown,
}

impl Content {
    /// In words; `None` for nothing.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Pool(name) => Some(format!("pool {name}")),
            Self::DamagedLabel(why) => Some(format!("a pool's label: {why}")),
            Self::Known(what) => Some((*what).to_owned()),
            Self::Unknown => Some("unknown data".to_owned()),
        }
    }
}

/// Where a mark lies.
#[derive(Clone, Copy)]
enum At {
    /// So many bytes from the start.
    Front(usize),
    /// So many bytes before the end, and from there back to a multiple of the second number.
    Back(u64, u64),
}

/// Marks, in the order in which they count: what is inside another thing comes after it.
const MARKS: [(At, &[u8], &str); 26] = [
    (At::Front(512), b"EFI PART", "a GPT partition table"),
    (At::Front(4096), b"EFI PART", "a GPT partition table"),
    (At::Back(512, 512), b"EFI PART", "a GPT partition table"),
    (At::Back(4096, 4096), b"EFI PART", "a GPT partition table"),
    (At::Front(0), b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (At::Front(16 << 10), b"SKUL\xba\xbe", "an encrypted volume (LUKS)"),
    (At::Front(512), b"LABELONE", "a physical volume of LVM"),
    (At::Front(0), b"LABELONE", "a physical volume of LVM"),
    (At::Front(4096), b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
    (At::Front(0), b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
    // Versions 1.0 and 0.90.
    (
        At::Back(8 << 10, 4 << 10),
        b"\xfc\x4e\x2b\xa9",
        "a member of a RAID (md)",
    ),
    (
        At::Back(64 << 10, 64 << 10),
        b"\xfc\x4e\x2b\xa9",
        "a member of a RAID (md)",
    ),
    (At::Front(1080), b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (At::Front(0), b"XFSB", "an XFS file system"),
    (At::Front((64 << 10) + 64), b"_BHRfS_M", "a Btrfs file system"),
    (At::Front(1024), b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (
        At::Front(4096 + 24),
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca",
        "a bcache device",
    ),
    (At::Front(4086), b"SWAPSPACE2", "swap"),
    (At::Front(0), b"hsqs", "a SquashFS file system"),
    (At::Front(32769), b"CD001", "an ISO 9660 file system"),
    (At::Front(32769), b"NSR0", "a UDF file system"),
    (At::Front(3), b"NTFS    ", "an NTFS file system"),
    (At::Front(3), b"EXFAT   ", "an exFAT file system"),
    (At::Front(82), b"FAT32   ", "a FAT file system"),
    (At::Front(54), b"FAT16   ", "a FAT file system"),
    (
        At::Front(4096 + 24),
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
        "a bcachefs file system",
    ),
];

/// An MBR ends its first sector so; boot sectors of file systems do too, so it comes last.
const MBR_MARK: (usize, [u8; 2]) = (510, [0x55, 0xaa]);

/// Looks at a device.
///
/// # Errors
/// If it cannot be read.
pub fn look(path: &Path) -> Result<Content> {
    let file = File::open(path).map_err(|error| label::unreadable(path, &error))?;
    look_in(&file, path)
}

/// Looks at a device that was claimed, whatever its path leads to by now.
///
/// # Errors
/// If it cannot be read.
pub fn look_claimed(device: &DeviceFile) -> Result<Content> {
    let path = device.path();
    device
        .read_anywhere(|file| look_in(file, path))
        .map_err(|error| label::unreadable(path, &error))?
}

fn look_in(file: &File, path: &Path) -> Result<Content> {
    Ok(match label::look_in(file, path)? {
        Found::Label { label, .. } => Content::Pool(label.name().to_owned()),
        Found::Damaged(damage) => Content::DamagedLabel(damage.to_string()),
        found @ (Found::Nothing | Found::Other) => {
            let ends = read_ends(file).map_err(|error| label::unreadable(path, &error))?;
            match recognise(&ends) {
                Content::Nothing if matches!(found, Found::Other) => Content::Unknown,
                content => content,
            }
        }
    })
}

/// The start and the end of a device; all of it, twice, if it is short.
struct Ends {
    size_bytes: u64,
    front: Vec<u8>,
    back: Vec<u8>,
}

fn read_ends(mut file: &File) -> io::Result<Ends> {
    let size_bytes = file.seek(SeekFrom::End(0))?;
    let length = size_bytes.min(END_BYTES as u64);
    let read = |start| {
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, start).map(|()| bytes)
    };
    Ok(Ends {
        size_bytes,
        front: read(0)?,
        back: read(size_bytes - length)?,
    })
}

impl At {
    /// The place on a device of this size, if it is that large.
    fn offset_bytes(self, size_bytes: u64) -> Option<u64> {
        match self {
            Self::Front(offset) => Some(offset as u64),
            Self::Back(distance, multiple) => {
                let offset = size_bytes.checked_sub(distance)?;
                Some(offset / multiple * multiple)
            }
        }
    }
}

fn starts_at(bytes: &[u8], offset: u64, mark: &[u8]) -> bool {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..));
    rest.is_some_and(|rest| rest.starts_with(mark))
}

fn recognise(ends: &Ends) -> Content {
    let is_there = |&&(at, mark, _): &&(At, &[u8], &str)| match at {
        At::Front(offset) => starts_at(&ends.front, offset as u64, mark),
        At::Back(..) => at.offset_bytes(ends.size_bytes).is_some_and(|offset| {
            let back_start = ends.size_bytes - ends.back.len() as u64;
            offset >= back_start && starts_at(&ends.back, offset - back_start, mark)
        }),
    };
    if let Some((_, _, what)) = MARKS.iter().find(is_there) {
        return Content::Known(what);
    }
    let (offset, mark) = MBR_MARK;
    if ends.front.get(offset..offset + 2) == Some(&mark) {
        return Content::Known("an MBR partition table or boot sector");
    }
    match ends.front.iter().chain(&ends.back).all(|&byte| byte == 0) {
        true => Content::Nothing,
        false => Content::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SIZE_BYTES: usize = 4 << 20;

    fn with(bytes: &[(usize, &[u8])]) -> Content {
        with_size(SIZE_BYTES, bytes)
    }

    fn with_size(size_bytes: usize, bytes: &[(usize, &[u8])]) -> Content {
        let mut image = vec![0; size_bytes];
        for (offset, some) in bytes {
            image[*offset..*offset + some.len()].copy_from_slice(some);
        }
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(&image).expect("written");
        let content = look(file.path()).expect("readable");
        let claimed = DeviceFile::open(file.path()).expect("free");
        assert_eq!(look_claimed(&claimed).expect("readable"), content);
        content
    }

    #[test]
    fn every_mark_is_found_where_it_lies() {
        for size_bytes in [SIZE_BYTES, SIZE_BYTES + (60 << 10), SIZE_BYTES + 512] {
            for (at, mark, what) in MARKS {
                let offset = at.offset_bytes(size_bytes as u64).expect("large enough") as usize;
                assert_eq!(
                    with_size(size_bytes, &[(offset, mark)]),
                    Content::Known(what),
                    "{what} at {offset} of {size_bytes}"
                );
            }
        }
    }

    #[test]
    fn marks_at_the_end_lie_where_their_tools_round_to() {
        const MD: (&[u8], Content) = (b"\xfc\x4e\x2b\xa9", Content::Known("a member of a RAID (md)"));
        const GPT: (&[u8], Content) = (b"EFI PART", Content::Known("a GPT partition table"));
        for (size_bytes, offset, (mark, content)) in [
            // Version 0.90: the last whole 64 KiB but one boundary, from 64 to 128 KiB before the end.
            (4 << 20, (4 << 20) - (64 << 10), MD),
            ((4 << 20) + (60 << 10), (4 << 20) - (64 << 10), MD),
            ((4 << 20) + (64 << 10) + 512, 4 << 20, MD),
            // Version 1.0: 8 KiB before the end, back to 4 KiB.
            ((4 << 20) + 512, (4 << 20) - (8 << 10), MD),
            // The last sector of 512 bytes, outside of whole blocks of 4096.
            ((4 << 20) + 512, 4 << 20, GPT),
            ((4 << 20) + 1536, (4 << 20) + 1024, GPT),
        ] {
            assert_eq!(
                with_size(size_bytes, &[(offset, mark)]),
                content,
                "{offset} of {size_bytes}"
            );
        }
    }

    #[test]
    fn an_mbr_is_told_and_does_not_hide_what_is_more() {
        let mbr: (usize, &[u8]) = (510, &[0x55, 0xaa]);
        assert_eq!(
            with(&[mbr]),
            Content::Known("an MBR partition table or boot sector")
        );
        assert_eq!(
            with(&[mbr, (512, b"EFI PART")]),
            Content::Known("a GPT partition table")
        );
    }

    #[test]
    fn data_without_a_mark_is_data_wherever_marks_would_lie() {
        assert_eq!(with(&[]), Content::Nothing);
        for offset in [
            0,
            100_000,
            END_BYTES - 1,
            SIZE_BYTES - END_BYTES,
            SIZE_BYTES - 5_000,
            SIZE_BYTES - 1,
        ] {
            assert_eq!(with(&[(offset, &[1])]), Content::Unknown, "{offset}");
        }
        assert_eq!(
            with(&[(SIZE_BYTES / 2, &[1])]),
            Content::Nothing,
            "free for the asking"
        );
    }

    #[test]
    fn short_devices_are_looked_at_too() {
        for size_bytes in [0, 1, 511, 4096, 70_000] {
            let file = tempfile::NamedTempFile::new().expect("a temporary file");
            file.as_file().set_len(size_bytes).expect("made");
            assert_eq!(
                look(file.path()).expect("readable"),
                Content::Nothing,
                "{size_bytes}"
            );
        }
        assert!(look(Path::new("/nowhere/at/all")).is_err());
    }
}
