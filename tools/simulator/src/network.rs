//! Simulated connections: two queues of bytes, and a server that asks for transfers as it would ask io_uring.
//!
//! Bytes keep their order; everything else is up to the seed: how many move at a time, when, how many fit, when the
//! client reads, and after which byte the connection is cut.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use stillpoint_export::nbd::{Line, Receive, Send, Transport};

use crate::random::Random;

/// How the connections of one client behave.
#[derive(Clone, Copy, Debug)]
pub struct LineHabits {
    /// Bytes on their way to the client at most: beyond it the server's sends wait.
    pub room_bytes: usize,
    /// The shortest time between two movements of bytes.
    pub latency_ns: u64,
    /// How often all that can move moves at once.
    pub whole_percent: u64,
    /// How often a client that could read does.
    pub reading_percent: u64,
}

/// A transfer of the server that has ended: with the bytes moved, or `None` if the connection broke.
#[derive(Debug)]
pub enum Ended {
    /// From the client.
    Received(Receive, Option<usize>),
    /// To the client.
    Sent(Send, Option<usize>),
}

/// What the client hears of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// There are bytes.
    Bytes,
    /// There will be no more bytes.
    End,
}

/// A connection, seen from above.
#[derive(Debug)]
pub struct Wire {
    habits: LineHabits,
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    receive: Option<Receive>,
    send: Option<Send>,
    /// The client has closed its end.
    client_closed: bool,
    /// The client's end broke: the server hears of it at once, whatever is still on its way.
    reset: bool,
    server_closed: bool,
    /// The client has heard of it.
    end_told: bool,
    /// The client does not read now.
    deaf: bool,
    /// The server has forgotten the connection.
    pub gone: bool,
    /// What the client has taken off the wire, and how far it has read it.
    taken: Vec<u8>,
    read: usize,
    /// Bytes that the client has written, in all and since it last began to negotiate.
    written: usize,
    written_again: usize,
    negotiated: bool,
}

impl Wire {
    /// A connection that was just made.
    #[must_use]
    pub fn new(habits: LineHabits) -> Self {
        Self {
            habits,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            receive: None,
            send: None,
            client_closed: false,
            reset: false,
            server_closed: false,
            end_told: false,
            deaf: false,
            gone: false,
            taken: Vec::new(),
            read: 0,
            written: 0,
            written_again: 0,
            negotiated: false,
        }
    }

    /// The shortest time between two movements of bytes.
    #[must_use]
    pub fn latency_ns(&self) -> u64 {
        self.habits.latency_ns
    }

    fn some(&self, limit: usize, random: &mut Random) -> usize {
        if random.percent(self.habits.whole_percent) {
            return limit;
        }
        let most = if random.percent(30) { limit.min(40) } else { limit };
        random.between(1, most as u64) as usize
    }

    /// Moves some bytes. Gives what the client hears of.
    pub fn tick(&mut self, random: &mut Random, ended: &mut Vec<Ended>) -> Option<Heard> {
        self.tick_receive(random, ended);
        self.tick_send(random, ended);
        if self.client_closed || self.deaf {
            return None;
        }
        if !self.to_client.is_empty() {
            return random
                .percent(self.habits.reading_percent)
                .then_some(Heard::Bytes);
        }
        (self.server_closed && !std::mem::replace(&mut self.end_told, true)).then_some(Heard::End)
    }

    fn tick_receive(&mut self, random: &mut Random, ended: &mut Vec<Ended>) {
        if !self.can_receive() {
            return;
        }
        let mut receive = self.receive.take().expect("it was looked at");
        if self.reset {
            return ended.push(Ended::Received(receive, None));
        }
        let limit = receive.memory().len().min(self.to_server.len());
        if self.server_closed || limit == 0 {
            return ended.push(Ended::Received(receive, Some(0)));
        }
        let count = self.some(limit, random);
        take_front(&mut self.to_server, &mut receive.memory()[..count]);
        ended.push(Ended::Received(receive, Some(count)));
    }

    fn can_receive(&self) -> bool {
        self.receive.is_some()
            && (!self.to_server.is_empty() || self.client_closed || self.reset || self.server_closed)
    }

