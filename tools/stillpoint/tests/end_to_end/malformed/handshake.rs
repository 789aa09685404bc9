//! Damage before an export is chosen.

use stillpoint_export::nbd::client::{encode_go, encode_option, string};
use stillpoint_export::nbd::wire::{
    OptionHeader, RequestHeader, command, info, option, option_reply as reply,
};

use super::{Siege, contents};
use crate::support::raw::{FLAGS, Raw, hello, option_replies, queries};

const EXPORT: &str = "v0";
/// Longest option that the server looks at.
const OPTION_BYTES_MAX: usize = 32 << 10;
/// Longest option that it skips.
const OPTION_SKIP_BYTES_MAX: usize = 1 << 20;
/// Options of one connection at most.
const OPTIONS_MAX: usize = 64;

/// What is sent after the greeting, and what comes of it.
struct Case {
    name: String,
    bytes: Vec<u8>,
    /// Types of the replies to options.
    replies: Vec<u32>,
    /// Whether the negotiation goes on; else the server hangs up by itself.
    goes_on: bool,
}

fn case(name: impl Into<String>, bytes: Vec<u8>, replies: &[u32], goes_on: bool) -> Case {
    Case {
        name: name.into(),
        bytes,
        replies: replies.to_vec(),
        goes_on,
    }
}

/// The flags, then this.
fn flags_then(parts: &[&[u8]]) -> Vec<u8> {
    [&FLAGS.to_be_bytes()[..], &parts.concat()].concat()
}

/// An option that announces `announced` bytes and brings `data`.
fn announced(number: u32, announced: u32, data: &[u8]) -> Vec<u8> {
    let header = OptionHeader {
        option: number,
        length_bytes: announced,
    };
    [&header.encode()[..], data].concat()
}

/// The start of what a client sends that wants TLS from the first byte on.
const CLIENT_HELLO: &[u8] = &[
    0x16, 0x03, 0x01, 0x00, 0xf4, 0x01, 0x00, 0x00, 0xf0, 0x03, 0x03, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a,
];

fn flags() -> Vec<Case> {
    let end = |name: &str, bytes: &[u8]| case(name, bytes.to_vec(), &[], false);
    let mut cases = vec![
        end("a flag that does not exist", &4u32.to_be_bytes()),
        end("all flags", &u32::MAX.to_be_bytes()),
        end("the flags in the wrong byte order", &3u32.to_le_bytes()),
        end("TLS instead of flags", CLIENT_HELLO),
        end("HTTP instead of flags", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        end("zeros", &[0; 64]),
    ];
    let list = encode_option(option::LIST, &[]);
    let go = encode_option(option::GO, &encode_go(EXPORT, &[]));
    for (name, flags) in [("neither flag", 0u32), ("no fixed newstyle", 2)] {
        for (what, option) in [("LIST", &list), ("GO", &go)] {
            let bytes = [&flags.to_be_bytes()[..], option].concat();
            cases.push(case(format!("{what} with {name}"), bytes, &[], false));
        }
    }
    for place in 0..8 {
        let mut bytes = flags_then(&[&list]);
        bytes[4 + place] ^= 0x20;
        cases.push(case(
            format!("byte {place} of an option's magic"),
            bytes,
            &[],
            false,
        ));
    }
    cases
}

/// Every option with every length that its field may announce, filled with zeros.
fn lengths() -> Vec<Case> {
    let options = [
        option::ABORT,
        option::LIST,
        option::STARTTLS,
        option::INFO,
        option::GO,
        option::STRUCTURED_REPLY,
        option::LIST_META_CONTEXT,
        option::SET_META_CONTEXT,
        option::EXTENDED_HEADERS,
        4,
        0,
        u32::MAX,
    ];
    let mut cases = Vec::new();
    for number in options {
        for length in [
            0,
            1,
            OPTION_BYTES_MAX,
            OPTION_BYTES_MAX + 1,
            OPTION_SKIP_BYTES_MAX,
            OPTION_SKIP_BYTES_MAX + 1,
            u32::MAX as usize,
        ] {
            let goes_on = length <= OPTION_SKIP_BYTES_MAX;
            let looked_at = length <= OPTION_BYTES_MAX;
            let name = format!("option {number} of {length} bytes");
            let data = vec![0; if goes_on { length } else { 4096 }];
            let bytes = flags_then(&[&announced(number, length as u32, &data)]);
            let replies: &[u32] = match number {
                _ if !goes_on => &[],
                _ if !looked_at => &[reply::ERR_TOO_BIG],
                option::ABORT => &[reply::ACK],
                option::STRUCTURED_REPLY if length == 0 => &[reply::ACK],
                // Three exports: good, ro, v0.
                option::LIST if length == 0 => &[reply::SERVER, reply::SERVER, reply::SERVER, reply::ACK],
                option::LIST | option::STRUCTURED_REPLY => &[reply::ERR_INVALID],
                option::INFO | option::GO | option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                    &[reply::ERR_INVALID]
                }
                _ => &[reply::ERR_UNSUP],
            };
            let goes_on = goes_on && (number != option::ABORT || !looked_at);
            cases.push(case(name, bytes, replies, goes_on));
        }
    }
    for (what, length) in [
        ("no", 0),
        ("an unknown", 4),
        ("a too long", 4097),
        ("a far too long", OPTION_BYTES_MAX + 1),
    ] {
        let bytes = flags_then(&[&encode_option(option::EXPORT_NAME, &vec![b'x'; length])]);
        cases.push(case(format!("EXPORT_NAME with {what} name"), bytes, &[], false));
    }
    let endless = flags_then(&[&announced(option::EXPORT_NAME, u32::MAX, b"v0")]);
    cases.push(case("EXPORT_NAME of 4 GiB", endless, &[], false));
    cases
}

