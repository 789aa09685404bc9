//! What `stillpoint inspect` tells, as JSON: bytes, nanoseconds, integers, as in the API.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::shards::CheckedPool;
use crate::catalog::Catalog;
use crate::label::PoolDevices;
use stillpoint_hw::device::{DeviceFile, DeviceKind, PoolFiles};
use stillpoint_processor::host_view::Placement;
use stillpoint_processor::ids::ShareBlock;
use stillpoint_processor::shard::check::{CheckedShard, Depth, FoundShard, Names, Numbers};
use stillpoint_processor::{BLOCK_BYTES, ShardIndex, View, VolumeId};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A pool as it lies on its devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectInfo {
    /// Its name.
    pub pool: String,
    /// Its identity, hexadecimal.
    pub id: String,
    /// When it was made.
    pub created_ns: u64,
    /// Version of the format that this program writes.
    pub format: u16,
    /// Bytes of each shard's log ring.
    pub log_bytes: u64,
    /// Its devices, in label order.
    pub devices: Vec<InspectedDevice>,
    /// Its shards.
    pub shards: Vec<InspectedShard>,
    /// Its volumes; empty if the catalog cannot be read.
    pub volumes: Vec<InspectedVolume>,
    /// What opening the pool would mend by itself, and what else is worth knowing.
    pub notes: Vec<String>,
    /// What the check found; `null` if none was asked for.
    pub check: Option<CheckInfo>,
    /// What was mended; `null` if nothing was asked for.
    pub repair: Option<RepairInfo>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedDevice {
    /// Its path.
    pub path: String,
    /// `file` or `block`.
    pub kind: String,
    /// Its size in use, both labels included.
    pub size_bytes: u64,
    /// What each shard owns of it.
    pub slice_bytes: u64,
}

/// A shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedShard {
    /// Its number.
    pub shard: u16,
    /// The device on which its header, bitmap and log lie.
    pub home: usize,
    /// Whether its root could be read; if not, nothing below counts.
    pub readable: bool,
    /// Generation of its newest checkpoint.
    pub generation: u64,
    /// When that was made.
    pub checkpoint_ns: u64,
    /// Room for data and maps.
    pub total_bytes: u64,
    /// What is in use.
    pub used_bytes: u64,
    /// Records of the log, to be replayed when the pool is opened.
    pub log_records: u64,
    /// Records of the log tail, likewise.
    pub tail_records: u64,
    /// Shares of volumes.
    pub shares: u64,
    /// Intermediate snapshots.
    pub snapshots: u64,
    /// Map pages that were found sound.
    pub map_pages: u64,
    /// Directory pages.
    pub directory_pages: u64,
    /// Data blocks that maps refer to.
    pub data_blocks: u64,
    /// Data blocks that were read and compared with their checksum.
    pub verified_blocks: u64,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedVolume {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// Its size.
    pub size_bytes: u64,
    /// Logical block size.
    pub block_bytes: u32,
    /// Size of its objects.
    pub object_bytes: u64,
    /// What it maps.
    pub mapped_bytes: u64,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<String>,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckInfo {
    /// Nothing is damaged.
    pub clean: bool,
    /// Whether data blocks were read too.
    pub data: bool,
    /// What is wrong; of each kind, the first 100 of each shard.
    pub problems: Vec<ProblemInfo>,
    /// All that is wrong, counted by kind: blocks, pages, or whatever the kind is about.
    pub counts: BTreeMap<String, u64>,
    /// What `--repair` would do.
    pub mends: Vec<MendInfo>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemInfo {
    /// What kind of thing it is.
    pub kind: String,
    /// The shard, if it is about one.
    pub shard: Option<u16>,
    /// Whether something is damaged; if not, it is worth knowing and nothing more.
    pub damage: bool,
    /// What is wrong, in words.
    pub message: String,
}

impl ProblemInfo {
    pub(super) fn damage(kind: &str, shard: Option<u16>, message: String) -> Self {
        Self {
            kind: kind.to_owned(),
            shard,
            damage: true,
            message,
        }
    }
}

/// Something that can be mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MendInfo {
    /// What would be done.
    pub what: String,
    /// Only with `--accept-loss`: it gives up something that the pool promised to keep.
    pub loses: bool,
}

/// What was mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairInfo {
    /// What was done, in order.
    pub done: Vec<String>,
    /// What a second check found.
    pub left: Vec<ProblemInfo>,
    /// What opening the pool will mend by itself.
    pub notes: Vec<String>,
}

impl InspectInfo {
    /// Damage that is there now.
    #[must_use]
    pub fn damage(&self) -> usize {
        let Some(check) = &self.check else {
            return self.shards.iter().filter(|shard| !shard.readable).count();
        };
        let now = self
            .repair
            .as_ref()
            .map_or(&check.problems, |repair| &repair.left);
        now.iter().filter(|problem| problem.damage).count()
    }
}

pub(super) fn describe(
    devices: &PoolDevices,
    files: &PoolFiles,
    checked: &CheckedPool,
    depth: Depth,
) -> InspectInfo {
    let layout = &devices.layout;
    let info_of_device = |(device, file): (usize, Arc<DeviceFile>)| {
        let sizes = &layout.devices[devices.device_of(device)];
        InspectedDevice {
            path: file.path().display().to_string(),
            kind: match file.kind() {
                DeviceKind::File => "file".to_owned(),
                DeviceKind::Block => "block".to_owned(),
            },
            size_bytes: sizes.size_blocks * BLOCK,
            slice_bytes: sizes.slice_blocks * BLOCK,
        }
    };
    let shards = (0u16..).zip(&checked.shards);
    let mut notes = checked.notes();
    if depth == Depth::Structures {
        notes.extend(checked.problems().into_iter().map(|problem| problem.message));
    }
    InspectInfo {
        pool: devices.name.clone(),
        id: devices.id_text(),
        created_ns: devices.created_ns,
        format: stillpoint_ondisk::page::VERSION,
        log_bytes: u64::from(layout.log_pages) * BLOCK,
        devices: files.present().map(info_of_device).collect(),
        shards: shards
            .map(|(shard, checked)| describe_shard(shard, layout.home(shard), checked))
            .collect(),
        volumes: checked
            .catalog
            .as_ref()
            .map(|catalog| volumes(catalog, checked))
            .unwrap_or_default(),
        notes,
        check: (depth > Depth::Structures).then(|| describe_check(checked, depth)),
        repair: None,
    }
}

fn describe_shard(shard: u16, home: usize, checked: &CheckedShard) -> InspectedShard {
    let figures = checked.report.figures;
    let base = InspectedShard {
        shard,
        home,
        map_pages: figures.map_pages,
        directory_pages: figures.directory_pages,
        data_blocks: figures.data_blocks,
        verified_blocks: figures.verified_blocks,
        log_records: figures.log_records,
        tail_records: figures.tail_records,
        ..InspectedShard::default()
    };
    let Some(found) = &checked.found else { return base };
    InspectedShard {
        readable: true,
        generation: found.recovery.generation,
        checkpoint_ns: found.checkpoint_ns,
        total_bytes: found.total_blocks * BLOCK,
        used_bytes: found.used_blocks * BLOCK,
        shares: found.volumes.len() as u64,
        snapshots: found.snapshots.iter().map(|(_, found)| found.len() as u64).sum(),
        ..base
    }
}

fn volumes(catalog: &Catalog, checked: &CheckedPool) -> Vec<InspectedVolume> {
    let found = || checked.shards.iter().filter_map(|shard| shard.found.as_ref());
    let mapped = |id: VolumeId| {
        let shares = found().flat_map(|shard: &FoundShard| &shard.volumes);
        let blocks = shares
            .filter(|share| share.volume == id)
            .map(|share| share.mapped_blocks);
        blocks.sum::<u64>() * BLOCK
    };
    let info = catalog.volumes().map(|volume| InspectedVolume {
        name: volume.name.clone(),
        id: volume.id.0,
        size_bytes: volume.size_bytes,
        block_bytes: volume.block_bytes,
        object_bytes: u64::from(volume.object_blocks) * BLOCK,
        mapped_bytes: mapped(volume.head),
        snapshots: catalog
            .snapshots_of(volume.id)
            .map(|snapshot| format!("{}@{}", volume.name, snapshot.name))
            .collect(),
    });
    info.collect()
}

fn describe_check(checked: &CheckedPool, depth: Depth) -> CheckInfo {
    let problems = checked.problems();
    let mut counts = BTreeMap::new();
    for problem in &checked.of_pool {
        *counts.entry(problem.kind.clone()).or_insert(0) += 1;
    }
    let of_sides = checked.shards.iter().chain(&checked.second);
    for (kind, count) in of_sides.flat_map(|shard| &shard.report.counts) {
        *counts.entry((*kind).to_owned()).or_insert(0) += count;
    }
    CheckInfo {
        clean: !problems.iter().any(|problem| problem.damage),
        data: depth == Depth::Data,
        problems,
        counts,
        mends: checked
            .mends()
            .map(|mend| MendInfo {
                what: mend.what.clone(),
                loses: mend.loses,
            })
            .collect(),
    }
}

impl CheckedPool {
    /// Everything that is wrong.
    pub(super) fn problems(&self) -> Vec<ProblemInfo> {
        let names: Box<dyn Names> = match &self.catalog {
            Some(catalog) => Box::new(FromCatalog(catalog)),
            None => Box::new(Numbers),
        };
        let [of_first, of_second] = match self.second.is_empty() {
            true => ["", ""],
            false => ["first side: ", "second side: "],
        };
        let of_sides = (self.shards.iter().map(|shard| (of_first, shard)))
            .chain(self.second.iter().map(|shard| (of_second, shard)));
        let of_shards = of_sides.flat_map(|(side, shard)| {
            let index = shard.report.shard;
            (shard.report.problems.iter()).map(move |problem| (side, index, problem))
        });
        let told = of_shards.map(|(side, shard, problem)| ProblemInfo {
            kind: problem.kind().to_owned(),
            shard: Some(shard.0),
            damage: problem.is_damage(),
            message: format!("{side}{}", problem.describe(shard, names.as_ref())),
        });
        self.of_pool.iter().cloned().chain(told).collect()
    }
}

/// The names that the catalog gives.
pub(crate) struct FromCatalog<'a>(pub(crate) &'a Catalog);

impl Names for FromCatalog<'_> {
    fn view(&self, view: View) -> String {
        match self.0.view_of_shares(view) {
            Some(view) => self.0.view_name(view),
            None => Numbers.view(view),
        }
    }

    fn blocks(&self, shard: ShardIndex, volume: VolumeId, first: ShareBlock, blocks: u64) -> String {
        let Some(found) = self.0.volume_of_shares(volume) else {
            return Numbers.blocks(shard, volume, first, blocks);
        };
        let placement: Placement = found.placement(self.0.shard_count);
        let offset_bytes = placement.block_at(shard, first).0 * BLOCK;
        let object_blocks = u64::from(placement.object_blocks);
        if blocks <= object_blocks {
            format!("offset {offset_bytes}, {} bytes", blocks * BLOCK)
        } else {
            format!(
                "the objects of shard {} from offset {offset_bytes} on, {} bytes of them",
                shard.0,
                blocks * BLOCK
            )
        }
    }
}
