//! One thread of a run.

use stillpoint_hw::clock::monotonic_ns;

use crate::content::{self, Written};
use crate::figures::{Ended, Figures, LATE_NS};
use crate::job::{Idle, Job, Load, WriteMode};
use crate::schedule::{Kind, Request, Requests, Starts};
use crate::target::{Target, TargetError};

/// How long a run waits for requests that do not come back.
const DRAIN_NS: u64 = 60_000_000_000;
/// So long before something is to start a thread that naps wakes: it may be woken late by this.
const NAP_ROOM_NS: u64 = 80_000;
/// The longest nap.
const NAP_NS_MAX: u64 = 100_000_000;
/// How long after the end requests still start that were due before it.
const LAST_NS: u64 = 10_000_000;
/// How often another address is tried when one is busy.
const TRIES: u32 = 16;

/// When a run begins, begins to count, and ends: nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Requests start.
    pub begin_ns: u64,
    /// They count.
    pub count_ns: u64,
    /// No more start.
    pub end_ns: u64,
    /// What this run writes is marked with this, so that what an earlier run left is not taken for it.
    pub mark: u64,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    request: Request,
    intended_ns: u64,
    started_ns: u64,
    sequence: u64,
}

/// A thread at work.
pub struct Worker<'a, T> {
    job: &'a Job,
    span: Span,
    target: T,
    requests: Requests,
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    payload: Vec<u8>,
    written: Option<Written>,
    /// A request whose address is busy.
    stuck: Option<Request>,
    /// Writes since the last flush.
    unflushed: u32,
    /// A flush is to start, and was to at this time.
    flush_due_ns: Option<u64>,
    figures: Figures,
}

impl<'a, T: Target> Worker<'a, T> {
    /// Thread `thread` of a job that was checked, with the area that [`Job::area`] gave.
    #[must_use]
    pub fn new(job: &'a Job, thread: usize, area: (u64, u64), span: Span, target: T) -> Self {
        let in_flight = job.in_flight_max();
        let mut payload = vec![0; job.length_bytes_max() as usize];
        if job.write_mode == WriteMode::Data {
            // Not zeros, which some targets do not store.
            content::fill(&mut payload, 0, 0, span.mark);
        }
        Self {
            job,
            span,
            target,
            requests: Requests::new(job, thread, area),
            flights: vec![None; in_flight],
            free: (0..in_flight as u32).rev().collect(),
            payload,
            written: job.verify.then(Written::default),
            stuck: None,
            unflushed: 0,
            flush_due_ns: None,
            figures: Figures::of(job),
        }
    }

    /// Works until the end of its time, and then until everything has come back.
    ///
    /// # Errors
    /// The target is gone.
    pub fn run(mut self, mut starts: Option<Starts>) -> Result<Figures, TargetError> {
        while monotonic_ns() < self.span.begin_ns {
            core::hint::spin_loop();
        }
        let mut behind = false;
        loop {
            let now_ns = monotonic_ns();
            if now_ns >= self.span.end_ns {
                break;
            }
            let next_ns = match &mut starts {
                Some(starts) => {
                    behind = self.start_due(starts, now_ns, behind)?;
                    // One that waits for room starts when another has ended.
                    if behind { u64::MAX } else { starts.next_ns() }
                }
                None => {
                    self.keep_busy(now_ns)?;
                    u64::MAX
                }
            };
            let ended = self.look()?;
            if !ended && self.job.idle == Idle::Nap {
                self.nap(next_ns.min(self.span.end_ns))?;
            }
        }
        if let Some(starts) = &mut starts {
            behind = self.start_due(starts, self.span.end_ns - 1, behind)?;
        }
        self.drain()?;
        if let Some(starts) = &mut starts {
            self.count_missed(starts, behind);
        }
        self.read_back()?;
        Ok(self.figures)
    }

