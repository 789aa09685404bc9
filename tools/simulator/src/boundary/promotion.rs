//! Promotion: a clone takes over the snapshots that it and what it was made of have in common.

use stillpoint_coordinator::promotion::{Family, Member as Owned};
use stillpoint_processor::{BLOCK_BYTES, SnapshotId, VolumeId};

use super::history::{History, Life, Volume};
use super::operator::Purpose;
use super::rig::{Checked, Rig, broken};
use crate::rows::{self, Member, Rows, VolumeRow};

impl Volume {
    /// What its row says, with this size.
    pub(super) fn row(&self, size: u64) -> VolumeRow {
        VolumeRow {
            row: self.row,
            head: self.id,
            size_bytes: size * BLOCK_BYTES as u64,
            origin: self.row_origin,
            change_log: 0,
        }
    }
}

impl History {
    /// The snapshots that a live map descends from.
    fn path(&self, head: u32) -> std::collections::BTreeSet<(u32, u64)> {
        let origin_of = |shares: u32| self.volumes[&shares].origin;
        rows::path(head, origin_of, |shares| {
            let there = self
                .snapshots
                .values()
                .filter(|snapshot| snapshot.life == Life::There);
            there
                .filter(move |snapshot| snapshot.volumes.contains_key(&shares))
                .map(|snapshot| snapshot.id)
        })
    }

    /// Whether snapshots of a volume are there, or may be.
    pub(super) fn owns_snapshots(&self, volume: u32) -> bool {
        let row = self.volumes[&volume].row;
        let mut known = self
            .snapshots
            .values()
            .filter(|snapshot| snapshot.life != Life::Gone);
        known.any(|snapshot| snapshot.owners.values().any(|owner| *owner == row))
    }

    /// Whether there are snapshots in these shares, whosever they are.
    pub(super) fn has_snapshots_in(&self, shares: u32) -> bool {
        let mut there = self
            .snapshots
            .values()
            .filter(|snapshot| snapshot.life == Life::There);
        there.any(|snapshot| snapshot.volumes.contains_key(&shares))
    }

    fn family(&self, clone: u32, source: u32) -> Family {
        let there = || self.volumes.values().filter(|volume| volume.life == Life::There);
        let head = there().find(|volume| volume.row == source);
        Family {
            clone: VolumeId(self.volumes[&clone].row),
            origins: there()
                .map(|volume| (VolumeId(volume.row), volume.row_origin.map(rows::origin)))
                .collect(),
            path: rows::knots(&self.path(clone)),
            path_of_source: head.map_or_else(Default::default, |head| rows::knots(&self.path(head.id))),
            #[cfg(feature = "planted-bugs")]
            planted_bug: crate::canaries::planted_here(),
        }
    }

    fn members(&self, id: u64) -> Vec<Member> {
        let snapshot = &self.snapshots[&id];
        let members = snapshot.volumes.iter().map(|(&shares, frozen)| Member {
            shares,
            owner: snapshot.owners[&shares],
            size_bytes: frozen.size * BLOCK_BYTES as u64,
        });
        members.collect()
    }

    fn owned(&self) -> Vec<Owned> {
        let there = self
            .snapshots
            .values()
            .filter(|snapshot| snapshot.life == Life::There);
        there
            .flat_map(|snapshot| {
                snapshot.owners.iter().map(|(&shares, &owner)| Owned {
                    knot: (VolumeId(shares), SnapshotId(snapshot.id)),
                    owner: VolumeId(owner),
                })
            })
            .collect()
    }
}

impl Rig {
    /// Promotes a volume, if it is a clone.
    pub(crate) fn promote(&mut self, clone: u32) {
        let history = &mut self.history;
        let row = history.volumes[&clone].row;
        let Some((source, _)) = history.volumes[&clone].row_origin else {
            return;
        };
        let path = history.path(clone);
        let family = history.family(clone, source);
        let promotion = family.promote(history.owned()).expect("a clone");
        for snapshot in history.snapshots.values_mut() {
            for (&shares, owner) in &snapshot.owners {
                if *owner == source && path.contains(&(shares, snapshot.id)) {
                    snapshot.goes.insert(shares, row);
                }
            }
        }
        let mut stage = Vec::new();
        for &(shares, id) in &promotion.goes_over {
            let mut members = history.members(id.0);
            let over = members.iter_mut().find(|member| member.shares == shares.0);
            over.expect("one of its volumes").owner = row;
            stage.push(rows::put_snapshot(id.0, &members, self.layout.shard_count));
        }
        for (id, origin) in promotion.origins {
            let origin = origin.map(|of| (of.volume.0, of.snapshot.0));
            let mut volumes = history.volumes.values_mut();
            let volume = volumes.find(|v| v.row == id.0 && v.life == Life::There);
            let volume = volume.expect("a volume of the catalog");
            volume.becomes = Some(origin);
            let said = VolumeRow {
                origin,
                ..volume.row(volume.size)
            };
            stage.push(said.put(volume.placement, 512));
        }
        self.begin(Purpose::Promote, vec![stage]);
    }

    /// The rows of a promotion are durable.
    pub(super) fn promoted(&mut self) {
        for snapshot in self.history.snapshots.values_mut() {
            snapshot.owners.append(&mut snapshot.goes);
        }
        for volume in self.history.volumes.values_mut() {
            if let Some(origin) = volume.becomes.take() {
                volume.row_origin = origin;
            }
        }
    }

    /// Compares whose the snapshots are, and of what volumes are clones, with what was confirmed; a promotion that was
    /// interrupted may have come to any row.
    pub(super) fn decide_owners(&mut self, rows: &Rows) -> Checked {
        for (id, members) in &rows.snapshots {
            let snapshot = self.history.snapshots.get_mut(id).expect("decided before");
            for member in members {
                let Some(known) = snapshot.owners.get_mut(&member.shares) else {
                    return broken(format!(
                        "snapshot {id} has shares {} that nobody cut",
                        member.shares
                    ));
                };
                let goes = snapshot.goes.get(&member.shares);
                if member.owner != *known && goes != Some(&member.owner) {
                    return broken(format!(
                        "snapshot {id}: what shares {} have of it is volume {}'s, not {known}'s",
                        member.shares, member.owner
                    ));
                }
                *known = member.owner;
            }
            snapshot.goes.clear();
        }
        for (row, found) in &rows.volumes {
            let volume = self.history.volumes.get_mut(&found.head).expect("decided before");
            let becomes = volume.becomes.take();
            if found.origin != volume.row_origin && becomes != Some(found.origin) {
                return broken(format!(
                    "volume {row} counts as a clone of {:?}, not of {:?}",
                    found.origin, volume.row_origin
                ));
            }
            volume.row_origin = found.origin;
        }
        Ok(())
    }
}
