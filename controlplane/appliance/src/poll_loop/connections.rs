//! The lines of NBD clients: sockets of this loop's ring.

use stillpoint_export::Seat;
use stillpoint_export::nbd::{Line, Receive, Send, Transport};
use stillpoint_hw::ring::Ring;
use stillpoint_hw::socket::{Connection, Gather, Scatter, Sockets};

/// Keys of listeners begin here; below are the places of connections.
pub const LISTENER_KEY: u32 = 1 << 31;

/// A session's memory to be sent, as the sockets want it.
pub struct ToSend(pub Send);
/// A session's memory to be filled, as the sockets want it.
pub struct ToReceive(pub Receive);

impl Gather for ToSend {
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.0.pieces()
    }
}

impl Scatter for ToReceive {
    fn spaces(&mut self) -> impl Iterator<Item = &mut [u8]> {
        std::iter::once(self.0.memory())
    }
}

/// The transfers of one loop's sockets.
pub type SessionSockets = Sockets<ToSend, ToReceive>;

/// A connected socket, which is one of the appliance's connections.
pub struct Socket {
    connection: Connection,
    _seat: Seat,
}

impl Socket {
    /// This one.
    pub fn new(connection: Connection, seat: Seat) -> Self {
        Self {
            connection,
            _seat: seat,
        }
    }
}

impl Line for Socket {
    fn shut_down(&self) {
        self.connection.shut_down();
    }
}

/// The sockets with the ring that they go through.
pub struct Wires<'a> {
    /// Transfers under way.
    pub sockets: &'a mut SessionSockets,
    /// The loop's ring.
    pub ring: &'a mut Ring,
}

impl Transport<Socket> for Wires<'_> {
    fn send(&mut self, place: usize, line: &Socket, send: Send) -> Result<(), Send> {
        let sent = self
            .sockets
            .send(self.ring, &line.connection, place as u32, ToSend(send));
        sent.map_err(|ToSend(send)| send)
    }

    fn receive(&mut self, place: usize, line: &Socket, receive: Receive) {
        let begun = self
            .sockets
            .receive(self.ring, &line.connection, place as u32, ToReceive(receive));
        assert!(begun.is_ok(), "the table has two places per connection");
    }
}
