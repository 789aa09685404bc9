//! Clones, promotion, rollback: volumes whose first map is a snapshot's. Nothing is copied: shards keep a tree of maps, and
//! the catalog says which volume each part of it belongs to.
//!
//! | change | order | after a crash in between, opening the pool |
//! |---|---|---|
//! | clone | shares on all shards, then the row | deletes shares that are no volume's head |
//! | promote | rows of the snapshots, then of the volumes, the clone's last | nothing: part of the snapshots has gone over; promoting again ends it |
//! | roll back | safety snapshot, new shares on all shards, then the row, then the old live map | deletes whichever is no head |

use std::collections::BTreeSet;
use std::sync::Arc;

use super::change_logs::half_done;
use super::{Pool, wall_ns};
use crate::api::model::{CloneVolume, CreateSnapshot};
use crate::catalog::{Catalog, Change, ExportRow, Origin, Volume};
use crate::error::{Error, Result};
use crate::events::EventKind as Told;
use crate::{label, name};
use stillpoint_coordinator::promotion::{Family, Knot, Member};
use stillpoint_coordinator::{Marks, OverallSnapshot};
use stillpoint_ondisk::label::FEATURE_CLONES;
use stillpoint_processor::command::EventKind;
use stillpoint_processor::{ShardCommand, ShardIndex, SnapshotId, View, VolumeId};

impl Pool {
    /// Makes a volume that begins as a snapshot is.
    ///
    /// # Errors
    /// Usage for a bad name, not found, conflict if the name is taken, no space.
    pub async fn clone_volume(&self, volume: &str, request: &CloneVolume) -> Result<()> {
        name::check("volume", &request.name)?;
        let _gate = self.gate.write().await;
        let origin = self.volume(volume)?;
        let snapshot = self.snapshot(volume, &request.snapshot)?;
        if self.catalog().volume(&request.name).is_some() {
            return Err(Error::conflict(format!("volume {} exists already", request.name)));
        }
        let (id, size_bytes) = self.make_shares(&origin, &snapshot).await?;
        let clone = Volume {
            id,
            name: request.name.clone(),
            size_bytes,
            created_ns: wall_ns(),
            head: id,
            origin: Some(Origin {
                volume: origin.id,
                snapshot: snapshot.snapshot,
            }),
            change_log: None,
            ..origin
        };
        self.change([Change::put_volume(&clone)]).await?;
        self.catalog().put_volume(clone);
        let text = format!("cloned from {volume}@{}", request.snapshot);
        self.tell(Told::VolumeCloned, &request.name, text);
        Ok(())
    }

    /// Shares on all shards that begin as a snapshot is; their number, and the size of the volume that they make.
    async fn make_shares(&self, volume: &Volume, snapshot: &OverallSnapshot) -> Result<(VolumeId, u64)> {
        let of = snapshot.volumes.iter().find(|of| of.owner == volume.id);
        let of = *of.expect("the snapshot was found by its volume");
        self.set_feature(FEATURE_CLONES).await?;
        let id = self.number(Catalog::next_volume).await?;
        let made = self.run_all(self.every_shard(|_| ShardCommand::CloneVolume {
            volume: id,
            origin: of.volume,
            snapshot: snapshot.snapshot,
        }));
        if let Err(error) = made.await {
            self.free(self.every_shard(|_| ShardCommand::DeleteVolume { volume: id }))
                .await;
            return Err(error.while_doing(format_args!("cloning {}@{}", volume.name, snapshot.name)));
        }
        Ok((id, of.size_bytes))
    }

    /// Sees to it that the labels of all devices have this bit before anything is written that needs it.
    pub(super) async fn set_feature(&self, bit: u64) -> Result<()> {
        if self.devices.layout.mirrored {
            return self.set_feature_of_mirrors(bit).await;
        }
        let (devices, files) = (self.devices.clone(), Arc::clone(&self.files));
        let written = tokio::task::spawn_blocking(move || label::set_incompatible(&devices, &files, bit));
        match written.await {
            Ok(result) => result,
            Err(error) => Err(Error::failure(format!("writing the labels: {error}"))),
        }
    }

