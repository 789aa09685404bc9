//! No client takes everything, and nobody waits for ever for memory.

use super::harness::{World, table};
use crate::nbd::Limits;
use crate::nbd::wire::command;

const SIZE: u64 = 256 << 20;
const MIB: u32 = 1 << 20;

#[test]
fn a_client_that_asks_too_much_is_not_read_any_more() {
    let limits = Limits {
        requests: 8,
        ..Limits::default()
    };
    let mut world = World::with_limits(table(SIZE), limits, usize::MAX);
    world.connect("disk", true);
    world.answering = false;
    for index in 0..50_000 {
        world.ask(command::READ, 0, index * 4096, 4096, &[]);
    }
    world.run();
    assert_eq!(world.shards.pending.len(), 8);
    assert_eq!(world.session.requests_in_flight(), 8);
    assert!(
        !world.unread.is_empty(),
        "what does not fit the inbox stays in the socket"
    );
    world.answering = true;
    world.run();
    assert_eq!(world.replies.len(), 50_000);
    world.close();
}

#[test]
fn a_client_that_does_not_listen_holds_its_share_at_most() {
    let limits = Limits {
        data_bytes: 8 << 20,
        ..Limits::default()
    };
    for structured in [false, true] {
        let mut world = World::with_limits(table(SIZE), limits, usize::MAX);
        world.connect("disk", structured);
        world.listening = false;
        for index in 0..100 {
            world.ask(command::READ, 0, index * u64::from(MIB), MIB, &[]);
        }
        world.run();
        assert!(world.pool.held_bytes <= 8 << 20);
        assert!(world.session.is_starved());
        world.listening = true;
        world.run();
        assert!(world.replies.values().all(|heard| heard.done));
        assert_eq!(world.replies.len(), 100);
        assert_eq!(world.pool.held_bytes, 0);
        world.close();
    }
}

/// Worlds that share one pool, as the sessions of one processor do: each is given what the others left.
fn turn_about(worlds: &mut [World], pool_bytes: usize) {
    loop {
        let mut moved = false;
        for index in 0..worlds.len() {
            let others: usize = worlds.iter().map(|world| world.pool.held_bytes).sum();
            let others = others - worlds[index].pool.held_bytes;
            worlds[index].pool.limit_bytes = pool_bytes - others;
            moved |= worlds[index].turn();
        }
        if !moved {
            return;
        }
    }
}

#[test]
fn clients_that_do_not_listen_leave_enough_for_one_that_does() {
    for structured in [false, true] {
        let pool_bytes = 64 << 20;
        let mut worlds: Vec<World> = (0..20)
            .map(|_| {
                let mut world = World::with_limits(table(SIZE), Limits::default(), pool_bytes);
                world.connect("disk", structured);
                world
            })
            .collect();
        for world in &mut worlds[1..] {
            world.listening = false;
            for index in 0..100 {
                world.ask(command::READ, 0, index * u64::from(MIB), MIB, &[]);
            }
        }
        turn_about(&mut worlds, pool_bytes);
        let held: usize = worlds.iter().map(|world| world.pool.held_bytes).sum();
        assert!(held > pool_bytes / 2, "they took what they could get");
        for length in [4096, 128 << 10] {
            let cookie = worlds[0].ask(command::READ, 0, 0, length, &[]);
            let write = worlds[0].ask(command::WRITE, 0, 0, length, &vec![1; length as usize]);
            turn_about(&mut worlds, pool_bytes);
            worlds[0].understand();
            for cookie in [cookie, write] {
                assert!(worlds[0].replies[&cookie].done, "{length} bytes are served");
            }
        }
        for world in worlds {
            world.close();
        }
    }
}

#[test]
fn a_payload_that_comes_byte_by_byte_takes_no_memory_where_that_is_scarce() {
    let pool_bytes = 64 << 20;
    for (taken, expected) in [(0, 1 << 20), (40 << 20, 0)] {
        let mut world = World::with_limits(table(SIZE), Limits::default(), pool_bytes);
        world.connect("disk", true);
        world.pool.held_bytes = taken;
        let cookie = world.ask(command::WRITE, 0, 0, MIB, &[5; 1000]);
        world.run();
        assert_eq!(world.pool.held_bytes - taken, expected);
        world.unread.extend(vec![5; (1 << 20) - 1000]);
        world.run();
        assert!(world.replies[&cookie].done && world.replies[&cookie].errors.is_empty());
        assert_eq!(world.read(0, 4096), [5; 4096]);
        world.pool.held_bytes -= taken;
        world.close();
    }
}

