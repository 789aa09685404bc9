//! Promotion: a clone takes over the snapshots that it and its origin have in common. Which those are is told by the
//! shipping code and, from what the model knows of the tree of shares, by [`World::shown_by`]; the rows are compared with
//! the latter at every recovery.

use std::collections::BTreeSet;

use stillpoint_coordinator::promotion::{Family, Member as Owned};
use stillpoint_processor::{SnapshotId, VolumeId};

use super::jobs::{Job, Purpose};
use super::{Checked, State, Volume, World, broken};
use crate::rows::{self, Member, Rows};

impl World {
    /// Promotes any clone. As in the shipping control plane nothing else changes the catalog meanwhile.
    pub(super) fn operate_promotion(&mut self) {
        if !self.jobs.is_empty() || !self.exports.is_idle() || self.snapshots_asked > 0 {
            return;
        }
        let there = self.volumes.values().filter(|volume| volume.is_ready());
        let clones: Vec<u32> = there
            .filter(|volume| volume.row_origin.is_some())
            .map(|volume| volume.id)
            .collect();
        if clones.is_empty() {
            return;
        }
        let clone = *self.random.pick(&clones);
        let row = self.volumes[&clone].row;
        let (source, _) = self.volumes[&clone].row_origin.expect("a clone");
        let of_source = self
            .volumes
            .values()
            .find(|v| v.row == source && v.state != State::Gone);
        if of_source.is_some_and(|source| !source.is_ready()) {
            return;
        }
        let path = self.shown_by(clone);
        let family = Family {
            clone: VolumeId(row),
            origins: self.origins(),
            path_of_source: of_source
                .map_or_else(BTreeSet::new, |source| rows::knots(&self.shown_by(source.id))),
            path: rows::knots(&path),
            #[cfg(feature = "planted-bugs")]
            planted_bug: self.plan.shard_options.planted_bug,
        };
        let promotion = family.promote(self.owned()).expect("a clone");
        // What the model says goes over, whatever the rows will say.
        for snapshot in self.snapshots.values_mut() {
            let goes = snapshot
                .owners
                .iter()
                .find(|&(&shares, &owner)| owner == source && path.contains(&(shares, snapshot.id)));
            snapshot.goes = goes.map(|(&shares, _)| (shares, row));
            snapshot.cloning += u32::from(snapshot.goes.is_some());
        }
        let mut stage = Vec::new();
        for &(shares, id) in &promotion.goes_over {
            let mut members = self.members(id.0);
            let over = members.iter_mut().find(|member| member.shares == shares.0);
            over.expect("one of its volumes").owner = row;
            stage.push(rows::put_snapshot(id.0, &members, self.layout.shard_count));
        }
        for (id, origin) in promotion.origins {
            let origin = origin.map(|of| (of.volume.0, of.snapshot.0));
            let volume = self
                .volumes
                .values_mut()
                .find(|v| v.row == id.0 && v.state == State::There);
            let volume = volume.expect("a volume of the catalog");
            (volume.becomes, volume.job) = (Some(origin), true);
            stage.push(volume.row_with(origin, volume.size_bytes));
        }
        self.promoting = true;
        self.begin(Purpose::Promote(clone), vec![stage]);
    }

    /// A promotion ended. One that failed is in doubt until the pool is opened again: nobody touches what it is about.
    pub(super) fn promotion_ended(&mut self, job: &Job) {
        self.promoting = false;
        if job.failed().is_some() {
            return self.coverage.count("promotions in doubt");
        }
        for volume in self.volumes.values_mut() {
            if let Some(origin) = volume.becomes.take() {
                (volume.row_origin, volume.job) = (origin, false);
            }
        }
        for snapshot in self.snapshots.values_mut() {
            if let Some((shares, row)) = snapshot.goes.take() {
                snapshot.owners.insert(shares, row);
                snapshot.cloning -= 1;
                self.coverage
                    .count("snapshots that went over to a promoted clone");
            }
        }
        self.coverage.count("clones promoted");
        self.tell_change_logs();
    }

    /// Compares whose the snapshots are, and of what volumes are clones, with what was confirmed; a promotion that was
    /// interrupted may have come to any row.
    pub(super) fn decide_owners(&mut self, rows: &Rows) -> Checked {
        let (mut done, mut left) = (0, 0);
        for (id, members) in &rows.snapshots {
            let snapshot = self.snapshots.get_mut(id).expect("decided before");
            for member in members {
                let known = snapshot.owners.get_mut(&member.shares);
                let Some(known) = known else {
                    return broken(format!(
                        "snapshot {id} has shares {} that nobody cut",
                        member.shares
                    ));
                };
                let goes = snapshot.goes.filter(|(shares, _)| *shares == member.shares);
                match goes {
                    Some((_, row)) if member.owner == row => done += 1,
                    _ if member.owner == *known => left += u32::from(goes.is_some()),
                    _ => {
                        return broken(format!(
                            "snapshot {id}: what shares {} have of it is volume {}'s, not {known}'s",
                            member.shares, member.owner
                        ));
                    }
                }
                *known = member.owner;
            }
            snapshot.goes = None;
        }
        for (row, found) in &rows.volumes {
            let volume = self.volumes.get_mut(&found.head).expect("decided before");
            let becomes = volume.becomes.take();
            if found.origin != volume.row_origin && becomes != Some(found.origin) {
                return broken(format!(
                    "volume {row} counts as a clone of {:?}, not of {:?}",
                    found.origin, volume.row_origin
                ));
            }
            left += u32::from(becomes.is_some_and(|origin| origin != found.origin));
            volume.row_origin = found.origin;
        }
        if done > 0 && left > 0 {
            self.coverage.count("promotions that a crash cut in two");
        }
        Ok(())
    }

    /// The snapshots that a live map descends from.
    fn shown_by(&self, head: u32) -> BTreeSet<(u32, u64)> {
        let origin_of = |shares: u32| {
            let origin = self.volumes[&shares].origin;
            origin.map(|knot| (knot.volume, knot.snapshot))
        };
        rows::path(head, origin_of, |shares| {
            let there = self
                .snapshots
                .values()
                .filter(|snapshot| snapshot.state == State::There);
            there
                .filter(move |snapshot| snapshot.owners.contains_key(&shares))
                .map(|snapshot| snapshot.id)
        })
    }

    fn origins(
        &self,
    ) -> std::collections::BTreeMap<VolumeId, Option<stillpoint_coordinator::promotion::Origin>> {
        let there = self
            .volumes
            .values()
            .filter(|volume| volume.state == State::There);
        there
            .map(|volume| (VolumeId(volume.row), volume.row_origin.map(rows::origin)))
            .collect()
    }

    fn owned(&self) -> Vec<Owned> {
        let there = self
            .snapshots
            .values()
            .filter(|snapshot| snapshot.state == State::There);
        there
            .flat_map(|snapshot| {
                snapshot.owners.iter().map(|(&shares, &owner)| Owned {
                    knot: (VolumeId(shares), SnapshotId(snapshot.id)),
                    owner: VolumeId(owner),
                })
            })
            .collect()
    }

    fn members(&self, id: u64) -> Vec<Member> {
        let snapshot = &self.snapshots[&id];
        let members = snapshot.volumes.iter().map(|&(shares, size_bytes)| Member {
            shares,
            owner: snapshot.owners[&shares],
            size_bytes,
        });
        members.collect()
    }
}

impl Volume {
    /// Whether it is there and nothing is being done with it.
    fn is_ready(&self) -> bool {
        self.state == State::There && !self.job
    }
}
