//! Scrubs in the catalog: what is known of each shard's, so that it goes on when the pool is opened again, and so that its
//! report stays.

use super::Catalog;
use super::rows::Change;
use stillpoint_hw::device::nvme::status::meaning;
use stillpoint_ondisk::catalog::{
    Key, SCRUB_DATA, SCRUB_SHARDS_MAX, ScrubDamageRow, ScrubHead, ScrubRow, ScrubSideRow, Value,
};
use stillpoint_processor::command::{ScrubDamage, ScrubPosition, ScrubSide, ScrubState, ScrubStatus};
use stillpoint_processor::ports::DeviceError;
use stillpoint_processor::{DeviceAddress, ShareBlock, SnapshotId, View, VolumeId};

impl Catalog {
    /// The scrub of every shard, in order, as the rows have it; empty if there never was one.
    #[must_use]
    pub fn scrubs(&self) -> &[ScrubStatus] {
        &self.scrubs
    }

    /// The rows have these now.
    pub fn put_scrubs(&mut self, scrubs: Vec<ScrubStatus>) {
        self.scrubs = scrubs;
    }

    /// How some shards' scrubs stand, from their row.
    pub(super) fn load_scrubs(&mut self, first_shard: u16, rows: &[ScrubRow]) {
        for (shard, row) in (usize::from(first_shard)..).zip(rows) {
            if let Some(scrub) = self.loaded_scrub(shard) {
                let damage = std::mem::take(&mut scrub.damage);
                *scrub = ScrubStatus {
                    damage,
                    ..from_row(row)
                };
            }
        }
    }

    /// What a shard's scrub found, from its row.
    pub(super) fn load_scrub_damage(&mut self, shard: u16, rows: &[ScrubDamageRow]) {
        if let Some(scrub) = self.loaded_scrub(shard.into()) {
            scrub.damage = rows.iter().map(damage_from_row).collect();
        }
    }

    fn loaded_scrub(&mut self, shard: usize) -> Option<&mut ScrubStatus> {
        let shards = usize::from(self.shard_count);
        self.scrubs.resize_with(shards, ScrubStatus::default);
        self.scrubs.get_mut(shard)
    }
}

impl Change {
    /// What has to be written so that the rows have `now` instead of `before` (each for all shards, in order; `before` may
    /// be empty).
    #[must_use]
    pub fn put_scrubs(before: &[ScrubStatus], now: &[ScrubStatus]) -> Vec<Self> {
        let mut changes = Vec::new();
        for (shard, scrub) in now.iter().enumerate() {
            let found = before.get(shard).map_or(&[][..], |before| &before.damage);
            let key = Key::ScrubDamage(shard as u16);
            if scrub.damage.is_empty() && !found.is_empty() {
                changes.push(Self::delete(key));
            } else if scrub.damage != found {
                let rows: Vec<_> = scrub.damage.iter().map(damage_row).collect();
                changes.push(Self::put(key, Value::ScrubDamage(ScrubHead::default(), &rows)));
            }
        }
        let stands = |scrubs: &[ScrubStatus]| scrubs.iter().map(row).collect::<Vec<_>>();
        let (before, now) = (stands(before), stands(now));
        for (number, rows) in now.chunks(SCRUB_SHARDS_MAX).enumerate() {
            let first = number * SCRUB_SHARDS_MAX;
            if before.get(first..first + rows.len()) != Some(rows) {
                let key = Key::Scrubs {
                    first_shard: first as u16,
                };
                changes.push(Self::put(key, Value::Scrubs(ScrubHead::default(), rows)));
            }
        }
        changes
    }
}

fn row(scrub: &ScrubStatus) -> ScrubRow {
    let at = &scrub.position;
    ScrubRow {
        state: match scrub.state {
            ScrubState::Never => 0,
            ScrubState::Running => 1,
            ScrubState::Paused => 2,
            ScrubState::Done => 3,
            ScrubState::Stopped => 4,
        },
        pages_read: at.pages_read.into(),
        reserved: [0; 6],
        volume: at.volume.into(),
        epoch: at.epoch.into(),
        until: at.until.into(),
        slot: at.slot.into(),
        leaf: at.leaf.into(),
        rate_bytes_per_s: scrub.rate_bytes_per_s.into(),
        started_ns: scrub.started_ns.into(),
        ended_ns: scrub.ended_ns.into(),
        running_ns: scrub.running_ns.into(),
        checked_blocks: scrub.checked_blocks.into(),
        damaged_blocks: scrub.damaged_blocks.into(),
        sides: scrub.sides.map(|side| ScrubSideRow {
            read_blocks: side.read_blocks.into(),
            repaired_blocks: side.repaired_blocks.into(),
            unrepaired_blocks: side.unrepaired_blocks.into(),
        }),
    }
}

/// Without its damage.
fn from_row(row: &ScrubRow) -> ScrubStatus {
    ScrubStatus {
        state: match row.state {
            0 => ScrubState::Never,
            1 => ScrubState::Running,
            2 => ScrubState::Paused,
            3 => ScrubState::Done,
            _ => ScrubState::Stopped,
        },
        rate_bytes_per_s: row.rate_bytes_per_s.get(),
        position: ScrubPosition {
            volume: row.volume.get(),
            epoch: row.epoch.get(),
            until: row.until.get(),
            leaf: row.leaf.get(),
            pages_read: row.pages_read != 0,
            slot: row.slot.get(),
        },
        checked_blocks: row.checked_blocks.get(),
        damaged_blocks: row.damaged_blocks.get(),
        damage: Vec::new(),
        sides: row.sides.map(|side| ScrubSide {
            read_blocks: side.read_blocks.get(),
            repaired_blocks: side.repaired_blocks.get(),
            unrepaired_blocks: side.unrepaired_blocks.get(),
        }),
        started_ns: row.started_ns.get(),
        ended_ns: row.ended_ns.get(),
        running_ns: row.running_ns.get(),
    }
}

fn damage_row(damage: &ScrubDamage) -> ScrubDamageRow {
    let (error, code) = match damage.device_error {
        None => (0, 0),
        Some(DeviceError::Os(errno)) => (1, errno.cast_unsigned()),
        Some(DeviceError::Short | DeviceError::Shrunk) => (2, 0),
        Some(DeviceError::Gone) => (3, 0),
        Some(DeviceError::Nvme { status, .. }) => (4, status.into()),
    };
    ScrubDamageRow {
        volume: damage.view.volume.0.into(),
        map_level: damage.map_level.unwrap_or(SCRUB_DATA),
        error,
        reserved_a: [0; 2],
        snapshot: damage.view.snapshot.map_or(0, |snapshot| snapshot.0).into(),
        first: damage.first.0.into(),
        address: damage.address.0.into(),
        code: code.into(),
        reserved_b: [0; 4],
    }
}

fn damage_from_row(row: &ScrubDamageRow) -> ScrubDamage {
    let (snapshot, code) = (row.snapshot.get(), row.code.get());
    ScrubDamage {
        view: View {
            volume: VolumeId(row.volume.get()),
            snapshot: (snapshot != 0).then_some(SnapshotId(snapshot)),
        },
        map_level: (row.map_level != SCRUB_DATA).then_some(row.map_level),
        first: ShareBlock(row.first.get()),
        address: DeviceAddress(row.address.get()),
        device_error: match row.error {
            0 => None,
            1 => Some(DeviceError::Os(code.cast_signed())),
            2 => Some(DeviceError::Short),
            3 => Some(DeviceError::Gone),
            _ => Some(DeviceError::Nvme {
                status: code as u16,
                meaning: meaning(code as u16),
            }),
        },
    }
}
