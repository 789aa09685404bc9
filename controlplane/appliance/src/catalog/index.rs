//! The snapshots of each volume by name, where sessions may look too.
//!
//! Sessions look while a client negotiates, from the poll loops; so they never wait: whoever finds the names being changed
//! looks again in the next turn. A change is one entry, however many snapshots there are.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use stillpoint_coordinator::OverallSnapshot;
use stillpoint_export::{Busy, SnapshotNames};
use stillpoint_processor::{Base, SnapshotId, VolumeId};

type Names = BTreeMap<String, Base>;

/// The snapshots of one volume, as a session sees them: names, and where shards have them.
#[derive(Clone, Debug, Default)]
pub struct VolumeSnapshots {
    names: Arc<RwLock<Names>>,
}

impl VolumeSnapshots {
    fn change(&self) -> RwLockWriteGuard<'_, Names> {
        // One entry at a time: nothing is half done after a panic.
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> Result<RwLockReadGuard<'_, Names>, Busy> {
        match self.names.try_read() {
            Ok(names) => Ok(names),
            Err(TryLockError::Poisoned(names)) => Ok(names.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Busy),
        }
    }
}

impl SnapshotNames for VolumeSnapshots {
    fn find(&self, name: &str) -> Result<Option<Base>, Busy> {
        Ok(self.look()?.get(name).copied())
    }

    fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, Busy> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.look()?;
        let rest = names.range::<str, _>((from, Bound::Unbounded));
        Ok(rest.take(limit).map(|(name, _)| name.clone()).collect())
    }
}

/// The names of all snapshots of a catalog. It says what the catalog says, so that comparing catalogs leaves it out.
#[derive(Debug, Default)]
pub struct SnapshotIndex(BTreeMap<VolumeId, VolumeSnapshots>);

impl SnapshotIndex {
    /// Takes in a snapshot. If it was there already, as `old`, it stays there all the time.
    pub fn put(&mut self, snapshot: &OverallSnapshot, old: Option<&OverallSnapshot>) {
        for of in old.iter().flat_map(|old| &old.volumes) {
            if !super::has_volume(snapshot, of.owner) {
                self.of(of.owner).change().remove(&snapshot.name);
            }
        }
        for of in &snapshot.volumes {
            let base = Base {
                volume: of.volume,
                snapshot: snapshot.snapshot,
            };
            self.of(of.owner).change().insert(snapshot.name.clone(), base);
        }
    }

    /// Takes out a snapshot.
    pub fn remove(&mut self, snapshot: &OverallSnapshot) {
        for of in &snapshot.volumes {
            self.of(of.owner).change().remove(&snapshot.name);
        }
    }

    /// Forgets a volume.
    pub fn remove_volume(&mut self, volume: VolumeId) {
        self.0.remove(&volume);
    }

    /// The snapshot of a volume by its name.
    pub fn find(&self, volume: VolumeId, name: &str) -> Option<SnapshotId> {
        let names = self.0.get(&volume)?.names.read();
        let names = names.unwrap_or_else(PoisonError::into_inner);
        names.get(name).map(|base| base.snapshot)
    }

    /// The snapshots of a volume; shows what comes later too.
    pub fn of(&mut self, volume: VolumeId) -> &VolumeSnapshots {
        self.0.entry(volume).or_default()
    }
}

/// A copy goes its own way.
impl Clone for SnapshotIndex {
    fn clone(&self) -> Self {
        let copy = |(&volume, names): (&VolumeId, &VolumeSnapshots)| {
            let names = names.names.read().unwrap_or_else(PoisonError::into_inner).clone();
            let names = Arc::new(RwLock::new(names));
            (volume, VolumeSnapshots { names })
        };
        Self(self.0.iter().map(copy).collect())
    }
}

impl PartialEq for SnapshotIndex {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for SnapshotIndex {}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_coordinator::{Marks, SnapshotVolume, Written};
    use stillpoint_processor::TimeStamp;

    fn snapshot(number: u64, name: &str, volumes: &[u32]) -> OverallSnapshot {
        OverallSnapshot {
            snapshot: SnapshotId(number),
            name: name.to_owned(),
            time_stamp: TimeStamp(number),
            durable_ns: 0,
            volumes: volumes
                .iter()
                .map(|&volume| SnapshotVolume {
                    volume: VolumeId(volume),
                    owner: VolumeId(volume),
                    size_bytes: 4096,
                })
                .collect(),
            holds: Vec::new(),
            written: Written::default(),
            marks: Marks::default(),
        }
    }

    #[test]
    fn a_session_sees_what_came_after_it_had_begun_to_look() {
        let mut index = SnapshotIndex::default();
        let seen = index.of(VolumeId(1)).clone();
        assert_eq!(seen.find("a"), Ok(None));
        index.put(&snapshot(1, "a", &[1, 2]), None);
        index.put(&snapshot(2, "b", &[1]), None);
        index.put(&snapshot(3, "c", &[2]), None);
        let base = Base {
            volume: VolumeId(1),
            snapshot: SnapshotId(1),
        };
        assert_eq!(seen.find("a"), Ok(Some(base)));
        assert_eq!(seen.list(None, 9), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(seen.list(Some("a"), 9), Ok(vec!["b".to_owned()]));
        assert_eq!(seen.list(None, 1), Ok(vec!["a".to_owned()]));
        let copy = index.clone();
        index.remove(&snapshot(1, "a", &[1, 2]));
        assert_eq!(seen.list(None, 9), Ok(vec!["b".to_owned()]));
        assert_eq!(copy.0[&VolumeId(1)].find("a"), Ok(Some(base)));
        assert_eq!(index.of(VolumeId(2)).list(None, 9), Ok(vec!["c".to_owned()]));
        // A snapshot of a group without one of its volumes, which is being deleted.
        index.put(&snapshot(4, "g", &[1, 2]), None);
        index.put(&snapshot(4, "g", &[1]), Some(&snapshot(4, "g", &[1, 2])));
        assert_eq!(index.of(VolumeId(2)).find("g"), Ok(None));
        assert!(seen.find("g").is_ok_and(|found| found.is_some()));
    }

    #[test]
    fn a_session_does_not_wait_for_a_change() {
        let mut index = SnapshotIndex::default();
        index.put(&snapshot(1, "a", &[1]), None);
        let seen = index.of(VolumeId(1)).clone();
        let changing = seen.change();
        assert_eq!(seen.find("a"), Err(Busy));
        assert_eq!(seen.list(None, 1), Err(Busy));
        drop(changing);
        assert!(seen.find("a").expect("nobody changes it").is_some());
    }
}
