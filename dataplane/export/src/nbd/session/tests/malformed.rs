//! Bytes that no client should send.

use super::harness::{World, hello, table};
use crate::nbd::wire::{RequestHeader, command};
use proptest::prelude::*;

const SIZE: u64 = 8 << 20;

#[test]
fn a_bad_magic_ends_the_connection_after_what_was_begun() {
    let mut world = World::connected(SIZE, true);
    let first = world.ask(command::WRITE, 0, 0, 512, &[1; 512]);
    world.unread.extend([0xff; 28]);
    world.run();
    assert!(world.session.wants_close());
    assert!(world.replies[&first].done);
    world.close();
}

#[test]
fn a_write_too_long_to_skip_gets_its_error_and_the_end() {
    let mut world = World::connected(SIZE, true);
    let cookie = world.ask(command::WRITE, 0, 0, u32::MAX, &[1; 4096]);
    world.run();
    assert!(world.replies[&cookie].error().is_some());
    assert!(world.session.wants_close());
    world.close();
}

#[test]
fn a_request_cut_anywhere_is_not_done() {
    let header = RequestHeader {
        flags: 0,
        command: command::WRITE,
        cookie: 1,
        offset_bytes: 4000,
        length_bytes: 200,
    };
    let whole = [&header.encode()[..], &[7; 200]].concat();
    for cut in 0..whole.len() {
        let mut world = World::connected(SIZE, true);
        world.unread.extend(&whole[..cut]);
        world.run();
        let receive = world.session.receive(&mut world.pool).expect("more is wanted");
        world.session.received(receive, 0, &mut world.pool);
        world.run();
        assert!(world.session.wants_close(), "after {cut} bytes");
        assert_eq!(world.shards.seen, [], "after {cut} bytes");
        assert!(world.heard.is_empty(), "no reply to half a request");
        world.close();
    }
}

#[test]
fn a_long_write_cut_in_its_middle_gives_its_buffers_back() {
    for cut in [100, 1 << 20, (1 << 20) + 70_000, (3 << 20) - 1] {
        for end_by_close in [false, true] {
            let mut world = World::connected(SIZE, true);
            world.ask(command::WRITE, 0, 512, 3 << 20, &vec![1; cut]);
            world.run();
            if !end_by_close {
                let receive = world.session.receive(&mut world.pool).expect("more is wanted");
                world.session.received(receive, 0, &mut world.pool);
                world.run();
                assert!(world.session.wants_close());
                assert!(world.heard.is_empty());
            }
            world.close();
        }
    }
}

#[test]
fn a_connection_abandoned_while_bytes_are_on_their_way_gives_its_buffers_back() {
    let mut world = World::connected(SIZE, true);
    world.ask(command::WRITE, 0, 0, 1 << 20, &vec![1; 100_000]);
    world.run();
    let receive = world.session.receive(&mut world.pool).expect("more is wanted");
    world.session.abandon(&mut world.pool);
    assert!(!world.session.is_drained(), "the receive is still out");
    world.session.received(receive, 0, &mut world.pool);
    assert!(world.session.is_drained());
    world.close();
}

#[test]
fn a_connection_abandoned_while_data_is_being_sent_gives_its_buffers_back() {
    for structured in [false, true] {
        let mut world = World::connected(64 << 20, structured);
        world.ask(command::READ, 0, 0, 32 << 20, &[]);
        while world.heard.len() < 3 << 20 {
            assert!(world.turn());
        }
        let send = loop {
            if let Some(send) = world.session.next_send(&mut world.pool) {
                break send;
            }
            world.listening = false;
            assert!(world.turn());
        };
        world.session.abandon(&mut world.pool);
        assert!(!world.session.is_drained());
        world.session.sent(send, 100, &mut world.pool);
        world.close();
    }
}

