//! Requests that no client should send, and how each has to end.

use stillpoint_export::nbd::wire::{
    CHUNK_MAGIC, REQUEST_MAGIC, ReplyError, RequestHeader, command, command_flags as flag,
};

use super::VOLUME_BYTES;

const SIZE: u64 = VOLUME_BYTES;
const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// How a session is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Structured replies and block status.
    Structured,
    /// Simple replies.
    Simple,
    /// Structured replies, and the client promised to keep to blocks of 512 bytes.
    Blocks,
    /// Structured replies from a read-only export.
    ReadOnly,
}

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Well.
    Well,
    /// With this error.
    Error(ReplyError),
    /// With this error, and the server hangs up.
    ErrorAndEnd(ReplyError),
    /// Without a word: the server hangs up.
    End,
}

pub struct Case {
    pub name: String,
    pub kind: Kind,
    pub bytes: Vec<u8>,
    pub ends: Ends,
}

pub fn header(command: u16, flags: u16, offset_bytes: u64, length_bytes: u32) -> RequestHeader {
    RequestHeader {
        flags,
        command,
        cookie: COOKIE,
        offset_bytes,
        length_bytes,
    }
}

pub const COOKIE: u64 = 0x0102_0304_0506_0708;

/// A request without a payload.
fn plain(name: &str, kind: Kind, command: u16, flags: u16, offset: u64, length: u32, ends: Ends) -> Case {
    Case {
        name: format!("{name} (command {command}, {kind:?})"),
        kind,
        bytes: header(command, flags, offset, length).encode().to_vec(),
        ends,
    }
}

/// A write with so many bytes of payload, whatever it announces.
fn write(name: &str, kind: Kind, flags: u16, offset: u64, length: u32, payload: usize, ends: Ends) -> Case {
    let mut case = plain(name, kind, command::WRITE, flags, offset, length, ends);
    case.bytes.extend(vec![0xee; payload]);
    case
}

/// Ranges that are no ranges of the volume: name, offset, length.
const BEYOND: [(&str, u64, u32); 8] = [
    ("a byte at the end", SIZE, 1),
    ("over the end", SIZE - 512, 1024),
    ("one byte over the end", SIZE - 1, 2),
    ("far beyond the end", 1 << 50, 4096),
    ("beyond 2^63", (1 << 63) + 4096, 4096),
    ("at the last offset there is", u64::MAX, 1),
    ("an end that overflows to 4096", u64::MAX - 4095, 8192),
    ("an end that overflows to 0", u64::MAX - 511, 512),
];

