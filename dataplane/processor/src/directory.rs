//! The directory of a shard in memory: its rows, which page each lies in, and which pages a checkpoint
//! has to write anew. All rows are held in memory; a page is only their durable form.
//!
//! Invariants:
//! - every row lies in exactly one page, and the rows of a page fit its payload;
//! - a page whose rows changed since the last checkpoint is in `dirty`.

use std::collections::{BTreeMap, BTreeSet};

use stillpoint_ondisk::directory::{DirectoryPage, PAYLOAD_BYTES, ROW_HEADER_BYTES, Row, RowKind};
use stillpoint_ondisk::header::DIRECTORY_INDEX_MAX;
use stillpoint_ondisk::map_page::{DIRECTORY_VOLUME, ENTRIES, MapEntry, MapPage};
use stillpoint_ondisk::page::{self, PageHeader, PageKind};
use zerocopy::{FromZeros, IntoBytes};

use crate::ids::{DeviceAddress, ShardIndex};

/// Directory pages of one shard at most.
pub const PAGES_MAX: usize = DIRECTORY_INDEX_MAX * ENTRIES;

/// Pages that rows which were admitted may still add.
const PAGES_TO_COME_MAX: usize = 256;

type RowKey = (RowKind, Vec<u8>);

#[derive(Debug, Default)]
struct Page {
    keys: BTreeSet<RowKey>,
    used_bytes: usize,
    /// Where it lies, as the checkpoint that wrote it said; `address` 0 if it was never written.
    place: MapEntry,
}

/// The rows of a shard.
#[derive(Debug)]
pub struct Directory {
    pool: [u8; 16],
    shard: ShardIndex,
    rows: BTreeMap<RowKey, (u32, Vec<u8>)>,
    pages: Vec<Page>,
    indexes: Vec<MapEntry>,
    dirty: BTreeSet<u32>,
    /// Pages that had room for another row when last looked at.
    roomy: BTreeSet<u32>,
}

/// The directory cannot hold another page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryFull;

/// What a checkpoint writes for the directory.
#[derive(Debug, Default)]
pub struct DirectoryImage {
    /// Pages, sealed, and where they go.
    pub pages: Vec<(DeviceAddress, Box<[u8; page::PAGE_BYTES]>)>,
    /// Places that the checkpoint no longer refers to.
    pub replaced: Vec<DeviceAddress>,
}

impl Directory {
    /// No rows.
    #[must_use]
    pub fn new(pool: [u8; 16], shard: ShardIndex) -> Self {
        Self {
            pool,
            shard,
            rows: BTreeMap::new(),
            pages: Vec::new(),
            indexes: Vec::new(),
            dirty: BTreeSet::new(),
            roomy: BTreeSet::new(),
        }
    }

    /// Takes over a page that was read while opening. Pages come in order, after [`Self::load_index`].
    ///
    /// # Errors
    /// [`page::Damage`] if the rows do not fit together.
    pub fn load_page(&mut self, place: MapEntry, found: &DirectoryPage) -> Result<(), page::Damage> {
        let index = self.pages.len() as u32;
        let mut page = Page {
            place,
            ..Page::default()
        };
        for row in found.rows()? {
            page.used_bytes += row.encoded_bytes();
            let key = (row.kind, row.key.to_vec());
            page.keys.insert(key.clone());
            if self.rows.insert(key, (index, row.value.to_vec())).is_some() {
                return Err(page::Damage::Field("row key twice"));
            }
        }
        self.roomy.insert(index);
        self.pages.push(page);
        Ok(())
    }

    /// Takes over the place of an index page that was read while opening.
    pub fn load_index(&mut self, place: MapEntry) {
        self.indexes.push(place);
    }

    /// Stores a row.
    ///
    /// # Errors
    /// [`DirectoryFull`] if it needs another page and there may be no more.
    pub fn put(&mut self, kind: RowKind, key: &[u8], value: Vec<u8>) -> Result<(), DirectoryFull> {
        let row_key = (kind, key.to_vec());
        let bytes = ROW_HEADER_BYTES + key.len() + value.len();
        assert!(bytes <= PAYLOAD_BYTES, "a row fits a page");
        if let Some((index, old)) = self.rows.get_mut(&row_key) {
            let page = &mut self.pages[*index as usize];
            let used = page.used_bytes - old.len() + value.len();
            if used <= PAYLOAD_BYTES {
                if *old != value {
                    page.used_bytes = used;
                    self.dirty.insert(*index);
                    *old = value;
                }
                return Ok(());
            }
        }
        let index = self.page_with_room(bytes)?;
        self.remove(kind, key);
        let page = &mut self.pages[index as usize];
        page.used_bytes += bytes;
        page.keys.insert(row_key.clone());
        self.dirty.insert(index);
        self.rows.insert(row_key, (index, value));
        Ok(())
    }

