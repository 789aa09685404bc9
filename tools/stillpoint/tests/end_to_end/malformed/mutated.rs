//! Recorded sessions, damaged at random, in great numbers.
//!
//! Every client owns a volume. What its sessions may have changed follows from the bytes that it sent alone: each place
//! in them that looks like the header of a write, discard or zeroing within the volume names a range. All other bytes
//! have to stay as they were.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use stillpoint_export::nbd::client::{encode_go, encode_option};
use stillpoint_export::nbd::wire::{
    REQUEST_MAGIC, RequestHeader, command, command_flags as flag, info, option,
};
use stillpoint_simulator::random::Random;

use super::{Siege, VOLUME_BYTES, contents};
use crate::support::nbd::Connection;
use crate::support::raw::{FLAGS, Raw, hello, queries};

/// Clients, each with a volume of its own.
const CLIENTS: usize = 4;
/// Sessions between two looks at the whole volume.
const SESSIONS_PER_LOOK: u64 = 250;
/// A write up to this length that does not cross this boundary goes to one shard as one part: without all of its
/// payload nothing of it may be written.
const WHOLE_BYTES: u64 = 1 << 20;

/// Sessions as well-behaved clients have them, each with everything in it.
fn recordings(export: &str) -> Vec<Vec<u8>> {
    let request = |command, flags, offset_bytes, length_bytes: u32| {
        RequestHeader {
            flags,
            command,
            cookie: offset_bytes ^ u64::from(length_bytes),
            offset_bytes,
            length_bytes,
        }
        .encode()
        .to_vec()
    };
    let write = |flags, offset, length: usize| {
        let mut bytes = request(command::WRITE, flags, offset, length as u32);
        bytes.extend(vec![0xee; length]);
        bytes
    };
    let end = || request(command::DISC, 0, 0, 0);
    let all = [
        write(0, 4000, 3000),
        request(command::READ, 0, 0, 70_000),
        request(command::FLUSH, 0, 0, 0),
        request(command::TRIM, 0, 8192, 8192),
        request(command::WRITE_ZEROES, flag::NO_HOLE, 100, 5000),
        request(command::BLOCK_STATUS, flag::REQ_ONE, 0, 1 << 20),
        request(command::CACHE, 0, 0, 4096),
        request(command::READ, flag::DF, 512, 512),
        end(),
    ];
    let across = [
        write(flag::FUA, (1 << 20) - 700, 1500),
        request(command::READ, 0, (1 << 20) - 4096, 8192),
        request(command::WRITE_ZEROES, 0, (2 << 20) - 6000, 12_000),
        request(command::TRIM, flag::FUA, (3 << 20) - 4096, 8192),
        end(),
    ];
    let small = [write(0, 512, 512), request(command::READ, 0, 512, 512), end()];
    let old_style = [
        FLAGS.to_be_bytes().to_vec(),
        encode_option(option::LIST, &[]),
        encode_option(option::EXPORT_NAME, export.as_bytes()),
        write(0, 20_000, 100),
        request(command::READ, 0, 20_000, 100),
        end(),
    ];
    let talkative = [
        FLAGS.to_be_bytes().to_vec(),
        encode_option(option::STARTTLS, &[]),
        encode_option(option::LIST, &[]),
        encode_option(option::STRUCTURED_REPLY, &[]),
        encode_option(option::LIST_META_CONTEXT, &queries(export, &[b"base:", b"qemu:"])),
        encode_option(
            option::INFO,
            &encode_go(export, &[info::BLOCK_SIZE, info::NAME, info::DESCRIPTION]),
        ),
        encode_option(
            option::SET_META_CONTEXT,
            &queries(export, &[b"base:allocation", b"stillpoint:changes:noon"]),
        ),
        encode_option(option::EXTENDED_HEADERS, &[]),
        encode_option(option::GO, &encode_go(export, &[info::BLOCK_SIZE])),
        write(0, 1024, 512),
        request(command::BLOCK_STATUS, 0, 0, 4096),
        end(),
    ];
    vec![
        [&hello(export, true, &[])[..], &all.concat()].concat(),
        [&hello(export, false, &[])[..], &all.concat()].concat(),
        [&hello(export, true, &[])[..], &across.concat()].concat(),
        [&hello(export, true, &[info::BLOCK_SIZE])[..], &small.concat()].concat(),
        old_style.concat(),
        talkative.concat(),
    ]
}

