//! Every command and its errors.

use super::harness::{World, table, take_front};
use crate::ExportTable;
use crate::nbd::DF_BYTES_MAX;
use crate::nbd::client::{encode_go, encode_option};
use crate::nbd::wire::{ReplyError, command, command_flags, info, option};
use std::sync::Arc;
use stillpoint_processor::{RequestError, RequestKind};

const SIZE: u64 = 40 << 20;
const MIB: u32 = 1 << 20;

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed)
        .collect()
}

#[test]
fn what_was_written_is_read_at_any_alignment_and_size() {
    for structured in [false, true] {
        let mut world = World::connected(SIZE, structured);
        let cases = [
            (0u64, 1usize),
            (511, 2),
            (4095, 4098),
            (1 << 20, 1 << 20),
            ((1 << 20) - 100, 3 << 20),
            (7, 5 << 20),
            (512, 32 << 20),
        ];
        for (offset, length) in cases {
            let data = pattern(length, offset as u8);
            world.write(offset, &data);
            assert!(world.read(offset, length as u32) == data, "{offset}+{length}");
        }
        world.close();
    }
}

#[test]
fn structured_reads_come_in_chunks_and_df_in_one() {
    let mut world = World::connected(SIZE, true);
    let data = pattern(3 << 20, 1);
    world.write(4096, &data);
    let heard = world.call(command::READ, 0, 4096, 3 * MIB, &[]);
    assert!(heard.content_chunks > 1 && heard.bytes(4096) == data);
    let heard = world.call(command::READ, command_flags::DF, 4096, DF_BYTES_MAX, &[]);
    assert!(heard.content_chunks == 1 && heard.bytes(4096) == data[..DF_BYTES_MAX as usize]);
    let heard = world.call(command::READ, command_flags::DF, 4096, DF_BYTES_MAX + 1, &[]);
    assert_eq!(heard.error(), Some(ReplyError::Overflow));
    assert_eq!(heard.content_chunks, 0);
    world.close();
}

#[test]
fn flush_reaches_every_shard_once() {
    let mut world = World::connected(SIZE, true);
    assert_eq!(world.call(command::FLUSH, 0, 0, 0, &[]).errors, []);
    let mut shards: Vec<_> = world.shards.seen.iter().map(|&(_, _, shard)| shard).collect();
    shards.sort_unstable();
    assert_eq!(shards, [0, 1, 2]);
    assert!(
        world
            .shards
            .seen
            .iter()
            .all(|&(kind, ..)| kind == RequestKind::Flush)
    );
    world.close();
}

#[test]
fn a_flush_is_answered_after_all_shards() {
    let mut world = World::connected(SIZE, true);
    world.answering = false;
    let cookie = world.ask(command::FLUSH, 0, 0, 0, &[]);
    world.run();
    assert_eq!(world.shards.pending.len(), 3);
    world.answering = true;
    for _ in 0..2 {
        world.turn();
        world.understand();
        assert!(!world.replies.contains_key(&cookie));
    }
    world.run();
    assert!(world.replies[&cookie].done);
    world.close();
}

#[test]
fn fua_goes_with_every_part_that_changes_something() {
    let mut world = World::connected(SIZE, true);
    let fua = command_flags::FUA;
    let data = pattern(3 << 20, 0);
    for (number, flags, data) in [
        (command::WRITE, fua, data.as_slice()),
        (command::TRIM, fua, &[]),
        (command::WRITE_ZEROES, fua, &[]),
        (command::WRITE_ZEROES, fua | command_flags::NO_HOLE, &[]),
    ] {
        world.shards.seen.clear();
        assert_eq!(world.call(number, flags, 100, 3 * MIB, data).errors, []);
        assert!(!world.shards.seen.is_empty());
        for (kind, ..) in &world.shards.seen {
            let durable = matches!(
                kind,
                RequestKind::Write { fua: true } | RequestKind::Discard { fua: true }
            );
            assert!(durable, "command {number}: {kind:?}");
        }
    }
    // Known clients set it on anything.
    for number in [command::READ, command::CACHE] {
        assert_eq!(world.call(number, fua, 0, 4096, &[]).errors, []);
    }
    assert_eq!(world.call(command::FLUSH, fua, 0, 0, &[]).errors, []);
    world.close();
}

#[test]
fn trim_touches_whole_blocks_only() {
    let mut world = World::connected(SIZE, true);
    world.write(0, &pattern(16384, 3));
    assert_eq!(world.call(command::TRIM, 0, 100, 12_000, &[]).errors, []);
    let mut expected = pattern(16384, 3);
    expected[4096..8192].fill(0);
    assert_eq!(world.read(0, 16384), expected);
    world.shards.seen.clear();
    assert_eq!(world.call(command::TRIM, 0, 100, 4000, &[]).errors, []);
    assert_eq!(world.shards.seen, [], "there is no whole block in it");
    world.close();
}

