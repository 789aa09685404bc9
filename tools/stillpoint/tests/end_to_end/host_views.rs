//! Snapshots as hosts see them: opened at once (V14), complete in their parts (V12, V13), and written by nobody (V9).

#![allow(clippy::print_stdout, reason = "figures worth reading")]

use std::sync::Arc;
use std::time::Instant;

use crate::support::history::History;
use crate::support::load::Load;
use crate::support::nbd::{Receiver, Sender};
use crate::support::raw::{FLAGS, Raw, queries};
use crate::support::{Appliance, list, member, number};
use stillpoint_export::nbd::client::{self, Chunk, ReplyHead};
use stillpoint_export::nbd::wire::{ReplyError, RequestHeader, chunk, command, command_flags};

const MIB: u64 = 1 << 20;
const VOLUME_BYTES: u64 = 16 * MIB;
/// Requests that are sent before their replies are taken.
const TOGETHER: usize = 256;

fn appliance() -> Appliance {
    let appliance = Appliance::started(&["--processors", "2"]);
    appliance.create_pool("tank", 2, "1GiB", &[]);
    let arguments = [
        "volume",
        "create",
        "disk",
        "--size",
        "16MiB",
        "--block-size",
        "512",
    ];
    appliance.run(&[&arguments[..], &["--object-size", "1MiB"]].concat());
    appliance.run(&["export", "create", "disk"]);
    appliance
}

fn content(appliance: &Appliance, export: &str) -> Vec<u8> {
    let bytes = appliance.connect(export).read_all();
    bytes.unwrap_or_else(|error| panic!("{export}: {error}"))
}

/// Sends these requests, as (command, flags, offset, length), each write with its payload; the result of each.
fn attempt(
    sender: &mut Sender,
    receiver: &mut Receiver,
    requests: &[(u16, u16, u64, u32)],
) -> Vec<Result<(), ReplyError>> {
    let mut results = vec![None; requests.len()];
    let mut cookie = 0;
    for together in requests.chunks(TOGETHER) {
        let first = cookie;
        for &(command, flags, offset_bytes, length_bytes) in together {
            let header = RequestHeader {
                flags,
                command,
                cookie,
                offset_bytes,
                length_bytes,
            };
            let payload_bytes = if command == command::WRITE {
                length_bytes
            } else {
                0
            };
            let payload = vec![0xee; payload_bytes as usize];
            sender.send(&header, &payload).expect("the server takes it");
            cookie += 1;
        }
        for _ in first..cookie {
            let of_read = |cookie: u64| {
                let (command, _, offset, length) = requests[cookie as usize];
                (command == command::READ).then_some((offset, length as usize))
            };
            let reply = receiver.receive(of_read).expect("a reply");
            let before = results[reply.cookie as usize].replace(reply.result);
            assert_eq!(before, None, "one reply to each");
        }
    }
    results
        .into_iter()
        .map(|result| result.expect("a reply to each"))
        .collect()
}

/// Every command number there is with no flags, and the first ones with every set of flags.
fn everything() -> Vec<(u16, u16, u64, u32)> {
    let numbers = (0..=u16::MAX).map(|number| (number, 0));
    let flagged = (0..16).flat_map(|number| (1..64).map(move |flags| (number, flags)));
    let all = numbers
        .chain(flagged)
        .filter(|(number, _)| *number != command::DISC);
    let ranges = [
        (0, 4096),
        (512, 512),
        (VOLUME_BYTES - 8192, 8192),
        (MIB - 4096, 8192),
    ];
    all.enumerate()
        .map(|(index, (number, flags))| {
            let (offset, length) = if number == command::FLUSH {
                (0, 0)
            } else {
                ranges[index % 4]
            };
            (number, flags, offset, length)
        })
        .collect()
}