/// Lengths within an option that do not fit it.
fn inner_lengths() -> Vec<Case> {
    let number = |value: u32| value.to_be_bytes().to_vec();
    let name = string(EXPORT.as_bytes());
    let mut cases = Vec::new();
    for (what, data) in [
        (
            "a name that ends beyond the option",
            [number(3), b"v0".to_vec()].concat(),
        ),
        ("a name of 4 GiB", [number(u32::MAX), b"v0".to_vec()].concat()),
        ("a name of 2 GiB", [number(1 << 31), b"v0".to_vec()].concat()),
        (
            "a name of 4097 bytes",
            [string(&[b'x'; 4097]), vec![0, 0]].concat(),
        ),
        ("no count", name.clone()),
        ("half a count", [name.clone(), vec![0]].concat()),
        ("one kind too few", [name.clone(), vec![0, 2, 0, 3]].concat()),
        (
            "65535 kinds and none there",
            [name.clone(), vec![255, 255]].concat(),
        ),
        ("half a kind", [name.clone(), vec![0, 1, 0]].concat()),
        ("a byte behind the kinds", [name.clone(), vec![0, 0, 0]].concat()),
    ] {
        for option in [option::INFO, option::GO] {
            let bytes = flags_then(&[&encode_option(option, &data)]);
            cases.push(case(
                format!("option {option}: {what}"),
                bytes,
                &[reply::ERR_INVALID],
                true,
            ));
        }
    }
    let long = [string(&[b'x'; 4096]), vec![0, 0]].concat();
    let bytes = flags_then(&[&encode_option(option::GO, &long)]);
    cases.push(case("the longest name", bytes, &[reply::ERR_UNKNOWN], true));
    let not_text = [string(&[0xff, 0xfe]), vec![0, 0]].concat();
    let bytes = flags_then(&[&encode_option(option::GO, &not_text)]);
    cases.push(case("a name that is no text", bytes, &[reply::ERR_UNKNOWN], true));
    let structured = encode_option(option::STRUCTURED_REPLY, &[]);
    for (what, data, answer) in [
        ("no query count", name.clone(), reply::ERR_INVALID),
        (
            "a query too few",
            [name.clone(), number(1)].concat(),
            reply::ERR_INVALID,
        ),
        (
            "4 Gi queries",
            [name.clone(), number(u32::MAX)].concat(),
            reply::ERR_INVALID,
        ),
        (
            "a query of 4 GiB",
            [name.clone(), number(1), number(u32::MAX)].concat(),
            reply::ERR_INVALID,
        ),
        (
            "a query of 4097 bytes",
            [name.clone(), number(1), string(&[b'x'; 4097])].concat(),
            reply::ERR_INVALID,
        ),
        (
            "a byte behind the queries",
            [queries(EXPORT, &[b"base:allocation"]), vec![0]].concat(),
            reply::ERR_INVALID,
        ),
        ("the longest query", queries(EXPORT, &[&[b'x'; 4096]]), reply::ACK),
        ("an empty query", queries(EXPORT, &[b""]), reply::ACK),
    ] {
        for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
            let bytes = flags_then(&[&structured, &encode_option(option, &data)]);
            let name = format!("option {option}: {what}");
            cases.push(case(name, bytes, &[reply::ACK, answer], true));
        }
    }
    cases
}

