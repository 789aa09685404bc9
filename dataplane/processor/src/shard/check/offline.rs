//! Checking the devices of a pool that is not open.

use std::collections::BTreeMap;

use stillpoint_ondisk::Damage;
use stillpoint_ondisk::bitmap::BitmapPage;
use stillpoint_ondisk::header::ShardHeader;
use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::page::PAGE_BYTES;
use stillpoint_ondisk::record::Record;

use super::super::recovery::found_log::{FoundLog, Replay};
use super::super::recovery::{OpenError, Opening, read_header, read_one};
use super::super::{RecoveryReport, ShardOptions};
use super::mend::{self, Mend};
use super::overlay::Overlay;
use super::report::{CheckReport, Problem, Why};
use super::walk::{Walked, read_blocks};
use super::{Examined, examine};
use crate::command::{IntermediateSnapshotStatus, VolumeShareStatus};
use crate::ids::{DeviceAddress, DeviceIndex, Now, ShardIndex, VolumeId};
use crate::log::LogMark;
use crate::ports::{LogTail, OpenDevice};

/// How far a check goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Header, directory and log: enough to tell what the shard holds.
    Structures,
    /// Also the bitmap and every map page, and that every block is used once or free.
    Metadata,
    /// Also every data block.
    Data,
}

/// What a shard holds, with its log replayed.
#[derive(Clone, Debug, Default)]
pub struct FoundShard {
    /// Its shares of volumes that are not to be freed.
    pub volumes: Vec<VolumeShareStatus>,
    /// Their intermediate snapshots.
    pub snapshots: Vec<(VolumeId, Vec<IntermediateSnapshotStatus>)>,
    /// Shares that are to be freed.
    pub deleting: u64,
    /// The catalog rows, on shard 0; empty elsewhere.
    pub catalog: BTreeMap<Vec<u8>, Vec<u8>>,
    /// When the last checkpoint was made, nanoseconds since the Unix epoch.
    pub checkpoint_ns: u64,
    /// What replaying the log came to.
    pub recovery: RecoveryReport,
    /// Blocks of the data area.
    pub total_blocks: u64,
    /// Blocks in use.
    pub used_blocks: u64,
}

/// What a check of a shard on its devices came to.
#[derive(Debug)]
pub struct CheckedShard {
    /// What was found to be wrong.
    pub report: CheckReport,
    /// What the shard holds; `None` if it cannot be told.
    pub found: Option<FoundShard>,
    /// What can be done about it, in this order.
    pub mends: Vec<Mend>,
}

/// Checks a shard of a pool that nobody has open. Nothing is written; `tail` is the log tail, or none.
///
/// The devices may hold anything: damage is reported, and never trusted.
pub fn check_shard(
    layout: &Layout,
    shard: ShardIndex,
    device: &mut impl OpenDevice,
    tail: &mut impl LogTail,
    depth: Depth,
    now: Now,
) -> CheckedShard {
    let mut device = Overlay::new(device);
    let mut checked = CheckedShard {
        report: CheckReport::new(shard),
        found: None,
        mends: Vec::new(),
    };
    let header = match read_header(layout, shard, &mut device) {
        Ok(header) => header,
        Err(error) => {
            checked.report.push(Problem::Root(error));
            return checked;
        }
    };
    look_at_headers(layout, shard, &mut device, &header, &mut checked);
    let generation = header.generation.get();
    let options = ShardOptions::default();
    let mut opening = Opening::new(layout, shard, &mut device, options, generation, now);
    let rows = opening
        .load_directory(&header)
        .and_then(|()| opening.load_volumes());
    if let Err(error) = rows {
        checked.report.push(Problem::Root(error));
        return checked;
    }
    if depth == Depth::Structures {
        // How much is in use is all that is wanted of it; if it is damaged, a check says so.
        let _ = opening.load_bitmaps(&header);
        replay(&mut opening, &header, tail, depth, &mut checked);
    } else {
        if look_at_space(&mut opening, &header, &mut checked) {
            replay(&mut opening, &header, tail, depth, &mut checked);
        } else {
            checked.report.push(Problem::NotReplayed);
        }
        look_at_everything(&mut opening, depth == Depth::Data, &mut checked);
    }
    checked.found = Some(found(&opening, &header));
    checked
}

