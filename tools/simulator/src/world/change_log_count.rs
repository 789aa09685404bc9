//! What change log volumes must hold, counted from the maps on the devices: for every two maps that follow each other in a
//! share, the positions at which they differ, if a snapshot before them stays.
//!
//! Shards count more than that where a block was written and discarded between the same two cuts, and where recovery
//! dropped a write that was counted: there it is the least that they may say.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use stillpoint_ondisk::directory::{OriginRow, RowKind, SnapshotRow, VolumeRow};
use stillpoint_ondisk::map_page::MapEntry;
use stillpoint_processor::ShardIndex;
use zerocopy::FromBytes;

use super::audit::Audit;
use super::{Checked, World, broken};

/// Addresses by position.
type Map = BTreeMap<u64, u64>;

/// A share on the devices of one shard.
struct Share {
    origin: Option<(u32, u64)>,
    /// Its snapshots, oldest first.
    chain: Vec<Frozen>,
    /// The live map, if it has one.
    live: Option<Map>,
    /// What its row says has changed since the newest cut.
    changed_blocks: u64,
}

/// A snapshot in a share.
struct Frozen {
    id: u64,
    stays: bool,
    map: Map,
    /// What its row says has changed between the snapshot before and this one.
    changed_blocks: u64,
}

impl World {
    /// Compares what each shard counts of each change log volume with its maps. Nothing may be going on, and a checkpoint
    /// must have been made since.
    ///
    /// # Errors
    /// The first that is wrong.
    pub(super) fn check_change_logs(&mut self) -> Checked {
        if self.attached.is_empty() {
            return Ok(());
        }
        self.begin_status();
        self.settle()?;
        for shard in self.shards() {
            let shares = self.shares_on_devices(shard)?;
            for part in &self.statuses[&shard.0].change_logs {
                let id = part.change_log.0;
                let attached = self.attached.iter().filter(|(_, log)| **log == id);
                let known = attached.filter(|(volume, _)| shares.contains_key(*volume));
                let volumes: Vec<u32> = known.map(|(volume, _)| *volume).collect();
                let least: u64 = volumes.iter().map(|volume| self.counted(&shares, *volume)).sum();
                let families = volumes.iter().map(|volume| self.volumes[volume].family);
                let is_exact =
                    !self.has_dropped && families.clone().all(|family| !self.discarded.contains(&family));
                if part.used_blocks < least || is_exact && part.used_blocks > least {
                    return broken(format!(
                        "change log volume {id} on shard {}: {} blocks are counted, {least} are in the maps: {}",
                        shard.0,
                        part.used_blocks,
                        self.explain(&shares, &volumes)
                    ));
                }
                self.coverage.count(match is_exact {
                    true => "parts of change log volumes counted exactly",
                    false => "parts of change log volumes that hold enough",
                });
                self.coverage
                    .add("blocks in change log volumes", part.used_blocks);
            }
        }
        Ok(())
    }

    /// Blocks of a share that count.
    fn counted(&self, shares: &BTreeMap<u32, Share>, volume: u32) -> u64 {
        let share = &shares[&volume];
        let empty = Map::new();
        let mut is_counted = self.follows_kept(shares, volume);
        let mut before = match share.origin {
            Some(origin) => map_of(shares, origin),
            None => &empty,
        };
        let mut blocks = 0;
        for frozen in &share.chain {
            if is_counted {
                blocks += differences(before, &frozen.map);
            }
            (is_counted, before) = (is_counted || frozen.stays, &frozen.map);
        }
        match &share.live {
            Some(live) if is_counted => blocks + differences(before, live),
            _ => blocks,
        }
    }

