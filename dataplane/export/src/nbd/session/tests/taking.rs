//! Snapshots in band: what takes one, what takes none, and what is said.

use super::handshake::{ask, go_on, greeted_by, kinds};
use super::harness::{Blocks, World, queries, table};
use crate::nbd::client::{encode_go, encode_option};
use crate::nbd::wire::{command, option, option_reply as reply};
use crate::nbd::{CONTEXTS_MAX, OPTIONS_MAX};
use crate::{ExportTable, NotTaken, SnapshotNames, SnapshotTaker, SnapshotWish};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use stillpoint_processor::{Base, SnapshotId, VolumeId};

const SIZE: u64 = 8 << 20;
const SET: u32 = option::SET_META_CONTEXT;
const LIST: u32 = option::LIST_META_CONTEXT;
/// Looks at a wish before it is granted.
const LOOKS: u32 = 3;

/// Takes its time, and counts.
#[derive(Debug, Default)]
struct Slow(AtomicU32);

#[derive(Debug)]
struct Wish {
    looks: u32,
    outcome: Result<(), NotTaken>,
}

impl SnapshotTaker for Slow {
    fn begin(&self, name: &str) -> Result<Box<dyn SnapshotWish>, NotTaken> {
        if name == "many" {
            return Err(NotTaken::Unable("64 snapshots are waiting".to_owned()));
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        let outcome = match name {
            "old" => Err(NotTaken::Invalid("disk@old exists already".to_owned())),
            "huge" => Err(NotTaken::Unable("x".repeat(5000))),
            _ => Ok(()),
        };
        Ok(Box::new(Wish {
            looks: LOOKS,
            outcome,
        }))
    }
}

impl SnapshotWish for Wish {
    fn outcome(&mut self) -> Option<Result<(), NotTaken>> {
        let left = self.looks.checked_sub(1);
        self.looks = left.expect("not looked at after the outcome");
        (self.looks == 0).then(|| self.outcome.clone())
    }
}

/// A client that speaks structured replies. All exports but `big-blocks` have somebody who takes snapshots; those called
/// `new` are there once they are taken.
fn talking() -> (World, Arc<Slow>) {
    let taker = Arc::new(Slow::default());
    let base = Base {
        volume: VolumeId(1),
        snapshot: SnapshotId(1),
    };
    let names: Arc<dyn SnapshotNames> = Arc::new(BTreeMap::from([("new".to_owned(), base)]));
    let table = ExportTable::clone(&table(SIZE))
        .with_snapshots(|_| Some(Arc::clone(&names)))
        .with_snapshot_takers(|export| {
            let taker: Arc<dyn SnapshotTaker> = taker.clone();
            (export.name != "big-blocks").then_some(taker)
        });
    let mut world = greeted_by(Arc::new(table), 3);
    ask(&mut world, option::STRUCTURED_REPLY, &[]);
    (world, taker)
}

/// The replies to an option, and how many turns it took to get them.
fn patiently(world: &mut World, number: u32, export: &str, asked: &[&[u8]]) -> (Vec<(u32, Vec<u8>)>, u32) {
    let mut replies = ask(world, number, &queries(export, asked));
    let mut turns = 0;
    let is_last = |kind: u32| kind == reply::ACK || kind & reply::ERROR != 0;
    while replies.last().is_none_or(|(kind, _)| !is_last(*kind)) {
        assert!(replies.is_empty(), "all or nothing");
        assert!(world.session.is_starved(), "it wants another turn");
        replies.extend(go_on(world, number));
        turns += 1;
        assert!(turns < 100, "it never ends");
    }
    assert!(!world.session.is_starved());
    (replies, turns)
}

#[test]
fn selecting_the_context_takes_the_snapshot_once_and_answers_when_it_is_there() {
    let (mut world, taker) = talking();
    let asked: [&[u8]; 2] = [b"stillpoint:snapshot:new", b"base:allocation"];
    // More often than options are allowed would do, if each look at the wish were one.
    for round in 0..OPTIONS_MAX / 4 {
        let (replies, turns) = patiently(&mut world, SET, "disk", &asked);
        assert_eq!(turns > 0, round == 0, "it is there the second time");
        assert_eq!(
            kinds(&replies),
            [reply::META_CONTEXT, reply::META_CONTEXT, reply::ACK]
        );
        assert_eq!(replies[0].1, [&[0, 0, 0, 1], asked[1]].concat());
        assert_eq!(replies[1].1, [&[0, 0, 0, 2], asked[0]].concat());
        assert_eq!(taker.0.load(Ordering::Relaxed), 1);
    }
    // Then it tells what changed since.
    world.shards.snapshots.insert(SnapshotId(1), Blocks::new());
    world
        .unread
        .extend(encode_option(option::GO, &encode_go("disk", &[])));
    world.run();
    world.heard.clear();
    world.write(8192, &[1; 4096]);
    let heard = world.call(command::BLOCK_STATUS, 0, 0, 16384, &[]);
    assert_eq!(heard.contexts[&2], [(8192, 0), (4096, 1), (4096, 0)]);
    world.close();
}

#[test]
fn a_list_takes_nothing_and_says_where_it_is_allowed() {
    let (mut world, taker) = talking();
    let leaf: &[u8] = b"stillpoint:snapshot:";
    let listed = |world: &mut World, export: &str, asked: &[&[u8]]| {
        let (mut replies, _) = patiently(world, LIST, export, asked);
        assert_eq!(replies.pop().map(|(kind, _)| kind), Some(reply::ACK));
        let named = replies.into_iter().map(|(_, data)| data[4..].to_vec());
        named.collect::<Vec<_>>()
    };
    let asked: [&[&[u8]]; 4] = [&[], &[b"stillpoint:"], &[leaf], &[leaf, leaf]];
    for asked in asked {
        for (export, allowed) in [("disk", true), ("disk@noon", false), ("big-blocks", false)] {
            let told = listed(&mut world, export, asked);
            let leaves = told.iter().filter(|name| name.starts_with(leaf)).count();
            assert_eq!(leaves, usize::from(allowed), "{export} {asked:?}");
        }
    }
    assert_eq!(listed(&mut world, "disk", &[leaf]), [leaf.to_vec()]);
    assert!(listed(&mut world, "disk", &[b"stillpoint:snapshot:new"]).is_empty());
    // A selection of everything that was listed takes nothing either.
    assert_eq!(
        kinds(&patiently(&mut world, SET, "disk", &[leaf]).0),
        [reply::ACK]
    );
    assert_eq!(taker.0.load(Ordering::Relaxed), 0);
    world.close();
}

/// An export, names, the error, words in it, and how many snapshots were begun.
type Refusal<'a> = (&'a str, &'a [&'a [u8]], u32, &'a str, u32);