    fn page_with_room(&mut self, bytes: usize) -> Result<u32, DirectoryFull> {
        while let Some(&index) = self.roomy.last() {
            if self.pages[index as usize].used_bytes + bytes <= PAYLOAD_BYTES {
                return Ok(index);
            }
            self.roomy.remove(&index);
        }
        if self.pages.len() == PAGES_MAX {
            return Err(DirectoryFull);
        }
        self.pages.push(Page::default());
        let index = (self.pages.len() - 1) as u32;
        self.roomy.insert(index);
        Ok(index)
    }

    /// Removes a row, if it is there.
    pub fn remove(&mut self, kind: RowKind, key: &[u8]) {
        let row_key = (kind, key.to_vec());
        if let Some((index, value)) = self.rows.remove(&row_key) {
            let page = &mut self.pages[index as usize];
            page.used_bytes -= ROW_HEADER_BYTES + key.len() + value.len();
            page.keys.remove(&row_key);
            self.roomy.insert(index);
            self.dirty.insert(index);
        }
    }

    /// The rows of one kind, in key order.
    pub fn rows(&self, kind: RowKind) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.rows
            .range((kind, Vec::new())..)
            .take_while(move |((k, _), _)| *k == kind)
            .map(|((_, key), (_, value))| (key.as_slice(), value.as_slice()))
    }

    /// Whether a checkpoint has something to write.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Pages that a checkpoint begun now needs room for, index pages included.
    #[must_use]
    pub fn pages_to_write(&self) -> usize {
        let indexes: BTreeSet<u32> = self.dirty.iter().map(|page| page / ENTRIES as u32).collect();
        self.dirty.len() + indexes.len()
    }

    /// Whether there may be too few pages for the rows that can come until the next checkpoint.
    #[must_use]
    pub fn is_nearly_full(&self) -> bool {
        self.pages.len() + PAGES_TO_COME_MAX > PAGES_MAX
    }

    /// Pages in use.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.pages.len() as u32
    }

    /// Places of the index pages, for the shard header.
    #[must_use]
    pub fn indexes(&self) -> &[MapEntry] {
        &self.indexes
    }

    /// Every place that directory pages and index pages occupy.
    pub fn places(&self) -> impl Iterator<Item = DeviceAddress> {
        let pages = self.pages.iter().map(|page| page.place.address());
        let indexes = self.indexes.iter().map(MapEntry::address);
        pages
            .chain(indexes)
            .filter(|&address| address != 0)
            .map(DeviceAddress)
    }

    /// Seals the changed pages for a checkpoint of `generation`. `allocate` must give a new place for each
    /// of [`Self::pages_to_write`] pages.
    pub fn checkpoint(
        &mut self,
        generation: u64,
        mut allocate: impl FnMut() -> DeviceAddress,
    ) -> DirectoryImage {
        let mut image = DirectoryImage::default();
        let dirty = core::mem::take(&mut self.dirty);
        let mut indexes = BTreeSet::new();
        for &index in &dirty {
            let place = allocate();
            image.pages.push((place, self.seal_page(index, generation)));
            let page = &mut self.pages[index as usize];
            if page.place.address() != 0 {
                image.replaced.push(DeviceAddress(page.place.address()));
            }
            page.place = MapEntry::new(place.0, generation as u32, 0);
            indexes.insert(index / ENTRIES as u32);
        }
        for index in indexes {
            let place = allocate();
            image.pages.push((place, self.seal_index(index, generation)));
            let entry = MapEntry::new(place.0, generation as u32, 0);
            match self.indexes.get_mut(index as usize) {
                Some(old) => {
                    image.replaced.push(DeviceAddress(old.address()));
                    *old = entry;
                }
                None => self.indexes.push(entry),
            }
        }
        image
    }

    fn seal_page(&self, index: u32, generation: u64) -> Box<[u8; page::PAGE_BYTES]> {
        let mut sealed = DirectoryPage::new_zeroed();
        sealed.header = PageHeader::new(PageKind::Directory, self.pool);
        sealed.generation = generation.into();
        sealed.index = index.into();
        sealed.shard = self.shard.0.into();
        let mut used = 0;
        for row_key in &self.pages[index as usize].keys {
            let (_, value) = &self.rows[row_key];
            let row = Row {
                kind: row_key.0,
                key: &row_key.1,
                value,
            };
            used += row.encode(&mut sealed.payload[used..]);
        }
        assert_eq!(
            used, self.pages[index as usize].used_bytes,
            "the accounting of a directory page"
        );
        sealed.used_bytes = (used as u16).into();
        seal(sealed.as_bytes())
    }

    fn seal_index(&self, index: u32, generation: u64) -> Box<[u8; page::PAGE_BYTES]> {
        let mut sealed = MapPage::new_zeroed();
        sealed.header = PageHeader::new(PageKind::Map, self.pool);
        sealed.generation = generation.into();
        sealed.index = u64::from(index).into();
        sealed.volume = DIRECTORY_VOLUME.into();
        sealed.shard = self.shard.0.into();
        sealed.level = 1;
        let first = index as usize * ENTRIES;
        for (slot, page) in self.pages[first..].iter().take(ENTRIES).enumerate() {
            sealed.entries[slot] = page.place;
        }
        seal(sealed.as_bytes())
    }
}