    /// The logs of these shares, as rows and maps have them.
    fn explain(&self, shares: &BTreeMap<u32, Share>, volumes: &[u32]) -> String {
        let mut text = String::new();
        let empty = Map::new();
        for volume in volumes {
            let share = &shares[volume];
            write!(text, "shares {volume} (made of {:?}):", share.origin).expect("a string takes everything");
            let mut before = share.origin.map_or(&empty, |origin| map_of(shares, origin));
            for Frozen {
                id,
                stays,
                map,
                changed_blocks,
            } in &share.chain
            {
                let differ = differences(before, map);
                write!(text, " {changed_blocks} ({differ}) before {id} (stays: {stays}),").expect("a string");
                before = map;
            }
            let differ = share.live.as_ref().map(|live| differences(before, live));
            write!(text, " {} ({differ:?}) now; ", share.changed_blocks).expect("a string takes everything");
        }
        text
    }

    /// Whether a share was made of a map that goes back to a snapshot in the same change log volume which stays.
    fn follows_kept(&self, shares: &BTreeMap<u32, Share>, volume: u32) -> bool {
        let change_log = self.attached.get(&volume);
        let mut next = shares[&volume].origin;
        while let Some((of, snapshot)) = next {
            if self.attached.get(&of) != change_log {
                return false;
            }
            let mut chain = shares[&of].chain.iter();
            if chain.any(|frozen| frozen.id <= snapshot && frozen.stays) {
                return true;
            }
            next = shares[&of].origin;
        }
        false
    }

    fn shares_on_devices(&self, shard: ShardIndex) -> Checked<BTreeMap<u32, Share>> {
        let mut audit = Audit::new(self, shard);
        let header = self.newest_header(shard)?;
        let rows = audit.directory(&header)?;
        let number = |key: &[u8]| u32::from_le_bytes(key[..4].try_into().expect("four bytes"));
        let mut shares = BTreeMap::new();
        let mut families = BTreeMap::new();
        for (_, key, value) in rows.iter().filter(|(kind, ..)| *kind == RowKind::Volume) {
            let (row, rest) = VolumeRow::read_from_prefix(value).expect("audited before");
            let origin = OriginRow::read_from_prefix(rest).ok();
            let live = match row.state {
                0 => Some(audit.map(row.family.get(), &row.root, row.root_level)?),
                _ => None,
            };
            families.insert(number(key), row.family.get());
            let share = Share {
                origin: origin.map(|(origin, _)| (origin.volume.get(), origin.snapshot.get())),
                chain: Vec::new(),
                live,
                changed_blocks: row.changed_blocks.get(),
            };
            shares.insert(number(key), share);
        }
        for (_, key, value) in rows.iter().filter(|(kind, ..)| *kind == RowKind::Snapshot) {
            let row = SnapshotRow::read_from_bytes(value).expect("audited before");
            let map = audit.map(families[&number(key)], &row.root, row.root_level)?;
            let id = u64::from_le_bytes(key[4..12].try_into().expect("eight bytes"));
            let share = shares.get_mut(&number(key)).expect("audited before");
            share.chain.push(Frozen {
                id,
                stays: row.state == 0,
                map,
                changed_blocks: row.changed_blocks.get(),
            });
        }
        // Snapshots of one volume are taken one after the other, in the order of their numbers.
        for share in shares.values_mut() {
            share.chain.sort_by_key(|frozen| frozen.id);
        }
        Ok(shares)
    }
}

impl Audit<'_> {
    fn map(&mut self, family: u32, root: &MapEntry, level: u8) -> Checked<Map> {
        self.walk(family, root, level, 0)?;
        Ok(std::mem::take(&mut self.positions))
    }
}

fn map_of(shares: &BTreeMap<u32, Share>, (volume, snapshot): (u32, u64)) -> &Map {
    let mut chain = shares[&volume].chain.iter();
    let found = chain.find(|frozen| frozen.id == snapshot);
    &found.expect("what a share was made of stays as long as it").map
}

fn differences(one: &Map, other: &Map) -> u64 {
    let gone = one
        .keys()
        .filter(|position| !other.contains_key(position))
        .count();
    let new = other
        .iter()
        .filter(|&(position, address)| one.get(position) != Some(address));
    (gone + new.count()) as u64
}
