//! One snapshot on its way from prepare to commit.
//!
//! | phase | waits for | then | deadline | past it |
//! |---|---|---|---|---|
//! | `Prepare` | `Prepared` of all | cut on all | step limit | abort |
//! | `Cut` | `Taken` of all | release on all | hold limit | abort |
//! | `Settle` | per shard `Released`, then `Durable` | commit rows to shard 0 | step limit | abort |
//! | `Commit` | `Done` for the commit record | success | step limit | in doubt |
//! | `Abort` | `Aborted` of all, asked again and again | the error | step limit | the error all the same |
//!
//! Success is told only from `Commit`. A shard that released by itself at the deadline refuses to persist, so
//! that no message order and no clock leads from there to `Commit`.

use crate::coordinator::{Action, share_a_volume};
use crate::overall_snapshot::{OverallSnapshot, SnapshotError, SnapshotRequest, Step, Written};
use stillpoint_ondisk::catalog::{
    self, FIGURES_MAX, FiguresHead, HoldRow, Key, SnapshotHead, SnapshotVolumeRow, Value,
};
use stillpoint_ondisk::directory::ROW_HEADER_BYTES;
use stillpoint_ondisk::record::Record;
use stillpoint_processor::command::{EventKind, HoldFigures, RefusedReason};
use stillpoint_processor::marks::{Mark, mark};
use stillpoint_processor::{
    Now, RequestError, ShardCommand, ShardEvent, ShardIndex, SnapshotId, Ticket, TimeStamp,
};

/// How many times an abort is asked for within the step limit.
const ABORT_TRIES: u64 = 8;

/// Where actions go, with the counter of tickets.
pub(crate) struct Sink<'a> {
    tickets_given: &'a mut u64,
    ticket_bit: u64,
    actions: &'a mut Vec<Action>,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(tickets_given: &'a mut u64, ticket_bit: u64, actions: &'a mut Vec<Action>) -> Self {
        Self {
            tickets_given,
            ticket_bit,
            actions,
        }
    }

    fn send(&mut self, shard: ShardIndex, command: ShardCommand) -> Ticket {
        *self.tickets_given += 1;
        let ticket = Ticket(*self.tickets_given | self.ticket_bit);
        self.actions.push(Action::Send {
            shard,
            ticket,
            command,
        });
        ticket
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Prepare,
    Cut,
    Settle,
    Commit,
    Abort(SnapshotError),
    Ended,
}

/// What one shard is doing for this snapshot.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// The command it was given last.
    step: Step,
    /// The ticket of the command, while it is not answered.
    waits: Option<Ticket>,
    hold: HoldFigures,
}

/// One snapshot on its way.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    request: SnapshotRequest,
    time_stamp: TimeStamp,
    started_ns: u64,
    durable_ns: u64,
    phase: Phase,
    /// The phase's deadline.
    deadline_ns: u64,
    /// When an unanswered abort is asked for again.
    again_ns: u64,
    /// Element `i` is shard `i`.
    shares: Vec<Share>,
    /// The ticket of the commit record. It alone decides; the rows of figures and marks were logged before it.
    commit: Option<Ticket>,
}

impl Cut {
    pub(crate) fn start(
        request: SnapshotRequest,
        time_stamp: TimeStamp,
        now: Now,
        sink: &mut Sink<'_>,
    ) -> Self {
        let share = Share {
            step: Step::Prepare,
            waits: None,
            hold: HoldFigures::default(),
        };
        let mut cut = Self {
            time_stamp,
            started_ns: now.monotonic_ns,
            durable_ns: 0,
            phase: Phase::Prepare,
            deadline_ns: now.monotonic_ns.saturating_add(request.step_limit_ns),
            again_ns: u64::MAX,
            shares: vec![share; usize::from(request.shard_count)],
            commit: None,
            request,
        };
        let volumes: Vec<_> = cut.request.volumes.iter().map(|volume| volume.volume).collect();
        let snapshot = cut.snapshot();
        cut.send_all(Step::Prepare, &ShardCommand::Prepare { snapshot, volumes }, sink);
        cut
    }

