//! The client against the session.

use super::harness::{World, table};
use crate::nbd::client::{ClientError, Connection, RequestFailed};
use crate::nbd::wire::{ReplyError, command, option, option_reply};
use std::io::{Read, Result, Write};

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
