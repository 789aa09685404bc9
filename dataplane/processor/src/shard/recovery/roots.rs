//! The root: directory, bitmaps, volumes, as the last durable checkpoint left them.

use std::collections::BTreeMap;

use stillpoint_ondisk::Damage;
use stillpoint_ondisk::bitmap::BitmapPage;
use stillpoint_ondisk::directory::{DirectoryPage, RowKind};
use stillpoint_ondisk::header::ShardHeader;
use stillpoint_ondisk::map_page::{DIRECTORY_VOLUME, ENTRIES, MapEntry, MapPage, MapPageIdentity};
use stillpoint_ondisk::page::PAGE_BYTES;

use super::{OpenError, Opening, READ_AHEAD_PAGES};
use crate::ids::{DeviceAddress, DeviceIndex, VolumeId};
use crate::intermediate_snapshot::IntermediateSnapshot;
use crate::lineage;
use crate::ports::OpenDevice;
use crate::snapshot_chain::SnapshotChain;
use crate::virtual_volume::VirtualVolume;

impl<D: OpenDevice> Opening<'_, D> {
    pub(in crate::shard) fn load_directory(&mut self, header: &ShardHeader) -> Result<(), OpenError> {
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

    /// Loads of every page the newest slot that the root knows of, and checks by the root that none of them is an
    /// older one whose successor was damaged or lost: space would be given out that is in use.
    pub(in crate::shard) fn load_bitmaps(&mut self, header: &ShardHeader) -> Result<(), OpenError> {
        let generation = header.generation.get();
        let mut damage = None;
        for device in 0..self.layout.devices.len() {
            let pages = self.layout.bitmap_pages(device);
            for first in (0..pages).step_by(READ_AHEAD_PAGES / 2) {
                let count = (pages - first).min(READ_AHEAD_PAGES as u64 / 2);
                let places: Vec<DeviceAddress> = (first..first + count)
                    .flat_map(|page| [(page, 0), (page, 1)])
                    .map(|(page, slot)| {
                        let block = self.layout.bitmap_block(self.shard.0, device, page, slot);
                        DeviceAddress::new(self.home(), block)
                    })
                    .collect();
                let bytes = self.read_pages("space bitmap", &places)?;
                for (page, slots) in (first..).zip(bytes.chunks_exact(2 * PAGE_BYTES)) {
                    let found = self.load_bitmap(generation, device as u8, page, slots)?;
                    // A slot that was never used holds anything.
                    damage = damage.or(found.filter(|found| *found != Damage::Magic));
                }
            }
        }
        // Pools that an older program wrote say nothing.
        let expected = header.bitmap_check.get();
        if expected != 0 && expected != self.space.bitmap_check() {
            return Err(OpenError::Damaged {
                what: format!(
                    "space bitmap of shard {}: a page of the last checkpoint",
                    self.shard.0
                ),
                damage: damage.unwrap_or(Damage::Place),
            });
        }
        Ok(())
    }

    /// Of two slots the newest that the root knows of counts. Gives what is wrong with the other, should it have been
    /// the newest.
    fn load_bitmap(
        &mut self,
        generation: u64,
        device: u8,
        page: u64,
        slots: &[u8],
    ) -> Result<Option<Damage>, OpenError> {
        let (pool, shard) = (self.layout.pool, self.shard.0);
        let mut damage = None;
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
                Err(found) => damage = Some(found),
            }
        }
        let Some((slot, bitmap)) = best else {
            let what = format!("space bitmap page {page} of device {device}, shard {shard}");
            let damage = damage.unwrap_or(Damage::Place);
            return Err(OpenError::Damaged { what, damage });
        };
        self.space.load_page(DeviceIndex(device), page, slot, bitmap);
        if unfinished {
            // A checkpoint that did not end left its page here. The next one has the same generation, so it must not
            // leave this page as it is.
            self.space.mark_dirty(DeviceIndex(device), page);
        }
        Ok(damage)
    }

    pub(in crate::shard) fn load_volumes(&mut self) -> Result<(), OpenError> {
        let damaged = |what| OpenError::Damaged {
            what: String::from("directory row"),
            damage: Damage::Field(what),
        };
        for (key, value) in self.directory.rows(RowKind::Volume) {
            let volume = VirtualVolume::from_row(key, value).ok_or_else(|| damaged("volume"))?;
            self.volumes.insert(volume.id, volume);
        }
        let mut chains: BTreeMap<VolumeId, Vec<IntermediateSnapshot>> = BTreeMap::new();
        for (key, value) in self.directory.rows(RowKind::Snapshot) {
            let (volume, snapshot) =
                IntermediateSnapshot::from_row(key, value).ok_or_else(|| damaged("snapshot"))?;
            chains.entry(volume).or_default().push(snapshot);
        }
        for (volume, rows) in chains {
            let volume = self
                .volumes
                .get_mut(&volume)
                .ok_or_else(|| damaged("snapshot of no volume"))?;
            volume.snapshots = SnapshotChain::from_rows(rows);
        }
        lineage::link(&mut self.volumes).map_err(damaged)
    }
}