pub fn ranges() -> Vec<Case> {
    use Ends::Error;
    use Kind::{Blocks, Simple, Structured};
    use ReplyError::{Invalid, NoSpace, Overflow};
    let mut cases = Vec::new();
    for (name, offset, length) in BEYOND {
        for kind in [Structured, Simple] {
            cases.push(plain(
                name,
                kind,
                command::READ,
                0,
                offset,
                length,
                Error(Invalid),
            ));
            cases.push(write(
                name,
                kind,
                0,
                offset,
                length,
                length as usize,
                Error(NoSpace),
            ));
        }
        cases.push(plain(
            name,
            Structured,
            command::TRIM,
            0,
            offset,
            length,
            Error(Invalid),
        ));
        cases.push(plain(
            name,
            Structured,
            command::WRITE_ZEROES,
            0,
            offset,
            length,
            Error(NoSpace),
        ));
        cases.push(plain(
            name,
            Structured,
            command::CACHE,
            0,
            offset,
            length,
            Error(Invalid),
        ));
        cases.push(plain(
            name,
            Structured,
            command::BLOCK_STATUS,
            0,
            offset,
            length,
            Error(Invalid),
        ));
    }
    for (length, read, trim) in [
        (PAYLOAD_BYTES_MAX, Invalid, Invalid),
        (PAYLOAD_BYTES_MAX + 1, Overflow, Invalid),
        (u32::MAX, Overflow, Invalid),
    ] {
        let name = format!("{length} bytes");
        cases.push(plain(&name, Structured, command::READ, 0, 0, length, Error(read)));
        cases.push(plain(&name, Simple, command::READ, 0, 0, length, Error(read)));
        cases.push(plain(&name, Structured, command::TRIM, 0, 0, length, Error(trim)));
        cases.push(plain(
            &name,
            Structured,
            command::WRITE_ZEROES,
            0,
            0,
            length,
            Error(NoSpace),
        ));
        cases.push(plain(
            &name,
            Structured,
            command::BLOCK_STATUS,
            0,
            0,
            length,
            Error(Invalid),
        ));
        cases.push(plain(
            &name,
            Structured,
            command::CACHE,
            0,
            0,
            length,
            Error(Invalid),
        ));
    }
    for (name, offset, length) in [("an odd offset", 1u64, 512u32), ("an odd length", 512, 100)] {
        cases.push(plain(
            name,
            Blocks,
            command::READ,
            0,
            offset,
            length,
            Error(Invalid),
        ));
        cases.push(write(
            name,
            Blocks,
            0,
            offset,
            length,
            length as usize,
            Error(Invalid),
        ));
        cases.push(plain(
            name,
            Blocks,
            command::TRIM,
            0,
            offset,
            length,
            Error(Invalid),
        ));
        cases.push(plain(
            name,
            Blocks,
            command::WRITE_ZEROES,
            0,
            offset,
            length,
            Error(Invalid),
        ));
    }
    for kind in [Structured, Simple] {
        for command in [
            command::READ,
            command::WRITE,
            command::TRIM,
            command::WRITE_ZEROES,
            command::CACHE,
        ] {
            cases.push(plain("no bytes", kind, command, 0, 4096, 0, Ends::Well));
        }
    }
    cases.push(plain(
        "a flush of a range",
        Structured,
        command::FLUSH,
        0,
        0,
        512,
        Error(Invalid),
    ));
    cases.push(plain(
        "a flush at an offset",
        Structured,
        command::FLUSH,
        0,
        512,
        0,
        Error(Invalid),
    ));
    cases
}

pub fn payloads() -> Vec<Case> {
    use Ends::{End, Error, ErrorAndEnd};
    use Kind::{Simple, Structured};
    use ReplyError::{Invalid, Overflow};
    let over = PAYLOAD_BYTES_MAX + 1;
    let skipped = 2 * PAYLOAD_BYTES_MAX;
    let mut cases = vec![
        write(
            "a byte too much",
            Structured,
            0,
            0,
            over,
            over as usize,
            Error(Overflow),
        ),
        write(
            "as much as is skipped",
            Simple,
            0,
            0,
            skipped,
            skipped as usize,
            Error(Overflow),
        ),
        write(
            "more than is skipped",
            Structured,
            0,
            0,
            skipped + 1,
            100,
            ErrorAndEnd(Overflow),
        ),
        write("4 GiB", Structured, 0, 0, u32::MAX, 100, ErrorAndEnd(Overflow)),
        write("unknown flags", Structured, 1 << 9, 0, 512, 512, Error(Invalid)),
        // Less data than announced, then the end: nothing of it is written.
        write("no data", Structured, 0, 0, 512, 0, End),
        write("a byte of data", Simple, 0, 0, 512, 1, End),
        write("a byte too few", Structured, 0, 4096, 512, 511, End),
        write("a byte too few of 64 KiB", Structured, 0, 0, 65536, 65535, End),
        write(
            "a byte too few of a part",
            Structured,
            flag::FUA,
            0,
            1 << 20,
            (1 << 20) - 1,
            End,
        ),
    ];
    // Data that looks like requests is data.
    let mut case = write(
        "a payload full of requests",
        Structured,
        0,
        SIZE,
        28 * 16,
        0,
        Error(ReplyError::NoSpace),
    );
    let request = header(command::WRITE_ZEROES, 0, 0, SIZE as u32);
    case.bytes.extend(request.encode().repeat(16));
    cases.push(case);
    for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        let length = 4096;
        let mut case = plain(
            "a change",
            Kind::ReadOnly,
            command,
            0,
            0,
            length,
            Error(ReplyError::NotPermitted),
        );
        if command == command::WRITE {
            case.bytes.extend(vec![0xee; length as usize]);
        }
        cases.push(case);
    }
    cases
}

