//! Opening a shard of a pool with mirrors: both sides of every device are read, and become equal before anybody is served.
//!
//! A crash may leave the sides different in what was not flushed. Whoever opens the shard sees one of them for each page, always the
//! same: what recovery goes by is what both sides hold when it has ended ([`MirroredOpener::settle`]), so that the loss of a
//! side later on takes nothing back that was seen.
//!
//! | a page | is taken from |
//! |---|---|
//! | that one side cannot read | the other |
//! | that is sound on one side only | that one |
//! | header, bitmap or log page, sound on both | the newer: that of the higher generation or sequence |
//! | anything else that differs | the preferred side; the other if its checksum then does not fit ([`OpenDevice::read_other`]) |
//!
//! What nobody reads while a shard is opened was durable on both sides, or is referred to by nothing.
//!
//! So a side that was in sync until it was found missing lacks little, and that is noted before the shard serves anybody:
//!
//! | of its slices | why |
//! |---|---|
//! | everything that is no data or map page | header, bitmaps and log are written in place; the log of one side may be longer than that of the other |
//! | what the log says was written, and not that a flush covered it ([`OpenDevice::doubt`]) | what was flushed both sides had flushed, or no answer rested on it |
//! | what opening writes | as always |

use core::fmt;
use std::collections::{BTreeMap, BTreeSet};

use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::page::{self, PAGE_BYTES, PageHeader, PageKind};
use stillpoint_ondisk::stale::{StalePage, region_blocks};
use zerocopy::{FromBytes, IntoBytes};

use super::SideAt;
use crate::BLOCK_BYTES;
use crate::ids::{DeviceIndex, ShardIndex};
use crate::marks::{Mark, mark};
use crate::ports::{DeviceError, OpenDevice, Side, Transferred};

/// Bytes of the second side that are in memory at the same time at most.
const COMPARED_BYTES_MAX: usize = 64 << 20;

/// Which sides of a mirrored device can be gone by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// Both are in sync.
    Both,
    /// Only this one; the other went out with this episode.
    Only {
        /// The side that is in sync.
        side: Side,
        /// [`stillpoint_ondisk::label::MirrorRow::out_since`] of the other.
        episode: u64,
        /// The newest labels said that the other was in sync too, and the episode begins with this opening: nothing was written
        /// in it yet.
        begins: bool,
    },
}

impl Sides {
    fn first(self, preferred: Side) -> Side {
        match self {
            Self::Both => preferred,
            Self::Only { side, .. } => side,
        }
    }

    fn in_sync(self) -> impl Iterator<Item = Side> {
        let is_in = move |side: &Side| match self {
            Self::Both => true,
            Self::Only { side: only, .. } => *side == only,
        };
        Side::BOTH.into_iter().filter(is_in)
    }
}

/// A side that failed while a shard was opened. The other one is good: put this one out, and open again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideFailed {
    /// Which.
    pub at: SideAt,
    /// How.
    pub error: DeviceError,
}

impl fmt::Display for SideFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.error)
    }
}

impl std::error::Error for SideFailed {}

/// A page that is not the same on both sides.
struct Difference {
    /// What each side has; `None` if it cannot be read.
    pages: [Option<Vec<u8>>; 2],
    picked: Side,
}

/// The devices of a pool with mirrors while one of its shards is opened.
pub struct MirroredOpener<O> {
    inner: O,
    layout: Layout,
    shard: ShardIndex,
    sides: Vec<Sides>,
    preferred: Side,
    differences: BTreeMap<(DeviceIndex, u64), Difference>,
    /// By device, if an episode begins: what the missing side may lack.
    lacking: Vec<Option<Box<StalePage>>>,
    failed: Option<SideFailed>,
}

impl<O: OpenDevice> MirroredOpener<O> {
    /// Over devices of which number `2 * d + s` is side `s` of device `d`. Where nothing else tells, `preferred` counts.
    pub fn new(inner: O, layout: &Layout, shard: ShardIndex, sides: Vec<Sides>, preferred: Side) -> Self {
        assert!(
            layout.mirrored && sides.len() == layout.devices.len(),
            "each device has its sides"
        );
        let lacking = (0..sides.len()).map(|device| match sides[device] {
            Sides::Only {
                episode,
                begins: true,
                ..
            } => Some(missing_metadata(layout, shard, device, episode)),
            _ => None,
        });
        Self {
            inner,
            layout: layout.clone(),
            shard,
            lacking: lacking.collect(),
            sides,
            preferred,
            differences: BTreeMap::new(),
            failed: None,
        }
    }

