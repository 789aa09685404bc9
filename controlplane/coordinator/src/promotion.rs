//! Promotion: a clone takes over the snapshots that it and its origin have in common. Nothing moves on the shards; what
//! changes is whose snapshots they are, and which volume counts as a clone of which.
//!
//! The rows are written one by one, in this order, and a crash may come between any two of them: the snapshots' (oldest
//! first), those of volumes, the clone's own last. As long as that one is missing the clone is still a clone, and
//! promoting it again does what is left: what went over already is seen by who owns it.

use std::collections::{BTreeMap, BTreeSet};

use stillpoint_processor::{SnapshotId, VolumeId};

/// The shares and the number of an intermediate snapshot.
pub type Knot = (VolumeId, SnapshotId);

/// The snapshot that a volume was cloned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The volume whose snapshot it is.
    pub volume: VolumeId,
    /// Its snapshot; it may have been deleted since.
    pub snapshot: SnapshotId,
}

/// A volume in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The shares that were cut, and the snapshot.
    pub knot: Knot,
    /// The volume whose snapshot it is.
    pub owner: VolumeId,
}

/// A clone that is to be promoted, and its family.
#[derive(Clone, Debug)]
pub struct Family {
    /// The clone.
    pub clone: VolumeId,
    /// Of every volume of the pool, what it was cloned from.
    pub origins: BTreeMap<VolumeId, Option<Origin>>,
    /// The intermediate snapshots that the clone's live map descends from.
    pub path: BTreeSet<Knot>,
    /// The same of the volume that it was cloned from; empty if that is gone.
    pub path_of_source: BTreeSet<Knot>,
    /// The bug planted here, if one is.
    #[cfg(feature = "planted-bugs")]
    pub planted_bug: Option<stillpoint_processor::PlantedBug>,
}

/// What a promotion changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promotion {
    /// What becomes the clone's, by snapshot.
    pub goes_over: Vec<Knot>,
    /// Volumes with another origin than before, the clone last.
    pub origins: Vec<(VolumeId, Option<Origin>)>,
}

impl Family {
    /// What promoting the clone changes; `None` if it is no clone. `members`: at least all snapshots of the clone and of the
    /// volume that it was cloned from.
    #[must_use]
    pub fn promote(&self, members: impl IntoIterator<Item = Member>) -> Option<Promotion> {
        let origin = self.origin_of(self.clone)?;
        let (mut goes_over, mut of_clone) = (Vec::new(), BTreeSet::new());
        let mut last_common = None;
        for Member { knot, owner } in members {
            let is_common = self.is_on_path(knot);
            if owner == origin.volume && is_common {
                goes_over.push(knot);
            } else if owner != self.clone {
                continue;
            }
            of_clone.insert(knot.1);
            if is_common && self.path_of_source.contains(&knot) {
                last_common = last_common.max(Some(knot.1));
            }
        }
        goes_over.sort_by_key(|&(shares, snapshot)| (snapshot, shares));
        goes_over.dedup();
        let becomes = |volume: VolumeId, before: Option<Origin>| {
            let from_source =
                before.filter(|of| of.volume == origin.volume && of_clone.contains(&of.snapshot));
            let snapshot = match (volume == origin.volume, last_common) {
                (true, Some(snapshot)) => Some(snapshot),
                _ => from_source.map(|of| of.snapshot),
            };
            let clone = self.clone;
            snapshot.map(|snapshot| Origin {
                volume: clone,
                snapshot,
            })
        };
        let others = self.origins.iter().filter(|(id, _)| **id != self.clone);
        let mut origins: Vec<(VolumeId, Option<Origin>)> = others
            .filter_map(|(&id, &before)| Some((id, Some(becomes(id, before)?))))
            .collect();
        // A promotion that a crash interrupted may have come so far that the source is a clone of this one.
        let of_source = self.origin_of(origin.volume);
        origins.push((self.clone, of_source.filter(|of| of.volume != self.clone)));
        Some(Promotion { goes_over, origins })
    }

    fn origin_of(&self, volume: VolumeId) -> Option<Origin> {
        self.origins.get(&volume).copied().flatten()
    }