fn seal(bytes: &[u8]) -> Box<[u8; page::PAGE_BYTES]> {
    let mut sealed: Box<[u8; page::PAGE_BYTES]> = Box::new(bytes.try_into().expect("a page is 4096 bytes"));
    page::seal(sealed.as_mut_slice());
    sealed
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_ondisk::map_page::MapPageIdentity;

    const POOL: [u8; 16] = [7; 16];

    fn reload(image: &BTreeMap<u64, Box<[u8; 4096]>>, from: &Directory) -> Directory {
        let mut loaded = Directory::new(POOL, ShardIndex(3));
        for (number, &place) in from.indexes().iter().enumerate() {
            let identity = MapPageIdentity {
                shard: 3,
                volume: DIRECTORY_VOLUME,
                level: 1,
                index: number as u64,
                generation: place.check.get(),
            };
            let index = MapPage::parse(&image[&place.address()][..], POOL, &identity).unwrap();
            loaded.load_index(place);
            for entry in index.entries.iter().filter(|entry| entry.address() != 0) {
                let number = loaded.page_count();
                let bytes = &image[&entry.address()][..];
                let page = DirectoryPage::parse(bytes, POOL, 3, number, entry.check.get()).unwrap();
                loaded.load_page(*entry, page).unwrap();
            }
        }
        loaded
    }

    #[test]
    fn rows_survive_checkpoints_and_replaced_pages_are_named_once() {
        let mut directory = Directory::new(POOL, ShardIndex(3));
        let mut device: BTreeMap<u64, Box<[u8; 4096]>> = BTreeMap::new();
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut next = 100;
        for round in 0..40u64 {
            for step in 0..50u64 {
                let key = ((round * 31 + step * 17) % 400).to_le_bytes().to_vec();
                if (round + step) % 5 == 0 {
                    directory.remove(RowKind::Catalog, &key);
                    model.remove(&key);
                } else {
                    let value = vec![round as u8; (step * 37 % 900) as usize];
                    directory.put(RowKind::Catalog, &key, value.clone()).unwrap();
                    model.insert(key, value);
                }
            }
            let expected = directory.pages_to_write();
            let image = directory.checkpoint(round + 2, || {
                next += 1;
                DeviceAddress(next)
            });
            assert_eq!(image.pages.len(), expected);
            assert!(!directory.is_dirty());
            for (place, bytes) in image.pages {
                assert!(device.insert(place.0, bytes).is_none());
            }
            for place in image.replaced {
                assert!(device.remove(&place.0).is_some(), "a place is replaced once");
            }
            assert_eq!(directory.places().count(), device.len(), "nothing is left behind");
            let loaded = reload(&device, &directory);
            let rows: BTreeMap<_, _> = loaded
                .rows(RowKind::Catalog)
                .map(|(k, v)| (k.to_vec(), v.to_vec()))
                .collect();
            assert_eq!(rows, model);
        }
    }
}
