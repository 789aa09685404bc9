//! What hosts ask over NBD, and the checks of what they are told.

use std::fmt;

use stillpoint_export::nbd::client::{Completed, Connection};
use stillpoint_export::nbd::wire::{PAYLOAD_BYTES_MAX, ReplyError, command, command_flags, extent_state};

use super::{Checked, World, broken};
use crate::model::{Broken, Range, Tick};
use crate::network::ClientEnd;
use crate::stamp::{self, SECTOR_BYTES, Shown};
use crate::world::looks::Look;
use crate::world::recorder::Recorder;

/// How long a client does not read: more than the appliance waits for one whose export goes.
const DEAF_NS: u64 = 1_500_000_000;
/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Stamp of what nobody may write.
const FORBIDDEN: Shown = Shown::MAX;
/// Numbers of hosts, among all clients, begin here.
const HOSTS_FROM: usize = 1000;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    /// The bytes.
    Read,
    /// Stamped sectors are written, zeros are, or blocks become holes: the number of the write; whether it is durable
    /// when it is replied to.
    Change { number: Shown, fua: bool },
    /// Everything acknowledged becomes durable.
    Flush,
    /// What is mapped; one extent only.
    Status { one: bool },
    /// Nothing that could be seen.
    Nothing,
    /// What has to be refused like this.
    Forbidden(ReplyError),
}

/// A request without a reply.
#[derive(Debug)]
pub struct Request {
    command: u16,
    flags: u16,
    asks: Asks,
    offset_bytes: u64,
    length_bytes: u32,
    sent: Tick,
}

impl Request {
    /// The number of the write that it is, if any.
    #[must_use]
    pub fn number(&self) -> Option<Shown> {
        match self.asks {
            Asks::Change { number, .. } => Some(number),
            _ => None,
        }
    }

    fn range(&self) -> Range {
        Range {
            first: self.offset_bytes / SECTOR_BYTES as u64,
            count: u64::from(self.length_bytes) / SECTOR_BYTES as u64,
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "NBD command {} (flags {:#x}, {:?}) of {} bytes at {}, sent at tick {}",
            self.command, self.flags, self.asks, self.length_bytes, self.offset_bytes, self.sent
        )
    }
}

impl World {
    /// A host sends a few requests.
    pub(super) fn ask(&mut self, connection: u64, nbd: &mut Connection<ClientEnd>) -> Checked {
        for _ in 0..self.random.between(1, self.plan.nbd.depth) {
            if nbd.in_flight() as u64 >= self.plan.nbd.depth {
                break;
            }
            let request = self.choose(connection, nbd);
            self.send_nbd(connection, nbd, request)?;
        }
        if self.random.below(1000) < self.plan.nbd.deaf {
            let until_ns = self.machine.now().monotonic_ns + DEAF_NS;
            self.machine.deafen(connection, until_ns);
            self.coverage.count("nbd clients that stopped reading");
        }
        match nbd.push() {
            Ok(()) => self.machine.with_wire(connection, |_| ()),
            Err(error) => return broken(format!("connection {connection}: {error}")),
        }
        Ok(())
    }

    fn choose(&mut self, connection: u64, nbd: &Connection<ClientEnd>) -> Request {
        let (volume, snapshot) = {
            let link = self.hosts.link(connection);
            (link.volume, link.snapshot)
        };
        let (offset_bytes, length_bytes) = self.range(volume, Some(nbd.export().size_bytes));
        let mut request = Request {
            command: command::READ,
            flags: 0,
            asks: Asks::Read,
            offset_bytes,
            length_bytes: length_bytes as u32,
            sent: self.tick(),
        };
        match self.random.below(100) {
            0..2 => {
                request.offset_bytes = nbd.export().size_bytes;
                request.asks = Asks::Forbidden(ReplyError::Invalid);
            }
            2..10 => (request.command, request.asks) = (command::CACHE, Asks::Nothing),
            10..18 if nbd.export().block_status && !self.plan.registers => {
                let one = self.random.percent(20);
                request.command = command::BLOCK_STATUS;
                request.flags = if one { command_flags::REQ_ONE } else { 0 };
                request.asks = Asks::Status { one };
            }
            18..30 if self.flushes() => {
                (request.command, request.asks) = (command::FLUSH, Asks::Flush);
                (request.offset_bytes, request.length_bytes) = (0, 0);
            }
            18..50 => {
                if !nbd.export().structured && self.random.percent(5) {
                    // Longer than the window of a read in order.
                    let length_bytes = nbd.export().size_bytes.min(PAYLOAD_BYTES_MAX.into());
                    (request.offset_bytes, request.length_bytes) = (0, length_bytes as u32);
                }
            }
            _ if snapshot.is_some() && self.random.percent(90) => {}
            kind => self.choose_change(&mut request, kind, snapshot.is_some()),
        }
        request
    }