/// Damages a session at one to four places.
fn damage(random: &mut Random, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..random.between(1, 4) {
        if bytes.is_empty() {
            return;
        }
        // Half of it where the negotiation and the headers are, half of it anywhere.
        let reach = if random.below(2) == 0 {
            bytes.len().min(300)
        } else {
            bytes.len()
        };
        let at = random.below(reach as u64) as usize;
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.bits() as u8,
            2 => drop(bytes.remove(at)),
            3 => bytes.insert(at, random.bits() as u8),
            4 => bytes.truncate(at),
            5 => {
                // A length, an offset, a count: the extremes.
                let value = [0u32, 1, u32::MAX, 1 << 31, 0x7fff_ffff, 32 << 20, (32 << 20) + 1];
                let value = value[random.below(value.len() as u64) as usize].to_be_bytes();
                for (to, from) in bytes[at..].iter_mut().zip(value) {
                    *to = from;
                }
            }
            6 => {
                // Some of it once more.
                let end = (at + random.between(1, 64) as usize).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            7 => {
                // The rest of another session.
                let other = &others[random.below(others.len() as u64) as usize];
                let from = random.below(other.len() as u64) as usize;
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            _ => {
                // A header's field: requests begin with a magic that is easily found.
                let magic = REQUEST_MAGIC.to_be_bytes();
                if let Some(found) = bytes[at..].windows(4).position(|four| four == magic) {
                    let field = at + found + 4 + random.below(24) as usize;
                    if let Some(byte) = bytes.get_mut(field) {
                        *byte = random.bits() as u8;
                    }
                }
            }
        }
    }
}

/// Marks what these bytes may change, as far as anything in them looks like a request.
fn mark(bytes: &[u8], may_change: &mut [bool]) {
    for start in 0..bytes.len() {
        let Some(header) = RequestHeader::decode(&bytes[start..]) else {
            continue;
        };
        let (first, length) = (header.offset_bytes, u64::from(header.length_bytes));
        let Some(end) = first.checked_add(length).filter(|&end| end <= VOLUME_BYTES) else {
            continue;
        };
        let payload = (bytes.len() - start - RequestHeader::BYTES) as u64;
        let one_part = length > 0 && first / WHOLE_BYTES == (end - 1) / WHOLE_BYTES;
        let changes = match header.command {
            command::WRITE => payload >= length || !one_part,
            command::TRIM | command::WRITE_ZEROES => true,
            _ => false,
        };
        if changes {
            may_change[first as usize..end as usize].fill(true);
        }
    }
}

/// One client's sessions.
fn attack(
    socket: &Path,
    export: &str,
    sessions: u64,
    seed: u64,
    sent_bytes: &AtomicU64,
) -> Result<u64, String> {
    let mut random = Random::new(seed);
    let recordings = recordings(export);
    let mut content = contents();
    let mut may_change = Marks::new(content.len());
    let mut changed = 0;
    for session in 0..sessions {
        let mut bytes = recordings[random.below(recordings.len() as u64) as usize].clone();
        damage(&mut random, &mut bytes, &recordings);
        mark(&bytes, &mut may_change.now);
        let mut raw = Raw::silent(socket).map_err(|error| format!("session {session}: {error}"))?;
        raw.send(&bytes);
        sent_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if random.below(8) > 0 {
            raw.end();
            raw.rest();
        } // else it goes without a word
        drop(raw);
        if session % SESSIONS_PER_LOOK == SESSIONS_PER_LOOK - 1 || session + 1 == sessions {
            changed += look(socket, export, &mut content, &mut may_change)
                .map_err(|error| format!("after session {session} of seed {seed}: {error}"))?;
        }
    }
    Ok(changed)
}

/// What may change. A session that went without a word may still be at work when others have ended: its marks count for
/// the next look too.
struct Marks {
    now: Vec<bool>,
    before: Vec<bool>,
}

impl Marks {
    fn new(bytes: usize) -> Self {
        Self {
            now: vec![false; bytes],
            before: vec![false; bytes],
        }
    }
}

/// Reads the volume: only what may have changed has. Gives how many bytes that were.
fn look(socket: &Path, export: &str, content: &mut Vec<u8>, may_change: &mut Marks) -> Result<u64, String> {
    let mut connection = Connection::open(socket, export).map_err(|error| error.to_string())?;
    let bytes = connection.read_all().map_err(|error| error.to_string())?;
    let mut changed = 0;
    for (place, (new, old)) in bytes.iter().zip(content.iter()).enumerate() {
        if new == old {
            continue;
        }
        changed += 1;
        if !may_change.now[place] && !may_change.before[place] {
            return Err(format!(
                "byte {place} changed from {old:#x} to {new:#x}, and no request named it"
            ));
        }
    }
    *content = bytes;
    core::mem::swap(&mut may_change.now, &mut may_change.before);
    may_change.now.fill(false);
    Ok(changed)
}

#[test]
fn a_change_that_no_request_named_is_seen() {
    let siege = Siege::begin(1, &[]);
    let socket = siege.appliance.nbd_socket();
    let mut content = contents();
    let mut marks = Marks::new(content.len());
    for (number, session) in recordings("v0").iter().enumerate() {
        mark(session, &mut marks.now);
        let mut raw = Raw::silent(&socket).expect("connected");
        raw.send(session);
        raw.rest();
        let changed = look(&socket, "v0", &mut content, &mut marks).expect("all of it was named");
        // The second one does what the first did.
        assert_eq!(changed > 0, number != 1);
        marks = Marks::new(content.len());
    }
    let mut connection = siege.appliance.connect("v0");
    connection
        .write(3 << 20, &[1; 512], false)
        .unwrap_or_else(|error| panic!("{error}"));
    let error = look(&socket, "v0", &mut content, &mut marks).expect_err("nobody named that");
    assert!(error.contains(&format!("byte {}", 3 << 20)), "{error}");
    drop(connection);
    siege.end();
}

#[test]
fn damaged_sessions_change_only_what_their_requests_name() {
    let sessions: u64 =
        std::env::var("STILLPOINT_SESSIONS").map_or(100_000, |count| count.parse().expect("a number"));
    let seed: u64 = std::env::var("STILLPOINT_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let siege = Siege::begin(CLIENTS, &[]);
    let socket = siege.appliance.nbd_socket();
    let sent_bytes = AtomicU64::new(0);
    let results: Vec<Result<u64, String>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (socket, sent_bytes) = (&socket, &sent_bytes);
                let seed = seed.wrapping_mul(1000) + client as u64;
                scope.spawn(move || {
                    let count = sessions / CLIENTS as u64;
                    attack(socket, &format!("v{client}"), count, seed, sent_bytes)
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client does not panic"))
            .collect()
    });
    let changed: u64 = results
        .into_iter()
        .map(|result| result.unwrap_or_else(|error| panic!("seed {seed}: {error}")))
        .sum();
    eprintln!(
        "{sessions} damaged sessions of {} MiB in all; {changed} bytes changed, all of them named by a request",
        sent_bytes.into_inner() >> 20
    );
    assert!(changed > 0, "the requests that were left whole did something");
    siege.end();
}
