//! The devices, read without the code that wrote them: every root, every map page, every data block, against the
//! bitmaps. After checkpoints in silence every used block belongs to exactly one position of one volume, or to the
//! directory, and no block is marked as used that nothing refers to.

use std::collections::BTreeMap;

use stillpoint_ondisk::bitmap::{BLOCKS_PER_PAGE, BitmapPage};
use stillpoint_ondisk::directory::{DirectoryPage, RowKind, SnapshotRow, VolumeRow};
use stillpoint_ondisk::header::ShardHeader;
use stillpoint_ondisk::layout::HEADER_COPIES;
use stillpoint_ondisk::map_page::{DIRECTORY_VOLUME, ENTRIES, MapEntry, MapPage, MapPageIdentity};
use stillpoint_ondisk::{PAGE_BYTES, crc32c};
use stillpoint_processor::{DeviceAddress, DeviceIndex, ShardIndex};
use zerocopy::FromBytes;

use super::{Checked, World, broken};
use crate::model::Broken;

/// What a used block is: which volume, which level (255 for data), which position in it.
type Owner = (u32, u8, u64);

/// Level of data blocks in an [`Owner`].
const DATA: u8 = u8::MAX;

/// A row of the directory: kind, key, value.
pub(super) type OwnedRow = (RowKind, Vec<u8>, Vec<u8>);

/// What was met of one shard.
pub(super) struct Audit<'a> {
    world: &'a World,
    shard: ShardIndex,
    owners: BTreeMap<u64, Owner>,
    /// Data blocks that were walked, by position.
    pub(super) positions: BTreeMap<u64, u64>,
}

impl World {
    /// Audits all shards. Nothing may be going on, and a checkpoint must have been made since.
    ///
    /// # Errors
    /// The first place that is wrong.
    pub fn audit(&self) -> Checked {
        self.shards().try_for_each(|shard| {
            Audit::new(self, shard)
                .run()
                .map_err(|Broken(why)| Broken(format!("audit of shard {}: {why}", shard.0)))
        })
    }

    /// The newest sound header of a shard.
    pub(super) fn newest_header(&self, shard: ShardIndex) -> Checked<ShardHeader> {
        let home = self.layout.home(shard.0);
        let newest = (0..HEADER_COPIES)
            .filter_map(|copy| {
                let mut bytes = [0; PAGE_BYTES];
                self.peek(home, self.layout.header_block(shard.0, copy), &mut bytes);
                ShardHeader::parse(&bytes, self.layout.pool, shard.0).ok()
            })
            .max_by_key(|header| header.generation.get());
        newest.ok_or_else(|| Broken(format!("shard {} has no sound header", shard.0)))
    }
}

impl<'a> Audit<'a> {
    pub(super) fn new(world: &'a World, shard: ShardIndex) -> Self {
        Self {
            world,
            shard,
            owners: BTreeMap::new(),
            positions: BTreeMap::new(),
        }
    }
}