/// V9: every command there is, with every set of flags, is sent to a snapshot; nothing changes.
#[test]
fn v9_no_command_writes_through_a_snapshot() {
    let appliance = appliance();
    let history = Arc::new(History::new(1, VOLUME_BYTES));
    let load = Load::start(&appliance.nbd_socket(), "disk", 2, &history, 1, 5);
    load.wait_for_answers(300);
    appliance.run(&["snapshot", "create", "disk@s", "--hold-limit", "2s"]);
    appliance.run(&["export", "create", "disk@s"]);
    let before = content(&appliance, "disk@s");
    let requests = everything();
    let (mut sender, mut receiver) = appliance.connect("disk@s").split();
    let results = attempt(&mut sender, &mut receiver, &requests);
    for (&(number, flags, ..), result) in requests.iter().zip(results) {
        let request = format!("command {number} with flags {flags:#x}");
        let writes = [command::WRITE, command::TRIM, command::WRITE_ZEROES].contains(&number);
        let reads = [
            command::READ,
            command::FLUSH,
            command::CACHE,
            command::BLOCK_STATUS,
        ]
        .contains(&number);
        let known = match number {
            command::WRITE_ZEROES => command_flags::FUA | command_flags::NO_HOLE | command_flags::FAST_ZERO,
            command::READ => command_flags::FUA | command_flags::DF,
            command::BLOCK_STATUS => command_flags::FUA | command_flags::REQ_ONE,
            _ => command_flags::FUA,
        };
        let expected = match (writes, reads, flags & !known == 0) {
            (true, _, true) => Err(ReplyError::NotPermitted),
            (_, true, true) => Ok(()),
            _ => Err(ReplyError::Invalid),
        };
        assert_eq!(result, expected, "{request}");
    }
    sender.end();
    assert!(content(&appliance, "disk@s") == before, "nothing was written");
    // Not by a client that was never told that it is read-only, either.
    old_client_writes(&appliance);
    assert!(content(&appliance, "disk@s") == before, "nothing was written");
    let answered = load.finish();
    println!(
        "{} kinds of requests while {answered} were answered to others",
        requests.len()
    );
    // Nor is it there any other way: an export of a snapshot cannot be made writable.
    let told = appliance.run(&["export", "list"]);
    let of_snapshot = list(&told, "")
        .iter()
        .find(|export| member(export, "/name") == "disk@s");
    assert_eq!(member(of_snapshot.expect("it is exported"), "/read_only"), true);
    appliance.stop();
}

/// A client of the first days: no options, no structured replies, no look at the flags.
fn old_client_writes(appliance: &Appliance) {
    use stillpoint_export::nbd::client::encode_option;
    use stillpoint_export::nbd::wire::option;
    let mut raw = Raw::open(&appliance.nbd_socket()).expect("it listens");
    raw.send(&FLAGS.to_be_bytes());
    raw.send(&encode_option(option::EXPORT_NAME, b"disk@s"));
    raw.receive(10).expect("size and flags");
    for (cookie, number) in [command::WRITE, command::TRIM, command::WRITE_ZEROES]
        .into_iter()
        .enumerate()
    {
        let header = RequestHeader {
            flags: 0,
            command: number,
            cookie: cookie as u64,
            offset_bytes: 0,
            length_bytes: 4096,
        };
        raw.send(&header.encode());
        if number == command::WRITE {
            raw.send(&[0xee; 4096]);
        }
        let reply = raw.receive(16).expect("a simple reply");
        let (head, _) = client::parse_head(&reply).expect("a reply").expect("all of it");
        let ReplyHead::Simple(reply) = head else {
            panic!("{head:?}")
        };
        assert_eq!(reply.error, ReplyError::NotPermitted as u32);
    }
    raw.end();
}

/// V14: a snapshot is opened as soon as it is there, and shows its instant while the volume moves on.
#[test]
fn v14_a_snapshot_is_opened_at_once_under_load() {
    let appliance = appliance();
    let history = Arc::new(History::new(1, VOLUME_BYTES));
    let load = Load::start(&appliance.nbd_socket(), "disk", 3, &history, 1, 6);
    let mut seen = Vec::new();
    for number in 1..=5 {
        load.wait_for_answers(200 * number);
        let name = format!("disk@{number}");
        let sent = history.now();
        appliance.run(&["snapshot", "create", &name, "--hold-limit", "2s"]);
        let answered = history.now();
        let began = Instant::now();
        appliance.run(&["export", "create", &name]);
        let mut connection = appliance.connect(&name);
        let first = connection.read(0, 4096);
        println!("{name}: exported and read after {:.1?}", began.elapsed());
        let bytes = connection
            .read_all()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(first.is_ok_and(|first| first == bytes[..4096]));
        let content = history.first_look(&bytes, sent, answered);
        seen.push((name, content.unwrap_or_else(|broken| panic!("{}", broken.0))));
    }
    load.finish();
    // Each still shows its instant, whatever was written since.
    for (name, shown) in &seen {
        let looked = history.next_look(&content(&appliance, name), shown);
        looked.unwrap_or_else(|broken| panic!("{name}: {}", broken.0));
    }
    appliance.stop();
}

