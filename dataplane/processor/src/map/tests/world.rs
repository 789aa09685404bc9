//! A cache, a space and a device that is a table of pages; misses are served at once.

use crate::ids::{DeviceAddress, Epoch, ShardIndex, ShareBlock, VolumeId};
use crate::map::{Entry, FreeRule, MapError, PageCache, PageRef, Root, TreeMut, TreeStats};
use crate::space::{Extent, Purpose, Space};
use std::collections::BTreeMap;
use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::map_page::{ENTRIES, MapEntry};
use zerocopy::little_endian::U32;

pub const POOL: [u8; 16] = [9; 16];
pub const FAMILY: VolumeId = VolumeId(5);
const SHARD: ShardIndex = ShardIndex(0);

/// What a tree should hold: blocks that were ever written.
pub type Content = BTreeMap<u64, Entry>;

/// A tree and what it should hold.
#[derive(Clone, Debug)]
pub struct Tree {
    pub root: Root,
    pub epoch: Epoch,
    pub stats: TreeStats,
    pub content: Content,
}

pub struct World {
    pub space: Space,
    pub cache: PageCache,
    pub device: BTreeMap<u64, Vec<u8>>,
    pub capacity: usize,
    pub running: bool,
    pub misses: u64,
    crc: u32,
}

pub fn tree() -> Tree {
    Tree {
        root: Root::default(),
        epoch: Epoch(1),
        stats: TreeStats::default(),
        content: Content::new(),
    }
}

/// Reads a page from the table and gives it to the cache.
pub fn serve(cache: &mut PageCache, device: &BTreeMap<u64, Vec<u8>>, page: &PageRef) {
    let bytes = device.get(&page.address.0).expect("a page that was written");
    cache.insert(page, bytes).expect("the page that was written");
}

impl World {
    pub fn new(capacity: usize, pool_blocks: u64) -> Self {
        let layout = Layout::plan(POOL, 1, &[pool_blocks]).expect("big enough");
        Self {
            space: Space::new(&layout, SHARD),
            cache: PageCache::new(POOL, SHARD, capacity, 2),
            device: BTreeMap::new(),
            capacity,
            running: false,
            misses: 0,
            crc: 0,
        }
    }

    /// One try of a change.
    pub fn once<T>(
        &mut self,
        tree: &mut Tree,
        free: FreeRule,
        operation: impl FnOnce(&mut PageCache, &mut TreeMut<'_>) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        operation(
            &mut self.cache,
            &mut TreeMut {
                family: FAMILY,
                root: &mut tree.root,
                epoch: tree.epoch,
                free,
                space: &mut self.space,
                purpose: Purpose::Metadata,
                stats: &mut tree.stats,
            },
        )
    }

    /// Maps a run to fresh blocks and notes it in the content; false if there is no space.
    pub fn set(&mut self, tree: &mut Tree, free: FreeRule, first: u64, blocks: u32) -> bool {
        let mut done = 0;
        while done < blocks {
            let Some(extent) = self.space.reserve(blocks - done, Purpose::Data) else {
                return false;
            };
            self.space.commit(extent);
            let crcs: Vec<U32> = (1..=extent.blocks).map(|i| (self.crc + i).into()).collect();
            self.crc += extent.blocks;
            let at = first + u64::from(done);
            if self.set_to(tree, free, at, extent, &crcs).is_err() {
                self.space.free(extent.address, extent.blocks);
                return false;
            }
            for (i, crc) in crcs.iter().enumerate() {
                let entry = Entry {
                    address: extent.address.plus(i as u64),
                    crc32c: crc.get(),
                    birth: tree.epoch,
                };
                tree.content.insert(at + i as u64, entry);
            }
            done += extent.blocks;
        }
        true
    }

    fn set_to(
        &mut self,
        tree: &mut Tree,
        free: FreeRule,
        at: u64,
        extent: Extent,
        crcs: &[U32],
    ) -> Result<(), MapError> {
        self.until_done(tree, free, |cache, tree| {
            cache.set(tree, ShareBlock(at), extent.address, crcs)
        })
    }

    /// Tries a change until it is done; serves misses, makes checkpoints when the cache is full.
    pub fn until_done<T>(
        &mut self,
        tree: &mut Tree,
        free: FreeRule,
        mut operation: impl FnMut(&mut PageCache, &mut TreeMut<'_>) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        for _ in 0..1000 {
            match self.once(tree, free, &mut operation) {
                Err(MapError::Miss(page)) => self.serve(&page),
                Err(MapError::CacheFull) => self.checkpoint(),
                ended => return ended,
            }
        }
        panic!("a thousand tries");
    }

    fn serve(&mut self, page: &PageRef) {
        self.misses += 1;
        serve(&mut self.cache, &self.device, page);
        assert!(self.cache.cached_pages() <= self.capacity);
    }