    /// Pages that were not the same on both sides.
    #[must_use]
    pub fn differences(&self) -> usize {
        self.differences.len()
    }

    /// Makes both sides what was read, and flushes them. What a side lacks that is missing since this opening is noted on the other.
    ///
    /// Where the episode began before and no stale page says what a side lacks, that is everything: it may have been out for long.
    ///
    /// # Errors
    /// The side that failed. The other one holds what was read.
    pub fn settle(mut self) -> Result<O, SideFailed> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        for (device, lacking) in core::mem::take(&mut self.lacking).into_iter().enumerate() {
            let (Some(mut page), Sides::Only { side, .. }) = (lacking, self.sides[device]) else {
                continue;
            };
            let device = DeviceIndex(device as u8);
            page::seal(page.as_mut_bytes());
            let block = self.layout.stale_block(self.shard.0);
            self.write_side(device, side, block, page.as_bytes())?;
            self.flush_side(device, side)?;
            mark(Mark::MirrorLackingNoted);
        }
        let mut written = BTreeSet::new();
        for ((device, block), difference) in core::mem::take(&mut self.differences) {
            let good = difference.pages[difference.picked.index()]
                .as_ref()
                .expect("what was picked could be read");
            let side = difference.picked.other();
            self.write_side(device, side, block, good)?;
            written.insert((device, side));
        }
        for (device, side) in written {
            self.flush_side(device, side)?;
        }
        Ok(self.inner)
    }

    fn flush_side(&mut self, device: DeviceIndex, side: Side) -> Result<(), SideFailed> {
        let at = SideAt { device, side };
        let flushed = self.inner.flush(at.below());
        flushed.map_err(|error| SideFailed { at, error })
    }

    /// The side that is missing since this opening may lack these blocks. Gives whether there is one.
    fn lacks(&mut self, device: DeviceIndex, first_block: u64, count: u64) -> bool {
        let index = usize::from(device.0);
        let Some(page) = &mut self.lacking[index] else {
            return false;
        };
        set_stale(page, &self.layout, self.shard, index, first_block, count);
        true
    }

    fn write_side(
        &mut self,
        device: DeviceIndex,
        side: Side,
        block: u64,
        bytes: &[u8],
    ) -> Result<(), SideFailed> {
        self.inner
            .write(SideAt { device, side }.below(), block * BLOCK_BYTES as u64, bytes)
            .map_err(|error| SideFailed {
                at: SideAt { device, side },
                error,
            })
    }

    /// The page on which `side` says what the other lacks. `None` if there is none of this episode: then it lacks everything.
    fn stale_page(
        &mut self,
        device: DeviceIndex,
        side: Side,
        episode: u64,
    ) -> Result<Option<Box<StalePage>>, DeviceError> {
        let mut bytes = vec![0; PAGE_BYTES];
        let mut reads = [Transferred {
            device: SideAt { device, side }.below(),
            offset_bytes: self.layout.stale_block(self.shard.0) * BLOCK_BYTES as u64,
            bytes: &mut bytes,
            result: Ok(()),
        }];
        self.inner.read_all(&mut reads);
        reads[0].result?;
        let slice_blocks = self.layout.devices[usize::from(device.0)].slice_blocks;
        let (pool, shard) = (self.layout.pool, self.shard.0);
        let page = StalePage::parse(&bytes, pool, episode, shard, u16::from(device.0), slice_blocks);
        Ok(page.ok().map(Box::new))
    }

    /// Writes down, for good and before it is written, that the side that is out lacks this.
    fn note_stale(
        &mut self,
        device: DeviceIndex,
        side: Side,
        episode: u64,
        offset_bytes: u64,
        length: usize,
    ) -> Result<(), DeviceError> {
        let index = usize::from(device.0);
        let first = offset_bytes / BLOCK_BYTES as u64;
        let count = (length / BLOCK_BYTES) as u64;
        let (mut page, first, count) = match self.stale_page(device, side, episode) {
            Ok(None) => return Ok(()),
            Ok(Some(page)) => (page, first, count),
            // It may be read next time, and say less than what is missing then.
            Err(_) => {
                let page = empty_page(&self.layout, self.shard, index, episode);
                let start = self.layout.slice_start_block(self.shard.0, index);
                (page, start, self.layout.devices[index].slice_blocks)
            }
        };
        set_stale(&mut page, &self.layout, self.shard, index, first, count);
        page::seal(page.as_mut_bytes());
        let place = self.layout.stale_block(self.shard.0) * BLOCK_BYTES as u64;
        let below = SideAt { device, side }.below();
        self.inner.write(below, place, page.as_bytes())?;
        self.inner.flush(below)
    }

    /// Compares what one side gave with what the other has, page by page.
    fn compare(&mut self, reads: &mut [&mut Transferred<'_>]) {
        let mut memory: Vec<Vec<u8>> = reads.iter().map(|read| vec![0; read.bytes.len()]).collect();
        let other = self.preferred.other();
        let mut others: Vec<Transferred<'_>> = reads
            .iter()
            .zip(&mut memory)
            .map(|(read, bytes)| Transferred {
                device: SideAt {
                    device: read.device,
                    side: other,
                }
                .below(),
                offset_bytes: read.offset_bytes,
                bytes,
                result: Ok(()),
            })
            .collect();
        self.inner.read_all(&mut others);
        for (read, of_other) in reads.iter_mut().zip(others) {
            if read.result.is_err() && of_other.result.is_err() {
                continue;
            }
            let first = read.offset_bytes / BLOCK_BYTES as u64;
            let pages = read.bytes.chunks_exact_mut(PAGE_BYTES);
            for (block, (mine, theirs)) in (first..).zip(pages.zip(of_other.bytes.chunks_exact(PAGE_BYTES))) {
                let key = (read.device, block);
                if let Some(known) = self.differences.get(&key) {
                    // Picked before: it stays what it was.
                    let bytes = known.pages[known.picked.index()].as_ref();
                    mine.copy_from_slice(bytes.expect("what was picked could be read"));
                    continue;
                }
                let can = [read.result.is_ok(), of_other.result.is_ok()];
                if can == [true, true] && mine == theirs {
                    continue;
                }
                let takes_theirs = match can {
                    [true, false] => false,
                    [false, true] => true,
                    _ => is_better(theirs, mine, self.layout.pool),
                };
                let mut pages = [None, None];
                pages[self.preferred.index()] = can[0].then(|| mine.to_vec());
                pages[other.index()] = can[1].then(|| theirs.to_vec());
                let picked = if takes_theirs { other } else { self.preferred };
                if takes_theirs {
                    mine.copy_from_slice(theirs);
                }
                self.differences.insert(key, Difference { pages, picked });
            }
            read.result = Ok(());
        }
    }
}