/// Queries that would take a snapshot if they were well-formed, allowed and about something that can be cut.
fn snapshots() -> Vec<Case> {
    let structured = encode_option(option::STRUCTURED_REPLY, &[]);
    let set =
        |export: &str, asked: &[&[u8]]| encode_option(option::SET_META_CONTEXT, &queries(export, asked));
    let named = |name: &[u8]| [b"stillpoint:snapshot:", name].concat();
    let refused = |name: String, option: Vec<u8>, answer: u32| {
        let bytes = flags_then(&[&structured, &option]);
        case(format!("snapshot: {name}"), bytes, &[reply::ACK, answer], true)
    };
    let bad_names: [&[u8]; 12] = [
        b":",
        b"a:",
        b"-a",
        b".a",
        b"a b",
        b"a/b",
        b"a@b",
        b"a\0",
        b"\xff",
        b"\xc3\xa4",
        &[b'x'; 129],
        &[b'x'; 4076],
    ];
    let mut cases: Vec<Case> = bad_names
        .iter()
        .map(|name| {
            let shown = format!("the name {:.40}", name.escape_ascii().to_string());
            refused(shown, set(EXPORT, &[&named(name)]), reply::ERR_INVALID)
        })
        .collect();
    let many: Vec<Vec<u8>> = (0..17).map(|number: u8| named(&[b'a' + number])).collect();
    let many: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    let a = named(b"a");
    let mut longer = queries(EXPORT, &[&a]);
    longer.push(0);
    let longer = encode_option(option::SET_META_CONTEXT, &longer);
    let list = encode_option(option::LIST_META_CONTEXT, &queries(EXPORT, &[&a]));
    cases.extend([
        refused("two at once".into(), set(EXPORT, &many[..2]), reply::ERR_INVALID),
        refused("seventeen at once".into(), set(EXPORT, &many), reply::ERR_TOO_BIG),
        refused("a read-only export".into(), set("ro", &[&a]), reply::ERR_POLICY),
        refused("no such export".into(), set("v9", &[&a]), reply::ERR_UNKNOWN),
        refused("a byte behind".into(), longer, reply::ERR_INVALID),
        refused("a list with a name".into(), list, reply::ACK),
        refused("no name".into(), set(EXPORT, &[&named(b"")]), reply::ACK),
        refused(
            "another space".into(),
            set(EXPORT, &[b"stillpoint:snapshots:a"]),
            reply::ACK,
        ),
        case(
            "snapshot: before structured replies",
            flags_then(&[&set(EXPORT, &[&a])]),
            &[reply::ERR_INVALID],
            true,
        ),
    ]);
    cases
}

/// Options in odd orders, repeated, unknown and without end; and everything around TLS.
fn orders() -> Vec<Case> {
    let structured = encode_option(option::STRUCTURED_REPLY, &[]);
    let context = encode_option(option::SET_META_CONTEXT, &queries(EXPORT, &[b"base:allocation"]));
    let tls = encode_option(option::STARTTLS, &[]);
    let inform = encode_option(option::INFO, &encode_go(EXPORT, &[info::BLOCK_SIZE, 77]));
    let abort = encode_option(option::ABORT, &[]);
    let go = encode_option(option::GO, &encode_go(EXPORT, &[]));
    let unknown: Vec<u8> = (100..120)
        .flat_map(|number| encode_option(number, b"?"))
        .collect();
    let (ack, unsup) = (reply::ACK, reply::ERR_UNSUP);
    vec![
        case(
            "a context before structured replies",
            flags_then(&[&context]),
            &[reply::ERR_INVALID],
            true,
        ),
        case(
            "structured replies twice",
            flags_then(&[&structured, &structured]),
            &[ack, ack],
            true,
        ),
        case(
            "a context twice",
            flags_then(&[&structured, &context, &context]),
            &[ack, reply::META_CONTEXT, ack, reply::META_CONTEXT, ack],
            true,
        ),
        case(
            "INFO with a kind that does not exist",
            flags_then(&[&inform]),
            &[3, 3, ack],
            true,
        ),
        case(
            "INFO again and again",
            flags_then(&[&inform.repeat(9)]),
            &[3, 3, ack].repeat(9),
            true,
        ),
        case("ABORT, then GO", flags_then(&[&abort, &go]), &[ack], false),
        case(
            "options nobody knows",
            flags_then(&[&unknown]),
            &[unsup; 20],
            true,
        ),
        case(
            "as many options as may be",
            flags_then(&[&tls.repeat(OPTIONS_MAX - 1)]),
            &[unsup; OPTIONS_MAX - 1],
            true,
        ),
        case(
            "one option too many",
            flags_then(&[&tls.repeat(OPTIONS_MAX + 1)]),
            &[unsup; OPTIONS_MAX],
            false,
        ),
        case(
            "100,000 options",
            flags_then(&[&tls.repeat(100_000)]),
            &[unsup; OPTIONS_MAX],
            false,
        ),
        case("STARTTLS", flags_then(&[&tls]), &[unsup], true),
        case(
            "STARTTLS with data",
            flags_then(&[&encode_option(option::STARTTLS, CLIENT_HELLO)]),
            &[unsup],
            true,
        ),
        case(
            "STARTTLS, then TLS all the same",
            flags_then(&[&tls, CLIENT_HELLO]),
            &[unsup],
            false,
        ),
        case(
            "STARTTLS between others",
            flags_then(&[&structured, &tls, &context]),
            &[ack, unsup, 4, ack],
            true,
        ),
        case(
            "a request instead of an option",
            flags_then(&[&read(0).encode()]),
            &[],
            false,
        ),
        case(
            "the greeting, back",
            flags_then(&[b"NBDMAGICIHAVEOPT\0\x03"]),
            &[],
            false,
        ),
    ]
}

