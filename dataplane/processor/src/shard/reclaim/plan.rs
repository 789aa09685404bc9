//! One step of the walk that frees: what it does is worked out before anything is changed.

use super::Target;
use crate::ids::{DeviceAddress, VolumeId};
use crate::lineage::{self, Knot, Shares};
use crate::map::{MapError, PageCache, PageRef, Root};
use crate::marks::{Mark, mark};
use crate::space::Space;
use crate::virtual_volume::VirtualVolume;
use stillpoint_ondisk::map_page::{ENTRIES, MapEntry};

/// What one step of the walk does, worked out before anything is changed.
pub(super) struct Plan {
    pub(super) next_leaf: u64,
    /// Pages of the walked map that nobody else has and that end before `next_leaf`.
    pub(super) pages: Vec<DeviceAddress>,
    pub(super) blocks: Vec<DeviceAddress>,
    /// Positions that changed before the walked snapshot and again after it.
    pub(super) counted_twice: u64,
}

#[cfg(feature = "planted-bugs")]
impl Plan {
    pub(super) fn with_bug(mut self, bug: Option<crate::PlantedBug>) -> Self {
        if bug == Some(crate::PlantedBug::ReclaimDropsBlocks) {
            self.blocks.clear();
        }
        self
    }
}

/// The walked map and its neighbours in the tree.
pub(super) struct Chain {
    root: Root,
    cursor_leaf: u64,
    neighbours: [Option<Root>; 2],
}

impl Chain {
    pub(super) fn of(shares: &Shares, volume: &VirtualVolume, target: Target) -> Self {
        let root_before = |knot| lineage::parent(shares, volume, knot).map(|before| before.copy.root);
        match target {
            Target::Live => Self {
                root: volume.root,
                cursor_leaf: volume.cursor_leaf,
                neighbours: [root_before(Knot::Live), None],
            },
            Target::Snapshot(snapshot) => {
                let position = volume.snapshots.position(snapshot).expect("a walked snapshot");
                let walked = &volume.snapshots[position];
                if !walked.clones.is_empty() {
                    mark(Mark::ReclaimClone);
                }
                Self {
                    root: walked.copy.root,
                    cursor_leaf: walked.cursor_leaf,
                    neighbours: [
                        root_before(Knot::Snapshot(position)),
                        lineage::only_child(shares, volume, position),
                    ],
                }
            }
        }
    }

    #[cfg(feature = "planted-bugs")]
    pub(super) fn with_bug(mut self, bug: Option<crate::PlantedBug>, target: Target) -> Self {
        match bug {
            Some(crate::PlantedBug::ReclaimFreesNeighbours) => self.neighbours[1] = None,
            Some(crate::PlantedBug::HeadFreesSnapshots) if target == Target::Live => {
                self.neighbours[0] = None;
            }
            _ => {}
        }
        self
    }

    /// Whether nothing is left of it to be walked.
    pub(super) fn is_over(&self) -> bool {
        self.cursor_leaf >= leaves_of(self.root.level) || self.is_empty()
    }

    /// Whether there is nothing to free and no change log to be made good.
    fn is_empty(&self) -> bool {
        let is_mapped = |root: &Option<Root>| root.is_some_and(|root| root.entry.address() != 0);
        self.root.entry.address() == 0 && !self.neighbours.iter().all(is_mapped)
    }

    /// Beyond the leaves at the cursor that have nothing to free, as far as the maps' pages above them tell it and
    /// these are in the cache. The last leaf below such a page is never passed: the page goes with it.
    pub(super) fn passing_by(self, cache: &mut PageCache, family: VolumeId) -> Self {
        let Some(rows) = self.rows(cache, family) else {
            return self;
        };
        let first = self.cursor_leaf as usize % ENTRIES;
        let passed = (first..ENTRIES - 1).take_while(|&at| rows.has_nothing(at));
        Self {
            cursor_leaf: self.cursor_leaf + passed.count() as u64,
            ..self
        }
    }

