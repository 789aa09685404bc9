//! The client against the session.

use super::harness::{World, table};
use crate::nbd::client::{ClientError, Connection, RequestFailed, negotiate};
use crate::nbd::wire::{
    GREETING_MAGIC, OPTION_MAGIC, OptionReplyHeader, ReplyError, command, handshake_flags, info, option,
    option_reply,
};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Result, Write};

const SIZE: u64 = 40 << 20;

/// A stream whose other end is a session.
struct Wire(World);

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        while self.0.heard.is_empty() && self.0.turn() {}
        let count = buffer.len().min(self.0.heard.len());
        buffer[..count].copy_from_slice(&self.0.heard[..count]);
        self.0.heard.drain(..count);
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> Result<usize> {
        self.0.unread.extend(buffer);
        while self.0.turn() {}
        Ok(buffer.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The same, but one of the reads fails, as it does when a time limit of the socket passes; what comes after is there.
struct Fragile {
    wire: Wire,
    reads_left: usize,
}

impl Read for Fragile {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let fails = self.reads_left == 0;
        self.reads_left = self.reads_left.wrapping_sub(1);
        if fails {
            return Err(ErrorKind::TimedOut.into());
        }
        self.wire.read(buffer)
    }
}

impl Write for Fragile {
    fn write(&mut self, buffer: &[u8]) -> Result<usize> {
        self.wire.write(buffer)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A server that says what was written down for it.
struct Scripted(VecDeque<u8>);

impl Read for Scripted {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Scripted {
    fn write(&mut self, buffer: &[u8]) -> Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn connect(export: &str) -> core::result::Result<Connection<Wire>, ClientError> {
    Connection::open(Wire(World::new(table(SIZE))), export)
}

#[test]
fn a_client_learns_what_the_server_offers() {
    let connection = connect("disk").expect("a connection");
    let export = connection.export();
    assert_eq!((export.size_bytes, export.block_bytes), (SIZE, 512));
    assert!(export.structured && export.block_status);
}

#[test]
fn an_unknown_export_is_refused_with_the_servers_words() {
    match connect("nope") {
        Err(ClientError::Refused {
            option: asked,
            error,
            message,
        }) => {
            assert_eq!((asked, error), (option::GO, option_reply::ERR_UNKNOWN));
            assert_eq!(message, "there is no such export");
        }
        other => panic!("{:?}", other.map(|connection| connection.export().clone())),
    }
}

/// Neither an option whose reply does not come was refused, nor does the negotiation go on after it: the reply that
/// comes late would be taken for that to the next option.
#[test]
fn a_connection_that_breaks_in_the_handshake_is_no_refusal() {
    for reads in 0.. {
        let mut stream = Fragile {
            wire: Wire(World::new(table(SIZE))),
            reads_left: reads,
        };
        match negotiate(&mut stream, "disk") {
            Err(ClientError::Io(error)) => assert_eq!(error.kind(), ErrorKind::TimedOut, "read {reads}"),
            Ok(export) => {
                assert!(export.structured && export.block_status, "read {reads}");
                assert!(stream.reads_left < usize::MAX / 2, "no read failed");
                assert!(reads >= 7, "greeting and three options: {reads} reads");
                return;
            }
            other => panic!("read {reads}: {other:?}"),
        }
    }
}

#[test]
fn a_server_may_refuse_what_a_client_can_do_without() {
    let reply = |option, reply, data: &[u8]| {
        let header = OptionReplyHeader {
            option,
            reply,
            length_bytes: data.len() as u32,
        };
        [&header.encode()[..], data].concat()
    };
    let flags = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
    let export = [&[0, info::EXPORT as u8][..], &SIZE.to_be_bytes(), &[0, 1]].concat();
    let said = [
        GREETING_MAGIC.to_be_bytes().to_vec(),
        OPTION_MAGIC.to_be_bytes().to_vec(),
        flags.to_be_bytes().to_vec(),
        reply(
            option::STRUCTURED_REPLY,
            option_reply::ERR_UNSUP,
            b"never heard of it",
        ),
        reply(option::GO, option_reply::INFO, &export),
        reply(option::GO, option_reply::ACK, &[]),
    ];
    let export = negotiate(&mut Scripted(said.concat().into()), "disk").expect("it goes without");
    assert_eq!(
        (export.size_bytes, export.structured, export.block_status),
        (SIZE, false, false)
    );
}

#[test]
fn requests_in_flight_together_are_told_apart() {
    let mut connection = connect("disk").expect("a connection");
    let mut cookies = Vec::new();
    for index in 0..40u64 {
        let data = vec![index as u8 + 1; 4096 + 512 * index as usize];
        cookies.push(
            connection
                .send_write(index << 20, &data, index % 2 == 0)
                .expect("sent"),
        );
    }
    while let Some(completed) = connection.wait().expect("an answer") {
        assert_eq!(completed.result, Ok(()));
        cookies.retain(|&cookie| cookie != completed.cookie);
    }
    assert_eq!((cookies.len(), connection.in_flight()), (0, 0));
    connection.flush().expect("flushed");
    let mut asked = std::collections::BTreeMap::new();
    for index in 0..40u64 {
        let cookie = connection
            .send_read((index << 20) - 512 * (index & 1), 5120)
            .expect("sent");
        asked.insert(cookie, index);
    }
    while let Some(completed) = connection.wait().expect("an answer") {
        let index = asked.remove(&completed.cookie).expect("it was asked");
        assert_eq!(completed.result, Ok(()));
        let skip = 512 * (index & 1) as usize;
        let written = (4096 + 512 * index as usize).min(5120 - skip);
        assert!(
            completed.data[skip..skip + written]
                .iter()
                .all(|&byte| byte == index as u8 + 1)
        );
        connection.recycle(completed.data);
    }
    assert!(asked.is_empty());
}

#[test]
fn large_data_goes_both_ways() {
    let mut connection = connect("disk").expect("a connection");
    let data: Vec<u8> = (0..32u32 << 20).map(|at| (at ^ at >> 9) as u8).collect();
    connection.write(512, &data).expect("written");
    assert!(connection.read(512, 32 << 20).expect("read") == data);
}

#[test]
fn errors_and_extents_arrive() {
    let mut connection = connect("disk").expect("a connection");
    assert!(matches!(
        connection.read(SIZE, 512),
        Err(RequestFailed::Reply(ReplyError::Invalid))
    ));
    connection.write(4096, &[1; 4096]).expect("written");
    connection
        .send_command(command::BLOCK_STATUS, 0, 0, 16384)
        .expect("sent");
    let completed = connection.wait().expect("an answer").expect("one is in flight");
    assert_eq!(completed.extents, [(4096, 3), (4096, 0), (8192, 3)]);
}
