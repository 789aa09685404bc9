//! The walk over everything that a shard's maps refer to.
//!
//! All maps that may share pages (a volume's snapshots and its live map; clones) are walked together, position by
//! position: a page or block that several of them have at the same position is one, and anything that has the same place
//! at another position is another use of it.
//!
//! Of a map that is being freed, what the cursor has passed is not walked: the walk that frees it has freed what nobody
//! else has, and whoever else has the rest is walked too.

use core::ops::Range;
use std::collections::BTreeMap;
use std::rc::Rc;

use stillpoint_ondisk::Damage;
use stillpoint_ondisk::layout::Layout;
use stillpoint_ondisk::map_page::{ENTRIES, MapEntry, MapPage, MapPageIdentity};
use stillpoint_ondisk::page::PAGE_BYTES;

use super::report::{CheckReport, Problem, Use, VIEWS_MAX, Why};
use crate::directory::Directory;
use crate::ids::{DeviceAddress, ShardIndex, ShareBlock, VolumeId};
use crate::map::{PageCache, Root};
use crate::ports::{DeviceError, OpenDevice, Transferred};
use crate::request::View;
use crate::space::{Extent, Space};
use crate::virtual_volume::VirtualVolume;

/// Map pages read at once.
const PAGES_AT_ONCE: usize = 256;
/// Doubly used places that are named; the walk that names them keeps them in memory.
const DOUBLES_MAX: usize = 1000;

/// A map that is walked.
#[derive(Clone, Copy, Debug)]
struct WalkedRoot {
    view: View,
    root: Root,
    /// Leaves before it are passed by.
    cursor_leaf: u64,
    counted_blocks: u64,
}

/// Some of the walked roots: ranges in order, with gaps between. Of a chain it is one range; where a branch lies between,
/// there are several.
type Holders = Rc<[Range<usize>]>;

/// An entry that leads to a page or block, and the maps that have it.
#[derive(Clone, Debug)]
struct Item {
    entry: MapEntry,
    cursor_leaf: u64,
    holders: Holders,
}

/// All pages that the maps have at one position.
#[derive(Debug)]
struct Node {
    index: u64,
    items: Vec<Item>,
}

/// A data block that is to be read.
#[derive(Clone, Debug)]
pub(super) struct DataBlock {
    pub(super) address: DeviceAddress,
    pub(super) crc32c: u32,
    pub(super) block: ShareBlock,
    holders: Holders,
}

/// What is walked.
pub(super) struct Walked<'a> {
    pub(super) layout: &'a Layout,
    pub(super) shard: ShardIndex,
    pub(super) directory: &'a Directory,
    pub(super) volumes: &'a BTreeMap<VolumeId, VirtualVolume>,
}

/// See the module.
pub(super) struct Walk<'a, D> {
    of: &'a Walked<'a>,
    pub(super) device: &'a mut D,
    cache: &'a mut PageCache,
    /// Whether data blocks are read.
    data: bool,
    /// Everything that was met.
    pub(super) seen: Space,
    pub(super) report: CheckReport,
    /// Every map page was sound: `seen` is all there is.
    pub(super) complete: bool,
    /// Places met more than once; filled with their uses by the second walk.
    doubles: BTreeMap<u64, Vec<Use>>,
    naming: bool,
    roots: Vec<WalkedRoot>,
    /// Mapped blocks of each root: the difference to the root before.
    mapped: Vec<i64>,
    pub(super) pending: Vec<DataBlock>,
}