    /// Makes a request one that writes, zeroes or trims.
    fn choose_change(&mut self, request: &mut Request, kind: u64, read_only: bool) {
        let fua = self.random.percent(self.plan.fua_percent) && self.flushes();
        request.flags = if fua { command_flags::FUA } else { 0 };
        let (start, end) = whole_blocks(request);
        match kind {
            _ if self.plan.registers => request.command = command::WRITE,
            0..85 => request.command = command::WRITE,
            85..93 => {
                request.command = command::WRITE_ZEROES;
                if self.random.percent(40) {
                    request.flags |= command_flags::NO_HOLE;
                }
                if self.random.percent(20) {
                    request.flags |= command_flags::FAST_ZERO;
                }
            }
            _ => {
                request.command = command::TRIM;
                // What is asked of parts of blocks is not done.
                if start < end {
                    (request.offset_bytes, request.length_bytes) = (start, (end - start) as u32);
                }
            }
        }
        let fast = request.flags & command_flags::FAST_ZERO != 0;
        let slow = request.flags & command_flags::NO_HOLE != 0 || start >= end;
        request.asks = if read_only {
            Asks::Forbidden(ReplyError::NotPermitted)
        } else if fast && slow {
            Asks::Forbidden(ReplyError::NotSupported)
        } else if request.command == command::TRIM && start >= end {
            Asks::Nothing
        } else {
            let zeros = request.command != command::WRITE;
            let number = self.writes.send(zeros, request.sent);
            Asks::Change { number, fua }
        };
    }

    fn send_nbd(&mut self, connection: u64, nbd: &mut Connection<ClientEnd>, request: Request) -> Checked {
        let volume = self.hosts.link(connection).volume;
        if let Some(number) = request.number() {
            let client = HOSTS_FROM + self.hosts.link(connection).host;
            self.write_sent(number, client, volume, request.range(), request.sent);
        }
        if matches!(request.command, command::TRIM | command::WRITE_ZEROES) {
            self.discarded.insert(self.volumes[&volume].family);
        }
        let fua = request.flags & command_flags::FUA != 0;
        let sent = match request.command {
            command::READ => nbd.send_read(request.offset_bytes, request.length_bytes),
            command::WRITE => {
                let mut bytes = vec![0; request.length_bytes as usize];
                let number = request.number().unwrap_or(FORBIDDEN);
                stamp::fill(
                    number,
                    self.volumes[&volume].family,
                    request.range().first,
                    &mut bytes,
                );
                nbd.send_write(request.offset_bytes, &bytes, fua)
            }
            command => nbd.send_command(command, request.flags, request.offset_bytes, request.length_bytes),
        };
        let cookie = sent.map_err(|error| Broken(format!("connection {connection}: {error}")))?;
        self.trace(|| format!("ask    connection {connection} request {cookie}: {request}"));
        self.operations_sent += 1;
        self.coverage.count("nbd requests");
        self.hosts.requests.insert((connection, cookie), request);
        Ok(())
    }

