//! Opening a shard: the newest valid root, then the log, then the log tail.
//!
//! | what is found | what is done |
//! |---|---|
//! | two sound headers | the one of the higher generation is the root |
//! | one sound header | it is the root: the other was being written, or never was |
//! | no sound header | the shard is not opened |
//! | log pages that chain on from the root's mark | their records are replayed in order |
//! | the first page that does not | the end of the log |
//! | a tail segment whose header names a boundary of that chain | its records go on after the log's |
//! | any other tail segment | ignored: it belongs to another life of the pool |
//! | no tail segment that fits (a power cut) | data named by records not known to be durable is verified by CRC, and a block that fails keeps its older content |
//!
//! Opening writes nothing but the tail's records, into the log; what is replayed becomes durable with the next
//! checkpoint, which begins at once. Opening twice gives the same.

use core::fmt;
use std::collections::VecDeque;

use stillpoint_ondisk::bitmap::BitmapPage;
use stillpoint_ondisk::directory::{DirectoryPage, RowKind};
use stillpoint_ondisk::header::ShardHeader;
use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::log::LogPage;
use stillpoint_ondisk::map_page::{DIRECTORY_VOLUME, ENTRIES, MapEntry, MapPage, MapPageIdentity};
use stillpoint_ondisk::page::PAGE_BYTES;
use stillpoint_ondisk::record::Record;
use stillpoint_ondisk::tail::SegmentHeader;
use stillpoint_ondisk::{Damage, crc32c};
use zerocopy::FromBytes;

use super::checkpoint::Checkpoint;
use super::durability::Durability;
use super::loads::Loads;
use super::reclaim::Reclaim;
use super::slots::Slots;
use super::write::Batches;
use super::{Shard, ShardOptions};
use crate::BLOCK_BYTES;
use crate::command::ShardStatus;
use crate::directory::Directory;
use crate::ids::{DeviceAddress, DeviceIndex, Now, ShardIndex, ShareBlock, VolumeId};
use crate::intermediate_snapshot::IntermediateSnapshot;
use crate::log::{LogMark, LogWriter};
use crate::map::{MapError, PageCache, PageRef, TreeMut};
use crate::ports::{DeviceError, LogTail, NoTail, OpenDevice, Transferred};
use crate::space::{Extent, Space};
use crate::virtual_volume::VirtualVolume;

/// Pages read at once.
const READ_AHEAD_PAGES: usize = 256;
/// Records whose map pages are fetched together.
const RECORDS_AT_ONCE: usize = 4096;

/// Why a shard cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// A device failed.
    Device {
        /// While doing what.
        what: String,
        /// How.
        error: DeviceError,
    },
    /// A structure is damaged.
    Damaged {
        /// Which.
        what: String,
        /// How.
        damage: Damage,
    },
    /// A record of the log does not fit the state it is replayed on.
    Replay {
        /// LSN of the record.
        lsn: u64,
        /// What does not fit.
        what: &'static str,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { what, error } => write!(f, "{what}: {error}"),
            Self::Damaged { what, damage } => write!(f, "{what}: {damage}"),
            Self::Replay { lsn, what } => write!(f, "log record {lsn}: {what}"),
        }
    }
}

impl std::error::Error for OpenError {}

/// What opening a shard did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Generation of the root.
    pub generation: u64,
    /// Records replayed from the log.
    pub log_records: u64,
    /// Records replayed from the log tail.
    pub tail_records: u64,
    /// Whether the log tail fitted: no power was lost since.
    pub tail_fitted: bool,
    /// Blocks whose data was verified because it was not known to be durable.
    pub verified_blocks: u64,
    /// Blocks of these that had not reached the device; they keep their older content.
    pub dropped_blocks: u64,
}

/// The valid part of the log ring.
struct FoundLog {
    /// Whole pages, in order.
    pages: Vec<u8>,
    end: LogMark,
    durable_lsn: u64,
}

/// A record to replay. `bytes` is the record as it was encoded.
struct Replay<'a> {
    lsn: u64,
    record: Record<'a>,
}