    /// Discards a range and notes it in the content.
    pub fn clear(
        &mut self,
        tree: &mut Tree,
        free: FreeRule,
        first: u64,
        count: u64,
        leaves_max: usize,
    ) -> bool {
        let mut done = 0;
        while done < count {
            let step = self.until_done(tree, free, |cache, tree| {
                cache.clear_leaf_range(tree, ShareBlock(first + done), count - done, leaves_max)
            });
            let Ok(step) = step else { return false };
            assert!(step > 0 && done + step <= count);
            let hole = Entry {
                birth: tree.epoch,
                ..Entry::default()
            };
            for (_, entry) in tree.content.range_mut(first + done..first + done + step) {
                if !entry.address.is_none() {
                    *entry = hole;
                }
            }
            done += step;
        }
        true
    }

    /// Reads a run of a live or frozen tree.
    pub fn look(&mut self, root: &Root, first: u64, blocks: u32) -> Vec<Entry> {
        let mut found = Vec::new();
        for _ in 0..1000 {
            match self
                .cache
                .lookup_run(FAMILY, root, ShareBlock(first), blocks, &mut found)
            {
                Ok(()) => return found,
                Err(MapError::Miss(page)) => {
                    assert!(found.is_empty());
                    self.serve(&page);
                }
                Err(error) => panic!("a lookup ended in {error:?}"),
            }
        }
        panic!("a thousand misses");
    }

    pub fn look_at(&mut self, root: &Root, block: u64) -> Entry {
        for _ in 0..1000 {
            match self.cache.lookup(FAMILY, root, ShareBlock(block)) {
                Ok(entry) => return entry,
                Err(MapError::Miss(page)) => self.serve(&page),
                Err(error) => panic!("a lookup ended in {error:?}"),
            }
        }
        panic!("a thousand misses");
    }

    pub fn begin(&mut self) {
        self.cache.begin_checkpoint();
        self.space.begin_checkpoint();
        self.running = true;
    }

    /// Writes one page of the running checkpoint; false when all are written.
    pub fn write_one(&mut self) -> bool {
        let mut bytes = vec![0; 4096];
        let Some(address) = self.cache.next_dirty(&mut bytes) else {
            return false;
        };
        self.device.insert(address.0, bytes);
        true
    }

    pub fn durable(&mut self) {
        while self.write_one() {}
        let mut image = vec![0; 4096];
        while self.space.next_image(1, &mut image).is_some() {}
        self.cache.checkpoint_durable();
        self.space.checkpoint_durable();
        self.running = false;
    }

    /// A whole checkpoint, after the one that may be running.
    pub fn checkpoint(&mut self) {
        if self.running {
            self.durable();
        }
        self.begin();
        self.durable();
        while !self.space.promote_step(1) {}
    }

    /// Checks `blocks` blocks from `first` on against what the tree should hold.
    pub fn check(&mut self, root: &Root, epoch: Epoch, content: &Content, first: u64, blocks: u32) {
        let found = self.look(root, first, blocks);
        assert_eq!(found.len(), blocks as usize);
        for (block, found) in (first..).zip(found) {
            assert_agrees(block, found, epoch, content);
        }
    }

    /// All pages and blocks that a tree refers to, with the last leaf that each covers, but for those that lie
    /// wholly before `from_leaf`.
    pub fn reach(&mut self, root: &Root, from_leaf: u64) -> BTreeMap<u64, u64> {
        let mut reached = BTreeMap::new();
        let mut todo = vec![(root.level, 0u64, root.entry)];
        while let Some((level, index, entry)) = todo.pop() {
            let last_leaf = ((index + 1) << (8 * u32::from(level))) - 1;
            if entry.address() == 0 || last_leaf < from_leaf {
                continue;
            }
            reached.insert(entry.address(), last_leaf);
            for (slot, child) in self.entries(level, index, &entry).into_iter().enumerate() {
                if level > 0 {
                    todo.push((level - 1, index * 256 + slot as u64, child));
                } else if child.address() != 0 {
                    reached.insert(child.address(), index);
                }
            }
        }
        reached
    }

    fn entries(&mut self, level: u8, index: u64, entry: &MapEntry) -> [MapEntry; ENTRIES] {
        for _ in 0..10 {
            match self.cache.page(FAMILY, level, index, entry) {
                Ok(page) => return page.entries,
                Err(MapError::Miss(page)) => self.serve(&page),
                Err(error) => panic!("reading a page ended in {error:?}"),
            }
        }
        panic!("ten misses of one page");
    }

    /// The used blocks are these and no others.
    pub fn check_used(&self, reached: &BTreeMap<u64, u64>) {
        for &address in reached.keys() {
            assert!(
                self.space.is_used(DeviceAddress(address)),
                "{address} is referred to but not used"
            );
        }
        assert_eq!(
            self.space.used_blocks(),
            reached.len() as u64,
            "blocks are used that nothing refers to"
        );
    }
}

/// Mapped blocks agree exactly; a hole may be younger than its block's last change, if what was around it was
/// discarded too.
pub fn assert_agrees(block: u64, found: Entry, epoch: Epoch, content: &Content) {
    let expected = content.get(&block).copied().unwrap_or_default();
    if expected.address.is_none() {
        assert!(found.address.is_none(), "block {block} is a hole");
        assert!(
            (expected.birth..=epoch).contains(&found.birth),
            "birth of hole {block}"
        );
    } else {
        assert_eq!(found, expected, "block {block}");
    }
}