    /// The host has the whole reply.
    pub(super) fn replied(&mut self, connection: u64, completed: Completed) -> Checked {
        let cookie = completed.cookie;
        let Some(request) = self.hosts.requests.remove(&(connection, cookie)) else {
            return broken(format!(
                "connection {connection}: a second reply to request {cookie}"
            ));
        };
        let ended = self.tick();
        self.trace(|| {
            let result = completed.result;
            format!("reply  connection {connection} request {cookie}: {request}: {result:?}")
        });
        if let Asks::Change { number, fua } = request.asks {
            self.write_ended(number, completed.result.is_ok(), fua, ended);
        }
        if completed.result.is_ok() {
            self.record(Recorder::done);
        }
        let checked = match (completed.result, request.asks) {
            (Err(error), _) => self.check_refusal(connection, &request, error),
            (Ok(()), Asks::Change { .. } | Asks::Nothing) => Ok(()),
            (Ok(()), Asks::Flush) => {
                self.writes.flushed(request.sent);
                Ok(())
            }
            (Ok(()), Asks::Read) => self.check_nbd_read(connection, &request, &completed.data, ended),
            (Ok(()), Asks::Status { one }) => {
                self.check_extents(connection, &request, &completed.extents, one, ended)
            }
            (Ok(()), Asks::Forbidden(error)) => broken(format!("it was done, and not refused: {error}")),
        };
        checked.map_err(|Broken(why)| Broken(format!("connection {connection}: {request}: {why}")))
    }

    fn check_refusal(&mut self, connection: u64, request: &Request, error: ReplyError) -> Checked {
        let link = self.hosts.link(connection);
        let needs_room = matches!(request.command, command::WRITE | command::WRITE_ZEROES);
        match error {
            ReplyError::Shutdown if link.withdrawn => {
                self.coverage.count("nbd requests refused on the way out");
            }
            error if request.asks == Asks::Forbidden(error) => {
                self.coverage.count("nbd requests refused as they must be");
            }
            ReplyError::NoSpace if needs_room => self.coverage.count("writes refused for lack of space"),
            ReplyError::Io if self.plan.device_errors > 0 || self.plan.corruption => {
                self.coverage.count("requests failed by device errors");
            }
            error => return broken(format!("failed: {error}")),
        }
        Ok(())
    }

    fn check_nbd_read(&mut self, connection: u64, request: &Request, bytes: &[u8], ended: Tick) -> Checked {
        let link = self.hosts.link(connection);
        let (volume, look) = (link.volume, link.snapshot.map_or(Look::Live, Look::Snapshot));
        let whole = link.snapshot.is_some();
        self.look_at(look, volume, request.range().first, bytes, request.sent, ended)?;
        if whole {
            self.coverage.count("nbd reads of snapshots");
        }
        Ok(())
    }

    fn check_extents(
        &mut self,
        connection: u64,
        request: &Request,
        extents: &[(u32, u32)],
        one: bool,
        ended: Tick,
    ) -> Checked {
        let link = self.hosts.link(connection);
        let (volume, live) = (link.volume, link.snapshot.is_none());
        let mut at_bytes = request.offset_bytes;
        let end_bytes = request.offset_bytes + u64::from(request.length_bytes);
        let mut previous = None;
        for &(length_bytes, state) in extents {
            let next_bytes = at_bytes + u64::from(length_bytes);
            let hole = state == extent_state::HOLE | extent_state::ZERO;
            let sound = length_bytes > 0 && (state == 0 || hole) && previous != Some(state);
            if !sound || next_bytes > end_bytes {
                return broken(format!(
                    "{length_bytes} bytes of state {state} from {at_bytes} on"
                ));
            }
            if hole && live {
                let range = Range {
                    first: at_bytes / SECTOR_BYTES as u64,
                    count: u64::from(length_bytes) / SECTOR_BYTES as u64,
                };
                let target = &self.volumes[&volume];
                target
                    .model
                    .check_hole(&self.writes, range, request.sent, ended)?;
            }
            (previous, at_bytes) = (Some(state), next_bytes);
        }
        if extents.is_empty() || (one && extents.len() != 1) || (!one && at_bytes != end_bytes) {
            return broken(format!("{} extents end at {at_bytes}", extents.len()));
        }
        Ok(())
    }
}

/// The whole blocks of a range, as first byte and end.
fn whole_blocks(request: &Request) -> (u64, u64) {
    let end = request.offset_bytes + u64::from(request.length_bytes);
    (request.offset_bytes.next_multiple_of(BLOCK), end / BLOCK * BLOCK)
}