impl<'a, D: OpenDevice> Walk<'a, D> {
    pub(super) fn new(of: &'a Walked<'a>, device: &'a mut D, cache: &'a mut PageCache, data: bool) -> Self {
        Self {
            seen: Space::new(of.layout, of.shard),
            report: CheckReport::new(of.shard),
            of,
            device,
            cache,
            data,
            complete: true,
            doubles: BTreeMap::new(),
            naming: false,
            roots: Vec::new(),
            mapped: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// Walks everything; a second time, should places be used more than once, to name who uses them.
    pub(super) fn run(&mut self) {
        self.pass();
        if !self.doubles.is_empty() {
            self.naming = true;
            self.pass();
            for (address, uses) in core::mem::take(&mut self.doubles) {
                let address = DeviceAddress(address);
                self.report.push(Problem::DoublyUsed { address, uses });
            }
        }
    }

    fn pass(&mut self) {
        for address in self.of.directory.places() {
            self.report.figures.directory_pages += u64::from(!self.naming);
            self.mark(address, |_| Use::Directory);
        }
        let mut families: BTreeMap<VolumeId, Vec<WalkedRoot>> = BTreeMap::new();
        for volume in self.of.volumes.values() {
            let roots = roots_of(volume).filter(|walked| walked.root.entry.address() != 0);
            families.entry(volume.family).or_default().extend(roots);
        }
        for (family, roots) in families {
            self.family(family, roots);
        }
    }

    fn family(&mut self, family: VolumeId, roots: Vec<WalkedRoot>) {
        let Some(top) = roots.iter().map(|walked| walked.root.level).max() else {
            return;
        };
        let sound_before = self.complete;
        self.complete = true;
        self.mapped = vec![0; roots.len() + 1];
        self.roots = roots;
        let items = merged(self.joining(top).collect());
        self.level(family, top, vec![Node { index: 0, items }]);
        self.read_pending();
        if !self.naming && self.complete {
            self.compare_counts();
        }
        self.complete &= sound_before;
    }

    /// The roots that begin at this level.
    fn joining(&self, level: u8) -> impl Iterator<Item = Item> {
        let roots = self.roots.iter().enumerate();
        roots
            .filter(move |(_, walked)| walked.root.level == level)
            .map(|(number, walked)| Item {
                entry: walked.root.entry,
                cursor_leaf: walked.cursor_leaf,
                holders: core::iter::once(number..number + 1).collect(),
            })
            .filter(move |item| item.cursor_leaf < leaves_of(level))
    }

    fn level(&mut self, family: VolumeId, level: u8, nodes: Vec<Node>) {
        let mut nodes = nodes.into_iter().peekable();
        while nodes.peek().is_some() {
            let mut some: Vec<Node> = Vec::new();
            let mut pages = 0;
            while let Some(node) =
                nodes.next_if(|node| pages == 0 || pages + node.items.len() <= PAGES_AT_ONCE)
            {
                pages += node.items.len();
                some.push(node);
            }
            let pages = self.load(family, level, &some);
            for (node, pages) in some.iter().zip(&pages) {
                if level == 0 {
                    self.leaf(node, pages);
                } else {
                    let children = self.children(level, node, pages);
                    self.level(family, level - 1, children);
                }
            }
        }
    }

    /// The entries of all pages of these nodes; `None` for a page that cannot be used.
    fn load(
        &mut self,
        family: VolumeId,
        level: u8,
        nodes: &[Node],
    ) -> Vec<Vec<Option<Box<[MapEntry; ENTRIES]>>>> {
        let mut loaded: Vec<Vec<Option<Box<[MapEntry; ENTRIES]>>>> = Vec::new();
        let mut missing = Vec::new();
        for (position, node) in nodes.iter().enumerate() {
            let mut pages = Vec::new();
            for (number, item) in node.items.iter().enumerate() {
                let address = DeviceAddress(item.entry.address());
                let held = self.cache.page(family, level, node.index, &item.entry);
                let held = held.ok().map(|page| Box::new(page.entries));
                let inside = self.mark(address, |walk| walk.page_use(level, node.index, item));
                if held.is_none() && inside {
                    missing.push((position, number, address));
                } else if held.is_some() {
                    self.report.figures.map_pages += u64::from(!self.naming);
                }
                pages.push(held);
            }
            loaded.push(pages);
        }
        let mut memory = vec![0; missing.len() * PAGE_BYTES];
        let places = missing.iter().map(|(_, _, address)| *address);
        let results = read_blocks(self.device, places, &mut memory);
        for (((position, number, address), bytes), result) in missing
            .into_iter()
            .zip(memory.chunks_exact(PAGE_BYTES))
            .zip(results)
        {
            let node = &nodes[position];
            let item = &node.items[number];
            let identity = MapPageIdentity {
                shard: self.of.shard.0,
                volume: family.0,
                level,
                index: node.index,
                generation: item.entry.check.get(),
            };
            let page = match result {
                Err(error) => Err(Why::Unreadable(error)),
                Ok(()) => MapPage::parse(bytes, self.of.layout.pool, &identity).map_err(Why::Damaged),
            };
            match page {
                Ok(page) => {
                    self.report.figures.map_pages += u64::from(!self.naming);
                    loaded[position][number] = Some(Box::new(page.entries));
                }
                Err(why) => {
                    self.complete = false;
                    let used = self.page_use(level, node.index, item);
                    self.problem(Problem::MapPage { used, address, why });
                }
            }
        }
        loaded
    }

    /// What lies below these pages, and the roots that begin there.
    fn children(&self, level: u8, node: &Node, pages: &[Option<Box<[MapEntry; ENTRIES]>>]) -> Vec<Node> {
        let below = level - 1;
        let lower = self.roots.iter().any(|walked| walked.root.level < below);
        let mut nodes = Vec::new();
        for slot in 0..ENTRIES {
            let index = node.index * ENTRIES as u64 + slot as u64;
            let end_leaf = (index + 1) * leaves_of(below);
            let mut items: Vec<Item> = Vec::new();
            for (item, page) in node.items.iter().zip(pages) {
                let Some(page) = page else { continue };
                let entry = page[slot];
                if entry.address() != 0 && item.cursor_leaf < end_leaf {
                    items.push(item.with(entry));
                }
            }
            if index == 0 {
                items.extend(self.joining(below));
            }
            let items = merged(items);
            if !items.is_empty() || (index == 0 && lower) {
                nodes.push(Node { index, items });
            }
        }
        nodes
    }

    fn leaf(&mut self, node: &Node, pages: &[Option<Box<[MapEntry; ENTRIES]>>]) {
        let mut blocks: Vec<(usize, Item)> = Vec::new();
        for (item, page) in node.items.iter().zip(pages) {
            let Some(page) = page else { continue };
            let mapped = page.iter().enumerate().filter(|(_, entry)| entry.address() != 0);
            let before = blocks.len();
            blocks.extend(mapped.map(|(slot, &entry)| (slot, item.with(entry))));
            let found = (blocks.len() - before) as i64;
            for holders in item.holders.iter() {
                self.mapped[holders.start] += found;
                self.mapped[holders.end] -= found;
            }
        }
        if pages.len() > 1 {
            blocks.sort_by_key(|(slot, item)| (*slot, item.entry.address(), item.first()));
        }
        let mut last: Option<(usize, Item)> = None;
        for (slot, item) in blocks {
            if let Some((same_slot, same)) = &mut last
                && *same_slot == slot
                && same.entry.address() == item.entry.address()
            {
                same.holders = united(&same.holders, &item.holders);
                if same.entry.check != item.entry.check {
                    let why =
                        Why::Damaged(Damage::Field("check: two maps say different things of one block"));
                    let used = self.block_use(node.index, slot, &item);
                    let address = DeviceAddress(item.entry.address());
                    self.problem(Problem::Data { used, address, why });
                }
                continue;
            }
            if let Some((slot, item)) = last.replace((slot, item)) {
                self.block(node.index, slot, item);
            }
        }
        if let Some((slot, item)) = last {
            self.block(node.index, slot, item);
        }
    }

    fn block(&mut self, leaf: u64, slot: usize, item: Item) {
        let address = DeviceAddress(item.entry.address());
        self.report.figures.data_blocks += u64::from(!self.naming);
        let inside = self.mark(address, |walk| walk.block_use(leaf, slot, &item));
        if inside && self.data && !self.naming {
            self.pending.push(DataBlock {
                address,
                crc32c: item.entry.check.get(),
                block: ShareBlock(leaf * ENTRIES as u64 + slot as u64),
                holders: item.holders,
            });
            if self.pending.len() >= super::data::BLOCKS_AT_ONCE {
                self.read_pending();
            }
        }
    }

    /// Takes note that a place is used; false if it is none of this shard's.
    fn mark(&mut self, address: DeviceAddress, used: impl Fn(&Self) -> Use) -> bool {
        let extent = Extent { address, blocks: 1 };
        if !self.seen.contains(extent) {
            self.complete = false;
            let used = used(self);
            self.problem(Problem::Outside { address, used });
            return false;
        }
        if self.naming {
            if self.doubles.contains_key(&address.0) {
                let used = used(self);
                self.doubles.entry(address.0).or_default().push(used);
            }
        } else if !self.seen.mark_used(extent) && self.doubles.len() < DOUBLES_MAX {
            self.doubles.entry(address.0).or_default();
        }
        true
    }

    pub(super) fn problem(&mut self, problem: Problem) {
        if !self.naming {
            self.report.push(problem);
        }
    }

    /// Whether a place is used more than once.
    pub(super) fn has_doubles(&self) -> bool {
        self.naming
    }

    fn views(&self, holders: &Holders) -> Vec<View> {
        let numbers = holders.iter().flat_map(Range::clone);
        let views = numbers.map(|number| self.roots[number].view);
        views.take(VIEWS_MAX).collect()
    }

    fn page_use(&self, level: u8, index: u64, item: &Item) -> Use {
        let blocks = leaves_of(level) * ENTRIES as u64;
        Use::MapPage {
            views: self.views(&item.holders),
            level,
            first: ShareBlock(index * blocks),
            blocks,
        }
    }

    fn block_use(&self, leaf: u64, slot: usize, item: &Item) -> Use {
        Use::Block {
            views: self.views(&item.holders),
            block: ShareBlock(leaf * ENTRIES as u64 + slot as u64),
        }
    }

    pub(super) fn data_use(&self, block: &DataBlock) -> Use {
        Use::Block {
            views: self.views(&block.holders),
            block: block.block,
        }
    }

    fn compare_counts(&mut self) {
        let mut found = 0;
        for (walked, step) in self.roots.iter().zip(&self.mapped) {
            found += step;
            let counted = walked.counted_blocks;
            if walked.cursor_leaf == 0 && found != counted as i64 {
                self.report.push(Problem::Count {
                    view: walked.view,
                    counted,
                    found: found.max(0) as u64,
                });
            }
        }
    }
}

impl Item {
    /// The same maps, and another entry.
    fn with(&self, entry: MapEntry) -> Self {
        Self {
            entry,
            cursor_leaf: self.cursor_leaf,
            holders: Rc::clone(&self.holders),
        }
    }

    fn first(&self) -> usize {
        self.holders[0].start
    }
}

/// Both; `a` begins first.
fn united(a: &Holders, b: &Holders) -> Holders {
    let mut all: Vec<Range<usize>> = a.iter().chain(b.iter()).cloned().collect();
    all.sort_by_key(|range| range.start);
    all.dedup_by(|next, range| {
        let joins = next.start <= range.end;
        if joins {
            range.end = range.end.max(next.end);
        }
        joins
    });
    all.into()
}

fn roots_of(volume: &VirtualVolume) -> impl Iterator<Item = WalkedRoot> {
    let frozen = volume.snapshots.iter().map(|snapshot| WalkedRoot {
        view: View {
            volume: volume.id,
            snapshot: Some(snapshot.snapshot),
        },
        root: snapshot.copy.root,
        cursor_leaf: snapshot.cursor_leaf,
        counted_blocks: snapshot.copy.mapped_blocks,
    });
    let live = WalkedRoot {
        view: View {
            volume: volume.id,
            snapshot: None,
        },
        root: volume.root,
        cursor_leaf: if volume.deleting { volume.cursor_leaf } else { 0 },
        counted_blocks: volume.stats.mapped_blocks,
    };
    frozen.chain([live])
}

/// Items that lead to the same place are one.
fn merged(mut items: Vec<Item>) -> Vec<Item> {
    if items.len() > 1 {
        items.sort_by_key(|item| (item.entry.address(), item.entry.check.get(), item.first()));
        items.dedup_by(|next, item| {
            let same = item.entry.address() == next.entry.address() && item.entry.check == next.entry.check;
            if same {
                item.holders = united(&item.holders, &next.holders);
                item.cursor_leaf = item.cursor_leaf.min(next.cursor_leaf);
            }
            same
        });
    }
    items
}

/// Leaves covered by a page of `level`.
fn leaves_of(level: u8) -> u64 {
    (ENTRIES as u64).pow(u32::from(level))
}

/// Reads one block from each place into `memory`.
pub(super) fn read_blocks(
    device: &mut impl OpenDevice,
    places: impl Iterator<Item = DeviceAddress>,
    memory: &mut [u8],
) -> Vec<Result<(), DeviceError>> {
    let mut reads: Vec<Transferred<'_>> = places
        .zip(memory.chunks_exact_mut(PAGE_BYTES))
        .map(|(place, bytes)| Transferred {
            device: place.device(),
            offset_bytes: place.offset_bytes(),
            bytes,
            result: Ok(()),
        })
        .collect();
    device.read_all(&mut reads);
    reads.iter().map(|read| read.result).collect()
}
