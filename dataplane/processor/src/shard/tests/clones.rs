//! Shares that were made of snapshots, and what becomes of the snapshots.

use std::collections::BTreeMap;

use super::rig::{BLOCK, LIVE, Pool, Rig, VOLUME};
use super::*;
use crate::ids::{SnapshotId, TimeStamp};
use crate::request::View;

const CLONE: VolumeId = VolumeId(2);

fn live(volume: u32) -> View {
    View {
        volume: VolumeId(volume),
        snapshot: None,
    }
}

impl Rig {
    fn cut(&mut self, volume: VolumeId, number: u64) -> View {
        let snapshot = SnapshotId(number);
        let volumes = vec![volume];
        let prepare = ShardCommand::Prepare { snapshot, volumes };
        assert_eq!(self.command(prepare), EventKind::Prepared);
        let cut = ShardCommand::Cut {
            snapshot,
            time_stamp: TimeStamp(number),
            deadline_ns: u64::MAX,
        };
        assert_eq!(self.command(cut), EventKind::Taken);
        self.command(ShardCommand::Release { snapshot });
        assert_eq!(
            self.command(ShardCommand::Persist { snapshot }),
            EventKind::Durable
        );
        View {
            volume,
            snapshot: Some(snapshot),
        }
    }

    fn clone_of(&mut self, view: View, volume: VolumeId) -> EventKind {
        self.command(ShardCommand::CloneVolume {
            volume,
            origin: view.volume,
            snapshot: view.snapshot.expect("a snapshot"),
        })
    }

    fn put(&mut self, volume: u32, block: usize, stamp: u8) {
        let answer = self.ask(
            live(volume),
            RequestKind::Write { fua: false },
            block * BLOCK,
            BLOCK,
            Some(&[stamp; BLOCK]),
        );
        assert_eq!(answer.result, Ok(()));
    }

    fn delete(&mut self, view: View) {
        let delete = match view.snapshot {
            Some(snapshot) => ShardCommand::DeleteSnapshot {
                volume: view.volume,
                snapshot,
            },
            None => ShardCommand::DeleteHead { volume: view.volume },
        };
        assert_eq!(self.command(delete), EventKind::Done);
    }

    /// Every block is used once or free, and every checksum right.
    fn assert_sound(self) -> Self {
        let (layout, options) = (self.layout.clone(), self.options);
        let (mut device, mut shards) = self.processor.into_parts(&mut Pool::default());
        device.done.clear();
        device.waiting.clear();
        let tail = shards.pop().expect("one shard").into_tail();
        let mut rig = Self::open(layout, device, tail, options);
        rig.settle();
        assert_eq!(rig.command(ShardCommand::Checkpoint), EventKind::Done);
        rig.settle();
        let (layout, options) = (rig.layout.clone(), rig.options);
        let (mut device, mut shards) = rig.processor.into_parts(&mut Pool::default());
        let report = shards[0].check(&mut device, true);
        assert!(report.is_clean(), "{:?}", report.problems);
        let tail = shards.pop().expect("one shard").into_tail();
        Self::open(layout, device, tail, options)
    }
}

#[test]
fn a_clone_begins_as_the_snapshot_is_and_goes_its_own_way() {
    let mut rig = Rig::new(64 << 20);
    rig.put(1, 0, 1);
    rig.put(1, 300, 1);
    let snapshot = rig.snapshot(1);
    rig.put(1, 0, 2);
    let before = rig.used_blocks();
    assert_eq!(rig.clone_of(snapshot, CLONE), EventKind::Done);
    assert_eq!(rig.clone_of(snapshot, CLONE), EventKind::Done, "asked twice");
    assert_eq!(rig.used_blocks(), before, "nothing is copied");
    rig.put(2, 300, 3);
    rig = rig.assert_sound();
    assert_eq!(rig.read(live(2), 0, BLOCK), [1; BLOCK]);
    assert_eq!(rig.read(live(2), 300 * BLOCK, BLOCK), [3; BLOCK]);
    assert_eq!(rig.read(snapshot, 300 * BLOCK, BLOCK), [1; BLOCK]);
    assert_eq!(rig.read(LIVE, 0, BLOCK), [2; BLOCK]);
    let status = &rig.processor.shards()[0].status().volumes[1];
    assert_eq!(status.origin, Some((VOLUME, SnapshotId(1))));
}

