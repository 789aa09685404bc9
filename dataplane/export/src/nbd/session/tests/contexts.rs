//! Metadata contexts: what is listed and selected, and what block status queries tell of several at once.

use super::handshake::{ask, greeted_by, kinds};
use super::harness::{Blocks, Random, World, queries, table};
use crate::ExportTable;
use crate::nbd::wire::{ReplyError, command, command_flags, option, option_reply};
use crate::nbd::{CONTEXTS_MAX, Limits, OPTIONS_MAX, SNAPSHOTS_LISTED_MAX};
use crate::snapshot_names::{Busy, SnapshotNames};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use stillpoint_processor::{Base, RequestError, SnapshotId, VolumeId};

const SIZE: u64 = 8 << 20;
const ACK: (u32, &str) = (option_reply::ACK, "");

fn named(names: impl IntoIterator<Item = String>) -> BTreeMap<String, Base> {
    let numbered = names.into_iter().zip(1..);
    numbered
        .map(|(name, number)| {
            let base = Base {
                volume: VolumeId(1),
                snapshot: SnapshotId(number),
            };
            (name, base)
        })
        .collect()
}

/// The usual exports, of which `disk` has these snapshots.
fn exports(names: impl SnapshotNames + 'static) -> Arc<ExportTable> {
    let names: Arc<dyn SnapshotNames> = Arc::new(names);
    let table = ExportTable::clone(&table(SIZE));
    Arc::new(table.with_snapshots(|export| (export.name == "disk").then(|| Arc::clone(&names))))
}

fn few() -> Arc<ExportTable> {
    exports(named(["monday", "tuesday"].map(String::from)))
}

/// A session that speaks structured replies.
fn talking(exports: Arc<ExportTable>) -> World {
    let mut world = greeted_by(exports, 3);
    ask(&mut world, option::STRUCTURED_REPLY, &[]);
    world
}

/// The contexts that an option names, as (id, name); the reply ends with an acknowledgement.
fn contexts(world: &mut World, number: u32, export: &str, asked: &[&str]) -> Vec<(u32, String)> {
    let asked: Vec<&[u8]> = asked.iter().map(|query| query.as_bytes()).collect();
    let mut replies = ask(world, number, &queries(export, &asked));
    assert_eq!(replies.pop(), Some((ACK.0, vec![])));
    let named = replies.into_iter().map(|(kind, data)| {
        assert_eq!(kind, option_reply::META_CONTEXT);
        let id = u32::from_be_bytes(data[..4].try_into().expect("four bytes"));
        (id, String::from_utf8(data[4..].to_vec()).expect("a name"))
    });
    named.collect()
}

fn names(listed: &[(u32, String)]) -> Vec<&str> {
    assert!(listed.iter().all(|(id, _)| *id == 0));
    listed.iter().map(|(_, name)| name.as_str()).collect()
}

#[test]
fn a_list_names_the_snapshots_that_there_are() {
    let mut world = talking(few());
    let mut list = |asked: &[&str]| contexts(&mut world, option::LIST_META_CONTEXT, "disk", asked);
    let changes = ["stillpoint:changes:monday", "stillpoint:changes:tuesday"];
    let dirty = ["qemu:dirty-bitmap:monday", "qemu:dirty-bitmap:tuesday"];
    let all = [&["base:allocation"][..], &changes, &dirty].concat();
    assert_eq!(names(&list(&[])), all);
    assert_eq!(names(&list(&["stillpoint:", "qemu:", "base:"])), all);
    assert_eq!(names(&list(&["stillpoint:changes:"])), changes);
    assert_eq!(names(&list(&["qemu:dirty-bitmap:", "qemu:dirty-bitmap:"])), dirty);
    assert_eq!(names(&list(&["stillpoint:changes:tuesday"])), changes[1..]);
    for nothing in [
        "stillpoint:changes:sunday",
        "stillpoint:other:monday",
        "qemu:allocation-depth",
        "x:",
    ] {
        assert_eq!(list(&[nothing]), []);
    }
    let of_other = contexts(&mut world, option::LIST_META_CONTEXT, "big-blocks", &[]);
    assert_eq!(names(&of_other), ["base:allocation"]);
    world.close();
}

#[test]
fn of_many_snapshots_only_those_who_ask_get_the_names() {
    let many = 3000;
    let padding = "x".repeat(100);
    let all: Vec<String> = (0..many).map(|number| format!("{number:05}-{padding}")).collect();
    let mut world = talking(exports(named(all.clone())));
    let short = contexts(&mut world, option::LIST_META_CONTEXT, "disk", &[]);
    assert_eq!(
        names(&short),
        ["base:allocation", "stillpoint:changes:", "qemu:dirty-bitmap:"]
    );
    // Half a megabyte, through an outbox of 32 KiB.
    let listed = contexts(
        &mut world,
        option::LIST_META_CONTEXT,
        "disk",
        &["qemu:dirty-bitmap:"],
    );
    let expected: Vec<String> = all
        .iter()
        .map(|name| format!("qemu:dirty-bitmap:{name}"))
        .collect();
    assert_eq!(names(&listed), expected);
    world.close();

    let as_many = (0..SNAPSHOTS_LISTED_MAX).map(|number| number.to_string());
    let mut world = talking(exports(named(as_many)));
    let listed = contexts(&mut world, option::LIST_META_CONTEXT, "disk", &[]);
    assert_eq!(listed.len(), 1 + 2 * SNAPSHOTS_LISTED_MAX);
    world.close();
}