#[test]
fn write_zeroes_punches_whole_blocks_and_writes_the_edges() {
    let mut world = World::connected(SIZE, true);
    for (flags, offset, length) in [
        (0, 100u64, 12_000u32),
        (0, 4096, 8192),
        (0, 5000, 100),
        (0, 4000, 200),
        (command_flags::NO_HOLE, 100, 12_000),
        (command_flags::FAST_ZERO, 4096, 8192),
    ] {
        let mut expected = pattern(20_480, 9);
        world.write(0, &expected);
        world.shards.seen.clear();
        let heard = world.call(command::WRITE_ZEROES, flags, offset, length, &[]);
        assert_eq!(heard.errors, []);
        let punched = world
            .shards
            .seen
            .iter()
            .any(|(kind, ..)| matches!(kind, RequestKind::Discard { .. }));
        let (first, end) = (
            offset.next_multiple_of(4096),
            (offset + u64::from(length)) / 4096 * 4096,
        );
        assert_eq!(punched, flags & command_flags::NO_HOLE == 0 && first < end);
        expected[offset as usize..offset as usize + length as usize].fill(0);
        assert_eq!(world.read(0, 20_480), expected, "{flags} {offset}+{length}");
    }
    world.close();
}

#[test]
fn zeroes_that_cannot_be_fast_say_so_and_change_nothing() {
    let mut world = World::connected(SIZE, true);
    world.write(0, &pattern(8192, 2));
    world.shards.seen.clear();
    let fast = command_flags::FAST_ZERO;
    for (flags, offset, length) in [(fast | command_flags::NO_HOLE, 0, 8192), (fast, 100, 200)] {
        let heard = world.call(command::WRITE_ZEROES, flags, offset, length, &[]);
        assert_eq!(heard.error(), Some(ReplyError::NotSupported));
    }
    assert_eq!(world.shards.seen, []);
    world.close();
}

#[test]
fn the_end_of_a_volume_within_a_block_can_be_zeroed_fast() {
    let mut world = World::connected(SIZE + 512, true);
    world.write(SIZE, &pattern(512, 1));
    let heard = world.call(command::WRITE_ZEROES, command_flags::FAST_ZERO, SIZE, 512, &[]);
    assert_eq!(heard.errors, []);
    assert_eq!(world.read(SIZE, 512), vec![0; 512]);
    world.close();
}

#[test]
fn gigabytes_of_zeroes_take_two_buffers() {
    let mut world = World::connected(8 << 30, true);
    world.answering = false;
    world.ask(command::WRITE_ZEROES, command_flags::NO_HOLE, 0, u32::MAX, &[]);
    world.run();
    assert_eq!(world.shards.pending.len(), 2);
    assert_eq!(world.pool.held_bytes, 2 << 20);
    world.close();
}

#[test]
fn cache_reads_ahead_without_memory() {
    let mut world = World::connected(SIZE, true);
    assert_eq!(world.call(command::CACHE, 0, 100, 10 * MIB, &[]).errors, []);
    assert!(
        world
            .shards
            .seen
            .iter()
            .all(|&(kind, ..)| kind == RequestKind::Cache)
    );
    assert_eq!(world.pool.held_bytes, 0);
    world.close();
}

#[test]
fn block_status_tells_holes_from_data() {
    let mut world = World::connected(SIZE, true);
    world.write(8192, &pattern(4096, 1));
    world.write((1 << 20) - 4096, &pattern(8192, 1));
    let heard = world.call(command::BLOCK_STATUS, 0, 0, 2 * MIB, &[]);
    let expected = [
        (8192, 3),
        (4096, 0),
        (MIB - 4096 - 12288, 3),
        (8192, 0),
        (MIB - 4096, 3),
    ];
    assert_eq!(heard.extents, expected);
    let one = command_flags::REQ_ONE;
    assert_eq!(
        world.call(command::BLOCK_STATUS, one, 8192, 2 * MIB, &[]).extents,
        [(4096, 0)]
    );
    assert_eq!(
        world.call(command::BLOCK_STATUS, one, 100, 200, &[]).extents,
        [(200, 3)]
    );
    assert_eq!(
        world.call(command::BLOCK_STATUS, 0, 8000, 300, &[]).extents,
        [(192, 3), (108, 0)]
    );
    world.close();
}

#[test]
fn block_status_needs_its_context() {
    let mut world = World::connected(SIZE, false);
    let heard = world.call(command::BLOCK_STATUS, 0, 0, 4096, &[]);
    assert_eq!(heard.error(), Some(ReplyError::Invalid));
    world.close();
}