    /// The pages that the steps from the cursor on will ask for and that are not in the cache: of so many leaves that have
    /// something to free, below the same page of the map.
    pub(super) fn pages_ahead(&self, cache: &mut PageCache, family: VolumeId, leaves: usize) -> Vec<PageRef> {
        let mut pages = Vec::new();
        let Some(rows) = self.rows(cache, family) else {
            return pages;
        };
        let first = self.cursor_leaf as usize % ENTRIES;
        let to_free = (first..ENTRIES).filter(|&at| !rows.has_nothing(at));
        for at in to_free.take(leaves) {
            let index = self.cursor_leaf - first as u64 + at as u64;
            for entry in rows.at(at).filter(|entry| entry.address() != 0) {
                if let Err(MapError::Miss(page)) = cache.page(family, 0, index, &entry) {
                    pages.push(page);
                }
            }
        }
        pages
    }

    /// What the pages above the cursor's leaf have in the three maps; nothing if one of them is not in the cache, or a
    /// map has a leaf there without such a page, or the walked map has none.
    fn rows(&self, cache: &mut PageCache, family: VolumeId) -> Option<Rows> {
        let index = self.cursor_leaf / ENTRIES as u64;
        let mut row = |root: Option<&Root>| {
            if index == 0 && root.is_some_and(|root| root.level == 0 && root.entry.address() != 0) {
                return None; // it has the first leaf, and no page above it
            }
            let entry = entry_at(cache, family, root, 1, index).ok()?;
            let Some(entry) = entry else {
                return Some(None);
            };
            let page = cache.page(family, 1, index, &entry).ok()?;
            Some(Some(page.entries.to_vec()))
        };
        Some(Rows {
            walked: row(Some(&self.root))??,
            neighbours: [
                row(self.neighbours[0].as_ref())?,
                row(self.neighbours[1].as_ref())?,
            ],
        })
    }

    /// Works out the step at the cursor.
    pub(super) fn plan(&self, cache: &mut PageCache, family: VolumeId) -> Result<Plan, MapError> {
        let mut plan = Plan {
            next_leaf: 0,
            pages: Vec::new(),
            blocks: Vec::new(),
            counted_twice: 0,
        };
        let is_between = self.neighbours.iter().all(Option::is_some);
        let mut path: Vec<(u64, DeviceAddress)> = Vec::new();
        let (mut level, mut entry) = (self.root.level, self.root.entry);
        loop {
            let index = self.cursor_leaf / leaves_of(level);
            let end = (index + 1) * leaves_of(level);
            plan.next_leaf = end;
            if entry.address() == 0 && !is_between {
                break;
            }
            let mut others = [None; 2];
            for (other, root) in others.iter_mut().zip(&self.neighbours) {
                *other = entry_at(cache, family, root.as_ref(), level, index)?;
            }
            if entry.address() == 0 {
                // Nothing to free, but what was discarded before it and written again after it is in two logs.
                if others.iter().any(Option::is_none) {
                    break;
                }
                if level == 0 {
                    plan.counted_twice = mapped_around(cache, family, index, None, &others)?;
                    break;
                }
                level -= 1;
                continue;
            }
            if others
                .iter()
                .flatten()
                .any(|other| other.address() == entry.address())
            {
                break;
            }
            path.push((end, DeviceAddress(entry.address())));
            if level == 0 {
                plan.blocks = exclusive_blocks(cache, family, index, &entry, &others)?;
                if is_between {
                    let holes = mapped_around(cache, family, index, Some(&entry), &others)?;
                    plan.counted_twice = plan.blocks.len() as u64 + holes;
                }
                break;
            }
            let page = cache.page(family, level, index, &entry)?;
            level -= 1;
            entry = page.entries[(self.cursor_leaf / leaves_of(level)) as usize % ENTRIES];
        }
        let passed = path.into_iter().filter(|(end, _)| *end <= plan.next_leaf);
        plan.pages.extend(passed.map(|(_, address)| address));
        Ok(plan)
    }
}

/// The entries of the pages of level 1 at one position of the walked map and of its neighbours.
struct Rows {
    walked: Vec<MapEntry>,
    neighbours: [Option<Vec<MapEntry>>; 2],
}