/// A conversation with everything in it.
fn conversation(structured: bool) -> Vec<u8> {
    let mut world = World::new(table(SIZE));
    world.unread.extend(hello("disk", structured));
    world.ask(command::WRITE, 0, 4000, 20_000, &[9; 20_000]);
    world.ask(command::READ, 0, 0, 3 << 20, &[]);
    world.ask(command::FLUSH, 1, 0, 0, &[]);
    world.ask(command::TRIM, 0, 0, 70_000, &[]);
    world.ask(command::WRITE_ZEROES, 2, 100, 5000, &[]);
    world.ask(command::WRITE_ZEROES, 0, 100, 50_000, &[]);
    world.ask(command::BLOCK_STATUS, 0, 0, 8 << 20, &[]);
    world.ask(command::CACHE, 0, 0, 4096, &[]);
    world.ask(command::READ, 4, 512, 512, &[]);
    world.ask(command::DISC, 0, 0, 0, &[]);
    world.unread.into()
}

/// Every request waits for the one before, so that there is one right conversation.
fn serial(structured: bool, chunk: usize) -> Vec<u8> {
    let mut world = World::new(table(SIZE));
    world.chunk = chunk;
    let mut said = Vec::new();
    let mut rest = conversation(structured);
    let negotiation = hello("disk", structured).len();
    let mut lengths = vec![negotiation, 28 + 20_000];
    lengths.extend([28; 9]);
    for length in lengths {
        world.unread.extend(rest.drain(..length));
        while world.turn() {}
        said.append(&mut world.heard);
    }
    assert!(rest.is_empty() && world.session.wants_close());
    world.close();
    said
}

#[test]
fn byte_by_byte_is_the_same_as_whole() {
    for structured in [false, true] {
        let whole = serial(structured, usize::MAX);
        assert!(whole.len() > 3 << 20);
        assert!(serial(structured, 1000) == whole);
    }
    // The small part of it with single bytes.
    let mut one = World::connected(SIZE, true);
    one.chunk = 1;
    one.write(4000, &[5; 5000]);
    assert_eq!(one.read(4001, 4999), [5; 4999]);
    let handshake = |chunk: usize| {
        let mut world = World::new(table(SIZE));
        world.chunk = chunk;
        world.unread.extend(hello("disk", true));
        world.run();
        let heard = world.heard.clone();
        world.close();
        heard
    };
    assert_eq!(handshake(1), handshake(usize::MAX));
    one.close();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn damaged_conversations_neither_panic_nor_leak(
        structured: bool,
        damage in proptest::collection::vec((0usize..25_000, any::<u8>(), 0u8..4), 1..6),
        chunk in prop_oneof![Just(1usize << 20), 1usize..5000],
        pool_mib in 1usize..8,
        seed: u64,
    ) {
        let mut bytes = conversation(structured);
        for (at, value, kind) in damage {
            // Headers are the interesting places: most of the damage goes to the ends.
            let at = if at % 3 == 0 { at % 200 } else { bytes.len().saturating_sub(at % 300) };
            let at = at.min(bytes.len().saturating_sub(1));
            match kind {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.insert(at, value),
                _ => { bytes.remove(at); }
            }
        }
        let mut world = World::with_limits(table(SIZE), crate::nbd::Limits::default(), pool_mib << 20);
        world.chunk = chunk;
        world.random.0 = seed | 1;
        world.unread.extend(bytes);
        while world.turn() {}
        world.close();
    }

    #[test]
    fn noise_neither_panics_nor_leaks(bytes in proptest::collection::vec(any::<u8>(), 0..400), seed: u64) {
        let mut world = World::connected(SIZE, seed % 2 == 0);
        world.unread.extend(bytes);
        while world.turn() {}
        world.close();
        let mut world = World::new(table(SIZE));
        world.unread.extend(3u32.to_be_bytes());
        world.unread.extend(b"IHAVEOPT");
        world.unread.extend(seed.to_be_bytes());
        while world.turn() {}
        world.close();
    }
}
