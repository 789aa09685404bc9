//! Who comes in: the limit on connections, and what the log says of those who have to leave.

use std::sync::Arc;

use stillpoint_export::{Seat, Seats};
use stillpoint_hw::socket::Peer;

/// How often the same complaint is logged at most: who is refused can do nothing to the log either.
const LOG_PAUSE_NS: u64 = 1_000_000_000;

/// The door of one poll loop.
#[derive(Debug)]
pub struct Door {
    connections: Arc<Seats>,
    handshake_limit_ns: u64,
    refusals: Complaint,
    /// Clients that were late, as far as this was told before.
    late: u64,
    latecomers: Complaint,
}

/// Something that may happen very often.
#[derive(Debug, Default)]
struct Complaint {
    silent_until_ns: u64,
    unsaid: u64,
}

impl Complaint {
    /// It happened so often; gives how often since that was logged, if it is time to log again.
    fn count(&mut self, times: u64, now_ns: u64) -> Option<u64> {
        self.unsaid += times;
        if self.unsaid == 0 || now_ns < self.silent_until_ns {
            return None;
        }
        self.silent_until_ns = now_ns + LOG_PAUSE_NS;
        Some(core::mem::take(&mut self.unsaid))
    }
}

impl Door {
    /// A door with these limits; `connections` are those of the whole appliance.
    pub fn new(connections: Arc<Seats>, handshake_limit_ns: u64) -> Self {
        Self {
            connections,
            handshake_limit_ns,
            refusals: Complaint::default(),
            late: 0,
            latecomers: Complaint::default(),
        }
    }

    /// Connections of the whole appliance at most.
    pub fn connections_max(&self) -> usize {
        self.connections.limit() as usize
    }

    /// How long a client may take to choose an export.
    pub fn handshake_limit_ns(&self) -> u64 {
        self.handshake_limit_ns
    }

    /// A place for a connection that was accepted just now, or `None`: there are as many as may be.
    pub fn admit(&mut self, peer: Peer, now_ns: u64) -> Option<Seat> {
        let seat = self.connections.take();
        if seat.is_none()
            && let Some(times) = self.refusals.count(1, now_ns)
        {
            tracing::warn!(
                "{} connections are open, which is the limit: refused {times} more, the last from {peer}",
                self.connections.limit()
            );
        }
        seat
    }

    /// So many clients were late until now.
    pub fn told_of_late(&mut self, late: u64, now_ns: u64) {
        let more = late - core::mem::replace(&mut self.late, late);
        if let Some(times) = self.latecomers.count(more, now_ns) {
            tracing::warn!(
                "{times} clients chose no export within {} ms and were disconnected",
                self.handshake_limit_ns / 1_000_000
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_made_once_in_a_while_and_says_how_often() {
        let mut complaint = Complaint::default();
        assert_eq!(complaint.count(0, 4), None);
        assert_eq!(complaint.count(1, 5), Some(1));
        assert_eq!(complaint.count(2, 6), None);
        assert_eq!(complaint.count(1, LOG_PAUSE_NS), None);
        assert_eq!(complaint.count(0, 5 + LOG_PAUSE_NS), Some(3));
    }

    #[test]
    fn who_is_over_the_limit_gets_no_place() {
        let mut door = Door::new(Seats::new(1), 1);
        let first = door.admit(Peer::Unix, 0);
        assert!(first.is_some() && door.admit(Peer::Unix, 0).is_none());
        drop(first);
        assert!(door.admit(Peer::Unix, 0).is_some());
    }
}