#[test]
fn wrong_requests_get_their_error_and_the_connection_lives() {
    let mut world = World::connected(SIZE, true);
    let data = vec![1; 4096];
    type Case<'a> = (u16, u16, u64, u32, &'a [u8], ReplyError);
    let cases: [Case; 14] = [
        (99, 0, 0, 0, &[], ReplyError::Invalid),
        (command::READ, 1 << 9, 0, 4096, &[], ReplyError::Invalid),
        (
            command::READ,
            command_flags::NO_HOLE,
            0,
            4096,
            &[],
            ReplyError::Invalid,
        ),
        (command::READ, 0, SIZE - 1, 2, &[], ReplyError::Invalid),
        (command::READ, 0, u64::MAX, 2, &[], ReplyError::Invalid),
        (command::READ, 0, 0, 33 * MIB, &[], ReplyError::Overflow),
        (command::WRITE, 0, SIZE - 1, 4096, &data, ReplyError::NoSpace),
        (
            command::WRITE,
            command_flags::DF,
            0,
            4096,
            &data,
            ReplyError::Invalid,
        ),
        (command::WRITE_ZEROES, 0, SIZE, 4096, &[], ReplyError::NoSpace),
        (command::TRIM, 0, SIZE, 4096, &[], ReplyError::Invalid),
        (command::CACHE, 0, SIZE, 4096, &[], ReplyError::Invalid),
        (command::BLOCK_STATUS, 0, SIZE, 4096, &[], ReplyError::Invalid),
        (command::FLUSH, 0, 1, 0, &[], ReplyError::Invalid),
        (command::FLUSH, 0, 0, 1, &[], ReplyError::Invalid),
    ];
    for (number, flags, offset, length, data, error) in cases {
        let heard = world.call(number, flags, offset, length, data);
        assert_eq!(heard.error(), Some(error), "command {number} {offset}+{length}");
    }
    assert_eq!(world.shards.seen, []);
    let heard = world.call(command::WRITE, 0, 0, 33 * MIB, &vec![0; 33 << 20]);
    assert_eq!(heard.error(), Some(ReplyError::Overflow));
    world.write(0, &data);
    world.close();
}

#[test]
fn requests_of_nothing_succeed() {
    for structured in [false, true] {
        let mut world = World::connected(SIZE, structured);
        for number in [
            command::READ,
            command::WRITE,
            command::TRIM,
            command::CACHE,
            command::WRITE_ZEROES,
        ] {
            let heard = world.call(number, 0, SIZE, 0, &[]);
            assert_eq!((heard.errors.len(), heard.data.len()), (0, 0));
        }
        assert_eq!(world.shards.seen, []);
        world.close();
    }
}

#[test]
fn a_read_only_export_cannot_be_changed() {
    let mut world = World::new(table(SIZE));
    world.connect("disk@noon", true);
    for number in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        let data: &[u8] = if number == command::WRITE { &[1; 512] } else { &[] };
        let heard = world.call(number, 0, 0, 512, data);
        assert_eq!(heard.error(), Some(ReplyError::NotPermitted));
    }
    assert_eq!(world.shards.seen, []);
    assert_eq!(world.read(0, 512), vec![0; 512]);
    assert_eq!(world.call(command::FLUSH, 0, 0, 0, &[]).errors, []);
    world.close();
}

#[test]
fn who_asked_for_block_sizes_keeps_to_them() {
    let mut world = World::new(table(SIZE));
    world.unread.extend(3u32.to_be_bytes());
    world.unread.extend(encode_option(
        option::GO,
        &encode_go("big-blocks", &[info::BLOCK_SIZE]),
    ));
    world.run();
    world.heard.clear();
    assert_eq!(
        world.call(command::READ, 0, 512, 4096, &[]).error(),
        Some(ReplyError::Invalid)
    );
    assert_eq!(
        world.call(command::READ, 0, 4096, 512, &[]).error(),
        Some(ReplyError::Invalid)
    );
    assert_eq!(world.read(4096, 4096).len(), 4096);
    world.close();
}

#[test]
fn errors_of_shards_have_names() {
    let cases = [
        (RequestError::Io, ReplyError::Io),
        (RequestError::Corrupt, ReplyError::Io),
        (RequestError::NoSpace, ReplyError::NoSpace),
        (RequestError::NotFound, ReplyError::Shutdown),
        (RequestError::ReadOnly, ReplyError::NotPermitted),
        (RequestError::ShardStopped, ReplyError::Io),
        (RequestError::OutOfRange, ReplyError::NoSpace),
        (RequestError::ShuttingDown, ReplyError::Shutdown),
    ];
    for (error, expected) in cases {
        let mut world = World::connected(SIZE, true);
        world.shards.fail.insert(0, error);
        let heard = world.call(command::WRITE, 0, 0, 4096, &[7; 4096]);
        assert_eq!(heard.error(), Some(expected));
        world.close();
    }
}

