//! What a pool must be after a crash: opened, put right by its catalog, read from end to end and compared.

use std::collections::{BTreeMap, BTreeSet};

use stillpoint_processor::{BLOCK_BYTES, ShardCommand, ShardIndex, SnapshotId, VolumeId};

use super::history::{History, Life, Sectors};
use super::operator::{Purpose, Stage};
use super::rig::{Checked, Rig, broken};
use crate::model::Crash;
use crate::rows::{Rows, VolumeRow};

/// What a volume or snapshot shows, block by block; `None` where reading was refused.
pub(crate) type Seen = Vec<Option<Sectors>>;

/// Everything that a pool shows: volumes, and volumes in snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) volumes: BTreeMap<u32, Seen>,
    pub(crate) snapshots: BTreeMap<(u64, u32), Seen>,
}

impl State {
    /// Blocks that could not be read.
    pub(crate) fn refused(&self) -> usize {
        let all = self.volumes.values().chain(self.snapshots.values());
        all.flatten().filter(|block| block.is_none()).count()
    }
}

impl Rig {
    /// Compares a pool that was just opened with what its clients know; gives what it shows. `crash` is what ended the
    /// life before.
    pub(crate) fn recovered(&mut self, history: &History, crash: Crash) -> Checked<State> {
        self.history = history.clone();
        let commands = self.decide()?;
        if !commands.is_empty() {
            self.begin(Purpose::Reconcile, vec![commands]);
            self.drive()?;
        }
        self.compare(Some(crash))
    }

    /// What a recovery showed is what is there from now on.
    pub(crate) fn settle(&mut self, state: &State) {
        let History {
            volumes, snapshots, ..
        } = &mut self.history;
        for ((id, volume), shown) in &state.snapshots {
            let frozen = snapshots
                .get_mut(id)
                .and_then(|snapshot| snapshot.volumes.get_mut(volume));
            let frozen = frozen.expect("compared before");
            frozen.until_now(&volumes[volume]);
            frozen.fix(&volumes[volume], shown);
        }
        for (id, shown) in &state.volumes {
            volumes.get_mut(id).expect("compared before").settle(shown);
        }
    }

    /// Lets everything that was begun be answered.
    pub(crate) fn drive(&mut self) -> Checked {
        loop {
            self.turns()?;
            if self.is_answered() {
                return Ok(());
            }
            if self.changes_in_flight().is_empty() {
                return broken(self.describe_hang());
            }
            self.complete_one();
        }
    }

    /// Reads everything and compares it.
    pub(crate) fn compare(&mut self, crash: Option<Crash>) -> Checked<State> {
        let mut state = State::default();
        let there = |life: Life| life == Life::There;
        let volumes: Vec<(u32, u64)> = self
            .history
            .volumes
            .values()
            .filter(|volume| there(volume.life))
            .map(|volume| (volume.id, volume.resizing.unwrap_or(volume.size).min(volume.size)))
            .collect();
        for (id, size) in volumes {
            let shown = self.read_everything(id, size, None)?;
            let volume = &self.history.volumes[&id];
            check_each(&shown, |at, sectors| volume.check_block(crash, at, sectors))?;
            state.volumes.insert(id, shown);
        }
        let snapshots: Vec<(u64, u32, u64)> = self
            .history
            .snapshots
            .values()
            .filter(|snapshot| there(snapshot.life))
            .flat_map(|snapshot| {
                let volumes = snapshot.volumes.iter();
                volumes.map(|(volume, frozen)| (snapshot.id, *volume, frozen.size))
            })
            .collect();
        for (id, volume, size) in snapshots {
            let shown = self.read_everything(volume, size, Some(id))?;
            let frozen = &self.history.snapshots[&id].volumes[&volume];
            let known = &self.history.volumes[&volume];
            check_each(&shown, |at, sectors| frozen.check_block(id, known, at, sectors))?;
            state.snapshots.insert((id, volume), shown);
        }
        Ok(state)
    }

    /// The whole at once; if that is refused, block by block.
    fn read_everything(&mut self, volume: u32, size: u64, snapshot: Option<u64>) -> Checked<Seen> {
        match self.read(volume, size, snapshot, 0..size)? {
            Ok(shown) => Ok(shown.into_iter().map(Some).collect()),
            Err(_) => (0..size)
                .map(|block| {
                    let read = self.read(volume, size, snapshot, block..block + 1)?;
                    Ok(read.ok().map(|shown| shown[0]))
                })
                .collect(),
        }
    }