/// A page that says of a shard's slice that nothing of it is stale.
fn empty_page(layout: &Layout, shard: ShardIndex, device: usize, episode: u64) -> Box<StalePage> {
    let slice_blocks = layout.devices[device].slice_blocks;
    StalePage::new(layout.pool, episode, shard.0, device as u16, slice_blocks)
}

/// A page that says that everything is stale which is written in place.
fn missing_metadata(layout: &Layout, shard: ShardIndex, device: usize, episode: u64) -> Box<StalePage> {
    let mut page = empty_page(layout, shard, device, episode);
    let start = layout.slice_start_block(shard.0, device);
    let count = layout.data_start_block(shard.0, device) - start;
    set_stale(&mut page, layout, shard, device, start, count);
    page
}

/// Has a page say that these blocks are stale.
fn set_stale(
    page: &mut StalePage,
    layout: &Layout,
    shard: ShardIndex,
    device: usize,
    first_block: u64,
    count: u64,
) {
    let first = first_block - layout.slice_start_block(shard.0, device);
    let of_region = region_blocks(layout.devices[device].slice_blocks);
    for region in first / of_region..(first + count).div_ceil(of_region) {
        let word = &mut page.words[(region / 64) as usize];
        *word = (word.get() | 1 << (region % 64)).into();
    }
}

