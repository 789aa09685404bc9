use super::world::{FAMILY, World, tree};
use crate::ids::{DeviceAddress, Epoch, ShareBlock};
use crate::map::{Entry, FreeRule, MapError, Passed, Root};
use crate::space::Purpose;
use stillpoint_ondisk::page::Damage;
use zerocopy::little_endian::U32;

const NOBODY: FreeRule = FreeRule {
    newest: None,
    passed: None,
};

fn held_by(epoch: Epoch) -> FreeRule {
    FreeRule {
        newest: Some(epoch),
        passed: None,
    }
}

#[test]
fn an_empty_tree_is_a_hole_that_was_never_written() {
    let mut world = World::new(64, 4000);
    for block in [0, 255, 256, 1 << 30, (1 << 40) - 1] {
        assert_eq!(world.look_at(&Root::default(), block), Entry::default());
    }
    assert_eq!(world.look(&Root::default(), 250, 10), vec![Entry::default(); 10]);
    assert_eq!(world.cache.cached_pages(), 0);
}

#[test]
fn runs_cross_leaves_and_levels() {
    let mut world = World::new(64, 8000);
    let mut tree = tree();
    for (first, blocks) in [
        (0, 1),
        (250, 20),
        (65_500, 600),
        ((1 << 24) - 5, 10),
        ((1 << 32) - 5, 10),
    ] {
        assert!(world.set(&mut tree, NOBODY, first, blocks));
        let content = tree.content.clone();
        world.check(
            &tree.root,
            tree.epoch,
            &content,
            first.saturating_sub(300),
            blocks + 600,
        );
    }
    assert_eq!(tree.root.level, 4);
    assert_eq!(tree.stats.mapped_blocks, 641);
    for block in [0, 255, 65_536, 1 << 24, 1 << 32] {
        assert_eq!(
            world.look_at(&tree.root, block),
            tree.content.get(&block).copied().unwrap_or_default()
        );
    }
}

#[test]
fn a_page_is_changed_in_place_only_in_its_own_generation_and_epoch() {
    let mut world = World::new(64, 4000);
    let mut tree = tree();
    assert!(world.set(&mut tree, NOBODY, 0, 1));
    let first = tree.root;
    assert!(world.set(&mut tree, NOBODY, 1, 1));
    assert_eq!(
        (tree.root, world.cache.dirty_pages()),
        (first, 1),
        "same generation, same epoch"
    );
    world.begin();
    assert!(world.set(&mut tree, NOBODY, 2, 1));
    assert_ne!(tree.root, first, "the old page is being written");
    assert_eq!((world.cache.dirty_pages(), world.cache.closed_pages()), (1, 1));
    world.durable();
    let frozen = tree.clone();
    tree.epoch = tree.epoch.next();
    assert!(world.set(&mut tree, held_by(frozen.epoch), 0, 1));
    assert_ne!(tree.root, frozen.root, "a frozen root keeps its pages");
    assert_eq!(world.cache.dirty_pages(), 2, "both are still to be written");
    world.check(&frozen.root, frozen.epoch, &frozen.content, 0, 10);
    world.check(&tree.root, tree.epoch, &tree.content, 0, 10);
}

#[test]
fn a_page_that_nobody_holds_any_more_is_not_written() {
    let mut world = World::new(64, 4000);
    let mut tree = tree();
    for _ in 0..10 {
        assert!(world.set(&mut tree, NOBODY, 0, 3));
        // A cut that was aborted: the epoch is higher, but no snapshot holds the old one.
        tree.epoch = tree.epoch.next();
    }
    assert_eq!(world.cache.dirty_pages(), 1);
    let reached = world.reach(&tree.root, 0);
    world.check_used(&reached);
}