struct Opening<'a, D> {
    layout: &'a Layout,
    shard: ShardIndex,
    device: &'a mut D,
    space: Space,
    cache: PageCache,
    directory: Directory,
    volumes: std::collections::BTreeMap<VolumeId, VirtualVolume>,
    now: Now,
    report: RecoveryReport,
}

impl<T: LogTail> Shard<T> {
    /// Opens a shard and replays what it logged.
    ///
    /// # Errors
    /// [`OpenError`] that names the structure and what is wrong with it. Nothing has been changed then.
    pub fn open(
        layout: &Layout,
        shard: ShardIndex,
        device: &mut impl OpenDevice,
        mut tail: T,
        options: ShardOptions,
        now: Now,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let header = read_header(layout, shard, device)?;
        let generation = header.generation.get();
        let mark = LogMark {
            sequence: header.log_sequence.get(),
            lsn: header.log_lsn.get(),
            previous_crc32c: header.log_previous_crc32c.get(),
        };
        let mut opening = Opening {
            layout,
            shard,
            device,
            space: Space::new(layout, shard),
            cache: PageCache::new(layout.pool, shard, options.map_cache_pages, generation + 1),
            directory: Directory::new(layout.pool, shard),
            volumes: std::collections::BTreeMap::new(),
            now,
            report: RecoveryReport {
                generation,
                ..RecoveryReport::default()
            },
        };
        opening.load_directory(&header)?;
        opening.load_bitmaps(generation)?;
        opening.load_volumes()?;
        let found = opening.find_log(mark)?;
        let segments = if tail.is_there() {
            [tail.segment(0).to_vec(), tail.segment(1).to_vec()]
        } else {
            [Vec::new(), Vec::new()]
        };
        let newest = opening.fitting_tail_records(&found, mark.lsn, &segments);
        opening.replay(&found, &newest)?;
        let at = opening.relog(&found, mark, &newest)?;
        let report = opening.report.clone();
        let mut log = LogWriter::new(layout.pool, shard, layout.log_pages, tail, mark, at);
        if !report.tail_fitted && at.lsn > found.durable_lsn {
            // A record that was dropped must not count as durable should the next crash come before a checkpoint.
            log.distrust_from(found.durable_lsn);
        }
        let Opening {
            space,
            cache,
            directory,
            volumes,
            ..
        } = opening;
        Ok((
            Self::assemble(
                layout.clone(),
                shard,
                options,
                now,
                space,
                cache,
                directory,
                log,
                volumes,
            ),
            report,
        ))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a shard, named once")]
    fn assemble(
        layout: Layout,
        shard: ShardIndex,
        options: ShardOptions,
        now: Now,
        space: Space,
        cache: PageCache,
        directory: Directory,
        log: LogWriter<T>,
        volumes: std::collections::BTreeMap<VolumeId, VirtualVolume>,
    ) -> Self {
        let mut checkpoint = Checkpoint::default();
        if log.used_pages() > 0 {
            checkpoint.want();
        }
        let mut reclaim = Reclaim::default();
        reclaim.wake();
        for volume in volumes.values().filter(|volume| !volume.deleting) {
            reclaim.trim_again(volume.id, volume.share_blocks);
        }
        Self {
            layout,
            shard,
            options,
            now,
            space,
            cache,
            directory,
            log,
            volumes,
            slots: Slots::new(options.in_flight_max),
            ready: VecDeque::new(),
            stalled: VecDeque::new(),
            write_queue: VecDeque::new(),
            batches: Batches::default(),
            loads: Loads::default(),
            durability: Durability::default(),
            checkpoint,
            cuts: Vec::new(),
            commands: VecDeque::new(),
            reclaim,
            no_space_since: None,
            outgoing: VecDeque::new(),
            spare_operations: Vec::new(),
            reads_in_flight: [0; 2],
            read_side: 0,
            operations_in_flight: 0,
            held_answers: 0,
            answers: Vec::new(),
            events: Vec::new(),
            stopped: None,
            status: ShardStatus::default(),
            progress: true,
        }
    }
}

fn read_header(
    layout: &Layout,
    shard: ShardIndex,
    device: &mut impl OpenDevice,
) -> Result<ShardHeader, OpenError> {
    let home = DeviceIndex(layout.home(shard.0) as u8);
    let mut best: Option<ShardHeader> = None;
    let mut worst = None;
    for copy in 0..2 {
        let what = || format!("shard {} header copy {copy} on device {}", shard.0, home.0);
        let mut bytes = vec![0; PAGE_BYTES];
        let block = layout.header_block(shard.0, copy);
        let read = read_one(device, home, block, &mut bytes);
        if let Err(error) = read {
            worst = Some(OpenError::Device { what: what(), error });
            continue;
        }
        match ShardHeader::parse(&bytes, layout.pool, shard.0) {
            Ok(found) => {
                if best
                    .as_ref()
                    .is_none_or(|best| found.generation.get() > best.generation.get())
                {
                    best = Some(found);
                }
            }
            Err(damage @ Damage::Version(_)) => return Err(OpenError::Damaged { what: what(), damage }),
            Err(damage) => worst = Some(OpenError::Damaged { what: what(), damage }),
        }
    }
    best.ok_or_else(|| worst.expect("two copies were looked at"))
}

fn read_one(
    device: &mut impl OpenDevice,
    index: DeviceIndex,
    block: u64,
    bytes: &mut [u8],
) -> Result<(), DeviceError> {
    let mut reads = [Transferred {
        device: index,
        offset_bytes: block * BLOCK_BYTES as u64,
        bytes,
        result: Ok(()),
    }];
    device.read_all(&mut reads);
    reads[0].result
}

impl<D: OpenDevice> Opening<'_, D> {
    fn home(&self) -> DeviceIndex {
        DeviceIndex(self.layout.home(self.shard.0) as u8)
    }