#[test]
fn only_a_snapshot_that_is_there_can_be_cloned() {
    let mut rig = Rig::new(64 << 20);
    let snapshot = rig.snapshot(1);
    let none = EventKind::Failed(RequestError::NotFound);
    let other = View {
        snapshot: Some(SnapshotId(7)),
        ..snapshot
    };
    assert_eq!(rig.clone_of(other, CLONE), none);
    rig.delete(snapshot);
    assert_eq!(rig.clone_of(snapshot, CLONE), none);
    assert_eq!(
        rig.clone_of(
            View {
                volume: CLONE,
                ..snapshot
            },
            CLONE
        ),
        none
    );
}

#[test]
fn a_snapshot_with_a_clone_goes_when_one_of_the_two_is_left() {
    for clone_stays in [false, true] {
        let mut rig = Rig::new(64 << 20);
        let baseline = rig.used_blocks();
        for block in 0..40 {
            rig.put(1, block * 50, 1);
        }
        let snapshot = rig.snapshot(1);
        assert_eq!(rig.clone_of(snapshot, CLONE), EventKind::Done);
        for block in 0..20 {
            rig.put(1, block * 50, 2);
            rig.put(2, block * 50, 3);
        }
        rig.delete(snapshot);
        rig.settle();
        rig = rig.assert_sound();
        let waits = rig.processor.shards()[0].status().volumes[0].snapshots;
        assert_eq!(waits, 1, "two maps were made of it");
        rig.delete(live(if clone_stays { 1 } else { 2 }));
        rig.settle();
        rig = rig.assert_sound();
        let volumes = rig.processor.shards()[0].status().volumes;
        assert_eq!(volumes.len(), 1);
        assert_eq!((volumes[0].snapshots, volumes[0].origin), (0, None));
        let (left, stamp) = if clone_stays { (2, 3) } else { (1, 2) };
        assert_eq!(rig.read(live(left), 19 * 50 * BLOCK, BLOCK), [stamp; BLOCK]);
        assert_eq!(rig.read(live(left), 20 * 50 * BLOCK, BLOCK), [1; BLOCK]);
        // Overwriting everything frees everything older.
        for block in 0..40 {
            rig.put(left, block * 50, 9);
        }
        rig.delete(live(left));
        rig.settle();
        rig = rig.assert_sound();
        assert!(rig.used_blocks() <= baseline);
    }
}

#[test]
fn a_share_without_a_live_map_counts_no_blocks_for_it() {
    let mut rig = Rig::new(64 << 20);
    rig.put(1, 0, 1);
    rig.snapshot(1);
    rig.put(1, 1, 2);
    rig.delete(live(1));
    rig.settle();
    let share = rig.processor.shards()[0].status().volumes[0];
    assert_eq!((share.headless, share.mapped_blocks), (true, 0));
}

/// So many that a walk over them takes many turns.
const LEAVES: usize = 120;
const SLOTS: usize = 2;

/// What a volume or snapshot has to show: block and stamp.
type Content = BTreeMap<usize, u8>;

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.below(all.len())])
    }
}

struct World {
    rig: Option<Rig>,
    random: Random,
    views: BTreeMap<(u32, Option<u64>), Content>,
    next: u32,
}

impl World {
    fn rig(&mut self) -> &mut Rig {
        self.rig.as_mut().expect("between two kills")
    }