#[test]
fn a_checkpoint_writes_its_pages_although_they_were_freed_meanwhile() {
    let mut world = World::new(64, 4000);
    let mut tree = tree();
    assert!(world.set(&mut tree, NOBODY, 0, 3));
    let closed = tree.clone();
    world.begin();
    assert!(world.set(&mut tree, NOBODY, 0, 3));
    assert!(world.write_one());
    assert!(world.device.contains_key(&closed.root.entry.address()));
    world.durable();
    assert_eq!(
        world.cache.cached_pages(),
        1,
        "but nothing looks at them afterwards"
    );
}

#[test]
fn a_hole_keeps_its_birth_when_the_tree_grows() {
    let mut world = World::new(64, 4000);
    let mut tree = tree();
    assert!(world.set(&mut tree, NOBODY, 3, 1));
    tree.epoch = Epoch(7);
    assert!(world.clear(&mut tree, NOBODY, 0, 256, 1));
    assert_eq!((tree.root.entry.address(), tree.root.entry.birth.get()), (0, 7));
    tree.epoch = Epoch(9);
    assert!(world.set(&mut tree, NOBODY, 70_000, 1));
    assert_eq!(world.look_at(&tree.root, 3).birth, Epoch(7));
    assert_eq!(world.look_at(&tree.root, 256), Entry::default());
    assert!(world.set(&mut tree, NOBODY, 4, 1));
    assert_eq!(
        world.look_at(&tree.root, 3).birth,
        Epoch(7),
        "also when its leaf is made"
    );
}

#[test]
fn discarding_a_hole_changes_nothing() {
    let mut world = World::new(64, 4000);
    let mut tree = tree();
    assert!(world.set(&mut tree, NOBODY, 10, 1));
    world.checkpoint();
    let before = tree.clone();
    tree.epoch = tree.epoch.next();
    assert!(world.clear(&mut tree, NOBODY, 11, 1 << 35, 4));
    assert!(world.clear(&mut tree, NOBODY, 0, 10, 4));
    assert_eq!((tree.root, tree.stats), (before.root, before.stats));
    assert_eq!(world.cache.dirty_pages(), 0);
}

#[test]
fn discarding_skips_what_was_never_written_and_gives_everything_back() {
    let mut world = World::new(64, 8000);
    let mut tree = tree();
    for first in [0, 1 << 20, 1 << 33] {
        assert!(world.set(&mut tree, NOBODY, first, 600));
    }
    world.checkpoint();
    let mut calls = 0;
    let mut done = 0;
    while done < 1 << 40 {
        done += world
            .until_done(&mut tree, NOBODY, |cache, tree| {
                cache.clear_leaf_range(tree, ShareBlock(done), (1 << 40) - done, 1)
            })
            .unwrap();
        calls += 1;
    }
    assert!(calls < 1500, "{calls} steps");
    assert_eq!((tree.root.entry.address(), tree.stats.mapped_blocks), (0, 0));
    assert_eq!(world.space.used_blocks(), 0);
    world.checkpoint();
    assert_eq!(world.space.free_blocks(), world.space.total_blocks());
    assert_eq!(world.cache.cached_pages(), 0);
}

#[test]
fn without_space_a_run_over_two_leaves_changes_neither() {
    let mut world = World::new(64, 4000);
    let mut tree = tree();
    let frozen = {
        assert!(world.set(&mut tree, NOBODY, 200, 100));
        tree.epoch = tree.epoch.next();
        tree.clone()
    };
    let extent = world.space.reserve(100, Purpose::Data).unwrap();
    world.space.commit(extent);
    // Three pages are needed: root and two leaves. Leave room for fewer.
    for left in [0, 1, 2] {
        let mut taken = Vec::new();
        while world.space.free_blocks() > left {
            let blocks = (world.space.free_blocks() - left) as u32;
            taken.push(world.space.reserve(blocks, Purpose::Metadata).unwrap());
        }
        let crcs = vec![U32::new(1); 100];
        let tried = world.once(&mut tree, held_by(Epoch(1)), |cache, tree| {
            cache.set(tree, ShareBlock(200), extent.address, &crcs)
        });
        if left < 2 {
            assert_eq!(tried, Err(MapError::NoSpace));
            let content = tree.content.clone();
            world.check(&tree.root, tree.epoch, &content, 0, 600);
            assert_eq!(tree.stats, frozen.stats);
        } else {
            assert_eq!(tried, Ok(()), "what was copied before serves now");
            assert_eq!(world.look_at(&tree.root, 299).address, extent.address.plus(99));
        }
        for extent in taken {
            world.space.cancel(extent);
        }
    }
    world.check(&frozen.root, frozen.epoch, &frozen.content, 0, 600);
}