    /// Reads pages at these places into one piece of memory.
    fn read_pages(&mut self, what: &str, places: &[DeviceAddress]) -> Result<Vec<u8>, OpenError> {
        let mut memory = vec![0; places.len() * PAGE_BYTES];
        let mut reads: Vec<Transferred<'_>> = places
            .iter()
            .zip(memory.chunks_exact_mut(PAGE_BYTES))
            .map(|(place, bytes)| Transferred {
                device: place.device(),
                offset_bytes: place.offset_bytes(),
                bytes,
                result: Ok(()),
            })
            .collect();
        self.device.read_all(&mut reads);
        for (read, place) in reads.iter().zip(places) {
            if let Err(error) = read.result {
                return Err(OpenError::Device {
                    what: format!("{what} at {place}"),
                    error,
                });
            }
        }
        Ok(memory)
    }

    fn load_directory(&mut self, header: &ShardHeader) -> Result<(), OpenError> {
        let mut left = header.directory_pages.get() as usize;
        for (number, place) in header.directory_index[..usize::from(header.directory_index_count.get())]
            .iter()
            .enumerate()
        {
            let identity = MapPageIdentity {
                shard: self.shard.0,
                volume: DIRECTORY_VOLUME,
                level: 1,
                index: number as u64,
                generation: place.check.get(),
            };
            let bytes = self.read_pages("directory index", &[DeviceAddress(place.address())])?;
            let index =
                MapPage::parse(&bytes, self.layout.pool, &identity).map_err(|damage| OpenError::Damaged {
                    what: format!("directory index page {number}"),
                    damage,
                })?;
            self.directory.load_index(*place);
            let entries: Vec<MapEntry> = index.entries[..left.min(ENTRIES)].to_vec();
            left -= entries.len();
            let places: Vec<DeviceAddress> = entries.iter().map(|e| DeviceAddress(e.address())).collect();
            let pages = self.read_pages("directory page", &places)?;
            for (entry, bytes) in entries.iter().zip(pages.chunks_exact(PAGE_BYTES)) {
                let number = self.directory.page_count();
                DirectoryPage::parse(bytes, self.layout.pool, self.shard.0, number, entry.check.get())
                    .and_then(|page| self.directory.load_page(*entry, page))
                    .map_err(|damage| OpenError::Damaged {
                        what: format!("directory page {number} of shard {}", self.shard.0),
                        damage,
                    })?;
            }
        }
        Ok(())
    }