#[test]
fn what_cannot_be_is_refused_in_words_and_the_negotiation_goes_on() {
    let (mut world, taker) = talking();
    let (policy, invalid) = (reply::ERR_POLICY, reply::ERR_INVALID);
    let prefix = |name: &[u8]| [&b"stillpoint:snapshot:"[..], name].concat();
    let cases: [Refusal<'_>; 7] = [
        ("disk@noon", &[b"new"], policy, "read-only", 0),
        ("big-blocks", &[b"new"], policy, "--allow-snapshots", 0),
        ("disk", &[b"old"], invalid, "exists already", 1),
        ("disk", &[b"huge"], policy, "xxx", 1),
        ("disk", &[b"many"], policy, "64 snapshots", 0),
        (
            "disk",
            &[b"a", b"b"],
            invalid,
            "one stillpoint:snapshot:NAME at a time",
            0,
        ),
        ("disk", &[b"\xff\xfe"], invalid, "UTF-8", 0),
    ];
    for (export, names, error, words, begun) in cases {
        let before = taker.0.load(Ordering::Relaxed);
        let asked: Vec<Vec<u8>> = names.iter().map(|name| prefix(name)).collect();
        let asked: Vec<&[u8]> = asked.iter().map(Vec::as_slice).collect();
        let (replies, _) = patiently(&mut world, SET, export, &asked);
        assert_eq!(kinds(&replies), [error], "{export} {names:?}");
        let said = String::from_utf8_lossy(&replies[0].1);
        assert!(said.contains(words) && said.len() <= 4096, "{said}");
        assert_eq!(
            taker.0.load(Ordering::Relaxed) - before,
            begun,
            "{export} {names:?}"
        );
    }
    // A selection that is refused for another reason takes none.
    let many: Vec<Vec<u8>> = (0..=CONTEXTS_MAX)
        .map(|n| prefix(n.to_string().as_bytes()))
        .collect();
    let many: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    let before = taker.0.load(Ordering::Relaxed);
    let (replies, _) = patiently(&mut world, SET, "disk", &many);
    assert_eq!(kinds(&replies), [reply::ERR_TOO_BIG]);
    let (replies, _) = patiently(&mut world, SET, "nowhere", &[&prefix(b"new")]);
    assert_eq!(kinds(&replies), [reply::ERR_UNKNOWN]);
    assert_eq!(taker.0.load(Ordering::Relaxed), before);
    assert_eq!(patiently(&mut world, SET, "disk", &[&prefix(b"new")]).0.len(), 2);
    world.close();
}

#[test]
fn a_snapshot_that_was_deleted_at_once_has_no_context() {
    let (mut world, _) = talking();
    let (replies, _) = patiently(&mut world, SET, "disk", &[b"stillpoint:snapshot:gone"]);
    assert_eq!(kinds(&replies), [reply::ACK]);
    world.close();
}

#[test]
fn a_client_that_leaves_before_the_answer_holds_up_nothing() {
    for turns in 0..=LOOKS {
        let (mut world, taker) = talking();
        let data = queries("disk", &[b"stillpoint:snapshot:new"]);
        world.unread.extend(encode_option(SET, &data));
        for _ in 0..turns {
            world.turn();
        }
        world.close();
        assert!(taker.0.load(Ordering::Relaxed) <= 1);
    }
}