#[test]
fn a_failed_part_of_a_read_is_named_by_its_offset() {
    let mut world = World::connected(SIZE, true);
    world.shards.fail.insert(1, RequestError::Corrupt);
    let heard = world.call(command::READ, 0, 0, 3 * MIB, &[]);
    assert_eq!(heard.errors.len(), 1);
    let (error, offset) = heard.errors[0];
    assert_eq!(error, ReplyError::Io);
    let offset = offset.expect("an offset");
    assert_eq!(heard.content_chunks, 2);
    assert!(!heard.data.contains_key(&offset));
    world.close();
}

#[test]
fn a_failed_simple_read_has_no_data() {
    let mut world = World::connected(SIZE, false);
    world.shards.fail.insert(2, RequestError::Io);
    let heard = world.call(command::READ, 0, 0, 3 * MIB, &[]);
    assert_eq!((heard.error(), heard.data.len()), (Some(ReplyError::Io), 0));
    // Long reads begin before all is read; an error before the beginning is still an error.
    world.shards.seen.clear();
    world.shards.fail = (0..4).map(|part| (part, RequestError::Io)).collect();
    let heard = world.call(command::READ, 0, 0, 20 * MIB, &[]);
    assert_eq!((heard.error(), heard.data.len()), (Some(ReplyError::Io), 0));
    world.shards.fail.clear();
    assert_eq!(world.read(0, 20 * MIB).len(), 20 << 20);
    world.close();
}

#[test]
fn a_simple_read_that_fails_after_its_header_ends_the_connection() {
    let mut world = World::connected(SIZE, false);
    world.shards.fail.insert(15, RequestError::Io);
    world.ask(command::READ, 0, 0, 20 * MIB, &[]);
    world.run();
    assert!(world.session.wants_close());
    world.close();
}

#[test]
fn disconnect_finishes_what_was_begun() {
    let mut world = World::connected(SIZE, true);
    world.answering = false;
    let cookie = world.ask(command::WRITE, 0, 0, 4096, &[1; 4096]);
    world.ask(command::DISC, 0, 0, 0, &[]);
    world.ask(command::READ, 0, 0, 4096, &[]);
    world.run();
    assert!(!world.session.wants_close());
    assert!(
        world.session.receive(&mut world.pool).is_none(),
        "nothing is read after it"
    );
    world.answering = true;
    world.run();
    assert!(world.session.wants_close());
    assert!(world.replies[&cookie].done);
    assert_eq!(world.shards.seen.len(), 1);
    world.close();
}

#[test]
fn an_export_that_disappears_ends_its_connections() {
    let mut world = World::connected(SIZE, true);
    world.session.set_exports(table(SIZE));
    assert_eq!(world.read(0, 512).len(), 512);
    world.answering = false;
    let before = world.ask(command::WRITE, 0, 0, 4096, &[1; 4096]);
    world.run();
    world.session.set_exports(Arc::new(ExportTable::default()));
    let after = world.ask(command::READ, 0, 0, 4096, &[]);
    world.run();
    assert_eq!(world.replies[&after].error(), Some(ReplyError::Shutdown));
    assert!(!world.session.wants_close());
    world.answering = true;
    world.run();
    assert!(world.replies[&before].done);
    assert!(world.session.wants_close());
    world.close();
}

#[test]
fn shutting_down_does_not_wait_for_a_client_that_stopped_in_mid_write() {
    let mut world = World::connected(SIZE, true);
    world.ask(command::WRITE, 0, 0, 4096, &[1; 100]);
    world.run();
    assert!(!world.session.wants_close());
    world.session.shut_down();
    world.run();
    assert!(world.session.wants_close());
    world.close();
}

#[test]
fn small_requests_in_one_chunk_of_bytes_are_all_understood() {
    let mut world = World::connected(SIZE, true);
    world.answering = false;
    for index in 0..100u64 {
        world.ask(command::WRITE, 0, index * 512, 512, &[index as u8; 512]);
    }
    let mut receive = world.session.receive(&mut world.pool).expect("wants bytes");
    assert!(world.unread.len() <= crate::nbd::INBOX_BYTES);
    let count = world.unread.len();
    take_front(&mut world.unread, &mut receive.memory()[..count]);
    world.session.received(receive, count, &mut world.pool);
    while let Some(request) = world.session.next_request(&mut world.pool) {
        world.shards.pending.push(request);
    }
    assert_eq!(world.shards.pending.len(), 100);
    world.answering = true;
    world.run();
    assert!(
        world
            .replies
            .values()
            .all(|heard| heard.done && heard.errors.is_empty())
    );
    assert_eq!(world.replies.len(), 100);
    world.close();
}