impl Rows {
    /// What leads to a leaf in the maps that have a page there.
    fn at(&self, at: usize) -> impl Iterator<Item = MapEntry> + Clone + '_ {
        let neighbours = self.neighbours.iter().flatten().map(move |row| row[at]);
        core::iter::once(self.walked[at]).chain(neighbours)
    }

    /// Whether a step at this leaf frees nothing and finds nothing that was counted twice.
    fn has_nothing(&self, at: usize) -> bool {
        let walked = self.walked[at].address();
        let mut others = self.at(at).skip(1);
        if walked == 0 {
            // A neighbour that has no page here has no leaf.
            others.filter(|entry| entry.address() != 0).count() < 2
        } else {
            others.any(|entry| entry.address() == walked)
        }
    }
}

/// Leaves covered by a page of `level`.
pub(in crate::shard) fn leaves_of(level: u8) -> u64 {
    (ENTRIES as u64).pow(u32::from(level))
}

/// The entry that leads to page (`level`, `index`) of a map; `None` if the map has no such page.
pub(in crate::shard) fn entry_at(
    cache: &mut PageCache,
    family: VolumeId,
    root: Option<&Root>,
    level: u8,
    index: u64,
) -> Result<Option<MapEntry>, MapError> {
    let Some(root) = root.filter(|root| root.level >= level) else {
        return Ok(None);
    };
    let (mut at, mut entry) = (root.level, root.entry);
    if index >= leaves_of(at - level) {
        return Ok(None);
    }
    while at > level && entry.address() != 0 {
        let page = cache.page(family, at, index / leaves_of(at - level), &entry)?;
        at -= 1;
        entry = page.entries[(index / leaves_of(at - level)) as usize % ENTRIES];
    }
    Ok((entry.address() != 0).then_some(entry))
}

/// The blocks of a leaf that neither neighbour has at the same position.
fn exclusive_blocks(
    cache: &mut PageCache,
    family: VolumeId,
    index: u64,
    leaf: &MapEntry,
    others: &[Option<MapEntry>; 2],
) -> Result<Vec<DeviceAddress>, MapError> {
    let mut addresses: Vec<u64> = cache
        .page(family, 0, index, leaf)?
        .entries
        .iter()
        .map(MapEntry::address)
        .collect();
    for other in others.iter().flatten() {
        let page = cache.page(family, 0, index, other)?;
        for (address, other) in addresses.iter_mut().zip(&page.entries) {
            if *address == other.address() {
                *address = 0;
            }
        }
    }
    Ok(addresses
        .into_iter()
        .filter(|&address| address != 0)
        .map(DeviceAddress)
        .collect())
}

/// How many holes of a leaf (or of none) lie at positions that both neighbours have blocks at.
fn mapped_around(
    cache: &mut PageCache,
    family: VolumeId,
    index: u64,
    leaf: Option<&MapEntry>,
    others: &[Option<MapEntry>; 2],
) -> Result<u64, MapError> {
    let [Some(before), Some(after)] = others else {
        return Ok(0);
    };
    let mut counts = [false; ENTRIES];
    for (counts, entry) in counts
        .iter_mut()
        .zip(&cache.page(family, 0, index, before)?.entries)
    {
        *counts = entry.address() != 0;
    }
    for (counts, entry) in counts
        .iter_mut()
        .zip(&cache.page(family, 0, index, after)?.entries)
    {
        *counts &= entry.address() != 0;
    }
    if let Some(leaf) = leaf {
        for (counts, entry) in counts
            .iter_mut()
            .zip(&cache.page(family, 0, index, leaf)?.entries)
        {
            *counts &= entry.address() == 0;
        }
    }
    Ok(counts.into_iter().filter(|&counts| counts).count() as u64)
}

/// Frees what the plan found.
pub(super) fn carry_out(plan: &Plan, cache: &mut PageCache, space: &mut Space) {
    for &block in &plan.blocks {
        space.free(block, 1);
    }
    for &page in &plan.pages {
        space.free(page, 1);
        cache.forget(page);
    }
}