/// Whether `this` page is to be gone by rather than `that` one, which the preferred side has.
fn is_better(this: &[u8], that: &[u8], pool: [u8; 16]) -> bool {
    let found = |page: &[u8]| {
        let (header, rest) = PageHeader::ref_from_prefix(page).expect("a whole page");
        let order = u64::from_le_bytes(rest[..8].try_into().expect("eight bytes"));
        let kinds = [PageKind::ShardHeader, PageKind::Bitmap, PageKind::Log];
        let ordered = kinds.iter().any(|kind| *kind as u16 == header.kind.get());
        page::is_sound(page, pool).then_some((header.kind.get(), ordered, order))
    };
    match (found(this), found(that)) {
        (Some(_), None) => true,
        (Some((kind, true, this)), Some((of_that, _, that))) if kind == of_that => this > that,
        _ => false,
    }
}

impl<O: OpenDevice> OpenDevice for MirroredOpener<O> {
    fn read_all(&mut self, reads: &mut [Transferred<'_>]) {
        let mut of_first: Vec<Transferred<'_>> = reads
            .iter_mut()
            .map(|read| Transferred {
                device: SideAt {
                    device: read.device,
                    side: self.sides[usize::from(read.device.0)].first(self.preferred),
                }
                .below(),
                offset_bytes: read.offset_bytes,
                bytes: read.bytes,
                result: Ok(()),
            })
            .collect();
        self.inner.read_all(&mut of_first);
        let results: Vec<_> = of_first.into_iter().map(|read| read.result).collect();
        for (read, result) in reads.iter_mut().zip(results) {
            read.result = result;
        }
        let has_two = |read: &&mut Transferred<'_>| self.sides[usize::from(read.device.0)] == Sides::Both;
        let mut both: Vec<_> = reads.iter_mut().filter(has_two).collect();
        let mut rest = both.as_mut_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|read| {
                bytes += read.bytes.len();
                bytes <= COMPARED_BYTES_MAX
            });
            let count = fits.count().max(1);
            let (some, later) = rest.split_at_mut(count);
            self.compare(some);
            rest = later;
        }
    }

    fn read_other(&mut self, device: DeviceIndex, offset_bytes: u64, bytes: &mut [u8]) -> bool {
        assert_eq!(bytes.len(), PAGE_BYTES, "one block is asked for");
        let key = (device, offset_bytes / BLOCK_BYTES as u64);
        let Some(difference) = self.differences.get_mut(&key) else {
            return false;
        };
        let other = difference.picked.other();
        let Some(page) = &difference.pages[other.index()] else {
            return false;
        };
        bytes.copy_from_slice(page);
        difference.picked = other;
        true
    }

    fn has_two_sides(&self, device: DeviceIndex) -> bool {
        self.sides[usize::from(device.0)] == Sides::Both
    }

    fn doubt(&mut self, device: DeviceIndex, first_block: u64, count: u64) {
        self.lacks(device, first_block, count);
    }

    fn write(&mut self, device: DeviceIndex, offset_bytes: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let sides = self.sides[usize::from(device.0)];
        let first = offset_bytes / BLOCK_BYTES as u64;
        // While an episode has no page everything is stale.
        if let Sides::Only { side, episode, .. } = sides
            && !self.lacks(device, first, (bytes.len() / BLOCK_BYTES) as u64)
        {
            self.note_stale(device, side, episode, offset_bytes, bytes.len())?;
        }
        for block in first..first + (bytes.len() / BLOCK_BYTES) as u64 {
            self.differences.remove(&(device, block));
        }
        self.on_each(device, |inner, device| inner.write(device, offset_bytes, bytes))
    }

    fn flush(&mut self, device: DeviceIndex) -> Result<(), DeviceError> {
        self.on_each(device, |inner, device| inner.flush(device))
    }
}

impl<O: OpenDevice> MirroredOpener<O> {
    /// Does it on every side that is in sync. If one fails and another does not, that is told by [`Self::settle`].
    fn on_each(
        &mut self,
        device: DeviceIndex,
        mut act: impl FnMut(&mut O, DeviceIndex) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let mut done = false;
        let mut failure = None;
        for side in self.sides[usize::from(device.0)].in_sync() {
            match act(&mut self.inner, SideAt { device, side }.below()) {
                Ok(()) => done = true,
                Err(error) => {
                    failure = Some(SideFailed {
                        at: SideAt { device, side },
                        error,
                    })
                }
            }
        }
        match failure {
            Some(failed) if !done => Err(failed.error),
            failure => {
                self.failed = self.failed.or(failure);
                Ok(())
            }
        }
    }
}