    /// Makes a volume what it was at a snapshot. What it is now stays in a snapshot that is taken first. Nobody writes to it
    /// meanwhile: the caller has withdrawn its exports and keeps the pool quiet.
    ///
    /// # Errors
    /// Not found, conflict, no space; the volume is as it was then. An error that says that it is rolled back, or that this is
    /// not known, means that.
    pub(crate) async fn roll_back(
        &self,
        volume: &str,
        snapshot: &str,
        safety_name: Option<&str>,
    ) -> Result<OverallSnapshot> {
        let old = self.volume(volume)?;
        let target = self.snapshot(volume, snapshot)?;
        let safety = CreateSnapshot {
            volumes: vec![volume.to_owned()],
            name: match safety_name {
                Some(name) => name.to_owned(),
                None => self.safety_name(old.id, snapshot),
            },
            pool: None,
            hold_limit_ns: None,
        };
        let safety = self.take_snapshot(&safety, Marks::default()).await?;
        let (head, size_bytes) = self.make_shares(&old, &target).await?;
        let rolled_back = Volume {
            head,
            size_bytes,
            ..old.clone()
        };
        if let Err(error) = self.change([Change::put_volume(&rolled_back)]).await {
            // Whether the volume is the old or the new one is told when the pool is opened again. Until then nobody may
            // write to either.
            self.catalog().in_doubt.push(old.id);
            return Err(error
                .while_doing(format_args!(
                    "rolling back {volume}, of which it is not known whether it is done"
                ))
                .hint("its exports are withdrawn; close the pool and open it again"));
        }
        let before = self.catalog().shares_of_change_logs();
        self.catalog().put_volume(rolled_back);
        // It is rolled back, whatever comes of what is left to do.
        let attached = self.attach_change_logs(&before).await;
        self.free(self.every_shard(|_| ShardCommand::DeleteHead { volume: old.head }))
            .await;
        let text = format!(
            "is what it was at {snapshot}; what it was before is {}",
            safety.name
        );
        self.tell(Told::VolumeRolledBack, volume, text);
        attached.map_err(|error| half_done(&error, format_args!("volume {volume} is rolled back")))?;
        Ok(safety)
    }

    /// A name for the snapshot before a rollback that the volume does not have yet.
    fn safety_name(&self, volume: VolumeId, snapshot: &str) -> String {
        let catalog = self.catalog();
        let names = (1..).map(|number| match number {
            1 => format!("before-{snapshot}"),
            _ => format!("before-{snapshot}-{number}"),
        });
        let mut free = names.filter(|name| catalog.snapshot(volume, name).is_none());
        free.next().expect("names do not end")
    }

    /// Gives a clone the snapshots that it and its origin have in common: the origin is the clone from then on, and can be
    /// deleted. Gives how many snapshots went over.
    ///
    /// # Errors
    /// Not found, usage if it is no clone, conflict if it has a snapshot of the same name already.
    pub async fn promote(&self, volume: &str) -> Result<usize> {
        let _gate = self.gate.write().await;
        let clone = self.volume(volume)?;
        let Some(origin) = clone.origin else {
            return Err(Error::usage(format!("volume {volume} is not a clone"))
                .hint("stillpoint volume show says what a volume was cloned from"));
        };
        let path = self.path_to(clone.head).await?;
        let source = self
            .catalog()
            .volume_by_id(origin.volume)
            .map(|source| source.head);
        let path_of_source = match source {
            Some(head) => self.path_to(head).await?,
            None => BTreeSet::new(),
        };
        let plan = Promoted::plan(&self.catalog(), &clone, origin, path, path_of_source)?;
        self.change(plan.changes()).await?;
        let moved = plan.snapshots.len();
        let before = self.catalog().shares_of_change_logs();
        plan.apply(&mut self.catalog());
        let attached = self.attach_change_logs(&before).await;
        self.tell(
            Told::VolumePromoted,
            volume,
            format!("{moved} snapshots went over to it"),
        );
        attached.map_err(|error| half_done(&error, format_args!("volume {volume} is promoted")))?;
        Ok(moved)
    }