    fn tick_send(&mut self, random: &mut Random, ended: &mut Vec<Ended>) {
        if !self.can_send() {
            return;
        }
        let send = self.send.take().expect("it was looked at");
        if self.client_closed || self.server_closed {
            return ended.push(Ended::Sent(send, None));
        }
        let room = self.habits.room_bytes - self.to_client.len();
        let limit = room.min(send.pieces().map(<[u8]>::len).sum());
        let count = self.some(limit, random);
        let mut left = count;
        for piece in send.pieces() {
            let piece = &piece[..piece.len().min(left)];
            self.to_client.extend(piece);
            left -= piece.len();
        }
        ended.push(Ended::Sent(send, Some(count)));
    }

    fn can_send(&self) -> bool {
        let room = self.to_client.len() < self.habits.room_bytes;
        self.send.is_some() && (room || self.client_closed || self.server_closed)
    }

    /// The server has forgotten a connection that it had not closed, or a transfer on it.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.gone && (!self.server_closed || self.receive.is_some() || self.send.is_some())
    }

    /// Whether a tick may change something.
    #[must_use]
    pub fn can_move(&self) -> bool {
        let client_hears = !self.to_client.is_empty() || (self.server_closed && !self.end_told);
        self.can_receive() || self.can_send() || (client_hears && !self.client_closed && !self.deaf)
    }

    /// From now on the client does not read, or does again.
    pub fn set_deaf(&mut self, deaf: bool) {
        self.deaf = deaf;
    }

    /// The client takes bytes off the wire: some, or all there are.
    pub fn take(&mut self, random: &mut Random) {
        if self.to_client.is_empty() {
            return;
        }
        let count = self.some(self.to_client.len(), random);
        let start = self.taken.len();
        self.taken.resize(start + count, 0);
        take_front(&mut self.to_client, &mut self.taken[start..]);
    }

    /// The client goes: what it has written is still read by the server, or only so many bytes of it and then the end
    /// or (`reset`) an error.
    pub fn close_client(&mut self, keep_bytes: Option<usize>, reset: bool) {
        self.client_closed = true;
        self.reset = reset;
        if let Some(keep) = keep_bytes {
            self.to_server.truncate(keep);
        }
    }

    /// Bytes that the client wrote and the server has not read.
    #[must_use]
    pub fn unread_bytes(&self) -> usize {
        self.to_server.len()
    }

    /// The negotiation is over: what was read need not be kept.
    pub fn negotiated(&mut self) {
        self.negotiated = true;
    }
}

fn take_front(from: &mut VecDeque<u8>, to: &mut [u8]) {
    let (first, second) = from.as_slices();
    let split = first.len().min(to.len());
    let (head, tail) = to.split_at_mut(split);
    head.copy_from_slice(&first[..split]);
    tail.copy_from_slice(&second[..tail.len()]);
    from.drain(..to.len());
}

/// The client's end, for the shipping client. That one waits for its bytes, and nothing waits here: reading what has
/// not come yet is an error ([`io::ErrorKind::WouldBlock`]), after which a negotiation is begun again from its first
/// byte with what has come meanwhile, and what was written before is not written twice.
#[derive(Debug)]
pub struct ClientEnd(Rc<RefCell<Wire>>);

impl ClientEnd {
    /// An end that reads from the first byte on.
    #[must_use]
    pub fn again(wire: &Rc<RefCell<Wire>>) -> Self {
        let mut all = wire.borrow_mut();
        assert!(!all.negotiated, "what was read is kept for the negotiation only");
        (all.read, all.written_again) = (0, 0);
        Self(Rc::clone(wire))
    }
}

impl io::Read for ClientEnd {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        let wire = &mut *wire;
        let left = &wire.taken[wire.read..];
        if left.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = left.len().min(into.len());
        into[..count].copy_from_slice(&left[..count]);
        wire.read += count;
        if wire.negotiated && wire.read == wire.taken.len() {
            wire.taken.clear();
            wire.read = 0;
        }
        Ok(count)
    }
}

impl io::Write for ClientEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        let known = (wire.written - wire.written_again).min(bytes.len());
        wire.to_server.extend(&bytes[known..]);
        wire.written += bytes.len() - known;
        wire.written_again += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connections to which the server did something.
