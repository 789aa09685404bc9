//! Every option, as a client sees it.

use super::harness::{World, queries, table};
use crate::nbd::client::{encode_go, encode_option};
use crate::nbd::wire::{OptionReplyHeader, info, option, option_reply, transmission_flags as flag};
use crate::nbd::{OPTION_BYTES_MAX, OPTIONS_MAX};
use crate::{Export, ExportTable, PoolIndex};
use std::sync::Arc;

const SIZE: u64 = 8 << 20;

/// A session that was greeted and has the client's flags.
pub(super) fn greeted(flags: u32) -> World {
    greeted_by(table(SIZE), flags)
}

/// The same with these exports.
pub(super) fn greeted_by(exports: Arc<ExportTable>, flags: u32) -> World {
    let mut world = World::new(exports);
    world.run();
    assert_eq!(world.heard[..16], *b"NBDMAGICIHAVEOPT");
    assert_eq!(world.heard[16..], [0, 3]);
    world.heard.clear();
    world.unread.extend(flags.to_be_bytes());
    world.run();
    world
}

/// Sends an option; its replies as (type, data).
pub(super) fn ask(world: &mut World, number: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
    world.unread.extend(encode_option(number, data));
    go_on(world, number)
}

/// What else it says to that option.
pub(super) fn go_on(world: &mut World, number: u32) -> Vec<(u32, Vec<u8>)> {
    world.run();
    let heard = std::mem::take(&mut world.heard);
    let mut rest = heard.as_slice();
    let mut replies = Vec::new();
    while !rest.is_empty() {
        let head = OptionReplyHeader::decode(rest).expect("a reply to an option");
        assert_eq!(head.option, number);
        let end = OptionReplyHeader::BYTES + head.length_bytes as usize;
        replies.push((head.reply, rest[OptionReplyHeader::BYTES..end].to_vec()));
        rest = &rest[end..];
    }
    replies
}

pub(super) fn kinds(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|(kind, _)| *kind).collect()
}