    /// Decides by the catalog what exists, checks it against what was confirmed (I8), and gives the commands that put
    /// the rest right.
    pub(super) fn decide(&mut self) -> Checked<Stage> {
        let rows = Rows::read(&self.shards()[0].catalog())?;
        self.decide_volumes(&rows.volumes)?;
        let mut snapshots: BTreeSet<u64> = rows.snapshots.keys().copied().collect();
        for snapshot in self.history.snapshots.values_mut() {
            snapshot.life = match (snapshot.life, snapshots.remove(&snapshot.id)) {
                (Life::There, false) => return broken(format!("I8: snapshot {} is lost", snapshot.id)),
                (Life::Gone, true) => return broken(format!("I8: snapshot {} came back", snapshot.id)),
                (_, true) => Life::There,
                (_, false) => Life::Gone,
            };
        }
        if let Some(id) = snapshots.first() {
            return broken(format!("snapshot {id} was never asked for"));
        }
        self.decide_owners(&rows)?;
        let mut commands: Stage = rows
            .figures
            .into_iter()
            .filter(|(snapshot, _)| self.history.snapshots[snapshot].life == Life::Gone)
            .map(|(_, key)| (ShardIndex(0), ShardCommand::CatalogDelete { key }))
            .collect();
        for shard in 0..self.layout.shard_count {
            self.decide_shares(usize::from(shard), &mut commands)?;
        }
        Ok(commands)
    }

    fn decide_volumes(&mut self, rows: &BTreeMap<u32, VolumeRow>) -> Checked {
        for volume in self.history.volumes.values_mut() {
            // In the middle of a rollback it is what it was or what it becomes, but it is there.
            let rolled_back = volume.life == Life::Unsure && volume.replaces;
            if rolled_back && !rows.contains_key(&volume.row) {
                return broken(format!("volume {} is lost in a rollback", volume.row));
            }
            let row = rows.get(&volume.row).filter(|row| row.head == volume.id);
            match (volume.life, row) {
                (Life::There, None) => return broken(format!("volume {} is lost", volume.id)),
                (Life::Gone, Some(_)) => return broken(format!("volume {} came back", volume.id)),
                (_, None) => volume.life = Life::Gone,
                (_, Some(row)) => {
                    let size = row.size_bytes / BLOCK_BYTES as u64;
                    if size != volume.size && volume.resizing != Some(size) {
                        return broken(format!(
                            "volume {} has {size} blocks, not {} or {:?}",
                            volume.id, volume.size, volume.resizing
                        ));
                    }
                    (volume.life, volume.size, volume.resizing) = (Life::There, size, None);
                    volume.replaces = false;
                }
            }
        }
        let known = &self.history.volumes;
        match rows.values().find(|row| !known.contains_key(&row.head)) {
            Some(row) => broken(format!("volume {} was never made", row.head)),
            None => Ok(()),
        }
    }

    /// What one shard holds besides, or instead of, what the catalog says.
    fn decide_shares(&self, shard: usize, commands: &mut Stage) -> Checked {
        let shard = &self.shards()[shard];
        let index = shard.index();
        let mut held = BTreeMap::new();
        for share in shard.shares() {
            let volume = share.id;
            let live: Vec<SnapshotId> = share
                .snapshots
                .iter()
                .filter(|snapshot| !snapshot.deleting)
                .map(|snapshot| snapshot.snapshot)
                .collect();
            let known = self.history.volumes.get(&volume.0);
            let mut snapshots = self.history.snapshots.values();
            let has_snapshots = snapshots
                .any(|snapshot| snapshot.life == Life::There && snapshot.volumes.contains_key(&volume.0));
            match known.filter(|known| known.life == Life::There) {
                Some(known) => {
                    let share_blocks = known.placement.share_blocks(index, known.size);
                    if share_blocks != share.share_blocks {
                        commands.push((index, ShardCommand::ResizeVolume { volume, share_blocks }));
                    }
                }
                None if !has_snapshots => {
                    commands.push((index, ShardCommand::DeleteVolume { volume }));
                    continue;
                }
                None if !share.deleting => commands.push((index, ShardCommand::DeleteHead { volume })),
                None => {}
            }
            for &snapshot in &live {
                let committed = self.history.snapshots.get(&snapshot.0);
                if committed.is_none_or(|committed| committed.life != Life::There) {
                    commands.push((index, ShardCommand::DeleteSnapshot { volume, snapshot }));
                }
            }
            held.insert(volume.0, live);
        }
        for volume in self.history.volumes.values().filter(|v| v.life == Life::There) {
            if !held.contains_key(&volume.id) {
                if volume.origin.is_some() {
                    return broken(format!(
                        "shard {} lost its share of volume {}",
                        index.0, volume.id
                    ));
                }
                let share_blocks = volume.placement.share_blocks(index, volume.size);
                let volume = VolumeId(volume.id);
                commands.push((index, ShardCommand::CreateVolume { volume, share_blocks }));
            }
        }
        for snapshot in self.history.snapshots.values().filter(|s| s.life == Life::There) {
            for volume in snapshot.volumes.keys() {
                let has = held
                    .get(volume)
                    .is_some_and(|live| live.contains(&SnapshotId(snapshot.id)));
                if !has {
                    return broken(format!(
                        "I8: shard {} lost its part of snapshot {}",
                        index.0, snapshot.id
                    ));
                }
            }
        }
        Ok(())
    }
}

fn check_each(shown: &Seen, mut check: impl FnMut(usize, &Sectors) -> Checked) -> Checked {
    for (at, sectors) in shown.iter().enumerate() {
        if let Some(sectors) = sectors {
            check(at, sectors)?;
        }
    }
    Ok(())
}