    fn load_bitmaps(&mut self, generation: u64) -> Result<(), OpenError> {
        for device in 0..self.layout.devices.len() {
            let pages = self.layout.bitmap_pages(device);
            for first in (0..pages).step_by(READ_AHEAD_PAGES) {
                let count = (pages - first).min(READ_AHEAD_PAGES as u64);
                let places: Vec<DeviceAddress> = (first..first + count)
                    .flat_map(|page| [(page, 0), (page, 1)])
                    .map(|(page, slot)| {
                        let block = self.layout.bitmap_block(self.shard.0, device, page, slot);
                        DeviceAddress::new(self.home(), block)
                    })
                    .collect();
                let bytes = self.read_pages("space bitmap", &places)?;
                for (page, slots) in (first..).zip(bytes.chunks_exact(2 * PAGE_BYTES)) {
                    self.load_bitmap(generation, device as u8, page, slots)?;
                }
            }
        }
        Ok(())
    }

    /// Of two slots the newest that the root knows of counts.
    fn load_bitmap(&mut self, generation: u64, device: u8, page: u64, slots: &[u8]) -> Result<(), OpenError> {
        let (pool, shard) = (self.layout.pool, self.shard.0);
        let mut damage = Damage::Magic;
        let mut best: Option<(u8, &BitmapPage)> = None;
        let mut unfinished = false;
        for (slot, bytes) in (0..2u8).zip(slots.chunks_exact(PAGE_BYTES)) {
            match BitmapPage::parse(bytes, pool, shard, u16::from(device), page) {
                Ok(found) if found.generation.get() > generation => unfinished = true,
                Ok(found) => {
                    if best.is_none_or(|(_, best)| found.generation.get() > best.generation.get()) {
                        best = Some((slot, found));
                    }
                }
                Err(found) => damage = found,
            }
        }
        let Some((slot, bitmap)) = best else {
            let what = format!("space bitmap page {page} of device {device}, shard {shard}");
            return Err(OpenError::Damaged { what, damage });
        };
        self.space.load_page(DeviceIndex(device), page, slot, bitmap);
        if unfinished {
            // A checkpoint that did not end left its page here. The next one has the same generation, so it must not
            // leave this page as it is.
            self.space.mark_dirty(DeviceIndex(device), page);
        }
        Ok(())
    }

    fn load_volumes(&mut self) -> Result<(), OpenError> {
        let damaged = |what| OpenError::Damaged {
            what: String::from("directory row"),
            damage: Damage::Field(what),
        };
        for (key, value) in self.directory.rows(RowKind::Volume) {
            let volume = VirtualVolume::from_row(key, value).ok_or_else(|| damaged("volume"))?;
            self.volumes.insert(volume.id, volume);
        }
        for (key, value) in self.directory.rows(RowKind::Snapshot) {
            let (volume, snapshot) =
                IntermediateSnapshot::from_row(key, value).ok_or_else(|| damaged("snapshot"))?;
            let volume = self
                .volumes
                .get_mut(&volume)
                .ok_or_else(|| damaged("snapshot of no volume"))?;
            volume.snapshots.push(snapshot);
        }
        for volume in self.volumes.values_mut() {
            volume.snapshots.sort_by_key(|snapshot| snapshot.copy.epoch);
        }
        Ok(())
    }

    /// Reads the log from the root's mark up to the first page that does not chain on.
    fn find_log(&mut self, mark: LogMark) -> Result<FoundLog, OpenError> {
        let ring = u64::from(self.layout.log_pages);
        let start = self.layout.log_start_block(self.shard.0);
        let mut found = FoundLog {
            pages: Vec::new(),
            end: mark,
            durable_lsn: mark.lsn,
        };
        while found.end.sequence < mark.sequence + ring {
            let ahead = (mark.sequence + ring - found.end.sequence).min(READ_AHEAD_PAGES as u64);
            let places: Vec<DeviceAddress> = (found.end.sequence..found.end.sequence + ahead)
                .map(|sequence| DeviceAddress::new(self.home(), start + sequence % ring))
                .collect();
            let bytes = self.read_pages("log", &places)?;
            for page in bytes.chunks_exact(PAGE_BYTES) {
                let end = &mut found.end;
                let parsed = LogPage::parse(
                    page,
                    self.layout.pool,
                    self.shard.0,
                    end.sequence,
                    end.previous_crc32c,
                );
                let Some(next_lsn) = parsed.ok().and_then(|page| records_end(page, end.lsn)) else {
                    return Ok(found);
                };
                let sound = LogPage::ref_from_bytes(page).expect("parsed before");
                end.sequence += 1;
                end.previous_crc32c = sound.header.crc32c.get();
                end.lsn = next_lsn;
                found.durable_lsn = found.durable_lsn.max(sound.durable_lsn.get());
                found.pages.extend_from_slice(page);
            }
        }
        Ok(found)
    }