/// Both copies of the header: the one that does not count may be damaged.
fn look_at_headers(
    layout: &Layout,
    shard: ShardIndex,
    device: &mut impl OpenDevice,
    root: &ShardHeader,
    checked: &mut CheckedShard,
) {
    let home = DeviceIndex(layout.home(shard.0) as u8);
    for copy in 0..2 {
        let mut bytes = vec![0; PAGE_BYTES];
        let why = match read_one(device, home, layout.header_block(shard.0, copy), &mut bytes) {
            Err(error) => Why::Unreadable(error),
            Ok(()) => match ShardHeader::parse(&bytes, layout.pool, shard.0) {
                Ok(_) => continue,
                // The second copy of a new pool was never written.
                Err(Damage::Magic) if bytes.iter().all(|&byte| byte == 0) && root.generation.get() == 1 => {
                    continue;
                }
                Err(damage) => Why::Damaged(damage),
            },
        };
        checked.report.push(Problem::Header { copy, why });
        checked.mends.push(mend::header_copy(layout, shard, root, copy));
    }
}

/// Compares the bitmap with the maps of the root. Whether the log can be replayed on what there is; a bitmap that is wrong
/// is replaced by what the maps say.
fn look_at_space<D: OpenDevice>(
    opening: &mut Opening<'_, D>,
    header: &ShardHeader,
    checked: &mut CheckedShard,
) -> bool {
    let spare = spare_slots(opening);
    let loaded = opening.load_bitmaps(header);
    let walked = Walked {
        layout: opening.layout,
        shard: opening.shard,
        directory: &opening.directory,
        volumes: &opening.volumes,
    };
    let Examined {
        report,
        seen,
        complete,
        doubles,
    } = examine(&walked, opening.device, &mut opening.cache, &opening.space, false);
    let mut wrong = loaded.is_err();
    match loaded {
        Err(error) => checked.report.push(Problem::Bitmap(error)),
        Ok(()) => {
            for slot in spare {
                checked.report.push(slot);
            }
            wrong |= report.count("leaked") + report.count("unmarked") > 0;
        }
    }
    for problem in report.problems {
        // The other kinds are looked for again once the log is replayed.
        let about_space = matches!(problem, Problem::Leaked(_) | Problem::Unmarked(_));
        if about_space && !checked.report.has("bitmap") {
            checked.report.push(problem);
        }
    }
    if wrong && complete {
        let mends = mend::bitmap(opening.layout, opening.shard, header, &seen);
        checked.mends.extend(mends);
        opening.space = seen;
    }
    complete && !doubles
}

/// Slots of bitmap pages that are damaged; if the bitmap can be loaded all the same, the root does not need them.
fn spare_slots<D: OpenDevice>(opening: &mut Opening<'_, D>) -> Vec<Problem> {
    let (layout, shard) = (opening.layout, opening.shard.0);
    let home = DeviceIndex(layout.home(shard) as u8);
    let mut problems = Vec::new();
    let pages: Vec<(DeviceIndex, u64)> = opening.space.bitmap_pages().collect();
    for some in pages.chunks(128) {
        let slots: Vec<(DeviceIndex, u64, u64)> = some
            .iter()
            .flat_map(|&(device, page)| [(device, page, 0), (device, page, 1)])
            .collect();
        let mut memory = vec![0; slots.len() * PAGE_BYTES];
        let places = slots.iter().map(|&(device, page, slot)| {
            let block = layout.bitmap_block(shard, usize::from(device.0), page, slot);
            DeviceAddress::new(home, block)
        });
        let results = read_blocks(opening.device, places, &mut memory);
        for ((&(device, page, slot), bytes), result) in
            slots.iter().zip(memory.chunks_exact(PAGE_BYTES)).zip(results)
        {
            let why = match result {
                Err(error) => Why::Unreadable(error),
                Ok(()) => match BitmapPage::parse(bytes, layout.pool, shard, u16::from(device.0), page) {
                    Ok(_) => continue,
                    // A slot that was never written holds whatever the device held before.
                    Err(Damage::Magic | Damage::Pool) => continue,
                    Err(damage) => Why::Damaged(damage),
                },
            };
            problems.push(Problem::SpareSlot {
                device,
                page,
                slot,
                why,
            });
        }
    }
    problems
}