    fn is_on_path(&self, knot: Knot) -> bool {
        #[cfg(feature = "planted-bugs")]
        if self.planted_bug == Some(stillpoint_processor::PlantedBug::PromotionTakesEverything) {
            return true;
        }
        self.path.contains(&knot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: VolumeId = VolumeId(1);
    const CLONE: VolumeId = VolumeId(2);
    const OTHER: VolumeId = VolumeId(3);

    fn origin(volume: VolumeId, snapshot: u64) -> Option<Origin> {
        let snapshot = SnapshotId(snapshot);
        Some(Origin { volume, snapshot })
    }

    fn knot(volume: VolumeId, snapshot: u64) -> Knot {
        (volume, SnapshotId(snapshot))
    }

    /// Volume 1 has the snapshots 1 to 4; volume 2 was cloned from 2 and has snapshot 5, volume 3 was cloned from 1.
    fn family() -> (Family, Vec<Member>) {
        let of_source = (1..=4).map(|snapshot| (knot(SOURCE, snapshot), SOURCE));
        let all = of_source.chain([(knot(CLONE, 5), CLONE)]);
        let members = all.map(|(knot, owner)| Member { knot, owner }).collect();
        let family = Family {
            clone: CLONE,
            origins: BTreeMap::from([
                (SOURCE, origin(VolumeId(9), 7)),
                (CLONE, origin(SOURCE, 2)),
                (OTHER, origin(SOURCE, 1)),
            ]),
            path: BTreeSet::from([knot(CLONE, 5), knot(SOURCE, 1), knot(SOURCE, 2)]),
            path_of_source: (1..=4).map(|snapshot| knot(SOURCE, snapshot)).collect(),
            #[cfg(feature = "planted-bugs")]
            planted_bug: None,
        };
        (family, members)
    }

    /// As if the first rows had been written.
    fn write(family: &mut Family, members: &mut [Member], promotion: &Promotion, rows: usize) {
        for over in promotion.goes_over.iter().take(rows) {
            let member = members.iter_mut().find(|member| member.knot == *over);
            member.expect("one of the family's").owner = CLONE;
        }
        let rows = rows.saturating_sub(promotion.goes_over.len());
        for (volume, origin) in promotion.origins.iter().take(rows) {
            family.origins.insert(*volume, *origin);
        }
    }

    #[test]
    fn what_both_have_goes_over_and_the_roles_are_exchanged() {
        let (family, members) = family();
        let promotion = family.promote(members).expect("a clone");
        assert_eq!(promotion.goes_over, [knot(SOURCE, 1), knot(SOURCE, 2)]);
        let origins = [
            (SOURCE, origin(CLONE, 2)),
            (OTHER, origin(CLONE, 1)),
            (CLONE, origin(VolumeId(9), 7)),
        ];
        assert_eq!(promotion.origins, origins);
    }

    #[test]
    fn wherever_a_promotion_stops_the_next_one_does_the_rest() {
        let (mut whole, mut all) = family();
        let promotion = whole.promote(all.clone()).expect("a clone");
        let rows = promotion.goes_over.len() + promotion.origins.len();
        write(&mut whole, &mut all, &promotion, rows);
        for stop in 0..rows {
            let (mut family, mut members) = family();
            write(&mut family, &mut members, &promotion, stop);
            let rest = family.promote(members.clone()).expect("still a clone");
            write(&mut family, &mut members, &rest, rows);
            assert_eq!(members, all, "stopped after {stop} rows");
            for (volume, origin) in &whole.origins {
                // What the source was cloned from is known no longer once its own row says something else.
                let is_forgotten = *volume == CLONE && stop > promotion.goes_over.len();
                let expected = if is_forgotten { None } else { *origin };
                assert_eq!(family.origins[volume], expected, "stopped after {stop} rows");
            }
        }
    }

    #[test]
    fn the_clone_of_a_volume_that_is_gone_becomes_a_volume_of_its_own() {
        let (mut family, _) = family();
        family.origins.remove(&SOURCE);
        family.path_of_source.clear();
        let own = Member {
            knot: knot(CLONE, 5),
            owner: CLONE,
        };
        let promotion = family.promote([own]).expect("a clone");
        assert_eq!(
            (promotion.goes_over, promotion.origins),
            (Vec::new(), vec![(CLONE, None)])
        );
    }

    #[test]
    fn a_volume_that_is_no_clone_is_not_promoted() {
        let (mut family, members) = family();
        family.origins.insert(CLONE, None);
        assert_eq!(family.promote(members), None);
    }
}