#[test]
fn what_is_there_is_selected_and_what_is_not_is_left_out() {
    let mut world = talking(few());
    let set = option::SET_META_CONTEXT;
    let asked = [
        "qemu:dirty-bitmap:tuesday",
        "stillpoint:changes:sunday",
        "stillpoint:changes:monday",
        "stillpoint:changes:",
        "base:allocation",
    ];
    let selected = contexts(&mut world, set, "disk", &asked);
    let expected = [asked[4], asked[2], asked[0]].map(str::to_owned);
    assert_eq!(selected, (1..).zip(expected).collect::<Vec<_>>());
    assert_eq!(contexts(&mut world, set, "disk", &["stillpoint:", "qemu:"]), []);
    world.close();

    let names: Vec<String> = (0..=CONTEXTS_MAX).map(|number| number.to_string()).collect();
    let mut world = talking(exports(named(names.clone())));
    let asked: Vec<String> = names
        .iter()
        .map(|name| format!("stillpoint:changes:{name}"))
        .collect();
    let asked: Vec<&[u8]> = asked.iter().map(|query| query.as_bytes()).collect();
    let refused = ask(&mut world, set, &queries("disk", &asked));
    assert_eq!(kinds(&refused), [option_reply::ERR_TOO_BIG]);
    let taken = ask(&mut world, set, &queries("disk", &asked[1..]));
    assert_eq!(taken.len(), CONTEXTS_MAX + 1);
    world.close();
}

/// Names that are being changed a few times before they can be looked at.
#[derive(Debug)]
struct Shy(BTreeMap<String, Base>, AtomicU32);

impl Shy {
    fn look(&self) -> Result<(), Busy> {
        let left = self.1.fetch_sub(1, Ordering::Relaxed);
        if left > 0 {
            return Err(Busy);
        }
        self.1.store(3, Ordering::Relaxed);
        Ok(())
    }
}

impl SnapshotNames for Shy {
    fn find(&self, name: &str) -> Result<Option<Base>, Busy> {
        self.look().and_then(|()| self.0.find(name))
    }

    fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, Busy> {
        self.look().and_then(|()| self.0.list(after, limit))
    }
}

#[test]
fn names_that_are_busy_are_asked_for_again() {
    let snapshots = named((0..200).map(|number| number.to_string()));
    let mut world = talking(exports(Shy(snapshots, AtomicU32::new(3))));
    // More tries than options are allowed: a try is no option.
    for _ in 0..OPTIONS_MAX / 4 {
        let list = option::LIST_META_CONTEXT;
        for (number, asked, expected) in [
            (list, "stillpoint:changes:", 200),
            (list, "stillpoint:changes:7", 1),
            (option::SET_META_CONTEXT, "stillpoint:changes:7", 1),
        ] {
            let replies = patiently(&mut world, number, asked);
            assert_eq!(replies.len(), expected + 1);
            assert_eq!(replies.last(), Some(&(ACK.0, vec![])));
        }
    }
    world.close();
}

fn patiently(world: &mut World, number: u32, asked: &str) -> Vec<(u32, Vec<u8>)> {
    let mut replies = ask(world, number, &queries("disk", &[asked.as_bytes()]));
    while replies.last().is_none_or(|(kind, _)| *kind != option_reply::ACK) {
        assert!(world.session.is_starved(), "it wants another turn");
        replies.extend(super::handshake::go_on(world, number));
    }
    assert!(!world.session.is_starved());
    replies
}

const ALL: [&[u8]; 3] = [
    b"base:allocation",
    b"stillpoint:changes:monday",
    b"qemu:dirty-bitmap:tuesday",
];

/// What a context tells, byte by byte (in units of 512).
fn spelled_out(extents: &[(u32, u32)]) -> Vec<u32> {
    let units = extents.iter().map(|&(length, state)| (length / 512, state));
    units
        .flat_map(|(count, state)| std::iter::repeat_n(state, count as usize))
        .collect()
}

