//! Random changes, cuts, deletions and checkpoints against naive content, with a cache far too small.

use super::world::{Content, FAMILY, POOL, Tree, World, assert_agrees, serve, tree};
use crate::ids::{DeviceAddress, ShardIndex, ShareBlock};
use crate::map::{FreeRule, MapError, PageCache, Passed};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Where blocks are used: around the boundaries of leaves and levels.
const CLUSTERS: [u64; 5] = [0, 65_536 - 512, 65_536 * 3, (1 << 24) - 300, 5 << 24];
const CLUSTER_BLOCKS: u32 = 1024;

#[derive(Clone, Debug)]
enum Step {
    Set {
        cluster: usize,
        at: u64,
        blocks: u32,
    },
    Clear {
        cluster: usize,
        at: u64,
        blocks: u32,
        leaves: usize,
    },
    Cut,
    DeleteOlder {
        which: usize,
    },
    StartWalk,
    Walk {
        cluster: usize,
        leaves: u64,
    },
    EndWalk,
    Begin,
    Write {
        pages: usize,
    },
    Durable,
    Promote,
    Check {
        cluster: usize,
    },
    CheckDurable,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..CLUSTERS.len(), 0..700u64, 1..300u32);
    prop_oneof![
        10 => place().prop_map(|(cluster, at, blocks)| Step::Set { cluster, at, blocks }),
        6 => (place(), 1..4usize)
            .prop_map(|((cluster, at, blocks), leaves)| Step::Clear { cluster, at, blocks, leaves }),
        1 => (0..CLUSTERS.len()).prop_map(|cluster| Step::Clear { cluster, at: 0, blocks: 1024, leaves: 2 }),
        3 => Just(Step::Cut),
        2 => any::<usize>().prop_map(|which| Step::DeleteOlder { which }),
        2 => Just(Step::StartWalk),
        3 => (0..CLUSTERS.len(), 0..5u64).prop_map(|(cluster, leaves)| Step::Walk { cluster, leaves }),
        1 => Just(Step::EndWalk),
        2 => Just(Step::Begin),
        2 => (1..20usize).prop_map(|pages| Step::Write { pages }),
        2 => Just(Step::Durable),
        1 => Just(Step::Promote),
        3 => (0..CLUSTERS.len()).prop_map(|cluster| Step::Check { cluster }),
        1 => Just(Step::CheckDurable),
    ]
}

/// The newest snapshot, on its way out.
struct Walk {
    snapshot: Tree,
    cursor_leaf: u64,
}

struct Model {
    world: World,
    live: Tree,
    /// Oldest first.
    frozen: Vec<Tree>,
    walk: Option<Walk>,
    /// All trees as of the running and of the last durable checkpoint.
    closing: Vec<Tree>,
    durable: Vec<Tree>,
}

impl Model {
    fn new(capacity: usize) -> Self {
        Self {
            world: World::new(capacity, 60_000),
            live: tree(),
            frozen: Vec::new(),
            walk: None,
            closing: Vec::new(),
            durable: Vec::new(),
        }
    }

    fn rule(&self) -> FreeRule {
        let newest = self.frozen.last().map(|tree| tree.epoch);
        match &self.walk {
            None => FreeRule { newest, passed: None },
            Some(walk) => FreeRule {
                newest: Some(walk.snapshot.epoch),
                passed: Some(Passed {
                    cursor_leaf: walk.cursor_leaf,
                    newest,
                }),
            },
        }
    }

    /// Everything that must be kept, but for what `without` alone holds.
    fn kept(&mut self) -> BTreeMap<u64, u64> {
        let mut kept = self.world.reach(&self.live.root, 0);
        for tree in &self.frozen {
            kept.append(&mut self.world.reach(&tree.root, 0));
        }
        kept
    }

    /// Frees what only this tree holds, of what lies at `from_leaf` or after and before `end_leaf`.
    fn free_rest_of(&mut self, tree: &Tree, from_leaf: u64, end_leaf: u64) {
        let kept = self.kept();
        for (address, last_leaf) in self.world.reach(&tree.root, from_leaf) {
            if last_leaf < end_leaf && !kept.contains_key(&address) {
                self.world.space.free(DeviceAddress(address), 1);
                self.world.cache.forget(DeviceAddress(address));
            }
        }
    }

    fn walk_to(&mut self, end_leaf: u64) {
        if let Some(mut walk) = self.walk.take() {
            if end_leaf > walk.cursor_leaf {
                self.free_rest_of(&walk.snapshot, walk.cursor_leaf, end_leaf);
                walk.cursor_leaf = end_leaf;
            }
            self.walk = (end_leaf < u64::MAX).then_some(walk);
        }
    }

    fn begin(&mut self) {
        self.world.begin();
        self.closing = self.frozen.clone();
        self.closing.push(self.live.clone());
    }

    fn end_checkpoint(&mut self) {
        self.world.durable();
        self.durable = core::mem::take(&mut self.closing);
    }