    /// Starts what is due until then; gives whether something has to wait for room at the target.
    fn start_due(&mut self, starts: &mut Starts, until_ns: u64, behind: bool) -> Result<bool, TargetError> {
        while starts.next_ns() <= until_ns {
            let intended_ns = starts.next_ns();
            let now_ns = monotonic_ns().max(intended_ns);
            if now_ns > self.span.end_ns + LAST_NS {
                return Ok(behind);
            }
            if !self.start(intended_ns, now_ns)? {
                // Before the target is blamed it is looked at: there may be room that was not noticed.
                if self.look()? {
                    continue;
                }
                return Ok(true);
            }
            starts.pass();
            if intended_ns >= self.span.count_ns {
                let late_ns = now_ns - intended_ns;
                if behind {
                    self.figures.waited_for_room += 1;
                } else if late_ns > LATE_NS {
                    self.figures.late += 1;
                    self.figures.late_ns_max = self.figures.late_ns_max.max(late_ns);
                }
            }
        }
        Ok(false)
    }

    /// Counts what was to start and never did: it waited for room, or the generator did not come to it.
    fn count_missed(&mut self, starts: &mut Starts, behind: bool) {
        let end_ns = self.span.end_ns;
        while starts.next_ns() < end_ns {
            if starts.next_ns() >= self.span.count_ns {
                if behind {
                    self.figures.not_started += 1;
                } else {
                    self.figures.late += 1;
                    self.figures.late_ns_max = self.figures.late_ns_max.max(end_ns - starts.next_ns());
                }
            }
            starts.pass();
        }
    }

    /// Starts as many as may be in flight.
    fn keep_busy(&mut self, now_ns: u64) -> Result<(), TargetError> {
        let mut now_ns = now_ns;
        while self.start(now_ns, now_ns)? {
            now_ns = monotonic_ns();
        }
        Ok(())
    }

    /// Starts a request, if there is room.
    fn start(&mut self, intended_ns: u64, started_ns: u64) -> Result<bool, TargetError> {
        if !self.start_flush(started_ns)? || self.free.is_empty() {
            return Ok(false);
        }
        let Some((request, sequence)) = self.choose() else {
            return Ok(false);
        };
        let is_marked = self.written.is_some() && self.job.write_mode == WriteMode::Data;
        if is_marked && request.kind == Kind::Write {
            let payload = &mut self.payload[..request.length_bytes as usize];
            content::fill(payload, request.offset_bytes, sequence, self.span.mark);
        }
        self.give(request, sequence, (intended_ns, started_ns))?;
        if let Some(every) = self.job.flush_every
            && request.kind == Kind::Write
        {
            self.unflushed += 1;
            if self.unflushed == every {
                (self.unflushed, self.flush_due_ns) = (0, Some(intended_ns));
                self.start_flush(started_ns)?;
            }
        }
        Ok(true)
    }

    /// Starts the flush that is due, if one is; false if there is no room for it, and then nothing else starts.
    fn start_flush(&mut self, started_ns: u64) -> Result<bool, TargetError> {
        let Some(intended_ns) = self.flush_due_ns else {
            return Ok(true);
        };
        if self.free.is_empty() {
            return Ok(false);
        }
        self.flush_due_ns = None;
        let intended_ns = match self.job.load {
            // It waited for one that had to end, as all do.
            Load::Closed { .. } => started_ns,
            Load::Open { .. } => intended_ns,
        };
        let flush = Request {
            kind: Kind::Flush,
            offset_bytes: 0,
            length_bytes: 0,
        };
        self.give(flush, 0, (intended_ns, started_ns.max(intended_ns)))?;
        Ok(true)
    }

    /// Gives a request to the target; there is room.
    fn give(
        &mut self,
        request: Request,
        sequence: u64,
        (intended_ns, started_ns): (u64, u64),
    ) -> Result<(), TargetError> {
        let number = self.free.pop().expect("there is room");
        let payload = match request.kind {
            Kind::Write => &self.payload[..request.length_bytes as usize],
            Kind::Read | Kind::Discard | Kind::Flush => &[][..],
        };
        self.target.start(number, request, payload)?;
        self.flights[number as usize] = Some(Flight {
            request,
            intended_ns,
            started_ns,
            sequence,
        });
        Ok(())
    }

    /// The next request, and the number of its write. None if it has to wait for one to the same address.
    fn choose(&mut self) -> Option<(Request, u64)> {
        let Some(written) = &mut self.written else {
            return Some((self.requests.take(), 0));
        };
        for _ in 0..TRIES {
            let request = self.stuck.take().unwrap_or_else(|| self.requests.take());
            match written.start(&request) {
                Some(sequence) => return Some((request, sequence)),
                // In sequential order none is left out.
                None if self.job.order == crate::job::Order::Sequential => {
                    self.stuck = Some(request);
                    return None;
                }
                None => {}
            }
        }
        None
    }

