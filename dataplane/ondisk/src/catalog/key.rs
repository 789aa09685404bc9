//! Keys: one letter and a number.

use crate::page::Damage;

/// The key of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The counters.
    Counters,
    /// An export.
    Export(u32),
    /// Figures of a snapshot.
    Figures {
        /// The snapshot.
        snapshot: u64,
        /// The first shard that the row is about.
        first_shard: u16,
    },
    /// The highest wall time.
    HighestTime,
    /// A change log volume.
    ChangeLog(u32),
    /// Marks of a snapshot.
    Marks(u64),
    /// A schedule.
    Schedule(u64),
    /// A named group of volumes.
    Group(u64),
    /// How the scrubs of some consecutive shards stand.
    Scrubs {
        /// The first of them.
        first_shard: u16,
    },
    /// What the scrub of this shard found.
    ScrubDamage(u16),
    /// A snapshot.
    Snapshot(u64),
    /// A volume.
    Volume(u32),
}

impl Key {
    /// The bytes of the key.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Counters => vec![b'C'],
            Self::Export(export) => [&b"E"[..], &export.to_be_bytes()].concat(),
            Self::Figures {
                snapshot,
                first_shard,
            } => [&b"F"[..], &snapshot.to_be_bytes(), &first_shard.to_be_bytes()].concat(),
            Self::Schedule(schedule) => [&b"G"[..], &schedule.to_be_bytes()].concat(),
            Self::HighestTime => vec![b'H'],
            Self::Group(group) => [&b"N"[..], &group.to_be_bytes()].concat(),
            Self::ChangeLog(log) => [&b"L"[..], &log.to_be_bytes()].concat(),
            Self::Scrubs { first_shard } => [&b"R"[..], &first_shard.to_be_bytes()].concat(),
            Self::ScrubDamage(shard) => [&b"D"[..], &shard.to_be_bytes()].concat(),
            Self::Marks(snapshot) => [&b"M"[..], &snapshot.to_be_bytes()].concat(),
            Self::Snapshot(snapshot) => [&b"S"[..], &snapshot.to_be_bytes()].concat(),
            Self::Volume(volume) => [&b"V"[..], &volume.to_be_bytes()].concat(),
        }
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`Damage::Field`] if no version writes such a key.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        const BAD: Damage = Damage::Field("catalog key");
        let (&kind, rest) = bytes.split_first().ok_or(BAD)?;
        let key = match (kind, rest.len()) {
            (b'C', 0) => Self::Counters,
            (b'E', 4) => Self::Export(u32::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'F', 10) => Self::Figures {
                snapshot: u64::from_be_bytes(rest[..8].try_into().map_err(|_| BAD)?),
                first_shard: u16::from_be_bytes(rest[8..].try_into().map_err(|_| BAD)?),
            },
            (b'G', 8) => Self::Schedule(u64::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'N', 8) => Self::Group(u64::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'R', 2) => Self::Scrubs {
                first_shard: u16::from_be_bytes(rest.try_into().map_err(|_| BAD)?),
            },
            (b'D', 2) => Self::ScrubDamage(u16::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'H', 0) => Self::HighestTime,
            (b'L', 4) => Self::ChangeLog(u32::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'M', 8) => Self::Marks(u64::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'S', 8) => Self::Snapshot(u64::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            (b'V', 4) => Self::Volume(u32::from_be_bytes(rest.try_into().map_err(|_| BAD)?)),
            _ => return Err(BAD),
        };
        Ok(key)
    }
}