    /// Changes may make checkpoints of their own, which this model would not know of: make room before.
    fn make_room(&mut self) {
        let dirty = self.world.cache.dirty_pages() + self.world.cache.closed_pages();
        if dirty + 24 + 16 < self.world.capacity {
            return;
        }
        if self.world.running {
            self.end_checkpoint();
        }
        self.begin();
        self.end_checkpoint();
    }

    fn apply(&mut self, step: &Step) {
        let rule = self.rule();
        match *step {
            Step::Set { cluster, at, blocks } => {
                self.make_room();
                self.world
                    .set(&mut self.live, rule, CLUSTERS[cluster] + at, blocks);
            }
            Step::Clear {
                cluster,
                at,
                blocks,
                leaves,
            } => {
                self.make_room();
                let first = CLUSTERS[cluster] + at;
                self.world
                    .clear(&mut self.live, rule, first, blocks.into(), leaves);
            }
            Step::Cut => {
                self.walk_to(u64::MAX);
                self.frozen.push(self.live.clone());
                self.live.epoch = self.live.epoch.next();
            }
            Step::DeleteOlder { which } if self.frozen.len() > 1 && self.walk.is_none() => {
                let tree = self.frozen.remove(which % (self.frozen.len() - 1));
                self.free_rest_of(&tree, 0, u64::MAX);
            }
            Step::StartWalk if self.walk.is_none() => {
                self.walk = self.frozen.pop().map(|snapshot| Walk {
                    snapshot,
                    cursor_leaf: 0,
                });
            }
            Step::Walk { cluster, leaves } => self.walk_to(CLUSTERS[cluster] / 256 + leaves),
            Step::EndWalk => self.walk_to(u64::MAX),
            Step::Begin if !self.world.running => self.begin(),
            Step::Write { pages } if self.world.running => {
                for _ in 0..pages {
                    self.world.write_one();
                }
            }
            Step::Durable if self.world.running => self.end_checkpoint(),
            Step::Promote => {
                self.world.space.promote_step(1);
            }
            Step::Check { cluster } => self.check_cluster(cluster),
            Step::CheckDurable => self.check_durable(),
            _ => {}
        }
    }

    fn check_cluster(&mut self, cluster: usize) {
        for tree in self.frozen.iter().chain([&self.live]) {
            let first = CLUSTERS[cluster];
            self.world
                .check(&tree.root, tree.epoch, &tree.content, first, CLUSTER_BLOCKS);
        }
    }

    /// What is on the device now is enough to read all trees of the last durable checkpoint.
    fn check_durable(&self) {
        let mut cache = PageCache::new(POOL, ShardIndex(0), 64, 1 << 33);
        for tree in &self.durable {
            for first in CLUSTERS {
                read_cold(&mut cache, &self.world.device, tree, first);
            }
        }
    }

    fn check_all(&mut self) {
        for cluster in 0..CLUSTERS.len() {
            self.check_cluster(cluster);
        }
        self.check_durable();
        let mapped = |content: &Content| content.values().filter(|e| !e.address.is_none()).count() as u64;
        assert_eq!(self.live.stats.mapped_blocks, mapped(&self.live.content));
        let mut kept = self.kept();
        if let Some(walk) = &self.walk {
            kept.append(&mut self.world.reach(&walk.snapshot.root, walk.cursor_leaf));
        }
        self.world.check_used(&kept);
    }
}

fn read_cold(cache: &mut PageCache, device: &BTreeMap<u64, Vec<u8>>, tree: &Tree, first: u64) {
    let mut found = Vec::new();
    for _ in 0..100 {
        match cache.lookup_run(FAMILY, &tree.root, ShareBlock(first), CLUSTER_BLOCKS, &mut found) {
            Ok(()) => {
                for (block, found) in (first..).zip(found) {
                    assert_agrees(block, found, tree.epoch, &tree.content);
                }
                return;
            }
            Err(MapError::Miss(page)) => serve(cache, device, &page),
            Err(error) => panic!("a lookup ended in {error:?}"),
        }
    }
    panic!("a hundred misses");
}

proptest! {
    #[test]
    fn every_tree_keeps_its_content_and_nothing_else_keeps_space(
        steps in prop::collection::vec(step(), 1..120),
        capacity in prop_oneof![Just(64usize), Just(100), Just(1000)],
    ) {
        let mut model = Model::new(capacity);
        for step in &steps {
            model.apply(step);
        }
        model.check_all();
        model.walk_to(u64::MAX);
        model.check_all();
        model.begin_and_end();
        model.check_all();
    }
}

impl Model {
    fn begin_and_end(&mut self) {
        if self.world.running {
            self.end_checkpoint();
        }
        self.begin();
        self.end_checkpoint();
        while !self.world.space.promote_step(1) {}
        let space = &self.world.space;
        assert_eq!(space.used_blocks() + space.free_blocks(), space.total_blocks());
    }
}
