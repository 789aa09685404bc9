//! What a check found, in words and in figures.

use core::fmt;

use stillpoint_ondisk::Damage;

use super::super::recovery::OpenError;
use crate::ids::{DeviceAddress, DeviceIndex, ShardIndex, ShareBlock, VolumeId};
use crate::ports::DeviceError;
use crate::request::View;
use crate::space::Extent;

/// Problems of one kind that are named; the others are counted.
pub const NAMED_MAX: u64 = 100;
/// Views that are named with a problem.
pub(super) const VIEWS_MAX: usize = 8;

/// Why something cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was read, and is not what it has to be.
    Damaged(Damage),
    /// It cannot be read.
    Unreadable(DeviceError),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(damage) => write!(f, "{damage}"),
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

/// What a block is used as, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// A block of a share.
    Block {
        /// Volume and snapshots that show it (the first few).
        views: Vec<View>,
        /// Which.
        block: ShareBlock,
    },
    /// A page of a map.
    MapPage {
        /// Volume and snapshots that need it (the first few).
        views: Vec<View>,
        /// 0 = leaf.
        level: u8,
        /// First block of the share that it covers.
        first: ShareBlock,
        /// Blocks of the share that it covers.
        blocks: u64,
    },
    /// A page of the directory or of its index.
    Directory,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A copy of the shard header.
    Header {
        /// 0 or 1.
        copy: u64,
        /// What is wrong with it.
        why: Why,
    },
    /// The bitmap of the root.
    Bitmap(OpenError),
    /// A slot of a bitmap page that the root does not count on. The next checkpoints write it anew.
    SpareSlot {
        /// The device described.
        device: DeviceIndex,
        /// Position within the device's bitmap.
        page: u64,
        /// 0 or 1.
        slot: u64,
        /// What is wrong with it.
        why: Why,
    },
    /// What the shard is made of; nothing behind it was looked at.
    Root(OpenError),
    /// The log ends too early, or does not fit what it is replayed on.
    Log(OpenError),
    /// The log was not replayed because of other problems: what it holds was not looked at.
    NotReplayed,
    /// A map page.
    MapPage {
        /// Which; always [`Use::MapPage`].
        used: Use,
        /// Where it lies.
        address: DeviceAddress,
        /// What is wrong with it.
        why: Why,
    },
    /// A data block.
    Data {
        /// Which; always [`Use::Block`].
        used: Use,
        /// Where it lies.
        address: DeviceAddress,
        /// What is wrong with it.
        why: Why,
    },
    /// A map refers to a place that is not this shard's.
    Outside {
        /// Where.
        address: DeviceAddress,
        /// As what.
        used: Use,
    },
    /// Blocks that are taken and that nothing refers to.
    Leaked(Extent),
    /// Blocks that something refers to and that count as free: they would be given out again.
    Unmarked(Extent),
    /// A block that is used more than once.
    DoublyUsed {
        /// Where.
        address: DeviceAddress,
        /// As what.
        uses: Vec<Use>,
    },
    /// A count of mapped blocks is not what the map says.
    Count {
        /// The map.
        view: View,
        /// Blocks as counted.
        counted: u64,
        /// Blocks as found.
        found: u64,
    },
}

/// Names for volumes, snapshots and their blocks.
pub trait Names {
    /// A volume or snapshot.
    fn view(&self, view: View) -> String {
        match view.snapshot {
            None => format!("volume {}", view.volume.0),
            Some(snapshot) => format!("snapshot {} of volume {}", snapshot.0, view.volume.0),
        }
    }

    /// Blocks of `shard`'s share of a volume.
    fn blocks(&self, shard: ShardIndex, volume: VolumeId, first: ShareBlock, blocks: u64) -> String {
        let _ = volume;
        match blocks {
            1 => format!("block {} of the share of shard {}", first.0, shard.0),
            _ => format!(
                "blocks {} to {} of the share of shard {}",
                first.0,
                first.0 + blocks - 1,
                shard.0
            ),
        }
    }
}

/// Numbers instead of names.
#[derive(Clone, Copy, Debug)]
pub struct Numbers;

impl Names for Numbers {}

impl Use {
    fn describe(&self, shard: ShardIndex, names: &dyn Names) -> String {
        let of = |views: &[View], first: ShareBlock, blocks: u64| {
            let Some(view) = views.first() else {
                return String::from("nothing");
            };
            let mut shown: Vec<String> = views.iter().map(|&view| names.view(view)).collect();
            if views.len() == VIEWS_MAX {
                shown.push(String::from("..."));
            }
            let place = names.blocks(shard, view.volume, first, blocks);
            format!("{} ({place})", shown.join(", "))
        };
        match self {
            Self::Block { views, block } => of(views, *block, 1),
            Self::MapPage {
                views,
                level,
                first,
                blocks,
            } => {
                format!("map page of level {level} of {}", of(views, *first, *blocks))
            }
            Self::Directory => format!("directory of shard {}", shard.0),
        }
    }
}

