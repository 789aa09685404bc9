//! How the shares of a shard descend from each other.
//!
//! ```text
//! share 1:  s1 ── s2 ── s3 ── live            s1 is before s2; share 4 was made of s2 (a clone, or a rollback);
//!                  └─ share 4:  s5 ── live     what share 4 shares with share 1, s2 has too
//! ```
//! Intermediate snapshots are the knots of a tree and live maps its ends. A block (or map page) is made in one map and
//! inherited by what is made of it, until it is replaced. So the maps that have it at its position hang together: whether
//! anything else has what a knot has can be told from its neighbours alone (`shard/reclaim`), if a knot goes only when
//! no more than one map was made of it.
//!
//! Invariants:
//! - the origin of a share is there, is of the same family, and lists the share among its `clones`;
//! - epochs go up from an origin to what was made of it.

use std::collections::BTreeMap;

use crate::change_log::ChangeLog;
use crate::ids::{Epoch, SnapshotId, VolumeId};
use crate::intermediate_snapshot::IntermediateSnapshot;
use crate::map::{Passed, Root};
use crate::virtual_volume::VirtualVolume;

/// All shares of a shard.
pub type Shares = BTreeMap<VolumeId, VirtualVolume>;

/// The intermediate snapshot of another share at which the chain of a share begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The other share.
    pub volume: VolumeId,
    /// Its intermediate snapshot.
    pub snapshot: SnapshotId,
    /// The last epoch that the snapshot holds.
    pub epoch: Epoch,
    /// How far the walk has come that frees the snapshot.
    pub passed: Option<Passed>,
}

/// A map of a share: the live one, or that of a snapshot, by its position in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knot {
    /// The live map.
    Live,
    /// A snapshot.
    Snapshot(usize),
}

/// What a map was made of; `None` if it was the first.
#[must_use]
pub fn parent<'a>(
    shares: &'a Shares,
    share: &'a VirtualVolume,
    knot: Knot,
) -> Option<&'a IntermediateSnapshot> {
    let position = match knot {
        Knot::Live => share.snapshots.len(),
        Knot::Snapshot(position) => position,
    };
    match position.checked_sub(1) {
        Some(before) => Some(&share.snapshots[before]),
        None => share.origin.map(|origin| origin_of(shares, &origin)),
    }
}

/// How many maps were made of a snapshot and are still there.
#[must_use]
pub fn children(share: &VirtualVolume, position: usize) -> usize {
    let goes_on = position + 1 < share.snapshots.len() || !share.is_headless();
    share.snapshots[position].clones.len() + usize::from(goes_on)
}

/// The root of the map that was made of a snapshot, which has one child at most.
#[must_use]
pub fn only_child(shares: &Shares, share: &VirtualVolume, position: usize) -> Option<Root> {
    assert!(children(share, position) <= 1, "a knot of a branch");
    if let Some(next) = share.snapshots.get(position + 1) {
        return Some(next.copy.root);
    }
    if let Some(clone) = share.snapshots[position].clones.first() {
        let clone = &shares[clone];
        return Some(
            clone
                .snapshots
                .first()
                .map_or(clone.root, |first| first.copy.root),
        );
    }
    (!share.is_headless()).then_some(share.root)
}

/// Adds a share that begins as an intermediate snapshot is.
///
/// # Errors
/// What is wrong: the number is taken, the snapshot is not there or is to be freed.
pub fn clone(
    shares: &mut Shares,
    volume: VolumeId,
    origin: VolumeId,
    snapshot: SnapshotId,
) -> Result<(), &'static str> {
    if shares.contains_key(&volume) {
        return Err("clones to a volume that is there");
    }
    let share = shares
        .get_mut(&origin)
        .ok_or("clones a volume that is not there")?;
    let position = share.snapshots.position(snapshot);
    let position = position.ok_or("clones a snapshot that is not there")?;
    if share.is_to_be_freed(position) {
        return Err("clones a snapshot that is to be freed");
    }
    let family = share.family;
    share.snapshots.clones(position).push(volume);
    let copy = share.snapshots[position].copy;
    let mut made = VirtualVolume::new(volume, family, copy.share_blocks);
    made.epoch = copy.epoch.next();
    made.root = copy.root;
    made.stats.mapped_blocks = copy.mapped_blocks;
    made.origin = Some(Origin {
        volume: origin,
        snapshot,
        epoch: copy.epoch,
        passed: None,
    });
    shares.insert(volume, made);
    Ok(())
}

