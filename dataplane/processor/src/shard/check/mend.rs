//! Mending what can be mended. A mend is worked out by the check, and carried out when the check has ended.

use stillpoint_ondisk::bitmap::check_of;
use stillpoint_ondisk::header::ShardHeader;
use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::log::LogPage;
use stillpoint_ondisk::page::{self, PAGE_BYTES, PageHeader};
use stillpoint_ondisk::record::Record;
use zerocopy::{FromBytes, IntoBytes};

use super::super::ShardOptions;
use super::super::recovery::found_log::Replay;
use super::super::recovery::{OpenError, Opening, read_header};
use super::offline::{mark_of, segments_of};
use super::walk::read_blocks;
use crate::BLOCK_BYTES;
use crate::ids::{DeviceAddress, DeviceIndex, Now, ShardIndex, SnapshotId, VolumeId};
use crate::ports::{DeviceError, LogTail, OpenDevice};
use crate::space::Space;

/// Log pages read at once.
const RING_PAGES_AT_ONCE: usize = 256;

/// A page that is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageWrite {
    /// The device.
    pub device: DeviceIndex,
    /// The block of the device.
    pub block: u64,
    /// What is written: 4096 bytes.
    pub bytes: Vec<u8>,
}

/// Something that can be mended by writing pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mend {
    /// What it does, in words.
    pub what: String,
    /// It gives up something that the pool promised to keep.
    pub loses: bool,
    /// The pages. They are on the device before those of the next mend are written.
    pub writes: Vec<PageWrite>,
}

/// Carries mends out, in order.
///
/// # Errors
/// What the device said; the mends before were carried out.
pub fn carry_out(mends: &[Mend], device: &mut impl OpenDevice) -> Result<(), DeviceError> {
    for mend in mends {
        for write in &mend.writes {
            device.write(write.device, write.block * BLOCK_BYTES as u64, &write.bytes)?;
        }
        let mut written: Vec<DeviceIndex> = mend.writes.iter().map(|write| write.device).collect();
        written.sort_unstable();
        written.dedup();
        for index in written {
            device.flush(index)?;
        }
    }
    Ok(())
}

/// Writes a copy of the header from the one that counts. Two sound copies of one generation say the same.
pub(super) fn header_copy(layout: &Layout, shard: ShardIndex, root: &ShardHeader, copy: u64) -> Mend {
    Mend {
        what: format!("shard {}: header copy {copy} is written from the other", shard.0),
        loses: false,
        writes: vec![PageWrite {
            device: DeviceIndex(layout.home(shard.0) as u8),
            block: layout.header_block(shard.0, copy),
            bytes: root.as_bytes().to_vec(),
        }],
    }
}

/// Writes the whole bitmap anew, as `used` says, for the root.
pub(super) fn bitmap(layout: &Layout, shard: ShardIndex, root: &ShardHeader, used: &Space) -> Vec<Mend> {
    let home = DeviceIndex(layout.home(shard.0) as u8);
    let slot_of = |slot: u64| {
        let writes = used.bitmap_pages().map(|(device, page)| {
            let mut bytes = vec![0; PAGE_BYTES];
            used.used_image(device, page, root.generation.get(), &mut bytes);
            PageWrite {
                device: home,
                block: layout.bitmap_block(shard.0, usize::from(device.0), page, slot),
                bytes,
            }
        });
        Mend {
            what: format!(
                "shard {}: slot {slot} of its space bitmap is written from the maps ({} blocks in use)",
                shard.0,
                used.used_blocks()
            ),
            loses: false,
            writes: writes.collect(),
        }
    };
    // Both slots: whichever was taken for the newer one before, they say the same now.
    let mut mends = vec![slot_of(0), slot_of(1)];
    let mut root = *root;
    root.bitmap_check = used_check(used, root.generation.get()).into();
    page::seal(root.as_mut_bytes());
    // First the copy that does not count.
    let counts = root.generation.get() % 2;
    for copy in [1 - counts, counts] {
        let mut mend = header_copy(layout, shard, &root, copy);
        mend.what = format!(
            "shard {}: header copy {copy} says which bitmap belongs to it",
            shard.0
        );
        mends.push(mend);
    }
    mends
}

