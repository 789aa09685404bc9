//! Stale pages, read when a pool is opened.

use super::SideAt;
use crate::BLOCK_BYTES;
use crate::ids::ShardIndex;
use crate::marks::{Mark, mark};
use crate::ports::{DeviceError, OpenDevice, Transferred};
use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::page::PAGE_BYTES;
use stillpoint_ondisk::stale::StalePage;

/// What is known of what a side lacks of one shard's slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleAt {
    /// The shard.
    pub shard: ShardIndex,
    /// The side that is not in sync.
    pub at: SideAt,
    /// Since when, as the labels say it.
    pub episode: u64,
    /// The words of the regions that it lacks; `None` if no page of this episode says it: all of them.
    pub words: Option<Vec<u64>>,
}

/// Reads what the other side of `at` says that this one lacks of a shard's slice, since `episode`. A page that cannot be read, is torn
/// or is of another episode says nothing, and then everything counts as stale.
pub fn load_stale(
    device: &mut impl OpenDevice,
    layout: &Layout,
    shard: ShardIndex,
    at: SideAt,
    episode: u64,
) -> StaleAt {
    let mut bytes = [0; PAGE_BYTES];
    let mut read = [Transferred {
        device: at.other().below(),
        offset_bytes: layout.stale_block(shard.0) * BLOCK_BYTES as u64,
        bytes: &mut bytes,
        result: Err(DeviceError::Gone),
    }];
    device.read_all(&mut read);
    let is_read = read[0].result.is_ok();
    let slice_blocks = layout.devices[usize::from(at.device.0)].slice_blocks;
    let page = StalePage::parse(
        &bytes,
        layout.pool,
        episode,
        shard.0,
        u16::from(at.device.0),
        slice_blocks,
    );
    let page = page.ok().filter(|_| is_read);
    if page.is_none() {
        mark(Mark::MirrorAllStale);
    }
    StaleAt {
        shard,
        at,
        episode,
        words: page.map(|page| page.words.iter().map(|word| word.get()).collect()),
    }
}
