//! Damage after an export is chosen.

use stillpoint_export::nbd::client::{Chunk, ReplyHead, parse_chunk, parse_head};
use stillpoint_export::nbd::wire::{
    ChunkHeader, ReplyError, RequestHeader, SimpleReply, chunk, command, command_flags as flag,
};

use super::request_cases::{COOKIE, Case, Ends, Kind, commands_and_magics, header, payloads, ranges};
use super::{GROWTH_BYTES, Siege, contents};
use crate::support::process::resident_bytes;
use crate::support::raw::{BLOCK_SIZES, Raw};

/// Cookie of the request behind the malformed one.
const PROBE: u64 = 0x1112_1314_1516_1718;

/// A reply: cookie, error, data.
type Heard = (u64, Option<ReplyError>, Vec<u8>);

/// The replies in `bytes`, all of which have to be replies.
fn replies(mut bytes: &[u8], probe_bytes: usize) -> Result<Vec<Heard>, String> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (head, length) = parse_head(bytes)
            .map_err(|error| error.to_string())?
            .ok_or("half a reply")?;
        let body = &bytes[length..];
        let end = match head {
            ReplyHead::Simple(SimpleReply { error, cookie }) => {
                let length = if cookie == PROBE && error == 0 {
                    probe_bytes
                } else {
                    0
                };
                let error = (error != 0).then(|| ReplyError::from_number(error));
                all.push((
                    cookie,
                    error,
                    body.get(..length).ok_or("half of the data")?.to_vec(),
                ));
                length
            }
            ReplyHead::Chunk(ChunkHeader {
                flags,
                kind,
                cookie,
                length_bytes,
            }) => {
                let payload = body.get(..length_bytes as usize).ok_or("half a chunk")?;
                let (error, data) = match parse_chunk(kind, payload).map_err(|error| error.to_string())? {
                    Chunk::Data { bytes, .. } => (None, bytes.to_vec()),
                    Chunk::Error { error, .. } => (Some(error), Vec::new()),
                    _ => (None, Vec::new()),
                };
                if flags & chunk::DONE == 0 {
                    return Err("a reply of several chunks to a small request".to_owned());
                }
                all.push((cookie, error, data));
                length_bytes as usize
            }
        };
        bytes = &body[end..];
    }
    Ok(all)
}

fn play(siege: &Siege, case: &Case) -> Result<(), String> {
    const PROBE_BYTES: usize = 512;
    let (export, structured, wanted) = match case.kind {
        Kind::Structured => ("v0", true, &[][..]),
        Kind::Simple => ("v0", false, &[][..]),
        Kind::Blocks => ("v0", true, &BLOCK_SIZES[..]),
        Kind::ReadOnly => ("ro", true, &[][..]),
    };
    let mut raw: Raw = siege.chosen(export, structured, wanted);
    raw.send(&case.bytes);
    let goes_on = matches!(case.ends, Ends::Well | Ends::Error(_));
    if goes_on {
        // The next request is understood, and gets the right data.
        let mut probe = header(command::READ, 0, 8192, PROBE_BYTES as u32);
        probe.cookie = PROBE;
        raw.send(&probe.encode());
    }
    let hangs_up_by_itself = !goes_on && case.bytes.len() >= RequestHeader::BYTES && {
        let announced = RequestHeader::decode(&case.bytes);
        announced.is_none_or(|header| {
            header.command != command::WRITE || matches!(case.ends, Ends::ErrorAndEnd(_))
        })
    };
    if !hangs_up_by_itself {
        raw.end();
    }
    let replies = replies(&raw.rest(), PROBE_BYTES)?;
    let of = |cookie: u64| -> Vec<_> { replies.iter().filter(|reply| reply.0 == cookie).collect() };
    let expected = match case.ends {
        Ends::Well => Some(None),
        Ends::Error(error) | Ends::ErrorAndEnd(error) => Some(Some(error)),
        Ends::End => None,
    };
    let got = of(COOKIE).first().map(|reply| reply.1);
    if got != expected || of(COOKIE).len() > 1 {
        return Err(format!("{got:?} and not {expected:?}"));
    }
    let probe = of(PROBE).first().map(|reply| reply.2.clone());
    if goes_on && probe.as_deref() != Some(&contents()[8192..8192 + PROBE_BYTES]) {
        return Err("the request behind it was not answered with the right data".to_owned());
    }
    Ok(())
}

#[test]
fn a_malformed_request_is_refused_and_changes_nothing() {
    let siege = Siege::begin(1, &[]);
    let cases: Vec<Case> = [ranges(), payloads(), commands_and_magics()]
        .into_iter()
        .flatten()
        .collect();
    let mut complaints = Vec::new();
    for case in &cases {
        if let Err(error) = play(&siege, case) {
            complaints.push(format!("{}: {error}", case.name));
        }
    }
    let count = cases.len();
    assert!(
        complaints.is_empty(),
        "{} of {count} cases:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
    eprintln!("{count} cases of malformed requests");
    assert!(siege.read("v0") == contents(), "not one of them changed a byte");
    siege.end();
}

#[test]
fn a_write_may_be_cut_after_every_byte() {
    let siege = Siege::begin(1, &[]);
    let request = header(command::WRITE, flag::FUA, 4000, 200);
    let whole = [&request.encode()[..], &[0xee; 200]].concat();
    for cut in 0..whole.len() {
        let mut raw = siege.chosen("v0", cut % 2 == 0, &[]);
        raw.send(&whole[..cut]);
        if cut % 3 == 0 {
            drop(raw);
            continue;
        }
        raw.end();
        assert!(raw.rest().is_empty(), "an answer to {cut} bytes of a write");
    }
    siege.wait_until_alone();
    assert!(siege.read("v0") == contents());
    siege.end();
}

#[test]
fn a_client_that_asks_for_500_mib_and_never_reads_gets_its_share_and_no_more() {
    let siege = Siege::begin(1, &[]);
    let mut requests = Vec::new();
    for number in 0..500u64 {
        let mut read = header(command::READ, 0, (number % 4) << 20, 1 << 20);
        read.cookie = number;
        requests.extend(read.encode());
    }
    let mut most = 0;
    for structured in [true, false] {
        let mut raw = siege.chosen("v0", structured, &[]);
        raw.send(&requests);
        for _ in 0..10 {
            siege.good.wait_for(50);
            most = most.max(resident_bytes(siege.pid));
        }
        drop(raw);
        siege.wait_until_alone();
    }
    assert!(
        most <= siege.resident_bytes + GROWTH_BYTES,
        "{most} bytes resident"
    );
    siege.end();
}