impl Audit<'_> {
    fn run(mut self) -> Checked {
        let header = self.world.newest_header(self.shard)?;
        let (mut volumes, mut roots) = (BTreeMap::new(), Vec::new());
        for (kind, key, value) in self.directory(&header)? {
            let number = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
            match kind {
                RowKind::Volume => {
                    let row = VolumeRow::read_from_prefix(&value)
                        .map_err(|_| Broken("volume row".into()))?
                        .0;
                    volumes.insert(number(&key), row.family.get());
                    roots.push((number(&key), row.root, row.root_level, row.mapped_blocks.get()));
                }
                RowKind::Snapshot => {
                    let row =
                        SnapshotRow::read_from_bytes(&value).map_err(|_| Broken("snapshot row".into()))?;
                    roots.push((number(&key), row.root, row.root_level, row.mapped_blocks.get()));
                }
                RowKind::Catalog => {}
            }
        }
        for (volume, root, level, mapped_blocks) in roots {
            let Some(&family) = volumes.get(&volume) else {
                return broken(format!("a snapshot of volume {volume}, which is not there"));
            };
            let found = self.walk(family, &root, level, 0)?;
            self.positions.clear();
            if found != mapped_blocks {
                return broken(format!(
                    "volume {volume}: {found} blocks are mapped, the row says {mapped_blocks}"
                ));
            }
        }
        self.compare_with_bitmaps(header.generation.get())
    }

    fn peek(&self, address: u64) -> Checked<Vec<u8>> {
        let address = DeviceAddress(address);
        let device = usize::from(address.device().0);
        let of_device = self.world.layout.devices.get(device);
        if of_device.is_none_or(|of_device| address.block() >= of_device.size_blocks) {
            return broken(format!("{address} is beyond the devices"));
        }
        let mut bytes = vec![0; PAGE_BYTES];
        self.world.peek(device, address.block(), &mut bytes);
        Ok(bytes)
    }

    /// Gives a block its owner. False if it has this owner already: maps share what did not change.
    fn own(&mut self, address: u64, owner: Owner) -> Checked<bool> {
        match self.owners.insert(address, owner) {
            None => Ok(true),
            Some(before) if before == owner && owner.0 != DIRECTORY_VOLUME => Ok(false),
            Some(before) => broken(format!(
                "{} is used twice: as {before:?} and as {owner:?} (volume, level, position)",
                DeviceAddress(address)
            )),
        }
    }

    pub(super) fn directory(&mut self, header: &ShardHeader) -> Checked<Vec<OwnedRow>> {
        let (pool, shard) = (self.world.layout.pool, self.shard.0);
        let mut rows = Vec::new();
        let mut left = header.directory_pages.get();
        let indexes = usize::from(header.directory_index_count.get());
        let mut number = 0;
        for (index, place) in (0..).zip(&header.directory_index[..indexes]) {
            let identity = MapPageIdentity {
                shard,
                volume: DIRECTORY_VOLUME,
                level: 1,
                index,
                generation: place.check.get(),
            };
            self.own(place.address(), (DIRECTORY_VOLUME, 1, index))?;
            let bytes = self.peek(place.address())?;
            let page =
                MapPage::parse(&bytes, pool, &identity).map_err(|damage| Broken(damage.to_string()))?;
            for entry in &page.entries[..(left as usize).min(ENTRIES)] {
                self.own(entry.address(), (DIRECTORY_VOLUME, 0, u64::from(number)))?;
                let bytes = self.peek(entry.address())?;
                let page = DirectoryPage::parse(&bytes, pool, shard, number, entry.check.get());
                let page = page.map_err(|damage| Broken(format!("directory page {number}: {damage}")))?;
                let found = page.rows().map_err(|damage| Broken(damage.to_string()))?;
                rows.extend(
                    found
                        .iter()
                        .map(|row| (row.kind, row.key.to_vec(), row.value.to_vec())),
                );
                number += 1;
                left -= 1;
            }
        }
        Ok(rows)
    }

    /// Walks a map; gives the data blocks it maps.
    pub(super) fn walk(&mut self, family: u32, entry: &MapEntry, level: u8, index: u64) -> Checked<u64> {
        let address = entry.address();
        if address == 0 {
            return Ok(0);
        }
        self.own(address, (family, level, index))?;
        let bytes = self.peek(address)?;
        let identity = MapPageIdentity {
            shard: self.shard.0,
            volume: family,
            level,
            index,
            generation: entry.check.get(),
        };
        let page = MapPage::parse(&bytes, self.world.layout.pool, &identity).map_err(|damage| {
            Broken(format!(
                "map page at {}, {identity:?}: {damage}",
                DeviceAddress(address)
            ))
        })?;
        let mut mapped = 0;
        for (child, entry) in (index * ENTRIES as u64..).zip(&page.entries) {
            if level > 0 {
                mapped += self.walk(family, entry, level - 1, child)?;
            } else if entry.address() != 0 {
                mapped += 1;
                self.positions.insert(child, entry.address());
                if self.own(entry.address(), (family, DATA, child))?
                    && crc32c(&self.peek(entry.address())?) != entry.check.get()
                {
                    let place = DeviceAddress(entry.address());
                    return broken(format!(
                        "the data at {place}, block {child} of {family}, has another CRC"
                    ));
                }
            }
        }
        Ok(mapped)
    }

    fn compare_with_bitmaps(&self, generation: u64) -> Checked {
        let layout = &self.world.layout;
        for device in 0..layout.devices.len() {
            let slice_start = layout.slice_start_block(self.shard.0, device);
            let data_start = layout.data_start_block(self.shard.0, device);
            let pages: Vec<BitmapPage> = (0..layout.bitmap_pages(device))
                .map(|page| self.bitmap_page(device, page, generation))
                .collect::<Checked<_>>()?;
            for block in data_start..slice_start + layout.devices[device].slice_blocks {
                let place = (block - slice_start) as usize;
                let word = pages[place / BLOCKS_PER_PAGE].words[place % BLOCKS_PER_PAGE / 64].get();
                let used = word >> (place % 64) & 1 == 1;
                let address = DeviceAddress::new(DeviceIndex(device as u8), block);
                match (used, self.owners.get(&address.0)) {
                    (true, None) => {
                        return broken(format!("{address} is marked as used and nothing refers to it"));
                    }
                    (false, Some(owner)) => {
                        return broken(format!(
                            "{address} is marked as free and is {owner:?} (volume, level, position)"
                        ));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn bitmap_page(&self, device: usize, page: u64, generation: u64) -> Checked<BitmapPage> {
        let (layout, shard) = (&self.world.layout, self.shard.0);
        let home = layout.home(shard);
        let newest = (0..2)
            .filter_map(|slot| {
                let mut bytes = [0; PAGE_BYTES];
                let block = layout.bitmap_block(shard, device, page, slot);
                self.world.peek(home, block, &mut bytes);
                BitmapPage::parse(&bytes, layout.pool, shard, device as u16, page)
                    .ok()
                    .copied()
            })
            .filter(|found| found.generation.get() <= generation)
            .max_by_key(|found| found.generation.get());
        newest.ok_or_else(|| Broken(format!("bitmap page {page} of device {device} has no sound slot")))
    }
}

#[cfg(test)]
mod tests {
    use crate::random::Random;
    use crate::scenario::Plan;
    use crate::world::World;

    #[test]
    fn damage_to_anything_in_use_is_found() {
        let mut random = Random::new(5);
        let plan = Plan::new(&mut random);
        let mut world = World::new(plan, random, false).expect("a pool");
        world.make_volumes(2).expect("volumes");
        world.work(60).expect("some work");
        world.quiesce().expect("silence");
        world.audit_in_silence().expect("nothing is wrong yet");
        let data_start = world.layout.data_start_block(0, 0);
        let size_blocks = world.layout.devices[0].size_blocks;
        let mut found = 0;
        for block in data_start..size_blocks {
            world.devices.corrupt(0, block, 77, 0x04);
            found += u32::from(world.audit().is_err());
            world.devices.corrupt(0, block, 77, 0x04);
        }
        assert!(found > 5, "{found}");
        world.audit().expect("all damage was taken back");
        let bitmap = world.layout.bitmap_block(0, 0, 0, 0);
        world.devices.corrupt(0, bitmap, 77, 0x04);
        world.devices.corrupt(0, bitmap + 1, 77, 0x04);
        assert!(world.audit().is_err(), "without bitmaps");
    }
}
