//! What lies on a device: a pool, a file system, a partition table, something, nothing. Recognised by the marks that
//! tools of all kinds look for, so that nothing of anybody's is overwritten without being named.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::Result;
use crate::label::{self, Found};

/// Bytes at the start of a device that are looked at, and wiped when it is taken by force.
pub const FRONT_BYTES: usize = 128 << 10;
/// The same at its end.
pub const BACK_BYTES: usize = 64 << 10;

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
    /// So many bytes before the end.
    Back(usize),
}

/// Marks, in the order in which they count: what is inside another thing comes after it.
const MARKS: [(At, &[u8], &str); 26] = [
    (At::Front(512), b"EFI PART", "a GPT partition table"),
    (At::Front(4096), b"EFI PART", "a GPT partition table"),
    (At::Back(512), b"EFI PART", "a GPT partition table"),
    (At::Back(4096), b"EFI PART", "a GPT partition table"),
    (At::Front(0), b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (At::Front(16 << 10), b"SKUL\xba\xbe", "an encrypted volume (LUKS)"),
    (At::Front(512), b"LABELONE", "a physical volume of LVM"),
    (At::Front(0), b"LABELONE", "a physical volume of LVM"),
    (At::Front(4096), b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
    (At::Front(0), b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
    (At::Back(8 << 10), b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
    (At::Back(64 << 10), b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
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
    (At::Front(0), b"bcachefs", "a bcachefs file system"),
];

/// An MBR ends its first sector so; boot sectors of file systems do too, so it comes last.
const MBR_MARK: (usize, [u8; 2]) = (510, [0x55, 0xaa]);

/// Looks at a device.
///
/// # Errors
/// If it cannot be read.
pub fn look(path: &Path) -> Result<Content> {
    Ok(match label::look(path)? {
        Found::Label { label, .. } => Content::Pool(label.name().to_owned()),
        Found::Damaged(damage) => Content::DamagedLabel(damage.to_string()),
        found @ (Found::Nothing | Found::Other) => {
            let ends = read_ends(path)
                .map_err(|error| crate::Error::failure(format!("cannot read {}: {error}", path.display())))?;
            match recognise(&ends) {
                Content::Nothing if matches!(found, Found::Other) => Content::Unknown,
                content => content,
            }
        }
    })
}

/// The start and the end of a device; all of it, twice, if it is short.
struct Ends {
    front: Vec<u8>,
    back: Vec<u8>,
}

fn read_ends(path: &Path) -> io::Result<Ends> {
    let mut file = File::open(path)?;
    let size_bytes = file.seek(SeekFrom::End(0))?;
    let read = |length_bytes: usize, from_end: bool| {
        let length = size_bytes.min(length_bytes as u64);
        let mut bytes = vec![0; length as usize];
        let start = if from_end { size_bytes - length } else { 0 };
        file.read_exact_at(&mut bytes, start).map(|()| bytes)
    };
    Ok(Ends {
        front: read(FRONT_BYTES, false)?,
        back: read(BACK_BYTES, true)?,
    })
}

fn recognise(ends: &Ends) -> Content {
    let is_there = |(at, mark, _): &&(At, &[u8], &str)| match *at {
        At::Front(offset) => ends
            .front
            .get(offset..)
            .is_some_and(|bytes| bytes.starts_with(mark)),
        At::Back(distance) => {
            let start = ends.back.len().checked_sub(distance);
            start.is_some_and(|start| ends.back[start..].starts_with(mark))
        }
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

    const SIZE_BYTES: usize = 1 << 20;

    fn with(bytes: &[(usize, &[u8])]) -> Content {
        let mut image = vec![0; SIZE_BYTES];
        for (offset, some) in bytes {
            image[*offset..*offset + some.len()].copy_from_slice(some);
        }
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(&image).expect("written");
        look(file.path()).expect("readable")
    }

    #[test]
    fn every_mark_is_found_where_it_lies() {
        for (at, mark, what) in MARKS {
            let offset = match at {
                At::Front(offset) => offset,
                At::Back(distance) => SIZE_BYTES - distance,
            };
            assert_eq!(
                with(&[(offset, mark)]),
                Content::Known(what),
                "{what} at {offset}"
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
        for offset in [0, 100_000, SIZE_BYTES - 5_000, SIZE_BYTES - 1] {
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