fn be(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn list_names_every_export_with_its_description() {
    let mut world = greeted(3);
    let replies = ask(&mut world, option::LIST, &[]);
    assert_eq!(kinds(&replies), [2, 2, 2, 1]);
    assert_eq!(
        replies[2].1,
        be(&[&[0, 0, 0, 9], b"disk@noon", b"about disk@noon"])
    );
    assert_eq!(
        kinds(&ask(&mut world, option::LIST, b"x")),
        [option_reply::ERR_INVALID]
    );
    world.close();
}

#[test]
fn a_list_longer_than_the_outbox_is_whole() {
    let view = table(SIZE).find("disk").expect("it is there").host_view.clone();
    let exports = (0..300).map(|index| Export {
        name: format!("{index:04000}"),
        pool: PoolIndex(0),
        description: "d".repeat(4096),
        host_view: view.clone(),
    });
    let exports = ExportTable::new(exports);
    let mut world = World::new(Arc::new(exports));
    world.unread.extend(3u32.to_be_bytes());
    world.run();
    world.heard.clear();
    let replies = ask(&mut world, option::LIST, &[]);
    assert_eq!(replies.len(), 301);
    for (index, (_, data)) in replies[..300].iter().enumerate() {
        assert_eq!(data[4..4004], *format!("{index:04000}").as_bytes());
    }
    world.close();
}

#[test]
fn info_tells_what_is_asked_and_go_enters_transmission() {
    let mut world = greeted(3);
    let all = [info::EXPORT, info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 77];
    let flags = flag::HAS_FLAGS
        | flag::SEND_FLUSH
        | flag::SEND_FUA
        | flag::SEND_TRIM
        | flag::SEND_WRITE_ZEROES
        | flag::CAN_MULTI_CONN
        | flag::SEND_CACHE
        | flag::SEND_FAST_ZERO;
    let expected = [
        (3, be(&[&[0, 0], &SIZE.to_be_bytes(), &flags.to_be_bytes()])),
        (3, be(&[&[0, 1], b"disk"])),
        (3, be(&[&[0, 2], b"about disk"])),
        (
            3,
            be(&[
                &[0, 3],
                &512u32.to_be_bytes(),
                &4096u32.to_be_bytes(),
                &(32u32 << 20).to_be_bytes(),
            ]),
        ),
        (1, vec![]),
    ];
    assert_eq!(ask(&mut world, option::INFO, &encode_go("disk", &all)), expected);
    assert_eq!(world.export_name(), None);
    assert_eq!(ask(&mut world, option::GO, &encode_go("disk", &all)), expected);
    assert_eq!(world.export_name(), Some("disk"));
    world.close();
}

#[test]
fn flags_follow_from_what_was_agreed() {
    let flags = |world: &mut World, name: &str| {
        let replies = ask(world, option::INFO, &encode_go(name, &[]));
        assert_eq!(kinds(&replies), [3, 1]);
        u16::from_be_bytes([replies[0].1[10], replies[0].1[11]])
    };
    let mut world = greeted(3);
    assert_eq!(flags(&mut world, "disk") & flag::SEND_DF, 0);
    assert_eq!(kinds(&ask(&mut world, option::STRUCTURED_REPLY, &[])), [1]);
    assert_ne!(flags(&mut world, "disk") & flag::SEND_DF, 0);
    let read_only = flags(&mut world, "disk@noon");
    assert_ne!(read_only & flag::READ_ONLY, 0);
    assert_eq!(
        read_only & (flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO),
        0
    );
    world.close();
}

#[test]
fn an_unknown_export_is_an_error_and_negotiation_goes_on() {
    let mut world = greeted(3);
    for number in [option::INFO, option::GO] {
        assert_eq!(
            kinds(&ask(&mut world, number, &encode_go("nope", &[]))),
            [option_reply::ERR_UNKNOWN]
        );
        // Several exports: there is no default.
        assert_eq!(
            kinds(&ask(&mut world, number, &encode_go("", &[]))),
            [option_reply::ERR_UNKNOWN]
        );
    }
    assert!(!world.session.wants_close());
    world.close();
}

#[test]
fn a_full_export_says_so_and_takes_the_next_when_one_has_left() {
    let view = table(SIZE).find("disk").expect("it is there").clone();
    let exports = Arc::new(ExportTable::new([view]).with_limit(1, &ExportTable::default()));
    let greet = || {
        let mut world = World::new(Arc::clone(&exports));
        world.unread.extend(3u32.to_be_bytes());
        world.run();
        world.heard.clear();
        world
    };
    let mut first = greet();
    assert_eq!(
        kinds(&ask(&mut first, option::GO, &encode_go("disk", &[]))),
        [3, 1]
    );
    let mut second = greet();
    let refused = ask(&mut second, option::GO, &encode_go("disk", &[]));
    assert_eq!(kinds(&refused), [option_reply::ERR_POLICY]);
    let message = String::from_utf8(refused[0].1.clone()).expect("words");
    assert!(message.contains("1 connections"), "{message}");
    assert!(!second.session.wants_close(), "it may ask for another export");
    assert_eq!(
        kinds(&ask(&mut second, option::INFO, &encode_go("disk", &[]))),
        [3, 1],
        "looking costs nothing"
    );
    let mut third = greet();
    third.unread.extend(encode_option(option::EXPORT_NAME, b"disk"));
    third.run();
    assert!(third.session.wants_close() && third.heard.is_empty());
    third.close();
    first.close();
    assert_eq!(
        kinds(&ask(&mut second, option::GO, &encode_go("disk", &[]))),
        [3, 1]
    );
    second.close();
}

#[test]
fn lengths_that_do_not_fit_together_are_invalid() {
    let mut world = greeted(3);
    ask(&mut world, option::STRUCTURED_REPLY, &[]);
    let cases: [&[u8]; 6] = [
        b"",
        &[0, 0, 0, 9, b'd'],
        &[0, 0, 0, 1, b'd', 0],
        &[0, 0, 0, 1, b'd', 0, 1],
        &[0, 0, 0, 1, b'd', 0, 0, 7],
        &[255, 255, 255, 255, 0, 0],
    ];
    for data in cases {
        for number in [
            option::INFO,
            option::GO,
            option::LIST_META_CONTEXT,
            option::SET_META_CONTEXT,
        ] {
            assert_eq!(
                kinds(&ask(&mut world, number, data)),
                [option_reply::ERR_INVALID],
                "option {number} {data:?}"
            );
        }
    }
    world.close();
}

#[test]
fn metadata_contexts_are_listed_and_selected() {
    let context = |id: u8| (4, be(&[&[0, 0, 0, id], b"base:allocation"]));
    let ack = || (1, vec![]);
    let mut world = greeted(3);
    let list = option::LIST_META_CONTEXT;
    let set = option::SET_META_CONTEXT;
    for number in [list, set] {
        assert_eq!(
            kinds(&ask(&mut world, number, &queries("disk", &[]))),
            [option_reply::ERR_INVALID],
            "before structured replies"
        );
    }
    ask(&mut world, option::STRUCTURED_REPLY, &[]);
    assert_eq!(ask(&mut world, list, &queries("disk", &[])), [context(0), ack()]);
    assert_eq!(
        ask(&mut world, list, &queries("disk", &[b"base:"])),
        [context(0), ack()]
    );
    assert_eq!(ask(&mut world, list, &queries("disk", &[b"qemu:"])), [ack()]);
    assert_eq!(ask(&mut world, set, &queries("disk", &[])), [ack()]);
    assert_eq!(
        ask(
            &mut world,
            set,
            &queries("disk", &[b"base:", b"base:other", b"x-y:z"])
        ),
        [ack()]
    );
    let both: [&[u8]; 2] = [b"base:allocation", b"base:allocation"];
    assert_eq!(ask(&mut world, set, &queries("disk", &both)), [context(1), ack()]);
    assert_eq!(
        kinds(&ask(&mut world, set, &queries("nope", &both))),
        [option_reply::ERR_UNKNOWN]
    );
    world.close();
}

#[test]
fn what_is_not_offered_is_refused_and_negotiation_goes_on() {
    let mut world = greeted(3);
    for number in [option::STARTTLS, option::EXTENDED_HEADERS, 4, 12345] {
        assert_eq!(kinds(&ask(&mut world, number, &[])), [option_reply::ERR_UNSUP]);
    }
    assert_eq!(
        kinds(&ask(&mut world, option::STRUCTURED_REPLY, b"x")),
        [option_reply::ERR_INVALID]
    );
    let long = vec![0; OPTION_BYTES_MAX + 1];
    assert_eq!(
        kinds(&ask(&mut world, option::GO, &long)),
        [option_reply::ERR_TOO_BIG]
    );
    assert_eq!(
        kinds(&ask(&mut world, option::GO, &encode_go("disk", &[]))),
        [3, 1]
    );
    world.close();
}

#[test]
fn abort_is_acknowledged_and_ends_the_connection() {
    let mut world = greeted(3);
    assert_eq!(kinds(&ask(&mut world, option::ABORT, b"whatever")), [1]);
    assert!(world.session.wants_close());
    world.close();
}

#[test]
fn export_name_pads_unless_agreed_otherwise() {
    for (flags, padding) in [(3, 0), (1, 124), (0, 124)] {
        let mut world = greeted(flags);
        world.unread.extend(encode_option(option::EXPORT_NAME, b"disk"));
        world.run();
        assert_eq!(world.heard.len(), 10 + padding);
        assert_eq!(world.heard[..8], SIZE.to_be_bytes());
        assert!(world.heard[10..].iter().all(|&byte| byte == 0));
        assert_eq!(world.export_name(), Some("disk"));
        world.close();
    }
}

#[test]
fn the_only_export_is_the_default() {
    let one = ExportTable::new(table(SIZE).find("disk").cloned());
    let mut world = World::new(Arc::new(one));
    world.unread.extend(3u32.to_be_bytes());
    world
        .unread
        .extend(encode_option(option::GO, &encode_go("", &[])));
    world.run();
    assert_eq!(world.export_name(), Some("disk"));
    world.close();
}

#[test]
fn what_cannot_be_answered_ends_the_connection() {
    let option = |number, data: &[u8]| encode_option(number, data);
    let mut bad_magic = option(option::LIST, &[]);
    bad_magic[3] ^= 1;
    let mut huge = option(option::INFO, &[]);
    huge[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    let cases = [
        (3, option(option::EXPORT_NAME, b"nope")),
        (3, option(option::EXPORT_NAME, &[b'a'; 5000])),
        (3, bad_magic),
        (3, huge),
        (2, option(option::LIST, &[])), // without fixed newstyle only EXPORT_NAME has an answer
        (3, option(option::STARTTLS, &[]).repeat(OPTIONS_MAX as usize + 1)),
        (4, vec![]), // a flag that does not exist
    ];
    for (index, (flags, bytes)) in cases.into_iter().enumerate() {
        let mut world = greeted(flags);
        world.unread.extend(bytes);
        world.run();
        assert!(world.session.wants_close(), "case {index}");
        assert_eq!(world.export_name(), None, "case {index}");
        world.close();
    }
}

#[test]
fn a_handshake_cut_anywhere_ends_there() {
    let whole = super::harness::hello("disk", true);
    for cut in 0..whole.len() {
        let mut world = World::new(table(SIZE));
        world.unread.extend(&whole[..cut]);
        world.run();
        assert!(!world.session.wants_close(), "still waiting after {cut} bytes");
        let receive = world.session.receive(&mut world.pool).expect("more is wanted");
        world.session.received(receive, 0, &mut world.pool);
        world.run();
        assert!(world.session.wants_close());
        world.close();
    }
}