    fn pick(&mut self, snapshots: bool) -> Option<(u32, Option<u64>)> {
        let fit = |view: &&(u32, Option<u64>)| view.1.is_some() == snapshots;
        let all: Vec<_> = self.views.keys().filter(fit).copied().collect();
        self.random.of(&all)
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=9 => (0..8).for_each(|_| self.change()),
            10 | 11 => self.cut(),
            12 | 13 => self.make_clone(),
            14 | 15 => self.delete(true),
            16 => self.delete(false),
            17 => {
                let turns = self.random.below(40);
                (0..turns).for_each(|_| self.rig().turn());
            }
            18 => {
                self.rig().command(ShardCommand::Checkpoint);
            }
            _ => {
                let rig = self.rig.take().expect("a rig");
                self.rig = Some(rig.kill());
            }
        }
    }

    fn change(&mut self) {
        let Some(view) = self.pick(false) else { return };
        let block = self.random.below(LEAVES) * 256 + self.random.below(SLOTS);
        let stamp = self.random.below(255) as u8 + 1;
        if self.random.below(4) == 0 {
            let kind = RequestKind::Discard { fua: false };
            let answer = self.rig().ask(live(view.0), kind, block * BLOCK, BLOCK, None);
            assert_eq!(answer.result, Ok(()));
            self.views.get_mut(&view).expect("picked").remove(&block);
        } else {
            self.rig().put(view.0, block, stamp);
            self.views.get_mut(&view).expect("picked").insert(block, stamp);
        }
    }

    fn cut(&mut self) {
        let Some(view) = self.pick(false) else { return };
        self.next += 1;
        let number = u64::from(self.next);
        self.rig().cut(VolumeId(view.0), number);
        let content = self.views[&view].clone();
        self.views.insert((view.0, Some(number)), content);
    }

    fn make_clone(&mut self) {
        let Some(view) = self.pick(true) else { return };
        self.next += 1;
        let volume = self.next;
        let done = self.rig().clone_of(view_of(view), VolumeId(volume));
        assert_eq!(done, EventKind::Done);
        let content = self.views[&view].clone();
        self.views.insert((volume, None), content);
    }

    fn delete(&mut self, snapshot: bool) {
        let Some(view) = self.pick(snapshot) else { return };
        self.views.remove(&view);
        self.rig().delete(view_of(view));
    }

    fn compare(&mut self) {
        let views = self.views.clone();
        for (view, content) in views {
            for leaf in 0..LEAVES {
                let found = self.rig().read(view_of(view), leaf * 256 * BLOCK, SLOTS * BLOCK);
                for (slot, bytes) in found.chunks_exact(BLOCK).enumerate() {
                    let expected = content.get(&(leaf * 256 + slot)).copied().unwrap_or(0);
                    assert_eq!(bytes, [expected; BLOCK], "{view:?} block {}", leaf * 256 + slot);
                }
            }
        }
    }
}

fn view_of((volume, snapshot): (u32, Option<u64>)) -> View {
    View {
        volume: VolumeId(volume),
        snapshot: snapshot.map(SnapshotId),
    }
}

#[test]
fn any_tree_of_clones_keeps_every_content_and_leaks_nothing() {
    for seed in 1..=60u64 {
        let mut rig = Rig::new(32 << 20);
        let baseline = rig.used_blocks();
        let mut world = World {
            rig: Some(rig),
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            views: BTreeMap::from([((1, None), Content::new())]),
            next: 1,
        };
        for leaf in 0..LEAVES {
            world.rig().put(1, leaf * 256, 1);
            world.views.entry((1, None)).or_default().insert(leaf * 256, 1);
        }
        for _ in 0..4 {
            for _ in 0..40 {
                world.step();
            }
            world.compare();
            let rig = world.rig.take().expect("a rig");
            world.rig = Some(rig.assert_sound());
            world.compare();
        }
        while let Some((&view, _)) = world.views.iter().next() {
            world.views.remove(&view);
            world.rig().delete(view_of(view));
        }
        world.rig().settle();
        let mut rig = world.rig.take().expect("a rig").assert_sound();
        assert!(
            rig.used_blocks() <= baseline,
            "seed {seed}: everything was deleted"
        );
        let status = rig.processor.shards()[0].status();
        assert!(status.volumes.is_empty(), "seed {seed}: {:?}", status.volumes);
    }
}