    /// Takes in what has ended; gives whether something had.
    fn look(&mut self) -> Result<bool, TargetError> {
        let Self {
            job,
            span,
            target,
            flights,
            free,
            written,
            figures,
            ..
        } = self;
        let mut any = false;
        let mut now_ns = 0;
        target.poll(|number, result, data| {
            if !any {
                now_ns = monotonic_ns();
                any = true;
            }
            let flight = flights[number as usize].take().expect("it was in flight");
            free.push(number);
            let Flight {
                request, sequence, ..
            } = flight;
            let mut result = result;
            if let Some(written) = written {
                if request.kind != Kind::Flush {
                    written.ended(&request, sequence, result.is_ok());
                }
                if request.kind == Kind::Read && sequence > 0 && result.is_ok() {
                    let at_bytes = request.offset_bytes;
                    let compared = match job.write_mode {
                        WriteMode::Data => content::compare(data, at_bytes, sequence, span.mark),
                        WriteMode::Zeroes => content::compare_zeros(data, at_bytes),
                    };
                    result = compared.map_err(|different| different.to_string());
                    figures.verified += 1;
                }
            }
            match result {
                Err(error) => {
                    let what = request.kind.word();
                    let (at, length) = (request.offset_bytes, request.length_bytes);
                    figures.failed(format!("{what} of {length} bytes at {at}: {error}"));
                }
                Ok(()) if flight.intended_ns >= span.count_ns => figures.ended(Ended {
                    kind: request.kind,
                    length_bytes: request.length_bytes,
                    intended_ns: flight.intended_ns - span.count_ns,
                    response_ns: now_ns - flight.intended_ns,
                    service_ns: now_ns - flight.started_ns,
                }),
                Ok(()) => {}
            }
        })?;
        Ok(any)
    }

    /// Waits for everything in flight.
    fn drain(&mut self) -> Result<(), TargetError> {
        let give_up_ns = monotonic_ns() + DRAIN_NS;
        while self.free.len() < self.flights.len() {
            let ended = self.look()?;
            if !ended && monotonic_ns() > give_up_ns {
                return Err(TargetError::Other(format!(
                    "{} requests did not come back within {} s",
                    self.flights.len() - self.free.len(),
                    DRAIN_NS / 1_000_000_000
                )));
            }
            if !ended && self.job.idle == Idle::Nap {
                self.target.wait(NAP_NS_MAX)?;
            }
        }
        Ok(())
    }

    /// Sleeps until something has ended, or until shortly before this time.
    fn nap(&mut self, until_ns: u64) -> Result<(), TargetError> {
        let until_ns = until_ns.saturating_sub(NAP_ROOM_NS);
        match until_ns.saturating_sub(monotonic_ns()) {
            0 => Ok(()),
            left_ns => self.target.wait(left_ns.min(NAP_NS_MAX)),
        }
    }

    /// Reads everything that was written, if that is to be verified. None of it counts.
    fn read_back(&mut self) -> Result<(), TargetError> {
        let Some(written) = &mut self.written else {
            return Ok(());
        };
        self.span.count_ns = u64::MAX;
        let length_bytes = self.job.length_bytes_max();
        for offset_bytes in written.addresses() {
            let request = Request {
                kind: Kind::Read,
                offset_bytes,
                length_bytes,
            };
            if self.free.is_empty() {
                self.drain()?;
            }
            let sequence = self.written.as_mut().and_then(|written| written.start(&request));
            self.give(request, sequence.expect("nothing is in flight there"), (0, 0))?;
        }
        self.drain()
    }
}

/// The intended starts of a thread of a job; `None` if it starts whenever another has ended.
#[must_use]
pub fn starts(job: &Job, thread: usize, span: Span) -> Option<Starts> {
    match job.load {
        Load::Closed { .. } => None,
        Load::Open {
            rate_iops, arrivals, ..
        } => {
            let threads = job.threads;
            let rate_iops = rate_iops / threads as f64;
            Some(Starts::new(
                job.seed,
                arrivals,
                rate_iops,
                (thread, threads),
                span.begin_ns,
            ))
        }
    }
}