/// V12, V13: the overall snapshot names every intermediate one, each with its objects, point-in-time copy and change log.
#[test]
fn v12_v13_a_snapshot_names_its_parts() {
    let appliance = appliance();
    appliance.run(&[
        "volume",
        "create",
        "two",
        "--size",
        "3MiB",
        "--object-size",
        "1MiB",
    ]);
    let mut connection = appliance.connect("disk");
    let mut write = |offset: u64, length: usize| {
        let written = connection.write(offset, &vec![1; length], true);
        written.unwrap_or_else(|error| panic!("{error}"));
    };
    write(0, 3 << 20);
    appliance.run(&["snapshot", "create", "disk,two", "--name", "s"]);
    write(0, 8192);
    write(MIB, 4096);
    let told = appliance.run(&["snapshot", "show", "disk@s"]);
    assert_eq!(list(&told, "/volumes").len(), 2);
    let stamp = number(&told, "/time_stamp_ns");
    let parts = list(&told, "/intermediate_snapshots");
    assert_eq!(parts.len(), 4, "one for each volume on each shard");
    let mut objects = Vec::new();
    let (mut copied, mut changed) = (0, 0);
    for part in parts {
        let volume = member(part, "/volume").as_str().expect("a name");
        let step = number(part, "/object_step");
        let first = number(part, "/first_object");
        objects.extend((0..number(part, "/objects")).map(|at| (volume.to_owned(), first + at * step)));
        let log = member(part, "/change_log");
        copied += number(part, "/point_in_time_copy/mapped_bytes");
        changed += number(log, "/blocks");
        assert_eq!(number(log, "/bytes"), 4096 * number(log, "/blocks"));
        let (first, last) = (number(log, "/first_change_ns"), number(log, "/last_change_ns"));
        if number(log, "/blocks") == 0 {
            assert_eq!((first, last), (0, 0));
        } else {
            assert!(stamp < first && first <= last, "{part}");
        }
    }
    objects.sort();
    let all = [("disk", 16), ("two", 3)];
    let expected: Vec<(String, u64)> = all
        .into_iter()
        .flat_map(|(name, count)| (0..count).map(move |object| (name.to_owned(), object)))
        .collect();
    assert_eq!(objects, expected, "every object is in one part");
    assert_eq!((copied, changed), (3 << 20, 3));
    appliance.stop();
}

#[test]
fn a_context_whose_snapshot_is_gone_gives_errors_and_the_connection_lives() {
    use stillpoint_export::nbd::client::{encode_go, encode_option};
    use stillpoint_export::nbd::wire::option;
    let appliance = appliance();
    appliance.run(&["snapshot", "create", "disk@s"]);
    appliance
        .connect("disk")
        .write(0, &[9; 4096], false)
        .unwrap_or_else(|error| panic!("{error}"));
    let mut raw = Raw::open(&appliance.nbd_socket()).expect("it listens");
    raw.send(&FLAGS.to_be_bytes());
    raw.send(&encode_option(option::STRUCTURED_REPLY, &[]));
    let wanted: [&[u8]; 2] = [b"base:allocation", b"stillpoint:changes:s"];
    let contexts = queries("disk", &wanted);
    raw.send(&encode_option(option::SET_META_CONTEXT, &contexts));
    raw.send(&encode_option(option::GO, &encode_go("disk", &[])));
    raw.skip_options();
    let whole = (VOLUME_BYTES - 4096) as u32;
    let contexts = [(1, vec![(4096, 0), (whole, 3)]), (2, vec![(4096, 1), (whole, 0)])];
    assert_eq!(block_status(&mut raw), (contexts.to_vec(), None));
    appliance.run(&["snapshot", "delete", "disk@s"]);
    let (told, error) = block_status(&mut raw);
    assert_eq!((told, error), (contexts[..1].to_vec(), Some(ReplyError::Invalid)));
    let header = RequestHeader {
        flags: 0,
        command: command::FLUSH,
        cookie: 2,
        offset_bytes: 0,
        length_bytes: 0,
    };
    raw.send(&header.encode());
    let (_, kind, payload) = next_chunk(&mut raw);
    assert_eq!((kind, payload.len()), (chunk::NONE, 0));
    raw.end();
    appliance.stop();
}

type Contexts = Vec<(u32, Vec<(u32, u32)>)>;

/// What each context tells of the whole volume, and the error it ended in.
fn block_status(raw: &mut Raw) -> (Contexts, Option<ReplyError>) {
    let header = RequestHeader {
        flags: 0,
        command: command::BLOCK_STATUS,
        cookie: 1,
        offset_bytes: 0,
        length_bytes: VOLUME_BYTES as u32,
    };
    raw.send(&header.encode());
    let mut told = Vec::new();
    loop {
        let (flags, kind, payload) = next_chunk(raw);
        let error = match client::parse_chunk(kind, &payload).expect("a chunk") {
            Chunk::Extents { context, extents } => {
                told.push((context, extents));
                None
            }
            Chunk::Error { error, .. } => Some(error),
            other => panic!("{other:?}"),
        };
        if flags & chunk::DONE != 0 {
            return (told, error);
        }
    }
}

/// Flags, kind and payload.
fn next_chunk(raw: &mut Raw) -> (u16, u16, Vec<u8>) {
    let bytes = raw.receive(20).expect("the head of a chunk");
    let (head, _) = client::parse_head(&bytes).expect("a reply").expect("all of it");
    let ReplyHead::Chunk(head) = head else {
        panic!("{head:?}")
    };
    let payload = raw.receive(head.length_bytes as usize).expect("its payload");
    (head.flags, head.kind, payload)
}