/// Enters every share at its origin, after all were loaded.
///
/// # Errors
/// What is wrong with a share.
pub fn link(shares: &mut Shares) -> Result<(), &'static str> {
    let origins: Vec<(VolumeId, VolumeId, Origin)> = shares
        .values()
        .filter_map(|share| Some((share.id, share.family, share.origin?)))
        .collect();
    for (volume, family, origin) in origins {
        let share = shares.get_mut(&origin.volume).ok_or("origin of a volume")?;
        let position = share.snapshots.position(origin.snapshot);
        let position = position.ok_or("origin of a volume")?;
        if share.family != family {
            return Err("family of a volume");
        }
        share.snapshots.clones(position).push(volume);
        let epoch = share.snapshots[position].copy.epoch;
        let made = shares.get_mut(&volume).expect("listed above");
        let first = made
            .snapshots
            .first()
            .map_or(made.epoch, |first| first.copy.epoch);
        if first <= epoch {
            return Err("epoch of a volume");
        }
        made.origin = Some(Origin { epoch, ..origin });
        note_walk(shares, origin.volume, position);
    }
    Ok(())
}

/// Tells the share that was made of a snapshot how far the walk has come that frees the snapshot.
pub fn note_walk(shares: &mut Shares, volume: VolumeId, position: usize) {
    let share = &shares[&volume];
    let walked = &share.snapshots[position];
    if walked.cursor_leaf == 0 {
        return;
    }
    let passed = Passed {
        cursor_leaf: walked.cursor_leaf,
        newest: parent(shares, share, Knot::Snapshot(position)).map(|before| before.copy.epoch),
    };
    for clone in walked.clones.clone() {
        let clone = shares.get_mut(&clone).expect("a clone is there");
        if let Some(origin) = &mut clone.origin {
            origin.passed = Some(passed);
        }
    }
}

/// Takes a freed snapshot out. What was made of it follows what it was made of, and takes over its change log.
pub fn remove_snapshot(shares: &mut Shares, volume: VolumeId, snapshot: SnapshotId) {
    let share = shares.get_mut(&volume).expect("a freed snapshot has a share");
    let Some(position) = share.snapshots.position(snapshot) else {
        return;
    };
    assert!(children(share, position) <= 1, "a knot of a branch was freed");
    let before = match position.checked_sub(1) {
        Some(before) => {
            let found = &share.snapshots[before];
            Some(Origin {
                volume,
                snapshot: found.snapshot,
                epoch: found.copy.epoch,
                passed: None,
            })
        }
        None => share.origin,
    };
    let removed = share.snapshots.remove(position);
    match removed.clones.first() {
        None => share.absorb(position, removed.before),
        Some(&clone) => {
            let made = shares.get_mut(&clone).expect("a clone is there");
            made.absorb(0, removed.before);
            made.origin = before;
            made.dirty = true;
            if let Some(before) = before {
                enter(shares, &before, clone);
            }
        }
    }
}

/// Takes a share out that has no map any more.
pub fn remove_share(shares: &mut Shares, volume: VolumeId) {
    let share = shares.remove(&volume).expect("a freed share is there");
    assert!(
        share.snapshots.is_empty() && share.is_headless(),
        "a share with a map was freed"
    );
    if let Some(origin) = share.origin
        && let Some(of) = shares.get_mut(&origin.volume)
        && let Some(position) = of.snapshots.position(origin.snapshot)
    {
        of.snapshots.clones(position).retain(|&clone| clone != volume);
    }
}

fn origin_of<'a>(shares: &'a Shares, origin: &Origin) -> &'a IntermediateSnapshot {
    let share = &shares[&origin.volume];
    let position = share.snapshots.position(origin.snapshot);
    &share.snapshots[position.expect("an origin stays as long as something was made of it")]
}

fn enter(shares: &mut Shares, origin: &Origin, clone: VolumeId) {
    let share = shares.get_mut(&origin.volume).expect("an origin is there");
    let position = share.snapshots.position(origin.snapshot);
    let position = position.expect("an origin is there");
    share.snapshots.clones(position).push(clone);
}

impl VirtualVolume {
    /// Takes over the change log of a snapshot that is gone: by the snapshot that is now at its position, or by the live
    /// map.
    fn absorb(&mut self, position: usize, older: ChangeLog) {
        if position < self.snapshots.len() {
            self.snapshots.change(position).before.absorb_older(older);
        } else if !self.is_headless() {
            let mut log = ChangeLog {
                changed_blocks: self.stats.changed_blocks,
                ..self.changes
            };
            log.absorb_older(older);
            self.stats.changed_blocks = log.changed_blocks;
            self.changes = log;
            self.dirty = true;
        }
    }
}