fn read(offset_bytes: u64) -> RequestHeader {
    RequestHeader {
        flags: 0,
        command: command::READ,
        cookie: 1,
        offset_bytes,
        length_bytes: 512,
    }
}

/// Plays a case; gives what is wrong.
fn play(siege: &Siege, case: &Case) -> Result<(), String> {
    let mut raw = Raw::open(&siege.appliance.nbd_socket()).map_err(|error| format!("connecting: {error}"))?;
    raw.send(&case.bytes);
    if case.goes_on {
        // What was damaged before is no reason not to choose an export now, and to get what lies there.
        raw.send(&encode_option(option::GO, &encode_go(EXPORT, &[])));
        raw.send(&read(0).encode());
        raw.end();
    }
    let heard = raw.rest();
    let (replies, rest) = option_replies(&heard);
    let mut kinds: Vec<u32> = replies.iter().map(|(_, kind)| *kind).collect();
    if case.goes_on {
        let last = kinds.split_off(kinds.len().saturating_sub(2));
        if last != [reply::INFO, reply::ACK] {
            return Err(format!("GO was answered with {last:x?} after {kinds:x?}"));
        }
        if !rest.ends_with(&contents()[..512]) {
            return Err(format!("no data but {} other bytes", rest.len()));
        }
    } else if !rest.is_empty() {
        return Err(format!("{} bytes behind the replies", rest.len()));
    }
    if kinds != case.replies {
        return Err(format!(
            "answered with {kinds:x?} and not with {:x?}",
            case.replies
        ));
    }
    Ok(())
}

#[test]
fn a_malformed_handshake_is_refused_and_harms_nobody() {
    let siege = Siege::begin(1, &[]);
    let cases: Vec<Case> = [flags(), lengths(), inner_lengths(), snapshots(), orders()]
        .into_iter()
        .flatten()
        .collect();
    let count = cases.len();
    let mut complaints = Vec::new();
    for case in &cases {
        if let Err(error) = play(&siege, case) {
            complaints.push(format!("{}: {error}", case.name));
        }
    }
    assert!(
        complaints.is_empty(),
        "{} of {count} cases:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
    eprintln!("{count} cases of malformed handshakes");
    assert!(siege.read(EXPORT) == contents());
    siege.assert_no_snapshots();
    siege.end();
}

#[test]
fn a_handshake_may_be_cut_after_every_byte() {
    let siege = Siege::begin(1, &[]);
    let mut cuts = 0;
    for structured in [false, true] {
        let whole = hello(EXPORT, structured, &[info::BLOCK_SIZE, info::NAME]);
        for cut in 0..=whole.len() {
            // Gone at once, without having read a byte; or properly, to the end.
            let mut gone = Raw::silent(&siege.appliance.nbd_socket()).expect("connected");
            gone.send(&whole[..cut]);
            drop(gone);
            let mut raw = Raw::open(&siege.appliance.nbd_socket()).expect("greeted");
            raw.send(&whole[..cut]);
            raw.end();
            let heard = raw.rest();
            assert!(option_replies(&heard).1.is_empty(), "cut after {cut} bytes");
            cuts += 2;
        }
    }
    eprintln!("{cuts} handshakes cut");
    siege.end();
}

#[test]
fn a_query_for_a_snapshot_may_be_cut_after_every_byte() {
    let siege = Siege::begin(1, &[]);
    let structured = encode_option(option::STRUCTURED_REPLY, &[]);
    let query = queries(EXPORT, &[b"base:allocation", b"stillpoint:snapshot:cut"]);
    let whole = flags_then(&[&structured, &encode_option(option::SET_META_CONTEXT, &query)]);
    for cut in 0..whole.len() {
        let mut raw = Raw::open(&siege.appliance.nbd_socket()).expect("greeted");
        raw.send(&whole[..cut]);
        raw.end();
        assert!(option_replies(&raw.rest()).1.is_empty(), "cut after {cut} bytes");
    }
    siege.assert_no_snapshots();
    eprintln!("{} queries cut", whole.len());
    siege.end();
}
