//! Replaying records in the order in which they were logged.

use crate::marks::{Mark, mark};
use stillpoint_ondisk::crc32c;
use stillpoint_ondisk::directory::RowKind;
use stillpoint_ondisk::map_page::LEVEL_MAX;
use stillpoint_ondisk::page::PAGE_BYTES;
use stillpoint_ondisk::record::Record;

use super::found_log::{FoundLog, Replay};
use super::{OpenError, Opening, READ_AHEAD_PAGES};
use crate::BLOCK_BYTES;
use crate::ids::{DeviceAddress, ShareBlock, SnapshotId, TimeStamp, VolumeId};
use crate::lineage;
use crate::map::{MapError, PageCache, PageRef, TreeMut};
use crate::ports::{OpenDevice, Transferred};
use crate::space::{Extent, Purpose};
use crate::virtual_volume::VirtualVolume;

/// Records whose map pages are fetched together. They lie anywhere, so that the device gets as much to do as it takes.
const RECORDS_AT_ONCE: usize = 16_384;

/// A block of data that is compared with what its record says of it.
struct Wanted {
    address: DeviceAddress,
    crc: u32,
    /// It may not have reached any device.
    is_doubtful: bool,
}

impl<D: OpenDevice> Opening<'_, D> {
    pub(in crate::shard) fn replay(
        &mut self,
        found: &FoundLog,
        newest: &[Replay<'_>],
    ) -> Result<(), OpenError> {
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
                if replay.lsn >= found.durable_lsn && !self.forgets_doubt() {
                    let (place, count) = (extent.address, u64::from(extent.blocks));
                    self.device.doubt(place.device(), place.block(), count);
                }
            }
        }
        let doubtful = found.durable_lsn..self.trusted_lsn;
        #[cfg(feature = "planted-bugs")]
        let doubtful = match self.planted_bug {
            Some(crate::PlantedBug::DoubtfulDataNotVerified) => 0..0,
            _ => doubtful,
        };
        for records in logged
            .chunks(RECORDS_AT_ONCE)
            .chain(newest.chunks(RECORDS_AT_ONCE))
        {
            self.fetch_pages_for(records)?;
            let bad = self.verify(records, &doubtful, found.durable_lsn);
            for replay in records {
                self.apply(replay, &bad)?;
            }
            #[cfg(feature = "planted-bugs")]
            if self.planted_bug == Some(crate::PlantedBug::RecordReplayedTwice) {
                for replay in records
                    .iter()
                    .filter(|replay| matches!(replay.record, Record::Discard { .. }))
                {
                    let _ = self.apply(replay, &bad);
                }
            }
        }
        Ok(())
    }

    /// Wrong on purpose.
    fn forgets_doubt(&self) -> bool {
        #[cfg(feature = "planted-bugs")]
        if self.planted_bug == Some(crate::PlantedBug::MissingSideNotDoubted) {
            return true;
        }
        false
    }

    /// Reads the map pages that these records will touch, level by level, many at a time. What the cache does not hold
    /// is read again when a record needs it.
    fn fetch_pages_for(&mut self, records: &[Replay<'_>]) -> Result<(), OpenError> {
        for _ in 0..=LEVEL_MAX {
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
            missing.truncate(self.cache.clean_room_pages() / 2);
            if missing.is_empty() {
                break;
            }
            for pages in missing.chunks(READ_AHEAD_PAGES) {
                self.load_map_pages(pages)?;
            }
        }
        Ok(())
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

    /// Wrong on purpose.
    fn forgets_to_compare(&self) -> bool {
        #[cfg(feature = "planted-bugs")]
        if self.planted_bug == Some(crate::PlantedBug::SidesNotCompared) {
            return true;
        }
        false
    }

    /// Reads the data that doubtful records name; gives the addresses of the blocks that did not reach the device.
    ///
    /// Of a device with two sides also that of all records since the last flush that is known of, whatever the tail says: a side may have
    /// lost what was in its cache on its own. Reading compares the sides; what fits on neither of them was acknowledged, so it keeps its
    /// place, and reading it is an error.
    fn verify(
        &mut self,
        records: &[Replay<'_>],
        doubtful: &core::ops::Range<u64>,
        durable_lsn: u64,
    ) -> Vec<u64> {
        let compares = !self.forgets_to_compare();
        let mut wanted: Vec<Wanted> = Vec::new();
        for replay in records.iter().filter(|replay| replay.lsn >= durable_lsn) {
            if let Record::Write { address, crcs, .. } = replay.record {
                let is_doubtful = doubtful.contains(&replay.lsn);
                let has_two = || self.device.has_two_sides(DeviceAddress(address).device());
                if !(is_doubtful || compares && has_two()) {
                    continue;
                }
                wanted.extend(crcs.iter().enumerate().map(|(i, crc)| Wanted {
                    address: DeviceAddress(address + i as u64),
                    crc: crc.get(),
                    is_doubtful,
                }));
            }
        }
        let mut bad = Vec::new();
        for blocks in wanted.chunks(READ_AHEAD_PAGES) {
            let mut memory = vec![0; blocks.len() * BLOCK_BYTES];
            let mut reads: Vec<Transferred<'_>> = blocks
                .iter()
                .zip(memory.chunks_exact_mut(BLOCK_BYTES))
                .map(|(block, bytes)| Transferred {
                    device: block.address.device(),
                    offset_bytes: block.address.offset_bytes(),
                    bytes,
                    result: Ok(()),
                })
                .collect();
            self.device.read_all(&mut reads);
            // Whether a block that cannot be read had reached the device is not known: it keeps its new place, so that
            // reading it is an error, and not content that may be too old.
            for (read, block) in reads.iter_mut().zip(blocks) {
                let mut fits = read.result.is_err() || crc32c(read.bytes) == block.crc;
                if !fits && self.device.read_other(read.device, read.offset_bytes, read.bytes) {
                    mark(Mark::RecoveryOtherSide);
                    fits = crc32c(read.bytes) == block.crc;
                }
                if !fits && block.is_doubtful {
                    bad.push(block.address.0);
                }
            }
        }
        bad.sort_unstable();
        if wanted.iter().any(|block| block.is_doubtful) {
            mark(Mark::RecoveryDoubt);
        }
        if !bad.is_empty() {
            mark(Mark::RecoveryDropped);
        }
        self.report.verified_blocks += wanted.len() as u64;
        self.report.dropped_blocks += bad.len() as u64;
        bad
    }

    pub(in crate::shard) fn apply(&mut self, replay: &Replay<'_>, bad: &[u64]) -> Result<(), OpenError> {
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
            Record::VolumeClone {
                volume,
                origin,
                snapshot,
            } => {
                let (volume, origin) = (VolumeId(volume), VolumeId(origin));
                lineage::clone(&mut self.volumes, volume, origin, SnapshotId(snapshot)).map_err(unfit)?;
            }
            Record::CatalogPut { key, value } => self
                .directory
                .put(RowKind::Catalog, key, value.to_vec())
                .map_err(|_| unfit("the directory is full"))?,
            Record::CatalogDelete { key } => self.directory.remove(RowKind::Catalog, key),
            Record::Opened { .. } => {}
            other => self.apply_to_volume(&other).map_err(unfit)?,
        }
        Ok(())
    }

    /// Records that change a volume's state, not its map.
    fn apply_to_volume(&mut self, record: &Record<'_>) -> Result<(), &'static str> {
        let (Record::VolumeResize { volume, .. }
        | Record::VolumeDelete { volume }
        | Record::HeadDelete { volume }
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
            Record::VolumeDelete { .. } => (volume.deleting, volume.with_snapshots) = (true, true),
            Record::HeadDelete { .. } => volume.deleting = true,
            Record::Cut {
                epoch,
                snapshot,
                time_stamp_ns,
                ..
            } => {
                if epoch != volume.epoch.0 {
                    return Err("cuts another epoch");
                }
                volume.cut(SnapshotId(snapshot), TimeStamp(time_stamp_ns));
            }
            Record::SnapshotDelete { snapshot, .. } => {
                // It is gone if the checkpoint is newer than the walk's end.
                volume.snapshots.delete(SnapshotId(snapshot));
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
            volume.dirty = true;
            volume.changes.note(self.now.wall_ns);
            let mut tree = volume.tree(&mut self.space, Purpose::Checkpoint);
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
}