#[test]
fn a_cache_full_of_dirty_pages_says_so_and_still_serves_lookups() {
    let mut world = World::new(64, 8000);
    let mut tree = tree();
    for leaf in 0..200 {
        assert!(world.set(&mut tree, NOBODY, leaf * 256, 1));
    }
    world.checkpoint();
    let mut refused = None;
    for leaf in 0..200 {
        let extent = world.space.reserve(1, Purpose::Data).unwrap();
        world.space.commit(extent);
        loop {
            let tried = world.once(&mut tree, NOBODY, |cache, tree| {
                cache.set(tree, ShareBlock(leaf * 256), extent.address, &[U32::new(1)])
            });
            match tried {
                Ok(()) => break,
                Err(MapError::Miss(page)) => super::world::serve(&mut world.cache, &world.device, &page),
                Err(MapError::CacheFull) => {
                    refused = Some(leaf);
                    break;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        if refused.is_some() {
            break;
        }
    }
    assert!((20..64).contains(&refused.expect("64 pages do not hold 200 dirty leaves")));
    for leaf in 0..200 {
        assert!(!world.look_at(&tree.root, leaf * 256).address.is_none());
    }
    world.checkpoint();
    assert_eq!(world.cache.dirty_pages(), 0);
    assert!(world.set(&mut tree, NOBODY, 0, 1));
}

#[test]
fn a_page_that_is_not_the_expected_one_is_refused() {
    let mut world = World::new(32, 4000);
    let mut tree = tree();
    assert!(world.set(&mut tree, NOBODY, 0, 1));
    assert!(world.set(&mut tree, NOBODY, 300, 1));
    world.checkpoint();
    let mut cache = crate::map::PageCache::new(super::world::POOL, crate::ShardIndex(0), 32, 9);
    let Err(MapError::Miss(root)) = cache.lookup(FAMILY, &tree.root, ShareBlock(0)) else {
        panic!("the cache is empty");
    };
    let good = world.device[&root.address.0].clone();
    let other = world
        .device
        .iter()
        .find(|(at, _)| **at != root.address.0)
        .unwrap()
        .1;
    assert_eq!(cache.insert(&root, other), Err(Damage::Place));
    let mut torn = good.clone();
    torn[2000] ^= 1;
    assert_eq!(cache.insert(&root, &torn), Err(Damage::Checksum));
    assert_eq!(cache.cached_pages(), 0);
    assert_eq!(cache.insert(&root, &good), Ok(()));
    assert_eq!(cache.insert(&root, &good), Ok(()));
    assert_eq!(cache.cached_pages(), 1);
}

#[test]
fn a_page_of_another_generation_at_the_same_address_is_read_anew() {
    let mut world = World::new(32, 4000);
    let mut tree = tree();
    assert!(world.set(&mut tree, NOBODY, 0, 1));
    world.checkpoint();
    let mut other = tree.root;
    other.entry.check = (other.entry.check.get() + 1).into();
    let missed = world.cache.lookup(FAMILY, &other, ShareBlock(0));
    assert!(
        matches!(missed, Err(MapError::Miss(page)) if page.identity.generation == other.entry.check.get())
    );
}

#[test]
fn changed_blocks_count_each_block_once_since_the_newest_snapshot() {
    let mut world = World::new(64, 4000);
    let mut tree = tree();
    assert!(world.set(&mut tree, NOBODY, 0, 100));
    tree.epoch = tree.epoch.next();
    tree.stats.changed_blocks = 0;
    let rule = held_by(Epoch(1));
    assert!(world.set(&mut tree, rule, 0, 10));
    assert!(world.set(&mut tree, rule, 5, 10));
    assert_eq!(tree.stats.changed_blocks, 15);
    assert!(world.clear(&mut tree, rule, 10, 20, 1));
    assert_eq!(tree.stats.changed_blocks, 30);
    assert!(world.set(&mut tree, rule, 25, 10));
    assert_eq!((tree.stats.changed_blocks, tree.stats.mapped_blocks), (35, 85));
}

#[test]
fn only_what_was_born_after_the_newest_snapshot_is_freed() {
    let (one, five) = (Some(Epoch(1)), Some(Epoch(5)));
    let passed = |newest| {
        Some(Passed {
            cursor_leaf: 100,
            newest,
        })
    };
    let cases = [
        (None, None, 1, 0, true),
        (five, None, 5, 0, false),
        (five, None, 6, 0, true),
        (five, passed(one), 5, 99, true),
        (five, passed(one), 5, 100, false),
        (five, passed(one), 1, 99, false),
        (five, passed(None), 1, 99, true),
        (five, passed(None), 6, 100, true),
    ];
    for (newest, passed, birth, last_leaf, frees) in cases {
        let rule = FreeRule { newest, passed };
        assert_eq!(
            rule.frees(Epoch(birth), last_leaf),
            frees,
            "{rule:?} {birth} {last_leaf}"
        );
    }
}

#[test]
fn a_clone_shares_pages_and_changes_its_own() {
    let mut world = World::new(64, 4000);
    let mut parent = tree();
    assert!(world.set(&mut parent, NOBODY, 0, 600));
    let snapshot = parent.clone();
    parent.epoch = parent.epoch.next();
    let rule = held_by(snapshot.epoch);
    let mut twin = snapshot.clone();
    twin.epoch = snapshot.epoch.next();
    let used = world.space.used_blocks();
    assert!(world.set(&mut twin, rule, 0, 1));
    assert_eq!(world.space.used_blocks(), used + 3, "a block, a leaf, a root");
    assert!(world.set(&mut parent, rule, 300, 1));
    for tree in [&parent, &twin, &snapshot] {
        world.check(&tree.root, tree.epoch, &tree.content, 0, 700);
    }
}

#[test]
fn a_reused_root_address_does_not_lead_to_leaves_of_the_old_root() {
    let mut world = World::new(64, 1400);
    let mut old = tree();
    assert!(world.set(&mut old, NOBODY, 0, 1));
    assert!(world.set(&mut old, NOBODY, 300, 1));
    let leaf = world.look_at(&old.root, 300);
    let mut seen_again = false;
    for turn in 0..2000 {
        let mut tree = tree();
        assert!(world.set(&mut tree, NOBODY, 0, 1 + turn % 5));
        assert!(world.set(&mut tree, NOBODY, 50_000, 1));
        assert_eq!(world.look_at(&tree.root, 300), Entry::default());
        seen_again |= tree.root.entry.address() == old.root.entry.address();
        assert!(world.clear(&mut tree, NOBODY, 0, 100_000, 100));
        if turn == 0 {
            // The old root goes, its second leaf stays in the cache, as if a snapshot held it.
            world.cache.forget(DeviceAddress(old.root.entry.address()));
            world.space.free(DeviceAddress(old.root.entry.address()), 1);
        }
        if turn % 50 == 0 {
            world.checkpoint();
        }
    }
    assert!(seen_again, "the test reuses the address");
    assert!(world.space.is_used(leaf.address));
}

#[test]
fn a_run_over_two_leaves_is_mapped_whichever_places_their_hints_share() {
    let mut world = World::new(32, 16_000);
    let mut tree = tree();
    for round in 0..20_000u64 {
        let leaf = round * 37 % 3000;
        assert!(world.set(&mut tree, NOBODY, leaf * 256 + 255, 2));
        tree.content.clear();
    }
}