pub type Touched = Rc<RefCell<Vec<u64>>>;

/// The server's end.
#[derive(Debug)]
pub struct ServerEnd {
    /// Which connection this is.
    pub connection: u64,
    /// The connection.
    pub wire: Rc<RefCell<Wire>>,
    /// Where to say so.
    pub touched: Touched,
}

impl Line for ServerEnd {
    fn shut_down(&self) {
        self.wire.borrow_mut().server_closed = true;
        self.touched.borrow_mut().push(self.connection);
    }
}

impl Drop for ServerEnd {
    fn drop(&mut self) {
        self.wire.borrow_mut().gone = true;
        self.touched.borrow_mut().push(self.connection);
    }
}

/// All lines of a processor.
#[derive(Debug)]
pub struct Lines<'a> {
    /// Out of a hundred sends, how many find no room to be begun.
    pub refuse_percent: u64,
    /// Decides about that.
    pub random: &'a mut Random,
}

impl Transport<ServerEnd> for Lines<'_> {
    fn send(&mut self, _place: usize, line: &ServerEnd, send: Send) -> Result<(), Send> {
        if self.random.percent(self.refuse_percent) {
            return Err(send);
        }
        let before = line.wire.borrow_mut().send.replace(send);
        assert!(before.is_none(), "one send at a time");
        line.touched.borrow_mut().push(line.connection);
        Ok(())
    }

    fn receive(&mut self, _place: usize, line: &ServerEnd, receive: Receive) {
        let before = line.wire.borrow_mut().receive.replace(receive);
        assert!(before.is_none(), "one receive at a time");
        line.touched.borrow_mut().push(line.connection);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use stillpoint_export::nbd::{Limits, Session, SessionOptions};

    use super::*;
    use crate::memory::SimulatedPool;

    fn wire(room_bytes: usize) -> Rc<RefCell<Wire>> {
        Rc::new(RefCell::new(Wire::new(LineHabits {
            room_bytes,
            latency_ns: 1,
            whole_percent: 20,
            reading_percent: 50,
        })))
    }

    #[test]
    fn a_negotiation_that_begins_again_reads_all_and_writes_nothing_twice() {
        let (wire, mut random) = (wire(4096), Random::new(1));
        wire.borrow_mut().to_client.extend(b"hello");
        while !wire.borrow().to_client.is_empty() {
            let mut end = ClientEnd::again(&wire);
            end.write_all(b"how do you do").expect("room");
            let mut bytes = [0; 5];
            assert!(end.read_exact(&mut bytes).is_err(), "not all has come");
            wire.borrow_mut().take(&mut random);
        }
        let mut end = ClientEnd::again(&wire);
        end.write_all(b"how do you do, Sir").expect("room");
        let mut bytes = [0; 5];
        end.read_exact(&mut bytes).expect("all has come");
        assert_eq!(&bytes, b"hello");
        wire.borrow_mut().negotiated();
        end.write_all(b"?").expect("room");
        assert!(wire.borrow().to_server.iter().eq(b"how do you do, Sir?"));
    }

    fn new_session() -> Session {
        Session::new(SessionOptions {
            tag: 0,
            exports: std::sync::Arc::default(),
            limits: Limits::default(),
        })
    }

    #[test]
    fn the_server_gets_what_was_kept_of_a_cut_and_then_the_end() {
        let (wire, mut random) = (wire(10), Random::new(2));
        let mut pool = SimulatedPool::new(1 << 20);
        ClientEnd::again(&wire).write_all(&[7; 100]).expect("room");
        wire.borrow_mut().close_client(Some(60), false);
        let (mut got, mut ended) = (0, Vec::new());
        loop {
            let mut session = new_session();
            let receive = session.receive(&mut pool).expect("flags are awaited");
            wire.borrow_mut().receive = Some(receive);
            assert!(wire.borrow().can_move());
            assert_eq!(
                wire.borrow_mut().tick(&mut random, &mut ended),
                None,
                "nobody hears"
            );
            let Some(Ended::Received(receive, Some(count))) = ended.pop() else {
                panic!("a receive ends")
            };
            got += count;
            session.received(receive, count, &mut pool);
            if count == 0 {
                break;
            }
        }
        assert_eq!(got, 60);
    }
}
