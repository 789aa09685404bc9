//! Whose turn it is: one cut at a time for each volume, a bounded queue behind.

use std::collections::VecDeque;

use crate::cut::{Cut, Sink};
use crate::overall_snapshot::{OverallSnapshot, SnapshotError, SnapshotRequest};
use stillpoint_ondisk::catalog::GROUP_MAX;
use stillpoint_processor::command::EventKind;
use stillpoint_processor::{Now, ShardCommand, ShardEvent, ShardIndex, SnapshotId, Ticket, TimeStamp};

/// Snapshots being taken at the same time at most, of different volumes.
pub const ACTIVE_MAX: usize = 8;
/// Snapshots that may wait their turn.
pub const QUEUE_MAX: usize = 64;

/// Tickets of the coordinator have this bit, so that whoever routes events can tell them from others.
const TICKET_BIT: u64 = 1 << 63;

/// What the coordinator wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give this command to this shard; its event comes back through [`Coordinator::event`]. Commands to one
    /// shard stay in order.
    Send {
        /// The shard.
        shard: ShardIndex,
        /// Comes back with the event.
        ticket: Ticket,
        /// The command.
        command: ShardCommand,
    },
    /// This is how it ended. Exactly one per [`Coordinator::create`].
    Finish {
        /// The snapshot of the request.
        snapshot: SnapshotId,
        /// The overall snapshot, committed; or why there is none.
        result: Result<OverallSnapshot, SnapshotError>,
    },
}

/// Takes the snapshots of one pool.
#[derive(Clone, Debug, Default)]
pub struct Coordinator {
    active: Vec<Cut>,
    queue: VecDeque<SnapshotRequest>,
    tickets_given: u64,
    last_time_stamp: u64,
    shutting_down: bool,
}

impl Coordinator {
    /// A coordinator with nothing to do.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Time stamps go on from here: all further ones are later than this one, whatever the clock says. (It may have been
    /// set back since the newest snapshot of the pool was taken, by an earlier life of the process.)
    pub fn go_on_from(&mut self, newest: TimeStamp) {
        self.last_time_stamp = self.last_time_stamp.max(newest.0);
    }

    /// Whether an event with this ticket answers a command of a coordinator.
    #[must_use]
    pub fn gave(ticket: Ticket) -> bool {
        ticket.0 & TICKET_BIT != 0
    }

    /// Takes this snapshot, now or when the volumes' earlier ones are done. It gets its time stamp when its
    /// turn comes, so that the stamps of a volume's snapshots are in the order of their contents.
    pub fn create(&mut self, request: SnapshotRequest, now: Now, actions: &mut Vec<Action>) {
        assert!(
            !request.volumes.is_empty() && request.volumes.len() <= GROUP_MAX && request.shard_count > 0,
            "the control plane checked the request"
        );
        let refusal = if self.shutting_down {
            Some(SnapshotError::ShuttingDown)
        } else if self.queue.len() >= QUEUE_MAX {
            Some(SnapshotError::Busy { queue_max: QUEUE_MAX })
        } else {
            None
        };
        if let Some(error) = refusal {
            let snapshot = request.snapshot;
            actions.push(Action::Finish {
                snapshot,
                result: Err(error),
            });
            return;
        }
        self.queue.push_back(request);
        self.start_those_whose_turn_it_is(now, actions);
    }

    /// Takes in what a shard told. Events that belong to nothing (any more) are ignored.
    pub fn event(&mut self, event: &ShardEvent, now: Now, actions: &mut Vec<Action>) {
        let found = match (&event.kind, event.ticket) {
            (EventKind::HoldExpired { snapshot, .. }, _) => {
                self.active.iter().position(|cut| cut.snapshot() == *snapshot)
            }
            (_, Some(ticket)) => self
                .active
                .iter()
                .position(|cut| cut.waits_for(event.shard, ticket)),
            (_, None) => None,
        };
        let Some(index) = found else { return };
        let mut sink = Sink::new(&mut self.tickets_given, TICKET_BIT, actions);
        self.active[index].event(event, now, &mut sink);
        self.retire(index, now, actions);
    }

    /// Looks whether a deadline has passed.
    pub fn poll(&mut self, now: Now, actions: &mut Vec<Action>) {
        for index in (0..self.active.len()).rev() {
            let mut sink = Sink::new(&mut self.tickets_given, TICKET_BIT, actions);
            self.active[index].poll(now, &mut sink);
            self.retire(index, now, actions);
        }
    }

    /// When [`Self::poll`] has something to do at the latest, in monotonic nanoseconds.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.active.iter().map(Cut::deadline_ns).min()
    }

    /// Whether no snapshot is being taken and none waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.active.is_empty() && self.queue.is_empty()
    }

    /// Takes no further snapshots; aborts those that are not being committed already. Done when
    /// [`Self::is_idle`].
    pub fn shut_down(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.shutting_down = true;
        for request in self.queue.drain(..) {
            let (snapshot, result) = (request.snapshot, Err(SnapshotError::ShuttingDown));
            actions.push(Action::Finish { snapshot, result });
        }
        for cut in &mut self.active {
            let mut sink = Sink::new(&mut self.tickets_given, TICKET_BIT, actions);
            cut.shut_down(now, &mut sink);
        }
    }

    /// Drops a cut that has ended and lets the next one start.
    fn retire(&mut self, index: usize, now: Now, actions: &mut Vec<Action>) {
        if self.active[index].has_ended() {
            self.active.remove(index);
            self.start_those_whose_turn_it_is(now, actions);
        }
    }

    /// Starts waiting requests in order; one waits as long as a volume of it is in an active cut or in a request
    /// before it.
    fn start_those_whose_turn_it_is(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut index = 0;
        while index < self.queue.len() && self.active.len() < ACTIVE_MAX {
            let waits = {
                let request = &self.queue[index];
                self.active.iter().any(|cut| cut.shares_a_volume_with(request))
                    || self
                        .queue
                        .iter()
                        .take(index)
                        .any(|earlier| share_a_volume(earlier, request))
            };
            if waits {
                index += 1;
                continue;
            }
            let request = self.queue.remove(index).expect("the index is within the queue");
            self.last_time_stamp = now.wall_ns.max(self.last_time_stamp + 1);
            let mut sink = Sink::new(&mut self.tickets_given, TICKET_BIT, actions);
            let cut = Cut::start(request, TimeStamp(self.last_time_stamp), now, &mut sink);
            self.active.push(cut);
        }
    }
}

pub(crate) fn share_a_volume(a: &SnapshotRequest, b: &SnapshotRequest) -> bool {
    a.volumes
        .iter()
        .any(|of_a| b.volumes.iter().any(|of_b| of_a.volume == of_b.volume))
}