impl Problem {
    /// One word for what kind of thing it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Header { .. } => "shard_header",
            Self::Bitmap(_) => "bitmap",
            Self::SpareSlot { .. } => "spare_bitmap_slot",
            Self::Root(_) => "root",
            Self::Log(_) | Self::NotReplayed => "log",
            Self::MapPage { .. } => "map_page",
            Self::Data { .. } => "data_block",
            Self::Outside { .. } => "outside",
            Self::Leaked(_) => "leaked",
            Self::Unmarked(_) => "unmarked",
            Self::DoublyUsed { .. } => "doubly_used",
            Self::Count { .. } => "count",
        }
    }

    /// Whether something is damaged; if not, it is worth knowing and nothing more.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::SpareSlot { .. })
    }

    /// Blocks that it concerns.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        match self {
            Self::Leaked(extent) | Self::Unmarked(extent) => u64::from(extent.blocks),
            _ => 1,
        }
    }

    /// What is wrong, in one sentence.
    #[must_use]
    pub fn describe(&self, shard: ShardIndex, names: &dyn Names) -> String {
        let range = |extent: &Extent| match extent.blocks {
            1 => format!("{}", extent.address),
            blocks => format!("{} and the {} after it", extent.address, blocks - 1),
        };
        match self {
            Self::Header { copy, why } => format!("shard header, copy {copy}: {why}"),
            Self::Bitmap(error) => format!("space bitmap: {error}"),
            Self::SpareSlot {
                device,
                page,
                slot,
                why,
            } => format!(
                "space bitmap page {page} of device {}, slot {slot}, which is not in use: {why}",
                device.0
            ),
            Self::Root(error) => format!("{error}; nothing behind it was looked at"),
            Self::Log(error) => format!("log: {error}"),
            Self::NotReplayed => String::from(
                "the log was not replayed, since its state is damaged: what it holds was not looked at",
            ),
            Self::MapPage { used, address, why } => {
                format!("{} at {address}: {why}", used.describe(shard, names))
            }
            Self::Data { used, address, why } => {
                format!("{} at {address}: {why}", used.describe(shard, names))
            }
            Self::Outside { address, used } => {
                format!(
                    "{} lies at {address}, which is not in this shard",
                    used.describe(shard, names)
                )
            }
            Self::Leaked(extent) => format!("{}: taken, and nothing refers to it", range(extent)),
            Self::Unmarked(extent) => format!("{}: in use, and counts as free", range(extent)),
            Self::DoublyUsed { address, uses } => {
                let uses: Vec<String> = uses.iter().map(|used| used.describe(shard, names)).collect();
                format!("{address} is used more than once: {}", uses.join("; and as "))
            }
            Self::Count { view, counted, found } => format!(
                "{}: {counted} blocks are counted as mapped, {found} are",
                names.view(*view)
            ),
        }
    }
}

/// Figures of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckFigures {
    /// Map pages read and found sound.
    pub map_pages: u64,
    /// Directory pages, index pages included.
    pub directory_pages: u64,
    /// Data blocks that maps refer to, each counted once.
    pub data_blocks: u64,
    /// Data blocks that were read and compared with their checksum.
    pub verified_blocks: u64,
    /// Records of the log.
    pub log_records: u64,
    /// Records of the log tail.
    pub tail_records: u64,
}

/// What a check of a shard found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// The shard.
    pub shard: ShardIndex,
    /// Figures.
    pub figures: CheckFigures,
    /// The problems that are named.
    pub problems: Vec<Problem>,
    /// Blocks concerned, by kind of problem, in the order of first sight; those that are not named are in it.
    pub counts: Vec<(&'static str, u64)>,
    named: Vec<(&'static str, u64)>,
}

impl CheckReport {
    pub(super) fn new(shard: ShardIndex) -> Self {
        Self {
            shard,
            figures: CheckFigures::default(),
            problems: Vec::new(),
            counts: Vec::new(),
            named: Vec::new(),
        }
    }

    /// Whether no damage was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        // A kind that is no damage is named like any other, so the first one of each kind tells.
        !self.problems.iter().any(Problem::is_damage)
    }

    /// Blocks (or pages, or whatever the kind is about) with a problem of this kind.
    #[must_use]
    pub fn count(&self, kind: &str) -> u64 {
        let found = self.counts.iter().find(|(other, _)| *other == kind);
        found.map_or(0, |(_, count)| *count)
    }

    /// Whether there is a problem of this kind.
    #[must_use]
    pub fn has(&self, kind: &str) -> bool {
        self.count(kind) > 0
    }

    pub(super) fn push(&mut self, problem: Problem) {
        let kind = problem.kind();
        add(&mut self.counts, kind, problem.blocks());
        if add(&mut self.named, kind, 1) <= NAMED_MAX {
            self.problems.push(problem);
        }
    }
}

fn add(counts: &mut Vec<(&'static str, u64)>, kind: &'static str, blocks: u64) -> u64 {
    if let Some((_, count)) = counts.iter_mut().find(|(other, _)| *other == kind) {
        *count += blocks;
        return *count;
    }
    counts.push((kind, blocks));
    blocks
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}:", self.shard.0)?;
        for problem in &self.problems {
            write!(f, "\n    {}", problem.describe(self.shard, &Numbers))?;
        }
        Ok(())
    }
}