#[test]
fn a_client_that_does_not_listen_can_still_write() {
    let limits = Limits {
        data_bytes: 4 << 20,
        ..Limits::default()
    };
    let mut world = World::with_limits(table(SIZE), limits, usize::MAX);
    world.connect("disk", true);
    world.listening = false;
    for index in 0..4 {
        world.ask(command::READ, 0, index * u64::from(MIB), MIB, &[]);
    }
    world.run();
    assert_eq!(world.pool.held_bytes, 4 << 20);
    world.ask(command::WRITE, 0, 0, 32 * MIB, &vec![3; 32 << 20]);
    world.run();
    assert!(world.unread.is_empty(), "the write was received");
    world.listening = true;
    world.run();
    assert_eq!(world.replies.len(), 5);
    world.close();
}

/// Big requests get through a pool of five buffers, whatever else goes on.
#[test]
fn the_largest_requests_pass_through_a_small_pool() {
    for structured in [false, true] {
        let mut world = World::with_limits(table(SIZE), Limits::default(), 5 << 20);
        world.connect("disk", structured);
        for index in 0..4u64 {
            let at = index * (32 << 20) + 100 * index;
            world.ask(command::WRITE, 0, at, 32 * MIB, &vec![index as u8 + 1; 32 << 20]);
        }
        world.run();
        world.replies.clear();
        let mut cookies = Vec::new();
        for index in 0..4u64 {
            let at = index * (32 << 20) + 100 * index;
            cookies.push((index, at, world.ask(command::READ, 0, at, 32 * MIB, &[])));
            world.ask(command::READ, 0, at, 3 * MIB, &[]);
        }
        world.run();
        for (index, at, cookie) in cookies {
            let heard = world.replies.remove(&cookie).expect("a reply");
            assert!(heard.done && heard.errors.is_empty());
            let bytes = heard.bytes(at);
            assert_eq!(bytes.len(), 32 << 20);
            // The next write covers all but the first 100 bytes after this one's end.
            assert!(
                bytes.iter().all(|&byte| byte == index as u8 + 1),
                "request {index}"
            );
        }
        assert_eq!(world.replies.len(), 4);
        world.close();
    }
}

#[test]
fn a_write_understood_while_bytes_are_wanted_is_not_forgotten() {
    let limits = Limits {
        requests: 1,
        ..Limits::default()
    };
    let mut world = World::with_limits(table(SIZE), limits, usize::MAX);
    world.connect("disk", true);
    world.answering = false;
    for index in 0..2u64 {
        world.ask(command::WRITE, 0, index * 512, 512, &[7; 512]);
    }
    world.run();
    assert_eq!(world.shards.pending.len(), 1, "the other one waits for its turn");
    world.answer_one();
    let send = world.session.next_send(&mut world.pool).expect("the first reply");
    let receive = world.session.receive(&mut world.pool).expect("more is wanted");
    assert!(world.session.is_starved(), "the second write wants to be taken");
    assert!(world.session.next_request(&mut world.pool).is_some());
    world.session.received(receive, 0, &mut world.pool);
    world.session.sent(send, 0, &mut world.pool);
}

#[test]
fn an_empty_pool_is_waited_for() {
    let mut world = World::with_limits(table(SIZE), Limits::default(), 0);
    world.connect("disk", true);
    let read = world.ask(command::READ, 0, 0, 4096, &[]);
    let status = world.ask(command::BLOCK_STATUS, 0, 0, 4096, &[]);
    let flush = world.ask(command::FLUSH, 0, 0, 0, &[]);
    let write = world.ask(command::WRITE, 0, 0, 512, &[1; 512]);
    world.run();
    assert!(world.session.is_starved());
    assert!(world.replies[&flush].done, "what needs no memory goes on");
    assert_eq!(world.replies.len(), 1);
    world.pool.limit_bytes = 1 << 20;
    world.run();
    assert!(
        [read, status, write]
            .iter()
            .all(|cookie| world.replies[cookie].done)
    );
    assert!(!world.session.is_starved());
    world.close();
}