pub fn commands_and_magics() -> Vec<Case> {
    use Ends::{End, Error};
    use Kind::{Simple, Structured};
    use ReplyError::{Invalid, NotSupported, Overflow};
    let mut cases = Vec::new();
    for command in [8, 9, 100, 0x7fff, 0xffff] {
        for kind in [Structured, Simple] {
            cases.push(plain(
                "an unknown command",
                kind,
                command,
                0,
                0,
                512,
                Error(Invalid),
            ));
        }
    }
    for command in [
        command::READ,
        command::TRIM,
        command::FLUSH,
        command::CACHE,
        command::WRITE_ZEROES,
        command::BLOCK_STATUS,
    ] {
        for flags in [1 << 5, 1 << 15, 0xfffe] {
            cases.push(plain(
                &format!("flags {flags:#x}"),
                Structured,
                command,
                flags,
                0,
                0,
                Error(Invalid),
            ));
        }
    }
    cases.extend([
        plain(
            "a flag of structured replies",
            Simple,
            command::READ,
            flag::DF,
            0,
            512,
            Error(Invalid),
        ),
        plain(
            "not agreed on",
            Simple,
            command::BLOCK_STATUS,
            0,
            0,
            512,
            Error(Invalid),
        ),
        plain(
            "one piece of 4 MiB",
            Structured,
            command::READ,
            flag::DF,
            0,
            4 << 20,
            Error(Overflow),
        ),
        plain(
            "fast, of less than a block",
            Structured,
            command::WRITE_ZEROES,
            flag::FAST_ZERO,
            1,
            511,
            Error(NotSupported),
        ),
        plain(
            "fast and allocated",
            Structured,
            command::WRITE_ZEROES,
            flag::FAST_ZERO | flag::NO_HOLE,
            0,
            4096,
            Error(NotSupported),
        ),
    ]);
    let read = header(command::READ, 0, 0, 512).encode();
    for byte in 0..4 {
        for bit in [0, 7] {
            let mut bytes = read.to_vec();
            bytes[byte] ^= 1 << bit;
            cases.push(Case {
                name: format!("byte {byte} of the magic, bit {bit}"),
                kind: Structured,
                bytes,
                ends: End,
            });
        }
    }
    let other = [
        ("zeros", vec![0; 28]),
        ("ones", vec![0xff; 28]),
        (
            "the magic in the wrong byte order",
            [&REQUEST_MAGIC.to_le_bytes()[..], &read[4..]].concat(),
        ),
        (
            "a reply's magic",
            [&CHUNK_MAGIC.to_be_bytes()[..], &read[4..]].concat(),
        ),
        ("an option", [b"IHAVEOPT", &[0; 20][..]].concat()),
        ("TLS", [&[0x16, 3, 1][..], &[0; 25]].concat()),
    ];
    cases.extend(other.map(|(name, bytes)| Case {
        name: format!("{name} instead of a request"),
        kind: Structured,
        bytes,
        ends: End,
    }));
    let disconnect = [
        &header(command::DISC, 0xffff, u64::MAX, u32::MAX).encode()[..],
        &read,
    ]
    .concat();
    cases.push(Case {
        name: "a disconnect with everything wrong, and a read behind it".to_owned(),
        kind: Structured,
        bytes: disconnect,
        ends: End,
    });
    cases
}