    /// The intermediate snapshots that the live map of these shares descends from.
    async fn path_to(&self, head: VolumeId) -> Result<BTreeSet<Knot>> {
        let shard = ShardIndex(0);
        let ask = |command| async move {
            let mut events = self.ask_all([(shard, command)]).await?;
            Ok::<_, Error>(events.pop().expect("one was asked").1)
        };
        let EventKind::Status(status) = ask(ShardCommand::Status).await? else {
            return Err(Error::failure("shard 0 does not tell its figures").hint("try again"));
        };
        let mut path = BTreeSet::new();
        let mut next = Some((head, None));
        while let Some((shares, until)) = next {
            let EventKind::Snapshots(chain) = ask(ShardCommand::ListSnapshots { volume: shares }).await?
            else {
                return Err(Error::failure("shard 0 does not tell its snapshots").hint("try again"));
            };
            let end = match until {
                Some(snapshot) => chain
                    .iter()
                    .position(|found| found.snapshot == snapshot)
                    .map_or(0, |at| at + 1),
                None => chain.len(),
            };
            path.extend(chain[..end].iter().map(|found| (shares, found.snapshot)));
            let share = status.volumes.iter().find(|share| share.volume == shares);
            next = share
                .and_then(|share| share.origin)
                .map(|(shares, snapshot)| (shares, Some(snapshot)));
        }
        Ok(path)
    }
}

/// The rows that a promotion changes.
struct Promoted {
    snapshots: Vec<OverallSnapshot>,
    volumes: Vec<Volume>,
    exports: Vec<ExportRow>,
}

impl Promoted {
    fn plan(
        catalog: &Catalog,
        clone: &Volume,
        origin: Origin,
        path: BTreeSet<Knot>,
        path_of_source: BTreeSet<Knot>,
    ) -> Result<Self> {
        let family = Family {
            clone: clone.id,
            origins: catalog
                .volumes()
                .map(|volume| (volume.id, volume.origin))
                .collect(),
            path,
            path_of_source,
            #[cfg(feature = "planted-bugs")]
            planted_bug: None,
        };
        let snapshots = catalog
            .snapshots_of(origin.volume)
            .chain(catalog.snapshots_of(clone.id));
        let members = snapshots.flat_map(|snapshot| {
            snapshot.volumes.iter().map(|of| Member {
                knot: (of.volume, snapshot.snapshot),
                owner: of.owner,
            })
        });
        let promotion = family
            .promote(members)
            .expect("the caller saw that it is a clone");
        let mut snapshots: Vec<OverallSnapshot> = Vec::with_capacity(promotion.goes_over.len());
        for &(shares, id) in &promotion.goes_over {
            let mut row = match snapshots.pop_if(|row| row.snapshot == id) {
                Some(row) => row,
                None => catalog
                    .snapshot_by_id(id)
                    .expect("a snapshot of the catalog")
                    .clone(),
            };
            if catalog.snapshot(clone.id, &row.name).is_some() {
                return Err(Error::conflict(format!(
                    "{}@{} exists already, and the snapshot of that name would go over to it",
                    clone.name, row.name
                ))
                .hint("delete one of the two"));
            }
            let of = row.volumes.iter_mut().find(|of| of.volume == shares);
            of.expect("one of its volumes").owner = clone.id;
            snapshots.push(row);
        }
        let volumes = promotion.origins.into_iter().map(|(id, origin)| Volume {
            origin,
            ..catalog.volume_by_id(id).expect("a volume of the catalog").clone()
        });
        let volumes = volumes.collect();
        let went = |id: SnapshotId| promotion.goes_over.iter().any(|&(_, snapshot)| snapshot == id);
        let shown = |view: View| view.volume == origin.volume && view.snapshot.is_some_and(went);
        let exports = catalog.exports().filter(|export| shown(export.view)).cloned();
        let exports = exports.map(|mut export| {
            export.view.volume = clone.id;
            export
        });
        Ok(Self {
            exports: exports.collect(),
            snapshots,
            volumes,
        })
    }

    /// An export without its view would be removed when the pool is opened: the exports go with their snapshots.
    fn changes(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for snapshot in &self.snapshots {
            changes.push(Change::put_snapshot(snapshot));
            let of_it = |export: &&ExportRow| export.view.snapshot == Some(snapshot.snapshot);
            changes.extend(self.exports.iter().filter(of_it).map(Change::put_export));
        }
        changes.extend(self.volumes.iter().map(Change::put_volume));
        changes
    }

    fn apply(self, catalog: &mut Catalog) {
        self.snapshots
            .into_iter()
            .for_each(|snapshot| catalog.put_snapshot(snapshot));
        self.exports
            .into_iter()
            .for_each(|export| catalog.put_export(export));
        self.volumes
            .into_iter()
            .for_each(|volume| catalog.put_volume(volume));
    }
}