    /// The records of the log tail that go on after the log's; empty if no segment fits.
    fn fitting_tail_records<'s>(
        &mut self,
        found: &FoundLog,
        first_lsn: u64,
        segments: &'s [Vec<u8>; 2],
    ) -> Vec<Replay<'s>> {
        let mut headers: Vec<(SegmentHeader, &[u8])> = segments
            .iter()
            .filter_map(|segment| {
                Some((
                    SegmentHeader::parse(segment)?,
                    &segment[size_of::<SegmentHeader>()..],
                ))
            })
            .filter(|(header, _)| header.first_lsn.get() >= first_lsn)
            .collect();
        headers.sort_by_key(|(header, _)| header.first_lsn.get());
        let mut newest = Vec::new();
        let mut next_lsn = found.end.lsn;
        for (header, bytes) in headers {
            let goes_on = self.report.tail_fitted && header.first_lsn.get() == next_lsn;
            if !goes_on && !found.has_boundary(&header) {
                continue;
            }
            let records = segment_records(bytes, header.first_lsn.get());
            let agrees = |replay: &Replay<'_>| replay.lsn >= found.end.lsn || found.has_record(replay);
            if !records.iter().all(agrees) {
                continue;
            }
            self.report.tail_fitted = true;
            for replay in records {
                if replay.lsn == next_lsn {
                    next_lsn += 1;
                    newest.push(replay);
                }
            }
        }
        newest
    }

    fn replay(&mut self, found: &FoundLog, newest: &[Replay<'_>]) -> Result<(), OpenError> {
        let logged = found.records();
        self.report.log_records = logged.len() as u64;
        self.report.tail_records = newest.len() as u64;
        // Every place that a record names is taken before anything is replayed: the map pages that replaying makes
        // must not be put there.
        for replay in logged.iter().chain(newest) {
            if let Record::Write { address, crcs, .. } = replay.record {
                let extent = Extent {
                    address: DeviceAddress(address),
                    blocks: crcs.len() as u32,
                };
                if !self.space.contains(extent) || !self.space.mark_used(extent) {
                    return Err(OpenError::Replay {
                        lsn: replay.lsn,
                        what: "names a place that is in use",
                    });
                }
            }
        }
        let trusted_lsn = if self.report.tail_fitted {
            u64::MAX
        } else {
            found.durable_lsn
        };
        for records in logged
            .chunks(RECORDS_AT_ONCE)
            .chain(newest.chunks(RECORDS_AT_ONCE))
        {
            self.fetch_pages_for(records)?;
            let bad = self.verify(records, trusted_lsn);
            for replay in records {
                self.apply(replay, &bad)?;
            }
        }
        Ok(())
    }

    /// Reads the map pages that these records will touch, level by level, many at a time.
    fn fetch_pages_for(&mut self, records: &[Replay<'_>]) -> Result<(), OpenError> {
        loop {
            let mut missing: Vec<PageRef> = Vec::new();
            for replay in records {
                let (volume, first, last) = match replay.record {
                    Record::Write {
                        volume, first, crcs, ..
                    } => (volume, first, first + crcs.len() as u64 - 1),
                    Record::Discard { volume, first, .. } => (volume, first, first),
                    _ => continue,
                };
                let Some(volume) = self.volumes.get(&VolumeId(volume)) else {
                    continue;
                };
                for block in [first, last] {
                    if let Err(MapError::Miss(page)) =
                        self.cache.lookup(volume.family, &volume.root, ShareBlock(block))
                    {
                        missing.push(page);
                    }
                }
            }
            missing.sort_by_key(|page| page.address);
            missing.dedup_by_key(|page| page.address);
            missing.truncate(self.cache.capacity_pages() / 4);
            if missing.is_empty() {
                return Ok(());
            }
            for pages in missing.chunks(READ_AHEAD_PAGES) {
                self.load_map_pages(pages)?;
            }
            if missing.len() >= self.cache.capacity_pages() / 4 {
                return Ok(());
            }
        }
    }

    fn load_map_pages(&mut self, pages: &[PageRef]) -> Result<(), OpenError> {
        let places: Vec<DeviceAddress> = pages.iter().map(|page| page.address).collect();
        let bytes = self.read_pages("map page", &places)?;
        for (page, bytes) in pages.iter().zip(bytes.chunks_exact(PAGE_BYTES)) {
            self.cache
                .insert(page, bytes)
                .map_err(|damage| OpenError::Damaged {
                    what: format!("map page at {}", page.address),
                    damage,
                })?;
        }
        Ok(())
    }

    /// Reads the data that untrusted records name; gives the addresses of the blocks that did not reach the device.
    fn verify(&mut self, records: &[Replay<'_>], trusted_lsn: u64) -> Vec<u64> {
        let mut wanted: Vec<(DeviceAddress, u32)> = Vec::new();
        for replay in records.iter().filter(|replay| replay.lsn >= trusted_lsn) {
            if let Record::Write { address, crcs, .. } = replay.record {
                wanted.extend(
                    crcs.iter()
                        .enumerate()
                        .map(|(i, crc)| (DeviceAddress(address + i as u64), crc.get())),
                );
            }
        }
        let mut bad = Vec::new();
        for blocks in wanted.chunks(READ_AHEAD_PAGES) {
            let mut memory = vec![0; blocks.len() * BLOCK_BYTES];
            let mut reads: Vec<Transferred<'_>> = blocks
                .iter()
                .zip(memory.chunks_exact_mut(BLOCK_BYTES))
                .map(|((place, _), bytes)| Transferred {
                    device: place.device(),
                    offset_bytes: place.offset_bytes(),
                    bytes,
                    result: Ok(()),
                })
                .collect();
            self.device.read_all(&mut reads);
            // A block that cannot be read was not durable either: it keeps its older content.
            let sound = |read: &Transferred<'_>, crc: u32| read.result.is_ok() && crc32c(read.bytes) == crc;
            let damaged = reads
                .iter()
                .zip(blocks)
                .filter(|(read, (_, crc))| !sound(read, *crc));
            bad.extend(damaged.map(|(_, (address, _))| address.0));
        }
        bad.sort_unstable();
        self.report.verified_blocks += wanted.len() as u64;
        self.report.dropped_blocks += bad.len() as u64;
        bad
    }

    fn apply(&mut self, replay: &Replay<'_>, bad: &[u64]) -> Result<(), OpenError> {
        let unfit = |what| OpenError::Replay {
            lsn: replay.lsn,
            what,
        };
        match replay.record {
            Record::Write {
                volume,
                birth,
                first,
                address,
                crcs,
            } => {
                let volume = VolumeId(volume);
                self.check_birth(volume, birth).map_err(unfit)?;
                let mut start = 0;
                while start < crcs.len() {
                    let is_bad = |i: usize| bad.binary_search(&(address + i as u64)).is_ok();
                    let dropped = is_bad(start);
                    let end = (start + 1..crcs.len())
                        .find(|&i| is_bad(i) != dropped)
                        .unwrap_or(crcs.len());
                    let place = DeviceAddress(address + start as u64);
                    if dropped {
                        self.space.free(place, (end - start) as u32);
                    } else {
                        let block = ShareBlock(first + start as u64);
                        self.change(volume, |cache, tree| {
                            cache.set(tree, block, place, &crcs[start..end]).map(|()| true)
                        })?;
                    }
                    start = end;
                }
            }
            Record::Discard {
                volume,
                birth,
                first,
                count,
            } => {
                self.check_birth(VolumeId(volume), birth).map_err(unfit)?;
                let mut done = 0;
                self.change(VolumeId(volume), |cache, tree| {
                    let (at, left) = (ShareBlock(first + done), count - done);
                    done += cache.clear_leaf_range(tree, at, left, 64)?;
                    Ok(done == count)
                })?;
            }
            Record::VolumeCreate {
                volume,
                family,
                share_blocks,
            } => {
                let volume = VolumeId(volume);
                let share = VirtualVolume::new(volume, VolumeId(family), share_blocks);
                if self.volumes.insert(volume, share).is_some() {
                    return Err(unfit("creates a volume that is there"));
                }
            }
            Record::CatalogPut { key, value } => self
                .directory
                .put(RowKind::Catalog, key, value.to_vec())
                .map_err(|_| unfit("the directory is full"))?,
            Record::CatalogDelete { key } => self.directory.remove(RowKind::Catalog, key),
            other => self.apply_to_volume(&other).map_err(unfit)?,
        }
        Ok(())
    }

    /// Records that change a volume's state, not its map.
    fn apply_to_volume(&mut self, record: &Record<'_>) -> Result<(), &'static str> {
        let (Record::VolumeResize { volume, .. }
        | Record::VolumeDelete { volume }
        | Record::Cut { volume, .. }
        | Record::SnapshotDelete { volume, .. }) = *record
        else {
            unreachable!("{record:?} was applied before")
        };
        let volume = self
            .volumes
            .get_mut(&VolumeId(volume))
            .ok_or("names a volume that is not there")?;
        volume.dirty = true;
        match *record {
            Record::VolumeResize { share_blocks, .. } => volume.share_blocks = share_blocks,
            Record::VolumeDelete { .. } => volume.deleting = true,
            Record::Cut {
                epoch,
                snapshot,
                time_stamp_ns,
                ..
            } => {
                if epoch != volume.epoch.0 {
                    return Err("cuts another epoch");
                }
                volume.cut(
                    crate::ids::SnapshotId(snapshot),
                    crate::ids::TimeStamp(time_stamp_ns),
                );
            }
            Record::SnapshotDelete { snapshot, .. } => {
                // It is gone if the checkpoint is newer than the walk's end.
                if let Some(found) = volume.snapshot_mut(crate::ids::SnapshotId(snapshot)) {
                    found.deleting = true;
                    found.dirty = true;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_birth(&self, volume: VolumeId, birth: u32) -> Result<(), &'static str> {
        match self.volumes.get(&volume) {
            None => Err("names a volume that is not there"),
            Some(volume) if volume.epoch.0 != birth => Err("was born in another epoch"),
            Some(_) => Ok(()),
        }
    }

    /// Changes the live map of a volume, reading the pages it needs; `step` says when it is done.
    fn change(
        &mut self,
        volume: VolumeId,
        mut step: impl FnMut(&mut PageCache, &mut TreeMut<'_>) -> Result<bool, MapError>,
    ) -> Result<(), OpenError> {
        loop {
            let volume = self.volumes.get_mut(&volume).expect("checked before");
            let free = volume.free_rule();
            volume.dirty = true;
            volume.changes.note(self.now.wall_ns);
            let mut tree = TreeMut {
                family: volume.family,
                root: &mut volume.root,
                epoch: volume.epoch,
                free,
                space: &mut self.space,
                stats: &mut volume.stats,
            };
            match step(&mut self.cache, &mut tree) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(MapError::Miss(page)) => self.load_map_pages(&[page])?,
                Err(MapError::CacheFull) => {
                    // The pages that replaying makes dirty stay until the first checkpoint.
                    let capacity = self.cache.capacity_pages();
                    self.cache.set_capacity(capacity + capacity / 2 + 64);
                }
                Err(MapError::NoSpace) => {
                    return Err(OpenError::Replay {
                        lsn: 0,
                        what: "no space for the map pages of the log",
                    });
                }
            }
        }
    }

    /// Brings the tail's records into the log on the device; gives where the log goes on.
    fn relog(
        &mut self,
        found: &FoundLog,
        mark: LogMark,
        newest: &[Replay<'_>],
    ) -> Result<LogMark, OpenError> {
        let failed = |error| OpenError::Device {
            what: String::from("writing the log tail to the log"),
            error,
        };
        let (pool, pages) = (self.layout.pool, self.layout.log_pages);
        let mut log = LogWriter::new(pool, self.shard, pages, NoTail, mark, found.end);
        let start = self.layout.log_start_block(self.shard.0);
        let mut left = newest;
        while !left.is_empty() {
            while let Some((replay, rest)) = left.split_first()
                && log.has_urgent_room(replay.record.encoded_bytes())
            {
                assert_eq!(
                    log.append(&replay.record),
                    replay.lsn,
                    "the tail goes on where the log ends"
                );
                left = rest;
            }
            if !log.has_pending() {
                return Err(OpenError::Replay {
                    lsn: left[0].lsn,
                    what: "the log has no room for the log tail",
                });
            }
            let mut bytes = vec![0; log.pending_bytes()];
            let first = log.start_write(&mut bytes);
            for (page, bytes) in (first..).zip(bytes.chunks_exact(PAGE_BYTES)) {
                let block = start + page % u64::from(pages);
                self.device
                    .write(self.home(), block * BLOCK_BYTES as u64, bytes)
                    .map_err(failed)?;
            }
            log.written();
        }
        for device in 0..self.layout.devices.len() {
            self.device.flush(DeviceIndex(device as u8)).map_err(failed)?;
        }
        Ok(log.mark())
    }
}

/// The LSN after the records of a page; `None` if they do not go on from `lsn`.
fn records_end(page: &LogPage, mut lsn: u64) -> Option<u64> {
    if page.first_lsn.get() != lsn {
        return None;
    }
    let mut rest = &page.payload[..usize::from(page.used_bytes.get())];
    while !rest.is_empty() {
        let (found, _, length) = Record::decode(rest)?;
        if found != lsn {
            return None;
        }
        lsn += 1;
        rest = &rest[length..];
    }
    Some(lsn)
}

fn segment_records(mut bytes: &[u8], mut lsn: u64) -> Vec<Replay<'_>> {
    let mut records = Vec::new();
    while let Some((found, record, length)) = Record::decode(bytes)
        && found == lsn
    {
        records.push(Replay { lsn, record });
        lsn += 1;
        bytes = &bytes[length..];
    }
    records
}

impl FoundLog {
    fn pages(&self) -> impl Iterator<Item = &LogPage> {
        let pages = self.pages.chunks_exact(PAGE_BYTES);
        pages.map(|page| LogPage::ref_from_bytes(page).expect("parsed when it was found"))
    }

    fn records(&self) -> Vec<Replay<'_>> {
        let payloads = self
            .pages()
            .map(|page| (page, &page.payload[..usize::from(page.used_bytes.get())]));
        payloads
            .flat_map(|(page, payload)| segment_records(payload, page.first_lsn.get()))
            .collect()
    }

    /// Whether a tail segment begins where a page of this log begins, or where the log ends.
    fn has_boundary(&self, header: &SegmentHeader) -> bool {
        let (sequence, lsn) = (header.sequence.get(), header.first_lsn.get());
        let crc = header.previous_crc32c.get();
        let ends = self.end
            == LogMark {
                sequence,
                lsn,
                previous_crc32c: crc,
            };
        ends || self.pages().any(|page| {
            page.sequence.get() == sequence
                && page.first_lsn.get() == lsn
                && page.previous_crc32c.get() == crc
        })
    }

    /// Whether the log holds this very record.
    fn has_record(&self, replay: &Replay<'_>) -> bool {
        let pages: Vec<&LogPage> = self.pages().collect();
        let after = pages.partition_point(|page| page.first_lsn.get() <= replay.lsn);
        let Some(page) = after.checked_sub(1).map(|position| pages[position]) else {
            return false;
        };
        let payload = &page.payload[..usize::from(page.used_bytes.get())];
        let records = segment_records(payload, page.first_lsn.get());
        records
            .iter()
            .any(|found| found.lsn == replay.lsn && found.record == replay.record)
    }
}