#[test]
fn every_context_tells_its_own() {
    for (seed, pool_bytes) in (1..20).zip([usize::MAX, 2 << 20, 256 << 10].into_iter().cycle()) {
        let mut world = World::with_limits(few(), Limits::default(), pool_bytes);
        world.connect_with("disk", true, &ALL);
        let mut random = Random((seed * 0x9e37_79b9) | 1);
        let mut taken: Vec<Blocks> = Vec::new();
        for number in 1..=3 {
            for _ in 0..random.below(8) {
                let offset = random.below(SIZE / 4096 - 8) * 4096;
                let length = 4096 * (1 + random.below(8)) as u32;
                if random.below(3) == 0 {
                    world.call(command::TRIM, 0, offset, length, &[]);
                } else {
                    world.write(offset, &vec![random.below(255) as u8 + 1; length as usize]);
                }
            }
            taken.push(world.shards.blocks.clone());
            let (snapshot, blocks) = (SnapshotId(number), world.shards.blocks.clone());
            world.shards.snapshots.insert(snapshot, blocks);
        }
        for _ in 0..20 {
            let offset = random.below(SIZE / 512 - 1) * 512;
            let length = 512 * (1 + random.below((SIZE - offset) / 512)) as u32;
            let heard = world.call(command::BLOCK_STATUS, 0, offset, length, &[]);
            assert_eq!((&heard.errors[..], heard.content_chunks), (&[][..], 3));
            for (id, base) in [(1, None), (2, Some(&taken[0])), (3, Some(&taken[1]))] {
                let told = spelled_out(&heard.contexts[&id]);
                let expected: Vec<u32> = (0..u64::from(length / 512))
                    .map(|unit| expected_state(&taken[2], base, id, offset + unit * 512))
                    .collect();
                assert!(told == expected, "seed {seed}: context {id}, {offset}+{length}");
            }
            let one = world.call(command::BLOCK_STATUS, command_flags::REQ_ONE, offset, length, &[]);
            for id in 1..=3 {
                assert_eq!(one.contexts[&id], heard.contexts[&id][..1], "context {id}");
            }
        }
        assert_eq!(world.pool.held_bytes, 0, "nothing is held between requests");
        world.close();
    }
}

fn expected_state(now: &Blocks, base: Option<&Blocks>, id: u32, offset: u64) -> u32 {
    let placement = super::harness::view(SIZE, 512, false).placement;
    let (shard, block) = placement.locate(stillpoint_processor::BlockIndex(offset / 4096));
    let key = (shard.0, block.0);
    let mapped = now.get(&key);
    match (id, base) {
        (1, _) => 3 * u32::from(mapped.is_none()),
        (_, base) if mapped == base.expect("a snapshot").get(&key) => 0,
        (2, _) => 1 + 2 * u32::from(mapped.is_none()),
        _ => 1,
    }
}

#[test]
fn what_a_shard_foresees_is_not_asked_again() {
    let mut world = World::new(few());
    world.connect_with("disk", true, &ALL[1..2]);
    world.shards.snapshots.insert(SnapshotId(1), Blocks::new());
    // Each of eight objects alone would be a question to its shard.
    let heard = world.call(command::BLOCK_STATUS, 0, 0, SIZE as u32, &[]);
    assert_eq!(heard.contexts[&1], [(SIZE as u32, 0)]);
    assert_eq!(world.shards.seen.len(), 3);
    world.write(5 << 20, &[1; 4096]);
    let heard = world.call(command::BLOCK_STATUS, 0, 0, SIZE as u32, &[]);
    let rest = SIZE as u32 - (5 << 20) - 4096;
    assert_eq!(heard.contexts[&1], [(5 << 20, 0), (4096, 1), (rest, 0)]);
    world.close();
}

#[test]
fn a_snapshot_that_is_gone_is_an_error_of_the_request_and_no_more() {
    let mut world = World::new(few());
    world.connect_with("disk", true, &ALL);
    world.shards.snapshots.insert(SnapshotId(1), Blocks::new());
    world.write(4096, &[1; 4096]);
    let asked = world.shards.seen.len();
    // The two contexts before it have told theirs: eight questions and three.
    for number in asked..asked + 100 {
        world.shards.fail.insert(number, RequestError::NoBase);
    }
    for number in asked..asked + 11 {
        world.shards.fail.remove(&number);
    }
    let heard = world.call(command::BLOCK_STATUS, 0, 0, SIZE as u32, &[]);
    assert_eq!(heard.error(), Some(ReplyError::Invalid));
    assert!(heard.contexts.len() < 3);
    world.shards.fail.clear();
    assert_eq!(world.read(4096, 4096), [1; 4096], "the connection lives");
    world.close();
}

#[test]
fn a_client_that_leaves_in_the_middle_leaves_nothing_behind() {
    for steps in 0..40 {
        let mut world = World::new(few());
        world.connect_with("disk", true, &ALL);
        for number in [1, 2] {
            world.shards.snapshots.insert(SnapshotId(number), Blocks::new());
        }
        world.listening = steps % 2 == 0;
        world.ask(command::BLOCK_STATUS, 0, 0, SIZE as u32, &[]);
        for _ in 0..steps {
            world.turn();
        }
        world.close();
    }
}