fn replay<D: OpenDevice>(
    opening: &mut Opening<'_, D>,
    header: &ShardHeader,
    tail: &mut impl LogTail,
    depth: Depth,
    checked: &mut CheckedShard,
) {
    let mark = mark_of(header);
    let segments = segments_of(tail);
    let replayed = opening.find_log(mark).and_then(|found| {
        let newest = opening.fitting_tail_records(&found, mark.lsn, &segments)?;
        match depth {
            Depth::Structures => apply_rows(opening, &found, &newest),
            Depth::Metadata | Depth::Data => opening.replay(&found, &newest),
        }
    });
    if let Err(error) = replayed {
        checked.mends.extend(mend::cut_log(
            opening.layout,
            opening.shard,
            opening.device,
            &error,
        ));
        checked.report.push(Problem::Log(error));
    }
    checked.report.figures.log_records = opening.report.log_records;
    checked.report.figures.tail_records = opening.report.tail_records;
}

/// Replays what is about rows, and leaves the maps alone.
fn apply_rows<D: OpenDevice>(
    opening: &mut Opening<'_, D>,
    found: &FoundLog,
    newest: &[Replay<'_>],
) -> Result<(), OpenError> {
    let logged = found.records();
    opening.report.log_records = logged.len() as u64;
    opening.report.tail_records = newest.len() as u64;
    let records = logged.iter().chain(newest);
    records
        .filter(|replay| !matches!(replay.record, Record::Write { .. } | Record::Discard { .. }))
        .try_for_each(|replay| opening.apply(replay, &[]))
}

/// Everything that would be served.
fn look_at_everything<D: OpenDevice>(opening: &mut Opening<'_, D>, data: bool, checked: &mut CheckedShard) {
    let walked = Walked {
        layout: opening.layout,
        shard: opening.shard,
        directory: &opening.directory,
        volumes: &opening.volumes,
    };
    let examined = examine(&walked, opening.device, &mut opening.cache, &opening.space, data);
    let figures = &mut checked.report.figures;
    figures.map_pages = examined.report.figures.map_pages;
    figures.directory_pages = examined.report.figures.directory_pages;
    figures.data_blocks = examined.report.figures.data_blocks;
    figures.verified_blocks = examined.report.figures.verified_blocks;
    let bitmap_is_bad = checked.report.has("bitmap") || checked.report.has("log");
    for problem in examined.report.problems {
        let about_space = matches!(problem, Problem::Leaked(_) | Problem::Unmarked(_));
        let told = checked.report.problems.contains(&problem);
        if !(told || about_space && bitmap_is_bad) {
            checked.report.push(problem);
        }
    }
}

pub(super) fn mark_of(header: &ShardHeader) -> LogMark {
    LogMark {
        sequence: header.log_sequence.get(),
        lsn: header.log_lsn.get(),
        previous_crc32c: header.log_previous_crc32c.get(),
    }
}

pub(super) fn segments_of(tail: &mut impl LogTail) -> [Vec<u8>; 2] {
    if tail.is_there() {
        [tail.segment(0).to_vec(), tail.segment(1).to_vec()]
    } else {
        [Vec::new(), Vec::new()]
    }
}

fn found<D>(opening: &Opening<'_, D>, header: &ShardHeader) -> FoundShard {
    let shares = || opening.volumes.values().filter(|volume| !volume.with_snapshots);
    let rows = opening
        .directory
        .rows(stillpoint_ondisk::directory::RowKind::Catalog);
    FoundShard {
        volumes: shares().map(|volume| volume.status()).collect(),
        snapshots: shares()
            .map(|volume| (volume.id, volume.snapshot_statuses()))
            .collect(),
        deleting: opening.volumes.len() as u64 - shares().count() as u64,
        catalog: rows.map(|(key, value)| (key.to_vec(), value.to_vec())).collect(),
        checkpoint_ns: header.written_ns.get(),
        recovery: opening.report.clone(),
        total_blocks: opening.space.total_blocks(),
        used_blocks: opening.space.used_blocks(),
    }
}
