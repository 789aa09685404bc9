//! Log records: what happened to a shard, in order. The same bytes lie in log pages and in the log tail.
//!
//! ```text
//! | crc32c u32 | length u16 | kind u8 | flags u8 | lsn u64 | body ... |
//! ```
//! The CRC covers everything after itself. `length` counts the whole record.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc32c;

/// Blocks that one write record names at most (1 MiB of data).
pub const WRITE_BLOCKS_MAX: usize = 256;
/// Bytes of a catalog value at most.
pub const CATALOG_VALUE_BYTES_MAX: usize = 3072;
/// Bytes of a catalog key at most.
pub const CATALOG_KEY_BYTES_MAX: usize = 255;
/// Bytes of a record at most.
pub const RECORD_BYTES_MAX: usize = 16 + 8 + CATALOG_KEY_BYTES_MAX + CATALOG_VALUE_BYTES_MAX;

/// The first 16 bytes of every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RecordHeader {
    /// CRC32C of the rest of the record.
    pub crc32c: U32,
    /// Bytes of the whole record.
    pub length_bytes: U16,
    /// What the body is.
    pub kind: u8,
    /// Zero in version 1.
    pub flags: u8,
    /// Log sequence number: one more than the record before.
    pub lsn: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct WriteBody {
    pub(crate) volume: U32,
    pub(crate) birth: U32,
    pub(crate) first: U64,
    pub(crate) address: U64,
    // followed by one U32 per block: its CRC32C
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct DiscardBody {
    pub(crate) volume: U32,
    pub(crate) birth: U32,
    pub(crate) first: U64,
    pub(crate) count: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct VolumeBody {
    pub(crate) volume: U32,
    pub(crate) family: U32,
    pub(crate) share_blocks: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct CutBody {
    pub(crate) volume: U32,
    pub(crate) epoch: U32,
    pub(crate) snapshot: U64,
    pub(crate) time_stamp_ns: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct CloneBody {
    pub(crate) volume: U32,
    pub(crate) origin: U32,
    pub(crate) snapshot: U64,
}

/// A log record. Blocks are positions in the shard's share of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// `crcs.len()` blocks from `first` now lie at `address`, one after the other.
    Write {
        /// The volume.
        volume: u32,
        /// Epoch of the write.
        birth: u32,
        /// First block of the share.
        first: u64,
        /// Device address of the first block.
        address: u64,
        /// CRC32C of each block.
        crcs: &'a [U32],
    },
    /// `count` blocks from `first` are holes now.
    Discard {
        /// The volume.
        volume: u32,
        /// Epoch of the discard.
        birth: u32,
        /// First block of the share.
        first: u64,
        /// Blocks.
        count: u64,
    },
    /// The shard has a share of a new volume.
    VolumeCreate {
        /// The volume.
        volume: u32,
        /// The volume whose pages this one may share (itself, unless it is a clone).
        family: u32,
        /// Size of the share.
        share_blocks: u64,
    },
    /// The share has a new size; blocks beyond it are discarded by records of their own.
    VolumeResize {
        /// The volume.
        volume: u32,
        /// New size of the share.
        share_blocks: u64,
    },
    /// The share is to be freed.
    VolumeDelete {
        /// The volume.
        volume: u32,
    },
    /// The map as it is now belongs to `snapshot`; `epoch` is the last epoch it holds.
    Cut {
        /// The volume.
        volume: u32,
        /// The epoch that ended.
        epoch: u32,
        /// The overall snapshot.
        snapshot: u64,
        /// Its time stamp, nanoseconds since the Unix epoch.
        time_stamp_ns: u64,
    },
    /// The intermediate snapshot is to be freed.
    SnapshotDelete {
        /// The volume.
        volume: u32,
        /// The overall snapshot.
        snapshot: u64,
    },
    /// The catalog has this value under this key.
    CatalogPut {
        /// Key, see [`crate::directory`].
        key: &'a [u8],
        /// Value.
        value: &'a [u8],
    },
    /// The catalog has nothing under this key.
    CatalogDelete {
        /// Key.
        key: &'a [u8],
    },
    /// A life of the shard began here that may not know all that was written before. It changes nothing but the CRC of
    /// its page: log pages of an earlier life that lie further on cannot follow a page with this record in it.
    Opened {
        /// When, nanoseconds since the Unix epoch.
        wall_ns: u64,
    },
    /// The shard has a new share that begins as an intermediate snapshot of another one is.
    VolumeClone {
        /// The new volume.
        volume: u32,
        /// The share of the snapshot.
        origin: u32,
        /// The overall snapshot.
        snapshot: u64,
    },
    /// The live map of the share is to be freed; its intermediate snapshots stay.
    HeadDelete {
        /// The volume.
        volume: u32,
    },
}

const HEADER: usize = size_of::<RecordHeader>();

impl<'a> Record<'a> {
    fn kind(&self) -> u8 {
        match self {
            Self::Write { .. } => 1,
            Self::Discard { .. } => 2,
            Self::VolumeCreate { .. } => 3,
            Self::VolumeResize { .. } => 4,
            Self::VolumeDelete { .. } => 5,
            Self::Cut { .. } => 6,
            Self::SnapshotDelete { .. } => 7,
            Self::CatalogPut { .. } => 8,
            Self::CatalogDelete { .. } => 9,
            Self::Opened { .. } => 10,
            Self::VolumeClone { .. } => 11,
            Self::HeadDelete { .. } => 12,
        }
    }

    /// Bytes this record takes.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        HEADER
            + match self {
                Self::Write { crcs, .. } => size_of::<WriteBody>() + crcs.len() * 4,
                Self::Discard { .. } => size_of::<DiscardBody>(),
                Self::VolumeCreate { .. }
                | Self::VolumeResize { .. }
                | Self::VolumeDelete { .. }
                | Self::HeadDelete { .. } => size_of::<VolumeBody>(),
                Self::VolumeClone { .. } => size_of::<CloneBody>(),
                Self::Cut { .. } | Self::SnapshotDelete { .. } => size_of::<CutBody>(),
                Self::CatalogPut { key, value } => 4 + key.len() + value.len(),
                Self::CatalogDelete { key } => 4 + key.len(),
                Self::Opened { .. } => size_of::<U64>(),
            }
    }

    /// Writes the record with its LSN to the start of `into`; gives the bytes used.
    pub fn encode(&self, lsn: u64, into: &mut [u8]) -> usize {
        let length = self.encoded_bytes();
        assert!(length <= RECORD_BYTES_MAX, "a record fits a log page");
        let record = &mut into[..length];
        let body = &mut record[HEADER..];
        match *self {
            Self::Write {
                volume,
                birth,
                first,
                address,
                crcs,
            } => {
                assert!(!crcs.is_empty() && crcs.len() <= WRITE_BLOCKS_MAX);
                let (head, tail) = body.split_at_mut(size_of::<WriteBody>());
                head.copy_from_slice(
                    WriteBody {
                        volume: volume.into(),
                        birth: birth.into(),
                        first: first.into(),
                        address: address.into(),
                    }
                    .as_bytes(),
                );
                tail.copy_from_slice(crcs.as_bytes());
            }
            Self::Discard {
                volume,
                birth,
                first,
                count,
            } => body.copy_from_slice(
                DiscardBody {
                    volume: volume.into(),
                    birth: birth.into(),
                    first: first.into(),
                    count: count.into(),
                }
                .as_bytes(),
            ),
            Self::VolumeCreate {
                volume,
                family,
                share_blocks,
            } => put_volume(body, volume, family, share_blocks),
            Self::VolumeResize { volume, share_blocks } => put_volume(body, volume, 0, share_blocks),
            Self::VolumeDelete { volume } | Self::HeadDelete { volume } => put_volume(body, volume, 0, 0),
            Self::VolumeClone {
                volume,
                origin,
                snapshot,
            } => body.copy_from_slice(
                CloneBody {
                    volume: volume.into(),
                    origin: origin.into(),
                    snapshot: snapshot.into(),
                }
                .as_bytes(),
            ),
            Self::Cut {
                volume,
                epoch,
                snapshot,
                time_stamp_ns,
            } => {
                put_cut(body, volume, epoch, snapshot, time_stamp_ns);
            }
            Self::SnapshotDelete { volume, snapshot } => put_cut(body, volume, 0, snapshot, 0),
            Self::CatalogPut { key, value } => put_pair(body, key, value),
            Self::CatalogDelete { key } => put_pair(body, key, &[]),
            Self::Opened { wall_ns } => body.copy_from_slice(&wall_ns.to_le_bytes()),
        }
        let header = RecordHeader {
            crc32c: 0.into(),
            length_bytes: (length as u16).into(),
            kind: self.kind(),
            flags: 0,
            lsn: lsn.into(),
        };
        record[..HEADER].copy_from_slice(header.as_bytes());
        let crc = crc32c(&record[4..]);
        record[..4].copy_from_slice(&crc.to_le_bytes());
        length
    }

    /// Reads the record at the start of `bytes`: its LSN, itself, its length. `None` if there is no
    /// whole and sound record there, which is how the end of the log tail is found.
    #[must_use]
    pub fn decode(bytes: &'a [u8]) -> Option<(u64, Self, usize)> {
        let (header, _) = RecordHeader::ref_from_prefix(bytes).ok()?;
        let length = usize::from(header.length_bytes.get());
        if !(HEADER..=RECORD_BYTES_MAX).contains(&length) || length > bytes.len() {
            return None;
        }
        if header.flags != 0 || crc32c(&bytes[4..length]) != header.crc32c.get() {
            return None;
        }
        let record = Self::decode_body(header.kind, &bytes[HEADER..length])?;
        Some((header.lsn.get(), record, length))
    }

    fn decode_body(kind: u8, body: &'a [u8]) -> Option<Self> {
        Some(match kind {
            1 => {
                let (head, crcs) = WriteBody::ref_from_prefix(body).ok()?;
                let crcs = <[U32]>::ref_from_bytes(crcs).ok()?;
                if crcs.is_empty() || crcs.len() > WRITE_BLOCKS_MAX || head.address.get() >> 48 != 0 {
                    return None;
                }
                Self::Write {
                    volume: head.volume.get(),
                    birth: head.birth.get(),
                    first: head.first.get(),
                    address: head.address.get(),
                    crcs,
                }
            }
            2 => {
                let body = DiscardBody::ref_from_bytes(body).ok()?;
                Self::Discard {
                    volume: body.volume.get(),
                    birth: body.birth.get(),
                    first: body.first.get(),
                    count: body.count.get(),
                }
            }
            3..=5 | 12 => {
                let body = VolumeBody::ref_from_bytes(body).ok()?;
                let (volume, share_blocks) = (body.volume.get(), body.share_blocks.get());
                match kind {
                    3 => Self::VolumeCreate {
                        volume,
                        family: body.family.get(),
                        share_blocks,
                    },
                    4 => Self::VolumeResize { volume, share_blocks },
                    5 => Self::VolumeDelete { volume },
                    _ => Self::HeadDelete { volume },
                }
            }
            6 | 7 => {
                let body = CutBody::ref_from_bytes(body).ok()?;
                let (volume, snapshot) = (body.volume.get(), body.snapshot.get());
                if kind == 6 {
                    let (epoch, time_stamp_ns) = (body.epoch.get(), body.time_stamp_ns.get());
                    Self::Cut {
                        volume,
                        epoch,
                        snapshot,
                        time_stamp_ns,
                    }
                } else {
                    Self::SnapshotDelete { volume, snapshot }
                }
            }
            8 | 9 => {
                let (key, value) = get_pair(body)?;
                match (kind, value.is_empty()) {
                    (8, _) => Self::CatalogPut { key, value },
                    (_, true) => Self::CatalogDelete { key },
                    // No version writes a value behind a key that goes away.
                    (_, false) => return None,
                }
            }
            10 => Self::Opened {
                wall_ns: U64::read_from_bytes(body).ok()?.get(),
            },
            11 => {
                let body = CloneBody::ref_from_bytes(body).ok()?;
                Self::VolumeClone {
                    volume: body.volume.get(),
                    origin: body.origin.get(),
                    snapshot: body.snapshot.get(),
                }
            }
            _ => return None,
        })
    }
}

fn put_volume(body: &mut [u8], volume: u32, family: u32, share_blocks: u64) {
    let value = VolumeBody {
        volume: volume.into(),
        family: family.into(),
        share_blocks: share_blocks.into(),
    };
    body.copy_from_slice(value.as_bytes());
}

fn put_cut(body: &mut [u8], volume: u32, epoch: u32, snapshot: u64, time_stamp_ns: u64) {
    let value = CutBody {
        volume: volume.into(),
        epoch: epoch.into(),
        snapshot: snapshot.into(),
        time_stamp_ns: time_stamp_ns.into(),
    };
    body.copy_from_slice(value.as_bytes());
}

fn put_pair(body: &mut [u8], key: &[u8], value: &[u8]) {
    assert!(key.len() <= CATALOG_KEY_BYTES_MAX && value.len() <= CATALOG_VALUE_BYTES_MAX);
    body[..2].copy_from_slice(&(key.len() as u16).to_le_bytes());
    body[2..4].copy_from_slice(&(value.len() as u16).to_le_bytes());
    body[4..4 + key.len()].copy_from_slice(key);
    body[4 + key.len()..].copy_from_slice(value);
}

fn get_pair(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let key_bytes = usize::from(u16::from_le_bytes(body.get(..2)?.try_into().ok()?));
    let value_bytes = usize::from(u16::from_le_bytes(body.get(2..4)?.try_into().ok()?));
    if key_bytes > CATALOG_KEY_BYTES_MAX || body.len() != 4 + key_bytes + value_bytes {
        return None;
    }
    Some(body[4..].split_at(key_bytes))
}