/// What the root has to say of the bitmap that is written anew.
fn used_check(used: &Space, generation: u64) -> u32 {
    let mut bytes = vec![0; PAGE_BYTES];
    let crcs = used.bitmap_pages().map(|(device, page)| {
        used.used_image(device, page, generation, &mut bytes);
        let (header, _) = PageHeader::ref_from_prefix(&bytes).expect("a page starts with its header");
        header.crc32c.get()
    });
    check_of(crcs)
}

/// Ends the log where it breaks off: pages that say that more was durable are blanked. What they hold is lost. `None` if the
/// error is about something else, or if it is the log tail that says so: that has to be deleted by whoever knows why.
pub(super) fn cut_log(
    layout: &Layout,
    shard: ShardIndex,
    device: &mut impl OpenDevice,
    error: &OpenError,
) -> Option<Mend> {
    let OpenError::LogLost {
        sequence,
        lsn,
        until_lsn,
        tail: false,
        ..
    } = *error
    else {
        return None;
    };
    let home = DeviceIndex(layout.home(shard.0) as u8);
    let start = layout.log_start_block(shard.0);
    let ring: Vec<u64> = (start..start + u64::from(layout.log_pages)).collect();
    let mut writes = Vec::new();
    for blocks in ring.chunks(RING_PAGES_AT_ONCE) {
        let mut memory = vec![0; blocks.len() * PAGE_BYTES];
        let places = blocks.iter().map(|&block| DeviceAddress::new(home, block));
        let results = read_blocks(device, places, &mut memory);
        for ((&block, bytes), result) in blocks.iter().zip(memory.chunks_exact(PAGE_BYTES)).zip(results) {
            let page = LogPage::any(bytes, layout.pool, shard.0).filter(|_| result.is_ok());
            if page.is_some_and(|page| page.sequence.get() >= sequence || page.durable_lsn.get() > lsn) {
                writes.push(PageWrite {
                    device: home,
                    block,
                    bytes: vec![0; PAGE_BYTES],
                });
            }
        }
    }
    Some(Mend {
        what: format!(
            "shard {}: the log is ended at record {lsn}; records up to {until_lsn}, which were durable, are lost",
            shard.0
        ),
        loses: true,
        writes,
    })
}

/// Logs that these intermediate snapshots are to be freed, as the control plane does for those without a commit record
/// when it opens a pool; the shard frees them when it is opened. The log tail's records go to the log before them.
///
/// # Errors
/// [`OpenError`] if the shard cannot be opened; nothing was changed then.
pub fn delete_snapshots(
    layout: &Layout,
    shard: ShardIndex,
    device: &mut impl OpenDevice,
    tail: &mut impl LogTail,
    snapshots: &[(VolumeId, SnapshotId)],
    now: Now,
) -> Result<(), OpenError> {
    let header = read_header(layout, shard, device)?;
    let mark = mark_of(&header);
    let generation = header.generation.get();
    let mut opening = Opening::new(layout, shard, device, ShardOptions::default(), generation, now);
    let found = opening.find_log(mark)?;
    let segments = segments_of(tail);
    let mut newest = opening.fitting_tail_records(&found, mark.lsn, &segments)?;
    let next_lsn = newest.last().map_or(found.end.lsn, |last| last.lsn + 1);
    // What was logged before the power was cut must not go on behind these records.
    let opened = Record::Opened { wall_ns: now.wall_ns };
    let deletions = snapshots.iter().map(|(volume, snapshot)| Record::SnapshotDelete {
        volume: volume.0,
        snapshot: snapshot.0,
    });
    let records = [opened].into_iter().chain(deletions);
    newest.extend(
        (next_lsn..)
            .zip(records)
            .map(|(lsn, record)| Replay { lsn, record }),
    );
    opening.relog(&found, mark, &newest)?;
    Ok(())
}