    pub(crate) fn snapshot(&self) -> SnapshotId {
        self.request.snapshot
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    pub(crate) fn deadline_ns(&self) -> u64 {
        self.deadline_ns.min(self.again_ns)
    }

    pub(crate) fn shares_a_volume_with(&self, request: &SnapshotRequest) -> bool {
        share_a_volume(&self.request, request)
    }

    pub(crate) fn waits_for(&self, shard: ShardIndex, ticket: Ticket) -> bool {
        (shard.0 == 0 && self.commit == Some(ticket))
            || self
                .shares
                .get(usize::from(shard.0))
                .is_some_and(|share| share.waits == Some(ticket))
    }

    pub(crate) fn event(&mut self, event: &ShardEvent, now: Now, sink: &mut Sink<'_>) {
        match (&self.phase, &event.kind) {
            (Phase::Ended, _) => {}
            (Phase::Abort(_), kind) => self.aborting(event, kind, sink),
            (Phase::Commit, _) => self.committing(event, now, sink),
            (_, EventKind::HoldExpired { .. }) => {
                mark(Mark::SnapshotHoldExpired);
                self.abort(self.hold_expired(event.shard), now, sink);
            }
            (_, EventKind::Refused { reason }) => {
                mark(Mark::SnapshotRefused);
                let (shard, step, reason) = (event.shard, self.share(event.shard).step, *reason);
                // By now only a passed deadline can have made the shard abort.
                let error = if step >= Step::Release && reason == RefusedReason::Aborted {
                    self.hold_expired(shard)
                } else {
                    SnapshotError::Refused { shard, step, reason }
                };
                self.abort(error, now, sink);
            }
            (_, EventKind::Failed(error)) => {
                let (shard, step, error) = (event.shard, self.share(event.shard).step, *error);
                self.abort(SnapshotError::Failed { shard, step, error }, now, sink);
            }
            (_, kind) => self.progress(event.shard, kind, now, sink),
        }
    }

    pub(crate) fn poll(&mut self, now: Now, sink: &mut Sink<'_>) {
        if now.monotonic_ns >= self.deadline_ns {
            match self.phase.clone() {
                Phase::Ended => {}
                Phase::Cut => self.abort(self.hold_expired(self.laggard()), now, sink),
                Phase::Prepare | Phase::Settle => {
                    mark(Mark::SnapshotStalled);
                    let shard = self.laggard();
                    let (step, step_limit_ns) = (self.share(shard).step, self.request.step_limit_ns);
                    self.abort(
                        SnapshotError::Stalled {
                            shard,
                            step,
                            step_limit_ns,
                        },
                        now,
                        sink,
                    );
                }
                Phase::Commit => self.finish(Err(self.in_doubt()), sink),
                Phase::Abort(error) => self.finish(Err(error), sink),
            }
        } else if now.monotonic_ns >= self.again_ns {
            mark(Mark::SnapshotAbortAgain);
            self.ask_for_abort(now, sink);
        }
    }

    pub(crate) fn shut_down(&mut self, now: Now, sink: &mut Sink<'_>) {
        if matches!(self.phase, Phase::Prepare | Phase::Cut | Phase::Settle) {
            self.abort(SnapshotError::ShuttingDown, now, sink);
        }
    }

    /// A shard did what it was told.
    fn progress(&mut self, shard: ShardIndex, kind: &EventKind, now: Now, sink: &mut Sink<'_>) {
        let snapshot = self.snapshot();
        let share = &mut self.shares[usize::from(shard.0)];
        share.waits = None;
        match (share.step, kind) {
            (Step::Prepare, EventKind::Prepared)
            | (Step::Cut, EventKind::Taken)
            | (Step::Persist, EventKind::Durable) => {}
            (Step::Release, EventKind::Released(figures)) => {
                share.hold = *figures;
                share.step = Step::Persist;
                share.waits = Some(sink.send(shard, ShardCommand::Persist { snapshot }));
            }
            (step, kind) => panic!("shard {} answered {step} with {kind:?}", shard.0),
        }
        if self.shares.iter().all(|share| share.waits.is_none()) {
            self.next_phase(now, sink);
        }
    }

    /// All shards have done what this phase is about.
    fn next_phase(&mut self, now: Now, sink: &mut Sink<'_>) {
        let (snapshot, time_stamp) = (self.snapshot(), self.time_stamp);
        match self.phase {
            Phase::Prepare => {
                self.phase = Phase::Cut;
                self.deadline_ns = now.monotonic_ns.saturating_add(self.request.hold_limit_ns);
                let deadline_ns = self.deadline_ns;
                self.send_all(
                    Step::Cut,
                    &ShardCommand::Cut {
                        snapshot,
                        time_stamp,
                        deadline_ns,
                    },
                    sink,
                );
            }
            Phase::Cut => {
                self.phase = Phase::Settle;
                self.deadline_ns = now.monotonic_ns.saturating_add(self.request.step_limit_ns);
                self.send_all(Step::Release, &ShardCommand::Release { snapshot }, sink);
            }
            Phase::Settle => {
                self.phase = Phase::Commit;
                self.durable_ns = now.monotonic_ns - self.started_ns;
                self.deadline_ns = now.monotonic_ns.saturating_add(self.request.step_limit_ns);
                for (key, value) in self.rows_before().into_iter().chain([self.commit_record()]) {
                    let put = ShardCommand::CatalogPut { key, value };
                    self.commit = Some(sink.send(ShardIndex(0), put));
                }
            }
            Phase::Commit | Phase::Abort(_) | Phase::Ended => unreachable!("not a phase of all shards"),
        }
    }

    /// Shard 0 told about the commit record. An error of the device leaves it open whether the record is there:
    /// then nothing is aborted, because a committed snapshot must be whole.
    fn committing(&mut self, event: &ShardEvent, now: Now, sink: &mut Sink<'_>) {
        match &event.kind {
            EventKind::Done => self.finish(Ok(self.combine()), sink),
            EventKind::Failed(error @ (RequestError::NoSpace | RequestError::ShuttingDown)) => {
                for (key, _) in self.rows_before() {
                    sink.send(ShardIndex(0), ShardCommand::CatalogDelete { key });
                }
                let (shard, step, error) = (event.shard, Step::Commit, *error);
                self.abort(SnapshotError::Failed { shard, step, error }, now, sink);
            }
            EventKind::Failed(_) => self.finish(Err(self.in_doubt()), sink),
            _ => {}
        }
    }

    fn aborting(&mut self, event: &ShardEvent, kind: &EventKind, sink: &mut Sink<'_>) {
        if matches!(kind, EventKind::HoldExpired { .. }) {
            return;
        }
        self.shares[usize::from(event.shard.0)].waits = None;
        if self.shares.iter().all(|share| share.waits.is_none()) {
            let Phase::Abort(error) = self.phase.clone() else {
                unreachable!("the caller looked")
            };
            self.finish(Err(error), sink);
        }
    }

    /// From here on there is no way to `Commit`.
    fn abort(&mut self, error: SnapshotError, now: Now, sink: &mut Sink<'_>) {
        self.phase = Phase::Abort(error);
        self.deadline_ns = now.monotonic_ns.saturating_add(self.request.step_limit_ns);
        // Every shard, also one that has not answered prepare: its answer may be on its way.
        for share in &mut self.shares {
            share.waits = Some(Ticket(0));
        }
        self.ask_for_abort(now, sink);
    }

    fn ask_for_abort(&mut self, now: Now, sink: &mut Sink<'_>) {
        let snapshot = self.snapshot();
        for (index, share) in self.shares.iter_mut().enumerate() {
            if share.waits.is_some() {
                let shard = ShardIndex(index as u16);
                share.waits = Some(sink.send(shard, ShardCommand::Abort { snapshot }));
            }
        }
        let pause_ns = (self.request.step_limit_ns / ABORT_TRIES).max(1);
        self.again_ns = now.monotonic_ns.saturating_add(pause_ns);
    }

    fn finish(&mut self, result: Result<OverallSnapshot, SnapshotError>, sink: &mut Sink<'_>) {
        self.phase = Phase::Ended;
        sink.actions.push(Action::Finish {
            snapshot: self.snapshot(),
            result,
        });
    }

    fn send_all(&mut self, step: Step, command: &ShardCommand, sink: &mut Sink<'_>) {
        for (index, share) in self.shares.iter_mut().enumerate() {
            share.step = step;
            share.waits = Some(sink.send(ShardIndex(index as u16), command.clone()));
        }
    }

    fn share(&self, shard: ShardIndex) -> &Share {
        &self.shares[usize::from(shard.0)]
    }

    /// The first shard that is waited for.
    fn laggard(&self) -> ShardIndex {
        let waits = self.shares.iter().position(|share| share.waits.is_some());
        ShardIndex(waits.expect("a phase lasts as long as a shard is waited for") as u16)
    }

    fn hold_expired(&self, shard: ShardIndex) -> SnapshotError {
        SnapshotError::HoldExpired {
            shard,
            hold_limit_ns: self.request.hold_limit_ns,
        }
    }

    fn in_doubt(&self) -> SnapshotError {
        mark(Mark::SnapshotInDoubt);
        SnapshotError::InDoubt {
            shard: ShardIndex(0),
            step_limit_ns: self.request.step_limit_ns,
        }
    }

    /// The intermediate snapshots, combined.
    fn combine(&self) -> OverallSnapshot {
        OverallSnapshot {
            snapshot: self.request.snapshot,
            name: self.request.name.clone(),
            time_stamp: self.time_stamp,
            volumes: self.request.volumes.clone(),
            marks: self.request.marks,
            holds: self.shares.iter().map(|share| share.hold).collect(),
            durable_ns: self.durable_ns,
            written: self.heads().iter().fold(Written::default(), Written::and),
        }
    }

    /// The catalog rows that are logged before the commit record: without it they mean nothing.
    fn rows_before(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.rows_with(&self.heads())
    }

    fn rows_with(&self, heads: &[FiguresHead]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = self.figures_rows(heads);
        if !self.request.marks.is_empty() {
            rows.push(self.request.marks.row(self.request.snapshot));
        }
        rows
    }

    /// The heads of the rows of figures: what was written on their shards. The catalog's own rows count in the first; their
    /// lengths do not depend on it.
    fn heads(&self) -> Vec<FiguresHead> {
        let mut sums: Vec<Written> = self
            .shares
            .chunks(FIGURES_MAX)
            .map(|shares| Written {
                log_bytes: shares.iter().map(|share| share.hold.log_bytes).sum(),
                metadata_bytes: shares.iter().map(|share| share.hold.metadata_bytes).sum(),
            })
            .collect();
        let blank = vec![FiguresHead::of(0, 0); sums.len()];
        let rows = self.rows_with(&blank).into_iter().chain([self.commit_record()]);
        for (key, value) in rows {
            let (key, value) = (&key[..], &value[..]);
            sums[0].log_bytes += Record::CatalogPut { key, value }.encoded_bytes() as u64;
            sums[0].metadata_bytes += (ROW_HEADER_BYTES + key.len() + value.len()) as u64;
        }
        sums.iter()
            .map(|sum| FiguresHead::of(sum.log_bytes, sum.metadata_bytes))
            .collect()
    }

    /// The catalog rows that tell what the snapshot cost.
    fn figures_rows(&self, heads: &[FiguresHead]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let snapshot = self.request.snapshot.0;
        let rows: Vec<HoldRow> = self.shares.iter().map(|share| hold_row(share.hold)).collect();
        rows.chunks(FIGURES_MAX)
            .zip(heads)
            .enumerate()
            .map(|(index, (rows, &head))| {
                let first_shard = (index * FIGURES_MAX) as u16;
                let key = Key::Figures {
                    snapshot,
                    first_shard,
                };
                (key.encode(), Value::Figures(head, rows).encode())
            })
            .collect()
    }

    /// The catalog row that makes the overall snapshot exist.
    fn commit_record(&self) -> (Vec<u8>, Vec<u8>) {
        let volumes: Vec<SnapshotVolumeRow> = self
            .request
            .volumes
            .iter()
            .map(|volume| SnapshotVolumeRow {
                volume: volume.volume.0.into(),
                owner: volume.owner_row().into(),
                size_bytes: volume.size_bytes.into(),
            })
            .collect();
        let head = SnapshotHead {
            version: catalog::VERSION.into(),
            name_bytes: 0.into(),
            volume_count: 0.into(),
            shard_count: self.request.shard_count.into(),
            time_stamp_ns: self.time_stamp.0.into(),
            durable_ns: self.durable_ns.into(),
        };
        let value = Value::Snapshot(head, &volumes, &self.request.name).encode();
        (Key::Snapshot(self.request.snapshot.0).encode(), value)
    }
}

fn hold_row(hold: HoldFigures) -> HoldRow {
    HoldRow {
        hold_ns: hold.hold_ns.into(),
        answers_held: hold.answers_held.into(),
        answer_held_ns_max: hold.answer_held_ns_max.into(),
    }
}
