//! Comparing maps: the same as comparing what they hold, block by block, and cheaper.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{Content, FAMILY, Tree, World, tree};
use crate::ids::{ShardIndex, ShareBlock};
use crate::map::{Difference, FreeRule, MapError, PageCache, Root};

/// Blocks that hold something at the end of the longest map of these tests.
const END: u64 = 1 << 25;

fn held(by: &Tree) -> FreeRule {
    FreeRule {
        newest: Some(by.epoch),
        passed: None,
    }
}

impl World {
    fn difference(&mut self, map: &Root, base: &Root, block: u64) -> Difference {
        for _ in 0..1000 {
            match self.cache.difference_at(FAMILY, map, base, ShareBlock(block)) {
                Ok(difference) => return difference,
                Err(MapError::Miss(page)) => {
                    self.misses += 1;
                    super::world::serve(&mut self.cache, &self.device, &page);
                }
                Err(error) => panic!("a comparison ended in {error:?}"),
            }
        }
        panic!("a thousand misses");
    }

    /// All runs from block 0 on, and how many steps they took.
    fn differences(&mut self, map: &Root, base: &Root) -> (Vec<(u64, Difference)>, usize) {
        let (mut runs, mut at, mut steps) = (Vec::new(), 0, 0);
        while at < END {
            let run = self.difference(map, base, at);
            assert!(run.end > at, "a run has at least a block");
            steps += 1;
            if run.changed {
                runs.push((at, run));
            }
            at = run.end;
        }
        (runs, steps)
    }

    fn assert_differs_as(&mut self, map: &Tree, base: &Tree) {
        let address = |content: &Content, block| content.get(&block).map_or(0, |entry| entry.address.0);
        let (runs, _) = self.differences(&map.root, &base.root);
        let mut told = BTreeMap::new();
        for (first, run) in runs {
            let born = (first..run.end)
                .filter_map(|block| map.content.get(&block))
                .map(|e| e.birth);
            assert!(run.birth >= born.max().unwrap_or_default(), "what it saw counts");
            told.extend((first..run.end).map(|block| (block, run.hole)));
        }
        let blocks: BTreeSet<u64> = map.content.keys().chain(base.content.keys()).copied().collect();
        for block in blocks {
            let (now, then) = (address(&map.content, block), address(&base.content, block));
            let expected = (now != then).then_some(now == 0);
            assert_eq!(
                told.remove(&block),
                expected,
                "block {block}: {now} against {then}"
            );
        }
        assert_eq!(told.len(), 0, "what neither ever held has not changed");
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

#[test]
fn any_two_maps_of_a_history_differ_as_their_blocks_do() {
    for seed in 1..30u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // With few pages in memory most of them have to be read again and again.
        let mut world = World::new([32, 64, 512][seed as usize % 3], 40_000);
        let mut live = tree();
        let mut frozen: Vec<Tree> = vec![live.clone()];
        for _ in 0..40 {
            let free = held(frozen.last().expect("one"));
            // The tree grows while it goes on: roots of different levels are compared.
            let end = [300, 70_000, END][random.below(3) as usize];
            let first = random.below(end - 100);
            match random.below(8) {
                0..4 => assert!(world.set(&mut live, free, first, 1 + random.below(90) as u32)),
                4 => assert!(world.clear(&mut live, free, first, 1 + random.below(99), 8)),
                5 => assert!(world.clear(&mut live, free, first, END - first, 8)),
                6 => {
                    frozen.push(live.clone());
                    live.epoch = live.epoch.next();
                }
                _ => world.checkpoint(),
            }
        }
        frozen.push(live);
        for map in &frozen {
            for base in &frozen {
                world.assert_differs_as(map, base);
            }
        }
    }
}

#[test]
fn a_comparison_costs_what_changed_and_not_what_is_there() {
    let mut world = World::new(2048, 40_000);
    let mut live = tree();
    let nobody = FreeRule::default();
    for leaf in 0..1000 {
        assert!(world.set(&mut live, nobody, leaf * 32_000, 1));
    }
    let base = live.clone();
    live.epoch = live.epoch.next();
    let changes = [7 * 32_000, 500 * 32_000 + 3, 999 * 32_000];
    for block in changes {
        assert!(world.set(&mut live, held(&base), block, 1));
    }
    world.checkpoint();
    let generation = world.cache.open_generation();
    world.cache = PageCache::new(super::world::POOL, ShardIndex(0), 64, generation);
    world.misses = 0;
    let (runs, steps) = world.differences(&live.root, &base.root);
    assert_eq!(runs.iter().map(|(first, _)| *first).collect::<Vec<_>>(), changes);
    // In each of the two trees the root, and per change the three pages on the way to it; and the runs around it.
    assert!(
        world.misses <= 2 * (1 + 3 * changes.len() as u64),
        "{} pages",
        world.misses
    );
    assert!(steps <= 7 * changes.len() + 1, "{steps} steps");

    world.misses = 0;
    assert_eq!(world.differences(&base.root, &base.root), (Vec::new(), 1));
    assert_eq!(world.misses, 0, "the same map is the same without a look");
}
